"""A confirmation for people: what the chosen configurations reach on the test splits, and how far
that can be told from plain fine-tuning and from the zero-shot model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from tuning.confirmation.formatting import format_difference, format_mean
from tuning.confirmation.methods_report import methods_table, tuned_ft
from tuning.confirmation.results import FT, SPLIT, Configuration, Confirmation
from tuning.confirmation.statistics import Estimate
from tuning.reporting.formatting import format_params, format_percent, natural_width
from tuning.runs.records import METHOD_KEY, ZERO_SHOT


def report(confirmation: Confirmation, width: int | None = None) -> RenderableType:
    """The methods side by side where there are several, then all that was confirmed."""
    methods, whole = methods_table(confirmation, width), table(confirmation, width)
    return whole if methods is None else Group(methods, "", whole)


def table(confirmation: Confirmation, width: int | None = None) -> Table:
    """Means over seeds, then the differences to plain fine-tuning and to the zero-shot model.

    Args:
        confirmation: what to show.
        width: characters of the terminal. Where the table is wider, the single OOD domains are
            left out, and the caption says so.
    """
    whole = _table(confirmation, domains=True)
    if width is None or natural_width(whole) <= width:
        return whole
    return _table(confirmation, domains=False)


def _table(confirmation: Confirmation, *, domains: bool) -> Table:
    search = confirmation.search
    columns = {f"id_{SPLIT}/acc": f"{search.id_domain}\n(ID)"}
    if search.ood_domains:
        columns[f"ood_{SPLIT}/mean_acc"] = "OOD\nmean"
    if domains:
        columns |= {f"ood_{SPLIT}/{name}/acc": name for name in search.ood_domains}
    shown = Table(title=f"{escape(search.name)}, test accuracy in percent", header_style="bold")
    shown.add_column("", overflow="fold", max_width=40)
    for header in columns.values():
        shown.add_column(escape(header), justify="right", no_wrap=True)
    _add_means(shown, confirmation, list(columns))
    plain = _ft(confirmation)
    trials = [one for one in confirmation.configurations if one.trial_id != FT]
    _add_differences(shown, trials, list(columns), plain, plain, confirmation.against_ft)
    _add_differences(
        shown,
        confirmation.configurations,
        list(columns),
        plain,
        ZERO_SHOT,
        confirmation.against_zero_shot,
    )
    shown.caption = escape(_caption(confirmation, left_out=not domains))
    shown.caption_justify = "left"
    return shown


def _add_means(shown: Table, confirmation: Confirmation, metrics: Sequence[str]) -> None:
    shown.add_row("[dim]mean ± standard deviation[/]")
    cells = [format_percent(confirmation.zero_shot.get(metric)) for metric in metrics]
    shown.add_row(ZERO_SHOT, *cells)
    for configuration in confirmation.configurations:
        estimates = [confirmation.estimate(configuration.trial_id, m) for m in metrics]
        described = _described(configuration) or _ft(confirmation)
        shown.add_row(described, *map(format_mean, estimates))
    shown.add_section()


def _add_differences(
    shown: Table,
    configurations: Sequence[Configuration],
    metrics: Sequence[str],
    plain: str,
    to: str,
    difference: Callable[[str, str], Estimate | None],
) -> None:
    shown.add_row(f"[dim]difference to {to} \\[95 % interval][/]")
    for configuration in configurations:
        estimates = [difference(configuration.trial_id, metric) for metric in metrics]
        shown.add_row(_name(configuration) or plain, *map(format_difference, estimates))
    shown.add_section()


def _ft(confirmation: Confirmation) -> str:
    """The reference, so named that it is not taken for a method that was tuned."""
    return "FT" if tuned_ft(confirmation) is None else "FT, reference"


def _name(configuration: Configuration) -> str:
    """The trial, and its method where the search varied it; nothing for plain fine-tuning."""
    if configuration.trial_id == FT:
        return ""
    method = configuration.params.get(METHOD_KEY)
    return escape(configuration.trial_id + ("" if method is None else f" ({method})"))


def _described(configuration: Configuration) -> str:
    """The trial, why it is here, and its parameters; nothing for plain fine-tuning."""
    if configuration.trial_id == FT:
        return ""
    mark = " *" if configuration.looks_at_ood else ""
    params = format_params(configuration.params, but=["seed"])
    return (
        f"[bold]{escape(configuration.trial_id)}[/]{mark}\n"
        f"{escape(', '.join(configuration.labels))}\n[dim]{escape(params)}[/]"
    )


def _caption(confirmation: Confirmation, *, left_out: bool) -> str:
    seeds = confirmation.seeds
    lines = [
        f"{len(seeds)} seeds that the search never used ({seeds[0]} to {seeds[-1]}), the same in "
        "every row; differences are taken seed by seed, intervals are Student's t.",
        "The test splits were read once for each, after the choice, which was made on validation "
        "data; to choose among these rows now would be a choice on test data.",
    ]
    if any(one.looks_at_ood for one in confirmation.configurations):
        lines.append("* The choice looked at OOD validation data: these domains are not unseen.")
    lines.append(
        "Intervals are about the luck of training, not about which images a split happens to "
        "have; each stands for itself, uncorrected for their number."
    )
    short = [
        f"{one.trial_id}: {n}"
        for one in confirmation.configurations
        if (n := sum((one.trial_id, s) in confirmation.results for s in seeds)) < len(seeds)
    ]
    if short:
        lines.append(f"Fewer seeds than asked for: {', '.join(short)}.")
    if left_out:
        lines.append("Single OOD domains left out for want of room; see confirm/results.parquet.")
    if confirmation.failed:
        lines.append(f"{len(confirmation.failed)} failed; the next call tries again:")
    for (trial_id, seed), reason in confirmation.failed.items():
        lines.append(f"  {trial_id}{'' if seed is None else f' seed {seed}'}: {reason}")
    return "\n".join(lines)

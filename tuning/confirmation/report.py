"""A confirmation for people: what the chosen configurations reach on the test splits, and how far
that can be told from plain fine-tuning and from the zero-shot model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from tuning.confirmation.results import FT, SPLIT, Configuration, Confirmation
from tuning.confirmation.statistics import Estimate
from tuning.reporting.formats import format_percent, format_value
from tuning.reporting.tables import ZERO_SHOT


def table(confirmation: Confirmation, width: int | None = None) -> Table:
    """Means over seeds, then the differences to plain fine-tuning and to the zero-shot model.

    Args:
        confirmation: what to show.
        width: characters of the terminal. Where the table is wider, the single OOD domains are
            left out, and the caption says so.
    """
    whole = _table(confirmation, domains=True)
    ruler = Console(width=10_000)
    if width is None or Measurement.get(ruler, ruler.options, whole).maximum <= width:
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
    trials = [one for one in confirmation.configurations if one.trial_id != FT]
    _add_differences(shown, trials, list(columns), "FT", confirmation.against_ft)
    _add_differences(
        shown,
        confirmation.configurations,
        list(columns),
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
        shown.add_row(_described(configuration), *map(_mean, estimates))
    shown.add_section()


def _add_differences(
    shown: Table,
    configurations: Sequence[Configuration],
    metrics: Sequence[str],
    to: str,
    difference: Callable[[str, str], Estimate | None],
) -> None:
    shown.add_row(f"[dim]difference to {to} \\[95 % interval][/]")
    for configuration in configurations:
        estimates = [difference(configuration.trial_id, metric) for metric in metrics]
        shown.add_row(_name(configuration), *map(_difference, estimates))
    shown.add_section()


def _name(configuration: Configuration) -> str:
    return "FT" if configuration.trial_id == FT else escape(configuration.trial_id)


def _described(configuration: Configuration) -> str:
    """The trial, why it is here, and its parameters."""
    if configuration.trial_id == FT:
        return "FT"
    mark = " *" if configuration.looks_at_ood else ""
    params = ", ".join(
        f"{key.rpartition('.')[2]} {format_value(value)}"
        for key, value in configuration.params.items()
        if key != "seed"
    )
    return (
        f"[bold]{escape(configuration.trial_id)}[/]{mark}\n"
        f"{escape(', '.join(configuration.labels))}\n[dim]{escape(params)}[/]"
    )


def _mean(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    spread = "" if math.isnan(estimate.sd) else f" ± {estimate.sd:.1f}"
    return f"{estimate.mean:.1f}{spread}"


def _difference(estimate: Estimate | None) -> str:
    """In bold where the interval excludes 0; two lines, or six of them would not fit a screen."""
    if estimate is None:
        return "-"
    if math.isnan(estimate.half_width):
        return f"{estimate.mean:+.1f}"
    text = f"{estimate.mean:+.1f}\n\\[{estimate.low:+.1f}, {estimate.high:+.1f}]"
    return f"[bold]{text}[/]" if estimate.excludes_zero else text


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
        "Intervals are about the luck of training, not about which pictures a split happens to "
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

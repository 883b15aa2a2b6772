"""A plan for the terminal: the space, the rungs, the measurements and the cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.markup import escape
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tuning.planning.cost_model import Band
from tuning.planning.plan import Plan, gigabytes
from tuning.views.formatting import format_hours, format_seconds, points_line
from tuning.views.result_table import borderless_table


def render(plan: Plan, width: int | None = None) -> RenderableType:
    """The plan for a terminal.

    Args:
        width: in characters; a narrow terminal wraps words and cuts nothing.
    """
    search = plan.file.search
    parts: list[RenderableType] = [
        Rule(f"[bold]Plan of {escape(search.name)}[/]", align="left", style="dim"),
        *_section("Space", Text("\n".join(plan.file.search_space().describe()))),
        *_section("Trials", _trials(plan)),
        *_section(f"Measured on {plan.probe.device}", _measured(plan)),
        *_section("Cost", _cost(plan)),
        *(Text(f"! {warning}", style="yellow") for warning in plan.warnings),
    ]
    return Constrain(Group(*parts), width)


def _section(title: str, content: RenderableType) -> Iterator[RenderableType]:
    yield Text(title, style="bold")
    yield Padding(content, (0, 0, 1, 2), expand=False)


def _trials(plan: Plan) -> RenderableType:
    shape, estimate = plan.shape, plan.estimate
    references = ", ".join(plan.file.search.references)
    line = f"{shape.trials} trials of {shape.total_steps} steps, {shape.concurrent} at once"
    line += f"; in full beside them: {references}" if references else ""
    search, parts = plan.file.search, plan.file.search_space().parts().values()
    if search.sampler.name != "grid" and not search.warm_start.runs:
        share = math.ceil(shape.trials / len(parts))
        first = sum(min(share, len(part.initial_points)) for part in parts)
        line += f"\n{points_line(shape.trials, first)}"
    if not plan.marks:
        return Text(f"{line}; none is stopped early")
    table = borderless_table("step", "trials that get there", "share")
    for step in (*plan.marks, shape.total_steps):
        count = estimate.trials_at(step)
        name = f"{step} (last)" if step == shape.total_steps else str(step)
        table.add_row(name, f"{count:.1f}", f"{100 * count / shape.trials:.0f} %")
    return Group(Text(f"{line}; {plan.file.search.scheduler.name} stops the worse early"), table)


def _measured(plan: Plan) -> Table:
    probe, sampled = plan.probe, plan.file.trial.eval.rung_images
    largest = max(probe.val_images)
    table = borderless_table("", "", "", text=(0, 2))
    table.show_header = False
    rows = [
        ("a step", f"{probe.step_s:.3g} s", f"± {100 * probe.step_spread:.0f} %"),
        ("an evaluation", f"{probe.eval_s:.3g} s", "of all validation images"),
        ("a checkpoint", f"{probe.save_s:.3g} s", gigabytes(probe.checkpoint_bytes)),
        ("start of a trial", f"{probe.restart_s:.3g} s", "in workers that are kept"),
        ("start and end", f"{plan.shape.setup_s:.3g} s", "Ray, zero-shot model, workers, report"),
        ("cache of images", format_seconds(probe.cache_s), "once per machine, in no cost below"),
        ("memory of a trial", gigabytes(plan.trial_memory_bytes), "at its peak"),
        ("of it on the head", gigabytes(probe.head_bytes), "drivers of its workers"),
    ]
    if 0 < sampled < largest:
        error = 50 * math.sqrt((1 - sampled / largest) / sampled)
        of = f"a domain; standard error at most {error:.1f}"
        rows.insert(2, ("before the last step", f"{sampled:,} images", of))
    if probe.gpu_total_bytes:
        of = f"of {gigabytes(probe.gpu_total_bytes)}, at its peak"
        rows.append(("GPU memory", gigabytes(probe.gpu_memory_bytes), of))
    for name, value, note in rows:
        table.add_row(name, value, Text(note, style="dim"))
    return table


def _cost(plan: Plan) -> RenderableType:
    estimate = plan.estimate
    table = borderless_table("", "expected", "90 % between", "budget", text=(0, 3))
    budgets = {key.rpartition(".")[2]: (value, needs) for key, value, needs, _ in plan.budgets}
    wall = estimate.hours
    low, median, high = (format_seconds(3600 * h) for h in (wall.low, wall.median, wall.high))
    table.add_row("wall clock", median, f"{low} .. {high}", _verdict(budgets.get("hours")))
    hours = plan.device_hours
    table.add_row(
        f"{plan.device}-hours",
        format_hours(hours.median),
        f"{format_hours(hours.low)} .. {format_hours(hours.high)}",
        _verdict(budgets.get("gpu_hours")),
    )
    for name, band in (("steps", estimate.steps), ("trials in full", estimate.full_trials)):
        table.add_row(name, f"{band.median:.0f}", f"{band.low:.0f} .. {band.high:.0f}", "")
    one = format_seconds(3600 * plan.full_trial_hours)
    table.add_row("one trial in full", one, "", "")
    table.add_row("checkpoints at most", gigabytes(plan.peak_checkpoint_bytes), "", "")
    budget = plan.file.search.budget
    if budget.target is None and budget.patience is None:
        return table
    return Group(table, Text("A target or patience in the budget may end it sooner.", style="dim"))


def _verdict(budget: tuple[float, Band] | None) -> str:
    """The budget and whether the search will probably keep it."""
    if budget is None:
        return ""
    value, needs = budget
    if value < needs.low:
        verdict = "[red]too little[/]"
    elif value < needs.median:
        verdict = "[yellow]probably too little[/]"
    else:
        verdict = "[green]kept[/]" if value >= needs.high else "[green]probably kept[/]"
    return f"{value:g} h, {verdict}"

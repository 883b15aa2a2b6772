"""A plan for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from tuning.planning.plan import Plan
from tuning.views.formatting import format_hours, format_seconds
from tuning.views.result_table import borderless_table


def render(plan: Plan) -> RenderableType:
    """The prices, and what was measured."""
    trial, references = plan.file.trial, ", ".join(plan.file.search.references)
    beside = f" and the reference {references}" if references else ""
    what = (
        f"{plan.file.most_trials} trials of {trial.steps} steps{beside}, {plan.concurrent} at once"
    )
    measured = (
        f"step {plan.step_s:.2g} s, evaluation {plan.rung_s:.2g} s (after the last step "
        f"{plan.eval_s:.2g} s), checkpoint {plan.save_s:.2g} s, start of a trial "
        f"{plan.start_s:.2g} s"
    )
    table = borderless_table("", "wall clock", f"{plan.device}-hours")
    for price in (*plan.prices, plan.confirm_price):
        hours = format_hours(price.device_hours)
        table.add_row(price.what, format_seconds(3600 * price.hours), hours)
    return Group(Text(f"{plan.file.search.name}: {what}\nMeasured: {measured}"), "", table)

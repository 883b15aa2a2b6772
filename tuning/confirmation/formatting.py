"""Estimates as people read them, in rich's markup."""

from __future__ import annotations

import math

from tuning.confirmation.statistics import Estimate


def format_mean(estimate: Estimate | None) -> str:
    """Mean ± standard deviation over the seeds."""
    if estimate is None:
        return "-"
    spread = "" if math.isnan(estimate.sd) else f" ± {estimate.sd:.1f}"
    return f"{estimate.mean:.1f}{spread}"


def format_difference(estimate: Estimate | None, between: str = "\n") -> str:
    """A difference and its interval, in bold where that excludes 0.

    Args:
        estimate: of the difference.
        between: what parts the two; by default they take two lines, or six would not fit a screen.
    """
    if estimate is None:
        return "-"
    if math.isnan(estimate.half_width):
        return f"{estimate.mean:+.1f}"
    text = f"{estimate.mean:+.1f}{between}\\[{estimate.low:+.1f}, {estimate.high:+.1f}]"
    return f"[bold]{text}[/]" if estimate.excludes_zero else text

"""Figures as people read them, the same in the terminal, in MLflow and in the report."""

from __future__ import annotations

import math

from tuning.records import ParamValue


def format_value(value: ParamValue) -> str:
    """A parameter's value, floats to 3 significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_percent(value: float | None) -> str:
    """An accuracy with one decimal and no sign; empty where unknown."""
    return "" if value is None else f"{value:.1f}"


def format_gap(value: float | None) -> str:
    """A difference of accuracies with its sign and one decimal; empty where unknown."""
    if value is None:
        return ""
    return f"{value:+.1f}" if round(value, 1) else "0.0"


def format_seconds(seconds: float | None) -> str:
    """48s, 6m 00s or 2h 05m; empty where unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"

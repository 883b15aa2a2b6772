"""Figures as people read them, the same in the terminal, in MLflow and in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from tuning.runs.records import METHOD_KEY, ParamValue


def format_value(value: ParamValue) -> str:
    """A parameter's value, floats to 3 significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or the whole key where two would look the same."""
    last = ["method" if key == METHOD_KEY else key.rpartition(".")[2] for key in keys]
    return [s if last.count(s) == 1 else k for s, k in zip(last, keys, strict=True)]


def format_params(params: Mapping[str, ParamValue], but: Sequence[str] = ()) -> str:
    """`lr=1e-05 reg_weight=0.7`: all that break a line break it between two parameters.

    Args:
        params: dotted key -> value.
        but: keys that are left out.
    """
    shown = {key: value for key, value in params.items() if key not in but}
    names = short_names(list(shown))
    pairs = zip(names, shown.values(), strict=True)
    return " ".join(f"{name}={format_value(value)}" for name, value in pairs)


def natural_width(table: Table) -> int:
    """Characters that the table takes where nothing is cut or wrapped."""
    ruler = Console(width=10_000)
    return Measurement.get(ruler, ruler.options, table).maximum


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

"""How numbers, parameters and trials are written, in the terminal, MLflow and the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console

from trainers.evaluation.metrics import in_percent
from tuning.log.records import METHOD_KEY, ParamValue, TrialRecord
from tuning.results.ranking import accuracy_margin


def show_phase(console: Console, label: str, *texts: str) -> None:
    """Print a line that names what is being done, and more below it, aligned like results."""
    for text in texts:
        console.print(f"{label:<11} {text}", markup=False, highlight=False, soft_wrap=True)
        label = ""


def format_value(value: ParamValue) -> str:
    """Format the value of a parameter; floats get 3 significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or the whole key if two keys share the last part."""
    last = ["method" if key == METHOD_KEY else key.rpartition(".")[2] for key in keys]
    return [s if last.count(s) == 1 else k for s, k in zip(last, keys, strict=True)]


def param_names(records: Iterable[TrialRecord]) -> dict[str, str]:
    """Key and short name of each parameter of the trials, in the order of their first use."""
    trials = (record for record in records if record.kind == "trial")
    keys = list(dict.fromkeys(key for record in trials for key in record.params))
    return dict(zip(keys, short_names(keys), strict=True))


def format_params(params: Mapping[str, ParamValue], but: Sequence[str] = ()) -> str:
    """Format parameters as `lr=1e-05 reg_weight=0.7`, without the keys in `but`."""
    shown = {key: value for key, value in params.items() if key not in but}
    names = short_names(list(shown))
    pairs = zip(names, shown.values(), strict=True)
    return " ".join(f"{name}={format_value(value)}" for name, value in pairs)


def format_percent(value: float | None) -> str:
    """Format an accuracy with one decimal and no sign; empty if unknown."""
    return "" if value is None else f"{value:.1f}"


def format_metric(name: str) -> Callable[[float], str]:
    """How values of a metric are written: accuracies and calibration errors in percent."""
    return format_percent if in_percent(name) else format_value


def near_chance(domain: str, acc: float, images: int, classes: int) -> str | None:
    """A line on a zero-shot accuracy in percent whose 95 % interval holds that of a guess."""
    if acc - (margin := accuracy_margin(acc, images)) > 100 / classes:
        return None
    return (
        f"{domain}: zero-shot {acc:.1f} ± {margin:.1f} %, as by guessing among {classes} classes: "
        "class names, templates or labels are wrong, or the model knows no such images"
    )


def format_seconds(seconds: float | None) -> str:
    """Format as 48s, 6m 00s or 2h 05m; empty if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def format_hours(hours: float) -> str:
    """Format as `0.056`, `9.3` or `1,234`: 2 significant digits, or a whole number from 10 on."""
    return f"{hours:.2g}" if hours < 9.95 else f"{hours:,.0f}"


def format_outcomes(records: Iterable[TrialRecord]) -> str:
    """How trials stand, as `7 finished, 1 pruned`, without references; empty without trials."""
    found = [record.outcome for record in records if record.kind == "trial"]
    order = ("finished", "running", "pruned", "stopped", "failed")
    return ", ".join(f"{found.count(outcome)} {outcome}" for outcome in order if outcome in found)

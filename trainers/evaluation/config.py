"""The `eval` section of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from trainers.config_model import Frozen
from trainers.evaluation.line import POINTS, LineGoal

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class EvalConfig(Frozen):
    """When and how the validation splits are evaluated."""

    every: int = Field(default=1000, ge=1, le=10**9)
    """Steps between evaluations; the last step is always evaluated."""
    rung_images: int = Field(default=2000, ge=0, le=10**9)
    """Images of each domain that are evaluated before the last step: a stratified sample, the same
    one for all trials and seeds. The standard error of an accuracy on n images is at most
    50 / sqrt(n) points, which is 1.1 for 2000. 0 evaluates all images, as the last step does."""
    line_images: int = Field(default=2000, ge=0, le=10**9)
    """Images of each domain on which the points of `line` are measured, sampled as those of
    `rung_images`: they decide which weights a trial keeps. 0 is all images."""
    batch_size: int = Field(default=256, ge=1, le=10**6)
    """Images of a forward pass."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """d of the moving average ``average <- d average + (1 - d) weights`` after every step, which
    starts at the zero-shot weights and is evaluated, saved and exported in place of the trained
    ones; null for none. The method `ema` is `ft` with it, and `r_adapter` has one of its own."""
    line: Literal["auto", "off"] | Share | tuple[Share, ...] = "auto"
    """Point of the line from the zero-shot weights (0) to the trained ones (1) that a trial
    evaluates and keeps after its last step (WiSE-FT). `auto` measures three points and the end on
    `line_images` images, and takes the best point by the search's objective and constraints; a list
    names other points to measure. A number is a fixed point; `off` is the end. The methods
    `wise_ft` and `r_adapter` have an `alpha` of their own and no line."""
    line_goal: LineGoal | None = None
    """What the point is chosen by, which a search sets from its objectives and constraints. null is
    the highest `val/mean_acc`, or `id_val/acc` without OOD domains."""

    @field_validator("line", mode="before")
    @classmethod
    def _is_on_the_line(cls, line: Any) -> Any:
        if line in ("auto", "off"):
            return line
        points = line if isinstance(line, list | tuple) and line else [line]
        if not all(type(a) in (int, float) and 0 < a <= 1 for a in points):
            raise ValueError(
                "expected auto, off, a number above 0 and at most 1, or a list of these"
            )
        names = [f"{a:g}" for a in points]  # as in metric names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice")
        return line

    @model_validator(mode="before")
    @classmethod
    def _line_may_be_off_in_yaml(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        # YAML reads `off` as false.
        return {**values, "line": "off"} if values.get("line") is False else values

    @property
    def line_points(self) -> tuple[float, ...]:
        """The points that are measured beside both ends; empty if none is chosen."""
        if isinstance(self.line, str):
            return POINTS if self.line == "auto" else ()
        return self.line if isinstance(self.line, tuple) else ()

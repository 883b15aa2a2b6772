"""Who stops trials early: the `search.scheduler:` section, one class a rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainers.frozen import Frozen


class AshaConfig(Frozen):
    """Asynchronous successive halving (Li et al., MLSys 2020) on optimiser steps."""

    name: Literal["asha"] = "asha"
    grace_steps: int = Field(ge=1)
    """No trial is stopped before this step; the first rung."""
    reduction_factor: float = Field(default=3, gt=1)
    """Of the trials that reach a rung, one in so many goes on."""


class HyperbandConfig(Frozen):
    """Asynchronous Hyperband: several ASHA ladders, each a rung later than the one before."""

    name: Literal["hyperband"] = "hyperband"
    grace_steps: int = Field(ge=1)
    """The first rung of the first ladder."""
    reduction_factor: float = Field(default=3, gt=1)
    """Of the trials that reach a rung, one in so many goes on."""
    brackets: int = Field(default=3, ge=1)
    """Ladders; no more than there are rungs."""


class MedianConfig(Frozen):
    """Stops a trial whose best is worse than the median of the others' running means."""

    name: Literal["median"] = "median"
    grace_steps: int = Field(ge=1)
    """No trial is stopped before this step."""
    min_trials: int = Field(default=4, ge=1)
    """Others that must have come as far."""


class NoSchedulerConfig(Frozen):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


SchedulerConfig = Annotated[
    AshaConfig | HyperbandConfig | MedianConfig | NoSchedulerConfig, Field(discriminator="name")
]

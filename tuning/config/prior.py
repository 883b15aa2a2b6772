"""The `search.prior` section: where a search begins, and the points that follow from it.

Good values are roughly known before a search: the method's authors published theirs, and the model
has a learning rate that works for plain fine-tuning. The first trial is the centre, the next ones
are drawn around it, and the sampler goes on from what they show.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from pydantic import Field

from search_spaces import Categorical, Distribution, Value
from trainers.config import TrialConfig
from trainers.config_model import Frozen
from trainers.errors import ConfigError, suggestion
from trainers.overrides import flat

Center: TypeAlias = dict[str, Any]
"""Dotted key of a parameter -> its most likely value."""


class PriorConfig(Frozen):
    """What is known of good values. `search.space.initial_points` replace it, and so does
    `search.warm_start` with `search.sampler.startup_trials` complete trials or `top` points."""

    center: Center = Field(default_factory=dict)
    """Dotted key of a parameter -> its most likely value. Default: the trial's own value, which for
    a setting of a method is its authors' where that is known, and for `optim.lr` the learning rate
    of the reference; the first initial point of a ready space that has one, such as `r_adapter`.
    `search.space.by_method` has centres for single methods."""
    width: float = Field(default=0.2, ge=0, le=1)
    """Standard deviation of the points around the centre, as a share of each parameter's range on
    its scale; for a choice, the probability of a random one."""
    points: int = Field(default=3, ge=0, le=1_000_000)
    """Number of points around the centre, which is tried before them. Equal ones are tried once."""


def prior_points(
    prior: PriorConfig,
    centers: Mapping[str, Center],
    seed: int,
    parameters: Mapping[str, Distribution],
    published: Mapping[str, Value],
    trial: TrialConfig,
) -> list[dict[str, Value]]:
    """The centre of the prior and the points around it, each once.

    Args:
        centers: by the section of the configuration that gives them; later ones win.
        published: values of the ready space, complete or empty.
        trial: whose values are the centre of all other parameters.
    """
    defaults = {**flat(trial.model_dump(mode="json")), **published}
    center: dict[str, Value] = {}
    for key, parameter in parameters.items():
        center[key] = _nearest(parameter, defaults.get(key))
        for section, given in centers.items():
            if key in given:
                try:
                    center[key] = parameter.parse(given[key])
                except (TypeError, ValueError) as error:
                    where, value = f"{section}.{key}", given[key]
                    raise ConfigError(str(error), key=where, value=value) from None
    rng = random.Random(seed)
    around = [
        # mypy cannot know that a value is of its own parameter's type.
        {key: p.near(center[key], prior.width, rng) for key, p in parameters.items()}  # type: ignore[arg-type]
        for _ in range(prior.points)
    ]
    # Equal points, which a space of choices alone gives, would be the same training.
    return list({tuple(point.values()): point for point in (center, *around)}.values())


def check_searched(section: str, center: Center, parameters: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a key of a centre that is no parameter."""
    for key in center:
        if key not in parameters:
            hint = suggestion(key, parameters)
            raise ConfigError("is not searched", key=f"{section}.{key}", hint=hint)


def _nearest(parameter: Distribution, value: Any) -> Value:
    """The value of a parameter that is nearest to a default, which may be outside or missing."""
    with suppress(TypeError, ValueError):
        return parameter.parse(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(parameter, Categorical):
        numbers = [c for c in parameter.choices if type(c) in (int, float)]
        if is_number and numbers:
            return min(numbers, key=lambda choice: abs(float(choice) - value))
        return parameter.choices[0]
    return parameter.at(parameter.unit(value) if is_number else 0.5)

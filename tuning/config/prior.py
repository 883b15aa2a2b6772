"""The `search.prior` section: where a search begins, and the points that follow from it.

Good values are roughly known before a search: the method's authors published theirs, and the model
has a learning rate that works for plain fine-tuning. The first trial is the centre, the next ones
are drawn around it, and the sampler goes on from what they show.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import reduce
from typing import Any, Final

from pydantic import Field, field_validator

from search_spaces import Categorical, Distribution, Value
from trainers.config import TrialConfig
from trainers.config_model import Frozen
from trainers.errors import ConfigError, suggestion
from trainers.methods.registry import METHODS

KEY: Final = "search.prior"
WIDTH: Final = 0.2


class MethodPriorConfig(Frozen):
    """The prior of one of several methods."""

    center: dict[str, Any] = Field(default_factory=dict)
    """Dotted key of a parameter -> its most likely value. Default: the trial's own value, which for
    a setting of a method is its authors' where that is known, and for `optim.lr` the learning rate
    of the reference; the first initial point of a ready space that has one, such as `r_adapter`."""


class PriorConfig(MethodPriorConfig):
    """What is known of good values. `search.space.initial_points` replace it, and so does
    `search.warm_start` with `search.sampler.startup_trials` complete trials or `top` points."""

    width: float | dict[str, float] = WIDTH
    """Standard deviation of the points around the centre, as a share of each parameter's range on
    its scale; for a choice, the probability of a random one. A number, or dotted key -> number."""
    points: int = Field(default=3, ge=0, le=1_000_000)
    """Number of points around the centre, which is tried before them."""
    by_method: dict[str, MethodPriorConfig] = Field(default_factory=dict)
    """Centres of single methods of `search.space.methods`."""

    @field_validator("width")
    @classmethod
    def _is_a_share(cls, width: float | dict[str, float]) -> float | dict[str, float]:
        for share in width.values() if isinstance(width, dict) else (width,):
            if not 0 <= share <= 1:
                raise ValueError(f"{share:g} is not between 0 and 1")
        return width


def check_names(prior: PriorConfig, parameters: Mapping[str | None, Iterable[str]]) -> None:
    """Check that a prior is of parameters that are searched.

    Args:
        parameters: the keys of each method's parameters; under None, those of a single space.

    Raises:
        ConfigError: an unknown parameter or method.
    """
    searched = [key for keys in parameters.values() for key in keys]
    widths = prior.width if isinstance(prior.width, Mapping) else {}
    sections = {"center": prior.center, "width": widths}
    found = [(f"{name}.{key}", key, searched) for name, keys in sections.items() for key in keys]
    for method, own in prior.by_method.items():
        if method not in METHODS:
            hint = suggestion(method, METHODS)
            raise ConfigError("unknown method", key=f"{KEY}.by_method", value=method, hint=hint)
        if None in parameters:
            problem = "has an effect only with search.space.methods"
            raise ConfigError(problem, key=f"{KEY}.by_method")
        if method in parameters:
            of_method = list(parameters[method])
            found += [(f"by_method.{method}.center.{key}", key, of_method) for key in own.center]
    for where, key, known in found:
        if key not in known:
            raise ConfigError("is not searched", key=f"{KEY}.{where}", hint=suggestion(key, known))


def prior_points(
    prior: PriorConfig,
    seed: int,
    method: str | None,
    parameters: Mapping[str, Distribution],
    published: Mapping[str, Value],
    trial: TrialConfig,
) -> list[dict[str, Value]]:
    """The centre of the prior and the points around it.

    Args:
        method: of a search that compares methods.
        published: values of the ready space, complete or empty.
        trial: with that method.

    Raises:
        ConfigError: a configured centre that is no value of the parameter.
    """
    own = prior.by_method[method].center if method in prior.by_method else {}
    given = {f"{KEY}.center": prior.center, f"{KEY}.by_method.{method}.center": own}
    defaults: Any = trial.model_dump(mode="json")
    center: dict[str, Value] = {}
    for key, parameter in parameters.items():
        default = published.get(key)
        if default is None:
            with suppress(KeyError, TypeError):  # a key that the trial does not have
                default = reduce(operator.getitem, key.split("."), defaults)
        center[key] = _nearest(parameter, default)
        for section, values in given.items():
            if key in values:
                try:
                    center[key] = parameter.parse(values[key])
                except (TypeError, ValueError) as error:
                    where = f"{section}.{key}"
                    raise ConfigError(str(error), key=where, value=values[key]) from None
    widths = prior.width
    rng = random.Random(seed)
    around = [
        {
            key: parameter.near(
                center[key],  # type: ignore[arg-type]  # of the parameter's own type
                widths.get(key, WIDTH) if isinstance(widths, Mapping) else widths,
                rng,
            )
            for key, parameter in parameters.items()
        }
        for _ in range(prior.points)
    ]
    return [center, *around]


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

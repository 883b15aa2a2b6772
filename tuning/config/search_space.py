"""The `search.space` section, and the SearchSpace that it resolves to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

import search_spaces
from search_spaces import (
    METHODS,
    Categorical,
    Distribution,
    Float,
    Int,
    SearchSpace,
    Value,
    register_space,
)
from trainers.config import TrialConfig, with_overrides
from trainers.config_model import Frozen
from trainers.errors import ConfigError, did_you_mean, suggestion, validation_problem
from trainers.methods.registry import METHODS as KNOWN_METHODS
from trainers.methods.registry import SEARCH_SPACES, forget_method, is_available
from tuning.config.prior import PriorConfig, check_names, prior_points
from tuning.runs.records import METHOD_KEY

ALL = "all"
TEXT_LENGTH = "method.text_length"


class ParameterChange(Frozen):
    """Fields that change in a parameter of the ready space; the other fields stay."""

    low: FiniteFloat | None = None
    """Smallest value, included."""
    high: FiniteFloat | None = None
    """Largest value, included."""
    log: bool | None = None
    """Sample on a logarithmic scale."""
    step: FiniteFloat | None = None
    """Distance of the grid points, counted from `low`; null is no grid."""
    choices: tuple[Value, ...] | None = None
    """Values of a categorical parameter."""

    def apply(self, parameter: Distribution) -> Distribution:
        """The parameter with these fields in place of its own; a ValidationError if impossible."""
        changed = self.model_dump(exclude_unset=True)
        return type(parameter).model_validate({**dict(parameter), **changed})


def _kind(parameter: Any) -> str | None:
    """The tag of a parameter in the union below."""
    if isinstance(parameter, ParameterChange):
        return ParameterChange.__name__
    if isinstance(parameter, Mapping):
        return str(parameter.get("type", ParameterChange.__name__))
    return getattr(parameter, "type", None)


Parameter: TypeAlias = Annotated[
    Annotated[Float, Tag("float")]
    | Annotated[Int, Tag("int")]
    | Annotated[Categorical, Tag("categorical")]
    | Annotated[ParameterChange, Tag(ParameterChange.__name__)],
    Discriminator(
        _kind,
        custom_error_type="parameter_type",
        custom_error_message="expected fields of a parameter; `type` is float, int or categorical",
    ),
]
"""A whole distribution, if it has a `type`, or a change of the ready space's."""


class _Section(Frozen):
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    """Dotted key to `{type: float|int|categorical, low, high, log, step, choices}`. Without a
    `type`, only the given fields of the ready space's parameter change."""
    initial_points: tuple[dict[str, Any], ...] | None = None
    """Points to try first, in order, in place of those of `search.prior`."""

    @field_validator("parameters")
    @classmethod
    def _method_is_no_parameter(cls, parameters: dict[str, Parameter]) -> dict[str, Parameter]:
        if METHOD_KEY in parameters:
            chosen = getattr(parameters[METHOD_KEY], "choices", None) or ("ft", "lipsum_ft")
            raise ValueError(
                f"{METHOD_KEY} cannot be a parameter; to compare methods, write "
                f"search.space.methods: {list(chosen)}"
            )
        return parameters

    @field_serializer("parameters")
    def _as_written(self, parameters: dict[str, Parameter]) -> dict[str, Any]:
        """Only the fields that were given, so that a recorded configuration stays short."""
        return {
            key: {
                **({} if isinstance(given, ParameterChange) else {"type": given.type}),
                **given.model_dump(mode="json", exclude_unset=True),
            }
            for key, given in parameters.items()
        }


class MethodSpaceConfig(_Section):
    """What is searched for one of several methods, where it differs from the others."""

    name: str | None = None
    """A ready space; null is the method's own."""


class SpaceConfig(_Section):
    """What is searched: a ready space with changed or added parameters, or a space of your own.

    With `methods`, it is the ready space of each method, side by side. `parameters` then apply to
    every method whose ready space has the key; a key that no ready space has is added to all
    methods. `initial_points` for all methods can only be an empty list, since methods differ in
    their parameters.
    """

    name: str | None = "lipsum_ft"
    """A ready space of `search_spaces`; null starts from an empty one."""
    methods: tuple[str, ...] = ()
    """Methods to compare, each tuned separately in as many trials; `all` is every method."""
    by_method: dict[str, MethodSpaceConfig] = Field(default_factory=dict)
    """Changes for one of `methods`, applied after those for all methods. Entries for methods that
    are not compared have no effect."""

    @model_validator(mode="before")
    @classmethod
    def _methods_bring_their_spaces(cls, values: Any) -> Any:
        # The plugins' methods are registered by now, since `trial` is validated before `search`.
        # A mistake in a space concerns only those who use it, see `_check_own_space`.
        for method, space in SEARCH_SPACES.items():
            with suppress(ValidationError):
                register_space(method, SearchSpace.model_validate(space))
        if isinstance(values, SearchSpace):  # from Python, in place of a section
            if values.branches:
                raise ValueError("a space with branches cannot be given; use `methods`")
            is_given = "initial_points" in values.model_fields_set  # an empty list is no points
            points = tuple(values.initial_points) if is_given else None
            return {"name": None, "parameters": values.parameters, "initial_points": points}
        if isinstance(values, Mapping) and values.get("methods"):
            return {"name": None, **values}
        return values

    def has_initial_points(self, method: str | None) -> bool:
        """Whether points are given for a method, or for a search of one, in place of a prior's."""
        own = self.by_method.get(method or "")
        return bool(self.initial_points or (own and own.initial_points))

    @field_validator("methods", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _all_methods(cls, methods: Any) -> Any:
        listed = [methods] if isinstance(methods, str) else methods
        if isinstance(listed, list | tuple) and ALL in listed:
            if len(listed) > 1:
                raise ValueError(f"`{ALL}` cannot be combined with other methods")
            return tuple(name for name in METHODS if is_available(name, ()))
        return listed

    @field_validator("methods", "by_method")
    @classmethod
    def _methods_are_known(cls, methods: Any) -> Any:
        for name in methods:
            _check_own_space(name)
            if name not in METHODS and name in KNOWN_METHODS:
                raise ValueError(f"method {name!r} was registered without a search space")
            if name not in METHODS:
                raise ValueError(f"unknown method {name!r}{did_you_mean(name, [*METHODS, ALL])}")
            if isinstance(methods, tuple) and methods.count(name) > 1:
                raise ValueError(f"{name!r} is given twice")
        return methods


def with_all_methods(search: Any, plugins: Sequence[str]) -> Any:
    """The values of `search:`, whose `methods: all` is replaced by those that a file may use."""
    space = search.get("space") if isinstance(search, Mapping) else None
    if not isinstance(space, Mapping) or space.get("methods") not in (ALL, [ALL], (ALL,)):
        return search
    methods = [name for name in {**METHODS, **SEARCH_SPACES} if is_available(name, plugins)]
    return {**search, "space": {**space, "methods": methods}}


def resolve_space(
    space: SpaceConfig, prior: PriorConfig, trial: TrialConfig, seed: int = 0
) -> SearchSpace:
    """The search space that the sections describe, with the points that are tried first.

    Args:
        seed: of the random points around the centre of the prior.

    Raises:
        ConfigError: unknown ready space, or a parameter or first point that is impossible.
    """
    resolved = _resolve(space, trial, partial(prior_points, prior, seed))
    parts = resolved.parts()
    check_names(prior, {method: part.parameters for method, part in parts.items()})
    return resolved


def _resolve(
    space: SpaceConfig, trial: TrialConfig, prior: Callable[..., list[dict[str, Value]]]
) -> SearchSpace:
    if not space.methods:
        if space.by_method:
            raise ConfigError(
                "has an effect only with search.space.methods", key="search.space.by_method"
            )
        ready = _load(space.name, "search.space.name") if space.name else None
        layers = {"search.space": space.parameters}
        known = ready.parameters if ready else ()
        return _changed(ready, layers, space.initial_points, trial, known, partial(prior, None))
    if space.name:
        raise ConfigError(
            "search.space.methods uses the ready space of each method",
            key="search.space.name",
            value=space.name,
            hint="write null, or search.space.by_method.<method>.name for another ready space",
        )
    if space.initial_points:
        raise ConfigError(
            "methods differ in their parameters",
            key="search.space.initial_points",
            hint="write search.space.by_method.<method>.initial_points",
        )
    changes = {name: space.by_method.get(name, MethodSpaceConfig()) for name in space.methods}
    ready_spaces = {
        name: _load(own.name or name, f"search.space.by_method.{name}.name")
        for name, own in changes.items()
    }
    known = {key: p for ready in ready_spaces.values() for key, p in ready.parameters.items()}
    branches = {}
    for name, own in changes.items():
        ready = ready_spaces[name]
        common = {
            key: given
            for key, given in space.parameters.items()
            if key in ready.parameters or key not in known
        }
        layers = {"search.space": common, f"search.space.by_method.{name}": own.parameters}
        points = space.initial_points if own.initial_points is None else own.initial_points
        of_method = with_overrides(trial, {METHOD_KEY: name}, "search.space.methods")
        branches[name] = _changed(ready, layers, points, of_method, known, partial(prior, name))
    return SearchSpace(branches=branches)


def _check_own_space(method: str) -> None:
    """Raise a ConfigError for a mistake in the space that a plug-in's method brings.

    The plug-in is forgotten, so that it can be corrected and loaded again in this process.
    """
    if method not in SEARCH_SPACES:
        return
    try:
        SearchSpace.model_validate(SEARCH_SPACES[method])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"][:2]))
        problem = f"search_space of the method {method!r}: {where}: {validation_problem(error)}"
        raise ConfigError(problem, source=forget_method(method)) from None


def _load(name: str, key: str) -> SearchSpace:
    _check_own_space(name)
    try:
        return search_spaces.load(name)
    except ValueError as error:
        raise ConfigError(str(error), key=key, value=name) from None


def _changed(
    ready: SearchSpace | None,
    layers: Mapping[str, Mapping[str, Parameter]],
    points: Sequence[Mapping[str, Any]] | None,
    trial: TrialConfig,
    known: Iterable[str],
    prior: Callable[..., list[dict[str, Value]]],
) -> SearchSpace:
    """A ready space with changed and added parameters.

    Args:
        ready: None is an empty space.
        layers: section of the configuration -> its parameters; later sections win.
        points: the first points; None takes those of the prior.
        known: keys to suggest for a misspelt one.
        prior: makes points from parameters, values of the ready space, and the trial.
    """
    parameters: dict[str, Distribution] = dict(ready.parameters) if ready else {}
    length, longest = parameters.get(TEXT_LENGTH), trial.model.longest_text
    if isinstance(length, Int) and longest is not None and length.low <= longest < length.high:
        parameters[TEXT_LENGTH] = length.model_copy(update={"high": longest})
    section = "search.space"
    for section, given in layers.items():
        for key, parameter in given.items():
            where = f"{section}.parameters.{key}"
            if not isinstance(parameter, ParameterChange):
                parameters[key] = parameter
            elif key not in parameters:
                raise ConfigError(
                    "a parameter that the ready space does not have needs a `type`",
                    key=where,
                    value=parameter.model_dump(exclude_unset=True),
                    hint=None if key in known else suggestion(key, known),
                )
            else:
                try:
                    parameters[key] = parameter.apply(parameters[key])
                except ValidationError as error:
                    value = parameter.model_dump(exclude_unset=True)
                    raise ConfigError(validation_problem(error), key=where, value=value) from None
    if points is None:
        published = ready.initial_points[0] if ready and ready.initial_points else {}
        points = prior(parameters, published, trial)
    try:
        return SearchSpace(parameters=parameters, initial_points=[dict(point) for point in points])
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        raise ConfigError(validation_problem(error), key=f"{section}.{field}") from None

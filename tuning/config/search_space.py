"""The `search.space` section, and the spaces that it resolves to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from search_spaces import SPACES, Categorical, Distribution, Float, Int, SearchSpace, Value
from search_spaces.ready_spaces import LR, around
from search_spaces.space import Spaces
from trainers.config import TrialConfig, with_overrides
from trainers.config_model import Frozen
from trainers.errors import ConfigError, did_you_mean, listed, suggestion, validation_problem
from trainers.methods.registry import METHODS as KNOWN_METHODS
from trainers.methods.registry import SEARCH_SPACES, plugin_of
from trainers.overrides import LR_KEY, METHOD_KEY
from tuning.config.prior import Center, PriorConfig, check_searched, prior_points

ALL = "all"


def one_or_several(value: Any) -> Any:
    """A tuple of a single value, which needs no list."""
    return (value,) if isinstance(value, str | Mapping | BaseModel) else value


Strings: TypeAlias = Annotated[
    tuple[str, ...], BeforeValidator(one_or_several, json_schema_input_type=str | tuple[str, ...])
]


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


def _kind(parameter: Any) -> str | None:
    """The tag of a parameter in the union below."""
    if isinstance(parameter, Mapping):
        return str(parameter.get("type", ParameterChange.__name__))
    is_change = isinstance(parameter, ParameterChange)
    return ParameterChange.__name__ if is_change else getattr(parameter, "type", None)


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

    @field_validator("parameters")
    @classmethod
    def _method_is_no_parameter(cls, parameters: dict[str, Parameter]) -> dict[str, Parameter]:
        if METHOD_KEY in parameters:
            raise ValueError("to compare methods, write `search.space.methods: [ft, lipsum_ft]`")
        for key in parameters.keys() - TrialConfig.model_fields.keys():
            sections = TrialConfig.model_fields.items() if "." not in key else ()
            for section, field in sections:
                if key in getattr(field.annotation, "model_fields", {}):
                    raise ValueError(f"{key!r}: write its section, too: {section}.{key}")
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

    center: Center = Field(default_factory=dict)
    """As `search.prior.center`, for this method."""


class SpaceConfig(_Section):
    """What is searched: a ready space with changed or added parameters, or a space of your own.

    With `methods`, it is the ready space of each method, side by side. `parameters` then apply to
    every method whose ready space has the key; a key that no ready space has is added to all
    methods.
    """

    name: Literal["auto"] | None = "auto"
    """`auto` is the ready space of `trial.method`, or an empty one if the method has none; null is
    an empty one."""
    methods: Strings = ()
    """Methods to compare, each tuned separately in as many trials; `all` is every method of this
    package."""
    by_method: dict[str, MethodSpaceConfig] = Field(default_factory=dict)
    """Changes for one of `methods`, applied after those for all methods. Entries for methods that
    are not compared have no effect."""
    initial_points: tuple[dict[str, Any], ...] | None = None
    """Points to try first, in order, in place of those of `search.prior`. Each has a value for all
    parameters; with `methods`, those of its `method.name`."""

    @model_validator(mode="before")
    @classmethod
    def _ready_spaces_are_of_methods(cls, values: Any) -> Any:
        if isinstance(values, SearchSpace):  # from Python, in place of a section
            is_given = "initial_points" in values.model_fields_set  # an empty list is no points
            points = tuple(values.initial_points) if is_given else None
            return {"name": None, "parameters": values.parameters, "initial_points": points}
        return values

    @field_validator("methods", "by_method")
    @classmethod
    def _methods_are_known(cls, methods: Any) -> Any:
        if methods == (ALL,):
            return tuple(SPACES)
        for name in methods:
            if name not in KNOWN_METHODS:
                raise ValueError(f"unknown method {name!r}{did_you_mean(name, KNOWN_METHODS)}")
            if name not in SPACES and name not in SEARCH_SPACES:
                raise ValueError(f"method {name!r} was registered without a search space")
            _ready_space(name)
        if len({*methods}) < len(methods):
            raise ValueError("a method is given twice")
        return methods


def resolve_spaces(
    space: SpaceConfig, prior: PriorConfig, trial: TrialConfig, seed: int = 0
) -> Spaces:
    """What the sections describe, with the points that are tried first.

    Args:
        seed: of the random points around the centre of the prior.
    """
    ready_spaces: dict[str | None, SearchSpace | None] = {
        name: _ready_space(name) for name in space.methods
    }
    if not space.methods:
        method = trial.method.name
        is_ready = space.name is not None and method in (*SPACES, *SEARCH_SPACES)
        ready_spaces[None] = _ready_space(method) if is_ready else None
    for point in space.initial_points or ():
        if point.get(METHOD_KEY) not in ready_spaces:
            problem = f"its {METHOD_KEY} is none of search.space.methods"
            raise ConfigError(problem, key="search.space.initial_points", value=point)
    known = {key for ready in ready_spaces.values() if ready for key in ready.parameters}
    parts = {
        method: _part(space, method, ready, known, prior, trial, seed)
        for method, ready in ready_spaces.items()
    }
    searched = {key: p for part in parts.values() for key, p in part.parameters.items()}
    check_searched("search.prior.center", prior.center, searched)
    return parts


def _part(
    space: SpaceConfig,
    method: str | None,
    ready: SearchSpace | None,
    known: Collection[str],
    prior: PriorConfig,
    trial: TrialConfig,
    seed: int,
) -> SearchSpace:
    """The space of one of several methods, or of the whole search, from its ready space.

    Args:
        known: keys of the ready spaces of all methods.
    """
    parameters: dict[str, Distribution] = dict(ready.parameters) if ready else {}
    if parameters.get(LR_KEY) is LR:
        parameters[LR_KEY] = around(trial.optim.lr)
    common = {k: p for k, p in space.parameters.items() if k in parameters or k not in known}
    _change(parameters, common, "search.space", known)
    centers = {"search.prior.center": prior.center}
    if method is not None:
        section = f"search.space.by_method.{method}"
        own = space.by_method.get(method, MethodSpaceConfig())
        _change(parameters, own.parameters, section, known)
        trial = with_overrides(trial, {METHOD_KEY: method}, "search.space.methods")
        check_searched(f"{section}.center", own.center, parameters)
        centers[f"{section}.center"] = own.center
    if space.initial_points is None:
        published = ready.initial_points[0] if ready and ready.initial_points else {}
        points = prior_points(prior, centers, seed, parameters, published, trial)
    else:
        given = (point for point in space.initial_points if point.get(METHOD_KEY) == method)
        points = [{k: v for k, v in point.items() if k != METHOD_KEY} for point in given]
    try:
        return SearchSpace(parameters=parameters, initial_points=points)
    except ValidationError as error:
        field = next(iter(error.errors()[0]["loc"]), "parameters")
        raise ConfigError(validation_problem(error), key=f"search.space.{field}") from None


def _ready_space(name: str) -> SearchSpace:
    """The ready space of a method, or the one that its plug-in brings.

    A plug-in with a mistake in it is forgotten, so that it can be corrected and loaded again.
    """
    if name not in SEARCH_SPACES:
        return SPACES[name]
    try:
        return SearchSpace.model_validate(SEARCH_SPACES[name])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"][:2]))
        problem = f"search_space of the method {name!r}: {where}: {validation_problem(error)}"
        raise ConfigError(problem, source=plugin_of(name)) from None


def _change(
    parameters: dict[str, Distribution],
    given: Mapping[str, Parameter],
    section: str,
    known: Collection[str],
) -> None:
    """Change and add the parameters that a section gives; `known` are suggested for others."""
    for key, parameter in given.items():
        if not isinstance(parameter, ParameterChange):
            parameters[key] = parameter
            continue
        where, value = f"{section}.parameters.{key}", parameter.model_dump(exclude_unset=True)
        if key not in parameters:
            problem = "a parameter that the ready space does not have needs a `type`"
            hint = None if key in known else suggestion(key, known)
            ours = {k for ready in SPACES.values() for k in ready.parameters} - parameters.keys()
            if key in ours:  # the rest of a space of another method
                hint = f"of another method: remove {listed(k for k in given if k in ours)}"
            raise ConfigError(problem, key=where, value=value, hint=hint)
        before = parameters[key]
        try:
            parameters[key] = type(before).model_validate({**dict(before), **value})
        except ValidationError as error:
            raise ConfigError(validation_problem(error), key=where, value=value) from None

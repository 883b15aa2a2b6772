"""The base class of all configuration models. Imports nothing else of this project."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Frozen(BaseModel):
    """Immutable configuration model: unknown keys, NaN and infinity are errors.

    Docstrings below fields become their descriptions in the JSON Schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _true_is_not_one(cls, values: Any) -> Any:
        """Refuse booleans for numbers; pydantic reads `true` as the number 1."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if _has_bool(value) and name in cls.model_fields:
                types = set(_types(cls.model_fields[name].annotation))
                if bool not in types and types & {int, float}:
                    raise ValueError(f"{name} = {value}: expected a number")
        return values


def _types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of: float of `tuple[float, ...] | None`, for example."""
    parts = get_args(annotation)
    yield from (kind for part in parts for kind in _types(part)) if parts else [annotation]


def _has_bool(value: Any) -> bool:
    if isinstance(value, list | tuple | Mapping):
        return any(map(_has_bool, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, bool)

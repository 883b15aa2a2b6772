"""The base class of all configuration models. Imports nothing else of this project."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

_NUMBERS = (int, float, int | None, float | None)


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
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation in _NUMBERS:
                raise ValueError(f"{name} = {value}: expected a number")
        return values

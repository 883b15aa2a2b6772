"""The base class of all configuration models. Imports nothing else of this project."""

import re
from collections.abc import Mapping
from typing import Any

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
        """Refuse `true` for a number, which pydantic reads as 1; `off` and `no` are 0."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if value is True and name in cls.model_fields:
                types = set(re.findall(r"\w+", str(cls.model_fields[name].annotation)))
                if "bool" not in types and types & {"int", "float"}:
                    raise ValueError(f"{name} = {value}: expected a number")
        return values

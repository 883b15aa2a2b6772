"""The base class of all configuration models. Imports nothing else of this project."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable configuration model: unknown keys, NaN and infinity are errors.

    Docstrings below fields become their descriptions in the JSON Schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

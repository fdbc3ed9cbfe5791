"""What all bodies of the management API have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Body(BaseModel):
    """Of a request: unknown fields are refused, and so is ``"1"`` or ``true`` for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        """To JSON Schema 3.0 is an integer; to strict pydantic it is none."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

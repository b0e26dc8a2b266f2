"""What every section of `params.yaml` has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Fraction = float


class Section(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

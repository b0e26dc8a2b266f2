"""Columns that a served version takes and gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def pointer_signature() -> ModelSignature:
    """Signature of a category's version; what the columns hold is said in `Pointer`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "image"),
                ColSpec(DataType.string, "category", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "category"),
                ColSpec(DataType.double, "score"),
                ColSpec(DataType.double, "threshold"),
                ColSpec(DataType.string, "verdict"),
                ColSpec(DataType.boolean, "is_anomalous"),
                ColSpec(DataType.string, "regions"),
            ]
        ),
    )

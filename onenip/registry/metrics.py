"""`metrics.json` of the evaluation, checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path

from onenip.errors import RegistryError

Metrics = dict[str, float]


def load_metrics(folder: Path) -> dict[str, Metrics]:
    """Metrics per category, and their mean under "mean"; fractions in 0..1.

    Args:
        folder: `artifacts/evaluation`.

    Raises:
        RegistryError: if there is no `metrics.json`, or it is not what `onenip evaluate` writes.
    """
    path = folder / "metrics.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = {"mean": content["mean"], **content["categories"]}
        return {
            group: {name: float(value) for name, value in values.items() if value is not None}
            for group, values in groups.items()
        }
    except FileNotFoundError as error:
        raise RegistryError(f"{path}: no metrics; run `onenip evaluate` first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"{path}: not the metrics of `onenip evaluate`: {error}") from error

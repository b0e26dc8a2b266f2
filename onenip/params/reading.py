"""Strict reading of params: YAML 1.2, exact types, no unknown keys, errors that name the key."""

from __future__ import annotations

import io
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from onenip.errors import ParamsError

_MAX_VALUES = 100_000
_MAX_DEPTH = 64  # of brackets in brackets: the time to read deeper ones grows with its square


class Section(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable, no NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML 1.2 file (`1e-4` is a number there, as DVC reads it).

    Raises:
        ParamsError: if the file is missing or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if max(accumulate((c in "[{") - (c in "]}") for c in text), default=0) > _MAX_DEPTH:
            raise ParamsError(f"{path}: nested too deeply")
        values = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such params file") from error
    except (YAMLError, ValueError, OSError) as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ParamsError(f"{path}: nested too deeply") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: expected keys and values")
    left, inner = _MAX_VALUES, [iter([values])]
    while inner:  # anchors may multiply a few bytes, or hold themselves
        for one in inner[-1]:
            left -= 1
            if isinstance(one, dict | list):
                inner.append(iter(one.values() if isinstance(one, dict) else one))
                break
        else:
            inner.pop()
        if left <= 0:
            raise ParamsError(f"{path}: more than {_MAX_VALUES} values; do anchors multiply them?")
    return values


def to_params_error(error: ValidationError, *, origin: str) -> ParamsError:
    """One readable error that names every offending key of a failed validation."""
    problems = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        message = "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"]
        problems.append((key, f"{key}: {message}" if key else message))
    text = "; ".join(problem for _, problem in problems)
    return ParamsError(f"{origin}: {text}", key=problems[0][0])

"""Typed, frozen view of `params.yaml`: one class per top-level key, unknown keys are errors.

Read once, at the edge (`Params.load`); nothing below the stages sees more than its own section.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from onenip.addresses import HIDDEN, hide_secrets
from onenip.errors import ParamsError
from onenip.params.detection import CalibrateParams, EvaluateParams, ModelParams, TrainParams
from onenip.params.images import (
    CacheParams,
    DataParams,
    DownloadParams,
    SynthesizeParams,
    ValidateParams,
)
from onenip.params.operation import (
    CategoryGateParams,
    DriftParams,
    GateParams,
    NotifyParams,
    RegisterParams,
    RetrainParams,
    ReviewParams,
)
from onenip.params.reading import Section, read_yaml, to_params_error

__all__ = [
    "DEFAULT_PATH",
    "CacheParams",
    "CalibrateParams",
    "CategoryGateParams",
    "DataParams",
    "DownloadParams",
    "DriftParams",
    "EvaluateParams",
    "GateParams",
    "ModelParams",
    "NotifyParams",
    "Params",
    "RegisterParams",
    "RetrainParams",
    "ReviewParams",
    "Section",
    "SynthesizeParams",
    "TrainParams",
    "ValidateParams",
]

DEFAULT_PATH = Path("params.yaml")
_RETIRED = {  # key: the value that it may still have, and what holds instead of any other
    ("data", "root"): ("data", "the images lie in data/, or in a link of that name"),
    ("validate", "max_pixels"): (100_000_000, "the same limit holds in every stage"),
}


class Params(Section):
    """All of `params.yaml`.

    Attributes are named as the keys of the file, but for `validate`, which pydantic reserves and which is
    `validation` here.
    """

    seed: int = Field(0, ge=0, description="seed of all random numbers")
    data: DataParams = DataParams()
    cache: CacheParams = CacheParams()
    download: DownloadParams = DownloadParams()
    validation: ValidateParams = Field(ValidateParams(), alias="validate")
    synthesize: SynthesizeParams = SynthesizeParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    calibrate: CalibrateParams = CalibrateParams()
    evaluate: EvaluateParams = EvaluateParams()
    register_: RegisterParams = Field(RegisterParams(), alias="register")
    gate: GateParams = GateParams()
    retrain: RetrainParams = RetrainParams()
    drift: DriftParams = DriftParams()
    review: ReviewParams = ReviewParams()
    notify: NotifyParams = NotifyParams()

    @classmethod
    def load(cls, path: Path | str = DEFAULT_PATH) -> Self:
        """Params of a YAML file.

        Raises:
            ParamsError: if the file is missing, is no YAML, or has an unknown, missing or wrongly typed key;
                the message names the key.
        """
        if path == DEFAULT_PATH and not DEFAULT_PATH.exists():
            message = f"{path}: no such params file; `onenip init DIR` makes a workspace with one"
            raise ParamsError(message)
        return cls.parse(read_yaml(Path(path)), origin=str(path))

    @classmethod
    def parse(cls, values: dict[str, Any], *, origin: str = "params") -> Self:
        """Params from plain values, as YAML or JSON would give them; `origin` is named in errors."""
        values = _drop_retired(values, origin)
        try:
            # JSON, because strict mode takes a list for a tuple only from there
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise to_params_error(error, origin=origin) from error
        except (ValueError, TypeError, RecursionError) as error:  # an anchor that holds itself
            raise ParamsError(f"{origin}: not plain values: {error}") from error

    def dump(self) -> dict[str, Any]:
        """Plain values with the file's own keys; `Params.parse` of them gives equal params."""
        return self.model_dump(mode="json", by_alias=True)

    def dump_public(self) -> dict[str, Any]:
        """Plain values as they may be kept where others read them: addresses without secrets.

        With most services the path of `notify.webhook` is the secret: all of it is hidden, but for `$NAME`.
        """
        values = _hide(self.dump())
        if self.notify.webhook is not None and not self.notify.webhook.startswith("$"):
            values["notify"]["webhook"] = HIDDEN
        values["notify"]["addresses"] = [
            one if one.startswith("$") else HIDDEN for one in self.notify.addresses
        ]
        return values


def _drop_retired(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The same values without keys of earlier versions, which may still have their usual value."""
    for (section, key), (usual, instead) in _RETIRED.items():
        inner = values.get(section) if isinstance(values, dict) else None
        if not isinstance(inner, dict) or key not in inner:
            continue
        name = f"{section}.{key}"
        if inner[key] != usual:
            raise ParamsError(f"{origin}: {name} is gone: {instead}; remove it", key=name)
        values = values | {section: {k: v for k, v in inner.items() if k != key}}
    return values


def _hide(value: Any) -> Any:
    """Plain values with the secrets of every address in them hidden."""
    if isinstance(value, dict):
        return {key: _hide(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hide(inner) for inner in value]
    return hide_secrets(value) if isinstance(value, str) else value

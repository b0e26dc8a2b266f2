"""What MLflow runs when it serves one category's version: decode, ask the unified model, answer.

The version itself holds no weights. At loading, the unified model is fetched and its digest
compared with the one that was registered.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext  # MLflow reads the type hints

from onenip.errors import ImageError
from onenip.images import SampleRange, load_image
from onenip.registry.champions import apply_threshold
from onenip.registry.versions import list_versions
from onenip.registry.weights import load_pinned

if TYPE_CHECKING:
    from onenip.detector.detector import Detector
    from onenip.detector.prediction import Prediction


class Pointer(PythonModel):
    """One category of the unified model, in MLflow's own form.

    Input: a row per image, `image` is the base64 of an image file; `category`, where it is given,
    must be this version's. Output: a row per image with `score`, `threshold`, `verdict`,
    `is_anomalous` and `regions`, a JSON list of boxes in px of the image, origin top-left.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Fetch and check the unified model; the threshold is that of this moment.

        Raises:
            RegistryError: if it is not the one that was registered.
        """
        config = dict(context.model_config or {})
        self._category = str(config["category"])
        digest = str(config["digest"])
        self._detector: Detector = load_pinned(str(config["weights_uri"]), digest)
        for version in list_versions(self._category):
            if version.digest == digest:
                self._detector = apply_threshold(self._detector, version)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  # MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Answer for every row; see the class for both tables.

        Raises:
            MlflowException: HTTP 400, if a row is no image or names another category.
        """
        if "category" in model_input:
            for name in model_input["category"].dropna().unique():
                if name not in ("", self._category):
                    raise _refuse(f"this model answers for {self._category!r}, not for {name!r}")
        sample_range = self._detector.sample_range(self._category)
        images = [_decode(text, row, sample_range) for row, text in enumerate(model_input["image"])]
        predictions = self._detector.predict(images, category=self._category)
        return pd.DataFrame([_to_row(prediction) for prediction in predictions])


def _decode(text: str, row: int, sample_range: SampleRange | None) -> Any:
    try:
        return load_image(base64.b64decode(text, validate=True), sample_range=sample_range)
    except (binascii.Error, ValueError) as error:
        raise _refuse(f"row {row}: not base64: {error}") from error
    except ImageError as error:
        raise _refuse(f"row {row}: {error.reason}") from error


def _refuse(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def _to_row(prediction: Prediction) -> dict[str, Any]:
    answer = prediction.to_dict()
    columns = ("category", "score", "threshold", "verdict")
    return {
        **{name: answer[name] for name in columns},
        "is_anomalous": prediction.is_anomalous,
        "regions": json.dumps(answer["regions"]),
    }

"""OneNIP: one unified defect detector for all product categories, guided by one normal image each.

from onenip import Detector

detector = Detector.load("artifacts/model")
for prediction in detector.predict(["part.png"], category="bottle"):
    print(prediction.score, prediction.is_anomalous)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onenip.version import __version__

if TYPE_CHECKING:
    from onenip.detector.detector import Detector
    from onenip.detector.prediction import Prediction, Region

__all__ = ["Detector", "Prediction", "Region", "__version__"]


def __getattr__(name: str) -> object:
    """Import the model on first use, so that `import onenip` needs no torch."""
    if name == "Detector":
        from onenip.detector.detector import Detector

        return Detector
    if name in {"Prediction", "Region"}:
        from onenip.detector import prediction

        return getattr(prediction, name)
    raise AttributeError(f"module 'onenip' has no attribute {name!r}")

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
    from onenip.detector.detector import Detector, Prediction
    from onenip.detector.regions import Region

__all__ = ["Detector", "Prediction", "Region", "__version__"]


def __getattr__(name: str) -> object:
    """Import the model on first use, so that `import onenip` needs no torch."""
    if name in {"Detector", "Prediction"}:
        from onenip.detector import detector

        return getattr(detector, name)
    if name == "Region":
        from onenip.detector.regions import Region

        return Region
    raise AttributeError(f"module 'onenip' has no attribute {name!r}")

"""Which weights of a training are kept: those that do best on held-out normals and synthetic anomalies.

Test images have no say. A trial takes the trained part alone: features, memories and masks of the
images are computed once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from onenip.data.manifest import Sample, list_categories, select
from onenip.detector.calibration import CalibrationImage, fuse_calibration_maps
from onenip.images import load_mask
from onenip.model.network import Network
from onenip.params import CalibrateParams
from onenip.synthesis.bank import StoredAnomaly
from onenip.training.batches import TrainingSet
from onenip.training.calibration_images import choose_state, embed_files, pick_anomalies

_PER_CATEGORY = 16  # normal images, and as many anomalies: enough to rank weights, and quick


@dataclass(frozen=True)
class _Images:
    """What weights are tried on in one category; masks, [m, H, W] bool, are of the anomalies."""

    normals: list[CalibrationImage]
    anomalies: list[CalibrationImage]
    masks: NDArray[np.bool_]


class SelectionSet:
    """Held-out normal images and synthetic anomalies made from such, of every category that has both.

    Args:
        network: with its backbone's weights and standardisation; what is trained may still change.
        params: how maps are fused, and how many prompts a category has.
        samples: of the manifest; those of subset `calibration` are held out.
        data: the training set.
        bank: synthetic anomalies.
    """

    def __init__(
        self,
        network: Network,
        params: CalibrateParams,
        *,
        samples: Sequence[Sample],
        data: TrainingSet,
        bank: Sequence[StoredAnomaly],
    ) -> None:
        self.params = params
        self.data = data
        self._images: dict[str, _Images] = {}
        digest = hashlib.sha256(json.dumps(params.model_dump(mode="json")).encode())
        with torch.inference_mode():
            for category in list_categories(samples):
                held_out = select(samples, category=category, subset="calibration")
                names = {sample.name for sample in held_out}
                held_out = held_out[:_PER_CATEGORY]
                stored = pick_anomalies(bank, category, held_out=names)[:_PER_CATEGORY]
                if not held_out or not stored:
                    continue
                self._images[category] = _Images(
                    normals=embed_files(network, [sample.path for sample in held_out]),
                    anomalies=embed_files(network, [one.image for one in stored]),
                    masks=np.stack([load_mask(one.mask) for one in stored]),
                )
                digest.update("".join(sample.sha256 for sample in held_out).encode())
        self.digest = digest.hexdigest()

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories that have a say."""
        return tuple(self._images)

    def measure(self, network: Network) -> dict[str, float]:
        """How good a network's weights are; it is back in training mode afterwards.

        Returns:
            `image_auroc` (held-out normals against anomalies), `pixel_ap` (of the anomalies' masks), and
            `score`, their mean: fractions, each a mean over the categories.
        """
        network.eval()
        with torch.inference_mode():
            figures = [self._measure(network, category) for category in self._images]
        network.train()
        auroc, precision = np.mean(figures, axis=0).tolist()
        return {"image_auroc": auroc, "pixel_ap": precision, "score": (auroc + precision) / 2}

    def _measure(self, network: Network, category: str) -> tuple[float, float]:
        images = self._images[category]
        state, _ = choose_state(network, self.data, category, prompts=self.params.prompts)
        fused = fuse_calibration_maps(
            network, self.params, state=state, normals=images.normals, anomalies=images.anomalies
        )
        labels = np.repeat([False, True], [len(images.normals), len(images.anomalies)])
        auroc = roc_auc_score(labels, fused.normal_scores + fused.anomaly_scores)
        maps = torch.cat(fused.anomalies).float().cpu().numpy()
        return float(auroc), float(average_precision_score(images.masks.ravel(), maps.ravel()))


class BestWeights:
    """The weights of the best trial so far; of equal ones the later.

    Args:
        tensors: what a training changes in place, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._live = {name: tensor.detach() for name, tensor in tensors.items()}
        self._best: dict[str, Tensor] = {}
        self._score = float("-inf")

    def offer(self, score: float) -> None:
        """Keep the tensors as they are now, if their score is not below that of those kept."""
        if score >= self._score:
            self._score = score
            self._best = {name: tensor.clone() for name, tensor in self._live.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"score": self._score, "tensors": self._best}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._score, self._best = float(state["score"]), dict(state["tensors"])

    @torch.no_grad()
    def apply(self) -> None:
        """Put the best in the place of the tensors; nothing, if none was offered."""
        for name, tensor in self._best.items():
            self._live[name].copy_(tensor)

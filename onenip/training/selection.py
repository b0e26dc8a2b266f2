"""Selection of weights on held-out normals and synthetic anomalies, and their running average.

Test images are never used. A trial takes the trained part alone: features and memories of the images are
computed once, and read from the cache for each trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from onenip.data.manifest import Sample, list_categories
from onenip.detector.calibration import CalibrationImage, fuse_calibration_maps
from onenip.images import hash_file, load_mask, resize_mask
from onenip.model.network import Network
from onenip.params import CalibrateParams
from onenip.synthesis.bank import StoredAnomaly
from onenip.training.batches import TrainingSet
from onenip.training.calibration_images import (
    MAX_SELECTION_IMAGES,
    choose_state,
    embed_files,
    pick_anomalies,
    split_held_out,
)


@dataclass(frozen=True)
class _Images:
    """Images of one category to select weights on; masks, [m, H, W] bool, are of the anomalies."""

    normals: list[CalibrationImage]
    anomalies: list[CalibrationImage]
    masks: NDArray[np.bool_]


class SelectionSet:
    """Held-out normal images and synthetic anomalies made from such, of every category that has both.

    Args:
        network: with its backbone's weights and standardisation; the trained part may still change.
        params: how maps are fused, and how many prompts a category has.
        samples: of the manifest; a third of those of subset `calibration` serve here, and no threshold
            comes from them.
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
                held_out = split_held_out(samples, category, selects=True).selection
                names = {sample.name for sample in held_out}
                stored = pick_anomalies(bank, category, held_out=names)[:MAX_SELECTION_IMAGES]
                if not held_out or not stored:
                    continue
                self._images[category] = _Images(
                    normals=embed_files(data.embedder, held_out, zoom=1),
                    anomalies=embed_files(data.embedder, [one.image for one in stored], zoom=1),
                    masks=np.stack(
                        [
                            resize_mask(load_mask(one.mask), network.params.input_size)
                            for one in stored
                        ]
                    ),
                )
                files = [file for one in stored for file in (one.image, one.mask)]
                hashes = [s.sha256 for s in held_out] + [hash_file(file) for file in files]
                digest.update("".join([category, *hashes]).encode())
        self.digest = digest.hexdigest()

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories with images of both kinds."""
        return tuple(self._images)

    def measure(self, network: Network) -> dict[str, float]:
        """Figures of a network's weights; the network is back in training mode afterwards.

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
        tensors: changed in place by a training, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._live = {name: tensor.detach() for name, tensor in tensors.items()}
        self._best: dict[str, Tensor] = {}
        self._score = float("-inf")

    def offer(self, score: float) -> None:
        """Keep a copy of the tensors if their score is not below the best so far."""
        if score >= self._score:
            self._score = score
            self._best = {name: tensor.clone() for name, tensor in self._live.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"score": self._score, "tensors": self._best}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`.

        Raises:
            ValueError: if its tensors are not those of this training.
        """
        if state["tensors"]:
            _require_alike(state["tensors"], self._live)
        self._score, self._best = float(state["score"]), dict(state["tensors"])

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the best weights into the tensors, if any were offered."""
        for name, tensor in self._best.items():
            self._live[name].copy_(tensor)


class WeightAverage:
    """Exponential moving average of tensors that a training changes in place.

    Args:
        tensors: to be averaged, by name; only floating-point ones are.
        decay: share of the average that a step keeps, 0..1; less in the first steps, so that the
            starting point is forgotten.

    Source: Polyak and Juditsky 1992; the warm-up `(1 + step) / (10 + step)` is TensorFlow's.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, decay: float) -> None:
        self._live = {k: v.detach() for k, v in tensors.items() if v.is_floating_point()}
        self._average = {key: value.clone() for key, value in self._live.items()}
        self._decay = decay

    def update(self, step: int) -> None:
        """Include the tensors as they are after a step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages, by name."""
        return self._average

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state`.

        Raises:
            ValueError: if its tensors are not those of this training.
        """
        _require_alike(state, self._average)
        for key, value in self._average.items():
            value.copy_(state[key])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averages as the tensors' values within a block."""
        live = {key: value.clone() for key, value in self._live.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in self._live.items():
                    value.copy_(live[key])

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the averages into the tensors."""
        for key, value in self._live.items():
            value.copy_(self._average[key])


def _require_alike(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Make sure that a stored state has the very names and shapes that are expected."""
    shapes = {key: value.shape for key, value in expected.items()}
    if {key: value.shape for key, value in state.items()} != shapes:
        raise ValueError("other tensors than those of the network")

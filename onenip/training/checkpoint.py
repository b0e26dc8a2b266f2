"""The state of a training on disk, which only the same training resumes."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # what torch raises of a file that is no checkpoint
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onenip.errors import CheckpointError
from onenip.folders import write_whole
from onenip.model.network import Network
from onenip.model.weights import hash_backbone, hash_tensors
from onenip.params import TrainParams
from onenip.training.batches import BatchPlan
from onenip.training.selection import BestWeights, WeightAverage
from onenip.version import hash_code

CHECKPOINT_FILE = "last.pt"

_FORMAT = 4
# do not change the result, or do so through the first weights
_ASIDE = {"checkpoint_seconds", "log_steps", "warm_start"}
_CODE = ("data", "detector", "images.py", "model", "params", "synthesis", "training")
_LIBRARIES = ("lightning-fabric", "numpy", "pillow", "scikit-learn", "scipy", "timm", "torch")

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything a training changes.

    Attributes:
        network: its trained part is kept; the backbone is frozen.
        optimizer: torch's, or Fabric's around it.
        average: of the weights, if there is one.
        best: the weights to keep, if they are selected.
        precision: Fabric's plugin, which holds the scale of losses in 16 bits.
        step: optimiser steps done.
        history: a row of losses per log.
        trials: a row of figures per trial of the weights.
    """

    network: Network
    optimizer: Any
    average: WeightAverage | None
    best: BestWeights | None
    precision: Any
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    trials: list[dict[str, float]] = field(default_factory=list)


class Checkpoint:
    """A training's file.

    Args:
        folder: made if need be.
        identity: digest of all that the training depends on, see `identify`.
    """

    def __init__(self, folder: Path, *, identity: str) -> None:
        self.path = folder / CHECKPOINT_FILE
        self.identity = identity

    def save(self, state: TrainingState) -> None:
        """Replace the file by the current state."""
        trained = {
            key: value
            for key, value in state.network.state_dict().items()
            if not key.startswith("backbone.")
        }
        values = {
            "format": _FORMAT,
            "identity": self.identity,
            "step": state.step,
            "history": state.history,
            "network": trained,
            "optimizer": state.optimizer.state_dict(),
            "average": state.average.state() if state.average else {},
            "trials": state.trials,
            "best": state.best.state() if state.best else {},
            "precision": state.precision.state_dict(),
        }
        with write_whole(self.path) as draft:
            torch.save(values, draft)

    def resume(self, state: TrainingState) -> None:
        """Load the file into a state, unless it is missing or of another training.

        Raises:
            CheckpointError: if the file is damaged.
        """
        if not self.path.is_file():
            return
        try:
            values = torch.load(self.path, weights_only=True, map_location="cpu")
            if values["format"] != _FORMAT or values["identity"] != self.identity:
                log.info("%s is of other params, data or code: training starts anew", self.path)
                return
            _load_network(state.network, values["network"])
            state.optimizer.load_state_dict(values["optimizer"])
            if state.average:
                state.average.load_state(values["average"])
            if state.best:
                state.best.load_state(values["best"])
            state.precision.load_state_dict(values["precision"])
            state.trials = list(values["trials"])
            state.step, state.history = int(values["step"]), list(values["history"])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            reason = str(error).split(".")[0]
            raise CheckpointError(
                f"{self.path}: damaged ({reason}); delete it to start anew"
            ) from error
        log.info("resuming %s after step %d", self.path, state.step)


def discard_checkpoint(folder: Path) -> None:
    """Delete the state of a finished training, which nothing shall resume."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def trained_tensors(network: Network) -> dict[str, Tensor]:
    """The tensors that training changes, by name; they share memory with the network."""
    tensors = network.state_dict()
    return {k: v for k, v in tensors.items() if not k.startswith(("backbone.", "coarse_"))}


def identify(
    network: Network,
    plan: BatchPlan,
    *,
    params: TrainParams,
    seed: int,
    total: int,
    numerics: str,
    selected_on: str,
) -> str:
    """Digest of everything a training's result depends on, as 64 hex digits.

    Args:
        network: as training starts: with its backbone's weights, random or warm-started otherwise.
        plan: images, settings and textures of the synthetic anomalies.
        params: the optimisation.
        seed: root of every random choice.
        total: optimiser steps in all.
        numerics: device and precision.
        selected_on: digest of the images that weights are selected on.
    """
    parts: list[Any] = [
        hash_code(*_CODE, libraries=_LIBRARIES),
        hash_backbone(network.backbone),
        hash_tensors(trained_tensors(network)),
        network.params.model_dump(mode="json"),
        params.model_dump(mode="json", exclude=_ASIDE),
        plan.synthesizer.params.model_dump(mode="json"),
        plan.data.names,
        plan.data.categories,
        [one.category for one in plan.defects],
        plan.data.digests,
        plan.world_size,
        seed,
        total,
        numerics,
        selected_on,
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    real = [array for one in plan.defects for array in (one.image, one.mask)]
    for array in (*plan.synthesizer.textures, *real):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _load_network(network: Network, tensors: dict[str, Tensor]) -> None:
    """Load all tensors of a network but those of its backbone, and no other."""
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    wrong = [*unexpected, *(key for key in missing if not key.startswith("backbone."))]
    if wrong:
        raise KeyError(wrong[0])

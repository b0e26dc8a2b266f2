"""The state of a training on disk, which only the same training resumes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # what torch raises of a file that is no checkpoint
from typing import Any

import numpy as np
import torch

from onenip.errors import CheckpointError
from onenip.model.network import Network
from onenip.params import ModelParams, TrainParams
from onenip.training.batches import BatchPlan
from onenip.training.selection import BestWeights, WeightAverage

CHECKPOINT_FILE = "last.pt"

_FORMAT = 3
_ASIDE = {"checkpoint_seconds", "log_steps"}  # do not change the result

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything a training changes.

    Attributes:
        network: its trained part is kept; the backbone is frozen.
        optimizer: torch's, or Fabric's around it.
        average: of the weights, if there is one.
        best: the weights to keep, if they are selected.
        step: optimiser steps done.
        history: a row of losses per log.
        trials: a row of figures per trial of the weights.
    """

    network: Network
    optimizer: Any
    average: WeightAverage | None
    best: BestWeights | None
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
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(values, partial)
        os.replace(partial, self.path)

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
            state.network.load_state_dict(values["network"], strict=False)
            state.optimizer.load_state_dict(values["optimizer"])
            if state.average:
                state.average.load_state(values["average"])
            if state.best:
                state.best.load_state(values["best"])
            state.trials = list(values["trials"])
            state.step, state.history = int(values["step"]), list(values["history"])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            reason = str(error).split(".")[0]
            raise CheckpointError(
                f"{self.path}: damaged ({reason}); delete it to start anew"
            ) from error
        log.info("resuming %s after step %d", self.path, state.step)


def identify(
    params: TrainParams,
    model_params: ModelParams,
    plan: BatchPlan,
    *,
    seed: int,
    total: int,
    selected_on: str,
) -> str:
    """Digest of all that a training's state depends on, as 64 hex digits."""
    settings = params.model_dump(mode="json", exclude=_ASIDE)
    parts: list[Any] = [settings, model_params.model_dump(mode="json"), seed, total]
    parts.append(selected_on)
    parts += [plan.synthesizer.params.model_dump(mode="json"), plan.data.names, plan.world_size]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(plan.data.images).data)
    return digest.hexdigest()

"""`fit`: the one training loop.

Reconstruction, restoration and refiner are trained together. A killed training resumes from its last
checkpoint and ends in the same weights as an undisturbed one: every batch and all noise are functions
of the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch raises of a file that is no checkpoint
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from onenip.errors import CheckpointError, DivergedError
from onenip.losses import dice_loss, feature_mse, mask_cross_entropy
from onenip.network import Network
from onenip.params import ModelParams, TrainParams
from onenip.reconstruction import jitter_features
from onenip.refiner import PaperRefiner
from onenip.training_set import Batch, BatchPlan, TrainingSet, describe

OnLog = Callable[[int, Mapping[str, float]], None]
CHECKPOINT_FILE = "last.pt"

log = logging.getLogger(__name__)


class Trainee(nn.Module):
    """A network with the losses of one step, so that a strategy can wrap both.

    Args:
        network: trained in place.
        data: the training set, whose features stay on the CPU.
        params: weights of the losses, and jitter.
    """

    def __init__(self, network: Network, data: TrainingSet, params: TrainParams) -> None:
        super().__init__()
        self.network = network
        self.data = data
        self.params = params

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a step: `loss` and its parts, each a scalar.

        Args:
            batch: B normal images and as many synthetic anomalies.
            generator: source of the feature jitter.

        Source: OneNIP sections 3.2 to 3.5.
        """
        network, params = self.network, self.params
        device = network.coarse_mean.device
        normal = self.data.features.coarse[batch.indices].to(device)  # [B, C, h, w]
        prompts = self.data.features.coarse[batch.prompts].to(device)
        with torch.no_grad():
            anomalous = network.embed(batch.anomalous.to(device))
        query = torch.cat([normal, anomalous.coarse])  # [2B, C, h, w]
        tokens = torch.cat([query, prompts]).flatten(2).mT  # [3B, N, C]
        jittered = jitter_features(
            tokens,
            scale=params.jitter_scale,
            probability=params.jitter_probability,
            generator=generator,
        )
        encoded = network.reconstruction.encode(jittered)
        encoded_query, encoded_prompt = encoded[: len(query)], encoded[len(query) :]
        restored = network.decode(encoded_query, encoded_prompt.repeat(2, 1, 1))
        feature_loss = feature_mse(restored, normal.repeat(2, 1, 1, 1))
        logits = self._refine(batch, query, restored, anomalous.fine)[:, 0]  # [2B, H, W]
        masks = batch.masks.to(device).float()
        target = torch.cat([torch.zeros_like(masks), masks])
        dice = dice_loss(logits.sigmoid(), target, overlap_weight=params.dice_overlap)
        cross_entropy = mask_cross_entropy(logits, target)
        loss = (
            params.feature_weight * feature_loss
            + params.dice_weight * dice
            + params.cross_entropy_weight * cross_entropy
        )
        return {
            "loss": loss,
            "feature_loss": feature_loss.detach(),
            "dice_loss": dice.detach(),
            "cross_entropy_loss": cross_entropy.detach(),
        }

    def _refine(
        self, batch: Batch, query: Tensor, restored: Tensor, anomalous_fine: Tensor
    ) -> Tensor:
        """Logits at input size, [2B, 1, H, W]."""
        network, data = self.network, self.data
        if isinstance(network.refiner, PaperRefiner):
            empty = query[:, :0]
            logits = network.refine(
                coarse=query, restored=restored, fine=empty, distance=empty, matched=empty
            )
            return network.enlarge(logits)[:, None]
        fine, distances, matched = [], [], []
        with torch.no_grad():
            for index in batch.indices.tolist():
                reference = data.references[data.categories[index]]
                fine.append(reference.standardize(data.features.fine[index][None]))
                distances.append(data.distances[index])
                matched.append(reference.memory[data.matches[index]])
            for row, index in enumerate(batch.indices.tolist()):
                category = data.categories[index]
                reference = data.references[category]
                fine.append(reference.standardize(anomalous_fine[row][None].cpu()))
                if not network.uses_memory:
                    continue
                excluded = (data.owners[category] == index)[None]
                tokens = network.average_tokens(fine[-1])
                match = network.match(tokens, reference.memory, excluded=excluded)
                distances.append(match.distance[0])
                matched.append(reference.memory[match.index[0]])
        device = query.device
        logits = network.refine(
            coarse=query,
            restored=restored,
            fine=torch.cat(fine).to(device),
            distance=torch.stack(distances).to(device) if network.uses_memory else query,
            matched=torch.stack(matched).to(device) if network.uses_memory else query,
        )
        return network.enlarge(logits)[:, None]


def fit(
    network: Network,
    plan: BatchPlan,
    *,
    params: TrainParams,
    model_params: ModelParams,
    seed: int,
    fabric: Fabric,
    checkpoint_dir: Path,
    on_log: OnLog,
    progress: bool,
    workers: int,
) -> list[dict[str, float]]:
    """Train a network in place.

    Args:
        network: with its backbone's weights and standardisation set.
        plan: the batches.
        params: the optimisation.
        model_params: the architecture, which a checkpoint must agree with.
        seed: root of dropout and jitter.
        fabric: device, precision and strategy.
        checkpoint_dir: where the last state is kept; a state of the same params and data is resumed.
        on_log: called with the step and the losses every `log_steps` steps.
        progress: whether to show a bar.
        workers: processes that draw batches ahead; 0 draws them in this one.

    Returns:
        The logged losses, a row per log, with `step`, `epoch`, `learning_rate`.

    Raises:
        DivergedError: if a loss is not finite; the last good checkpoint is kept.
    """
    total = count_steps(params, plan.steps_per_epoch)
    trainee = Trainee(network, plan.data, params)
    trainable = [p for p in network.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(trainable, params.learning_rate, weight_decay=params.weight_decay)
    wrapped, optimizer = fabric.setup(trainee, plain)
    identity = _identify(params, model_params, plan, seed, total)
    path = checkpoint_dir / CHECKPOINT_FILE
    step, history = _resume(path, identity, network, optimizer)
    wrapped.train()
    saved_at = time.monotonic()
    bar = tqdm(total=total, initial=step, desc="train", unit="step", disable=not progress)
    for batch in _load_batches(plan, range(step, total), workers):
        rate = schedule_rate(params, step, total, plan.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        noise_seed = (seed * 1_000_003 + step) * 97 + fabric.global_rank
        torch.manual_seed(noise_seed)  # dropout; jitter has a generator of its own
        losses = wrapped(batch, torch.Generator().manual_seed(noise_seed + 1))
        if not math.isfinite(float(losses["loss"].detach())):
            names = describe(plan.data.names, batch.indices)
            raise DivergedError(f"loss is not finite at step {step + 1}, on images {names}")
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(losses["loss"])
        fabric.clip_gradients(wrapped, optimizer, max_norm=params.gradient_clip)
        optimizer.step()
        step += 1
        bar.update()
        if step % params.log_steps == 0 or step == total:
            values = {key: float(value.detach()) for key, value in losses.items()}
            history.append(
                {"step": step, "epoch": step / plan.steps_per_epoch, "learning_rate": rate} | values
            )
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            if fabric.is_global_zero:
                on_log(step, values | {"learning_rate": rate})
        if time.monotonic() - saved_at > params.checkpoint_seconds and fabric.is_global_zero:
            _save(path, identity, step, history, network, optimizer)
            saved_at = time.monotonic()
    bar.close()
    if fabric.is_global_zero:
        _save(path, identity, step, history, network, optimizer)
    network.eval()
    return history


def count_steps(params: TrainParams, steps_per_epoch: int) -> int:
    """Optimiser steps in all."""
    total = params.epochs * steps_per_epoch
    return total if params.max_steps is None else min(total, params.max_steps)


def schedule_rate(params: TrainParams, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of a step, counted from 0.

    Source: OneNIP section 4.1 for `step`; linear warm-up and cosine (SGDR) for `cosine`.
    """
    if params.schedule == "step":
        dropped = step >= params.step_epoch * steps_per_epoch
        return params.learning_rate * (0.1 if dropped else 1.0)
    warmup = max(round(params.warmup_fraction * total), 1)
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _load_batches(plan: BatchPlan, steps: range, workers: int) -> Iterator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        plan, batch_size=None, sampler=list(steps), num_workers=workers
    )
    return iter(loader)


def _identify(
    params: TrainParams, model_params: ModelParams, plan: BatchPlan, seed: int, total: int
) -> str:
    """Digest of all that a checkpoint's state depends on."""
    settings = params.model_dump(mode="json", exclude={"checkpoint_seconds", "log_steps"})
    parts: list[Any] = [settings, model_params.model_dump(mode="json"), seed, total]
    parts += [plan.synthesizer.params.model_dump(mode="json"), plan.data.names, plan.world_size]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    digest.update(plan.data.images.tobytes())
    return digest.hexdigest()


def _trained_state(network: Network) -> dict[str, Tensor]:
    state: dict[str, Tensor] = network.state_dict()
    return {key: value for key, value in state.items() if not key.startswith("backbone.")}


def _save(
    path: Path,
    identity: str,
    step: int,
    history: list[dict[str, float]],
    network: Network,
    optimizer: Any,
) -> None:
    """Replace the checkpoint by today's state, whole or not at all."""
    state = {
        "format": 1,
        "identity": identity,
        "step": step,
        "history": history,
        "network": _trained_state(network),
        "optimizer": optimizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(
    path: Path, identity: str, network: Network, optimizer: Any
) -> tuple[int, list[dict[str, float]]]:
    """Step and history of the checkpoint, after loading it; 0 and nothing where it does not apply."""
    if not path.is_file():
        return 0, []
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["identity"] != identity:
            log.info("%s is of other params or data: training starts anew", path)
            return 0, []
        network.load_state_dict(state["network"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
        reason = str(error).split(".")[0]
        raise CheckpointError(f"{path}: damaged ({reason}); delete it to start anew") from error
    log.info("resuming %s after step %d", path, state["step"])
    return int(state["step"]), list(state["history"])

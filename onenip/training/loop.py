"""`fit`: the one training loop.

Reconstruction, restoration and refiner are trained together. A killed training resumes from its last
checkpoint and ends in the same weights as an undisturbed one: every sample and all noise are functions
of the seed and the step.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import trange

from onenip.errors import CheckpointError, DivergedError
from onenip.model.network import Network
from onenip.params import TrainParams
from onenip.training.batches import Batch, BatchPlan, describe
from onenip.training.checkpoint import Checkpoint, TrainingState, identify, trained_tensors
from onenip.training.selection import BestWeights, SelectionSet, WeightAverage
from onenip.training.step import Trainee

OnLog = Callable[[int, Mapping[str, float]], None]

_LOG_SECONDS = 30.0  # between two lines of progress in the log
_BLIND_RECALL = 0.05  # a refiner that finds less of its own training anomalies finds nothing
# of losses in 16 bits: gradients that overflow below it are not finite in 32 either
_LEAST_SCALE = 1e-3
_LAST_LOGS = 5  # logs that are judged by

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRecord:
    """Losses and trials of a training.

    Attributes:
        history: a row per log: losses, `step`, `epoch`, `learning_rate`.
        trials: a row per trial of the weights, in order: `step` and the figures of `SelectionSet.measure`.
    """

    history: list[dict[str, float]]
    trials: list[dict[str, float]]

    @property
    def selected(self) -> dict[str, float] | None:
        """The trial whose weights were kept; None where the last were."""
        best = max((trial["score"] for trial in self.trials), default=None)
        return next((t for t in reversed(self.trials) if t["score"] == best), None)


def fit(
    network: Network,
    plan: BatchPlan,
    *,
    params: TrainParams,
    seed: int,
    fabric: Fabric,
    checkpoint_dir: Path,
    on_log: OnLog,
    progress: bool,
    workers: int,
    selection: SelectionSet | None = None,
) -> TrainingRecord:
    """Train a network in place.

    Args:
        network: with its backbone's weights and standardisation set.
        plan: the batches.
        params: the optimisation.
        seed: root of dropout.
        fabric: device, precision and strategy.
        checkpoint_dir: of the last state; a state of the same params and data is resumed.
        on_log: called with the step and the losses every `log_steps` steps, by one process.
        progress: whether to show a bar; without one, the log shows progress.
        workers: processes that draw batches ahead; 0 draws them in this one.
        selection: images to select weights on; None keeps the last weights.

    Raises:
        DivergedError: if a loss or a gradient is not finite; the last good checkpoint is kept.
        CheckpointError: if the checkpoint is damaged, or only some of several hosts see it.
    """
    total = count_steps(params, plan.steps_per_epoch)
    wrapped, optimizer = fabric.setup(
        Trainee(network, plan.data, params), build_optimizer(network, params, fabric)
    )
    average = _start_average(network, params)
    best = BestWeights(trained_tensors(network)) if selection else None
    precision = fabric.strategy.precision
    state = TrainingState(network, optimizer, average, best, precision)
    identity = identify(
        network,
        plan,
        params=params,
        seed=seed,
        total=total,
        numerics=f"{fabric.device.type} {precision.precision}",
        selected_on=selection.digest if selection else "",
    )
    checkpoint = Checkpoint(checkpoint_dir, identity=identity)
    checkpoint.resume(state)
    _check_same_step(fabric, state.step, checkpoint.path)
    wrapped.train()
    batches = _load_batches(plan, state.step, total, workers)
    saved_at = time.monotonic()
    pace = _Pace(state.step, total)
    _announce(plan, total)
    bar = trange(
        state.step, total, initial=state.step, total=total, desc="train", disable=not progress
    )
    for step in bar:
        rate = schedule_rate(params, step, total, plan.steps_per_epoch)
        losses = take_step(
            fabric,
            wrapped,
            optimizer,
            [next(batches) for _ in range(plan.accumulate_steps)],
            step=step,
            rate=rate,
            seed=seed,
        )
        state.step = step + 1
        if average:
            average.update(state.step)
        if state.step % params.log_steps == 0 or state.step == total:
            values = _gather(fabric, losses) | {"learning_rate": rate}
            epoch = state.step / plan.steps_per_epoch
            state.history.append({"step": state.step, "epoch": epoch} | values)
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            if not progress:
                pace.log(state.step, values["loss"])
            if fabric.is_global_zero:
                on_log(state.step, values)
        is_trial = _is_trial(state.step, total, params.selection_trials)
        if selection and best and is_trial and fabric.is_global_zero:
            trial = _try_weights(network, selection, average, best)
            state.trials.append({"step": state.step} | trial)
            on_log(state.step, {f"selection_{name}": value for name, value in trial.items()})
        if time.monotonic() - saved_at > params.checkpoint_seconds and fabric.is_global_zero:
            checkpoint.save(state)
            saved_at = time.monotonic()
    if fabric.is_global_zero:
        checkpoint.save(state)
    if state.trials and best:
        best.apply()
    elif average:
        average.apply()
    network.eval()
    _warn_if_blind(state.history)
    return TrainingRecord(state.history, state.trials)


def build_optimizer(network: Network, params: TrainParams, fabric: Fabric) -> torch.optim.Optimizer:
    """AdamW over the trained part."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    on_cpu = network.coarse_mean.device.type == "cpu"
    return torch.optim.AdamW(
        trainable,
        params.learning_rate,
        weight_decay=params.weight_decay,
        fused=True if on_cpu and _find_scaler(fabric) is None else None,  # else it could not clip
    )


def take_step(
    fabric: Fabric,
    trainee: Any,
    optimizer: Any,
    batches: Sequence[Batch],
    *,
    step: int,
    rate: float,
    seed: int,
) -> dict[str, Tensor]:
    """One optimiser step.

    Args:
        fabric: that set up the next two.
        trainee: a `Trainee`, wrapped by the fabric.
        optimizer: of its network's trained part.
        batches: whose gradients are averaged.
        step: its number, counted from 0.
        rate: learning rate.
        seed: root of dropout.

    Returns:
        The result of `Trainee.forward`, averaged over the batches.

    Raises:
        DivergedError: if a loss or a gradient is not finite; the weights are as before.
    """
    params: TrainParams = trainee.params
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, batch in enumerate(batches, start=step * len(batches)):
        torch.manual_seed((seed * 1_000_003 + number) * 97 + fabric.global_rank)  # dropout
        is_last = number == (step + 1) * len(batches) - 1
        with fabric.no_backward_sync(trainee, enabled=not is_last):
            losses = trainee(batch)
            _check_loss(fabric, losses["loss"].detach(), batch, trainee.data.names, step)
            fabric.backward(losses["loss"] / len(batches))
        parts.append(losses)
    norm = fabric.clip_gradients(
        trainee, optimizer, max_norm=params.gradient_clip, error_if_nonfinite=False
    )
    if norm is not None and not math.isfinite(float(norm)) and not _can_scale_down(fabric):
        names = "; ".join(describe(trainee.data.names, batch.indices) for batch in batches)
        raise DivergedError(f"gradients are not finite at step {step + 1}, on images {names}")
    optimizer.step()
    return {key: torch.stack([p[key].detach() for p in parts]).mean() for key in parts[0]}


def _find_scaler(fabric: Fabric) -> torch.amp.GradScaler | None:
    """The scaler of losses in 16 bits, if the precision that was chosen needs one."""
    return getattr(fabric.strategy.precision, "scaler", None)


def _can_scale_down(fabric: Fabric) -> bool:
    """True if gradients may have overflowed only by their scale: the scaler skips the step and lowers it."""
    scaler = _find_scaler(fabric)
    return scaler is not None and scaler.get_scale() > _LEAST_SCALE


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


class _Pace:
    """Logs progress after the first steps, so that one knows how long it takes, then every half a minute.

    Args:
        first: steps that were done before.
        total: steps in all.
    """

    def __init__(self, first: int, total: int) -> None:
        self._last, self._total = first, total
        self._notified_at = time.monotonic()
        self._is_first = True

    def log(self, step: int, loss: float) -> None:
        """Log step, loss and time left, unless that was done just now."""
        now = time.monotonic()
        if now - self._notified_at < _LOG_SECONDS and not self._is_first:
            return
        self._is_first = False
        # of the last steps, since a pace changes
        seconds = (now - self._notified_at) / (step - self._last)
        self._notified_at, self._last = now, step
        left = seconds * (self._total - step) / 60
        text = "step %d of %d, loss %.4f, %.2f s a step, about %.0f min left"
        log.info(text, step, self._total, loss, seconds, left)


def _announce(plan: BatchPlan, total: int) -> None:
    """Log how often each image is seen, and warn if some never are."""
    counts = Counter(plan.data.categories)
    passes = total * plan.samples_per_step / len(plan.data.images)
    fewest = min(counts, key=lambda name: counts[name])
    text = (
        "%d steps of %d normal images: %.1f passes over %d images of %d categories; "
        "the smallest, %s, is seen %d times"
    )
    facts = (plan.samples_per_step, passes, len(plan.data.images), len(counts), fewest)
    log.info(text, total, *facts, round(passes * counts[fewest]))
    if passes < 1:
        log.warning(
            "train.max_steps ends the training before every image was seen once: it would take %d steps",
            plan.steps_per_epoch,
        )


def _load_batches(plan: BatchPlan, first: int, total: int, workers: int) -> Iterator[Batch]:
    """Batches of the optimiser steps from `first` up to `total`."""
    numbers = range(first * plan.accumulate_steps, total * plan.accumulate_steps)
    loader: DataLoader[Batch] = DataLoader(
        plan, batch_size=None, sampler=list(numbers), num_workers=workers
    )
    return iter(loader)


def _start_average(network: Network, params: TrainParams) -> WeightAverage | None:
    if params.ema_decay == 0:
        return None
    return WeightAverage(trained_tensors(network), decay=params.ema_decay)


def _is_trial(step: int, total: int, trials: int) -> bool:
    """True if weights are tried after a step, counted from 1: `trials` times, lastly at the end."""
    return step * trials // total > (step - 1) * trials // total


def _try_weights(
    network: Network, selection: SelectionSet, average: WeightAverage | None, best: BestWeights
) -> dict[str, float]:
    """Figures of the weights, averaged if there is an average; the best are kept."""
    with average.applied() if average else nullcontext():
        figures = selection.measure(network)
        best.offer(figures["score"])
    return figures


def _check_same_step(fabric: Fabric, step: int, path: Path) -> None:
    """Stop if some hosts resume and others, which do not see the checkpoint, begin."""
    if fabric.world_size == 1:
        return
    mean: Any = fabric.all_reduce(torch.tensor(float(step), device=fabric.device))
    if float(mean) != step:
        raise CheckpointError(f"{path}: not all hosts see it; share its folder, or delete it")


def _check_loss(
    fabric: Fabric, loss: Tensor, batch: Batch, names: Sequence[str], step: int
) -> None:
    """Stop all processes alike if the loss of any is not finite, naming its images."""
    finite, indices = loss.isfinite(), batch.indices
    broken: Any = (~finite).float()
    if fabric.world_size > 1:
        broken = fabric.all_reduce(broken, reduce_op="sum")
    if float(broken) == 0:
        return
    if fabric.world_size > 1:
        everyone: Any = fabric.all_gather([finite, indices.to(fabric.device)])
        finite, indices = (one.cpu() for one in everyone)  # [world], [world, B]
    suspects = describe(names, indices[~finite.cpu()].flatten())
    raise DivergedError(f"loss is not finite at step {step + 1}, on images {suspects}")


def _gather(fabric: Fabric, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all processes."""
    values: Any = torch.stack(list(losses.values()))
    if fabric.world_size > 1:
        values = fabric.all_reduce(values)
    return dict(zip(losses, values.tolist(), strict=True))


def _warn_if_blind(history: Sequence[Mapping[str, float]]) -> None:
    """Warn if the refiner settled on empty maps, as it can under Dice alone."""
    recall = [row["mask_recall"] for row in history[-_LAST_LOGS:]]
    mean = sum(recall) / len(recall)
    if mean < _BLIND_RECALL:
        log.warning(
            "the refiner is blind: inside the masks of its training anomalies its map is %.3f on average. "
            "Train longer (train.epochs, train.max_steps) or raise train.cross_entropy_weight",
            mean,
        )

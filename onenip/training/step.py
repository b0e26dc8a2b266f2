"""Forward pass and losses of a training step: reconstruction and refiner together.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from onenip.model.network import Network
from onenip.model.reconstruction import jitter_features
from onenip.model.refiner import PaperRefiner, upsample_logits
from onenip.params import TrainParams
from onenip.training.batches import Batch, TrainingSet, embed_images


class Trainee(nn.Module):
    """A network and the losses of one step, so that a strategy can wrap both.

    Args:
        network: trained in place.
        data: the training set, whose features are on the CPU; statistics and memories are copied to the
            network's device.
        params: weights of the losses, and jitter.
    """

    def __init__(self, network: Network, data: TrainingSet, params: TrainParams) -> None:
        super().__init__()
        self.network = network
        self.backbone = data.embedder.backbone  # folded
        self.data = data
        self.params = params
        device = network.coarse_mean.device
        self.statistics = {name: known.to(device) for name, known in data.statistics.items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch: `loss`, its parts, and `mask_recall`, each a scalar.

        Args:
            batch: B normal images and as many anomalies. Of a real defect no normal counterpart is known: it
                takes no part in the feature loss.

        Source: OneNIP sections 3.2 to 3.5.
        """
        network, params = self.network, self.params
        device = network.coarse_mean.device
        normals = [self.data.features(i) for i in batch.indices.tolist()]
        coarse = torch.cat([one.coarse for one in normals])
        normal = network.standardize(coarse.to(device))  # [B, C, h, w]
        coarse = torch.cat([self.data.features(i).coarse for i in batch.prompts.tolist()])
        prompts = network.standardize(coarse.to(device))
        anomalous = embed_images(network, self.backbone, batch.anomalous.to(device))
        query = torch.cat([normal, anomalous.coarse])  # [2B, C, h, w]
        tokens = torch.cat([query, prompts]).flatten(2).mT  # [3B, N, C]
        jittered = jitter_features(
            tokens,
            scale=params.jitter_scale,
            probability=params.jitter_probability,
            seeds=[s + part for part in range(3) for s in batch.seeds.tolist()],
        )
        encoded = network.reconstruction.encode(jittered)
        encoded_query, encoded_prompt = encoded[: len(query)], encoded[len(query) :]
        restored = network.decode(encoded_query, encoded_prompt.repeat(2, 1, 1))
        aim = normal.repeat(2, 1, 1, 1)
        if batch.is_real.any():
            known = torch.cat([torch.ones_like(batch.is_real), ~batch.is_real]).to(device)  # [2B]
            feature_loss = feature_mse(restored[known], aim[known])
        else:
            feature_loss = feature_mse(restored, aim)
        raw = [*(one.fine.half().to(device) for one in normals), *anomalous.fine.split(1)]
        logits = self._refine(batch, query, restored, raw)[:, 0].float()  # [2B, H, W]
        masks = batch.masks.to(device).float()
        target = torch.cat([torch.zeros_like(masks), masks])
        dice = dice_loss(logits.sigmoid(), target, overlap_weight=params.dice_overlap)
        is_trained = params.cross_entropy_weight > 0  # else it is only logged
        cross_entropy = mask_cross_entropy(logits if is_trained else logits.detach(), target)
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
            "mask_recall": _measure_recall(logits.detach(), target),
        }

    def _refine(
        self, batch: Batch, query: Tensor, restored: Tensor, raw: Sequence[Tensor]
    ) -> Tensor:
        """Logits at input size, [2B, 1, H, W], with 2B raw fine features [1, C, h8, w8]."""
        network, data = self.network, self.data
        error = (restored - query).abs()
        if isinstance(network.refiner, PaperRefiner):
            empty = query[:, :0]
            logits = network.refine(
                error=error, fine=empty, tokens=empty, distance=empty, matched=empty
            )
            return upsample_logits(logits, network.params.input_size)[:, None]
        fine, distances, matched = [], [], []
        device = query.device
        # distances are differences of large numbers: never in half precision
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            indices = batch.indices.tolist()
            for row, index in enumerate(indices * 2):
                category = data.categories[index]
                statistics = self.statistics[category]
                fine.append(statistics.standardize(raw[row]))
                if not network.uses_memory:
                    continue
                if row < len(indices):
                    match = data.match(index)
                else:
                    is_made_from_it = not bool(batch.is_real[row - len(indices)])
                    excluded = (data.owners[category] == index)[None] & is_made_from_it
                    own = network.average_tokens(fine[-1])
                    match = network.match(own, statistics.memory, excluded=excluded.to(device))
                distances.append(match.distance[0].to(device))
                matched.append(statistics.memory[match.index[0].to(device)])
            tokens = network.average_tokens(torch.cat(fine))  # [2B, N8, C]
        logits = network.refine(
            error=error,
            fine=torch.cat(fine),
            tokens=tokens,
            distance=torch.stack(distances) if network.uses_memory else query,
            matched=torch.stack(matched) if network.uses_memory else query,
        )
        return upsample_logits(logits, network.params.input_size)[:, None]


def dice_loss(probability: Tensor, target: Tensor, *, overlap_weight: float) -> Tensor:
    """Dice loss, mean over samples, with squares in the denominator and smoothing 1.

    Args:
        probability: [B, ...] float, 0..1.
        target: [B, ...] float, 0..1, the same shape.
        overlap_weight: 2 for Dice proper, 0 at a perfect match; 1 for the authors', about 0.5
            there.

    Returns:
        Scalar, 0..1.

    Source: OneNIP section 3.5; V-Net (3DV 2016), equation 3.
    """
    p, t = probability.flatten(1), target.flatten(1)
    overlap = overlap_weight * (p * t).sum(1)
    total = (p.square() + t.square()).sum(1)
    return (1 - (overlap + 1) / (total + 1)).mean()


def mask_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross entropy of logits [B, ...] and soft targets, 0..1, of the same shape."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def feature_mse(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of features of any shape: the paper's feature loss."""
    return torch.mean((reconstruction - target).square())


def _measure_recall(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of the refined map inside the masks: 1 finds all of every anomaly, 0 finds nothing."""
    return (logits.sigmoid() * target).sum() / target.sum().clamp_min(1)

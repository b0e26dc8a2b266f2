"""Forward pass and losses of a training step: reconstruction and refiner together.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from onenip.model.folding import fold_backbone
from onenip.model.network import Features, Network, resize
from onenip.model.reconstruction import jitter_features
from onenip.model.refiner import PaperRefiner, upsample_logits
from onenip.params import TrainParams
from onenip.training.batches import Batch, TrainingSet, embed_images


class Trainee(nn.Module):
    """A network and the losses of one step, so that a strategy can wrap both.

    Args:
        network: trained in place.
        data: the training set, whose features stay on the CPU.
        params: weights of the losses, and jitter.
    """

    def __init__(self, network: Network, data: TrainingSet, params: TrainParams) -> None:
        super().__init__()
        self.network = network
        self.backbone = fold_backbone(network)  # frozen; its maps differ by rounding alone
        self.data = data
        self.params = params

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch: `loss`, its parts, and `mask_recall`, each a scalar.

        Args:
            batch: B normal images and as many synthetic anomalies.

        Source: OneNIP sections 3.2 to 3.5.
        """
        network, params = self.network, self.params
        device = network.coarse_mean.device
        features = self.data.features

        def gather(indices: Tensor) -> Tensor:
            coarse = torch.cat([features[i].coarse for i in indices.tolist()])
            return network.standardize(coarse.to(device))

        normal, prompts = gather(batch.indices), gather(batch.prompts)  # [B, C, h, w]
        anomalous = self._embed(batch.anomalous)
        query = torch.cat([normal, *(one.coarse for one in anomalous)])  # [2B, C, h, w]
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
        feature_loss = feature_mse(restored, normal.repeat(2, 1, 1, 1))
        logits = self._refine(batch, query, restored, anomalous)[:, 0].float()  # [2B, H, W]
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

    def _embed(self, images: Sequence[Tensor]) -> list[Features]:
        """Features of each of some images, those of one size computed together."""
        found: dict[int, Features] = {}
        for shape in {image.shape for image in images}:
            rows = [i for i, image in enumerate(images) if image.shape == shape]
            group = torch.stack([images[i] for i in rows]).to(self.network.coarse_mean.device)
            embedded = embed_images(self.network, self.backbone, group)
            found |= {i: embedded[place : place + 1] for place, i in enumerate(rows)}
        return [found[i] for i in range(len(images))]

    def _refine(
        self, batch: Batch, query: Tensor, restored: Tensor, anomalous: Sequence[Features]
    ) -> Tensor:
        """Logits of the windows at input size, [2B, 1, H, W]."""
        network, data = self.network, self.data
        error = (restored - query).abs()
        if isinstance(network.refiner, PaperRefiner):
            empty = query[:, :0]
            logits = network.refine(
                error=error, fine=empty, tokens=empty, distance=empty, matched=empty
            )
            return upsample_logits(logits, network.params.input_size)[:, None]
        errors, fine, tokens, distances, matched = [], [], [], [], []
        count = len(batch.indices)
        # distances are differences of large numbers: never in half precision
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for row, corner in enumerate(batch.corners.tolist()):
                index = int(batch.indices[row % count])
                category = data.categories[index]
                statistics = data.statistics[category]
                is_normal = row < count
                raw = data.features[index] if is_normal else anomalous[row - count]
                whole = statistics.standardize(raw.fine.cpu())  # [1, C, h8, w8]
                grid = (whole.shape[-2], whole.shape[-1])
                fine.append(self._cut(whole, corner))
                averaged = network.average_tokens(whole).mT.unflatten(2, grid)
                tokens.append(self._cut(averaged, corner).flatten(2).mT)  # [1, N8, C]
                if not network.uses_memory:
                    continue
                if is_normal:
                    known = data.matches[index]
                    distance, place = (
                        self._cut(one.unflatten(1, grid), corner).flatten(1)
                        for one in (known.distance, known.index)
                    )
                else:
                    excluded = (data.owners[category] == index)[None]
                    match = network.match(tokens[-1], statistics.memory, excluded=excluded)
                    distance, place = match.distance, match.index
                distances.append(distance)
                matched.append(statistics.memory[place])
        for row, corner in enumerate(batch.corners.tolist()):
            source = data.features[int(batch.indices[row % count])].fine
            whole = resize(error[row : row + 1], (source.shape[-2], source.shape[-1]))
            errors.append(self._cut(whole, corner))
        device = query.device
        logits = network.refine(
            error=torch.cat(errors),
            fine=torch.cat(fine).to(device),
            tokens=torch.cat(tokens).to(device),
            distance=torch.cat(distances).to(device) if network.uses_memory else query,
            matched=torch.cat(matched).to(device) if network.uses_memory else query,
        )
        return upsample_logits(logits, network.params.input_size)[:, None]

    def _cut(self, maps: Tensor, corner: Sequence[int]) -> Tensor:
        """The window of maps [..., h8, w8] that begins at a corner."""
        rows, columns = self.network.fine_grid
        top, left = corner
        return maps[..., top : top + rows, left : left + columns]


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

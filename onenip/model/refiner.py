"""Supervised heads that turn evidence of a defect into a sharp map.

Take maps, give logits; know nothing of where the evidence came from.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from onenip.model.layers import SharedBatchNorm


class PaperRefiner(nn.Module):
    """The paper's refiner: reconstruction error in, logits at four times the resolution out.

    Args:
        channels: `C` of the reconstruction error.
        width: channels inside.

    Source: OneNIP section 3.4.
    """

    def __init__(self, *, channels: int, width: int = 128) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *_upsampling_block(channels, width), *_upsampling_block(width, width)
        )
        self.predictor = nn.Conv2d(width, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, error: Tensor) -> Tensor:
        """Logits, [B, 1, 4h, 4w], of an absolute reconstruction error [B, C, h, w]."""
        return self.predictor(self.blocks(error))


class EvidenceRefiner(nn.Module):
    """A refiner that sees several kinds of evidence, on a finer grid.

    Args:
        channels: of all evidence together.
        width: channels inside, even.
        dropout: share of evidence channels that a training step does not see.

    Differs: from the paper's, which sees the reconstruction error alone, at stride 16 (ADR 3).
    """

    def __init__(self, *, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        narrow = width // 2
        self.mix = nn.Sequential(nn.Conv2d(channels, width, 1), SharedBatchNorm(width), nn.ReLU())
        self.coarse = nn.ModuleList(_residual_block(width) for _ in range(2))
        self.upsample = nn.ConvTranspose2d(width, narrow, 2, stride=2)
        self.norm = SharedBatchNorm(narrow)
        self.fine = _residual_block(narrow)
        self.predictor = nn.Conv2d(narrow, 1, 1)

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits at twice the resolution, [B, 1, 2h, 2w], of evidence [B, C, h, w]."""
        x = self.mix(self.dropout(evidence))  # [B, width, h, w]
        for block in self.coarse:
            x = x + block(x)
        x = functional.relu(self.norm(self.upsample(x)))  # [B, width/2, 2h, 2w]
        return self.predictor(x + self.fine(x))


def _upsampling_block(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        SharedBatchNorm(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, width, 2, stride=2),
    ]


def _residual_block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False), SharedBatchNorm(width), nn.ReLU()
    )


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, 1, h, w] at the input size: [B, H, W], bilinear with aligned corners."""
    resized = functional.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    return resized[:, 0]

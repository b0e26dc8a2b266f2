"""Features of images from the cache: each image goes through the frozen backbone once.

What a training, a calibration and an evaluation embed is the same, to the last bit, whether it is computed or
read, and whatever other images there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onenip.data.cache import Arrays, Cache
from onenip.model.folding import fold_backbone
from onenip.model.network import Features, Network
from onenip.model.weights import hash_backbone
from onenip.version import hash_code

Pixels = Callable[[], NDArray[np.uint8]]

_CODE = ("model/features.py", "model/folding.py", "model/network.py")
# of the architecture: what comes after the features
_TRAINED = frozenset(
    {"weights", "zoom", "standardize", "width", "heads", "encoder_layers", "decoder_layers", "feedforward",
     "dropout", "neighbor_size", "refiner", "refiner_width", "refiner_dropout", "evidence", "memory_tokens",
     "memory_window"}
)  # fmt: skip


class Embedder:
    """A frozen backbone with a cache before it.

    Args:
        network: with its backbone's weights; the trained part may change.
        cache: where features are kept.

    Attributes:
        network: as given.
        cache: as given.
        backbone: the network's, folded.
        kind: of these features in the cache: a digest of weights, settings, code, libraries and device.
    """

    def __init__(self, network: Network, cache: Cache) -> None:
        self.backbone = fold_backbone(network)
        facts = (
            hash_code(*_CODE, libraries=("timm", "torch")),
            hash_backbone(network.backbone),
            network.params.model_dump_json(exclude=set(_TRAINED)),
            network.reads_fine,
            network.coarse_mean.device.type,
        )
        self.kind = f"features/{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
        self.network = network
        self.cache = cache

    def embed(self, image: NDArray[np.uint8]) -> Features:
        """Raw features of an image [H, W, 3] uint8 at input size or at a zoom of it.

        A batch of one, on the CPU, C-contiguous and float32; coarse ones are not standardised.
        """
        return self._get(_hash(image), lambda: image)

    def hold(self, load: Pixels) -> Callable[[], Features]:
        """What reads an image's features again whenever it is called; they are computed now if need be."""
        image = load()
        key = _hash(image)
        self._get(key, lambda: image)
        return lambda: self._get(key, load)

    def standardize(self, raw: Features) -> Features:
        """Features as the network itself gives them: standardised, on its device, in its layout."""
        device = self.network.coarse_mean.device

        def move(part: Tensor) -> Tensor:
            return part.to(device, memory_format=torch.channels_last)

        detail = None if raw.detail is None else move(raw.detail)
        return self.network.standardize_coarse(Features(move(raw.coarse), move(raw.fine), detail))

    def _get(self, key: str, load: Pixels) -> Features:
        arrays = self.cache.get(self.kind, key, lambda: self._compute(load()))
        parts = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
        return Features(parts["coarse"], parts["fine"], parts.get("detail"))

    def _compute(self, image: NDArray[np.uint8]) -> Arrays:
        batch = torch.tensor(image)[None].to(self.backbone.mean.device)
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            raw = self.network.embed_raw(batch, self.backbone)
        parts = {"coarse": raw.coarse, "fine": raw.fine, "detail": raw.detail}
        return {
            name: np.ascontiguousarray(part[0].float().cpu().numpy())
            for name, part in parts.items()
            if part is not None
        }


class Lazy(Sequence[Tensor]):
    """Tensors that are read when they are asked for, so that a walk over many needs the memory of one.

    Args:
        read: gives the tensor at an index.
        count: how many there are.
    """

    def __init__(self, read: Callable[[int], Tensor], count: int) -> None:
        self._read = read
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """One tensor, or some."""
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(self._count))]
        return self._read(index)

    def __iter__(self) -> Iterator[Tensor]:
        return (self._read(i) for i in range(self._count))


def _hash(image: NDArray[np.uint8]) -> str:
    """sha256 of the size and the pixels, as 64 hex digits."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()

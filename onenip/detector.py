"""The detector: a network and what it knows of each category, from images to verdicts.

Knows images and categories; knows nothing of training, data sets on disk, or registries.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels, `D` width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from onenip.errors import CheckpointError, DataError
from onenip.images import load_image, resize_image, to_rgb
from onenip.model_file import CategorySpec, DetectorSpec, hash_model, read_model, write_model
from onenip.network import Features, Network, Reference
from onenip.params import CalibrateParams
from onenip.prediction import Prediction as Prediction
from onenip.regions import find_regions
from onenip.scoring import fuse_maps, score_maps

ImageLike = Path | str | Image.Image | NDArray[np.uint8] | Tensor

_GREY_AXES = 2
_RANGE_SLACK = 1e-2  # what resizing may overshoot 0..1 by


@dataclass(frozen=True)
class ReconstructionResult:
    """Result of `Detector.reconstruct`.

    Attributes:
        features: [B, C, h, w] float, reconstructed.
        map: [B, H, W] float, L2 distance to the query at input size.
        refined: [B, H, W] float, 0..1, the refiner's output after the sigmoid.
    """

    features: Tensor
    map: Tensor
    refined: Tensor


@dataclass(frozen=True)
class CategoryState:
    """Tensors that the network needs of a category.

    Attributes:
        prompts: [K, H, W, 3] uint8 at input size.
        encoded: [K, N, D] float, the prompts' encoded tokens.
        embeddings: [K, C] float, the prompts' mean coarse features, which tell categories apart.
        reference: usual features and memory.
    """

    prompts: Tensor
    encoded: Tensor
    embeddings: Tensor
    reference: Reference


class Detector:
    """One model for all categories.

    Args:
        network: trained, on the device that it is to run on.
        spec: description; its categories are those of `prompts` and `references`.
        prompts: [K, H, W, 3] uint8 at input size, by category.
        references: usual features and memory, by category.

    Example:
        >>> detector = Detector.load("artifacts/model")  # doctest: +SKIP
        >>> detector.predict(["part.png"], category="bottle")[0].is_anomalous  # doctest: +SKIP
        True
    """

    def __init__(
        self,
        network: Network,
        *,
        spec: DetectorSpec,
        prompts: Mapping[str, Tensor],
        references: Mapping[str, Reference],
    ) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.spec = spec
        self.digest = ""
        self._states = {
            name: _build_state(self.network, prompts[name], references[name])
            for name in sorted(spec.categories)
        }

    # -- files ------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls, path: Path | str, *, device: str = "cpu", expected_digest: str | None = None
    ) -> Self:
        """Detector of a model folder.

        Args:
            path: folder with `detector.json` and `model.safetensors`.
            device: torch device to run on.
            expected_digest: if given, the model must have this digest.

        Raises:
            CheckpointError: if the model is missing, damaged, of another format, or not the expected.
        """
        folder = Path(path)
        spec, tensors = read_model(folder)
        digest = hash_model(folder)
        if expected_digest is not None and digest != expected_digest:
            raise CheckpointError(f"{folder}: digest {digest}, but {expected_digest} was approved")
        network = Network(spec.model)
        own = {
            k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")
        }
        load_strictly(network, own, origin=str(folder))
        prompts, references = {}, {}
        for name in spec.categories:
            try:
                prompts[name] = tensors[f"category.{name}.prompts"]
                references[name] = Reference(
                    mean=tensors[f"category.{name}.mean"].to(device),
                    std=tensors[f"category.{name}.std"].to(device),
                    memory=tensors[f"category.{name}.memory"].float().to(device),
                )
            except KeyError as error:
                raise CheckpointError(f"{folder}: tensor {error} is missing") from error
        detector = cls(network.to(device), spec=spec, prompts=prompts, references=references)
        detector.digest = digest
        return detector

    def save(self, path: Path | str) -> None:
        """Write the model folder, whole or not at all, and set `digest`."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for name, state in self._states.items():
            tensors[f"category.{name}.prompts"] = state.prompts
            tensors[f"category.{name}.mean"] = state.reference.mean
            tensors[f"category.{name}.std"] = state.reference.std
            tensors[f"category.{name}.memory"] = state.reference.memory.half()
        self.digest = write_model(Path(path), self.spec, tensors)

    # -- what it is -------------------------------------------------------------------------------

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(self._states)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in px that images are resized to."""
        return self.network.params.input_size

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.network.coarse_mean.device

    def prompt_images(self, category: str) -> NDArray[np.uint8]:
        """The category's prompts, [K, H, W, 3] uint8, RGB, at input size."""
        prompts: NDArray[np.uint8] = self.state(category).prompts.cpu().numpy()
        return prompts

    def state(self, category: str) -> CategoryState:
        """Tensors of a category.

        Raises:
            DataError: if the detector does not know it.
        """
        if category not in self._states:
            known = ", ".join(self.categories)
            raise DataError(f"unknown category {category!r}; this model knows {known}")
        return self._states[category]

    # -- use --------------------------------------------------------------------------------------

    def predict(
        self, images: Sequence[ImageLike], *, category: str | None = None
    ) -> list[Prediction]:
        """Scores, maps, regions and verdicts.

        Images are judged one at a time, so that what is said of one never depends on the others.

        Args:
            images: paths, PIL images, uint8 arrays [H, W, 3] or [H, W], or tensors [3, H, W] (uint8
                0..255, or float 0..1); RGB, any size.
            category: of all the images; None to tell each one's from the prompts.

        Raises:
            DataError: if the category is unknown.
            ImageError: if an image cannot be read.
        """
        return [self._predict(image, category) for image in images]

    def tell_category(self, image: NDArray[np.uint8]) -> str:
        """Category whose prompt looks most like an image [H, W, 3] uint8."""
        with torch.inference_mode():
            return self._tell_category(self._embed(image))

    def measure_distances(self, image: NDArray[np.uint8]) -> dict[str, float]:
        """How far an image [H, W, 3] uint8 looks from each category's nearest prompt."""
        with torch.inference_mode():
            return self._measure_distances(self._embed(image))

    def score_image(self, image: NDArray[np.uint8], category: str) -> NDArray[np.float32]:
        """Map [h, w] float32 at input size of an image [H, W, 3] uint8 of any size."""
        with torch.inference_mode():
            maps = self.draw_maps(self._embed(image), category)
            return self._fuse(maps, category)[0].float().cpu().numpy()

    def draw_maps(self, features: Features, category: str) -> dict[str, Tensor]:
        """Every kind of map, [B, H, W] float each, of features of images of one category."""
        state = self.state(category)
        encoded_query = self.network.encode(features.coarse)  # [B, N, D]
        nearest = self._nearest_prompt(features, state)  # [B]
        restored = self.network.decode(encoded_query, state.encoded[nearest])  # [B, C, h, w]
        return draw_maps(self.network, features, restored, state.reference)

    def reconstruct(self, query: Tensor, prompt: Tensor) -> ReconstructionResult:
        """Reconstruct neck features by a prompt's, with the paper's refiner.

        Args:
            query: [B, C, h, w] float, coarse features of images.
            prompt: [B, C, h, w] float, coarse features of one normal image for each.

        Raises:
            DataError: if the refiner needs more than the reconstruction error.
        """
        if self.network.params.refiner != "paper":
            raise DataError("reconstruct needs a model with `model.refiner: paper`; use predict")
        with torch.inference_mode():
            encoded = self.network.encode(torch.cat([query, prompt])).chunk(2)
            restored = self.network.decode(encoded[0], encoded[1])
            empty = Reference.measure(query[:, :0])
            maps = draw_maps(self.network, Features(query, query[:, :0]), restored, empty)
        return ReconstructionResult(restored, maps["restoration"], maps["refined"].sigmoid())

    def add_category(self, name: str, normal_images: Sequence[ImageLike]) -> Detector:
        """A detector that knows one category more, without training.

        Args:
            name: of the new category.
            normal_images: at least one; the first ones become prompts, thresholds come from all.

        Returns:
            A new detector that shares this one's network; the category is marked as provisional.

        Raises:
            DataError: if the name is taken or no image is given.
        """
        from onenip.calibration import add_category

        return add_category(self, name, [to_array(image) for image in normal_images])

    def _predict(self, image: ImageLike, category: str | None) -> Prediction:
        started_at = time.perf_counter()
        pixels = to_array(image)
        with torch.inference_mode():
            features = self._embed(pixels)
            told = category is None
            name = self._tell_category(features) if category is None else category
            fused = self._fuse(self.draw_maps(features, name), name)  # [1, H, W]
            score = float(score_maps(fused, pooling_px=self.spec.calibrate.pooling_px)[0])
            native = resize_map(fused[0].cpu().numpy(), (pixels.shape[0], pixels.shape[1]))
        known = self.spec.categories[name]
        return Prediction(
            category=name,
            category_was_told=told,
            score=score,
            threshold=known.image_threshold,
            is_anomalous=score > known.image_threshold,
            map=native,
            input_map=fused[0].cpu().numpy(),
            pixel_threshold=known.pixel_threshold,
            regions=find_regions(native, threshold=known.pixel_threshold),
            seconds=time.perf_counter() - started_at,
        )

    def _embed(self, image: NDArray[np.uint8]) -> Features:
        resized = torch.tensor(resize_image(image, self.input_size))
        return self.network.embed(resized[None].to(self.device))

    def _fuse(self, maps: Mapping[str, Tensor], category: str) -> Tensor:
        return fuse_for(maps, self.spec.calibrate, self.spec.categories[category])

    def _nearest_prompt(self, features: Features, state: CategoryState) -> Tensor:
        return torch.cdist(embed_globally(features.coarse), state.embeddings).argmin(1)

    def _tell_category(self, features: Features) -> str:
        distances = self._measure_distances(features)
        return min(distances, key=lambda name: distances[name])

    def _measure_distances(self, features: Features) -> dict[str, float]:
        query = embed_globally(features.coarse)
        return {
            name: float(torch.cdist(query, state.embeddings).min())
            for name, state in self._states.items()
        }


def draw_maps(
    network: Network,
    features: Features,
    restored: Tensor,
    reference: Reference,
    *,
    excluded: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every kind of map of a batch of one category.

    Args:
        network: in eval mode.
        features: of the queries.
        restored: their reconstruction, [B, C, h, w].
        reference: the category's.
        excluded: [B, M] bool, memory tokens that an image may not match, being its own.

    Returns:
        `restoration`, `refined` (logits) and, with a memory, `distance`: [B, H, W] float each.
    """
    fine = reference.standardize(features.fine)
    maps = {"restoration": network.restoration_map(restored, features.coarse)}
    distance, matched = fine[:, :0].flatten(1), fine[:, :0]
    if network.uses_memory:
        match = network.match(network.average_tokens(fine), reference.memory, excluded=excluded)
        distance, matched = match.distance, reference.memory[match.index]
        maps["distance"] = network.distance_map(distance)
    logits = network.refine(
        coarse=features.coarse, restored=restored, fine=fine, distance=distance, matched=matched
    )
    maps["refined"] = network.enlarge(logits)
    return maps


def fuse_for(maps: Mapping[str, Tensor], params: CalibrateParams, category: CategorySpec) -> Tensor:
    """Fused map [B, H, W] by a category's own scales."""
    return fuse_maps(
        maps, params=params, scales=category.scales, fusion_constant=category.fusion_constant
    )


def embed_globally(coarse: Tensor) -> Tensor:
    """Mean of coarse features [B, C, h, w] over positions, [B, C]: what an image looks like."""
    return coarse.float().mean((2, 3))


def resize_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map [h, w] at another size (H, W) in px, bilinear: [H, W] float32."""
    if values.shape == size:
        return values
    resized = functional.interpolate(
        torch.tensor(values)[None, None], size=size, mode="bilinear", align_corners=False
    )
    return resized[0, 0].numpy()


def to_array(image: ImageLike) -> NDArray[np.uint8]:
    """Any image as [H, W, 3] uint8, RGB.

    Raises:
        ImageError: if a path cannot be read.
        DataError: if an array or tensor has another shape or type.
    """
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, Tensor):
        return _tensor_to_array(image.detach().cpu())
    array = np.asarray(image)
    if array.ndim == _GREY_AXES:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(
            f"an image array must be [H, W, 3] uint8, not {list(array.shape)} {array.dtype}"
        )
    return array


def _tensor_to_array(values: Tensor) -> NDArray[np.uint8]:
    if values.ndim != 3 or values.shape[0] != 3 or not values.numel():
        raise DataError(f"an image tensor must be [3, H, W], not {list(values.shape)}")
    if values.is_floating_point():
        low, high = float(values.min()), float(values.max())
        if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # NaN is neither
            raise DataError(f"a float image tensor must be in 0..1, not {low:g}..{high:g}")
        values = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise DataError(f"an image tensor must be uint8 or float, not {values.dtype}")
    return values.permute(1, 2, 0).contiguous().numpy()


def load_strictly(network: Network, state: dict[str, Any], *, origin: str) -> None:
    """Load all of a network's tensors.

    Raises:
        CheckpointError: naming the first missing, unexpected or misshapen tensor.
    """
    own = network.state_dict()
    for key in own:
        if key not in state:
            raise CheckpointError(f"{origin}: tensor {key} is missing")
        if state[key].shape != own[key].shape:
            expected, found = tuple(own[key].shape), tuple(state[key].shape)
            raise CheckpointError(f"{origin}: tensor {key} has shape {found}, not {expected}")
    for key in state:
        if key not in own:
            raise CheckpointError(f"{origin}: unexpected tensor {key}")
    network.load_state_dict(state)


def _build_state(network: Network, prompts: Tensor, reference: Reference) -> CategoryState:
    device = network.coarse_mean.device
    with torch.inference_mode():
        coarse = torch.cat(
            [network.embed(prompt[None].to(device)).coarse for prompt in prompts]
        )  # [K, C, h, w]
        encoded = torch.cat([network.encode(one[None]) for one in coarse])  # [K, N, D]
    return CategoryState(prompts, encoded, embed_globally(coarse), reference)

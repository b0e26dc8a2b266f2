"""The detector: a network and what it knows of each category, from images to verdicts.

Knows images and categories; knows nothing of training, data sets on disk, or registries.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels, `D` width.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onenip.calibration import calibrate_given
from onenip.category import CategoryState, build_state, draw_maps, embed_globally, fuse_for
from onenip.errors import CheckpointError, DataError
from onenip.folding import fold_network
from onenip.image_like import ImageLike, to_array
from onenip.images import resize_image
from onenip.model_file import DetectorSpec, hash_model, read_model, write_model
from onenip.network import Features, Network, Reference
from onenip.prediction import Prediction as Prediction
from onenip.regions import find_regions
from onenip.scoring import resize_map, score_maps


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
        self.folded = fold_network(self.network)  # what everything is scored with
        self.spec = spec
        self.digest = ""
        self._states = {
            name: build_state(self.folded, prompts[name], references[name])
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
        encoded_query = self.folded.encode(features.coarse)  # [B, N, D]
        nearest = self._nearest_prompt(features, state)  # [B]
        restored = self.folded.decode(encoded_query, state.encoded[nearest])  # [B, C, h, w]
        return draw_maps(self.folded, features, restored, state.reference)

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
            encoded = self.folded.encode(torch.cat([query, prompt])).chunk(2)
            restored = self.folded.decode(encoded[0], encoded[1])
            empty = Reference.measure(query[:, :0])
            maps = draw_maps(self.folded, Features(query, query[:, :0]), restored, empty)
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
        if not re.fullmatch(r"\w[\w .-]*", name):
            raise DataError(f"category {name!r}: a name is letters, digits, and any of `_ .-`")
        if name in self._states:
            raise DataError(f"category {name!r} is there already")
        if not normal_images:
            raise DataError(f"category {name!r} needs at least one normal image")
        state, known = calibrate_given(
            self.folded, self.spec.calibrate, [to_array(image) for image in normal_images]
        )
        states = {**self._states, name: state}
        return type(self)(
            self.network,
            spec=self.spec.model_copy(update={"categories": {**self.spec.categories, name: known}}),
            prompts={other: one.prompts for other, one in states.items()},
            references={other: one.reference for other, one in states.items()},
        )

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
            is_provisional=known.is_provisional,
        )

    def _embed(self, image: NDArray[np.uint8]) -> Features:
        resized = torch.tensor(resize_image(image, self.input_size))
        return self.folded.embed(resized[None].to(self.device))

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

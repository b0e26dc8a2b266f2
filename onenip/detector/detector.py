"""The detector: a network and the state of each category, from images to predictions.

Knows images and categories; knows no training, no data set on disk and no registry.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels, `D` width.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onenip.data.labels import check_category, find_category_problem
from onenip.detector.calibration import calibrate_given
from onenip.detector.category import (
    CategoryState,
    draw_fused,
    draw_restored,
    dump_state,
    embed_globally,
    measure_distances,
    measure_reach,
    read_state,
)
from onenip.detector.devices import choose_device, keep_freed_memory
from onenip.detector.embedding import Embedder
from onenip.detector.image_like import ImageLike, decide_given, to_array
from onenip.detector.operating_points import decide_added, move
from onenip.detector.prediction import Prediction, check_belongs, choose_category, make_prediction
from onenip.detector.scoring import Fusion, score_maps
from onenip.errors import CheckpointError, DataError, UnknownCategoryError
from onenip.images import SampleRange, resize_image, share_range
from onenip.model.file import DetectorSpec, read_model, write_model
from onenip.model.folding import fold_network
from onenip.model.network import CategoryStatistics, Features, Network


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
        spec: description; its categories are those of `states`.
        states: tensors by category, on the network's device.
        folded: what `fold_network` makes of the network; None to fold it now.

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
        states: Mapping[str, CategoryState],
        folded: Network | None = None,
    ) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.folded = folded or fold_network(self.network)  # every image is scored with this one
        self.spec = spec
        self.digest = ""
        # keeps features of the images that are judged one by one
        self.embedder: Embedder | None = None
        self._states = {name: states[name] for name in sorted(spec.categories)}
        self._embeddings = [state.embeddings for state in self._states.values()]
        self._reaches = {
            name: measure_reach(one.embeddings, normals=len(spec.categories[name].normal_names))
            for name, one in self._states.items()
        }

    # -- files ------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path | str, *, device: str | None = None) -> Self:
        """Detector of a model folder; from then on this process keeps freed memory (`keep_freed_memory`).

        Args:
            path: folder with `detector.json` and `model.safetensors`.
            device: torch device to run on; None for that of ONENIP_DEVICE, or else the CPU.

        Raises:
            DeviceError: if this machine has no such device.
            CheckpointError: if the model is missing, damaged or of another format.
        """
        folder = Path(path)
        chosen = choose_device(device)
        keep_freed_memory()
        spec, tensors, digest = read_model(folder)
        for name in spec.categories:
            if problem := find_category_problem(name):
                raise CheckpointError(f"{folder}: category {name[:60]!a}: {problem}")
        try:
            network = Network(spec.model)
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: the network cannot be built: {error}") from error
        own = {
            k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")
        }
        load_strictly(network, own, origin=str(folder))
        network = network.to(chosen).eval().to(memory_format=torch.channels_last)
        folded = fold_network(network)
        states: dict[str, CategoryState] = {}
        for name in spec.categories:
            zooms = spec.categories[name].zoom > 1
            states[name] = read_state(folded, tensors, name, zooms=zooms, origin=str(folder))
        detector = cls(network, spec=spec, states=states, folded=folded)
        detector.digest = digest
        return detector

    def save(self, path: Path | str) -> None:
        """Write the model folder, whole or not at all, and set `digest`."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for name, state in self._states.items():
            tensors |= dump_state(name, state)
        self.digest = write_model(Path(path), self.spec, tensors)

    # -- properties -------------------------------------------------------------------------------

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(self._states)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the maps in px, and of the images that go in where there is no zoom."""
        return self.network.params.input_size

    def zoomed_size(self, category: str) -> tuple[int, int]:
        """(height, width) in px that images of a category are resized to.

        Raises:
            DataError: if the detector does not know it.
        """
        self.state(category)
        return self.spec.model.zoomed_size(self.spec.categories[category].zoom)

    @property
    def device(self) -> torch.device:
        """Device that it runs on."""
        return self.network.coarse_mean.device

    def sample_range(self, category: str | None) -> SampleRange | None:
        """Black and white of a category's samples of more than 8 bits; None for what all have in common.

        Raises:
            DataError: if the detector does not know the category.
        """
        if category is None:
            return share_range(known.sample_range for known in self.spec.categories.values())
        self.state(category)
        return self.spec.categories[category].sample_range

    @property
    def reaches(self) -> dict[str, float | None]:
        """By category, the distance from its prompts up to which an image may show it; None: not known."""
        return dict(self._reaches)

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
            raise UnknownCategoryError(category, self.categories)
        return self._states[category]

    # -- use --------------------------------------------------------------------------------------

    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        category: str | None = None,
        batch_size: int = 1,
    ) -> list[Prediction]:
        """Scores, maps, regions and verdicts.

        With a batch size of 1 the prediction of an image never depends on other images. Larger batches
        may change the last bits.

        Args:
            images: paths, PIL images, uint8 arrays [H, W, 3] or [H, W], or tensors [3, H, W] (uint8
                0..255, or float 0..1); RGB, any size.
            category: of all the images; None to infer each one's from the prompts.
            batch_size: images that are judged in one pass.

        Raises:
            DataError: if the category is unknown.
            ImageError: if an image cannot be read, or none of the categories is inferred from it.
        """
        starts = range(0, len(images), batch_size)
        batches = (self._predict(images[at : at + batch_size], category) for at in starts)
        return [prediction for batch in batches for prediction in batch]

    def infer_category(self, image: NDArray[np.uint8]) -> str:
        """Category whose nearest prompt is nearest to an image [H, W, 3] uint8.

        Raises:
            ForeignImageError: if it looks like none of them.
        """
        return choose_category(self.measure_distances(image), self.reaches)

    def measure_distances(self, image: NDArray[np.uint8]) -> dict[str, float]:
        """Distance of an image [H, W, 3] uint8 from each category's nearest prompt, by category."""
        with torch.inference_mode():
            return self._measure_distances(self._embed([image], self.input_size))

    def score_images(
        self, images: Sequence[NDArray[np.uint8]], category: str
    ) -> list[tuple[NDArray[np.float32], float]]:
        """Fused map [h, w] at input size and image score of each image [H, W, 3] uint8, in one pass.

        Raises:
            DataError: if the category is unknown.
        """
        with torch.inference_mode():
            scored = self._score(self._embed(images, self.zoomed_size(category)), category)
        return [(fused, score) for fused, score, _ in scored]

    def score_prompts(self, category: str) -> list[float]:
        """Image scores of the category's prompts as they are kept, at input size: without its details.

        Raises:
            DataError: if the category is unknown.
        """
        with torch.inference_mode():
            prompts = self._embed(self.prompt_images(category), self.input_size)
            return [score for _, score, _ in self._score(prompts, category)]

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
            empty = CategoryStatistics.measure([query[0, :0]])
            maps = draw_restored(self.folded, Features(query, query[:, :0]), restored, empty)
        return ReconstructionResult(restored, maps["restoration"], maps["refined"].sigmoid())

    def add_category(
        self,
        name: str,
        normal_images: Sequence[ImageLike],
        *,
        siblings: NDArray[np.bool_] | None = None,
        sample_range: SampleRange | None = None,
    ) -> Detector:
        """A detector with one more category, without training.

        Args:
            name: of the new category.
            normal_images: at least one; prompts, memory and thresholds come from them.
            siblings: [n, n] bool, images that show the same thing in part, as tiles of one photograph do:
                they are not calibrated with each other. None if no two are.
            sample_range: of samples of more than 8 bits; None to decide it on the files among the images.

        Returns:
            A new detector that shares this one's network; the category is marked as provisional.

        Raises:
            DataError: if the name is taken or no image is given.
            ImageError: if an image cannot be read.
        """
        name = check_category(name)
        if name in self._states:
            raise DataError(f"category {name!r} is there already")
        if not normal_images:
            raise DataError(f"category {name!r} needs at least one normal image")
        if sample_range is None:
            sample_range = decide_given(normal_images)
        state, measured = calibrate_given(
            self.folded,
            self.spec.calibrate,
            [to_array(image, sample_range) for image in normal_images],
            siblings=siblings,
        )
        measured = measured.model_copy(update={"sample_range": sample_range})
        known = decide_added({**self.spec.categories, name: measured}, name, self.spec.calibrate)
        return type(self)(
            self.network,
            spec=self.spec.model_copy(update={"categories": {**self.spec.categories, name: known}}),
            states={**self._states, name: state},
            folded=self.folded,
        )

    def with_threshold(self, category: str, value: float) -> Self:
        """The same model with another image threshold for a category, and what that promises.

        Network and tensors are shared.

        Args:
            category: known to the detector.
            value: an image scoring above it is anomalous.

        Raises:
            DataError: if the detector does not know the category, or the value is not finite.
        """
        self.state(category)
        if not math.isfinite(value):
            raise DataError(f"{category}: a threshold is a finite number, not {value}")
        known = move(self.spec.categories, category, value)
        changed = copy.copy(self)
        changed.spec = self.spec.model_copy(
            update={"categories": {**self.spec.categories, category: known}}
        )
        return changed

    def _predict(self, images: Sequence[ImageLike], category: str | None) -> list[Prediction]:
        """Predictions of images that go through the network together."""
        started_at = time.perf_counter()
        sample_range = self.sample_range(category)
        pixels = [to_array(image, sample_range) for image in images]
        with torch.inference_mode():
            features = None if category else self._embed(pixels, self.input_size)
            distances = [
                self._measure_distances(features[i : i + 1]) if features else {}
                for i in range(len(pixels))
            ]
            names = [category or choose_category(own, self.reaches) for own in distances]
            scored: dict[int, tuple[NDArray[np.float32], float, float]] = {}  # by position
            for name in dict.fromkeys(names):
                rows = [i for i, other in enumerate(names) if other == name]
                size = self.zoomed_size(name)
                if features is None or size != self.input_size:
                    own = self._embed([pixels[i] for i in rows], size)
                else:
                    own = features if len(rows) == len(names) else features[rows]
                scored |= zip(rows, self._score(own, name), strict=True)
        predictions = [
            make_prediction(
                scored[i][0],
                score=scored[i][1],
                size=(image.shape[0], image.shape[1]),
                input_size=self.input_size,
                limits=self.spec.categories[names[i]],
                category=names[i],
                category_inferred=category is None,
                seconds=0.0,
                unlike_share=scored[i][2],
            )
            for i, image in enumerate(pixels)
        ]
        if category is None:
            for prediction, measured in zip(predictions, distances, strict=True):
                check_belongs(prediction, measured, self.reaches)
        seconds = (time.perf_counter() - started_at) / len(pixels)
        return [replace(prediction, seconds=seconds) for prediction in predictions]

    def _score(
        self, features: Features, category: str
    ) -> list[tuple[NDArray[np.float32], float, float]]:
        """Fused map [h, w] at input size, score and unlike share of each image of one category."""
        state, known = self.state(category), self.spec.categories[category]
        fusion = Fusion(self.spec.calibrate, known.scales, known.fusion_constant)
        fused, unlike = draw_fused(self.folded, features, state, fusion)  # [B, h, w], [B]
        scores = score_maps(fused, self.spec.calibrate)
        return list(zip(fused.float().cpu().numpy(), scores.tolist(), unlike.tolist(), strict=True))

    def _embed(
        self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], size: tuple[int, int]
    ) -> Features:
        if self.embedder is not None and len(images) == 1:
            return self.embedder.standardize(self.embedder.embed(resize_image(images[0], size)))
        resized = np.stack([resize_image(image, size) for image in images])
        return self.folded.embed(torch.from_numpy(resized).to(self.device))

    def _measure_distances(self, features: Features) -> dict[str, float]:
        query = embed_globally(features.coarse)
        if not self._states:
            return {}
        distances = measure_distances(query, torch.cat(self._embeddings))[0]  # [prompts of all]
        parts = distances.split([len(one) for one in self._embeddings])
        return {name: float(part.min()) for name, part in zip(self._states, parts, strict=True)}


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

"""Exported files, run with numpy, pillow and scipy and the file's own runtime. Imports no torch.

Promises the verdicts of the exported detector, but for rounding in the runtime. (TorchScript files
are the exception: their runtime is torch, which is then imported.)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onenip.detector.image_like import ImageLike, to_array
from onenip.detector.prediction import Prediction, make_prediction
from onenip.errors import CheckpointError, DataError
from onenip.images import hash_file, resize_image
from onenip.inference.tiles import score_in_tiles

FORMAT_VERSIONS = (1, 2)  # 2 judges in tiles

# [1, H, W, 3] uint8 and [1] int64 to map [1, H, W], score [1] and distances [S], float32
Run = Callable[[NDArray[np.uint8], NDArray[np.int64]], list[NDArray[np.float32]]]


@dataclass(frozen=True)
class ExportedCategory:
    """A category of an exported file.

    Attributes:
        number: that the graph knows it by.
        image_threshold: an image scoring above it is anomalous.
        pixel_threshold: a pixel of the map above it is defective.
        is_provisional: whether the category was added without training.
    """

    number: int
    image_threshold: float
    pixel_threshold: float
    is_provisional: bool


class EdgeDetector:
    """An exported detector; predicts as `Detector.predict` does.

    Args:
        run: the graph.
        description: content of the file that `onenip export` wrote beside it.

    Example:
        >>> EdgeDetector.load("bottle.onnx").predict(["part.png"])[0].score  # doctest: +SKIP
        1.93
    """

    def __init__(self, run: Run, description: dict[str, Any]) -> None:
        self._run = run
        self._known = {
            name: ExportedCategory(
                number=known["number"],
                image_threshold=known["image_threshold"],
                pixel_threshold=known["pixel_threshold"],
                is_provisional=known.get("is_provisional", False),
            )
            for name, known in description["categories"].items()
        }
        self.input_size = (int(description["input_size"][0]), int(description["input_size"][1]))
        self.digest = str(description["model_digest"])
        self._tiles: dict[str, Any] = description.get("tiles", {})

    @classmethod
    def load(cls, path: Path | str, *, threads: int | None = None) -> Self:
        """An exported file with the description beside it.

        Args:
            path: .onnx, .xml (with its .bin) or .pt.
            threads: that the runtime may use; None leaves it to OMP_NUM_THREADS, or all cores.

        Raises:
            CheckpointError: if one is missing, damaged, of another format, or its runtime is not
                installed.
        """
        file = Path(path)
        description = read_description(file)
        if threads is None:
            threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        openers = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt": _open_torchscript}
        try:
            return cls(openers[file.suffix](file, threads), description)
        except KeyError as error:
            raise CheckpointError(f"{file}: not an exported file (.onnx, .xml, .pt)") from error
        except ModuleNotFoundError as error:
            raise CheckpointError(f"{file}: needs {error.name}, which is not installed") from error

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(sorted(self._known))

    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        category: str | None = None,
    ) -> list[Prediction]:
        """Scores, maps, regions and verdicts, one image at a time.

        Args:
            images: as `Detector.predict` takes them.
            category: of all the images; None to infer each one's from the prompts.

        Raises:
            DataError: if the category is unknown, or an array is no image.
            ImageError: if a file cannot be read.
        """
        if category is not None and category not in self._known:
            raise DataError(
                f"unknown category {category!r}; this model knows {', '.join(self.categories)}"
            )
        return [self._predict(image, category) for image in images]

    def _predict(self, image: ImageLike, category: str | None) -> Prediction:
        started_at = time.perf_counter()
        pixels = to_array(image)
        name = category or self._infer_category(pixels)
        if self._tiles:
            fused, score = score_in_tiles(
                pixels,
                lambda tiles: (self._score(tile, name) for tile in tiles),
                tile_px=self._tiles["tile_px"],
                overlap=self._tiles["overlap"],
            )
        else:
            fused, score = self._score(pixels, name)
        return make_prediction(
            fused,
            score=score,
            size=(pixels.shape[0], pixels.shape[1]),
            input_size=self.input_size,
            limits=self._known[name],
            category=name,
            category_inferred=category is None,
            seconds=time.perf_counter() - started_at,
        )

    def _score(self, pixels: NDArray[np.uint8], category: str) -> tuple[NDArray[np.float32], float]:
        """Map [h, w] at input size and score of an image [H, W, 3] of any size."""
        resized = resize_image(pixels, self.input_size)[None]  # [1, h, w, 3]
        outputs = self._run(resized, self._number(category))
        return outputs[0][0], float(outputs[1][0])

    def _infer_category(self, pixels: NDArray[np.uint8]) -> str:
        if len(self._known) == 1:
            return self.categories[0]
        resized = resize_image(pixels, self.input_size)[None]
        distances = self._run(resized, self._number(self.categories[0]))[2]
        numbers = {known.number: name for name, known in self._known.items()}
        return numbers[int(distances.argmin())]

    def _number(self, category: str) -> NDArray[np.int64]:
        return np.array([self._known[category].number], np.int64)


def read_description(file: Path) -> dict[str, Any]:
    """Description beside an exported file, once the checksums in it have been found right.

    Raises:
        CheckpointError: if something is missing, damaged or of another format.
    """
    beside = file.with_name(f"{file.name}.json")
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        content: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{beside}: missing; it belongs to {file.name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{beside}: cannot be read: {error}") from error
    if content.get("format_version") not in FORMAT_VERSIONS:
        raise CheckpointError(
            f"{beside}: format version {content.get('format_version')}, this onenip reads "
            f"{FORMAT_VERSIONS[0]} to {FORMAT_VERSIONS[-1]}"
        )
    for name, digest in content["files"].items():
        part = file.parent / name
        if not part.is_file() or hash_file(part) != digest:
            raise CheckpointError(f"{part}: missing, or not what was exported")
    return content


def _open_onnx(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.uint8], category: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        return list(session.run(None, {"image": image, "category": category}))

    return run


def _open_openvino(file: Path, threads: int) -> Run:
    import openvino

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(str(file), "CPU", config)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"{file}: OpenVINO cannot run it: {reason}") from error
    request = compiled.create_infer_request()

    def run(image: NDArray[np.uint8], category: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        found = request.infer({"image": image, "category": category})
        return [np.array(found[output]) for output in compiled.outputs]

    return run


def _open_torchscript(file: Path, threads: int) -> Run:
    import importlib

    torch = importlib.import_module("torch")  # the runtime of this one format
    if threads:
        torch.set_num_threads(threads)
    script = torch.jit.load(str(file), map_location="cpu").eval()

    def run(image: NDArray[np.uint8], category: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            found = script(torch.tensor(image), torch.tensor(category))
        return [one.numpy() for one in found]

    return run

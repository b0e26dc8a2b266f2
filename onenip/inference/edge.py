"""Exported files, run with numpy, pillow and scipy and the file's own runtime. Imports no torch.

Promises the verdicts of the exported detector, but for rounding in the runtime.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onenip.data.labels import check_category
from onenip.detector.image_like import ImageLike, to_array
from onenip.detector.prediction import Prediction, check_belongs, choose_category, make_prediction
from onenip.errors import CheckpointError, DataError, UnknownCategoryError
from onenip.images import SampleRange, resize_image, share_range
from onenip.inference.tiles import Tiling, score_in_tiles

FORMAT_VERSION = 4

# [1, H, W, 3] uint8 and [1] int64 to map [1, H, W], score [1], distances [S], unlike share [1], float32; an
# earlier version's files lack the last
Run = Callable[[NDArray[np.uint8], NDArray[np.int64]], list[NDArray[np.float32]]]


@dataclass(frozen=True)
class ExportedCategory:
    """A category of an exported file.

    Attributes:
        number: index of the category in the graphs.
        input_size: (height, width) in px of the images that its graph takes.
        image_threshold: an image scoring above it is anomalous.
        pixel_threshold: a pixel of the map above it is defective.
        is_provisional: whether the category was added without training.
        review_threshold: an image scoring above it, but not anomalous, is to be reviewed; None: none is.
        normals_needed: further normal images that a verdict needs; above 0 it is `unsure`.
        sample_range: black and white of samples of more than 8 bits.
        reach: distance from its prompts up to which an image may show it; None where that is not known.

    Raises:
        ValueError: if a number is not finite.
    """

    number: int
    input_size: tuple[int, int]
    image_threshold: float
    pixel_threshold: float
    is_provisional: bool
    review_threshold: float | None = None
    normals_needed: int = 0
    sample_range: SampleRange | None = None
    reach: float | None = None

    def __post_init__(self) -> None:
        numbers = [self.image_threshold, self.pixel_threshold, *(self.sample_range or ())]
        numbers += [one for one in (self.review_threshold, self.reach) if one is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"numbers that are not finite: {numbers}")


@dataclass(frozen=True)
class Description:
    """Content of the file that `onenip export` writes beside an exported file.

    Attributes:
        model_digest: of the exported model.
        map_size: (height, width) of the maps in px.
        input_size: (height, width) in px of the image that the first graph takes, which also tells distances
            from prompts.
        categories: by name.
        tiling: for a file that judges in tiles, else None.
        sha256: of each part of the exported file, by the end of its name: renaming a file with its parts
            is fine.
    """

    model_digest: str
    map_size: tuple[int, int]
    input_size: tuple[int, int]
    categories: dict[str, ExportedCategory]
    tiling: Tiling | None = None
    sha256: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Self:
        """Description from plain values.

        Raises:
            KeyError: if a value is missing; TypeError or ValueError if one is of another kind.
            DataError: if tiles are impossible.
        """
        tiles = content.get("tiles")
        return cls(
            model_digest=str(content["model_digest"]),
            map_size=_to_size(content["map_size"]),
            input_size=_to_size(content["input_size"]),
            categories={
                check_category(name): ExportedCategory(
                    **{
                        **known,
                        "input_size": _to_size(known["input_size"]),
                        "sample_range": _parse_range(known),
                    }
                )
                for name, known in content["categories"].items()
            },
            tiling=None if tiles is None else Tiling(**tiles),
            sha256=dict(content["sha256"]),
        )


def _parse_range(known: Mapping[str, Any]) -> SampleRange | None:
    found = known.get("sample_range")
    if found is None:
        return None
    black, white = map(float, found)
    return black, white


class EdgeDetector:
    """An exported detector; predicts as `Detector.predict` does.

    Args:
        graphs: by the size (height, width) in px of the image that each takes.
        description: of the graphs.

    Example:
        >>> EdgeDetector.load("bottle.onnx").predict(["part.png"])[0].score  # doctest: +SKIP
        1.93
    """

    def __init__(self, graphs: Mapping[tuple[int, int], Run], description: Description) -> None:
        self._graphs = graphs
        self._known = description.categories
        self._reaches = {name: known.reach for name, known in self._known.items()}
        self._tiling = description.tiling
        self.input_size = description.input_size
        self.map_size = description.map_size
        self.digest = description.model_digest

    @classmethod
    def load(cls, path: Path | str, *, threads: int | None = None) -> Self:
        """An exported file with the description beside it.

        What runs are the very bytes whose checksums were compared.

        Args:
            path: .onnx, or .xml with its .bin.
            threads: that the runtime may use; None leaves it to OMP_NUM_THREADS, or all cores.

        Raises:
            CheckpointError: if a file is missing, damaged, of another format, or its runtime is not
                installed.
        """
        file = Path(path)
        openers = {".onnx": _open_onnx, ".xml": _open_openvino}
        if file.suffix not in openers:
            raise CheckpointError(f"{file}: not an exported file (.onnx, .xml)")
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file")
        description = read_description(file)
        first = description.input_size
        sizes = {first} | {known.input_size for known in description.categories.values()}
        files = {size: locate_graph(file, size, first=first) for size in sorted(sizes)}
        parts = {size: _read_parts(part, file.stem, description) for size, part in files.items()}
        if threads is None:
            threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        try:
            graphs = {
                size: openers[file.suffix](files[size], parts[size], threads)
                for size in sorted(sizes)
            }
            return cls(graphs, description)
        except ModuleNotFoundError as error:
            raise CheckpointError(f"{file}: needs {error.name}, which is not installed") from error

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(sorted(self._known))

    def sample_range(self, category: str | None) -> SampleRange | None:
        """As `Detector.sample_range`.

        Raises:
            UnknownCategoryError: if the category is unknown.
        """
        if category is None:
            return share_range(known.sample_range for known in self._known.values())
        if category not in self._known:
            raise UnknownCategoryError(category, self.categories)
        return self._known[category].sample_range

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
        sample_range = self.sample_range(category)
        return [self._predict(image, category, sample_range) for image in images]

    def _predict(
        self, image: ImageLike, category: str | None, sample_range: SampleRange | None
    ) -> Prediction:
        started_at = time.perf_counter()
        pixels = to_array(image, sample_range)
        distances = {} if category else self._measure_distances(pixels)
        name = category or choose_category(distances, self._reaches)
        unlike = 0.0
        if self._tiling is not None:
            fused, score = score_in_tiles(
                pixels, lambda tiles: (self._score(tile, name)[:2] for tile in tiles), self._tiling
            )
        else:
            fused, score, unlike = self._score(pixels, name)
        prediction = make_prediction(
            fused,
            score=score,
            size=(pixels.shape[0], pixels.shape[1]),
            input_size=self.map_size,
            limits=self._known[name],
            category=name,
            category_inferred=category is None,
            seconds=time.perf_counter() - started_at,
            unlike_share=unlike,
        )
        if distances:
            check_belongs(prediction, distances, self._reaches)
        return prediction

    def _score(
        self, pixels: NDArray[np.uint8], category: str
    ) -> tuple[NDArray[np.float32], float, float]:
        """Map [h, w] at input size, score and unlike share of an image [H, W, 3] of any size."""
        size = self._known[category].input_size
        resized = resize_image(pixels, size)[None]  # [1, h, w, 3]
        outputs = self._graphs[size](resized, self._number(category))
        return outputs[0][0], float(outputs[1][0]), float(outputs[3][0]) if outputs[3:] else 0.0

    def _measure_distances(self, pixels: NDArray[np.uint8]) -> dict[str, float]:
        """Distance of an image from each category's prompts; 0 where it can show but one."""
        if len(self._known) == 1 and self._reaches[self.categories[0]] is None:
            return {self.categories[0]: 0.0}
        resized = resize_image(pixels, self.input_size)[None]
        first = self._graphs[self.input_size]
        distances = first(resized, self._number(self.categories[0]))[2]
        return {name: float(distances[known.number]) for name, known in self._known.items()}

    def _number(self, category: str) -> NDArray[np.int64]:
        return np.array([self._known[category].number], np.int64)


def _to_size(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def read_description(file: Path) -> Description:
    """Description beside an exported file, found whole by its seal.

    Raises:
        CheckpointError: if it is missing, damaged or of another format.
    """
    beside = file.with_name(f"{file.name}.json")
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{beside}: missing; it belongs to {file.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{beside}: cannot be read: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{beside}: format version {version}, but this onenip reads version {FORMAT_VERSION}: "
            "export the model again"
        )
    if content.get("seal") != compute_seal(content):
        raise CheckpointError(f"{beside}: damaged, or changed by hand: its seal does not fit")
    try:
        return Description.parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, DataError) as error:
        raise CheckpointError(f"{beside}: not a description of an export: {error!r}") from error


def compute_seal(content: Mapping[str, Any]) -> str:
    """sha256 over the values of a description but for its `seal`, as 64 hex digits."""
    values = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def locate_graph(file: Path, size: tuple[int, int], *, first: tuple[int, int]) -> Path:
    """File of the graph of an export that takes images of a size (height, width) in px.

    Args:
        file: the exported file, which is that of the size `first`.
        size: of the images.
        first: the smallest size of the export.
    """
    return file if size == first else file.with_suffix(f".{size[0]}x{size[1]}{file.suffix}")


def list_parts(file: Path) -> list[Path]:
    """The files that a graph consists of."""
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def _read_parts(file: Path, stem: str, description: Description) -> list[bytes]:
    """Content of each part of a graph of an exported file of that stem, found to be what was exported.

    Raises:
        CheckpointError: if a part is missing, damaged or of another export.
    """
    contents = []
    for part in list_parts(file):
        try:
            content = part.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{part}: no such file") from error
        except OSError as error:
            raise CheckpointError(f"{part}: cannot be read: {error}") from error
        expected = description.sha256.get(part.name.removeprefix(stem))
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(
                f"{part}: damaged, or of another export than {stem}{file.suffix}.json"
            )
        contents.append(content)
    return contents


def _open_onnx(file: Path, parts: Sequence[bytes], threads: int) -> Run:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(parts[0], options, ["CPUExecutionProvider"])
    except (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented) as e:
        reason = str(e).strip().splitlines()[-1]
        raise CheckpointError(f"{file}: ONNX Runtime cannot run it: {reason}") from e

    def run(image: NDArray[np.uint8], category: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        return list(session.run(None, {"image": image, "category": category}))

    return run


def _open_openvino(file: Path, parts: Sequence[bytes], threads: int) -> Run:
    import openvino

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(parts[0], parts[1]), "CPU", config)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"{file}: OpenVINO cannot run it: {reason}") from error
    request = compiled.create_infer_request()

    def run(image: NDArray[np.uint8], category: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        found = request.infer({"image": image, "category": category})
        return [np.array(found[output]) for output in compiled.outputs]

    return run

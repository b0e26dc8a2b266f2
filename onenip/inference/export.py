"""A detector as a file for other runtimes, ONNX or OpenVINO, with a description beside it.

The graph holds the backbone and, for each category, its prompts' encoded tokens, statistics, memory and
scales. It takes an image at input size and the category's number, and gives the map, the image score, the
distances from each category's prompts and the share of the image that is unlike the category. The description
beside it is what `onenip.inference.edge` needs.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from onenip.detector.category import (
    CategoryState,
    draw_fused,
    embed_globally,
    measure_distances,
)
from onenip.detector.detector import Detector
from onenip.detector.scoring import Fusion, score_maps
from onenip.errors import DataError, OneNIPError
from onenip.folders import write_whole
from onenip.images import hash_file
from onenip.inference.edge import FORMAT_VERSION, compute_seal, list_parts, locate_graph
from onenip.inference.tiling import TiledDetector
from onenip.model.file import MapScale
from onenip.model.network import CategoryStatistics

Format = Literal["onnx", "openvino"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml"}

_OPSET = 18
_OUTPUTS = ("map", "score", "distances", "unlike_share")


@dataclass(frozen=True)
class ExportedScale:
    """Scale of one kind of map of the category that the graph was asked for, as tensors."""

    mean: Tensor
    std: Tensor


class ExportedNetwork(nn.Module):
    """A detector for some of its categories as one function of tensors.

    Args:
        detector: on the CPU.
        categories: names, in the order of their numbers.

    Raises:
        DataError: if the detector does not know one.
    """

    encoded: Tensor
    embeddings: Tensor
    mean: Tensor  # [S, C]
    std: Tensor  # [S, C]
    memory: Tensor  # [S, M, C]
    detail_mean: Tensor
    detail_std: Tensor
    detail_memory: Tensor
    scale_mean: Tensor
    scale_std: Tensor
    constant: Tensor

    def __init__(self, detector: Detector, categories: Sequence[str]) -> None:
        super().__init__()
        states = [detector.state(name) for name in categories]
        self.network = detector.network
        self.register_buffer("encoded", _stack([s.encoded for s in states]))  # [S, K, N, D]
        self.register_buffer("embeddings", _stack([s.embeddings for s in states]))  # [S, K, C]
        for prefix, all_of in (
            ("", [s.statistics for s in states]),
            # of a category without zoom, whose graph never reads them, the others in their place
            ("detail_", [s.statistics.detail or s.statistics for s in states]),
        ):
            self.register_buffer(f"{prefix}mean", torch.stack([one.mean for one in all_of]))
            self.register_buffer(f"{prefix}std", torch.stack([one.std for one in all_of]))
            self.register_buffer(f"{prefix}memory", _stack([one.memory for one in all_of]))
        self.params = detector.spec.calibrate
        specs = [detector.spec.categories[name] for name in categories]
        self.kinds = sorted({kind for spec in specs for kind in spec.scales})
        unread = MapScale(mean=0.0, std=1.0)
        means = [[spec.scales.get(kind, unread).mean for kind in self.kinds] for spec in specs]
        stds = [[spec.scales.get(kind, unread).std for kind in self.kinds] for spec in specs]
        self.register_buffer("scale_mean", torch.tensor(means))  # [S, kinds]
        self.register_buffer("scale_std", torch.tensor(stds))  # [S, kinds]
        self.register_buffer("constant", torch.tensor([spec.fusion_constant for spec in specs]))

    def forward(self, image: Tensor, category: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map [1, H, W], score [1], distances [S] and unlike share [1] of an image.

        Args:
            image: [1, H, W, 3] uint8, RGB, at input size or the category's zoom of it.
            category: [1] int64, its number.
        """
        features = self.network.embed(image)
        distances = measure_distances(
            embed_globally(features.coarse), self.embeddings.flatten(0, 1)
        ).unflatten(1, self.embeddings.shape[:2])  # [1, S, K]
        fused, unlike = draw_fused(
            self.network, features, self._select_state(category), self._select_fusion(category)
        )  # [1, H, W]
        scores = score_maps(fused, self.params)
        return fused, scores, distances.amin(2)[0], unlike

    def _select_state(self, category: Tensor) -> CategoryState:
        def select(stacked: Tensor) -> Tensor:
            return stacked.index_select(0, category)[0]

        return CategoryState(
            prompts=self.encoded[:0],  # their images: the graph needs only their encoded tokens
            encoded=select(self.encoded),
            embeddings=select(self.embeddings),
            statistics=CategoryStatistics(
                select(self.mean),
                select(self.std),
                select(self.memory),
                CategoryStatistics(
                    select(self.detail_mean), select(self.detail_std), select(self.detail_memory)
                ),
            ),
        )

    def _select_fusion(self, category: Tensor) -> Fusion:
        means = self.scale_mean.index_select(0, category)[0].unbind()
        stds = self.scale_std.index_select(0, category)[0].unbind()
        scales = {
            kind: ExportedScale(mean, std)
            for kind, mean, std in zip(self.kinds, means, stds, strict=True)
        }
        return Fusion(self.params, scales, self.constant.index_select(0, category)[0])


def export_detector(
    detector: Detector,
    out: Path,
    *,
    format: Format,  # noqa: A002  # the word that users say
    categories: Sequence[str] = (),
) -> Path:
    """Write a detector's graph, and its description beside it as `<name>.json`.

    Args:
        detector: on the CPU.
        out: the file; its suffix becomes the format's own.
        format: of the file.
        categories: which ones; all if empty.

    Returns:
        The file.

    Raises:
        DataError: if the detector does not know a category, or is not on the CPU.
        OneNIPError: if the format's packages are not installed.
    """
    names = sorted(categories or detector.categories)
    content = describe(detector, names)
    path = out.with_suffix(SUFFIXES[format])
    with draft_export(path) as draft:
        write_graphs(detector, draft, format=format, categories=names)
        write_description(draft, content)
    return path


def export_tiled(
    tiled: TiledDetector,
    out: Path,
    *,
    format: Format,  # noqa: A002  # the word that users say
) -> Path:
    """Write a detector that judges in tiles, as `export_detector` does; the file cuts the tiles itself.

    Raises:
        DataError: as `export_detector`.
        OneNIPError: as `export_detector`.
    """
    names = tiled.describe()
    own = sorted(known["own_name"] for known in names.values())
    content = describe(tiled.detector, own)
    content["tiles"] = asdict(tiled.tiling)
    content["categories"] = {
        name: {
            **content["categories"][known["own_name"]],
            "image_threshold": known["image_threshold"],
            "reach": None,  # how far a whole image lies from tiles says nothing
        }
        for name, known in names.items()
    }
    path = out.with_suffix(SUFFIXES[format])
    with draft_export(path) as draft:
        write_graphs(tiled.detector, draft, format=format, categories=own)
        write_description(draft, content)
    return path


@contextlib.contextmanager
def draft_export(path: Path) -> Iterator[Path]:
    """A draft of an exported file in a folder of its own, moved into place when the block ends well.

    A block that fails leaves the exported file as it was, and no draft. A kill while the files change places
    leaves parts of two exports, which is refused when it is loaded.

    Args:
        path: of the exported file; its parents are made.

    Yields:
        The draft, of the same name.

    Raises:
        OSError: if the disk refuses.
    """
    folder = path.with_name(f".{path.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        draft = folder / path.name
        yield draft
        stem = glob.escape(path.stem)
        for old in path.parent.glob(f"{stem}.*x*.*"):  # further graphs of an earlier export
            if re.fullmatch(r"\.\d+x\d+\.(onnx|xml|bin)", old.name.removeprefix(path.stem)):
                old.unlink()
        description = locate_description(draft)
        parts = sorted(p for p in folder.glob(f"{stem}.*") if p != description)
        for part in (*parts, description):
            with write_whole(path.with_name(part.name)) as whole:
                part.rename(whole)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_graphs(
    detector: Detector,
    path: Path,
    *,
    format: Format,  # noqa: A002  # the word that users say
    categories: Sequence[str],
) -> None:
    """Write a detector's graphs alone: one for each size at which its categories are looked at.

    All hold the same tensors; only the size of the image that they take differs.

    Raises:
        DataError: if the detector does not know a category, or is not on the CPU.
        OneNIPError: if the format's packages are not installed.
    """
    if detector.device.type != "cpu":
        raise DataError("load the detector on the CPU to export it")
    network = ExportedNetwork(detector, categories).eval()
    try:
        write = _write_onnx if format == "onnx" else _write_openvino
        first, *others = list_sizes(detector, categories)
        for size in (first, *others):
            write(network, locate_graph(path, size, first=first), size)
    except ModuleNotFoundError as error:
        raise OneNIPError(
            f"--format {format} needs {error.name}; install onenip[export]"
        ) from error


def list_sizes(detector: Detector, categories: Sequence[str]) -> list[tuple[int, int]]:
    """Sizes (height, width) in px of the images that an export's graphs take.

    The first is the smallest, by which a category is told: without zoom, if there are several categories.
    """
    sizes = {detector.zoomed_size(name) for name in categories}
    return sorted(sizes if len(categories) == 1 else sizes | {detector.input_size})


def describe(detector: Detector, categories: Sequence[str]) -> dict[str, Any]:
    """Description of an exported file: what a runtime needs beside the graph."""
    reaches = detector.reaches
    return {
        "format_version": FORMAT_VERSION,
        "model_digest": detector.digest,
        "map_size": list(detector.input_size),
        "input_size": list(list_sizes(detector, categories)[0]),
        "categories": {
            name: {
                "number": number,
                "input_size": list(detector.zoomed_size(name)),
                "image_threshold": known.image_threshold,
                "review_threshold": known.review_threshold,
                "pixel_threshold": known.pixel_threshold,
                "is_provisional": known.is_provisional,
                "normals_needed": known.normals_needed,
                "sample_range": known.sample_range,
                "reach": reaches[name],
            }
            for number, name in enumerate(categories)
            for known in [detector.spec.categories[name]]
        },
    }


def locate_description(path: Path) -> Path:
    """Path of the description of an exported file."""
    return path.with_name(f"{path.name}.json")


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write the description of an exported file, with the checksums of its parts and a seal over all."""
    first = tuple(content["input_size"])
    sizes = {first} | {tuple(one["input_size"]) for one in content["categories"].values()}
    parts = [p for s in sizes for p in list_parts(locate_graph(path, s, first=first))]
    sha256 = {part.name.removeprefix(path.stem): hash_file(part) for part in parts}
    whole = {**content, "sha256": sha256}
    sealed = {**whole, "seal": compute_seal(whole)}
    text = json.dumps(sealed, indent=2, sort_keys=True, allow_nan=False) + "\n"
    locate_description(path).write_text(text, encoding="utf-8")


def _write_onnx(network: ExportedNetwork, path: Path, size: tuple[int, int]) -> None:
    example = _example(size)
    chatter = io.StringIO()  # the exporter prints its progress
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(chatter), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            example,
            str(path),
            input_names=["image", "category"],
            output_names=list(_OUTPUTS),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _write_openvino(network: ExportedNetwork, path: Path, size: tuple[int, int]) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "graph.onnx"
        _write_onnx(network, wide, size)
        openvino.save_model(openvino.convert_model(str(wide)), str(path), compress_to_fp16=False)


def _example(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, *size, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of unequal length as one, the shorter ones filled up with copies of their first row.

    A copy is never nearer than what it copies, so nothing that looks for the nearest row changes.
    """
    longest = max(len(one) for one in tensors)
    filled = [
        torch.cat([one, one[:1].expand(longest - len(one), *one.shape[1:])]) for one in tensors
    ]
    return torch.stack(filled).clone()

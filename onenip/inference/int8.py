"""INT8 files of OpenVINO, calibrated on normal images, and the accuracy that they cost.

Only the backbone's convolutions become INT8, without those before its first feature map: these see the
image's full contrast, the transformer and the distances small differences of large numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onenip.detector.detector import Detector
from onenip.errors import DataError, OneNIPError
from onenip.images import load_image, resize_image
from onenip.inference.edge import EdgeDetector, locate_graph
from onenip.inference.export import (
    describe,
    draft_export,
    list_sizes,
    write_description,
    write_graphs,
)

MAX_CALIBRATION_IMAGES = 300

_DISTANCES = "distances"
_PASSIVE = frozenset({"Constant", "Parameter", "Result"})
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_EXACT_CONVOLUTIONS = 3  # the stem and the first block, which has no expansion


@dataclass(frozen=True)
class Loss:
    """Changes by INT8 on images that it was not calibrated on.

    Attributes:
        images: number of them.
        verdicts_changed: number of other verdicts.
        score_change: mean absolute change of image scores, in standard deviations of theirs.
        auroc_before: image AUROC in fp32, mean over categories; None without good and defective images.
        auroc_after: the same in INT8.
    """

    images: int
    verdicts_changed: int
    score_change: float
    auroc_before: float | None
    auroc_after: float | None


def export_int8(
    detector: Detector,
    out: Path,
    *,
    normals: Mapping[str, Sequence[Path]],
    tests: Mapping[str, Sequence[tuple[Path, bool]]],
) -> tuple[Path, Loss]:
    """Write an OpenVINO file whose backbone computes in INT8, and measure its loss.

    Thresholds stay those of fp32.

    Args:
        detector: on the CPU.
        out: the file; its suffix becomes .xml.
        normals: normal images to calibrate on, by category; these are exported.
        tests: other images and whether each is defective, by category.

    Returns:
        The file and the loss, which is also written into the description beside the file.

    Raises:
        DataError: if there are no normal images.
        OneNIPError: if nncf or openvino is not installed.
    """
    try:
        import nncf
        import openvino
    except ModuleNotFoundError as error:
        raise OneNIPError(f"--int8 needs {error.name}; install onenip[export,int8]") from error
    names = sorted(normals)
    if not any(normals.values()):
        raise DataError("INT8 needs normal images to calibrate on")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    content = describe(detector, names)
    path = out.with_suffix(".xml")
    with draft_export(path) as draft:
        wide = draft.with_name(f"fp32-{draft.name}")
        write_graphs(detector, wide, format="openvino", categories=names)
        write_description(wide, content)
        first, *others = list_sizes(detector, names)
        for size in (first, *others):
            graph = openvino.Core().read_model(str(locate_graph(wide, size, first=first)))
            inputs = _load_inputs(detector, normals, size)
            quantized = nncf.quantize(
                graph,
                nncf.Dataset(inputs),
                subset_size=min(len(inputs), MAX_CALIBRATION_IMAGES),
                ignored_scope=nncf.IgnoredScope(names=_list_exact(graph)),
                preset=nncf.QuantizationPreset.PERFORMANCE,
            )
            target = locate_graph(draft, size, first=first)
            openvino.save_model(quantized, str(target), compress_to_fp16=False)
        write_description(draft, content)
        loss = measure_loss(EdgeDetector.load(wide), EdgeDetector.load(draft), tests)
        write_description(draft, {**content, "int8": asdict(loss)})
    return path, loss


def measure_loss(
    before: EdgeDetector,
    after: EdgeDetector,
    tests: Mapping[str, Sequence[tuple[Path, bool]]],
) -> Loss:
    """Compare two exported detectors on the same images."""
    changed, moves, areas = 0, [], []
    for category, samples in tests.items():
        paths = [path for path, _ in samples]
        pairs = [
            (
                before.predict([path], category=category)[0],
                after.predict([path], category=category)[0],
            )
            for path in paths
        ]
        changed += sum(one.is_anomalous != two.is_anomalous for one, two in pairs)
        scores = np.array([[one.score, two.score] for one, two in pairs]).reshape(-1, 2)
        spread = max(float(scores[:, 0].std()), 1e-9) if len(scores) else 1.0
        moves += [float(m) for m in np.abs(scores[:, 1] - scores[:, 0]) / spread]
        areas.append(_measure_auroc(np.array([bad for _, bad in samples]), scores))
    known = [area for area in areas if area is not None]
    return Loss(
        images=len(moves),
        verdicts_changed=changed,
        score_change=float(np.mean(moves)) if moves else 0.0,
        auroc_before=float(np.mean([a for a, _ in known])) if known else None,
        auroc_after=float(np.mean([b for _, b in known])) if known else None,
    )


def _measure_auroc(
    defective: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[float, float] | None:
    from sklearn.metrics import roc_auc_score

    if len(set(defective.tolist())) < 2:
        return None
    before, after = (float(roc_auc_score(defective, scores[:, i])) for i in range(2))
    return before, after


def _list_exact(graph: Any) -> list[str]:
    """Names of the operations that stay fp32: all but the backbone, and its first convolutions.

    The backbone is what the distances from the prompts, one of the outputs, are computed from.
    """
    found = next(r for r in graph.get_results() if _DISTANCES in r.get_friendly_name())
    backbone, waiting = set(), [found]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in backbone:
            backbone.add(node.get_friendly_name())
            waiting += [value.get_node() for value in node.input_values()]
    computing = [n for n in graph.get_ordered_ops() if n.get_type_name() not in _PASSIVE]
    outside = [n for n in computing if n.get_friendly_name() not in backbone]
    convolutions = [n for n in computing if n.get_type_name() in _CONVOLUTIONS]
    return [n.get_friendly_name() for n in [*outside, *convolutions[:_EXACT_CONVOLUTIONS]]]


def _load_inputs(
    detector: Detector, normals: Mapping[str, Sequence[Path]], size: tuple[int, int]
) -> list[dict[str, NDArray[np.generic]]]:
    """Inputs of the graph of a size, taken in turn from the categories."""
    names = sorted(normals)
    share = max(MAX_CALIBRATION_IMAGES // max(len(names), 1), 1)
    return [
        {
            "image": resize_image(load_image(path, sample_range=detector.sample_range(name)), size)[
                None
            ],
            "category": np.array([number], np.int64),
        }
        for number, name in enumerate(names)
        if size in (detector.zoomed_size(name), detector.input_size)
        for path in list(normals[name])[:share]
    ]

"""INT8 files of OpenVINO, calibrated on normal images, and what accuracy that costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onenip.detector import Detector
from onenip.edge import EdgeDetector
from onenip.errors import DataError, OneNIPError
from onenip.export import describe, export_detector, write_description
from onenip.images import load_image, resize_image

MAX_CALIBRATION_IMAGES = 300


@dataclass(frozen=True)
class Loss:
    """What INT8 changed on images that it was not calibrated on.

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
    """Write an OpenVINO file with INT8 convolutions and matrix products, and measure its loss.

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
    inputs = _load_inputs(detector, normals)
    if not inputs:
        raise DataError("INT8 needs normal images to calibrate on")
    wide = export_detector(
        detector, out.with_name(f"{out.stem}.fp32.xml"), format="openvino", categories=names
    )
    logging.getLogger("nncf").setLevel(logging.ERROR)
    graph = openvino.Core().read_model(str(wide))
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(inputs),
        subset_size=min(len(inputs), MAX_CALIBRATION_IMAGES),
        ignored_scope=nncf.IgnoredScope(names=_list_matching(graph, detector, names)),
        preset=nncf.QuantizationPreset.MIXED,
    )
    path = out.with_suffix(".xml")
    openvino.save_model(quantized, str(path), compress_to_fp16=False)
    content = describe(detector, names)
    write_description(path, content)
    loss = measure_loss(EdgeDetector.load(wide), EdgeDetector.load(path), tests)
    write_description(path, {**content, "int8": asdict(loss)})
    for part in (wide, wide.with_suffix(".bin"), wide.with_name(f"{wide.name}.json")):
        part.unlink()
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


def _list_matching(graph: Any, detector: Detector, categories: Sequence[str]) -> list[str]:
    """Names of the products that match tokens with the memory: small differences of large numbers."""
    tokens = max(len(detector.state(name).reference.memory) for name in categories)
    return [
        node.get_friendly_name()
        for node in graph.get_ops()
        if node.get_type_name() == "MatMul" and list(node.get_output_shape(0))[-1] == tokens
    ]


def _load_inputs(
    detector: Detector, normals: Mapping[str, Sequence[Path]]
) -> list[dict[str, NDArray[np.generic]]]:
    """Inputs of the graph, taken in turn from the categories."""
    names = sorted(normals)
    share = max(MAX_CALIBRATION_IMAGES // max(len(names), 1), 1)
    return [
        {
            "image": resize_image(load_image(path), detector.input_size)[None],
            "category": np.array([number], np.int64),
        }
        for number, name in enumerate(names)
        for path in list(normals[name])[:share]
    ]

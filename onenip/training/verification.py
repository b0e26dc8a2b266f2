"""Verification of a model: every stated figure that can be recomputed is recomputed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from onenip.data.cache import Cache
from onenip.detector.calibration import (
    MIN_CALIBRATION_IMAGES,
    CalibrationImage,
    fuse_calibration_maps,
    measure_pixel_threshold,
)
from onenip.detector.category import Excluded
from onenip.detector.detector import Detector
from onenip.detector.embedding import Embedder
from onenip.detector.operating_points import decide
from onenip.images import hash_file
from onenip.model.file import CategorySpec, MapScale
from onenip.model.memory import match_tokens
from onenip.model.network import CategoryStatistics
from onenip.synthesis import bank as synthetic_bank
from onenip.synthesis.bank import StoredAnomaly
from onenip.training.calibration_images import embed_files, pick_anomalies

_RELATIVE = 1e-3  # scores on another processor differ in their last digits
_ABSOLUTE = 1e-3
_SAME = 0.02  # standard deviations of a channel: tokens nearer than that are of one image


@dataclass(frozen=True)
class Finding:
    """One checked fact of a model.

    Attributes:
        fact: what was checked.
        agrees: True if it was confirmed, None if it could not be checked.
        detail: stated and recomputed values, or why it could not be checked.
    """

    fact: str
    agrees: bool | None
    detail: str


def verify_model(
    folder: Path,
    *,
    data_dir: Path | None = None,
    synthesis_dir: Path | None = None,
    expected_digest: str | None = None,
    registered: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Recompute a model's digest, thresholds, scales and scores.

    Args:
        folder: of the model.
        data_dir: its data; without it, figures that come from images are not checked.
        synthesis_dir: its synthetic anomalies; without them, figures that come from them are not checked.
        expected_digest: what the digest should be, such as the one pinned at approval.
        registered: facts from the registry, by name.

    Raises:
        CheckpointError: if the model cannot be read at all.
        DataError: if there are no synthetic anomalies in their folder.
        ImageError: if an image cannot be used.
    """
    detector = Detector.load(folder)
    bank = synthetic_bank.read(synthesis_dir) if synthesis_dir else []
    findings = [_check_digest(detector, expected_digest)]
    decided = decide(detector.spec.categories, detector.spec.calibrate)
    for name in detector.categories:
        findings += _check_threshold(name, detector.spec.categories[name], decided[name])
        findings.append(_check_prompts(detector, name))
        findings += _check_calibration(detector, name, data_dir, bank)
    return findings + _check_names(detector, registered or {})


def _check_names(detector: Detector, registered: Mapping[str, str]) -> list[Finding]:
    """Provenance as the model and the registry state it, which must agree."""
    findings = []
    stated_by_model = detector.spec.provenance
    params = stated_by_model.get("params")
    images = stated_by_model.get("calibration_images")
    summaries = {
        "params": params and f"sections {', '.join(sorted(params))}; seed {params.get('seed')}",
        "calibration_images": images and f"{len(images)}, each by its sha256",
    }
    for key in ("data_version", "git_commit", "params", "calibration_images", "approver"):
        stated, known = summaries.get(key, stated_by_model.get(key)), registered.get(key)
        fact = f"names its {key}"
        if stated and known:
            findings.append(Finding(fact, stated == known, f"{stated}; in the registry: {known}"))
        elif known:
            findings.append(Finding(fact, agrees=True, detail=f"{known} (from the registry)"))
        elif stated:
            findings.append(Finding(fact, agrees=True, detail=str(stated)))
        else:
            why = "in the registry, if anywhere: verify models:/onenip-CATEGORY@champion"
            findings.append(Finding(fact, None, why))
    return findings


def _check_digest(detector: Detector, expected: str | None) -> Finding:
    if expected is None:
        return Finding("digest", None, f"{detector.digest}; give --digest to compare")
    return Finding("digest", detector.digest == expected, f"{detector.digest}, expected {expected}")


def _check_threshold(name: str, known: CategorySpec, recomputed: CategorySpec) -> list[Finding]:
    """The threshold and its promises, recomputed from the scores of all categories."""
    if not known.curve:
        why = "a model of an earlier version, whose thresholds followed another rule"
        return [Finding(f"{name}: threshold from its normals", None, why)]
    return [
        _compare(
            f"{name}: threshold from its normals", known.image_threshold, recomputed.image_threshold
        ),
        _compare_all(
            f"{name}: promises of its thresholds", _list_promises(known), _list_promises(recomputed)
        ),
    ]


def _list_promises(known: CategorySpec) -> list[float]:
    points = [known.operating_point, *known.curve]
    return [value for one in points for value in one.model_dump().values() if value is not None]


def _check_prompts(detector: Detector, name: str) -> Finding:
    known = detector.spec.categories[name]
    found = detector.score_prompts(name)
    agree = len(found) == len(known.prompt_scores) and all(
        math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
        for a, b in zip(found, known.prompt_scores, strict=False)
    )
    stated = ", ".join(f"{x:.4f}" for x in known.prompt_scores)
    detail = f"stated {stated}; now {', '.join(f'{x:.4f}' for x in found)}"
    return Finding(f"{name}: scores of its stored prompts", agree, detail)


def _check_calibration(
    detector: Detector, name: str, data_dir: Path | None, bank: Sequence[StoredAnomaly]
) -> list[Finding]:
    """Figures of the held-out normals and the anomalies made from them, recomputed from the images."""
    fact = f"{name}: figures from its calibration images"
    known = detector.spec.categories[name]
    images: dict[str, str] = detector.spec.provenance.get("calibration_images", {})
    own = known.normal_names[: len(known.held_out_scores)]
    if data_dir is None or not own or not all(name in images for name in own):
        why = "give --data to recompute it" if images else "the model lists no images"
        return [Finding(fact, None, why)]
    changed = [
        n for n in own if not (data_dir / n).is_file() or hash_file(data_dir / n) != images[n]
    ]
    if changed:
        return [Finding(fact, agrees=False, detail=f"missing or changed: {', '.join(changed)}")]
    if len(own) < MIN_CALIBRATION_IMAGES:
        return [
            Finding(fact, None, f"only {len(own)} held-out images: scales come from others, too")
        ]
    stored = pick_anomalies(bank, name, held_out=set(own))
    with torch.inference_mode():
        embedder = Embedder(detector.folded, Cache())
        normals = embed_files(embedder, [data_dir / n for n in own], zoom=known.zoom)
        fused = fuse_calibration_maps(
            detector.folded,
            detector.spec.calibrate,
            state=detector.state(name),
            normals=[_without_own(detector, name, image) for image in normals],
            anomalies=embed_files(embedder, [one.image for one in stored], zoom=known.zoom),
        )
    findings = [
        _compare_all(f"{name}: {what}", stated, found)
        for what, stated, found in (
            ("scores of its calibration images", known.held_out_scores, fused.normal_scores),
            ("scales of its maps", _list_scales(known.scales), _list_scales(fused.scales)),
            (
                "pixel threshold",
                [known.pixel_threshold],
                [measure_pixel_threshold(fused, len(own))],
            ),
        )
    ]
    if not bank:
        why = "give --synthesis to recompute it"
        return [*findings, Finding(f"{name}: fusion constant", None, why)]
    return [
        *findings,
        _compare_all(f"{name}: fusion constant", [known.fusion_constant], [fused.fusion_constant]),
        _compare_all(
            f"{name}: scores of its synthetic anomalies",
            known.synthetic_scores,
            fused.anomaly_scores,
        ),
    ]


def _without_own(detector: Detector, name: str, image: CalibrationImage) -> CalibrationImage:
    """An image that may not match its own memory tokens, which are those that equal one of its tokens."""
    network, statistics = detector.folded, detector.state(name).statistics
    if not network.uses_memory:
        return image

    def find_own(features: Tensor, known: CategoryStatistics) -> Tensor:
        tokens = network.average_tokens(known.standardize(features.half()))[0]
        distance, _ = match_tokens(known.memory, tokens.half().float())
        return (distance < _SAME * tokens.shape[1] ** 0.5)[None]

    features = image.load()
    fine = find_own(features.fine, statistics)
    detail = None
    if statistics.detail is not None and features.detail is not None:
        detail = find_own(features.detail, statistics.detail)
    return replace(image, excluded=Excluded(fine, detail))


def _list_scales(scales: Mapping[str, MapScale]) -> list[float]:
    return [value for kind in sorted(scales) for value in (scales[kind].mean, scales[kind].std)]


def _compare_all(fact: str, stated: Sequence[float], found: Sequence[float]) -> Finding:
    agrees = len(stated) == len(found) and all(
        math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=10 * _ABSOLUTE)
        for a, b in zip(stated, found, strict=False)
    )
    worst = max((abs(a - b) for a, b in zip(stated, found, strict=False)), default=0.0)
    count = f"{len(stated)} values"
    if len(stated) != len(found):
        count += f", but {len(found)} recomputed"
    detail = f"{count}, largest difference {worst:.2g}"
    return Finding(fact, agrees, detail)


def _compare(fact: str, stated: float, recomputed: float) -> Finding:
    agrees = math.isclose(stated, recomputed, rel_tol=1e-6, abs_tol=1e-9)
    return Finding(fact, agrees, f"stated {stated:.6g}, recomputed {recomputed:.6g}")

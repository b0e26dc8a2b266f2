"""The steps of retraining that need models and the registry: champions, warm start, judging, deciding.

Flows call these one after the other; each may be repeated.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from onenip.data.dvc import read_data_version
from onenip.data.manifest import DATA_DIR, Sample, load_manifest, select
from onenip.data.outputs import OUTPUTS, Outputs
from onenip.detector.detector import Detector
from onenip.detector.operating_points import describe_doubts
from onenip.errors import (
    CheckpointError,
    DataError,
    ImageError,
    RegistryError,
    UnreachableError,
)
from onenip.folders import replace_folder, write_whole
from onenip.images import load_image
from onenip.ingestion.journal import Journal
from onenip.model.file import hash_model
from onenip.operation.drift import DriftResult, Origin, Sightings, measure_drift
from onenip.operation.evidence import collect_evidence
from onenip.operation.gate import judge, undecidable
from onenip.params import Params
from onenip.params.reading import read_yaml
from onenip.registry import approval, audit, store, versions
from onenip.registry.champions import Champions, choose_unified, list_champions
from onenip.registry.decisions import deciding
from onenip.registry.versions import GateResult, Version
from onenip.registry.weights import fetched_weights
from onenip.review.answers import Answers
from onenip.sources.inbox import Inbox

GATE = "gate"  # who decides where the policy is `auto`

_BASELINE_IMAGES = 64
_RETRAINING = (
    "# Written by retraining, and read by `train` after params.yaml, which is a person's alone.\n"
)

log = logging.getLogger(__name__)


def write_warm_start(params: Params, *, root: Path) -> str | None:
    """Write into `retrain.yaml` what `retrain.warm_start` asks for; params.yaml is left alone.

    The champion of most categories is laid out under its digest, so that another champion makes DVC
    train again; not for the same data, though: a run that was killed after it promoted its own model
    goes on as it began. A champion of another architecture cannot be started from.

    Args:
        params: whether to start from the champion, and of which architecture.
        root: the checkout.

    Returns:
        The folder that training starts from, None for scratch.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    path = Outputs(root).retraining
    plan = read_yaml(path) if path.is_file() else {}
    version = read_data_version(root)
    if plan.get("data_version", "") == version and _is_there(plan.get("warm_start"), root):
        return cast("str | None", plan["warm_start"])
    folder = _lay_out_champion(params, root) if params.retrain.warm_start == "champion" else None
    with write_whole(path) as draft:
        text = {"data_version": version, "warm_start": folder}
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in text.items()]
        draft.write_text(_RETRAINING + "".join(lines), encoding="utf-8")
    return folder


def judge_categories(
    params: Params,
    *,
    model_dir: Path,
    manifest: Path,
    champions: Champions,
    categories: Sequence[str] | None = None,
) -> dict[str, GateResult]:
    """What the gate says of a model, category by category.

    Champion and challenger answer for the same images of the current manifest. A category that this
    very model serves already is left out.

    Args:
        params: limits.
        model_dir: the new model.
        manifest: the current one.
        champions: who serves.
        categories: only these; None is all that the model knows.

    Raises:
        RegistryError: if a champion cannot be had.
        DataError: if an image or the manifest cannot be read.
    """
    challenger = Detector.load(model_dir)
    samples = load_manifest(manifest, DATA_DIR)
    results = {}
    for category in challenger.categories if categories is None else categories:
        serving = champions.version(category)
        if serving is not None and serving.digest == challenger.digest:
            continue
        found = _judge(category, challenger, champions, samples, params)
        doubts = tuple(describe_doubts(challenger.spec.categories[category]))
        results[category] = found.model_copy(update={"warnings": doubts})
        for doubt in doubts:
            log.warning("%s: %s", category, doubt)
        log.info("%s: %s: %s", category, results[category].verdict, results[category].reasons[0])
    return results


def _judge(
    category: str,
    challenger: Detector,
    champions: Champions,
    samples: Sequence[Sample],
    params: Params,
) -> GateResult:
    """What the gate says of one category; one that cannot be judged is left to a person."""
    now = datetime.now(tz=UTC)
    try:
        evidence = collect_evidence(
            category,
            challenger=challenger,
            champion=champions.find(category),
            samples=samples,
            params=params,
        )
    except (DataError, RegistryError, CheckpointError) as error:
        if isinstance(error, UnreachableError):
            raise
        return undecidable(f"it cannot be judged: {error}", judged_at=now)
    if evidence is None:
        return undecidable("there are no normal images to judge by", judged_at=now)
    return judge(evidence, params.gate, seed=params.seed, judged_at=now)


def store_gate(version: Version, result: GateResult) -> bool:
    """Store a gate result with its version, for people to see; False if it was decided about.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    with deciding(version.category):
        return _store_gate(version, result)


def record_gate(version: Version, result: GateResult) -> bool:
    """Store a gate result with its version and in the audit trail; False if it was decided about.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    with deciding(version.category):
        if not _store_gate(version, result):
            return False
        reason = store.shorten(f"{result.verdict}: {'; '.join(result.reasons)}", limit=2000)
        asked = [e for e in audit.read_trail(version.category) if e.action == "gate"]
        if any((e.version, e.reason) == (version.number, reason) for e in asked):
            return True  # asked again after a kill
        audit.record(
            version.category,
            "gate",
            version=version.number,
            by=GATE,
            reason=reason,
            digest=version.digest,
        )
    return True


def _store_gate(version: Version, result: GateResult) -> bool:
    current = versions.find_version(version.category, version.number)
    if current.approval != "pending" or versions.CHALLENGER not in current.aliases:
        return False
    versions.set_gate_result(version.category, version.number, result)
    return True


def decide_by_policy(version: Version, result: GateResult, params: Params) -> bool:
    """Whether a version was promoted without a person, as the category's policy allows.

    Only what the gate promotes on real defects; everything else waits for a person.

    Raises:
        RegistryError: if somebody decided in the meantime, or the registry cannot be reached.
    """
    is_auto = params.retrain.policy_of(version.category) == "auto"
    if not is_auto or result.verdict != "promote" or result.is_provisional:
        return False
    reason = store.shorten("; ".join(result.reasons), limit=2000)
    approval.approve(version.category, by=GATE, reason=reason, version=version.number)
    return True


def look_for_drift(
    params: Params,
    *,
    journal: Journal,
    champions: Champions,
    manifest: Path,
    inbox: Inbox | None = None,
    answers: Answers | None = None,
) -> list[DriftResult]:
    """Drift of every category whose champion has seen enough arrivals, or has judged enough parts.

    Args:
        params: limits.
        journal: of arrivals, with what the champion of that time said.
        champions: who serves.
        manifest: the current one, for the images of the time of approval.
        inbox: holds the images that were held, for a champion that has not judged them yet.
        answers: what was served; None leaves it out.

    Raises:
        RegistryError: if a champion cannot be had.
        SourceError: if the inbox cannot be read.
    """
    found = []
    for category in versions.list_categories():
        try:
            detector = champions.find(category)
        except (RegistryError, CheckpointError) as error:
            if isinstance(error, UnreachableError):
                raise
            log.warning("%s: drift is not measured: %s", category, error)
            continue
        if detector is None:
            continue
        seen: dict[Origin, Sightings] = {
            "arrived": _list_arrived(params, journal, detector, category, inbox)
        }
        if answers is not None:
            seen["served"] = _list_served(params, answers, detector, category)
        if all(one.scores.size < params.drift.min_images for one in seen.values()):
            continue
        approved = _list_approved(detector, category, manifest)
        for origin, sightings in seen.items():
            result = measure_drift(
                category, arrived=sightings, approved=approved, params=params.drift, origin=origin
            )
            if result is not None:
                found.append(replace(result, digest=detector.digest))
    return found


def to_table(
    results: dict[str, GateResult], serving: Champions, model_dir: Path
) -> list[dict[str, Any]]:
    """Rows that a person reads before deciding: verdict, figures, reasons per category."""
    return [
        {
            "category": category,
            "verdict": result.verdict,
            "champion": getattr(serving.version(category), "number", None),
            "model": hash_model(model_dir)[:12],
            **{key: round(value, 4) for key, value in sorted(result.numbers.items())},
            "reasons": "; ".join(result.reasons),
            "warnings": "; ".join(result.warnings),
        }
        for category, result in sorted(results.items())
    ]


def _is_there(folder: object, root: Path) -> bool:
    return folder is None or (root / str(folder)).is_dir()


def _lay_out_champion(params: Params, root: Path) -> str | None:
    version = choose_unified(list_champions())
    if version is None:
        return None
    if Champions().load(version).spec.model != params.model:
        log.warning("the champion is of another architecture; training starts from scratch")
        return None
    folder = OUTPUTS.warm_start / version.digest[:16]
    if not (root / folder).is_dir():
        with (
            fetched_weights(version.weights_uri) as source,
            replace_folder(root / folder) as draft,
        ):
            shutil.copytree(source, draft, dirs_exist_ok=True)
    return folder.as_posix()


def _list_arrived(
    params: Params, journal: Journal, detector: Detector, category: str, inbox: Inbox | None
) -> Sightings:
    """The champion's answers to the latest arrivals; a newer champion is asked about earlier ones, too.

    Held images are those that look least normal. Where they cannot be had any more, earlier arrivals
    are left out altogether: the accepted ones alone would look too good.
    """
    threshold = detector.spec.categories[category].image_threshold
    items = journal.latest(category, limit=params.drift.window)
    rows = [
        (item.score, not item.score <= threshold, item.distance or 0.0)
        for item in items
        if item.digest == detector.digest and item.score is not None
    ]
    earlier = [item for item in items if item.digest != detector.digest or item.score is None]
    held = {item.name for item in earlier if item.outcome == "held"}
    with tempfile.TemporaryDirectory() as scratch:
        paths = _fetch_held(inbox, held, Path(scratch)) if inbox is not None and held else {}
        if held - paths.keys():
            log.info("%s: drift is measured on what the present champion has seen", category)
            earlier = []
        for item in earlier:
            path = paths.get(item.name, DATA_DIR / item.name)
            if path.is_file():
                try:
                    rows.append(_ask(detector, path, category))
                except ImageError as error:
                    log.warning("left out of the drift of %s: %s", category, error)
    return Sightings.of([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def _list_served(params: Params, answers: Answers, detector: Detector, category: str) -> Sightings:
    """The champion's answers on the line, and how far some of the images lie from its prompts."""
    threshold = detector.spec.categories[category].image_threshold
    latest = answers.list_latest(category=category, limit=params.drift.window)
    given = [one for one in latest if one.facts.get("digest") == detector.digest]
    distances = []
    for one in given[:_BASELINE_IMAGES]:
        content = answers.read_image(one.id)
        if content is not None:
            image = load_image(content, sample_range=detector.sample_range(category))
            distances.append(detector.measure_distances(image)[category])
    scores = [float(one.facts["score"]) for one in given]
    return Sightings.of(scores, [score > threshold for score in scores], distances)


def _fetch_held(inbox: Inbox, names: set[str], folder: Path) -> dict[str, Path]:
    """Copies of held images by name, of those that are still held."""
    found: dict[str, Path] = {}
    for arrival in inbox.list_arrivals(shelf="held"):
        if arrival.key in names:
            path = folder / f"{len(found)}{Path(arrival.key).suffix}"
            if inbox.fetch(arrival, path, shelf="held"):
                found[arrival.key] = path
    return found


def _list_approved(detector: Detector, category: str, manifest: Path) -> Sightings:
    """The champion's own calibration scores, and distances of the images they came from."""
    spec = detector.spec.categories[category]
    used = set(detector.spec.provenance.get("calibration_images", {}))
    samples: Sequence[Any] = []
    if manifest.is_file():
        known = load_manifest(manifest, DATA_DIR)
        samples = [s for s in select(known, category=category) if s.name in used]
    distances = []
    for sample in samples[:_BASELINE_IMAGES]:
        try:
            image = load_image(sample.path, sample_range=spec.sample_range)
            distances.append(detector.measure_distances(image)[category])
        except ImageError as error:
            log.warning("left out of the drift of %s: %s", category, error)
    scores = np.asarray(spec.normal_scores)
    return Sightings.of(scores, scores > spec.image_threshold, distances)


def _ask(detector: Detector, path: Path, category: str) -> tuple[float, bool, float]:
    image = load_image(path, sample_range=detector.sample_range(category))
    prediction = detector.predict([image], category=category)[0]
    return prediction.score, prediction.is_anomalous, detector.measure_distances(image)[category]

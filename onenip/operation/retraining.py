"""The steps of retraining that need models and the registry: champions, warm start, judging, deciding.

Flows call these one after the other; each may be repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from onenip.data.dvc import read_data_version
from onenip.data.manifest import DATA_DIR, Sample, hash_samples, load_manifest, select
from onenip.data.outputs import OUTPUTS, Outputs
from onenip.detector.detector import Detector
from onenip.detector.operating_points import describe_doubts
from onenip.errors import (
    CheckpointError,
    DataError,
    RegistryError,
    UnreachableError,
)
from onenip.folders import replace_folder, write_whole
from onenip.images import find_images, hash_file
from onenip.model.file import hash_model
from onenip.operation.evidence import collect_evidence
from onenip.operation.gate import judge, undecidable
from onenip.params import CategoryGateParams, Params
from onenip.params.reading import read_yaml
from onenip.registry import approval, audit, store, versions
from onenip.registry.champions import Champions, choose_unified
from onenip.registry.decisions import deciding
from onenip.registry.tags import GateResult, Version
from onenip.registry.weights import fetched_weights
from onenip.version import hash_code

GATE = "gate"  # who decides where the policy is `auto`

_RETRAINING = (
    "# Written by retraining, and read by `train` after params.yaml, which is a person's alone.\n"
)

# what the gate depends on beside models, images and params
_CODE = ("data", "detector", "evaluation", "images.py", "model", "operation", "synthesis")
_LIBRARIES = ("numpy", "pillow", "scikit-learn", "scipy", "timm", "torch")

log = logging.getLogger(__name__)


class _Judged(BaseModel):
    """A gate result, and the digest of all that it depends on."""

    key: str
    result: GateResult


def write_warm_start(params: Params, *, root: Path) -> str | None:
    """Write into `retrain.yaml` what `retrain.warm_start` asks for; params.yaml is left alone.

    The champion of most categories is laid out under its digest, so that another champion makes DVC
    train again; not for the same data, though: a run that was killed after it promoted its own model
    goes on as it began, unless a person changed the params. A champion of another architecture cannot be
    started from.

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
    asked = params.model.model_dump_json() + params.retrain.warm_start
    known = {"data_version": version, "asked": hashlib.sha256(asked.encode()).hexdigest()[:16]}
    is_planned = all(plan.get(key, "") == value for key, value in known.items())
    if is_planned and _is_there(plan.get("warm_start"), root):
        return cast("str | None", plan["warm_start"])
    folder = _lay_out_champion(params, root) if params.retrain.warm_start == "champion" else None
    with write_whole(path) as draft:
        text = {**known, "warm_start": folder}
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
    """What the gate says of one category; one that cannot be judged is left to a person.

    The same models, images and limits are judged once on a machine, unless it was too slow.
    """
    now = datetime.now(tz=UTC)
    kept = OUTPUTS.judged / f"{category}.json"
    try:
        key = _identify(category, challenger, champions.version(category), samples, params)
        with suppress(OSError, ValueError):
            known = _Judged.model_validate_json(kept.read_bytes())
            if known.key == key:
                log.info("%s: judged at %s already", category, known.result.judged_at)
                return known.result
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
    result = judge(evidence, params.gate, seed=params.seed, judged_at=now)
    if _is_quick(result, params.gate.limits_of(category)):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(kept) as draft:
            draft.write_text(_Judged(key=key, result=result).model_dump_json(), encoding="utf-8")
    return result


def _is_quick(result: GateResult, limits: CategoryGateParams) -> bool:
    """Whether no time was too long; one that was may have been the machine's, and is measured again."""
    found = result.numbers
    allowed = {"seconds": limits.max_seconds, "slowdown": limits.max_slowdown}
    return all(found.get(name, 0.0) <= (limit or 0.0) for name, limit in allowed.items())


def _identify(
    category: str,
    challenger: Detector,
    champion: Version | None,
    samples: Sequence[Sample],
    params: Params,
) -> str:
    """Digest of all that the gate's word depends on, the machine that takes the time included."""
    facts = (
        challenger.digest,
        champion and (champion.digest, champion.threshold, champion.approval),
        hash_samples(s for s in select(samples, category=category) if s.subset != "fit"),
        params.gate.model_dump_json(),
        params.synthesize.model_dump_json(),
        _hash_textures(params),
        params.seed,
        hash_code(*_CODE, libraries=_LIBRARIES),
        platform.node(),
        os.environ.get("ONENIP_DEVICE", ""),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _hash_textures(params: Params) -> list[str]:
    """Digests of the photos that anomalies are drawn with, where there are no real defects."""
    folder = Path(params.synthesize.textures or "textures/none")
    return [hash_file(path) for path in find_images(folder)[0]] if folder.is_dir() else []


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
        reason = store.shorten(
            f"{result.verdict}: {'; '.join(result.reasons)}", limit=approval.MAX_REASON
        )
        asked = [e for e in audit.read_trail(version.category) if e.action == "gate"]
        if any((e.version, e.reason) == (version.number, reason) for e in asked):
            audit.settle(version.category)  # asked again after a kill
            return True
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
    reason = store.shorten("; ".join(result.reasons), limit=approval.MAX_REASON)
    approval.approve(version.category, by=GATE, reason=reason, version=version.number)
    return True


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
    champions = Champions()
    version = choose_unified(champions.snapshot.champions)
    if version is None:
        return None
    if champions.load(version).spec.model != params.model:
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

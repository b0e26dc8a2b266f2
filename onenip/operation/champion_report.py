"""The report that a person decides by: the new model's figures, and what serves now on the same images.

What serves may be another model for each category; each is asked about its own category's current
test images, whatever they were when it was approved.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from onenip.data import git
from onenip.data.cache import Cache
from onenip.data.manifest import DATA_DIR, Sample, hash_samples, load_manifest, select
from onenip.data.outputs import OUTPUTS
from onenip.detector.detector import Detector
from onenip.errors import DataError, RegistryError, UnreachableError
from onenip.evaluation.evaluate import evaluate_test_set
from onenip.evaluation.report import Decision, write_report
from onenip.evaluation.results import REPORT, load_metrics
from onenip.folders import replace_folder
from onenip.model.file import hash_model
from onenip.params import Params
from onenip.registry.champions import Champions
from onenip.registry.publishing import check_evaluation
from onenip.registry.tags import Version
from onenip.registry.versions import read_snapshot
from onenip.version import hash_code

_CHAMPIONS = "champions"  # folder of their evaluations
# what figures depend on beside model, images and params
_CODE = ("data", "detector", "evaluation", "images.py", "model")
_LIBRARIES = ("numpy", "pillow", "scikit-learn", "scipy", "timm", "torch")

log = logging.getLogger(__name__)


def evaluate_champions(
    params: Params,
    *,
    model_dir: Path,
    evaluation_dir: Path,
    manifest: Path,
    out_dir: Path = OUTPUTS.champion_report,
) -> list[Path]:
    """Evaluate the champions on the current test images, for the report that shows them beside a new model.

    A category whose champion, threshold and test images are as they were is not evaluated again.

    Args:
        params: everything.
        model_dir: the new model.
        evaluation_dir: what `evaluate` wrote about it.
        manifest: CSV that `validate` wrote.
        out_dir: gets the champions' evaluation.

    Returns:
        Folders of the evaluations; none of a category without test images, or without another approved
        champion than this model.

    Raises:
        RegistryError: if the registry cannot be reached.
        DataError: if the evaluation, the manifest or an image is not as promised.
    """
    new = hash_model(model_dir)
    metrics = load_metrics(evaluation_dir)
    check_evaluation(metrics, new, folder=evaluation_dir)
    images = metrics["images"]
    tested = [name for name, counts in images.items() if counts["good"] + counts["defective"]]
    champions = Champions()
    found = {name: champions.version(name) for name in tested}
    serving = {name: v for name, v in found.items() if v is not None and v.digest != new}
    detectors = _load(serving, champions)
    samples = load_manifest(manifest, DATA_DIR) if detectors else []
    folders = [
        _evaluate(params, detector, serving[name], samples, out_dir=out_dir / _CHAMPIONS)
        for name, detector in sorted(detectors.items())
    ]
    for other in {*out_dir.glob(f"{_CHAMPIONS}/*")} - {*folders}:
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    return folders


def write_decision_report(
    *,
    model_dir: Path,
    evaluation_dir: Path,
    synthesis_dir: Path | None = None,
    training_dir: Path | None = None,
    out_dir: Path = OUTPUTS.champion_report,
) -> Path:
    """Write the report to sign of a registered model: with its versions, the gate's word, and the champions.

    Args:
        model_dir: the new model.
        evaluation_dir: what `evaluate` wrote about it.
        synthesis_dir: what `synthesize` wrote.
        training_dir: curves that `train` wrote.
        out_dir: holds what `evaluate_champions` wrote, and gets the report.

    Raises:
        DataError: if the evaluation is not as promised.
    """
    report = _name_report(out_dir, hash_model(model_dir))
    for other in {*out_dir.glob(f"*-{REPORT}")} - {report}:
        other.unlink()
    write_report(
        evaluation_dir,
        report,
        model_dir=model_dir,
        data_dir=DATA_DIR,
        synthesis_dir=synthesis_dir,
        training_dir=training_dir,
        champion=sorted(out_dir.glob(f"{_CHAMPIONS}/*")),
        decision=describe_decision(model_dir),
    )
    return report


def describe_decision(model_dir: Path) -> Decision:
    """What the registry and Git know of a model, for the person who signs its report.

    Facts that cannot be had, such as of a registry that is down, are left out and logged.
    """
    facts = [("Date of this report", f"{datetime.now(tz=UTC):%Y-%m-%d}")]
    names: dict[str, str] = {}
    gate: dict[str, tuple[str, Sequence[str]]] = {}
    seconds, commits = [], set()
    digest = hash_model(model_dir)
    try:
        standings = [*read_snapshot().standings.values()]
    except RegistryError as error:
        log.warning("the report names no versions: %s", error)
        standings = []
    for standing in standings:
        for role, version in (("champion", standing.champion), ("challenger", standing.challenger)):
            if version is None or version.digest != digest:
                continue
            changed = version.threshold
            names[standing.category] = f"version {version.number} ({role})" + (
                "" if changed is None else f"; threshold {changed:.4g} was decided on since"
            )
            commits.add(version.git_commit)
            if version.gate is not None:
                gate[standing.category] = version.gate.verdict, version.gate.reasons
                seconds.append(version.gate.numbers.get("seconds", 0.0))
    for commit in sorted(commits):
        line = git.try_run(["log", "-1", "--format=%h of %cs, by %an", commit, "--"], Path())
        facts.append(("Code of the model", line or commit))
    if any(seconds):
        facts.append(("Time per image", f"{max(seconds):.3f} s"))
    return Decision(facts, names, gate)


def find_decision_report(
    model_dir: Path, *, out_dir: Path = OUTPUTS.champion_report
) -> Path | None:
    """The report that was written for this model, None if there is none."""
    report = _name_report(out_dir, hash_model(model_dir))
    return report if report.is_file() else None


def _name_report(out_dir: Path, digest: str) -> Path:
    return out_dir / f"{digest[:16]}-{REPORT}"


def _is_current(folder: Path, pins: Mapping[str, object]) -> bool:
    if not folder.is_dir():
        return False
    try:
        return bool(load_metrics(folder).get("pins") == pins)
    except DataError:  # of an earlier version
        return False


def _load(serving: Mapping[str, Version], champions: Champions) -> dict[str, Detector]:
    """Detectors by category; a champion that nobody approved, or that was changed, is left out and logged."""
    found = {}
    for name, version in serving.items():
        try:
            found[name] = champions.load(version)
        except UnreachableError:
            raise
        except RegistryError as error:
            log.warning("%s: the report shows no champion: %s", name, error)
    return found


def _evaluate(
    params: Params,
    detector: Detector,
    version: Version,
    samples: Sequence[Sample],
    *,
    out_dir: Path,
) -> Path:
    """Folder of the evaluation of a category's champion, made anew where anything of it changed."""
    name, folder = version.category, out_dir / version.category
    tests = select(samples, category=name, subset="test")
    pins = {
        "champion": version.digest,
        "threshold": version.threshold,
        "decided": _tell(version),
        "images": hash_samples(tests),
        "params": params.evaluate.model_dump(mode="json"),
        "seed": params.seed,
        "code": hash_code(*_CODE, libraries=_LIBRARIES),
    }
    if not _is_current(folder, pins):
        out_dir.mkdir(parents=True, exist_ok=True)
        with replace_folder(folder) as draft:
            evaluate_test_set(
                {name: detector},
                tests,
                params=params.evaluate,
                seed=params.seed,
                out_dir=draft,
                cache=Cache(OUTPUTS.cache, max_gib=params.cache.max_gib),
                facts={"pins": pins, "champions": {name: _tell(version)}},
            )
    return folder


def _tell(version: Version) -> str:
    text = f"version {version.number}, approved by {version.approver or 'nobody known'}"
    return text + (f" on {version.decided_at:%Y-%m-%d}" if version.decided_at else "")

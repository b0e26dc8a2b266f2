"""A model for brand-new categories until they have champions: the serving one, shown their first images.

Nothing is trained; the versions are marked as provisional wherever they answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from onenip.data.labels import GOOD
from onenip.data.manifest import DATA_DIR, find_quarantined, list_placed
from onenip.data.outputs import Outputs
from onenip.detector.detector import Detector
from onenip.errors import ImageError
from onenip.images import SampleRange, decide_range, hash_file, load_image, measure_samples
from onenip.params import Params
from onenip.registry import publishing
from onenip.registry.champions import Champions, choose_unified
from onenip.registry.tags import Version
from onenip.version import hash_code

_MAX_IMAGES = 64  # more change little, and cost time

log = logging.getLogger(__name__)


def provide(params: Params, *, root: Path) -> list[Version]:
    """Make the serving model usable on categories of the data that it does not know.

    Does nothing while no model serves, or where nothing changed since the last time.

    Args:
        params: what is held.
        root: the checkout; the model is written to `artifacts/provisional/`.

    Returns:
        The provisional versions that are new, sorted by category.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    champions = Champions()
    serving = champions.snapshot.champions
    base = choose_unified(serving)
    if base is None:
        return []
    images = _list_first_images(root / DATA_DIR, known={v.category for v in serving})
    if not images:
        return []
    detector = champions.load(base)
    manifest = Outputs(root).manifest
    left_out = find_quarantined(manifest) if manifest.is_file() else set()
    ranges = {name: _find_range(name, paths, params) for name, paths in images.items()}
    new = {
        name: usable
        for name, paths in images.items()
        if name not in detector.categories
        and (usable := _list_usable(paths, ranges[name], left_out=left_out))
    }
    made_from = _hash(base, new, ranges)
    now = [champions.snapshot.standing(name).provisional for name in new]
    if all(version is not None and version.made_from == made_from for version in now):
        return []
    _add(detector, new, ranges).save(Outputs(root).provisional)
    found = publishing.publish_provisional(
        Outputs(root).provisional,
        images={name: len(paths) for name, paths in new.items()},
        built_on=base,
        facts={
            "data_version": base.data_version or "unknown",
            "git_commit": base.git_commit or "unknown",
            "made_from": made_from,
        },
        experiment=params.register_.experiment,
    )
    for version in found:
        log.info("%s: version %d is provisional", version.category, version.number)
    return found


def _add(
    detector: Detector,
    new: Mapping[str, Sequence[Path]],
    ranges: Mapping[str, SampleRange | None],
) -> Detector:
    extended = detector
    for name, paths in sorted(new.items()):
        extended = extended.add_category(name, list(paths), sample_range=ranges[name])
    facts = {
        "built_on": detector.digest,
        "provisional_images": {name: [path.name for path in paths] for name, paths in new.items()},
    }
    provenance = {**detector.spec.provenance, **facts}
    extended.spec = extended.spec.model_copy(update={"provenance": provenance})
    return extended


def _list_first_images(data_dir: Path, *, known: set[str]) -> dict[str, list[Path]]:
    """Normal images by category, sorted, of categories without a champion."""
    found: dict[str, list[Path]] = {}
    for image in list_placed(data_dir):
        if image.split == "train" and image.label == GOOD and image.category not in known:
            found.setdefault(image.category, []).append(image.path)
    return found


def _find_range(category: str, paths: Sequence[Path], params: Params) -> SampleRange | None:
    """Range of a new category's samples: declared, or decided on its first images."""
    extents = []
    for path in paths[:_MAX_IMAGES]:
        with contextlib.suppress(ImageError):  # `_list_usable` names it
            extents.append(measure_samples(path))
    return params.data.declared_range(category) or decide_range(extents)


def _list_usable(
    paths: Sequence[Path], sample_range: SampleRange | None, *, left_out: set[str]
) -> list[Path]:
    """The first images that can be read; one that cannot be must not stop the others.

    What arrived since the manifest was written was judged when it was taken in; what the manifest
    leaves out, by its sha256, stays out.
    """
    found: list[Path] = []
    for path in paths:
        if len(found) == _MAX_IMAGES:
            break
        if left_out and hash_file(path) in left_out:
            continue
        try:
            load_image(path, sample_range=sample_range)
        except ImageError as error:
            log.warning("left out of the provisional model: %s", error)
        else:
            found.append(path)
    return found


def _hash(
    base: Version,
    images: Mapping[str, Sequence[Path]],
    ranges: Mapping[str, SampleRange | None],
) -> str:
    """Digest of all that provisional versions are made from."""
    lines = [base.digest, hash_code("detector", "images.py", "model")]
    lines += [f"{name} {ranges[name]}" for name in images]
    lines += [f"{name} {hash_file(path)}" for name, paths in images.items() for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

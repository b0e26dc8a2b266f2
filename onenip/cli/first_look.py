"""`onenip try`: a first answer without training, workspace or servers."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onenip.data.labels import GOOD
from onenip.errors import DataError, ImageError
from onenip.printing import open_console

if TYPE_CHECKING:
    from onenip.detector.detector import Detector

# of a category: more change little at a first look, and cost time
_MAX_NORMALS, _MEMORY_TOKENS = 24, 1024

log = logging.getLogger(__name__)


def first_look(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder or archive of images as `onenip download` reads it, or demo.",
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="For a picture of each test image and its heat map."),
    ] = Path("onenip-try"),
) -> None:
    """Judge test images at once, without training or a workspace: a first answer about your images.

    Compares each image with the normal ones of its category alone, by features that the backbone learned on
    other images. What `onenip run` trains draws defects more exactly, and is one model for all categories.
    Nothing is kept but the pictures.
    """
    # read when torch is imported; threads that spin while they wait take thrice as long beside other work
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from rich import box
    from rich.table import Table
    from tqdm import tqdm

    from onenip.evaluation.counts import VerdictCounts, describe_wrong
    from onenip.serving.files import predict_files, save_heatmap
    from onenip.sources.items import Workspace
    from onenip.sources.resolving import resolve_source

    table = Table("category", *describe_wrong({}), box=box.SIMPLE_HEAD)
    with tempfile.TemporaryDirectory() as scratch:
        fetched = resolve_source(source).fetch(Workspace(Path(scratch), Path(scratch) / "data"))
        normals, tests = dict[str, list[Path]](), dict[str, list[tuple[str, Path]]]()
        for item in sorted(fetched.items, key=lambda item: item.target):
            category, split, *_ = item.target.split("/")
            if split == "train":
                normals.setdefault(category, []).append(item.file)
            elif split == "test":
                tests.setdefault(category, []).append((item.target, item.file))
        missing = sorted(tests.keys() ^ normals.keys())
        if missing:
            log.warning("left out, without normal or without test images: %s", ", ".join(missing))
        judged = sorted(tests.keys() & normals.keys())
        if not judged:
            raise DataError(f"{source}: no category with both train/{GOOD} and test images")
        detector = _build({name: _choose_usable(name, normals[name]) for name in judged})
        for name in judged:
            verdicts = []
            answers = predict_files(detector, tests[name], category=name)
            shows_bar = sys.stderr.isatty()
            for answer in tqdm(
                answers, name, len(tests[name]), unit="image", disable=not shows_bar
            ):
                if answer.prediction is None:
                    log.warning("%s: %s", answer.name, answer.error)
                    continue
                is_defective = answer.name.split("/")[2] != GOOD
                found = answer.prediction
                verdicts.append((is_defective, found.score > found.threshold))
                save_heatmap(answer, out)
            counts = VerdictCounts.count(verdicts)
            table.add_row(name, *describe_wrong(counts.to_dict()).values())
    console = open_console()
    console.print(table)
    console.print(f"heat maps  {out}/CATEGORY/test", soft_wrap=True)
    console.print(
        "next       `onenip init plant` makes a workspace, `onenip run` in it trains",
        soft_wrap=True,
    )


def _choose_usable(category: str, files: Sequence[Path]) -> list[Path]:
    """The first images of a category that can be read, as many as are compared; others are named."""
    from onenip.images import load_preview

    usable: list[Path] = []
    for file in files:
        try:
            load_preview(file)
        except ImageError as error:
            log.warning("%s: left out: %s", ascii(file.name), error.reason)
        else:
            usable.append(file)
            if len(usable) == _MAX_NORMALS:
                break
    if not usable:
        raise DataError(f"{category}: none of its normal images can be read")
    return usable


def _build(normals: Mapping[str, Sequence[Path]]) -> Detector:
    """Detector without training: distances to the nearest tokens of normal images alone."""
    from onenip.detector.detector import Detector
    from onenip.model.file import DetectorSpec
    from onenip.model.network import Network
    from onenip.model.weights import load_backbone_weights
    from onenip.params import Params

    values = Params().dump()
    values["model"] |= {"memory_tokens": _MEMORY_TOKENS, "zoom": 1}
    values["calibrate"]["fusion_weights"] = {"restoration": 0.0, "distance": 1.0, "refined": 0.0}
    params = Params.parse(values)
    network = Network(params.model)
    load_backbone_weights(
        network.backbone, name=params.model.backbone, weights=params.model.weights, seed=params.seed
    )
    spec = DetectorSpec(
        model=params.model, calibrate=params.calibrate, categories={}, provenance={}
    )
    detector = Detector(network, spec=spec, states={})
    for name, images in normals.items():
        detector = detector.add_category(name, list(images))
    return detector

"""Public sets as a user brings them: by command, from mirrors named in the params, after a cut."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import boto3
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from onenip.cli import app
from tests.paths import ROOT
from tests.sources.originals import ORIGINALS
from tests.sources.real_originals import IMAGES, REAL_ORIGINALS
from tests.sources.web import Web, running_web

SETS = ("mvtec", "visa", "btad", "magnetic-tile", "dtd")
DRAWN = pytest.param(
    "drawn", marks=pytest.mark.slow
)  # test_sources.py tests each alone, and faster
REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not IMAGES.is_dir(), reason="needs the shared images"),
    ],
)


@pytest.fixture
def web():
    """A server on this machine, empty."""
    with running_web(Web()) as running:
        yield running


def name_mirrors(params: Path, urls: dict[str, str]) -> None:
    """Write `download.urls`."""
    yaml = YAML()
    values = yaml.load(params)
    values["download"]["urls"] = urls
    yaml.dump(values, params)


@pytest.mark.parametrize("archives", [DRAWN, REAL])
def test_all_public_sets_come_by_one_command(archives, web, s3_server, tmp_path, monkeypatch):
    """Five sets from mirrors, every HTTP connection cut in the middle, make one data set that validates."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    bodies = {n: (REAL_ORIGINALS if archives == "real" else ORIGINALS)[n]() for n in SETS}
    urls = {n: f"{web.address}/{n}#sha256=record" for n in SETS if n != "visa"}
    for name in urls:
        web.files[f"/{name}"] = bodies[name]
        web.cuts[f"/{name}"] = [len(bodies[name]) // 2]
    visa = f"VisA_{archives}.tar"
    boto3.Session().client("s3").put_object(Bucket="images", Key=visa, Body=bodies["visa"])
    name_mirrors(Path("params.yaml"), urls | {"visa": f"s3://images/{visa}#sha256=record"})
    command = ["download", *(word for name in SETS for word in ("--source", name))]

    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0
    assert not Path("data").exists()
    done = CliRunner().invoke(app, [*command, "--accept-license"])
    assert done.exit_code == 0, done.output
    judged = CliRunner().invoke(app, ["validate"])
    assert judged.exit_code == 0, judged.output

    asked = Counter(path for path, wanted in web.requests if wanted)
    assert asked == {f"/{name}": 1 for name in urls}
    for name in urls:
        assert (f"/{name}", f"bytes={len(bodies[name]) // 2}-") in web.requests
    summary = json.loads(Path("artifacts/validation/summary.json").read_text(encoding="utf-8"))
    origins = json.loads(Path("artifacts/download/origin.json").read_text(encoding="utf-8"))
    assert {entry["source"] for entry in origins["sources"]} == set(SETS) - {"dtd"}
    assert {"bottle", "pcb1", "btad_01", "btad_03", "magnetic_tile"} <= set(summary["categories"])
    assert list(Path("textures/dtd").glob("banded/*.jpg"))
    with Path("artifacts/validation/manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == summary["images"]
    assert all(r["mask"] for r in rows if r["split"] == "test" and r["label"] != "good")
    broken = {name for name, rule in summary["rules"].items() if rule["breaches"]}
    assert not {"readable", "mask_usable", "mask_not_empty", "no_stray_file"} & broken

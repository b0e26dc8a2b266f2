"""The circle through S3 with the real stages: what one person trained, another gets without training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from onenip.images import hash_file
from tests.paths import ROOT
from tests.tiny import draw_tiny_data, make_tiny_params

IDENTITY = ["-c", "user.name=A", "-c", "user.email=a@example.com"]


def call(*command: str, folder: Path, env: dict[str, str]) -> str:
    """What a command says; it must succeed."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file by its path."""
    return {
        p.relative_to(folder).as_posix(): hash_file(p) for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.slow
def test_a_fresh_clone_gets_model_and_metrics_without_training(s3_server, tmp_path):
    """Download, repro, push, clone, pull: nothing is run again, not even with only data and cache pulled."""
    environment = os.environ | s3_server.environment | {"OMP_NUM_THREADS": "2"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    dvc = [sys.executable, "-m", "dvc"]
    first, clone = tmp_path / "first", tmp_path / "clone"
    first.mkdir()
    for name in (
        "onenip",
        "textures",
        "constraints.txt",
        "dvc.yaml",
        "retrain.yaml",
        ".gitignore",
        ".dvcignore",
        ".dvc/config",
        ".dvc/plots",
    ):
        source, target = ROOT / name, first / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    params = make_tiny_params().dump()
    with (first / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(json.loads(json.dumps(params)), file)
    git = ["git", *IDENTITY]
    call(*git, "init", "-q", "-b", "main", folder=first, env=environment)
    call(*dvc, "remote", "add", "-d", "team", "s3://dvc-cache/real", folder=first, env=environment)
    images = draw_tiny_data(tmp_path / "images")
    download = [sys.executable, "-m", "onenip", "download", "--source", str(images)]

    call(*download, folder=first, env=environment)
    trained = call(*dvc, "repro", folder=first, env=environment)
    assert "Running stage 'train'" in trained
    call(*dvc, "push", folder=first, env=environment)
    call(*git, "add", ".", folder=first, env=environment)
    call(*git, "commit", "-q", "-m", "Train", folder=first, env=environment)
    call(*git, "clone", "-q", str(first), str(clone), folder=tmp_path, env=environment)
    assert not (clone / "data").exists()
    assert not (clone / "artifacts").exists()
    call(*dvc, "pull", folder=clone, env=environment)

    for name in ("data", "artifacts"):
        mine = tree(first / name)
        if name == "artifacts":  # what no stage makes: the record of the download, a checkpoint
            outs = ("validation", "synthesis", "model", "training", "evaluation")
            mine = {path: sha for path, sha in mine.items() if path.startswith(outs)}
            assert {"model/model.safetensors", "evaluation/metrics.json"} <= mine.keys()
        assert tree(clone / name) == mine
    assert "up to date" in call(*dvc, "repro", folder=clone, env=environment)
    shutil.rmtree(clone / "artifacts")  # as if only the cache were here
    restored = call(*dvc, "repro", folder=clone, env=environment)
    assert "Running stage" not in restored
    model = "artifacts/model/model.safetensors"
    assert hash_file(clone / model) == hash_file(first / model)

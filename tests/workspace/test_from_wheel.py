"""From a wheel to a server that answers, as the tutorial has it: without a checkout, in ten commands."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import httpx
import pytest

from onenip.params.presets import render
from tests.paths import ROOT
from tests.tiny import draw_tiny_data, make_tiny_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FEW_DRAWS = {"bootstrap_draws": 100}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Commands of an environment with this product's wheel, from its source archive; libraries are ours."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip"]
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    program = f"import checkout_backend; checkout_backend.build_sdist({str(folder)!r})"
    env = {**os.environ, "PYTHONPATH": "build_backend"}
    subprocess.run([sys.executable, "-c", program], cwd=source, env=env, check=True)
    (archive,) = folder.glob("*.tar.gz")
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, archive]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv/bin/python"
    command = [*pip, "--python", python, "install", "-q", "--no-deps", "--force-reinstall", wheel]
    subprocess.run(command, check=True)
    return folder / "venv/bin"


def test_from_a_wheel_to_an_answer(installed, tmp_path):
    """Workspace, images, pipeline, approval, server; then nothing is left to do, and nothing to upgrade."""
    hidden = ("AWS_", "MLFLOW_", "PREFECT_", "PYTHONPATH", "ONENIP_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    env["PATH"] = f"{installed}:{env['PATH']}"
    plant = tmp_path / "plant"

    def call(*words: str, folder: Path = plant) -> str:
        done = subprocess.run(
            words, cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
        return done.stdout

    where = call("python", "-c", "import flows, onenip; print(flows.__file__)", folder=tmp_path)
    assert where.startswith(str(installed.parent))
    call("onenip", "init", "plant", "--preset", "cpu", folder=tmp_path)
    (plant / "params.yaml").write_text(render(make_tiny_params(evaluate=FEW_DRAWS)))
    images = draw_tiny_data(tmp_path / "images", train=12)
    first = call("onenip", "run", "--source", str(images))
    again = call("onenip", "run")
    call("git", "add", "-A")
    call("git", "commit", "-qm", "First model")
    status = call("onenip", "status")
    decide = ["--by", "Ada", "--reason", "looked at it", "--override"]
    call("onenip", "approve", "disc", *decide)

    lines = first.splitlines()
    for step in ("download", "validate", "synthesize", "train", "evaluate", "register"):
        assert sum(line.startswith(f"{step} ") for line in lines) == 1
    assert "git add" not in first
    assert "alembic" not in first
    assert any(line.startswith("defects missed: ") for line in lines)
    assert "onenip inspect" in lines[-2]
    assert "up to date" in next(line for line in again.splitlines() if line.startswith("train"))
    assert "disc" in status
    assert call("git", "status", "--porcelain") == ""
    assert max(map(len, call("python", "-m", "dvc", "metrics", "show").splitlines())) < 100
    assert "already" in call("onenip", "upgrade")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(["onenip", "serve", "--port", str(port)], cwd=plant, env=env)
    try:
        assert _ask(port, images / "disc/test/spot/000.png")["category"] == "disc"
    finally:
        server.terminate()
        server.wait()


def _ask(port: int, image: Path) -> dict[str, object]:
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/ready", timeout=10).is_success:
                break
        except httpx.HTTPError:
            pass
        time.sleep(1)
    with image.open("rb") as file:
        answer = httpx.post(
            f"{address}/predict/file",
            files={"file": file},
            data={"category": "disc"},
            timeout=60,
        )
    return answer.raise_for_status().json()

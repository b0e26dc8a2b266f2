"""A factory in a folder: a checkout with few images of two products, real servers, workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
import psutil
from PIL import Image

from flows.local_s3 import start_s3
from tests.paths import ROOT, SHARED

IMAGES = SHARED / "data"
BUCKET = "plant"
S3_SECRET = "the same after a restart"
SECTIONS = {
    "data": {"holdout_fraction": 0.2},
    "model": {"input_size": [128, 128], "backbone": "tf_efficientnet_lite0", "memory_tokens": 512},
    "train": {"max_steps": 20, "checkpoint_seconds": 2.0},
    "gate": {
        "floors": {"image_auroc": 0.6},
        "margins": {"image_auroc": 0.15, "pixel_auroc": 0.15},
        "max_false_alarm_rate": 0.4,
        "max_slowdown": 5.0,
    },
    "retrain": {
        "cron": "* * * * *",
        "min_new_images": 3,
        "settle_seconds": 0.0,
        "max_wait_hours": 1.0,
        "push": True,
    },
}
CAUTIOUS = {"min_normals": 1000, "floors": {}, "margins": {}}  # held, whatever 30 steps bring

T = TypeVar("T")


@dataclass(frozen=True)
class Products:
    """Two products and their images.

    Attributes:
        first: name of the product that the gate decides about.
        second: name of the product that a person decides about.
        arrivals: normal images that are in no data set yet, by product.
        defect: an image with a clear defect of the first product.
    """

    first: str
    second: str
    arrivals: dict[str, list[Path]]
    defect: Path


def lay_out_data(folder: Path) -> Products:
    """Few images of two products in MVTec layout: real ones where there are any, else drawn ones."""
    source, arrivals = IMAGES / "inspection", IMAGES / "arrivals"
    names = ("bottle", "ball_screw")
    if not source.is_dir():
        from onenip.sources.demo import draw_demo

        source, arrivals = folder.parent / "demo", folder.parent / "more"
        draw_demo(source)
        names = tuple(sorted(p.name for p in source.iterdir() if p.is_dir()))[:2]
    found: dict[str, list[Path]] = {}
    kept = 32 if arrivals.is_dir() else 16  # of the 24 that are drawn
    for name in names:
        _copy(source, folder, name, "train/good", kept)
        _copy(source, folder, name, "test/good", 12)
        for kind in sorted(p.name for p in (source / name / "test").iterdir() if p.name != "good"):
            _copy(source, folder, name, f"test/{kind}", 6)
        if arrivals.is_dir():
            found[name] = sorted((arrivals / name).rglob("*.*"))
        else:
            found[name] = sorted((source / name / "train/good").iterdir())[kept:]
    defects = sorted(
        p for p in (source / names[0] / "test").rglob("*.*") if p.parent.name != "good"
    )
    used = {p.name for p in (folder / names[0] / "test").rglob("*.*")}
    spare = [p for p in defects if p.name not in used]
    return Products(names[0], names[1], found, _choose_largest(spare or defects, source, names[0]))


def _copy(source: Path, folder: Path, name: str, part: str, count: int) -> None:
    target = folder / name / part
    target.mkdir(parents=True)
    for path in sorted((source / name / part).iterdir())[:count]:
        shutil.copy(path, target)
        mask = source / name / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if mask.is_file():
            masks = folder / name / "ground_truth" / path.parent.name
            masks.mkdir(parents=True, exist_ok=True)
            shutil.copy(mask, masks)


def _choose_largest(images: list[Path], source: Path, name: str) -> Path:
    """The image whose mask covers most: a defect that no champion overlooks."""

    def cover(path: Path) -> float:
        mask = source / name / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        return float((np.asarray(Image.open(mask)) > 0).mean()) if mask.is_file() else 0.0

    return max(images, key=cover)


def make_checkout(folder: Path, env: dict[str, str], *, inbox: str, remote: str) -> Products:
    """A clone of the team's repository with the data of the plant, versioned and pushed."""
    origin = folder.with_name(f"{folder.name}.git")
    run(["git", "clone", "-q", "--bare", str(ROOT), str(origin)], folder.parent, env)
    run(["git", "update-ref", "refs/heads/main", "HEAD"], origin, env)  # CI checks out no branch
    run(["git", "symbolic-ref", "HEAD", "refs/heads/main"], origin, env)
    run(["git", "clone", "-q", str(origin), str(folder)], folder.parent, env)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    products = lay_out_data(folder / "data")
    write_params(folder, SECTIONS | {"retrain": {**SECTIONS["retrain"], "inbox": inbox}})
    for name, value in (("user.name", "Plant"), ("user.email", "plant@example.com")):
        run(["git", "config", name, value], folder, env)
    dvc = [sys.executable, "-m", "dvc"]
    run([*dvc, "remote", "add", "-d", "-f", "-q", "plant", remote], folder, env)
    endpoint = env.get("AWS_ENDPOINT_URL")
    if remote.startswith("s3://") and endpoint:
        run([*dvc, "remote", "modify", "-q", "plant", "endpointurl", endpoint], folder, env)
    run([*dvc, "add", "-q", "data"], folder, env)
    run([*dvc, "push", "-q"], folder, env)
    run(["git", "add", "-f", "data.dvc", ".dvc/config", "params.yaml"], folder, env)
    run(["git", "commit", "-q", "-m", "The plant"], folder, env)
    return products


def write_params(folder: Path, sections: dict[str, dict[str, object]]) -> None:
    """Write params.yaml with sections on top of the preset for the CPU."""
    from onenip.params import Params
    from onenip.params.presets import load_preset, merge, render

    values = merge(load_preset("cpu").dump(), sections)
    (folder / "params.yaml").write_text(render(Params.parse(values)), encoding="utf-8")


def run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def base_environment(checkout: Path) -> dict[str, str]:
    """What every process of the plant sees."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }


@contextmanager
def running(command: list[str], folder: Path, env: dict[str, str], log: Path) -> Iterator[int]:
    """A process, with all that it starts, for the length of a block; its id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


class Servers:
    """S3, Prefect's and MLflow's servers, whose state lies in one folder; each may be killed and come back.

    Args:
        folder: made if need be; a copy of it, made while they are stopped, starts as they were.
        env: of the processes.
    """

    NAMES = ("s3", "mlflow", "prefect")

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self._base = folder, env
        self._ports = {name: free_port() for name in self.NAMES if name != "s3"}
        self._s3_port: int | None = None
        self._processes: dict[str, int] = {}
        self._own: dict[str, str] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make every process of the plant speak to these servers."""
        return self._own | {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self._ports['mlflow']}",
            "PREFECT_API_URL": self.api,
        }

    @property
    def api(self) -> str:
        """Address of Prefect's API."""
        return f"http://127.0.0.1:{self._ports['prefect']}/api"

    def __enter__(self) -> Servers:
        """Start all of them."""
        for name in self.NAMES:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all of them."""
        for name in list(self._processes):
            self.kill(name, gently=True)

    def start(self, name: str) -> None:
        """Start one of them, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if name == "s3":
            server = start_s3(
                self.folder / "s3", buckets=(BUCKET,), secret_key=S3_SECRET, port=self._s3_port
            )
            self._own = server.environment
            self._s3_port = int(server.endpoint.rpartition(":")[2])
            self._processes[name] = server.process_id
            return
        address = f"http://127.0.0.1:{self._ports[name]}"
        if name == "mlflow":
            command = _mlflow_command(self.folder, self._ports[name], f"s3://{BUCKET}/mlflow")
            env, health = self._base | self._own, f"{address}/health"
        else:
            command = _prefect_command(self._ports[name])
            env, health = _prefect_environment(self.folder, self._base), f"{address}/api/health"
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self._processes[name] = process.pid
        wait_until(lambda: _answers(health), 150, name)

    def kill(self, name: str, *, gently: bool = False) -> None:
        """End one of them; without a chance to finish anything, unless it is done gently."""
        process = psutil.Process(self._processes.pop(name))
        kill_tree(process, gently=gently)


def kill_tree(process: psutil.Process, *, gently: bool = False) -> None:
    """SIGKILL a process and all that it started; gently, it is asked to end first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        if gently:
            process.terminate()
            psutil.wait_procs(family, timeout=25)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=15)


def _mlflow_command(folder: Path, port: int, artifacts: str) -> list[str]:
    return [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", artifacts,
    ]  # fmt: skip


def _prefect_command(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]


def _prefect_environment(folder: Path, env: dict[str, str]) -> dict[str, str]:
    own = env | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
    }
    own.pop("PREFECT_API_URL", None)
    return own


@contextmanager
def prefect_server(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """A Prefect server alone; its API address."""
    port = free_port()
    own = _prefect_environment(folder, env)
    with running(_prefect_command(port), folder, own, folder / "prefect.log"):
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/api/health"), 120, "Prefect's server")
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def mlflow_server(folder: Path, env: dict[str, str], *, artifacts: str) -> Iterator[str]:
    """An MLflow server alone; its address."""
    port = free_port()
    with running(_mlflow_command(folder, port, artifacts), folder, env, folder / "mlflow.log"):
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/health"), 120, "MLflow's server")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def product_server(checkout: Path, env: dict[str, str]) -> Iterator[str]:
    """`onenip serve`, which follows the champions; its address, once it is ready to answer."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "onenip",
        "serve",
        "--port",
        str(port),
        "--refresh-seconds",
        "2",
    ]
    address = f"http://127.0.0.1:{port}"
    with running(command, checkout, env, checkout.parent / "serve.log"):
        wait_until(lambda: _answers(f"{address}/ready"), 180, "onenip serve")
        yield address


@contextmanager
def workers(checkout: Path, env: dict[str, str], pools: tuple[str, ...]) -> Iterator[list[int]]:
    """A worker for each pool; their process ids."""
    with ExitStack() as stack:
        found = []
        for pool in pools:
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
            log = checkout.parent / f"{pool}.log"
            started = running([*command, "--type", "process"], checkout, env, log)
            found.append(stack.enter_context(started))
        yield found


def wait_until(check: Callable[[], T | None], seconds: float, what: str) -> T:
    """What `check` gives once it gives something; a busy machine gets more time."""
    deadline = time.monotonic() + seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=2).is_success
    except httpx.HTTPError:
        return False

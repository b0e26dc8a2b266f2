"""Drills: kills, damaged images and mixed requests, and how many went wrong.

    python -m benchmarks.drill [--kills 20] [--images 5000] [--requests 500]

A kill is a SIGKILL at a random moment of a process that registers, approves or writes a model, downloads or
ingests. The same work again must end as without the kill, and a model must load at any time. Damaged images
are whole ones with bytes changed, cut off or put in; each must load or be refused. Requests go to a real
`onenip serve`; good images must get the same answer all the time, others their refusal. Status 1 if
anything went wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.inference import CATEGORY, SIDE_PX, build_ours
from benchmarks.machine import print_heading
from benchmarks.soak import make_bodies, wait_until_ready
from flows.services import find_free_port
from onenip.detector.detector import Detector
from onenip.errors import ImageError
from onenip.images import load_image
from onenip.ingestion.ingest import ingest
from onenip.params import Params
from onenip.params.presets import load_preset
from onenip.registry import approval, audit, decisions, store, versions
from onenip.registry.publishing import publish
from onenip.sources.inbox import FolderInbox
from onenip.stages import download

_EXPECTED = {
    "good": 200,
    "truncated": 422,
    "text": 422,
    "huge": 413,
    "too many bytes": 413,
    "no key": 401,
    "unknown category": 404,
}
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_KEY = "drill"


@dataclass(frozen=True)
class Work:
    """Something to kill, in a folder of its own.

    Attributes:
        begin: lays the folder out.
        do: the work; the same again must change nothing.
        look: what there is, once the work is done; also checks what must always hold.
    """

    begin: Callable[[Path], object]
    do: Callable[[Path], object]
    look: Callable[[Path], object]


def main() -> int:
    """Run all and print a table; 1 if something went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each kind of work")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print_heading("benchmarks.drill", threads=1, packages=["mlflow", "dvc", "pillow"])
    print("| drill | tried | wrong |\n|---|---|---|")
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, work in make_work(folder).items():
            killed, lost = kill(work, folder / name.replace(" ", "-"), rounds=options.kills)
            print(f"| kill of {name} | {killed} | {lost} |", flush=True)
            wrong += lost
        faults = damage_images(options.images)
        print(f"| damaged images | {options.images} | {sum(faults.values())} |", flush=True)
        answers = send_requests(folder, options.requests)
        odd = sum(times for (kind, code), times in answers.items() if _EXPECTED[kind] != code)
        print(f"| requests of {len(_EXPECTED)} kinds | {answers.total()} | {odd} |\n", flush=True)
        for what, times in {**faults, **answers}.items():
            print(what, times)
    return 1 if wrong + sum(faults.values()) + odd else 0


def kill(work: Work, folder: Path, *, rounds: int) -> tuple[int, int]:
    """How many runs were killed, and after how many of them something was lost."""
    work.begin(folder / "whole")
    started_at = time.monotonic()
    fork(lambda: work.do(folder / "whole"))
    seconds = time.monotonic() - started_at
    wanted = fork(lambda: work.look(folder / "whole"))
    rng = np.random.default_rng(0)
    killed = lost = 0
    for number in range(rounds):
        place = folder / str(number)
        work.begin(place)
        try:
            fork(lambda at=place: work.do(at), kill_after=float(rng.uniform(0, seconds)))
            continue  # it was faster
        except InterruptedError:
            killed += 1
        try:
            fork(lambda at=place: work.do(at))
            found = fork(lambda at=place: work.look(at))
        except RuntimeError as error:
            found = str(error)
        if found != wanted:
            lost += 1
            print(f"{place}: {found}\ninstead of {wanted}", file=sys.stderr)
        shutil.rmtree(place)
    return killed, lost


def fork(work: Callable[[], object], *, kill_after: float | None = None) -> Any:
    """What `work` gives in a process of its own, as JSON has it.

    Raises:
        InterruptedError: if it was killed.
        RuntimeError: if it failed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"done": work()}
        except BaseException:  # noqa: BLE001  # all of it goes to the parent
            answer = {"failed": traceback.format_exc()}
        os.write(writer, json.dumps(answer, default=str).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    if not content:
        raise InterruptedError
    found = json.loads(content)
    if "failed" in found:
        raise RuntimeError(found["failed"])
    return found["done"]


def make_work(folder: Path) -> dict[str, Work]:
    """All that is killed, by name."""
    models = [folder / f"model{number}" for number in (1, 2)]
    detector = build_ours(load_preset("cpu"))
    for number, model in enumerate(models):
        detector.spec = detector.spec.model_copy(update={"provenance": {"number": number}})
        detector.save(model)
        row = {"image_auroc": 0.9}
        figures = {"mean": row, "categories": {CATEGORY: row}}
        content = {"model_digest": Detector.load(model).digest, **figures}
        (folder / f"scored{number + 1}").mkdir()
        (folder / f"scored{number + 1}/metrics.json").write_text(json.dumps(content))
    return make_model_work(folder, models) | make_data_work(folder)


def make_model_work(folder: Path, models: Sequence[Path]) -> dict[str, Work]:
    """Registering, approving and writing a model."""

    def use(place: Path) -> None:
        os.chdir(place)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"

    def register(place: Path, number: int) -> None:
        use(place)
        scored = folder / f"scored{number}"
        publish(models[number - 1], evaluation_dir=scored, params={}, facts={})

    def registered(place: Path) -> None:
        if not (folder / "registry").is_dir():
            (folder / "registry").mkdir()
            fork(lambda: register(folder / "registry", 1))
        shutil.copytree(folder / "registry", place, ignore=shutil.ignore_patterns("mlartifacts"))

    def empty(place: Path) -> None:
        place.mkdir(parents=True)
        if not (folder / "mlflow.db").exists():
            fork(lambda: (use(folder), store.connect(create=True), None)[-1])
        shutil.copy(folder / "mlflow.db", place)

    def approve(place: Path) -> None:
        use(place)
        version = versions.champion(CATEGORY)
        if version is None or decisions.find_intents(CATEGORY):
            approval.approve(CATEGORY, by="Ada", reason="drill")

    def save(place: Path) -> None:
        Detector.load(place / "model")  # the old one or the new one
        Detector.load(models[1]).save(place / "model")

    return {
        "register": Work(empty, lambda place: register(place, 1), look_at_registry),
        "approve": Work(registered, approve, look_at_registry),
        "save": Work(
            lambda place: shutil.copytree(models[0], place / "model"),
            save,
            lambda place: Detector.load(place / "model").digest,
        ),
    }


def make_data_work(folder: Path) -> dict[str, Work]:
    """Downloading and ingesting images."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(12)]
    data = folder / "images"
    for number, image in enumerate(images):
        path = data / CATEGORY / "train/good" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    def checkout(place: Path) -> None:
        if not (folder / "checkout").is_dir():
            lay_out(folder / "checkout")
        shutil.copytree(folder / "checkout", place)
        for path in (place / "inbox").rglob("*.png"):
            os.utime(path, (1e9, 1e9))  # it grows no more

    def lay_out(place: Path) -> None:
        place.mkdir(parents=True)
        shutil.copytree(data, place / "data")
        shutil.copytree(data / CATEGORY / "train/good", place / "inbox" / CATEGORY)
        for number, path in enumerate(sorted((place / "inbox" / CATEGORY).iterdir())):
            if number % 3:  # the others are duplicates
                fresh = np.roll(images[number], 9 * number + 5, axis=(0, 1)) // 2 + 60
                Image.fromarray(fresh).save(path)
        for command in (
            "git init -q",
            "dvc init -q",
            "dvc add -q data",
            "git add -A .dvc data.dvc",
        ):
            run(place, *command.split())
        run(place, "git", *["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "Start"])
        for key in ("name", "email"):
            run(place, "git", "config", f"user.{key}", "a@example.com")

    def take_in(place: Path) -> None:
        os.chdir(place)
        inbox = FolderInbox(place / "inbox")
        ingest(Params(), inbox=inbox, find_champion=lambda _: None, root=place)

    def old_data(place: Path) -> None:
        shutil.copytree(data, place / "data")
        (place / "data" / CATEGORY / "train/good/0.png").unlink()

    def fetch(place: Path) -> None:
        record = place / "origin.json"
        download.run(Params(), sources=[str(data)], data_dir=place / "data", record=record)

    def look_at_data(place: Path) -> list[str]:
        names = [path.name for path in sorted((place / "data").rglob("*.png"))]
        assert len(names) in (len(images) - 1, len(images)), names
        return names

    return {
        "download": Work(old_data, fetch, look_at_data),
        "ingest": Work(checkout, take_in, look_at_files),
    }


def run(folder: Path, *command: str) -> None:
    """Run a program of this environment in a folder."""
    start = [sys.executable, "-m"] if command[0] == "dvc" else []
    subprocess.run([*start, *command], cwd=folder, check=True, capture_output=True)


def look_at_registry(place: Path) -> object:
    """What the registry holds, but for moments and identifiers; its trail must be whole."""
    os.chdir(place)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
    trail = audit.read_trail(CATEGORY)
    assert audit.find_breaks(trail, audit.read_heads(CATEGORY)) == []
    assert decisions.find_intents(CATEGORY) == []
    found = [
        (v.number, v.aliases, v.approval, v.approver) for v in versions.list_versions(CATEGORY)
    ]
    return [found, [(entry.action, entry.version, entry.by) for entry in trail]]


def look_at_files(place: Path) -> list[str]:
    """Where each image lies, by its content; names that are given anew do not count."""
    found = []
    for path in [*(place / "data").rglob("*.png"), *place.glob("inbox*/**/*.png")]:
        parts = path.relative_to(place).parts
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        found.append(" ".join([*parts[:2], digest]))
    return sorted(found)


def damage_images(count: int) -> Counter[str]:
    """Errors that are no refusal, by their kind, of so many damaged images."""
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 255, (48, 40, 3), np.uint8))
    whole = []
    for form in _FORMATS:
        stream = io.BytesIO()
        picture.save(stream, form)
        whole.append(stream.getvalue())
    faults: Counter[str] = Counter()
    for number in range(count):
        content = bytearray(whole[number % len(whole)])
        for place in rng.integers(0, min(len(content), 600), rng.integers(1, 12)):
            content[place] = rng.integers(0, 256)
        if number % 4 == 0:
            content = content[: rng.integers(0, len(content))]
        if number % 7 == 0:
            at = int(rng.integers(0, len(content) + 1))
            content[at:at] = rng.bytes(50)
        try:
            load_image(bytes(content))
        except ImageError:
            pass
        except Exception as error:  # noqa: BLE001  # what the drill looks for
            faults[f"{_FORMATS[number % len(whole)]}: {error!r}"] += 1
    return faults


def send_requests(folder: Path, count: int) -> Counter[tuple[str, int]]:
    """Answers of a real server by kind and status; a good one that changed counts as status 0."""
    rng = np.random.default_rng(2)
    images = folder / "asked"
    images.mkdir()
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (SIDE_PX, SIDE_PX, 3), np.uint8)).save(
            images / f"{number}.png"
        )
    port = find_free_port()
    command = [sys.executable, "-m", "onenip", "serve", "--model", str(folder / "model1")]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--max-mb", "4"],
        env=os.environ | {"ONENIP_API_KEY": _KEY},
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(address, process)
        return ask(address, make_bodies(images), rng.choice(list(_EXPECTED), count).tolist())
    finally:
        process.terminate()
        process.wait(60)


def ask(
    address: str, bodies: dict[str, list[bytes]], kinds: Sequence[str]
) -> Counter[tuple[str, int]]:
    """Send requests of these kinds, eight at a time."""
    answers: Counter[tuple[str, int]] = Counter()
    first: dict[int, object] = {}

    def send(number: int) -> None:
        kind = kinds[number]
        contents = bodies.get(kind, bodies["good"])
        chosen = number % len(contents)
        with httpx.Client(timeout=300) as client:
            try:
                found = client.post(
                    f"{address}/predict/file",
                    files={"file": contents[chosen]},
                    data={"category": "nothing" if kind == "unknown category" else CATEGORY},
                    headers={} if kind == "no key" else {"X-API-Key": _KEY},
                )
            except httpx.TransportError:  # refused while the body was still sent
                answers[kind, _EXPECTED[kind] if kind in ("no key", "too many bytes") else -1] += 1
                return
        code = found.status_code
        if code == 200:
            answer = {key: found.json()[key] for key in ("score", "verdict", "regions")}
            code = 200 if first.setdefault(chosen, answer) == answer else 0
        answers[kind, code] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(len(kinds))))
    return answers


if __name__ == "__main__":
    sys.exit(main())

"""Memory of a server: ten thousand good and bad requests to a real `onenip serve`.

    python -m benchmarks.soak --model artifacts/model --images data/bottle/test --category bottle

Prints the resident memory of the process while it answers, and what it answered.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from onenip.images import IMAGE_SUFFIXES

KEY = "benchmark"  # of the interface
_CLIENTS = 8
_SAMPLES = 10
_MIB = 1 << 20


def main() -> None:
    """Run the requests and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a model; the registry's champions if left out")
    parser.add_argument("--images", type=Path, required=True, help="folder of good requests")
    parser.add_argument("--category", required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    with serving("--max-mb", "4", model=options.model) as (address, process):
        bodies = make_bodies(options.images)
        run(address, options.category, bodies, options.requests, process)


@contextmanager
def serving(*options: str, model: str | None) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of `onenip serve` with a model, or the registry's champions, for a block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "onenip", "serve", "--port", str(port), *options]
    command += ["--model", model] if model else []
    process = subprocess.Popen(command, env=os.environ | {"ONENIP_API_KEY": KEY})
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(address, process)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for the first champion."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/ready").is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("the server did not become ready")


def make_bodies(folder: Path) -> dict[str, list[bytes]]:
    """Contents of requests by kind: good ones, truncated ones, text, and a huge image in a small file."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)[:50]
    good = [path.read_bytes() for path in files]
    stream = io.BytesIO()
    Image.fromarray(np.zeros((10_000, 10_000), np.uint8)).save(stream, "PNG")  # 100 megapixels
    return {
        "good": good,
        "truncated": [content[: len(content) // 2] for content in good],
        "text": [b"no image " * 100],
        "huge": [stream.getvalue()],
        "too many bytes": [bytes(5 * _MIB)],
    }


def run(
    address: str,
    category: str,
    bodies: dict[str, list[bytes]],
    count: int,
    process: psutil.Process,
) -> None:
    """Send the requests in a fixed random order; print a line per sample."""
    rng = np.random.default_rng(0)
    kinds = ["good", "truncated", "text", "huge", "too many bytes", "no key", "unknown category"]
    order = rng.choice(kinds, size=count, p=[0.7, 0.1, 0.05, 0.02, 0.03, 0.05, 0.05])
    answers: Counter[tuple[str, int]] = Counter()
    client = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=_CLIENTS))

    def ask(number: int) -> None:
        kind = str(order[number])
        contents = bodies.get(kind, bodies["good"])
        found = client.post(
            f"{address}/predict/file",
            files={"file": contents[number % len(contents)]},
            data={"category": "nothing" if kind == "unknown category" else category},
            headers={} if kind == "no key" else {"X-API-Key": KEY},
        )
        answers[kind, found.status_code] += 1

    print("| requests | resident MiB | seconds |\n|---|---|---|")
    print(f"| 0 | {process.memory_info().rss / _MIB:.0f} | 0 |")
    started_at = time.monotonic()
    with ThreadPoolExecutor(_CLIENTS) as pool:
        for part in np.array_split(np.arange(count), _SAMPLES):
            list(pool.map(ask, part.tolist()))
            rss = process.memory_info().rss / _MIB
            print(
                f"| {part[-1] + 1} | {rss:.0f} | {time.monotonic() - started_at:.0f} |", flush=True
            )
    client.close()
    print("\n| request | status | times |\n|---|---|---|")
    for (kind, code), times in sorted(answers.items()):
        print(f"| {kind} | {code} | {times} |")


if __name__ == "__main__":
    main()

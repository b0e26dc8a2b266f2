"""Requests to MLflow's server for 2, 10 and 100 categories: `python -m benchmarks.registry`.

Each category has a champion and a challenger of one model that is stored once. Counted is what is sent while
`onenip status` runs, a challenger is approved, a server follows that, and looks again. An approval renews its
lock every 8 seconds, with two requests more.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

from requests.adapters import HTTPAdapter
from typer.testing import CliRunner

from benchmarks.machine import print_heading
from onenip.cli import app
from onenip.registry import approval, audit, store, versions
from onenip.registry.publishing import publish
from onenip.registry.tags import Version, registered_name, to_tags
from onenip.serving.champions import Follower
from tests.acceptance.plant import mlflow_server
from tests.tiny import draw_tiny_data, fit_tiny, make_tiny_params, write_figures

Row = tuple[int, str, int, float]  # categories, what was done, requests, seconds


def main() -> None:
    """Measure each number of categories on a server of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--categories", type=int, nargs="+", default=[2, 10, 100])
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)
    print_heading("benchmarks.registry", threads=0, packages=("mlflow",))
    print("| categories | | requests | s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        fit_tiny(
            draw_tiny_data(Path(folder) / "data"), make_tiny_params(), Path(folder) / "fit"
        ).detector.save(model)
        for count in wanted.categories:
            for row in measure_requests(count, model=model, folder=Path(folder) / str(count)):
                print("| {} | {} | {} | {:.2f} |".format(*row), flush=True)


def measure_requests(categories: int, *, model: Path, folder: Path) -> list[Row]:
    """What is asked of a real server with so many categories.

    Args:
        categories: at least 2.
        model: folder of a model, of the categories `disc` and `stripes`.
        folder: for the server; made.
    """
    folder.mkdir()
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (
        mlflow_server(folder, environment, artifacts=str(folder / "store")) as address,
        patch.dict(os.environ, MLFLOW_TRACKING_URI=address),
        chdir(folder),
    ):
        os.environ.pop("MLFLOW_REGISTRY_URI", None)
        scored = write_figures(folder / "scored", model)
        first, *_ = publish(model, evaluation_dir=scored, params={}, facts={})
        _register(first, categories - 2)
        follower = Follower()
        follower.refresh()
        works: dict[str, Callable[[], object]] = {
            "`onenip status`": lambda: CliRunner().invoke(app, ["status"]),
            "approval": lambda: approval.approve("disc", by="benchmark", reason="counted"),
            "server follows it": follower.refresh,
            "server looks again": follower.refresh,
        }
        return [(categories, name, *_count(work)) for name, work in works.items()]


def _register(like: Version, count: int) -> None:
    """Further categories with a champion and a challenger of a version's model."""
    client = store.connect()
    model = {"digest": like.digest, "weights_uri": like.weights_uri}
    for name in (f"part{number:03}" for number in range(count)):
        registered = registered_name(name)
        client.create_registered_model(registered)
        for number, alias in (("1", versions.CHAMPION), ("2", versions.CHALLENGER)):
            approval = "approved" if number == "1" else "pending"
            tags = to_tags(**model, metrics={}, facts={}, approval=approval)
            tags["approved_digest"] = like.digest
            client.create_model_version(
                registered,
                source=like.weights_uri,
                tags=tags,
                model_id=like.weights_uri.rpartition("/")[2],
            )
            client.set_registered_model_alias(registered, alias, number)
        audit.record(name, "approve", version=1, by="benchmark", reason="registered")


def _count(work: Callable[[], object]) -> tuple[int, float]:
    """Requests and seconds of a piece of work."""
    send = HTTPAdapter.send
    with patch.object(HTTPAdapter, "send", autospec=True, side_effect=send) as sent:
        started_at = time.perf_counter()
        work()
        return sent.call_count, time.perf_counter() - started_at


if __name__ == "__main__":
    main()

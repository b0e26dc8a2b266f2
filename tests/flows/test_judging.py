"""Judging as a flow: in this process, and on two workers of a real Dask cluster."""

import os
import pickle
import subprocess
import sys
import time

import pytest

from onenip.errors import ImageError, OneNIPError, UnreachableError
from onenip.params.presets import render
from onenip.registry import approval
from tests.operation.test_retraining import registry, write_manifest  # noqa: F401  # a fixture
from tests.tiny import make_tiny_params


@pytest.fixture(scope="module")
def server():
    """A Prefect server for the length of this file."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=150):
        yield


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler with two worker processes."""
    from distributed import Client

    from flows.services import find_free_port

    address = f"tcp://127.0.0.1:{find_free_port()}"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": tmp_path}
    commands = [[*dask, "scheduler", "--host", address, "--no-dashboard"]]
    commands += [[*dask, "worker", address, "--nthreads", "1", "--no-dashboard"]] * 2
    processes = [subprocess.Popen(command, env=os.environ, **quiet) for command in commands]
    with Client(address, timeout=120, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
    yield address
    for process in reversed(processes):
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("registry", "server")
def test_two_dask_workers_judge_as_this_process_does(
    tmp_path, tiny_model, tiny_data, cluster, monkeypatch
):
    """The same verdicts and reasons but for the time an image took; each category on some worker."""
    from flows.judging import choose_task_runner, judge_model

    params = make_tiny_params()
    (tmp_path / "data").symlink_to(tiny_data)
    (tmp_path / "params.yaml").write_text(render(params))
    manifest = write_manifest(tmp_path / "manifest.csv", tiny_data, params)
    approval.approve("disc", by="Ada", reason="good")

    here = judge_model(tiny_model, manifest)
    monkeypatch.setenv("ONENIP_DASK_ADDRESS", cluster)
    assert type(choose_task_runner()).__name__ == "DaskTaskRunner"
    there = judge_model(tiny_model, manifest)

    assert list(here) == list(there) == ["stripes"]  # the model serves `disc` already

    def settled(results):
        return [
            (result.verdict, [reason for reason in result.reasons if " s an image" not in reason])
            for result in results.values()
        ]

    assert settled(here) == settled(there)
    manifest.write_text(manifest.read_text().replace("stripes/test/good", "stripes/test/gone"))
    with pytest.raises(OneNIPError, match="gone"):
        judge_model(tiny_model, manifest)


def test_a_cluster_that_is_down_is_said_in_one_line(monkeypatch):
    """The address and what to do, instead of waiting for ever."""
    from flows.judging import choose_task_runner

    monkeypatch.setenv("ONENIP_DASK_ADDRESS", "tcp://127.0.0.1:9")
    monkeypatch.setattr("flows.judging._CONNECT_SECONDS", 1)
    started_at = time.monotonic()
    with pytest.raises(
        UnreachableError, match=r"ONENIP_DASK_ADDRESS.*127\.0\.0\.1:9.*dask scheduler"
    ):
        choose_task_runner()
    assert time.monotonic() - started_at < 30


def test_an_image_error_crosses_processes():
    """What a worker on another host raises arrives with its path and reason."""
    error = pickle.loads(pickle.dumps(ImageError("a/b.png", "is cut off")))  # noqa: S301

    assert (error.path, error.reason, str(error)) == (
        "a/b.png",
        "is cut off",
        "a/b.png: is cut off",
    )

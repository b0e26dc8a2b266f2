"""Fixtures that several test files share."""

from __future__ import annotations

import os

import pytest

from tests.drill import Drill
from tests.paths import ROOT

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # two processes, two databases of Prefect
    os.environ.setdefault("PREFECT_HOME", str(ROOT / ".onenip" / f"prefect-{worker}"))


def pytest_addoption(parser):
    """`--drill SEED` repeats the tests marked `drill` many times: `python -m benchmarks.drill`."""
    parser.addoption("--drill", type=int, metavar="SEED", help="repeat attacks many times")


@pytest.fixture
def drill(request, record_property):
    """How often, with which random numbers."""
    return Drill(request.config.getoption("--drill"), record_property)


@pytest.fixture(autouse=True)
def mlflow_addresses():
    """MLflow writes the addresses that it was told into the environment: the next test has its own."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder of the tiny data set in MVTec layout: read only."""
    from tests.tiny import draw_tiny_data

    return draw_tiny_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def tiny_params():
    """The smallest legal params."""
    from tests.tiny import make_tiny_params

    return make_tiny_params()


@pytest.fixture(scope="session")
def tiny_fit(tiny_data, tiny_params, tmp_path_factory):
    """Result of really fitting a detector to the tiny data."""
    from tests.tiny import fit_tiny

    return fit_tiny(tiny_data, tiny_params, tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="session")
def tiny_model(tiny_fit, tmp_path_factory):
    """Folder of the tiny detector: read only."""
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_fit.detector.save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_detector(tiny_model):
    """The tiny detector, loaded from its folder."""
    from onenip import Detector

    return Detector.load(tiny_model)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server with the buckets `images`, `dvc-cache` and `mlflow`.

    Its `environment` holds the variables with which boto3, DVC and MLflow speak to it.
    """
    from flows.local_s3 import running_s3

    buckets = ("images", "dvc-cache", "mlflow")
    with running_s3(tmp_path_factory.mktemp("s3"), buckets=buckets) as server:
        yield server

"""The same image gets the same score, whoever is asked.

What runs torch answers bit for bit alike, whatever else is in the batch; exported files, which have
runtimes of their own, within `EXPORT_TOLERANCE`.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.images import load_image
from onenip.inference.export import export_detector
from tests.tiny import write_figures

EXPORT_TOLERANCE = 1e-3  # absolute, of scores and maps in fp32


@pytest.fixture(scope="module")
def image_file(tiny_data, tmp_path_factory):
    """A defective image that is not of the model's input size."""
    path = tmp_path_factory.mktemp("part") / "part.png"
    with Image.open(sorted((tiny_data / "disc/test/spot").iterdir())[0]) as image:
        image.resize((117, 90)).save(path)
    return path


@pytest.fixture(scope="module")
def wanted(tiny_detector, image_file):
    return tiny_detector.predict([image_file], category="disc")[0]


@pytest.fixture(scope="module")
def registry(tiny_model, tmp_path_factory):
    """A real registry in which somebody approved the tiny model for `disc`."""
    from onenip.registry import approval
    from onenip.registry.publishing import publish

    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        patch.chdir(folder)
        evaluation = write_figures(folder / "evaluation", tiny_model)
        publish(tiny_model, evaluation_dir=evaluation, params={}, facts={})
        approval.approve("disc", by="Ada", reason="good")
        yield folder


def ask_command(*arguments):
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def start(command, address, seconds=240):
    """A real process, as from a shell with the environment activated, once `address` answers."""
    activated = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": activated}
    process = subprocess.Popen([sys.executable, "-m", *command], env=env)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(address).is_success:
                return process
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    if process.poll() is None:
        stop(process)
    raise AssertionError(f"{command[0]} does not answer at {address}")


def stop(process):
    import psutil

    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(60)
    psutil.wait_procs(family, timeout=20)


def find_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_kind_of_image_gets_the_same_score(tiny_detector, tiny_data, image_file, wanted):
    """Path, text, array, PIL image and tensors are one image, alone or in a batch, bit for bit."""
    pixels = load_image(image_file)
    tensor = torch.tensor(pixels).permute(2, 0, 1)
    kinds = [image_file, str(image_file), pixels, Image.fromarray(pixels), tensor, tensor / 255]
    others = sorted((tiny_data / "disc/test/good").iterdir())

    found = tiny_detector.predict([*others, *kinds], category="disc")[len(others) :]

    for one in found:
        assert one.score == wanted.score
        assert np.array_equal(one.map, wanted.map)


def test_a_model_loaded_again_gives_the_same_score(tiny_model, image_file, wanted):
    """A saved detector is the detector, bit for bit; so is one that tells the category."""
    loaded = Detector.load(tiny_model)

    assert loaded.predict([image_file], category="disc")[0].score == wanted.score
    assert loaded.predict([image_file])[0].score == wanted.score


@pytest.mark.parametrize(
    "model", ["folder", "", "models:/onenip-disc@champion", "models:/onenip-disc/1"]
)
@pytest.mark.usefixtures("registry")
def test_the_command_gives_the_same_score(tiny_model, image_file, wanted, model):
    """`onenip predict` from a folder and from the registry, bit for bit."""
    address = tiny_model if model == "folder" else model

    answer = ask_command(image_file, "-c", "disc", "--model", address)

    assert answer["score"] == wanted.score
    assert answer["verdict"] == ("anomalous" if wanted.is_anomalous else "normal")
    assert len(answer["regions"]) == len(wanted.regions)


@pytest.mark.usefixtures("registry")
def test_the_command_needs_neither_model_nor_category(image_file, wanted):
    """Left to itself, `onenip predict` asks what serves, tells the category, and says so."""
    answer = ask_command(image_file)

    assert (answer["category"], answer["category_inferred"]) == ("disc", True)
    assert answer["score"] == wanted.score


@pytest.mark.parametrize("format_", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_exported_files_give_the_same_score(tiny_detector, image_file, wanted, tmp_path, format_):
    """`onenip predict --model FILE` answers as torch does, within the tolerance of exports."""
    file = export_detector(tiny_detector, tmp_path / "model", format=format_)

    answer = ask_command(image_file, "-c", "disc", "--model", file, "--maps", tmp_path / "maps")

    assert answer["score"] == pytest.approx(wanted.score, abs=EXPORT_TOLERANCE)
    assert answer["verdict"] == ("anomalous" if wanted.is_anomalous else "normal")
    written = np.asarray(Image.open(next((tmp_path / "maps").rglob("*.tiff"))))
    assert np.abs(written - wanted.map).max() < EXPORT_TOLERANCE


@pytest.mark.usefixtures("registry")
def test_mlflow_gives_the_same_score(image_file, wanted):
    """The registered version as an MLflow model in this process, bit for bit."""
    import mlflow

    model = mlflow.pyfunc.load_model("models:/onenip-disc@champion")
    rows = pd.DataFrame({"image": [base64.b64encode(image_file.read_bytes()).decode()] * 2})

    assert model.predict(rows)["score"].tolist() == [wanted.score] * 2


@pytest.mark.usefixtures("registry")
def test_the_page_gives_the_same_score(image_file, wanted):
    """What `onenip inspect` shows of an upload, bit for bit."""
    from onenip.pages.models import find_candidates, judge_upload

    champion = find_candidates("disc", None)[0]
    found = judge_upload(image_file.read_bytes(), "disc", [champion])

    assert champion.role == "champion"
    assert found.predictions[0].score == wanted.score
    assert found.looks_like == "disc"


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("registry")
def test_the_server_gives_the_same_score(image_file, wanted):
    """A real `onenip serve` on the registry: base64 and upload, category said or told, bit for bit."""
    address = f"http://127.0.0.1:{(port := find_port())}"
    content = image_file.read_bytes()
    process = start(["onenip", "serve", "--port", str(port)], f"{address}/ready")
    try:
        body = {"image": base64.b64encode(content).decode()}
        answers = [
            httpx.post(f"{address}/predict", json=body | {"category": "disc"}, timeout=60),
            httpx.post(f"{address}/predict", json=body, timeout=60),
            httpx.post(
                f"{address}/predict/file",
                files={"file": content},
                data={"category": "disc"},
                timeout=60,
            ),
        ]
    finally:
        stop(process)

    assert [answer.json()["score"] for answer in answers] == [wanted.score] * 3
    assert {answer.json()["version"] for answer in answers} == {1}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("registry")
def test_mlflow_serves_the_same_score(image_file, wanted):
    """A real `mlflow models serve` of the champion answers bit for bit, and refuses text with 400."""
    address = f"http://127.0.0.1:{(port := find_port())}"
    command = ["mlflow", "models", "serve", "-m", "models:/onenip-disc@champion"]
    process = start(
        [*command, "--env-manager", "local", "--port", str(port)], f"{address}/ping", seconds=300
    )
    try:
        encoded = [base64.b64encode(one).decode() for one in (image_file.read_bytes(), b"text")]
        bodies = [{"dataframe_records": [{"image": text}]} for text in encoded]
        good, bad = [httpx.post(f"{address}/invocations", json=b, timeout=60) for b in bodies]
    finally:
        stop(process)

    assert good.json()["predictions"][0]["score"] == wanted.score
    assert bad.status_code == 400
    assert "not an image" in bad.text


def test_every_option_of_a_category_takes_its_name_however_it_is_typed():
    """A category that is given to a command or in a decision over HTTP is the one that is kept."""
    from onenip.data.labels import clean_name
    from onenip.serving.schema import DecisionRequest

    def list_params(command):
        yield from command.params
        for inner in getattr(command, "commands", {}).values():
            yield from list_params(inner)

    found = [
        param
        for param in list_params(typer.main.get_command(app))
        if param.metavar == "CATEGORY" or "--category" in param.opts
    ]
    assert len(found) > 8
    assert {p.type_descriptor.parameter_info.parser for p in found} == {clean_name}
    assert DecisionRequest(category=" Bu\u0308chse ", reason="").category == "B\u00fcchse"

"""Exported files answer as the detector does, whatever runs them; and the edge needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onenip.cli import app
from onenip.errors import CheckpointError, DataError
from onenip.inference.edge import EdgeDetector
from onenip.inference.export import export_detector
from tests.paths import ROOT
from tests.tiny import CATEGORIES

FULL_ONLY = (
    "torch", "torchvision", "timm", "lightning_fabric", "sklearn", "safetensors", "tifffile",
    "ruamel.yaml", "jinja2", "boto3", "botocore", "aiobotocore", "dvc", "great_expectations", "pandas",
    "imagehash", "httpx", "tenacity", "filelock", "psutil", "prefect", "mlflow", "fastapi", "sqlalchemy",
    "uvicorn", "prometheus_client", "streamlit",
)  # fmt: skip


@pytest.fixture(scope="module")
def paths(tiny_data):
    return sorted(tiny_data.glob("*/test/*/*.png"))


@pytest.fixture(scope="module")
def onnx_file(tiny_detector, tmp_path_factory):
    return export_detector(
        tiny_detector, tmp_path_factory.mktemp("onnx") / "tiny.onnx", format="onnx"
    )


@pytest.fixture(scope="module")
def exported(tiny_detector, onnx_file, tmp_path_factory):
    """An exported file of each format."""
    folder = tmp_path_factory.mktemp("exported")
    files = {"onnx": onnx_file}
    for name in ("openvino", "torchscript"):
        files[name] = export_detector(tiny_detector, folder / "tiny", format=name)
    return files


def assert_same_answers(detector, other, paths):
    for path in paths:
        wanted, found = (one.predict([path])[0] for one in (detector, other))
        assert found.category == wanted.category
        assert found.category_inferred
        assert found.is_anomalous == wanted.is_anomalous
        assert found.score == pytest.approx(wanted.score, abs=1e-3)
        assert np.abs(found.map - wanted.map).max() < 1e-3
        assert found.map.dtype == np.float32
        assert (found.threshold, found.pixel_threshold) == (
            wanted.threshold,
            wanted.pixel_threshold,
        )


@pytest.mark.parametrize("format_", ["onnx", "openvino", "torchscript"])
def test_every_format_answers_as_the_detector(tiny_detector, exported, paths, format_):
    """Maps and scores are equal within 1e-3 and verdicts are equal, category told or not."""
    assert_same_answers(tiny_detector, EdgeDetector.load(exported[format_]), paths[::2])


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(
            {
                "model": {"refiner": "paper", "memory_tokens": 0, "standardize": False},
                "calibrate": {"fusion": "paper", "prompts": 1},
            },
            id="paper",
        ),
        pytest.param(
            {
                "model": {"memory_tokens": 0, "evidence": ["restoration", "features"]},
                "calibrate": {"fusion_weights": {"restoration": 1.0, "refined": 2.0}},
            },
            id="no memory",
        ),
    ],
)
def test_other_architectures_export_too(tiny_data, paths, tmp_path, sections):
    """The paper's refiner and fusion, and a model without a memory, export as faithfully."""
    from tests.tiny import fit_tiny, make_tiny_params

    base = {"calibrate": {"pooling_px": 8}}
    merged = {
        key: {**make_tiny_params().dump()[key], **base.get(key, {}), **values}
        for key, values in sections.items()
    }
    detector = fit_tiny(tiny_data, make_tiny_params(**merged), tmp_path).detector

    file = export_detector(detector, tmp_path / "model.onnx", format="onnx")

    assert_same_answers(detector, EdgeDetector.load(file), paths[::4])


def test_one_category_can_be_exported_alone(tiny_detector, paths, tmp_path):
    """A file of one category knows only that one, and answers as the whole detector does."""
    name = CATEGORIES[1]
    file = export_detector(
        tiny_detector, tmp_path / "one.pt", format="torchscript", categories=[name]
    )
    path = next(p for p in paths if name in p.parts)

    edge = EdgeDetector.load(file)

    assert edge.categories == (name,)
    wanted = tiny_detector.predict([path], category=name)[0]
    assert edge.predict([path], category=name)[0].score == pytest.approx(wanted.score, abs=1e-3)
    with pytest.raises(DataError, match="unknown category 'disc'"):
        edge.predict([path], category="disc")


@pytest.mark.parametrize("damage", ["description", "file", "checksum", "version"])
def test_damaged_exports_are_refused(onnx_file, tmp_path, damage):
    """A missing, changed or foreign part is a CheckpointError, not an answer."""
    file = Path(shutil.copy(onnx_file, tmp_path))
    beside = Path(shutil.copy(f"{onnx_file}.json", tmp_path))
    if damage == "description":
        beside.unlink()
    elif damage == "file":
        file.unlink()
    elif damage == "checksum":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        beside.write_text(json.dumps({**json.loads(beside.read_text()), "format_version": 99}))

    with pytest.raises(CheckpointError):
        EdgeDetector.load(file)


def test_the_edge_needs_only_its_extra(onnx_file, paths, tmp_path):
    """`onenip predict --model x.onnx --heatmaps` needs nothing of the extra `full`."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({FULL_ONLY}))\n"
        "from onenip.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "predict",
            str(paths[0]),
            "--model",
            str(onnx_file),
            "--heatmaps",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] in {"normal", "anomalous"}
    assert list(tmp_path.rglob("*.png"))


def test_commands_that_need_more_say_so():
    """Without the extra `full`, a command that needs it says what to install."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({FULL_ONLY}))\n"
        "from onenip.cli import main; main()\n"
    )
    for command in (["serve"], ["predict", "x.png", "--model", "artifacts"], ["status"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

        assert done.returncode == 2
        assert "pip install 'onenip[full]'" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_int8_quantises_only_the_backbone(tiny_detector, tiny_data, tmp_path):
    """The INT8 file answers, says what it cost, and leaves every matrix product in fp32."""
    pytest.importorskip("nncf")
    import openvino

    from onenip.inference.int8 import export_int8

    normals = {n: sorted((tiny_data / n / "train/good").iterdir()) for n in CATEGORIES}
    tests = {
        n: [(p, p.parent.name != "good") for p in sorted((tiny_data / n / "test").glob("*/*"))]
        for n in CATEGORIES
    }

    path, loss = export_int8(tiny_detector, tmp_path / "tiny.xml", normals=normals, tests=tests)

    assert EdgeDetector.load(path).predict([tests["disc"][0][0]], category="disc")[0].score
    assert loss.images == 12
    assert json.loads(Path(f"{path}.json").read_text())["int8"]["images"] == 12
    fed: dict[str, set[str]] = {}
    for node in openvino.Core().read_model(str(path)).get_ordered_ops():
        kinds = {value.get_node().get_type_name() for value in node.input_values()}
        fed.setdefault(node.get_type_name(), set()).update(kinds)
    assert "FakeQuantize" in fed["Convolution"]
    assert "FakeQuantize" not in fed["MatMul"]


def test_export_command(tiny_model, tmp_path):
    """`onenip export` writes the file and its description, and `predict --model` takes it."""
    from typer.testing import CliRunner

    out = tmp_path / "x.pt"
    done = CliRunner().invoke(
        app, ["export", str(tiny_model), "--format", "torchscript", "--out", str(out)]
    )

    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(out)
    assert set(json.loads(Path(f"{out}.json").read_text())["categories"]) == set(CATEGORIES)

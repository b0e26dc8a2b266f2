"""Exported files answer as the detector does, whatever runs them; and the edge needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onenip.cli import app
from onenip.errors import CheckpointError, DataError
from onenip.images import load_image
from onenip.inference.edge import EdgeDetector, ExportedCategory, compute_seal, list_parts
from onenip.inference.export import draft_export, export_detector
from tests.paths import ROOT
from tests.tiny import CATEGORIES

FULL_ONLY = (
    "torch", "torchvision", "timm", "lightning_fabric", "sklearn", "safetensors", "tifffile",
    "ruamel.yaml", "jinja2", "boto3", "botocore", "aiobotocore", "dvc", "great_expectations", "pandas",
    "imagehash", "httpx", "tenacity", "filelock", "psutil", "prefect", "mlflow", "fastapi", "sqlalchemy",
    "uvicorn", "prometheus_client", "streamlit", "matplotlib",
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
    files["openvino"] = export_detector(tiny_detector, folder / "tiny", format="openvino")
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


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_every_format_answers_as_the_detector(tiny_detector, exported, paths, format_):
    """Maps and scores are equal within 1e-3 and verdicts are equal, category told or not."""
    assert_same_answers(tiny_detector, EdgeDetector.load(exported[format_]), paths[::2])


@pytest.mark.slow
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


def copy_export(file, folder, name="renamed"):
    """All parts of an exported file under another name."""
    folder.mkdir(exist_ok=True)
    for part in (*list_parts(file), Path(f"{file}.json")):
        shutil.copy(part, folder / part.name.replace(file.stem, name, 1))
    return folder / f"{name}{file.suffix}"


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_renamed_export_answers_as_before(exported, paths, tmp_path, format_):
    """A file may be renamed together with its parts, whatever lies beside it."""
    file = copy_export(exported[format_], tmp_path)

    found = EdgeDetector.load(file).predict([paths[0]])[0]

    assert found.score == EdgeDetector.load(exported[format_]).predict([paths[0]])[0].score


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda file: flip_bit(file), "damaged, or of another export", id="bit"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:1000]), "damaged", id="cut"),
        pytest.param(lambda file: file.unlink(), "no such file", id="missing"),
        pytest.param(
            lambda file: flip_bit(list_parts(file)[-1]), "damaged, or of another", id="weights"
        ),
        pytest.param(lambda file: list_parts(file)[-1].unlink(), "no such file", id="no weights"),
    ],
)
@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_a_changed_byte_is_noticed_in_the_file_that_is_loaded(
    exported, tmp_path, format_, damage, words
):
    """Damage is one line, though the undamaged file lies beside it under the name that it was exported by."""
    file = copy_export(exported[format_], tmp_path)
    copy_export(exported[format_], tmp_path, exported[format_].stem)
    damage(file)

    with pytest.raises(CheckpointError, match=words) as caught:
        EdgeDetector.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda c: c.update(format_version=99), "format version 99", id="version"),
        pytest.param(lambda c: c.pop("format_version"), "format version None", id="no version"),
        pytest.param(lambda c: c.pop("sha256"), "its seal does not fit", id="no checksums"),
        pytest.param(
            lambda c: c["categories"]["disc"].update(image_threshold=9.0),
            "its seal",
            id="threshold",
        ),
        pytest.param(
            lambda c: c["categories"]["disc"].update(is_provisional=True), "its seal", id="mark"
        ),
    ],
)
def test_a_changed_description_is_noticed(onnx_file, tmp_path, change, words):
    """Thresholds, the mark of provisional categories and checksums cannot change unnoticed."""
    file = copy_export(onnx_file, tmp_path)
    edit(Path(f"{file}.json"), change)

    with pytest.raises(CheckpointError, match=words):
        EdgeDetector.load(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e400, None, "3"])
def test_a_threshold_that_is_no_finite_number_is_refused(onnx_file, tmp_path, value):
    """Even under a right seal."""
    file = copy_export(onnx_file, tmp_path)

    def change(content):
        content["categories"]["disc"]["image_threshold"] = value
        content["seal"] = compute_seal(content)

    edit(Path(f"{file}.json"), change)

    with pytest.raises(CheckpointError, match="not a description of an export"):
        EdgeDetector.load(file)


@pytest.mark.parametrize(
    "key", ["image_threshold", "pixel_threshold", "review_threshold", "reach", "sample_range"]
)
def test_no_number_of_an_exported_category_is_infinite_or_none(key):
    """Not even one that may be left out."""
    values = {"number": 0, "input_size": (8, 8), "image_threshold": 2.0, "pixel_threshold": 2.0}
    values["is_provisional"] = False

    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            ExportedCategory(**{**values, key: (0.0, value) if key == "sample_range" else value})


def test_an_exports_categories_lead_nowhere(onnx_file, tmp_path):
    """A name such as `../../evil` would become a folder of what is written about images."""
    file = copy_export(onnx_file, tmp_path)

    def change(content):
        content["categories"]["../../evil"] = content["categories"]["disc"]
        content["seal"] = compute_seal(content)

    edit(Path(f"{file}.json"), change)

    with pytest.raises(CheckpointError, match="begins with a dot"):
        EdgeDetector.load(file)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10_000, "\xff"])
def test_a_description_that_is_none_is_refused(onnx_file, tmp_path, text):
    """Whatever lies in place of the description, or nothing at all, is one line."""
    file = copy_export(onnx_file, tmp_path)
    Path(f"{file}.json").write_text(text, encoding="latin-1")

    with pytest.raises(CheckpointError, match=r"renamed\.onnx\.json"):
        EdgeDetector.load(file)


def test_an_export_may_be_called_by_any_name(tmp_path):
    """Brackets are letters of a name; further graphs of an earlier export of it go."""
    file = tmp_path / "line [1].onnx"
    (tmp_path / "line [1].448x448.onnx").touch()
    with draft_export(file) as draft:
        draft.write_text("graph")
        draft.with_name("line [1].onnx.json").write_text("{}")

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "line [1].onnx",
        "line [1].onnx.json",
    ]


def test_an_export_that_fails_leaves_the_old_one(onnx_file, tmp_path):
    """After an error in the middle all files are as before, and no other is left."""
    file = copy_export(onnx_file, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(OSError, match="nowhere"), draft_export(file) as draft:
        shutil.copy(file, draft).rename(draft / "nowhere")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_one_added_category_takes_the_place_of_an_older_export(
    tiny_detector, onnx_file, paths, tmp_path
):
    """A file of one category knows only that one, answers as the detector, and marks it as provisional."""
    extended = tiny_detector.add_category("new", paths[:2])
    file = copy_export(onnx_file, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}

    export_detector(extended, file, format="onnx", categories=["new"])

    edge = EdgeDetector.load(file)
    found, wanted = (one.predict([paths[-1]], category="new")[0] for one in (edge, extended))
    assert edge.categories == ("new",)
    assert found.is_provisional
    assert found.score == pytest.approx(wanted.score, abs=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == names
    with pytest.raises(DataError, match="unknown category 'disc'"):
        edge.predict([paths[0]], category="disc")


def test_edge_and_detector_take_the_same_inputs(tiny_detector, onnx_file, paths):
    """Paths, PIL images, tensors, RGB and grey arrays; and both refuse what is no image alike."""
    edge = EdgeDetector.load(onnx_file)
    image = load_image(paths[0])
    with Image.open(paths[0]) as opened:
        taken = [str(paths[0]), opened.copy(), image, torch.tensor(image).permute(2, 0, 1)]
    grey = np.ascontiguousarray(image[:, :, 0])

    scores = {one.score for one in edge.predict(taken, category="disc")}

    assert len(scores) == 1
    wanted = tiny_detector.predict([grey], category="disc")[0].score
    assert edge.predict([grey], category="disc")[0].score == pytest.approx(wanted, abs=1e-3)
    for detector in (edge, tiny_detector):
        with pytest.raises(DataError, match="uint8"):
            detector.predict([image.astype(np.float32)], category="disc")


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

    out = tmp_path / "x.xml"
    done = CliRunner().invoke(
        app, ["export", str(tiny_model), "--format", "openvino", "--out", str(out)]
    )

    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(out)
    assert set(json.loads(Path(f"{out}.json").read_text())["categories"]) == set(CATEGORIES)
    assert {path.name for path in tmp_path.iterdir()} == {"x.xml", "x.bin", "x.xml.json"}

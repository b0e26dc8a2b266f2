"""`onenip predict`: which files are meant, what is printed, and that verdicts are those of evaluate."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from onenip.cli import app
from onenip.errors import CheckpointError, DataError, OneNIPError, RegistryError
from onenip.serving.files import list_images, load_model, place_outputs
from tests.tiny import list_samples


def predict(*arguments):
    """Exit status and lines of JSON of the command."""
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def test_folder(tiny_data):
    return tiny_data / "disc" / "test"


def test_a_folder_is_answered_in_lines(tiny_model, tiny_detector, test_folder):
    """Each image of a folder gets a line with score, threshold, verdict, regions and time."""
    status, lines = predict(test_folder, "--category", "disc", "--model", tiny_model)

    assert status == 0
    assert [line["image"] for line in lines] == [str(p) for p in sorted(test_folder.rglob("*.png"))]
    known = tiny_detector.spec.categories["disc"]
    for line in lines:
        assert line["category"] == "disc"
        assert not line["category_inferred"]
        assert line["threshold"] == known.image_threshold
        assert (line["verdict"] == "anomalous") == (line["score"] > line["threshold"])
        assert line["seconds"] > 0
        for region in line["regions"]:
            assert set(region) == {"x", "y", "width", "height", "area_px", "score"}


def test_scores_are_those_of_evaluate(tiny_model, tiny_data, tiny_params, test_folder, tmp_path):
    """Scores and verdicts equal those in evaluate's scores.csv to the last bit."""
    from onenip.data.manifest import MANIFEST_COLUMNS
    from onenip.evaluation.results import load_scores
    from onenip.stages import evaluate

    manifest = tmp_path / "manifest.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS, restval="")
        writer.writeheader()
        for one in list_samples(tiny_data, tiny_params):
            row = {name: getattr(one, name) for name in ("category", "label", "subset", "sha256")}
            mask = one.mask.relative_to(tiny_data).as_posix() if one.mask else ""
            split = "test" if one.subset == "test" else "train"
            writer.writerow({**row, "path": one.name, "mask": mask, "split": split, "status": "ok"})
    evaluate.run(
        tiny_params,
        model_dir=tiny_model,
        data_dir=tiny_data,
        manifest=manifest,
        out_dir=tmp_path / "evaluation",
    )
    evaluated = {r.name: r for r in load_scores(tmp_path / "evaluation" / "scores.csv")}

    _, lines = predict(test_folder, "--category", "disc", "--model", tiny_model)

    for line in lines:
        one = evaluated[line["image"].removeprefix(f"{tiny_data}/")]
        assert line["score"] == one.score
        assert (line["verdict"] == "anomalous") == one.is_anomalous


def test_a_bad_image_does_not_stop_the_others(tiny_model, test_folder, tmp_path):
    """Unusable files get a line with the reason; the rest is answered, and the status is 1."""
    good = sorted(test_folder.rglob("*.png"))[0]
    text = tmp_path / "text.png"
    text.write_text("hello")
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(good.read_bytes()[:200])
    missing = tmp_path / "missing.png"
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 10_000)).save(huge)

    status, lines = predict(text, truncated, missing, huge, good, "--model", tiny_model)

    assert status == 1
    assert [("error" in line) for line in lines] == [True, True, True, True, False]
    assert "not an image" in lines[0]["error"]
    assert "no such file" in lines[2]["error"]
    assert "pixels" in lines[3]["error"]


def test_heatmaps_and_maps_are_written(tiny_model, tiny_detector, test_folder, tmp_path):
    """`--maps` holds the very map of the prediction, `--heatmaps` a picture per image."""
    path = sorted((test_folder / "spot").glob("*.png"))[0]

    predict(
        path, "-c", "disc", "--model", tiny_model,
        "--maps", tmp_path / "maps", "--heatmaps", tmp_path / "heat",
    )  # fmt: skip

    written = next((tmp_path / "maps").rglob("*.tiff"))
    wanted = tiny_detector.predict([path], category="disc")[0].map
    assert np.array_equal(np.asarray(Image.open(written)), wanted)
    with Image.open(next((tmp_path / "heat").rglob("*.png"))) as picture:
        assert picture.width > picture.height


def test_globs_and_names_with_signs(test_folder, tmp_path):
    """A glob is resolved here, a file that is really called so is taken as it is."""
    named = tmp_path / "part[1].png"
    named.write_bytes(sorted(test_folder.rglob("*.png"))[0].read_bytes())

    found = list_images([f"{test_folder}/*/00*.png", str(named)], scratch=tmp_path)

    assert len(found) == len(list(test_folder.glob("*/00*.png"))) + 1
    assert found[-1] == (str(named), named)
    for nothing in (str(tmp_path / "*.bmp"), str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="no images"):
            list_images([nothing], scratch=tmp_path)


def test_outputs_never_leave_their_folder(tmp_path):
    """However an image was named, what is written about it lies below the folder."""
    names = ("/etc/x.png", "../../x.png", "s3://bucket/a/x.png", "./x.png", "C:/x.png", "..")

    for place in place_outputs([(name, tmp_path / str(i)) for i, name in enumerate(names)]):
        assert (tmp_path / "out").resolve() in (tmp_path / "out" / place).resolve().parents


def test_outputs_of_two_images_never_share_a_name(test_folder, tiny_model, tmp_path, monkeypatch):
    """`a/x.png` and `../a/x.png` get a picture each, and the same file given twice the same one."""
    first, second = sorted(test_folder.rglob("*.png"))[:2]
    for folder, source in (("work/a", first), ("a", second)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path / "work")

    predict("a/x.png", "../a/x.png", "a/x.png", "--model", tiny_model, "--maps", tmp_path / "maps")

    written = {
        p.relative_to(tmp_path / "maps").as_posix() for p in (tmp_path / "maps").rglob("*.tiff")
    }
    assert written == {"a/x.png.tiff", "a/x-2.png.tiff"}


def test_images_of_s3_are_answered_by_their_address(
    s3_server, monkeypatch, tiny_model, tiny_detector, test_folder
):
    """Objects below a prefix of a real S3 server are fetched and named by their address."""
    import boto3

    for key, value in s3_server.environment.items():
        monkeypatch.setenv(key, value)
    path = sorted((test_folder / "spot").glob("*.png"))[0]
    client = boto3.Session().client("s3")
    client.upload_file(str(path), "images", "line/7/part.png")
    client.put_object(Bucket="images", Key="line/7/notes.txt", Body=b"not meant")

    status, lines = predict("s3://images/line/7", "-c", "disc", "--model", tiny_model)

    assert status == 0
    assert [line["image"] for line in lines] == ["s3://images/line/7/part.png"]
    assert lines[0]["score"] == tiny_detector.predict([path], category="disc")[0].score


@pytest.mark.parametrize(
    ("model", "category", "error", "words"),
    [
        ("", None, RegistryError, "there is no registry"),
        ("models:/other@champion", None, DataError, "neither models:/onenip-CATEGORY@champion"),
        ("nowhere", None, CheckpointError, "no model here"),
        ("nowhere.onnx", None, CheckpointError, "no such file"),
    ],
)
def test_models_that_are_not_there(tmp_path, monkeypatch, model, category, error, words):
    """A model that cannot be had is a typed error that says what to do."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(error, match=words):
        load_model(model, category)


def test_an_unknown_category_is_refused_before_any_answer(tiny_model, test_folder):
    """The categories that the model knows are named."""
    with pytest.raises(DataError, match="known categories: disc, stripes"):
        predict(test_folder, "-c", "nut", "--model", tiny_model)


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "model.xml", "model.safetensors"])
def test_a_file_that_runs_what_it_holds_is_not_read(tmp_path, name):
    """A pickle, as TorchScript has them, is no model, whatever it is called and wherever it lies."""
    proof = tmp_path / "proof"

    class Command:
        def __reduce__(self):
            return Path.touch, (proof,)

    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(Command(), folder / name)
    (folder / f"{name}.json").write_text("{}")
    (folder / "detector.json").write_text("{}")

    for address in (folder, folder / name):
        with pytest.raises(OneNIPError):
            load_model(str(address), None)
    assert not proof.exists()

"""The evaluate stage on a tiny real detector: what it writes, and inputs that say nothing."""

from __future__ import annotations

import csv
import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from onenip.cli import app
from onenip.data.manifest import MANIFEST_COLUMNS, dated_name
from onenip.detector.detector import Detector
from onenip.errors import DataError, RegistryError
from onenip.evaluation.comparison import compare
from onenip.evaluation.gallery import load_index
from onenip.evaluation.metrics import NAMES, Undefined
from onenip.evaluation.results import Evaluation, load_metrics, load_scores
from onenip.params import Params
from onenip.registry import store
from onenip.registry.evaluations import fetch_evaluation
from onenip.stages import evaluate
from tests.tiny import draw_tiny_data, fit_tiny, list_samples, make_tiny_params

PARAMS = make_tiny_params(evaluate={"bootstrap_draws": 100, "pictures": 2})


def write_manifest(path: Path, data: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A manifest of a folder, but for the images whose name begins with one of `without`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS)
        writer.writeheader()
        for sample in list_samples(data, PARAMS):
            if sample.name.startswith(without):
                continue
            row = dict.fromkeys(MANIFEST_COLUMNS, "")
            mask = sample.mask.relative_to(data).as_posix() if sample.mask else ""
            row |= {"path": sample.name, "category": sample.category, "label": sample.label}
            row |= {"subset": sample.subset, "sha256": sample.sha256, "status": "ok", "mask": mask}
            writer.writerow(row)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of tiny data and of a detector that was really fitted to them."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = draw_tiny_data(folder / "data")
    fit_tiny(data, PARAMS, folder).detector.save(folder / "model")
    return data, folder / "model"


def run(folder: Path, tiny: tuple[Path, Path], *, params: Params = PARAMS, **options) -> dict:
    """Metrics of the stage in `folder/evaluation`."""
    data, model = options.pop("data", tiny[0]), tiny[1]
    manifest = write_manifest(folder / "manifest.csv", data, without=options.pop("without", ()))
    return evaluate.run(
        params,
        model_dir=model,
        data_dir=data,
        manifest=manifest,
        out_dir=folder / "evaluation",
        **options,
    ).metrics


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, tiny_model) -> Path:
    """Folder of one evaluation of the tiny detector, with its maps."""
    folder = tmp_path_factory.mktemp("evaluated")
    left = folder / ".evaluation.partial.pixels"  # by a killed evaluation
    left.mkdir()
    (left / "normal").write_bytes(b"pixels")
    run(folder, tiny_model, save_maps=folder / "maps")
    return folder


def test_the_stage_writes_all_that_it_promises(evaluated):
    """Figures of every category and the mean, a line per image, pictures, plots, and no leftovers."""
    folder = evaluated / "evaluation"
    metrics = load_metrics(folder)

    assert sorted(path.name for path in evaluated.iterdir()) == [
        "cache",
        "evaluation",
        "manifest.csv",
        "maps",
    ]
    assert sorted(metrics["categories"]) == ["disc", "stripes"]
    for figures in (metrics["mean"], *metrics["categories"].values()):
        assert tuple(figures) == NAMES
        assert all(0 <= value <= 1 for value in figures.values())
    assert len(load_scores(folder / "scores.csv")) == 12
    assert {item["defect"] for item in metrics["defects"]["disc"]} == {"spot"}
    assert {path.name for path in (folder / "plots").iterdir()} == {
        "roc.csv",
        "pr.csv",
        "histogram.csv",
        "verdicts.csv",
    }
    assert all((folder / picture.file).is_file() for picture in load_index(folder))


def test_features_of_an_evaluation_serve_the_next(evaluated, tiny_model, tmp_path):
    """A second evaluation embeds nothing, and its figures are the same to the last bit."""
    shutil.copytree(evaluated / "cache", tmp_path / "cache")
    kept = {path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    again = run(tmp_path, tiny_model)

    assert {p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")} == kept
    assert len(kept) == 12
    assert again["mean"] == load_metrics(evaluated / "evaluation")["mean"]


def test_intervals_surround_their_figures(evaluated):
    """Every figure lies in its own interval, up to what few images leave to chance."""
    metrics = load_metrics(evaluated / "evaluation")

    for name, figure in metrics["mean"].items():
        low, high = metrics["intervals"]["mean"][name]
        assert 0 <= low <= high <= 1
        if name != "image_f1_max":  # a maximum: resamples lie above it
            assert low - 1e-9 <= figure <= high + 1e-9, name


def test_maps_are_saved_as_mvtecs_script_reads_them(evaluated, tiny_model):
    """One float32 TIFF per test image, at the image's own size, equal to the detector's map."""
    data, model = tiny_model
    files = sorted((evaluated / "maps").rglob("*.tiff"))
    saved = tifffile.imread(evaluated / "maps/disc/test/spot/000.tiff")
    again = Detector.load(model).predict([data / "disc/test/spot/000.png"], category="disc")[0]

    assert len(files) == 12
    assert saved.dtype == np.float32
    assert np.array_equal(saved, again.map)


def test_the_same_inputs_give_the_same_bytes(evaluated, tiny_model, tmp_path):
    """Nothing that is compared or cached depends on the time or on the folder's name."""
    run(tmp_path, tiny_model)

    for name in ("metrics.json", "scores.csv", "pixel_counts.npz", "plots/roc.csv", "report.html"):
        first, second = (folder / "evaluation" / name for folder in (evaluated, tmp_path))
        assert first.read_bytes() == second.read_bytes(), name


def test_settings_matter(evaluated, tiny_model, tmp_path):
    """Size of comparison, confidence and number of pictures are used."""
    params = make_tiny_params(
        evaluate={
            "bootstrap_draws": 150,
            "pictures": 1,
            "confidence": 0.5,
            "resolution": "input",
        }
    )

    metrics = run(tmp_path, tiny_model, params=params)

    full = load_metrics(evaluated / "evaluation")
    assert metrics["resolution"] == "input"
    wide, narrow = (m["intervals"]["mean"]["aupro"] for m in (full, metrics))
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    assert len(load_index(tmp_path / "evaluation")) == 6


def test_a_category_without_tests_is_not_defined_and_says_why(tiny_model, tmp_path):
    """It counts neither as 0 nor as an error; the mean names what it leaves out."""
    metrics = run(tmp_path, tiny_model, without=("disc/test",))

    assert set(metrics["categories"]["disc"].values()) == {None}
    assert metrics["reasons"]["categories"]["disc"]["image_auroc"] == "no images"
    assert "disc" in metrics["reasons"]["mean"]["image_auroc"]
    assert metrics["mean"]["image_auroc"] == metrics["categories"]["stripes"]["image_auroc"]


@pytest.mark.parametrize(
    ("without", "undefined", "defined"),
    [
        (("disc/test/spot", "stripes/test/spot"), "recall", "false_alarm_rate"),
        (("disc/test/good", "stripes/test/good"), "false_alarm_rate", "recall"),
        (("disc/test", "stripes/test"), "accuracy", None),
        (("disc/test/good", "disc/test/spot/001", "disc/test/spot/002"), "image_auroc", "recall"),
    ],
    ids=["no defects", "no normals", "no tests", "one image"],
)
def test_poor_test_sets_never_crash(tiny_model, tmp_path, without, undefined, defined):
    """What cannot be computed is null with a reason, and the report is written all the same."""
    metrics = run(tmp_path, tiny_model, without=without)

    assert metrics["categories"]["disc"][undefined] is None
    assert metrics["reasons"]["categories"]["disc"][undefined]
    if defined:
        assert metrics["categories"]["disc"][defined] is not None
    assert (tmp_path / "evaluation/report.html").is_file()


def test_a_defective_image_without_a_mask_is_left_out_of_pixels_only(tiny_model, tmp_path):
    """It counts for image figures; pixel figures say that it is missing."""
    data = shutil.copytree(tiny_model[0], tmp_path / "data")
    (data / "disc/ground_truth/spot/000_mask.png").unlink()
    manifest = write_manifest(tmp_path / "m.csv", data)
    text = manifest.read_text().replace("disc/ground_truth/spot/000_mask.png", "")
    manifest.write_text(text)

    metrics = evaluate.run(
        PARAMS,
        model_dir=tiny_model[1],
        data_dir=data,
        manifest=manifest,
        out_dir=tmp_path / "evaluation",
    ).metrics

    assert metrics["images"]["disc"] == {"good": 3, "defective": 3, "without_mask": 1}
    assert metrics["categories"]["disc"]["pixel_ap"] is not None
    assert "1 defective" in metrics["reasons"]["categories"]["disc"]["pixel_ap"]


def test_figures_without_added_images_are_reported_too(evaluated, tiny_model, tmp_path):
    """What people added to the test set counts, and the old test set's figures stay comparable."""
    data = shutil.copytree(tiny_model[0], tmp_path / "data")
    added = data / "disc/test/spot" / dated_name(date(2026, 11, 26), "0" * 64, ".png")
    shutil.copy(data / "disc/test/spot/000.png", added)

    metrics = run(tmp_path, tiny_model, data=data)

    before = load_metrics(evaluated / "evaluation")
    assert metrics["images"]["disc"]["defective"] == before["images"]["disc"]["defective"] + 1
    assert metrics["original"].keys() == {"disc"}
    assert metrics["original"]["disc"].items() >= before["verdicts"]["disc"].items()
    assert metrics["original"]["disc"]["image_auroc"] == before["categories"]["disc"]["image_auroc"]
    assert before["original"] == {}


@pytest.mark.parametrize("edge", ["empty", "full", "border"])
def test_odd_masks_are_counted_as_they_are(tiny_model, tmp_path, edge):
    """Empty masks, full masks and masks that touch the border give figures or reasons."""
    data = shutil.copytree(tiny_model[0], tmp_path / "data")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :5] = 255 * (edge == "border")
    mask[:] = 255 if edge == "full" else mask
    for file in (data / "disc/ground_truth/spot").iterdir():
        Image.fromarray(mask).save(file)

    metrics = run(tmp_path, tiny_model, data=data)

    assert (metrics["categories"]["disc"]["pixel_ap"] is None) == (edge == "empty")
    if edge == "empty":
        assert metrics["reasons"]["categories"]["disc"]["aupro"] == "no defective pixels"


def test_a_mask_of_another_size_is_an_error_that_names_it(tiny_model, tmp_path):
    """Nothing is resized silently, and no half-written evaluation is left to be trusted."""
    data = shutil.copytree(tiny_model[0], tmp_path / "data")
    file = data / "disc/ground_truth/spot/001_mask.png"
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(file)

    with pytest.raises(DataError, match=r"001_mask.png: 12x10 px, its image 64x64"):
        run(tmp_path, tiny_model, data=data)
    assert not (tmp_path / "evaluation").exists()


def test_two_evaluations_are_compared_image_by_image(evaluated, tiny_model, tmp_path):
    """The same model differs nowhere; moved scores show as differences and changed verdicts."""
    run(tmp_path, tiny_model)
    path = tmp_path / "evaluation/scores.csv"
    rows = list(csv.DictReader(path.open()))
    for row in rows:
        row["score"] = str(100.0 if row["label"] == "good" else -100.0)
    first, same = (Evaluation.load(folder / "evaluation") for folder in (evaluated, tmp_path))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    nothing = compare(first, same)
    worse = compare(first, Evaluation.load(tmp_path / "evaluation"))

    assert not nothing.changed
    assert {item.difference for item in nothing.differences["mean"].values()} == {0.0}
    assert worse.differences["mean"]["image_auroc"].challenger == 0
    assert worse.differences["disc"]["recall"].challenger == 0
    assert not any(item.is_better for item in worse.changed)
    assert (worse.common, worse.only_first, worse.only_second) == (12, 0, 0)


def test_only_common_images_are_compared(evaluated, tiny_model, tmp_path):
    """Images that one evaluation lacks are left out and counted."""
    run(tmp_path, tiny_model, without=("disc/test/spot/000", "stripes"))
    both = [Evaluation.load(folder / "evaluation") for folder in (evaluated, tmp_path)]

    found = compare(*both)

    assert (found.common, found.only_first, found.only_second) == (5, 7, 0)
    assert found.differences["disc"]["recall"].difference == 0
    assert isinstance(found.differences["disc"]["aupro"].difference, Undefined)


def test_the_commands_run(evaluated, tiny_model, tmp_path, monkeypatch):
    """`onenip compare` and `onenip report` do what they say, and a missing folder is named."""
    folder, runner = str(evaluated / "evaluation"), CliRunner()
    monkeypatch.chdir(tmp_path)

    compared = runner.invoke(app, ["compare", folder, folder])
    options = ["--evaluation", folder, "--champion", folder, "--model", str(tiny_model[1])]
    reported = runner.invoke(app, ["report", *options, "--out", "r.html"])
    missing = runner.invoke(app, ["compare", "no/such", folder])

    assert compared.exit_code == 0, compared.output
    assert "Verdicts changed: 0" in compared.output
    assert reported.exit_code == 0, reported.output
    assert "was " in Path("r.html").read_text()
    assert "no/such: no such folder" in str(missing.exception)


def test_evaluations_of_runs_and_registered_models_are_fetched(evaluated, tmp_path, monkeypatch):
    """A run id, a version and an alias all lead to the evaluation that the run holds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    client = store.connect(create=True)
    experiment = client.create_experiment("onenip", artifact_location=(tmp_path / "a").as_uri())
    run_id = client.create_run(experiment).info.run_id
    empty = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(evaluated / "evaluation"), "evaluation")
    client.create_registered_model("onenip-disc")
    tags = {"digest": "d" * 64, "weights": "file:///none", "approval": "approved"}
    client.create_model_version("onenip-disc", "file:///none", run_id=run_id, tags=tags)
    client.set_registered_model_alias("onenip-disc", "champion", "1")
    stated = (evaluated / "evaluation/metrics.json").read_bytes()

    for at, name in enumerate((run_id, "models:/onenip-disc/1", "models:/onenip-disc@champion")):
        folder = fetch_evaluation(name, tmp_path / str(at))
        assert (folder / "metrics.json").read_bytes() == stated
    for wrong in ("no-such-run", "models:/onenip-disc", "models:/onenip-disc@nobody", empty):
        with pytest.raises((RegistryError, DataError), match=wrong):
            fetch_evaluation(wrong, tmp_path / "wrong")


def test_metrics_are_json_that_other_programs_read(evaluated):
    """No NaN, no infinity: strict JSON."""
    text = (evaluated / "evaluation/metrics.json").read_text()

    json.loads(text, parse_constant=lambda name: pytest.fail(name))

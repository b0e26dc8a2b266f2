"""Every way to a verdict says the same of a file: its score, or the reason why it has none."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.data.validation.measuring import Found, measure_file
from onenip.errors import ImageError
from onenip.images import load_image
from onenip.inference.edge import Description, EdgeDetector
from onenip.inference.export import describe
from onenip.pages.models import Candidate, judge_upload
from onenip.serving.champions import Follower
from onenip.serving.web import ServeSettings, build_app
from tests.paths import CASES
from tests.test_samples import look_at

PART = "disc"  # the category that all files are judged as
SCENES = {  # white of a camera: files that show the scene of their 8bit.png then
    1023: ["mono12-in-16-bit/mono10.png"],
    4095: [
        "mono12-in-16-bit/mono12.png",
        "mono12-in-16-bit/mono12.tif",
        "float-and-int32-tiff/float4095.tif",
    ],
    65535: ["float-and-int32-tiff/float65535.tif"],
    255: ["float-and-int32-tiff/int32_0_255.tif"],
}
REFUSED = {  # without a declared range, or whatever is declared
    **{
        name: "stored in 16|floats of|signed or of 32"
        for several in SCENES.values()
        for name in several
    },
    "several-frames/two_pages.tif": "2 frames",
    "tiff-not-an-image/float64.tif": "a TIFF of a kind",
    "tiff-not-an-image/grey_alpha_16.tif": "a TIFF of a kind",
    "predict-folder/in/d.pgm": "format PGM, which is not read",
    **{
        f"poison-formats/{p.name}": "HEIF or AVIF|not an image"
        for p in CASES.glob("poison-formats/*.bin")
    },
    "moving.gif": "format GIF, which is not read",
    "still.gif": "format GIF, which is not read",
    "gif named.png": "format GIF, which is not read",
    "moving.webp": "2 frames",
    "moving.png": "2 frames",
    "not a number.tif": "not numbers",
    "cut.png": "truncated",
    "empty.png": "empty file|0 bytes",
}


def draw_more(folder: Path) -> None:
    """Files of the same kinds as the cases, which are none of them."""
    first, second = Image.new("L", (64, 64), 40), Image.new("L", (64, 64), 200)
    moving = {"save_all": True, "append_images": [second]}
    first.save(folder / "moving.gif", **moving)
    first.convert("RGB").save(
        folder / "moving.webp", save_all=True, append_images=[second.convert("RGB")]
    )
    first.save(folder / "moving.png", **moving)
    first.save(folder / "still.gif")
    shutil.copy(folder / "still.gif", folder / "gif named.png")
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(folder / "not a number.tif")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (folder / "cut.png").write_bytes(buffer.getvalue()[:2000])
    (folder / "empty.png").touch()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every file of the cases that somebody may want judged, by its name in them, as a camera calls it."""
    folder = tmp_path_factory.mktemp("files")
    draw_more(folder)
    found = {path.name: path for path in folder.iterdir()}
    for name in [name for name in REFUSED if "/" in name]:
        path = folder / name.replace("/", "-").replace(".bin", ".png")
        shutil.copy(CASES / name, path)
        found[name] = path
    for case in ("mono12-in-16-bit", "float-and-int32-tiff"):
        found[f"{case}/8bit.png"] = folder / f"{case}-8bit.png"
        shutil.copy(CASES / case / "8bit.png", found[f"{case}/8bit.png"])
    return found


def ask_all(
    detector: Detector, files: dict[str, Path], folder: Path
) -> dict[str, dict[str, object]]:
    """Score, or reason, of each file by each way to a verdict."""
    model = folder / "model"
    detector.save(model)
    names = {path.name: name for name, path in files.items()}
    answers: dict[str, dict[str, object]] = {}

    def ask(way, name, judge):
        try:
            answers.setdefault(way, {})[name] = judge()
        except ImageError as error:
            answers.setdefault(way, {})[name] = error.reason

    content = json.loads(json.dumps(describe(detector, [PART]) | {"sha256": {}}))
    graph = {
        detector.input_size: lambda image, _: [
            *([one] for one in detector.score_images(list(image), PART)[0]),
            np.zeros(1),
        ]
    }
    edge = EdgeDetector(graph, Description.parse(content))
    page = [Candidate("folder", detector)]
    for name, path in files.items():
        ask("predict", name, lambda path=path: detector.predict([path], category=PART)[0].score)
        ask("edge", name, lambda path=path: edge.predict([path], category=PART)[0].score)
        ask(
            "page",
            name,
            lambda path=path: judge_upload(path.read_bytes(), PART, page).predictions[0].score,
        )
        found = look_at(path, detector, folder)
        ask(
            "ingest", name, lambda found=found: found.reason if found.score is None else found.score
        )
        sample_range = detector.sample_range(PART)
        row = measure_file(
            Found(path.name, PART, "test", "hole", sample_range=sample_range), data_dir=path.parent
        )
        ask("evaluate", name, lambda row=row, path=path, sample_range=sample_range: row.get("problem") or (
            detector.predict([load_image(path, sample_range=sample_range)], category=PART)[0].score
        ))  # fmt: skip
    follower = Follower.of_folder(model)
    with TestClient(build_app(follower, ServeSettings())) as client:
        for name, path in files.items():
            form = {"files": {"file": path.read_bytes()}, "data": {"category": PART}}
            answer = client.post("/predict/file", **form)
            said = answer.json()
            ask("serve", name, lambda said=said: said.get("score") or said["detail"])
            assert answer.status_code in (200, 422)
    command = ["predict", *map(str, files.values()), "--model", str(model), "--category", PART]
    for line in CliRunner().invoke(app, command).stdout.splitlines():
        said = json.loads(line)
        ask(
            "command",
            names[Path(said["image"]).name],
            lambda said=said: said.get("score") or said["error"],
        )
    return answers


def test_every_case_is_refused_alike_where_nothing_says_its_range(tiny_detector, files, tmp_path):
    """Whoever is asked gives the reason, the same for all, and judges the 8-bit image alike."""
    answers = ask_all(tiny_detector, files, tmp_path)

    assert len(answers) == 7
    for name in files:
        said = {way: given[name] for way, given in answers.items()}
        if name in REFUSED:
            assert all(
                any(part in str(one) for part in REFUSED[name].split("|")) for one in said.values()
            ), (
                name,
                said,
            )
        else:
            assert len({round(float(one), 4) for one in said.values()}) == 1, (name, said)
        if name not in (
            "empty.png",
        ):  # that nothing is in it is said of the file, not of its content
            assert len({str(one).removeprefix("image: ") for one in said.values()}) == 1, (
                name,
                said,
            )


@pytest.mark.parametrize("white", SCENES)
def test_every_case_gets_the_score_of_its_scene_at_the_range_of_its_category(
    white, tiny_model, files, tmp_path
):
    """At the range that its category has, each way gives the score of the 8-bit image, within 5 %."""
    detector = Detector.load(tiny_model)
    known = detector.spec.categories
    declared = known[PART].model_copy(update={"sample_range": (0.0, float(white))})
    detector.spec = detector.spec.model_copy(update={"categories": {**known, PART: declared}})
    chosen = {name: files[name] for name in SCENES[white]}
    plain = f"{SCENES[white][0].partition('/')[0]}/8bit.png"

    answers = ask_all(detector, {**chosen, plain: files[plain]}, tmp_path)

    for way, given in answers.items():
        for name in chosen:
            assert given[name] == pytest.approx(given[plain], rel=0.05), (way, name)

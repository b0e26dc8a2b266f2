"""Samples of more than 8 bits: one range per category, decided once, and the same in every command."""

from __future__ import annotations

import io
import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.data.cache import Cache
from onenip.data.manifest import load_manifest, select
from onenip.data.validation import validate
from onenip.errors import DataError, ImageError, ParamsError
from onenip.images import decide_range, load_image, load_preview, measure_samples
from onenip.inference.edge import Description, EdgeDetector, ExportedCategory
from onenip.inference.export import describe
from onenip.ingestion.arrival_check import inspect
from onenip.ingestion.fingerprint import KnownImages
from onenip.ingestion.ingest import open_journal
from onenip.ingestion.journal import Item
from onenip.model.file import SPEC_FILE
from onenip.pages.models import Candidate, judge_upload
from onenip.params import DataParams, Params, ValidateParams
from onenip.serving.champions import Follower
from onenip.serving.web import ServeSettings, build_app
from onenip.synthesis import bank as synthetic_bank
from onenip.training.fit import fit_detector
from tests.paths import CASES
from tests.tiny import change_spec, draw_tiny_data


def deepen(path, white):
    """Replace an image by one of the same scene whose white is `white`, in 16 bits."""
    grey = np.asarray(Image.open(path).convert("L")).astype(np.float64)
    Image.fromarray(np.rint(grey * white / 255).astype(np.uint16)).save(path)


@pytest.fixture(scope="module")
def deep_data(tmp_path_factory):
    """The tiny data as a camera of 12 bits delivers them; `stripes` stays as it is."""
    folder = draw_tiny_data(tmp_path_factory.mktemp("deep") / "data")
    for path in folder.glob("disc/t*/*/*.png"):
        deepen(path, 4095)
    return folder


def run_validation(data, out, **declared):
    params = DataParams(**declared)
    return validate(data, out, data=params, params=ValidateParams(), workers=1)


@pytest.fixture(scope="module")
def deep_fit(deep_data, tiny_params, tmp_path_factory):
    """What validation found in the deep data, and the folder of a detector that was fitted to them."""
    folder = tmp_path_factory.mktemp("deep_fit")
    validation = run_validation(deep_data, folder / "validation")
    samples = load_manifest(validation.manifest, deep_data)
    (folder / "bank").mkdir()
    synthetic_bank.write(folder / "bank", [])
    detector = fit_detector(
        tiny_params,
        samples=samples,
        bank=[],
        provenance={},
        checkpoint_dir=folder / "checkpoint",
        cache=Cache(folder / "cache"),
        on_log=lambda _step, _losses: None,
        progress=False,
    ).detector
    detector.save(folder / "model")
    return validation, folder / "model"


def test_the_range_is_decided_on_the_training_images_and_said(deep_fit, deep_data):
    """Validation says what it looks like, and every usable image of the category has the range."""
    validation, _ = deep_fit

    (said,) = [b for b in validation.breaches if b.rule == "samples_declared"]
    assert (said.path, said.severity) == ("disc", "warning")
    assert "it looks like 12 bits in 16" in said.reason
    assert 'data.sample_ranges: {"disc": [' in said.reason
    samples = load_manifest(validation.manifest, deep_data)
    assert {s.sample_range for s in select(samples, category="disc")} == {(0.0, 4095.0)}
    assert {s.sample_range for s in select(samples, category="stripes")} == {None}
    assert len(select(samples, category="disc")) == 14


def test_every_way_to_a_verdict_reads_the_same_range(deep_fit, deep_data, tmp_path):
    """Detector, server, page, command and arrivals give a dark and a bright 12-bit image its 8-bit score."""
    _, model = deep_fit
    detector = Detector.load(model)
    deep = deep_data / "disc/test/spot/000.png"
    plain = tmp_path / "plain.png"
    Image.fromarray(load_image(deep, sample_range=(0, 4095))).save(plain)
    wanted = detector.predict([plain], category="disc")[0].score

    assert detector.predict([deep], category="disc")[0].score == wanted
    assert detector.predict([Image.open(deep)], category="disc")[0].score == wanted
    page = judge_upload(deep.read_bytes(), "disc", [Candidate("folder", detector)])
    assert page.predictions[0].score == wanted
    with TestClient(build_app(Follower.of_folder(model), ServeSettings())) as client:
        form = {"files": {"file": deep.read_bytes()}, "data": {"category": "disc"}}
        assert client.post("/predict/file", **form).json()["score"] == wanted
        unclear = client.post("/predict/file", files={"file": deep.read_bytes()})
        assert (unclear.status_code, "name its category" in unclear.text) == (422, True)
    command = ["predict", str(deep), "--model", str(model), "--category", "disc"]
    said = CliRunner().invoke(app, [*command, "--heatmaps", str(tmp_path / "maps")])
    assert json.loads(said.stdout.splitlines()[-1])["score"] == wanted
    verdict = look_at(deep, detector, tmp_path)
    assert verdict.score == wanted


def look_at(path, champion, folder, sample_range=None):
    """What ingestion makes of a file that arrived as `disc`."""
    item = Item(
        **dict.fromkeys(["id", "size"], 1),
        **dict.fromkeys(["version", "state", "outcome", "reason", "sha256", "name"], ""),
        **dict.fromkeys(["score", "threshold", "distance", "arrived_at"]),
        key=f"disc/{path.name}",
        category="disc",
        digest="",
        trained="",
    )
    (folder / "empty").mkdir(exist_ok=True)
    with open_journal(folder) as journal:
        return inspect(
            path,
            item,
            known=KnownImages(folder / "empty", journal),
            champion=champion,
            unified=lambda: champion,
            categories=["disc"],
            is_released=False,
            params=Params().retrain,
            sample_range=sample_range or (champion and champion.sample_range("disc")),
        )


def test_an_exported_file_keeps_the_range(deep_fit, deep_data):
    """What is written beside an exported file holds the range, which the edge reads by."""
    detector = Detector.load(deep_fit[1])
    content = json.loads(json.dumps(describe(detector, ["disc", "stripes"]) | {"sha256": {}}))
    seen = []

    def run(image, _category):
        seen.append(image[0])
        return [np.zeros((1, 64, 64), np.float32), np.zeros(1, np.float32), np.zeros(2, np.float32)]

    path = deep_data / "disc/test/spot/000.png"
    EdgeDetector({(64, 64): run}, Description.parse(content)).predict([path], category="disc")
    assert (seen[0] == load_image(path, sample_range=(0, 4095))).all()
    for known in content["categories"].values():
        del known["sample_range"]
    with pytest.raises(ImageError, match="12 bits stored in 16"):
        EdgeDetector({(64, 64): run}, Description.parse(content)).predict([path], category="disc")
    assert ExportedCategory(0, (64, 64), 1.0, 1.0, is_provisional=False).sample_range is None


def test_a_model_of_an_earlier_version_reads_as_it_did(tiny_model, tmp_path):
    """A description without ranges loads, and refuses what it always refused."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")

    def forget(values):
        for known in values["categories"].values():
            del known["sample_range"]

    change_spec(folder, forget)
    assert "sample_range" not in (folder / SPEC_FILE).read_text()
    with pytest.raises(ImageError, match="12 bits stored in 16"):
        Detector.load(folder).predict([CASES / "mono12-in-16-bit/mono12.png"], category="disc")


def test_what_is_beyond_the_range_is_refused_everywhere(deep_fit, tmp_path):
    """A brighter file, and floats of 0..1, name the range of their category and what to declare."""
    _, model = deep_fit
    detector = Detector.load(model)
    bright, floats = tmp_path / "bright.png", tmp_path / "floats.tif"
    Image.fromarray(np.linspace(0, 60000, 4096).astype(np.uint16).reshape(64, 64)).save(bright)
    Image.fromarray(np.linspace(0, 1, 4096).astype(np.float32).reshape(64, 64)).save(floats)

    for path, reason in ((bright, "beyond 0 to 4095"), (floats, "of 0 to 1 are hardly any")):
        with pytest.raises(ImageError, match=reason) as refused:
            detector.predict([path], category="disc")
        assert look_at(path, detector, tmp_path).reason == refused.value.reason
        with TestClient(build_app(Follower.of_folder(model), ServeSettings())) as client:
            form = {"files": {"file": path.read_bytes()}, "data": {"category": "disc"}}
            answer = client.post("/predict/file", **form)
        assert (answer.status_code, reason in answer.text) == (422, True)


def test_dark_images_of_true_16_bits_are_read_as_declared(tiny_data, tmp_path):
    """What a person declares goes before what it looks like, and nothing is doubted then."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    for path in data.glob("disc/t*/*/*.png"):
        deepen(path, 14000)

    found = run_validation(data, tmp_path / "out", sample_ranges={"disc": (0, 65535)})

    assert not [b for b in found.breaches if b.rule in ("samples_declared", "readable")]
    sample = select(load_manifest(found.manifest, data), category="disc")[0]
    assert 20 < sample.load_image().max() <= 55
    inverted = replace(sample, sample_range=(14000.0, 0.0)).load_image()
    assert (inverted == 255 - replace(sample, sample_range=(0.0, 14000.0)).load_image()).all()


@pytest.mark.parametrize("white", [1023, 4095])
def test_a_camera_of_fewer_bits_is_noticed_in_a_category_of_true_16(white):
    """What would be read on 16 grey levels or fewer is refused; a black image is nobody's other camera."""
    values = np.linspace(0, white - 1, 4096).astype(np.uint16).reshape(64, 64)
    for pixels, is_refused in ((values, True), (values * 8, False), (values * 0, False)):
        content = write_tiff(pixels)
        if is_refused:
            with pytest.raises(ImageError, match="camera of fewer bits"):
                load_image(content, sample_range=(0, 65535))
        else:
            load_image(content, sample_range=(0, 65535))


@pytest.mark.parametrize(("white", "own"), [(1023, 4095), (4095, 16383), (16383, 65535)])
def test_where_a_camera_of_fewer_bits_burns_out_it_is_noticed(white, own):
    """Many pixels at its white, and none above; a darker image of the same camera is read."""
    scene = np.clip(np.linspace(0, 1.2 * white, 4096), 0, white).astype(np.uint16).reshape(64, 64)
    darker = np.clip(np.linspace(0, 1.2 * own, 4096), 0, own).reshape(64, 64)

    with pytest.raises(ImageError, match=f"all {white}, the white of a camera of fewer bits"):
        load_image(write_tiff(scene), sample_range=(0, own))
    for light in (1, 2, 3, 5, 8):
        load_image(write_tiff((darker / light).astype(np.uint16)), sample_range=(0, own))
    load_image(write_tiff(scene), sample_range=(0, 3 * white))  # as a person declared


def test_a_narrow_band_of_16_bits_is_said(tiny_data, tmp_path):
    """A thermal camera uses a few thousand values in the middle: 256 grey levels would become 12."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    for path in data.glob("disc/t*/*/*.png"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(28_000 + 12 * grey).save(path)

    found = run_validation(data, tmp_path / "out")

    (said,) = [b.reason for b in found.breaches if b.rule == "samples_declared"]
    assert "of 256 grey levels" in said
    assert 'data.sample_ranges: {"disc": [' in said


def test_cameras_of_different_depths_are_doubted(tiny_data, tmp_path):
    """A few images of 12 bits among those of 16 are not crushed to 16 grey levels without a word."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    for index, path in enumerate(sorted(data.glob("disc/t*/*/*.png"))):
        deepen(path, 4095 if index % 3 else 65535)

    found = run_validation(data, tmp_path / "out")

    (said,) = [b.reason for b in found.breaches if b.rule == "samples_declared"]
    assert "cameras of different depths" in said
    left_out = [b for b in found.breaches if b.rule == "readable"]
    assert f"{sum('/train/' in b.path for b in left_out)} of 8 images" in said


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.arange(20_000, 24_096, dtype=np.int16), 32767),
        (np.arange(4096, dtype=np.int16), 4095),
        (np.arange(4096, dtype=np.int32) * 16, 65535),
        (np.arange(4096, dtype=np.uint16) * 16, 65535),
        (np.arange(4096, dtype=np.int16) - 1, None),
        (np.arange(4096, dtype=np.uint32) << 20, None),
        (np.linspace(0, 1.001, 4096, dtype=np.float32), 1),
        (np.linspace(0, 254, 4096, dtype=np.float32), 255),
        (np.linspace(-1, 1, 4096, dtype=np.float32), None),
    ],
)  # fmt: skip
def test_white_follows_from_type_and_values(values, white, tmp_path):
    """Of a camera of so many bits, or of a signed type, which holds no more; else it is to be declared."""
    path, pixels = tmp_path / "x.tif", values.reshape(64, 64)
    path.write_bytes(write_tiff(pixels))

    assert decide_range([measure_samples(path)]) == (None if white is None else (0.0, float(white)))
    shown = load_preview(path)
    assert shown.min() < shown.max()


def write_tiff(pixels):
    """An uncompressed TIFF of one channel of any type, which Pillow does not write."""
    height, width = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    bits, size = pixels.dtype.itemsize * 8, pixels.nbytes
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 146, 277: 1, 278: height}
    tags |= {279: size, 284: 1, 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + pixels.tobytes()


def test_ranges_without_an_answer_are_named(tiny_data, tmp_path):
    """Negative floats have no range of their own: each file says so, and the category what to declare."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    for path in data.glob("disc/t*/*/*.png"):
        values = np.asarray(Image.open(path).convert("L")).astype(np.float32) - 20
        Image.fromarray(values).save(path.with_suffix(".tif"))
        path.unlink()

    found = run_validation(data, tmp_path / "out")

    rules = {(b.rule, b.path.split("/")[0]) for b in found.breaches}
    assert {("readable", "disc"), ("samples_declared", "disc")} <= rules
    declared = run_validation(data, tmp_path / "out", sample_range=(-20, 235))
    assert not [b for b in declared.breaches if b.rule == "readable"]


def test_black_and_white_must_differ():
    """A range of one value is refused by its key."""
    with pytest.raises(ParamsError, match=r"data\.sample_ranges\.disc"):
        Params.parse({"data": {"sample_ranges": {"disc": [5, 5]}}})


def test_a_category_without_training_decides_on_its_own_images(tiny_detector, deep_data, tmp_path):
    """Normal images given at run time decide as a training set does, and decide once."""
    normals = sorted(deep_data.glob("disc/train/good/*"))

    found = tiny_detector.add_category("part", normals)

    assert found.sample_range("part") == (0.0, 4095.0)
    found.save(tmp_path / "model")
    assert Detector.load(tmp_path / "model").sample_range("part") == (0.0, 4095.0)
    with pytest.raises(DataError, match="unknown category"):
        found.sample_range("bolt")


@pytest.mark.parametrize(
    "name",
    ["mono12-in-16-bit/mono10.png", "mono12-in-16-bit/mono12.png", "mono12-in-16-bit/mono12.tif",
     "float-and-int32-tiff/float4095.tif", "float-and-int32-tiff/float65535.tif",
     "float-and-int32-tiff/int32_0_255.tif"],
)  # fmt: skip
def test_the_cases_show_the_scene_of_their_8_bit_image(tiny_detector, name):
    """Whatever a camera stores, its scene gets the score of the 8-bit one, within 5 %."""
    path = CASES / name
    detector = tiny_detector.add_category("part", [path])
    plain = path.parent / "8bit.png"

    wanted = detector.predict([plain], category="part")[0].score
    found = detector.predict([path], category="part")[0].score

    assert found == pytest.approx(wanted, rel=0.05)
    shown = load_image(path, sample_range=detector.sample_range("part")).astype(int)
    assert np.abs(shown - load_image(plain)).max() <= 1


def test_bytes_are_read_as_files_are(tmp_path):
    """Bytes and a file of the same content give the same pixels at the same range."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(buffer, "TIFF")
    (tmp_path / "x.tif").write_bytes(buffer.getvalue())

    one = load_image(buffer.getvalue(), sample_range=(0, 4095))
    assert (one == load_image(tmp_path / "x.tif", sample_range=(0, 4095))).all()
    assert (one.min(), one.max()) == (0, 255)

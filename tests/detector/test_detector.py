"""Detector.predict and Detector.add_category: what they take, and that nothing else changes an answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from onenip import Detector
from onenip.detector.operating_points import decide
from onenip.errors import DataError, DeviceError, ImageError
from onenip.images import load_image
from tests.tiny import draw_normal


@pytest.fixture(scope="module")
def image_path(tiny_data):
    return sorted((tiny_data / "disc" / "test" / "spot").glob("*.png"))[0]


@pytest.fixture(scope="module")
def answer(tiny_detector, image_path):
    return tiny_detector.predict([image_path], category="disc")[0]


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(str, id="str"),
        pytest.param(load_image, id="array"),
        pytest.param(Image.open, id="pil"),
        pytest.param(lambda p: torch.tensor(load_image(p)).permute(2, 0, 1), id="uint8 tensor"),
        pytest.param(
            lambda p: torch.tensor(load_image(p)).permute(2, 0, 1) / 255, id="float tensor"
        ),
        pytest.param(lambda p: load_image(p)[::-1][::-1], id="strided array"),
    ],
)
def test_predict_gives_every_kind_of_input_the_same_score(
    tiny_detector, image_path, answer, convert
):
    """An image scores the same, to the last bit, whatever it comes as."""
    found = tiny_detector.predict([convert(image_path)], category="disc")[0]

    assert found.score == answer.score
    assert np.array_equal(found.map, answer.map)


def test_predict_leaves_the_input_as_it_was(tiny_detector, image_path):
    """A read-only array is judged, and no array is written to."""
    image = load_image(image_path).copy()
    before = image.copy()
    image.flags.writeable = False

    tiny_detector.predict([image], category="disc")

    assert np.array_equal(image, before)


def test_predict_takes_grey_arrays(tiny_detector, image_path):
    """A grey array [H, W] is the RGB image whose channels are equal."""
    grey = np.ascontiguousarray(load_image(image_path)[:, :, 0])

    flat, repeated = tiny_detector.predict(
        [grey, np.repeat(grey[:, :, None], 3, axis=2)], category="disc"
    )

    assert flat.score == repeated.score


def test_predict_judges_each_image_alone(tiny_detector, tiny_data, image_path, answer):
    """What is said of an image does not depend on the images beside it."""
    others = sorted((tiny_data / "disc" / "test" / "good").glob("*.png"))

    found = tiny_detector.predict([*others, image_path, *others], category="disc")[len(others)]

    assert found.score == answer.score
    assert np.array_equal(found.map, answer.map)


def test_predict_answers_at_the_images_own_size(tiny_detector, image_path):
    """The map and the regions of an image of another shape are at that shape."""
    wide = np.asarray(Image.open(image_path).convert("RGB").resize((150, 90)))

    found = tiny_detector.predict([wide], category="disc")[0]

    assert found.map.shape == (90, 150)
    assert found.map.dtype == np.float32
    assert found.input_map.shape == tiny_detector.input_size
    for region in found.regions:
        assert 0 <= region.x < region.x + region.width <= 150
        assert 0 <= region.y < region.y + region.height <= 90
        assert region.score > found.pixel_threshold


def test_predict_tells_the_category(tiny_detector, tiny_data):
    """Without a category each image gets that of the prompt that it looks like, and it is said."""
    for category in tiny_detector.categories:
        path = sorted((tiny_data / category / "test" / "good").glob("*.png"))[0]
        told = tiny_detector.predict([path])[0]
        given = tiny_detector.predict([path], category=category)[0]

        assert (told.category, told.category_inferred) == (category, True)
        assert not given.category_inferred
        assert told.score == given.score


@pytest.mark.parametrize(
    ("image", "words"),
    [
        pytest.param(np.zeros((8, 8, 3), np.float32), "uint8", id="float array"),
        pytest.param(np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\]", id="empty array"),
        pytest.param(np.zeros((8, 8, 4), np.uint8), r"\[8, 8, 4\]", id="four channels"),
        pytest.param(torch.zeros(8, 8, 3), r"\[3, H, W\]", id="channels last tensor"),
        pytest.param(torch.zeros(3, 0, 8), r"\[3, 0, 8\]", id="empty tensor"),
        pytest.param(torch.zeros(3, 8, 8, dtype=torch.int64), "int64", id="integer tensor"),
        pytest.param(torch.full((3, 8, 8), float("nan")), "0..1", id="tensor of NaN"),
        pytest.param(torch.full((3, 8, 8), 200.0), "0..1", id="float tensor 0..255"),
    ],
)
def test_predict_refuses_what_is_no_image(tiny_detector, image, words):
    """A wrong shape, type or range is a DataError that says what was expected."""
    with pytest.raises(DataError, match=words):
        tiny_detector.predict([image], category="disc")


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("noise", [0, 8])
def test_a_camera_that_sees_nothing_gets_no_verdict(tiny_detector, tmp_path, level, noise):
    """Covered, dark or burnt out, with a sensor's noise or without: it is no normal part."""
    rng = np.random.default_rng(level)
    base = min(level, 255 - noise)
    image = rng.integers(base, base + noise + 1, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "dead.png")

    for given in (tmp_path / "dead.png", image):
        for category in ("disc", None):
            with pytest.raises(ImageError, match="nothing can be seen"):
                tiny_detector.predict([given], category=category)


def test_predict_names_bad_files_and_unknown_categories(tiny_detector, image_path, tmp_path):
    """A file that is no image and a category that the model lacks are typed errors."""
    text = tmp_path / "note.png"
    text.write_text("not an image")

    with pytest.raises(ImageError, match=r"note\.png"):
        tiny_detector.predict([text], category="disc")
    with pytest.raises(DataError, match=r"unknown category 'nut'.*disc, stripes"):
        tiny_detector.predict([image_path], category="nut")


def test_add_category_from_one_image_ranks_a_defect_and_is_unsure(
    tiny_detector, tiny_data, tmp_path
):
    """One normal image founds a provisional category that ranks images, judges none, and can be saved."""
    normal = sorted((tiny_data / "stripes" / "train" / "good").glob("*.png"))[0]
    defective = load_image(normal).copy()
    defective[20:36, 20:36] = (200, 20, 20)

    extended = tiny_detector.add_category("new", [normal])
    same, changed = extended.predict([load_image(normal), defective], category="new")

    assert "new" not in tiny_detector.categories
    assert extended.spec.categories["new"].is_provisional
    assert same.verdict == changed.verdict == "unsure"
    assert changed.score > max(same.score, changed.threshold)
    assert changed.normals_needed == tiny_detector.spec.calibrate.min_normals - 1
    extended.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    assert loaded.predict([defective], category="new")[0].score == pytest.approx(
        changed.score, abs=1e-4
    )


def test_enough_normal_images_give_a_verdict(tiny_detector):
    """From `calibrate.min_normals` images on, a category added without training is judged."""
    normals = [
        draw_normal("stripes", np.random.default_rng(seed))
        for seed in range(tiny_detector.spec.calibrate.min_normals)
    ]
    defective = normals[0].copy()
    defective[20:36, 20:36] = (200, 20, 20)

    found = tiny_detector.add_category("new", normals).predict([defective], category="new")[0]

    assert found.verdict == "anomalous"
    assert found.regions
    assert found.is_provisional


def test_add_category_leaves_the_others_alone(tiny_detector, tiny_data, image_path, answer):
    """The categories that were there score as before, to the last bit."""
    normals = sorted((tiny_data / "stripes" / "train" / "good").glob("*.png"))[:3]

    extended = tiny_detector.add_category("new", normals)

    assert extended.predict([image_path], category="disc")[0].score == answer.score
    assert extended.state("disc") is tiny_detector.state("disc")  # costs nothing anew
    assert extended.folded is tiny_detector.folded
    known = extended.spec.categories
    assert decide(known, extended.spec.calibrate)["new"] == known["new"]


def test_added_normals_are_calibrated_without_their_own_prompt(tiny_detector, tiny_data):
    """By restoration alone, a normal image that is a prompt scores higher in calibration than with itself."""
    paths = sorted((tiny_data / "stripes/train/good").glob("*.png"))[:4]
    rule = tiny_detector.spec.calibrate.model_copy(update={"fusion_weights": {"restoration": 1.0}})
    names = tiny_detector.categories
    detector = Detector(
        tiny_detector.network,
        spec=tiny_detector.spec.model_copy(update={"calibrate": rule}),
        states={name: tiny_detector.state(name) for name in names},
    ).add_category("new", paths)
    known = detector.spec.categories["new"]

    with_itself = [found.score for found in detector.predict(paths, category="new")]

    assert len(known.prompt_names) == 2
    for i, (calibrated, own) in enumerate(zip(known.normal_scores, with_itself, strict=True)):
        if f"given {i}" in known.prompt_names:
            assert calibrated > own + 1e-3
        else:
            assert calibrated == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("disc", 1, "there already"),
        ("new", 0, "at least one"),
        ("", 1, "empty"),
        ("a/b", 1, "separator"),
    ],
)
def test_add_category_refuses(tiny_detector, image_path, name, count, words):
    """A taken or unusable name and no image at all are DataErrors."""
    with pytest.raises(DataError, match=words):
        tiny_detector.add_category(name, [image_path] * count)


def test_images_may_go_through_the_network_together(tiny_detector, tiny_data):
    """In batches, of told categories and of several sizes, all is said as one at a time but for rounding."""
    paths = sorted(tiny_data.glob("*/test/*/*.png"))
    images = [load_image(path)[: 64 - 8 * (i % 2)] for i, path in enumerate(paths)]

    alone = tiny_detector.predict(images)
    together = tiny_detector.predict(images, batch_size=5)

    assert [p.category for p in together] == [p.category for p in alone]
    assert {p.category for p in alone} == {"disc", "stripes"}
    assert [p.map.shape for p in together] == [p.map.shape for p in alone]
    assert np.allclose([p.score for p in together], [p.score for p in alone], atol=1e-4)


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_there_is_named(tiny_model, monkeypatch, name):
    """Neither a missing nor an unknown device is replaced by another one in silence."""
    monkeypatch.setenv("ONENIP_DEVICE", name)

    with pytest.raises(DeviceError, match=f"ONENIP_DEVICE={name}"):
        Detector.load(tiny_model)
    assert Detector.load(tiny_model, device="cpu").device.type == "cpu"

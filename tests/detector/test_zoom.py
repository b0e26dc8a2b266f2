"""Categories whose details are looked at with more pixels, where their photographs have them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from onenip import Detector
from onenip.detector.zoom import choose_zoom
from onenip.inference.edge import EdgeDetector
from onenip.inference.export import export_detector
from onenip.params import ModelParams
from onenip.training.verification import verify_model
from tests.tiny import fit_tiny, make_tiny_params


@pytest.fixture(scope="module")
def mixed_data(tiny_data, tmp_path_factory):
    """The tiny data set with its stripes as small photographs."""
    folder = shutil.copytree(tiny_data, tmp_path_factory.mktemp("mixed") / "data")
    for path in (folder / "stripes").rglob("*.png"):
        Image.open(path).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="module")
def zoomed(mixed_data, tmp_path_factory):
    """A detector of input size 32 px, which looks at discs of 64 px with a zoom of 2, and its folder."""
    model = {**make_tiny_params().dump()["model"], "input_size": [32, 32], "neighbor_size": 0}
    folder = tmp_path_factory.mktemp("zoomed")
    params = make_tiny_params(model={**model, "zoom": 2}, calibrate={"prompts": 3, "pooling_px": 8})
    fit_tiny(mixed_data, params, folder).detector.save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def detector(zoomed):
    return Detector.load(zoomed / "model")


@pytest.mark.parametrize(
    ("sizes", "zoom"),
    [
        ([(100, 100)], 1),
        ([(224, 224)], 1),
        ([(335, 335)], 1),
        ([(336, 336), (336, 336), (10, 10)], 2),
        ([(300, 700)], 2),
        ([(4000, 3000)], 2),
    ],
)
def test_photographs_must_nearly_have_the_pixels(sizes, zoom):
    """The median image needs three quarters of the zoomed input's side."""
    assert choose_zoom(sizes, ModelParams(zoom=2)) == zoom
    assert choose_zoom(sizes, ModelParams(zoom=1)) == 1


def test_each_category_gets_its_own_zoom(detector, mixed_data):
    """Maps have the same size with and without zoom, and an image's category is told without it."""
    assert {name: detector.zoomed_size(name) for name in detector.categories} == {
        "disc": (64, 64),
        "stripes": (32, 32),
    }
    assert all(reach is not None for reach in detector.reaches.values())
    for name in detector.categories:
        for path in sorted((mixed_data / name / "test/good").iterdir()):
            told, inferred = (detector.predict([path], category=c)[0] for c in (name, None))
            assert told.input_map.shape == (32, 32)
            assert inferred.category == name
            assert inferred.score == told.score


def test_a_mixed_batch_answers_as_its_images_one_by_one(detector, mixed_data):
    """Images of several zooms may go through the network together."""
    # the spots fill most of what a token of 32 px images sees, so that they look like another product
    paths = sorted(mixed_data.glob("*/test/good/*.png"))
    together = detector.predict(paths, batch_size=len(paths))
    alone = detector.predict(paths)

    assert [p.category for p in together] == [p.category for p in alone]
    assert np.allclose([p.score for p in together], [p.score for p in alone], atol=1e-3)


def test_a_model_with_zooms_can_be_verified(zoomed, mixed_data):
    """Every figure that can be recomputed agrees."""
    findings = verify_model(zoomed / "model", data_dir=mixed_data, synthesis_dir=zoomed / "bank")

    assert not [finding for finding in findings if finding.agrees is False]


def test_a_category_that_is_added_gets_its_zoom(detector):
    """It follows from the given images."""
    images = np.random.default_rng(0).integers(0, 255, (3, 80, 80, 3), dtype=np.uint8)

    assert detector.add_category("large", list(images)).zoomed_size("large") == (64, 64)
    assert detector.add_category("small", list(images[:, :40, :40])).zoomed_size("small") == (
        32,
        32,
    )


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_an_export_looks_at_each_category_as_the_detector_does(
    detector, mixed_data, tmp_path, format_
):
    """An export holds a graph for each input size; scores are equal within 1e-3, category told or not."""
    file = export_detector(detector, tmp_path / "model", format=format_)
    edge = EdgeDetector.load(file)

    assert len(list(tmp_path.glob(f"*{file.suffix}"))) == 2
    for name in edge.categories:
        for path in sorted((mixed_data / name / "test").rglob("*.png"))[::2]:
            wanted = detector.predict([path], category=name)[0]
            told = edge.predict([path], category=name)[0]
            assert told.score == pytest.approx(wanted.score, abs=1e-3)
            assert told.input_map.shape == wanted.input_map.shape
            if (
                path.parent.name == "good"
            ):  # a spot fills too much of 32 px to be of a known product
                assert edge.predict([path])[0].score == told.score

    if format_ == "onnx":  # graphs of sizes that a further export does not have are gone
        export_detector(detector, tmp_path / "model", format="onnx", categories=["disc"])
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


@pytest.mark.parametrize(
    "model",
    [{"backbone": "vit_tiny_patch16_224", "levels": (5,)}, {"refiner": "paper"}],
    ids=["backbone of one size", "paper"],
)
def test_what_can_not_zoom_does_not(model):
    """A vision transformer is built for one input size, and the paper's refiner for one grid."""
    assert choose_zoom([(4000, 3000)], ModelParams(zoom=2, **model)) == 1

"""An image of another product is answered as such, not with a verdict."""

from __future__ import annotations

import numpy as np
import pytest

from onenip.detector.prediction import choose_category, is_foreign
from onenip.errors import ForeignImageError
from onenip.inference.by_category import ServedDetectors
from onenip.inference.edge import Description, EdgeDetector
from onenip.inference.export import describe
from tests.tiny import draw_normal, fit_tiny, make_tiny_params


@pytest.fixture(scope="module")
def detector(tiny_data, tmp_path_factory):
    """A tiny detector whose categories have prompts enough to say how far their images reach."""
    params = make_tiny_params(calibrate={"prompts": 3, "pooling_px": 8})
    return fit_tiny(tiny_data, params, tmp_path_factory.mktemp("foreign")).detector


@pytest.fixture(scope="module")
def board():
    """A picture of no known product."""
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def test_what_looks_like_none_of_the_categories_gets_no_verdict(detector, board):
    """Detector and server refuse a foreign image where no category is given, and judge it where one is."""
    for model in (detector, ServedDetectors(dict.fromkeys(detector.categories, detector))):
        with pytest.raises(ForeignImageError, match="looks like none of disc, stripes"):
            model.predict([board])
        assert model.predict([board], category="disc")[0].category == "disc"


def test_what_is_unlike_all_over_is_foreign_within_reach_too(detector, board):
    """A picture as near as far normal images are, of which nothing is like the memory, gets no verdict."""
    rng = np.random.default_rng(0)
    disc = draw_normal("disc", rng)
    veiled = (0.75 * disc + 0.25 * board).astype(np.uint8)
    assert detector.measure_distances(veiled)["disc"] < detector.reaches["disc"]

    for model in (detector, ServedDetectors(dict.fromkeys(detector.categories, detector))):
        with pytest.raises(ForeignImageError, match="looks like none of disc, stripes"):
            model.predict([veiled])
        assert model.predict([veiled], category="disc")[0].unlike_share > 0.5
        assert model.predict([disc])[0].unlike_share < 0.1


def test_normal_and_defective_images_are_known(detector, tiny_data):
    """Images of the categories, with and without defects, are none of them foreign."""
    for path in sorted(tiny_data.glob("*/test/*/*.png")):
        assert detector.predict([path])[0].category == path.parts[-4]


def test_the_edge_agrees(detector, board):
    """An exported file refuses by the distances that its graph gives, also with a single category."""
    content = describe(detector, ["disc"]) | {"sha256": {}}
    disc = draw_normal("disc", np.random.default_rng(5))

    def run(image, _category):
        distance = detector.measure_distances(image[0])["disc"]
        return [np.zeros((1, 64, 64), np.float32), np.zeros(1), np.array([distance])]

    edge = EdgeDetector({(64, 64): run}, Description.parse(content))
    assert edge.predict([disc])[0].category == "disc"
    with pytest.raises(ForeignImageError, match="looks like none of disc"):
        edge.predict([board])
    reach, share = detector.reaches["disc"], 0.9

    def run_today(_image, _category):
        return [
            np.zeros((1, 64, 64), np.float32),
            np.zeros(1),
            np.array([reach / 2]),
            np.array([share]),
        ]

    edge = EdgeDetector({(64, 64): run_today}, Description.parse(content))
    with pytest.raises(ForeignImageError, match="looks like none of disc"):
        edge.predict([disc])
    assert edge.predict([disc], category="disc")[0].unlike_share == share


def test_an_unknown_reach_refuses_nothing():
    """Where one category cannot say how far its images reach, an image may be of it."""
    distances = {"a": 9.0, "b": 3.0}

    assert choose_category(distances, {"a": 1.0, "b": None}) == "b"
    assert choose_category(distances, {"a": 1.0, "b": 3.0}) == "b"
    with pytest.raises(ForeignImageError):
        choose_category(distances, {"a": 1.0, "b": 2.0})


def test_a_part_of_an_image_makes_none_foreign():
    """However far a category's own image lies, and however large its defect is."""
    assert not is_foreign(3.0, 4.0, 0.4)
    assert not is_foreign(0.9, 4.0, 1.0)
    assert not is_foreign(100.0, None, 1.0)
    assert is_foreign(1.1, 4.0, 0.8)
    assert is_foreign(4.1, 4.0, 0.0)

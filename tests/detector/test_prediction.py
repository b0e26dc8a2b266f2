"""Maps at another size and their regions, against plain references."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from onenip.detector.image_like import to_array
from onenip.detector.prediction import find_regions, make_prediction, resize_map
from onenip.errors import CheckpointError, DataError
from onenip.inference.edge import ExportedCategory


@pytest.mark.parametrize(("sigma", "size"), [(1, (90, 130)), (4, (90, 130)), (12, (1300, 40))])
def test_regions_are_those_of_a_plain_loop(sigma, size):
    """Box, area and highest value of each connected region, highest first; small ones can be left out."""
    noise = np.random.default_rng(sigma).standard_normal(size)
    values = ndimage.gaussian_filter(noise, sigma).astype(np.float32)
    threshold = float(np.quantile(values, 0.9))
    labels, count = ndimage.label(values > threshold, structure=np.ones((3, 3)))
    expected = set()
    for number in range(1, count + 1):
        y, x = np.nonzero(labels == number)
        box = (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
        expected.add((*box, len(x), values[y, x].max()))

    found = find_regions(values, threshold=threshold)
    large = find_regions(values, threshold=threshold, min_area_px=30)

    assert {(r.x, r.y, r.width, r.height, r.area_px, r.score) for r in found} == expected
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert large == tuple(r for r in found if r.area_px >= 30)


def test_nothing_above_the_threshold_is_no_region():
    """A pixel at the threshold is not above it."""
    assert find_regions(np.zeros((4, 5), np.float32), threshold=0.0) == ()


@dataclass(frozen=True)
class Category:
    """Thresholds of a made-up category."""

    image_threshold: float = 3.0
    review_threshold: float | None = 2.0
    pixel_threshold: float = 9.0
    is_provisional: bool = False
    normals_needed: int = 0


def predict_score(score, *, peak, **limits):
    """The prediction of a map with one high pixel."""
    values = np.zeros((8, 8), np.float32)
    values[4, 4] = peak
    return make_prediction(
        values,
        score=score,
        size=(8, 8),
        input_size=(8, 8),
        limits=Category(**limits),
        category="disc",
        category_inferred=False,
        seconds=0.0,
    )


@pytest.mark.parametrize(
    ("score", "limits", "verdict"),
    [
        (3.1, {}, "anomalous"),
        (3.0, {}, "review"),
        (2.0, {}, "normal"),
        (3.0, {"review_threshold": None}, "normal"),
        (9.0, {"normals_needed": 2}, "unsure"),
    ],
)
def test_an_image_gets_one_verdict(score, limits, verdict):
    """The score alone decides, a score at a threshold being below it; few normals decide nothing."""
    found = predict_score(score, peak=5.0, **limits)

    assert found.verdict == verdict == found.to_dict()["verdict"]
    assert found.is_anomalous == (verdict == "anomalous")
    assert bool(found.regions) == (verdict != "normal")


def test_a_normal_image_has_no_box_and_an_anomalous_one_has():
    """Pixels above a high pixel threshold do not mark a normal image; an anomalous one is always marked."""
    assert predict_score(1.0, peak=50.0).regions == ()
    assert len(predict_score(4.0, peak=4.5).regions) == 1


@pytest.mark.parametrize("size", [(64, 64), (90, 150), (33, 20), (1, 200)])
def test_a_map_is_resized_as_by_torch(size):
    """Resizing in numpy equals torch's bilinear interpolation without aligned corners."""
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

    expected = torch.nn.functional.interpolate(
        torch.tensor(values)[None, None], size=size, mode="bilinear", align_corners=False
    )[0, 0]

    assert np.abs(resize_map(values, size) - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 0.5])
def test_what_is_not_a_number_is_never_normal(score):
    """A score or a map that is not finite is an error, and no verdict."""
    fused = np.zeros((4, 4), np.float32)
    if score == 0.5:
        fused[2, 1] = np.nan

    with pytest.raises(CheckpointError, match="not finite"):
        make_prediction(
            fused,
            score=score,
            size=(8, 8),
            input_size=(4, 4),
            limits=ExportedCategory(0, (4, 4), 1.0, 1.0, is_provisional=False),
            category="nut",
            category_inferred=False,
            seconds=0.0,
        )


def test_what_no_file_may_hold_no_array_may_hold():
    """One limit of pixels for files, arrays, PIL images and tensors, before anything is copied."""
    grey = np.broadcast_to(np.uint8(0), (10_001, 10_000))
    tensor = torch.zeros(1, dtype=torch.uint8).expand(3, *grey.shape)
    for image in (grey, Image.new("1", grey.shape[::-1]), tensor):
        with pytest.raises(DataError, match="at most 100,000,000 pixels"):
            to_array(image)

"""Maps at another size and their regions, against plain references."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from onenip.detector.prediction import find_regions, make_prediction, resize_map
from onenip.errors import CheckpointError
from onenip.inference.edge import ExportedCategory


@pytest.mark.parametrize("sigma", [1, 4, 12])
def test_regions_are_those_of_a_plain_loop(sigma):
    """Box, area and highest value of each connected region, highest first; small ones can be left out."""
    noise = np.random.default_rng(sigma).standard_normal((90, 130))
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
            limits=ExportedCategory(0, 1.0, 1.0, is_provisional=False),
            category="nut",
            category_inferred=False,
            seconds=0.0,
        )

"""Figures of merit: oracles, properties that hold for all inputs, and inputs that say nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from onenip.errors import DataError
from onenip.evaluation import metrics
from onenip.evaluation.metrics import PixelScores, Undefined, pixels, segments
from tests.paths import SHARED

PARITY = SHARED / "spec/parity/losses_and_metrics.json"


def draw_maps(seed: int, *, levels: int | None = None, images: int = 6, size=(24, 20)):
    """Maps and masks with touching, tiny and border regions; rounded to `levels` for ties."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for at in range(images):
        mask = np.zeros(size, bool)
        values = rng.normal(size=size)
        if at < images - 2:
            mask = rng.random(size) > 0.93
            mask[0:4, 0:5] = True
            values = values + mask
        maps.append((np.round(values * levels) / levels if levels else values).astype(np.float32))
        masks.append(mask)
    return maps, masks


def compute(maps, masks) -> dict[str, float]:
    """Figures of maps and masks, all in one shard."""
    scores = PixelScores()
    for score_map, mask in zip(maps, masks, strict=True):
        scores.update(score_map, mask)
    return scores.compute()


def naive_aupro(maps, masks, limit: float) -> float:
    """AUPRO by its definition: every distinct threshold, every region, one after the other."""
    found, count = [], 0
    for mask in masks:
        labels, own = ndimage.label(mask, np.ones((3, 3)))
        found.append(np.where(labels > 0, labels + count, 0))
        count += own
    labels, values = np.stack(found), np.stack(maps)
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(values)[::-1]:
        flagged = values >= threshold
        rates.append((flagged & (labels == 0)).sum() / (labels == 0).sum())
        regions = (labels == number for number in range(1, count + 1))
        overlaps.append(np.mean([(flagged & one).sum() / one.sum() for one in regions]))
    area = 0.0
    for at in range(1, len(rates)):
        width, part = rates[at] - rates[at - 1], min(rates[at], limit) - rates[at - 1]
        if part > 0:
            rise = overlaps[at] - overlaps[at - 1]
            area += part * (overlaps[at - 1] + rise * part / width / 2)
    return area / limit


@pytest.mark.parametrize("levels", [None, 4, 30], ids=["distinct", "many ties", "some ties"])
@pytest.mark.parametrize("slice_pixels", [8_000_000, 100, 7])
def test_pixel_figures_equal_their_oracles(levels, slice_pixels, monkeypatch):
    """AUROC, AP and F1-max are scikit-learn's, AUPRO is its definition, however memory is cut."""
    monkeypatch.setattr(pixels, "_SLICE_PIXELS", slice_pixels)
    monkeypatch.setattr(segments, "_SAMPLE_STEP", 3)
    maps, masks = draw_maps(1, levels=levels, size=(14, 12))
    scores, truth = np.stack(maps).ravel(), np.stack(masks).ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)

    figures = compute(maps, masks)

    assert figures["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    assert figures["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-6)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    assert figures["pixel_f1_max"] == pytest.approx(best, abs=1e-6)
    assert figures["aupro"] == pytest.approx(naive_aupro(maps, masks, 0.30), abs=1e-4)
    assert figures["aupro_05"] == pytest.approx(naive_aupro(maps, masks, 0.05), abs=1e-4)


def test_regions_that_touch_at_a_corner_are_one():
    """Components are 8-connected: two pixels that share a corner are one region."""
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[1, 1] = True
    scores = PixelScores()
    scores.update(np.zeros((4, 4), np.float32), mask)

    assert [segment.regions for segment in scores.segments] == [1]


def test_every_region_counts_the_same_whatever_its_size():
    """A small missed region costs as much overlap as a large found one gains."""
    mask = np.zeros((20, 20), bool)
    mask[0:10, 0:10] = mask[19, 19] = True
    score_map = np.zeros((20, 20), np.float32)
    score_map[0:10, 0:10] = 1

    figures = compute([score_map], [mask])

    # half of the regions at no false alarm; the rest on the straight line to (1, 1)
    assert figures["aupro"] == pytest.approx(0.5 + 0.5 * 0.30 / 2)


@pytest.mark.parity
@pytest.mark.skipif(not PARITY.is_file(), reason="no parity data beside this checkout")
def test_figures_agree_with_the_reference():
    """The authors' own numbers on the same maps come out, AUROC and AP to 1e-4."""
    stated = json.loads(PARITY.read_text())
    rng = np.random.default_rng(23)
    rec = rng.random((12, 64, 64), np.float32) * 3 + 1
    ref = rng.random((12, 64, 64), np.float32)
    masks = np.zeros((12, 64, 64), bool)
    for at in range(6):
        y, x = rng.integers(8, 48, 2)
        masks[at, y : y + 9, x : x + 7] = True
        rec[at, y : y + 9, x : x + 7] += np.float32(0.12)
        ref[at, y : y + 9, x : x + 7] += np.float32(0.2)
    fused = 0.5 * rec + 0.5 * (rec.max() + rec.min()) / 2 * ref
    windows = np.lib.stride_tricks.sliding_window_view(fused, (16, 16), axis=(1, 2))
    scores, truth = windows.mean(axis=(3, 4)).max(axis=(1, 2)), masks.any(axis=(1, 2))

    figures = compute(list(fused.astype(np.float32)), list(masks))

    assert metrics.image_figures(scores, truth)["image_auroc"] == pytest.approx(
        stated["a_max_auc"] / 100, abs=1e-4
    )
    assert metrics.image_figures(scores, truth)["image_ap"] == pytest.approx(
        stated["a_max_ap"] / 100, abs=1e-4
    )
    assert figures["pixel_auroc"] == pytest.approx(stated["a_pixel_auc"] / 100, abs=1e-4)
    assert figures["pixel_ap"] == pytest.approx(stated["a_pixel_ap"] / 100, abs=1e-4)
    assert figures["aupro"] == pytest.approx(stated["aupro_200_steps"] / 100, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([None, 3, 16]))
def test_pixel_figures_do_not_depend_on_order_or_shards(seed, levels):
    """Any order of the images and any split into shards gives the same bits."""
    maps, masks = draw_maps(seed, levels=levels, size=(9, 11))
    rng = np.random.default_rng(seed)
    parts = [PixelScores() for _ in range(3)]
    for at in rng.permutation(len(maps)):
        parts[rng.integers(3)].update(maps[at], masks[at])

    assert PixelScores.merged(*parts).compute() == compute(maps, masks)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([2.0**-6, 2.0, 2.0**9]))
def test_pixel_figures_do_not_depend_on_the_scale_of_scores(seed, scale):
    """Rescaling by a rising function that keeps scores apart changes nothing."""
    maps, masks = draw_maps(seed, levels=8, size=(9, 11))

    assert compute([m * np.float32(scale) for m in maps], masks) == compute(maps, masks)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_pixel_figures_do_not_depend_on_where_pixels_of_a_good_image_lie(seed):
    """Normal pixels are counted, not placed: shuffling a good image's map changes nothing."""
    maps, masks = draw_maps(seed, size=(9, 11))
    shuffled = np.random.default_rng(seed).permutation(maps[-1].ravel()).reshape(maps[-1].shape)

    assert compute([*maps[:-1], shuffled], masks) == compute(maps, masks)


@settings(max_examples=60, deadline=None)
@given(
    scores=hnp.arrays(np.float64, 12, elements=st.integers(-6, 6)),
    labels=hnp.arrays(bool, 12),
    seed=st.integers(0, 100),
)
def test_image_figures_keep_what_ranks_keep(scores, labels, seed):
    """Order of images and monotone rescaling change no image figure; each lies in 0..1."""
    order = np.random.default_rng(seed).permutation(12)

    figures = metrics.image_figures(scores, labels)

    for other in (
        metrics.image_figures(scores[order], labels[order]),
        metrics.image_figures(np.exp(scores / 4) * 3 - 1, labels),
    ):
        for name, value in figures.items():
            if isinstance(value, Undefined):
                assert other[name] == value
            else:
                assert other[name] == pytest.approx(value, abs=1e-12)
                assert 0 <= value <= 1


def test_image_figures_are_scikit_learns():
    """Ties included, the wrappers give scikit-learn's numbers."""
    rng = np.random.default_rng(3)
    scores, truth = rng.integers(0, 9, 80) + 0.5, rng.random(80) > 0.6

    assert metrics.image_figures(scores, truth)["image_auroc"] == roc_auc_score(truth, scores)
    assert metrics.image_figures(scores, truth)["image_ap"] == average_precision_score(
        truth, scores
    )


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([], [], "no images"),
        ([1.0, 2.0], [False, False], "no defective images"),
        ([1.0, 2.0], [True, True], "no good images"),
        ([1.0], [True], "no good images"),
        ([1.0, np.nan], [True, False], "a score is not a finite number"),
        ([1.0, np.inf], [True, False], "a score is not a finite number"),
    ],
)
def test_image_figures_say_why_they_are_not_defined(scores, labels, reason):
    """Without both kinds of images, or with a score that is no number, there is a reason, not a 0."""
    figures = metrics.image_figures(scores, labels)

    assert set(figures.values()) == {Undefined(reason)}


def test_equal_scores_are_chance():
    """With all scores equal the AUROC is a half and the AP the share of defects."""
    truth = [True, False, False, False]
    mask = np.zeros((4, 4), bool)
    mask[0] = True

    figures = metrics.image_figures([2.0] * 4, truth)
    assert (figures["image_auroc"], figures["image_ap"]) == (0.5, 0.25)
    figures = compute([np.full((4, 4), 3, np.float32)], [mask])
    assert figures["pixel_auroc"] == 0.5
    assert figures["pixel_ap"] == 0.25
    assert figures["aupro"] == pytest.approx(0.15)


def test_verdict_figures_are_defined_one_by_one():
    """Recall needs defects, the false-alarm rate needs good images, accuracy any image."""
    only_good = metrics.verdict_figures([True, False], [False, False])
    both = metrics.verdict_figures([True, False, True, False], [True, True, False, False])

    assert only_good["recall"] == Undefined("no defective images")
    assert only_good["false_alarm_rate"] == only_good["accuracy"] == 0.5
    assert both == {"accuracy": 0.5, "recall": 0.5, "false_alarm_rate": 0.5}


@pytest.mark.parametrize(
    ("fill", "mask_fill", "reason"),
    [
        (0.0, False, "no defective pixels"),
        (0.0, True, "no normal pixels"),
        (np.nan, False, "a map holds a value that is not finite"),
        (-np.inf, False, "a map holds a value that is not finite"),
    ],
)
def test_pixel_figures_say_why_they_are_not_defined(fill, mask_fill, reason):
    """Empty masks, full masks and maps that are no numbers give a reason, and no crash."""
    figures = compute([np.full((5, 5), fill, np.float32)], [np.full((5, 5), mask_fill)])

    assert set(figures.values()) == {Undefined(reason)}
    assert set(PixelScores().compute().values()) == {Undefined("no images with a known mask")}


def test_a_map_of_another_shape_than_its_mask_is_refused():
    """Nothing is resized silently."""
    with pytest.raises(DataError, match=r"\(4, 5\).*\(5, 4\)"):
        PixelScores().update(np.zeros((4, 5), np.float32), np.zeros((5, 4), bool))


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    """A full or missing disk is a DataError."""
    missing = tmp_path / "none"

    with pytest.raises(DataError, match="none"):
        PixelScores(missing).update(np.zeros((2, 2), np.float32), np.zeros((2, 2), bool))


def test_temporary_files_go_with_the_scores(tmp_path):
    """Nothing is left behind once the scores are dropped."""
    scores = PixelScores(tmp_path)
    scores.update(np.zeros((2, 2), np.float32), np.eye(2, dtype=bool))
    assert list(tmp_path.iterdir())

    del scores

    assert not list(tmp_path.iterdir())


@given(
    hnp.arrays(np.float32, 8, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_keys_keep_the_order_of_scores(values):
    """Integer keys compare as the scores do."""
    keys = pixels.to_keys(values)

    assert np.array_equal(keys[:, None] < keys, values[:, None] < values)


def test_the_mean_leaves_out_what_is_not_defined_and_says_so():
    """A category without tests does not pull the mean to 0."""
    mean, note = metrics.mean_figure({"a": 0.5, "b": Undefined("no images"), "c": 1.0})

    assert mean == 0.75
    assert note == "mean over 2 of 3 categories; not defined for b"
    assert metrics.mean_figure({"b": Undefined("x")})[0] == Undefined(
        "not defined for any category"
    )

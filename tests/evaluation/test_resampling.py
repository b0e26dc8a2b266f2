"""Intervals: against scipy's bootstrap, against exact figures, and between two models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from onenip.errors import DataError, ParamsError
from onenip.evaluation import metrics
from onenip.evaluation.comparison import paired_difference
from onenip.evaluation.metrics import PixelScores, Undefined, resampling


def draw_scores(seed: int = 0, *, good: int = 40, defective: int = 50):
    """Overlapping scores of good and defective images, some of them tied."""
    rng = np.random.default_rng(seed)
    truth = np.repeat([False, True], [good, defective])
    return np.round(rng.normal(size=truth.size) + 1.2 * truth, 1), truth


def test_draws_keep_the_number_of_good_and_of_defective_images():
    """Good and defective images are resampled separately."""
    _, truth = draw_scores()

    draws = resampling.draw_images(truth, draws=20, rng=np.random.default_rng(0))

    assert set(draws[:, truth].sum(axis=1)) == {50}
    assert set(draws[:, ~truth].sum(axis=1)) == {40}


def test_image_replicates_are_the_exact_figures_of_the_resampled_images():
    """Each draw gives what scikit-learn gives for the images written out, ties included."""
    scores, truth = draw_scores()
    draws = resampling.draw_images(truth, draws=5, rng=np.random.default_rng(1))

    figures = resampling.image_replicates(scores, truth, draws)

    for at, draw in enumerate(draws):
        rows = np.repeat(np.arange(truth.size), draw)
        assert figures["image_auroc"][at] == pytest.approx(roc_auc_score(truth[rows], scores[rows]))
        exact = average_precision_score(truth[rows], scores[rows])
        assert figures["image_ap"][at] == pytest.approx(exact)
        best = metrics.image_figures(scores[rows], truth[rows])["image_f1_max"]
        assert figures["image_f1_max"][at] == pytest.approx(best)


def test_intervals_agree_with_scipys_bootstrap():
    """The interval of the AUROC is scipy.stats.bootstrap's, up to chance."""
    scores, truth = draw_scores()

    def auroc(good, defective, axis):
        both = np.concatenate([good, defective], axis=axis)
        ranks = stats.rankdata(both, axis=axis)[..., good.shape[axis] :].sum(axis=axis)
        count = defective.shape[axis]
        return (ranks - count * (count + 1) / 2) / (count * good.shape[axis])

    oracle = stats.bootstrap(
        (scores[~truth], scores[truth]), auroc, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    draws = resampling.draw_images(truth, draws=4000, rng=np.random.default_rng(0))
    values = resampling.image_replicates(scores, truth, draws)["image_auroc"]

    assert resampling.interval(values, confidence=0.95) == pytest.approx(tuple(oracle), abs=0.01)


def test_pixel_replicates_are_near_the_exact_figures_of_the_resampled_images():
    """The grid, moved onto the exact figure, follows the exact figures of each draw."""
    rng = np.random.default_rng(5)
    maps, masks = [], []
    for at in range(20):
        mask = np.zeros((48, 48), bool)
        if at >= 8:
            y, x = rng.integers(0, 36, 2)
            mask[y : y + 10, x : x + 8] = True
        maps.append((rng.normal(size=(48, 48)) + rng.uniform(0.5, 3) * mask).astype(np.float32))
        masks.append(mask)
    scores = PixelScores()
    for score_map, mask in zip(maps, masks, strict=True):
        scores.update(score_map, mask)
    grid = resampling.pixel_grid(scores)
    draws = resampling.draw_images([m.any() for m in masks], draws=6, rng=rng)

    raw = resampling.pixel_replicates(grid, draws)
    figures = resampling.shift(raw, scores.compute(), grid)

    for at, draw in enumerate(draws):
        exact = PixelScores()
        for row in np.repeat(np.arange(20), draw):
            exact.update(maps[row], masks[row])
        for name, value in exact.compute().items():
            assert figures[name][at] == pytest.approx(value, abs=4e-3), name


def test_an_undefined_figure_has_no_interval():
    """Replicates that are mostly not defined give no interval rather than a made-up one."""
    values = np.array([0.5, np.nan, np.nan, 0.6])

    assert resampling.interval(values, confidence=0.9) is None


def test_a_clearly_better_challenger_is_told_from_its_champion():
    """The paired interval leaves out 0 for a real gain, and holds it for none."""
    scores, truth = draw_scores()
    better = scores + 2 * truth

    gain = paired_difference(scores, better, truth)
    none = paired_difference(scores, scores * 3 + 1, truth)

    assert gain.is_certain
    assert gain.difference == pytest.approx(gain.challenger - gain.champion)
    assert 0 < gain.low <= gain.difference <= gain.high
    assert (none.difference, none.low, none.high) == (0, 0, 0)
    assert not none.is_certain


def test_pairing_narrows_the_interval():
    """Two models that err on the same images are compared more sharply than each is known."""
    scores, truth = draw_scores()
    noisy = scores + np.random.default_rng(2).normal(scale=0.1, size=scores.size)

    difference = paired_difference(scores, noisy, truth, "image_ap")
    draws = resampling.draw_images(truth, draws=2000, rng=np.random.default_rng(0))
    alone = resampling.interval(
        resampling.image_replicates(scores, truth, draws)["image_ap"], confidence=0.95
    )

    assert difference.high - difference.low < 0.5 * (alone[1] - alone[0])


def test_the_same_seed_gives_the_same_difference_and_its_settings_matter():
    """Seed, draws and confidence are used."""
    scores, truth = draw_scores()
    other = scores + np.random.default_rng(2).normal(size=scores.size)
    first = paired_difference(scores, other, truth)

    assert paired_difference(scores, other, truth) == first
    assert paired_difference(scores, other, truth, seed=1) != first
    assert paired_difference(scores, other, truth, draws=500) != first
    narrow = paired_difference(scores, other, truth, confidence=0.5)
    assert narrow.high - narrow.low < first.high - first.low


def test_verdicts_are_compared_as_they_are():
    """For recall and the like, verdicts take the place of scores."""
    truth = np.repeat([False, True], 10)
    champion, challenger = np.repeat([False, True, False], [10, 5, 5]), truth

    recall = paired_difference(champion, challenger, truth, "recall")

    assert (recall.champion, recall.challenger, recall.difference) == (0.5, 1.0, 0.5)


def test_what_cannot_be_compared_has_a_reason():
    """No defects: not defined. Other images, or a metric that is none: an error."""
    nothing = paired_difference([1.0, 2.0], [2.0, 1.0], [False, False])

    assert nothing.difference == Undefined("no defective images")
    assert not nothing.is_certain
    with pytest.raises(DataError, match="same images"):
        paired_difference([1.0], [1.0, 2.0], [True, False])
    with pytest.raises(ParamsError, match="image_auroc"):
        paired_difference([1.0], [1.0], [True], "auc")

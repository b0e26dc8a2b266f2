"""The gate: who is promoted, held or rejected, and why."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from onenip.errors import DataError, ParamsError
from onenip.evaluation.metrics import Undefined
from onenip.operation.gate import Answers, Evidence, judge, undecidable
from onenip.params import GateParams, Params
from onenip.registry.tags import GateResult

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LABELS = np.repeat([False, True], [40, 40])


def make_answers(
    separation: float, *, seed: int = 0, seconds: float = 0.1, alarms: int = 0
) -> Answers:
    """A model whose defective images score `separation` standard deviations above the normal ones."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1, LABELS.size) + separation * LABELS
    flagged = LABELS.copy()
    flagged[:alarms] = True
    return Answers(scores, flagged, np.full(LABELS.size, seconds))


def make_evidence(challenger: Answers, champion: Answers | None = None, **changes) -> Evidence:
    """Forty normal and forty defective test images."""
    evidence = Evidence(
        category="bottle",
        is_defective=LABELS,
        is_compared=np.ones(LABELS.size, dtype=bool),
        is_synthetic=False,
        normals="40 of the test set",
        is_held_out=True,
        challenger=challenger,
        champion=champion,
    )
    return replace(evidence, **changes)


def ask(evidence: Evidence, **limits) -> GateResult:
    """Verdict with image AUROC limits only, unless others are given."""
    values = {"margins": {"image_auroc": 0.02}, **limits}
    return judge(evidence, GateParams(**values), seed=0, judged_at=NOW)


def test_first_model_of_a_category_is_promoted_if_it_reaches_the_floor():
    """Without a champion the floors, false alarms and latency decide."""
    result = ask(make_evidence(make_answers(3.0)))

    assert result.verdict == "promote"
    assert any("no champion" in reason for reason in result.reasons)
    assert result.numbers["image_auroc"] > 0.9


def test_a_model_below_the_floor_is_rejected_with_the_figure():
    """The sentence names the figure and the floor, and comes first."""
    result = ask(make_evidence(make_answers(0.0)))

    assert result.verdict == "reject"
    assert "image_auroc" in result.reasons[0]
    assert "floor 0.7" in result.reasons[0]


def test_the_same_model_is_no_worse_than_itself():
    """A difference of exactly nothing has an interval of exactly nothing."""
    answers = make_answers(2.0)

    result = ask(make_evidence(answers, answers))

    assert result.verdict == "promote"
    assert result.numbers["image_auroc_low"] == result.numbers["image_auroc_high"] == 0


def test_noise_of_the_same_size_does_not_reject():
    """Two equally good models that differ by chance are held at worst, never rejected."""
    verdicts = {
        ask(make_evidence(make_answers(2.0, seed=2 * i), make_answers(2.0, seed=2 * i + 1))).verdict
        for i in range(20)
    }

    assert "reject" not in verdicts


def test_a_clearly_worse_model_is_rejected_although_it_reaches_the_floor():
    """The champion is better by more than the margin beyond doubt."""
    result = ask(make_evidence(make_answers(1.0), make_answers(4.0, seed=1)))

    assert result.verdict == "reject"
    assert "worse by more than 0.02" in result.reasons[0]


def test_a_worse_model_within_a_wide_margin_is_promoted():
    """The margin is the customer's: a loss inside it is accepted."""
    evidence = make_evidence(make_answers(2.5), make_answers(4.0, seed=1))

    assert ask(evidence, margins={"image_auroc": 0.2}).verdict == "promote"


def test_too_few_images_to_tell_hold():
    """An interval that reaches past the margin on both sides decides nothing."""
    keep = np.r_[0:12, 40:46]
    first, second = make_answers(1.5), make_answers(1.6, seed=1)
    few = [Answers(a.scores[keep], a.is_anomalous[keep], a.seconds[keep]) for a in (first, second)]
    evidence = make_evidence(
        few[0], few[1], is_defective=LABELS[keep], is_compared=LABELS[keep] | True
    )

    result = ask(evidence)

    assert result.verdict == "hold"
    assert "do not decide" in result.reasons[0]


@pytest.mark.parametrize(
    ("alarms", "verdict"), [(0, "promote"), (4, "promote"), (6, "hold"), (20, "reject")]
)
def test_false_alarms_reject_only_beyond_chance(alarms, verdict):
    """4 of 40 is the limit of 10 %, 6 of 40 may be chance, 20 of 40 is not."""
    result = ask(make_evidence(make_answers(3.0, alarms=alarms)))

    assert result.verdict == verdict
    assert result.numbers["false_alarm_rate"] == alarms / 40


def test_too_few_normal_images_hold():
    """Nothing is promoted on a handful of normal images."""
    result = ask(make_evidence(make_answers(3.0)), min_normals=41)

    assert result.verdict == "hold"
    assert "at least 41" in result.reasons[0]


def test_normal_images_that_thresholds_rest_on_do_not_promote():
    """False alarms counted on calibration images are no proof."""
    result = ask(make_evidence(make_answers(3.0), is_held_out=False))

    assert result.verdict == "hold"


def test_an_absolute_limit_of_latency_rejects_and_a_relative_one_holds():
    """A machine may be busy for a while; a limit that the line needs is a limit."""
    fast, slow = make_answers(3.0), make_answers(3.0, seconds=0.3)

    assert ask(make_evidence(slow, fast)).verdict == "hold"
    assert ask(make_evidence(slow, slow)).verdict == "promote"
    assert ask(make_evidence(slow), max_seconds=0.2).verdict == "reject"


def test_a_category_without_real_defects_says_so():
    """Judged on synthetic anomalies, by their own floors, and marked as provisional."""
    evidence = make_evidence(make_answers(3.0), is_synthetic=True)

    result = ask(evidence, floors={"image_auroc": 1.0}, synthetic_floors={"image_auroc": 0.8})

    assert result.verdict == "promote"
    assert result.is_provisional
    assert any("synthetic anomalies" in reason for reason in result.reasons)


def test_own_limits_of_a_category_replace_only_what_they_name():
    """The floor of one category does not touch the others, nor its other limits."""
    params = GateParams.model_validate_json(
        '{"margins": {}, "categories": {"bottle": {"floors": {"image_auroc": 1.0}}}}'
    )
    evidence = make_evidence(make_answers(2.0))

    assert judge(evidence, params, seed=0, judged_at=NOW).verdict == "reject"
    other = replace(evidence, category="cookie")
    assert judge(other, params, seed=0, judged_at=NOW).verdict == "promote"
    assert params.limits_of("bottle").max_seconds == params.max_seconds


def test_pixel_figures_are_compared_by_their_own_draws():
    """A pixel figure that fell beyond the margin in every draw rejects."""
    draws = np.random.default_rng(0).normal(0, 0.002, 500)
    worse = replace(
        make_answers(3.0), pixel_figures={"aupro": 0.8}, pixel_draws={"aupro": 0.8 + draws}
    )
    better = replace(
        make_answers(3.0), pixel_figures={"aupro": 0.9}, pixel_draws={"aupro": 0.9 + draws}
    )

    assert ask(make_evidence(worse, better), margins={"aupro": 0.05}).verdict == "reject"
    assert ask(make_evidence(better, worse), margins={"aupro": 0.05}).verdict == "promote"


def test_a_figure_that_is_not_defined_holds_with_its_reason():
    """Never a silent pass: the reason is in the verdict."""
    answers = replace(make_answers(3.0), pixel_figures={"aupro": Undefined("no defective pixels")})

    result = ask(make_evidence(answers), floors={"aupro": 0.5})

    assert result.verdict == "hold"
    assert "no defective pixels" in result.reasons[0]


def test_the_result_survives_json():
    """What is stored beside the version is what was found."""
    result = ask(make_evidence(make_answers(2.0), make_answers(2.1, seed=3)))

    assert GateResult.model_validate_json(result.model_dump_json()) == result


def test_evidence_of_other_images_is_refused():
    """Answers to eighty images do not judge forty."""
    with pytest.raises(DataError, match="bottle"):
        ask(make_evidence(make_answers(2.0), is_defective=LABELS[:40]))


def test_an_unknown_figure_is_named():
    """A misspelt figure in params is an error, not a check that never fails."""
    values = Params().dump()
    values["gate"]["floors"] = {"image_auroch": 0.5}

    with pytest.raises(ParamsError, match="image_auroch"):
        Params.parse(values)


def test_nothing_to_judge_by_holds():
    """A category without a single usable image is never promoted."""
    assert undecidable("no images", judged_at=NOW).verdict == "hold"


def test_one_defective_image_promotes_nobody():
    """Its interval is a point, and says nothing; a floor on defects stands beside that on normals."""
    keep = np.r_[0:40, 40:41]
    answers = [
        Answers(a.scores[keep], a.is_anomalous[keep], a.seconds[keep])
        for a in (make_answers(3.0), make_answers(3.0, seed=1))
    ]
    few = {"is_defective": LABELS[keep], "is_compared": np.ones(keep.size, dtype=bool)}

    result = ask(make_evidence(*answers, **few))

    assert result.verdict == "hold"
    assert any("only 1 defective images, at least 5" in reason for reason in result.reasons)


def test_a_rate_that_may_be_far_above_the_limit_holds():
    """One alarm on ten normal images may be a model of 25 %: more images decide it."""
    keep = np.r_[0:10, 40:80]
    answers = make_answers(3.0, alarms=1)
    few = Answers(answers.scores[keep], answers.is_anomalous[keep], answers.seconds[keep])
    evidence = make_evidence(
        few, is_defective=LABELS[keep], is_compared=np.ones(keep.size, dtype=bool)
    )

    result = ask(evidence)

    assert result.verdict == "hold"
    assert "may be as high as 45%, more than 25%" in result.reasons[0]
    assert ask(evidence, false_alarm_margin=0.4).verdict == "promote"


def test_a_model_that_finds_fewer_defects_at_its_own_threshold_is_not_promoted():
    """Ranking as well as the champion is not enough: the line sees verdicts."""
    champion = make_answers(3.0)
    flagged = champion.is_anomalous.copy()
    flagged[40:60] = False
    blunt = Answers(champion.scores, flagged, champion.seconds)

    result = judge(make_evidence(blunt, champion), GateParams(margins={"recall": 0.05}), seed=0,
                   judged_at=NOW)  # fmt: skip

    assert result.verdict == "reject"
    assert "recall changes by -0.500" in result.reasons[0]
    assert "recall" in GateParams().margins


def test_anomalies_of_one_image_are_resampled_together():
    """Copies of the same few anomalies make an interval no narrower, and count once."""
    rng = np.random.default_rng(0)
    scores, other = rng.normal(0, 1, 20), rng.normal(0, 1, 20)
    labels = np.repeat([False, True], 10)
    widths = []
    for copies in (1, 20):
        rows = np.r_[0:10, np.repeat(np.arange(10, 20), copies)]
        answers = [
            Answers(s[rows] + labels[rows], labels[rows], np.full(rows.size, 0.1))
            for s in (scores, other)
        ]
        evidence = make_evidence(
            *answers,
            is_defective=labels[rows],
            is_compared=np.ones(rows.size, dtype=bool),
            is_synthetic=True,
            groups=rows,
        )
        assert evidence.defects == 10
        numbers = ask(evidence, margins={"image_auroc": 0.02}).numbers
        widths.append(numbers["image_auroc_high"] - numbers["image_auroc_low"])

    assert widths[1] == pytest.approx(widths[0], rel=0.15)


@pytest.mark.parametrize("name", ["floors", "max_seconds", "min_normals", "max_false_alarm_rate"])
def test_null_is_no_limit(name):
    """Refused when params are read, by its key, not by a gate that fails after hours."""
    values = Params().dump()
    values["gate"][name] = None

    with pytest.raises(ParamsError, match=f"{name}: null is no limit"):
        Params.parse(values)

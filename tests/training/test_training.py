"""The training loop: it learns, it is reproducible, and a killed one goes on to the same result."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from onenip.errors import CheckpointError, DataError, DivergedError
from onenip.images import load_image, load_mask
from onenip.training.checkpoint import CHECKPOINT_FILE
from onenip.training.fit import build_network, start_fabric
from onenip.training.loop import count_steps, schedule_rate
from onenip.training.selection import BestWeights, WeightAverage
from onenip.training.step import Trainee
from tests.tiny import fit_tiny, make_tiny_params
from tests.training.shared_training import make_params


def tensors_of(detector):
    return {k: v for k, v in detector.network.state_dict().items() if "backbone" not in k}


def assert_same_weights(a, b):
    ours, theirs = tensors_of(a), tensors_of(b)
    different = [k for k in ours if not torch.equal(ours[k], theirs[k])]
    assert not different


def test_the_same_seed_gives_the_same_weights(tiny_data, tiny_params, tiny_fit, tmp_path):
    """Two trainings of the same params and data end in the same bits."""
    again = fit_tiny(tiny_data, tiny_params, tmp_path)

    assert_same_weights(tiny_fit.detector, again.detector)
    assert again.record.history == tiny_fit.record.history


def test_cached_features_give_the_same_weights(tiny_data, tiny_params, tiny_fit, tmp_path):
    """A training that finds its features in the cache ends as one that computes them."""
    first = fit_tiny(tiny_data, tiny_params, tmp_path / "a", cache=tmp_path / "cache")
    second = fit_tiny(tiny_data, tiny_params, tmp_path / "b", cache=tmp_path / "cache")

    assert list((tmp_path / "cache/features").rglob("*.safetensors"))
    assert_same_weights(tiny_fit.detector, first.detector)
    assert_same_weights(first.detector, second.detector)
    assert torch.equal(first.detector.network.coarse_mean, second.detector.network.coarse_mean)
    assert first.detector.spec == second.detector.spec


class KilledError(Exception):
    """Stands for the kill."""


@contextmanager
def killed_at(monkeypatch, count):
    """Have the training in the block die in its `count`-th step."""
    forward, calls = Trainee.forward, []

    def die(self, batch):
        calls.append(1)
        if len(calls) == count:
            raise KilledError
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "forward", die)
        with pytest.raises(KilledError):
            yield


def test_a_killed_training_resumes_to_the_same_weights(tiny_data, tiny_fit, tmp_path, monkeypatch):
    """A training that dies after step 2 and runs again ends as if it had not died."""
    params = make_tiny_params(
        train={
            "epochs": 2,
            "max_steps": 4,
            "batch_size": 4,
            "log_steps": 1,
            "checkpoint_seconds": 1e-9,
        }
    )
    with killed_at(monkeypatch, 3):
        fit_tiny(tiny_data, params, tmp_path)
    resumed = fit_tiny(tiny_data, params, tmp_path)

    assert_same_weights(tiny_fit.detector, resumed.detector)
    assert [row["step"] for row in resumed.record.history] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_is_named(tiny_data, tiny_params, tmp_path):
    """A checkpoint that cannot be read is an error that names the file."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / CHECKPOINT_FILE).write_bytes(b"not a checkpoint")

    with pytest.raises(CheckpointError, match=CHECKPOINT_FILE):
        fit_tiny(tiny_data, tiny_params, tmp_path)


def test_a_checkpoint_of_other_params_is_not_resumed(tiny_data, tiny_params, tmp_path):
    """Another learning rate starts anew."""
    other = make_tiny_params(
        train={"learning_rate": 0.01, "max_steps": 2, "batch_size": 4, "epochs": 2, "log_steps": 1}
    )
    fit_tiny(tiny_data, other, tmp_path)

    result = fit_tiny(tiny_data, tiny_params, tmp_path)

    assert [row["step"] for row in result.record.history] == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_stops_the_training(tiny_data, tmp_path):
    """An absurd learning rate diverges with an error that names the step and the images."""
    params = make_tiny_params(
        train={
            "learning_rate": 1e30,
            "schedule": "step",
            "epochs": 50,
            "max_steps": 50,
            "batch_size": 4,
            "gradient_clip": 1e30,
            "weight_decay": 0.0,
        }
    )

    with pytest.raises(DivergedError, match=r"step .* on images"):
        fit_tiny(tiny_data, params, tmp_path)


def test_training_lowers_the_loss(tiny_data, tmp_path):
    """Sixty steps bring the loss below four fifths of where it began."""
    params = make_tiny_params(
        train={
            "epochs": 60,
            "max_steps": 60,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "log_steps": 5,
        }
    )

    history = fit_tiny(tiny_data, params, tmp_path).record.history

    first = np.mean([row["loss"] for row in history[:2]])
    last = np.mean([row["loss"] for row in history[-3:]])
    assert last < 0.8 * first


def test_a_training_without_a_bar_logs_its_progress(tiny_data, tmp_path, caplog, monkeypatch):
    """Lines in the log show what is planned, then step, loss and the time left, as a flow run shows them."""
    monkeypatch.setattr("onenip.training.loop._LOG_SECONDS", 0.0)
    caplog.set_level("INFO")

    fit_tiny(tiny_data, make_tiny_params(train={"max_steps": 4, "log_steps": 2}), tmp_path)

    (planned,) = [line for line in caplog.messages if line.startswith("4 steps of 4 ")]
    assert re.search(
        r"[\d.]+ passes over \d+ images of 2 categories; the smallest, \w+, is seen", planned
    )
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert len(lines) == 2
    assert re.fullmatch(r"step 2 of 4, loss [\d.]+, [\d.]+ s a step, about 0 min left", lines[0])


def test_the_backbone_stays_frozen(tiny_params, tiny_fit):
    """After training the backbone holds the very weights of its package."""
    fresh = build_network(tiny_params, start_fabric(tiny_params.train)).backbone.state_dict()

    trained = tiny_fit.detector.network.backbone.state_dict()

    assert all(torch.equal(trained[key], fresh[key]) for key in fresh)


@pytest.mark.parametrize(
    "section",
    [
        {
            "model": {
                "refiner": "paper",
                "memory_tokens": 0,
                "standardize": False,
                "pooling": "bilinear",
            },
            "calibrate": {"fusion": "paper", "prompts": 1},
        },
        {"model": {"memory_tokens": 0, "evidence": ["restoration", "features"]}},
        {"model": {"evidence": ["distance"], "memory_window": 1, "neighbor_size": 0}},
        {"train": {"prompt_choice": "nearest", "dice_overlap": 1.0, "jitter_scale": 0.0}},
        {"train": {"schedule": "step", "step_epoch": 1, "weight_decay": 0.1}},
        {"model": {"levels": [2, 3], "dropout": 0.3, "input_size": [64, 96]}},
        {
            "synthesize": {
                "kinds": {"cutpaste": 1.0},
                "foreground_only": False,
                "mask_visible_only": False,
                "grey_stays_grey": False,
            }
        },
    ],
    ids=["paper", "no-memory", "distance-only", "nearest-prompt", "step", "non-square", "cutpaste"],
)
def test_every_variant_trains_and_predicts(tiny_data, tmp_path, section):
    """Each switch of the architecture and the optimisation runs from images to a verdict."""
    base = make_tiny_params().dump()
    merged = {name: {**base[name], **values} for name, values in section.items()}

    detector = fit_tiny(tiny_data, make_tiny_params(**merged), tmp_path).detector
    image = next((tiny_data / "disc/test/good").iterdir())
    prediction = detector.predict([image], category="disc")[0]

    assert np.isfinite(prediction.map).all()


def test_confirmed_defects_join_the_synthetic_ones(tiny_data, tmp_path):
    """Some of a category's anomalies are confirmed defects; without the share nothing changes, to the bit."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    plain = make_tiny_params()
    asked = make_tiny_params(train={**plain.dump()["train"], "real_defects": 0.2})
    before = fit_tiny(data, asked, tmp_path / "before").detector
    (data / "disc/train/spot").mkdir()
    (data / "disc/test/spot/000.png").rename(data / "disc/train/spot/000.png")
    seen, forward = [], Trainee.forward

    def note(trainee, batch):
        losses = forward(trainee, batch)
        seen.append((trainee, batch, losses))
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "forward", note)
        learnt = fit_tiny(data, asked, tmp_path / "asked").detector
    ignored = fit_tiny(data, plain, tmp_path / "plain").detector

    assert_same_weights(before, ignored)
    ours, theirs = tensors_of(before), tensors_of(learnt)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours if "refiner" in name)
    mask = torch.tensor(load_mask(data / "disc/ground_truth/spot/000_mask.png"))
    image = torch.tensor(load_image(data / "disc/train/spot/000.png"))
    real = [(b, i) for _, b, _ in seen for i in range(len(b.is_real)) if b.is_real[i]]
    assert 0 < len(real) < 16
    for batch, row in real:
        assert torch.equal(batch.masks[row], mask)
        assert torch.equal(batch.anomalous[row], image)


def test_warm_start_begins_with_the_other_models_weights(tiny_data, tiny_model, tmp_path):
    """With a learning rate of nearly zero, a warm start ends where the other model ended."""
    from onenip import Detector

    params = make_tiny_params(
        train={
            "warm_start": str(tiny_model),
            "learning_rate": 1e-12,
            "max_steps": 1,
            "epochs": 1,
            "batch_size": 4,
        }
    )

    detector = fit_tiny(tiny_data, params, tmp_path).detector

    ours = dict(detector.network.named_parameters())
    theirs = dict(Detector.load(tiny_model).network.named_parameters())
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-5) for k in ours)


def test_warm_start_takes_all_or_nothing(tiny_data, tiny_model, tmp_path):
    """A model that lacks a tensor of the network is refused, rather than leave that one random."""
    deeper = make_tiny_params(
        model={**make_tiny_params().dump()["model"], "decoder_layers": 2},
        train={"warm_start": str(tiny_model), "max_steps": 1, "batch_size": 4},
    )

    with pytest.raises(CheckpointError, match=r"train\.warm_start: .*decoder\.1\..* is missing"):
        fit_tiny(tiny_data, deeper, tmp_path)


def test_schedules():
    """The paper's schedule drops once; the cosine one warms up, peaks and ends near zero."""
    step = make_tiny_params(train={"schedule": "step", "step_epoch": 3, "epochs": 5}).train
    cosine = make_tiny_params(train={"warmup_fraction": 0.1}).train

    stepped = [schedule_rate(step, i, 50, 10) for i in (29, 30)]
    smooth = [schedule_rate(cosine, i, 100, 10) for i in range(100)]

    assert stepped == pytest.approx([step.learning_rate, step.learning_rate / 10])
    assert max(smooth) == pytest.approx(cosine.learning_rate)
    assert smooth[0] < smooth[5] < smooth[10]
    assert smooth[-1] < 0.01 * cosine.learning_rate
    assert count_steps(make_tiny_params(train={"epochs": 3, "max_steps": None}).train, 7) == 21


def losses_of(history):
    return np.array([[row[key] for key in ("loss", "feature_loss")] for row in history])


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batch(tiny_data, tmp_path):
    """Two CPU processes of 4 samples a step have the losses of one process of 8, within 1e-4."""
    command = [
        sys.executable,
        "-m",
        "tests.training.shared_training",
        tiny_data,
        tmp_path,
        "2",
        "4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    alone = fit_tiny(
        tiny_data, make_params(devices=1, batch_size=8), tmp_path / "alone"
    ).record.history

    assert done.returncode == 0, done.stderr
    shared = json.loads((tmp_path / "history.json").read_text())
    assert np.allclose(losses_of(shared), losses_of(alone), rtol=0, atol=1e-4)


def test_accumulated_batches_see_the_samples_of_one_big_batch(tiny_data, tmp_path):
    """Two batches of 4 to a step start at nearly the loss of one batch of 8, and take as many steps."""
    params = make_params(devices=1, batch_size=4, accumulate_steps=2)
    accumulated = fit_tiny(tiny_data, params, tmp_path / "a").record.history
    at_once = fit_tiny(
        tiny_data, make_params(devices=1, batch_size=8), tmp_path / "b"
    ).record.history

    assert len(accumulated) == len(at_once)
    first = [row[0]["feature_loss"] for row in (accumulated, at_once)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


@pytest.mark.slow
def test_a_killed_training_with_averaged_weights_resumes_exactly(tiny_data, tmp_path, monkeypatch):
    """The running average goes on from the checkpoint, and what is saved is the average."""
    train = {"epochs": 2, "max_steps": 4, "batch_size": 4, "log_steps": 1, "learning_rate": 0.01}
    plain = fit_tiny(tiny_data, make_tiny_params(train=train), tmp_path / "plain").detector
    params = make_tiny_params(train={**train, "ema_decay": 0.9, "checkpoint_seconds": 1e-9})
    whole = fit_tiny(tiny_data, params, tmp_path / "whole").detector
    with killed_at(monkeypatch, 3):
        fit_tiny(tiny_data, params, tmp_path / "killed")
    resumed = fit_tiny(tiny_data, params, tmp_path / "killed").detector

    assert_same_weights(whole, resumed)
    last, averaged = tensors_of(plain), tensors_of(whole)
    assert any(not torch.equal(last[key], averaged[key]) for key in last)


def test_an_average_follows_its_rule():
    """Each update keeps `decay` of the average, less in the first steps."""
    weight = torch.zeros(2)
    average = WeightAverage({"w": weight, "count": torch.tensor(3)}, decay=0.9)
    expected = 0.0
    for step in range(1, 200):
        weight.fill_(step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step

    assert list(average.state()) == ["w"]
    assert average.state()["w"].tolist() == pytest.approx([expected, expected])
    average.apply()
    assert weight.tolist() == pytest.approx([expected, expected])


def test_features_that_are_not_finite_stop_before_training(tiny_data, tmp_path):
    """A backbone with broken weights is an error that names images and the param."""
    params = make_tiny_params()
    state = build_network(params, start_fabric(params.train)).backbone.model.state_dict()
    broken = {k.removeprefix("model."): v.clone() for k, v in state.items()}
    broken["conv_stem.weight"][0] = torch.nan
    torch.save(broken, tmp_path / "broken.pth")
    base = params.dump()["model"]

    other = make_tiny_params(model={**base, "weights": str(tmp_path / "broken.pth")})
    with pytest.raises(
        DivergedError, match=r"10 of 10 normal images .*disc/train/good/.*model\.weights"
    ):
        fit_tiny(tiny_data, other, tmp_path)


def test_a_blind_refiner_is_a_warning(tiny_data, tmp_path, caplog):
    """A refiner that ends on empty maps is a warning in the log."""
    base = make_tiny_params().dump()
    params = make_tiny_params(
        model={**base["model"], "refiner_dropout": 0.99},
        synthesize={"kinds": {"scratch": 1.0}},
        train={"epochs": 60, "max_steps": 60, "batch_size": 4, "learning_rate": 0.03},
    )
    result = fit_tiny(tiny_data, params, tmp_path)

    assert result.record.history[-1]["mask_recall"] < 0.05
    assert "the refiner is blind" in caplog.text


def test_mixed_precision_trains(tiny_data, tiny_fit, tmp_path):
    """In bfloat16, which GPUs use by themselves, the losses are nearly those in 32 bits."""
    base = make_tiny_params().dump()["train"]
    params = make_tiny_params(train={**base, "precision": "bf16-mixed"})

    history = fit_tiny(tiny_data, params, tmp_path).record.history

    exact = losses_of(tiny_fit.record.history)
    assert np.allclose(losses_of(history), exact, rtol=0.05)


def test_the_weights_that_do_best_on_held_out_images_are_kept(tiny_data, tmp_path):
    """Of all trials the best one's weights are saved, and the model says which these were."""
    train = {
        "epochs": 30,
        "max_steps": 30,
        "batch_size": 4,
        "learning_rate": 0.02,
        "schedule": "step",
        "selection_trials": 10,
    }
    result = fit_tiny(tiny_data, make_tiny_params(train=train), tmp_path / "whole")
    selected = result.record.selected
    stopped = fit_tiny(
        tiny_data,
        make_tiny_params(
            train={**train, "max_steps": int(selected["step"]), "selection_trials": 0}
        ),
        tmp_path / "stopped",
    )

    assert [trial["step"] for trial in result.record.trials] == list(range(3, 31, 3))
    assert selected["score"] == max(trial["score"] for trial in result.record.trials)
    assert_same_weights(result.detector, stopped.detector)
    assert result.detector.spec.provenance["selected_step"] == selected["step"]


def test_the_best_weights_win_whenever_they_came():
    """Neither the first nor the last offer is kept, but the best, of equal ones the later."""
    weight = torch.zeros(2)
    best = BestWeights({"w": weight})
    for value, score in ((1.0, 0.5), (2.0, 0.9), (3.0, 0.9), (4.0, 0.7)):
        weight.fill_(value)
        best.offer(score)
    best.apply()

    assert weight.tolist() == [3.0, 3.0]


def test_a_killed_training_keeps_its_best_weights(tiny_data, tmp_path, monkeypatch):
    """The best trial survives a kill, also where the weights are averaged."""
    train = {"epochs": 6, "max_steps": 6, "batch_size": 4, "learning_rate": 0.02, "ema_decay": 0.5}
    params = make_tiny_params(
        train={**train, "checkpoint_seconds": 1e-9, "selection_trials": 6, "log_steps": 1}
    )
    whole = fit_tiny(tiny_data, params, tmp_path / "whole")
    with killed_at(monkeypatch, 5):
        fit_tiny(tiny_data, params, tmp_path / "killed")
    resumed = fit_tiny(tiny_data, params, tmp_path / "killed")

    assert resumed.record.trials == whole.record.trials
    assert_same_weights(whole.detector, resumed.detector)


def test_selection_needs_held_out_images(tiny_data, tmp_path, caplog):
    """Without held-out normals the last weights are kept, and a warning says so."""
    base = make_tiny_params().dump()
    params = make_tiny_params(data={**base["data"], "calibration_fraction": 0.0})

    result = fit_tiny(tiny_data, params, tmp_path)

    assert result.record.selected is None
    assert "the last weights are kept" in caplog.text


def test_a_cache_that_cannot_be_written_is_named(tiny_data, tmp_path):
    """A file in the folder's place is one line that names the path."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/features").write_text("in the way")

    with pytest.raises(DataError, match=r"cache/features/.*: nothing can be kept here"):
        fit_tiny(tiny_data, make_tiny_params(), tmp_path, cache=tmp_path / "cache")

"""What runs on a GPU alone: wherever there is one, it gives what the CPU gives."""

import numpy as np
import pytest
import torch

from onenip import Detector
from onenip.errors import DivergedError
from onenip.training.fit import start_fabric
from tests.tiny import fit_tiny, make_tiny_params

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def make_params(precision):
    return make_tiny_params(
        model={**make_tiny_params().dump()["model"], "dropout": 0.0, "refiner_dropout": 0.0},
        train={
            **make_tiny_params().dump()["train"],
            "precision": precision,
            "devices": 1,
            "learning_rate": 1e-4,
        },
    )


def list_losses(result):
    return [row["loss"] for row in result.record.history]


def test_a_gpu_trains_as_a_cpu_does(tiny_data, tmp_path, monkeypatch):
    """The losses in 32 bits are the CPU's to a thousandth, those under mixed precision to a twentieth."""
    monkeypatch.setenv("ONENIP_DEVICE", "cpu")
    expected = list_losses(fit_tiny(tiny_data, make_params("32-true"), tmp_path / "cpu"))
    monkeypatch.setenv("ONENIP_DEVICE", "cuda:0")
    exact = list_losses(fit_tiny(tiny_data, make_params("32-true"), tmp_path / "exact"))
    mixed = list_losses(fit_tiny(tiny_data, make_params("16-mixed"), tmp_path / "mixed"))

    assert np.allclose(exact, expected, rtol=1e-3)
    assert np.allclose(mixed, expected, rtol=0.05)


def test_training_takes_the_gpu_and_a_mixed_precision_by_itself(monkeypatch):
    """With nothing set, a GPU is used: in bfloat16 where it really has it, else in scaled float16."""
    monkeypatch.delenv("ONENIP_DEVICE", raising=False)
    fabric = start_fabric(make_params("auto").train)
    is_real = torch.cuda.is_bf16_supported(including_emulation=False)

    assert fabric.device.type == "cuda"
    assert fabric.strategy.precision.precision == ("bf16-mixed" if is_real else "16-mixed")
    monkeypatch.setenv("ONENIP_DEVICE", "cpu")
    assert start_fabric(make_params("auto").train).device.type == "cpu"


def test_a_detector_scores_alike_on_both(tiny_model, tiny_data):
    """Scores and maps differ by rounding alone."""
    images = sorted((tiny_data / "disc/test/spot").iterdir())
    on_cpu, on_gpu = (
        Detector.load(tiny_model, device=name).predict(images, category="disc")
        for name in ("cpu", "cuda:0")
    )

    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert ours.score == pytest.approx(theirs.score, rel=1e-3, abs=1e-3)
        assert np.allclose(ours.map, theirs.map, atol=1e-2)


def test_a_category_is_added_alike_on_both(tiny_model, tiny_data):
    """Memory, scales and threshold of a category without training differ by rounding alone."""
    images = sorted((tiny_data / "disc/train/good").iterdir())[:5]
    on_cpu, on_gpu = (
        Detector.load(tiny_model, device=name).add_category("new", images)
        for name in ("cpu", "cuda:0")
    )

    ours, theirs = (one.spec.categories["new"] for one in (on_gpu, on_cpu))
    assert ours.image_threshold == pytest.approx(theirs.image_threshold, rel=1e-2)
    scores = [one.predict(images, category="new") for one in (on_gpu, on_cpu)]
    for mine, other in zip(*scores, strict=True):
        assert mine.score == pytest.approx(other.score, rel=1e-2, abs=1e-2)


def test_a_loss_that_is_not_finite_is_told_with_its_images_on_a_gpu(
    tiny_data, tmp_path, monkeypatch
):
    """A diverged training names step and images there, too."""
    monkeypatch.setenv("ONENIP_DEVICE", "cuda:0")
    params = make_params("32-true").dump()
    params["train"] |= {
        "learning_rate": 1e30,
        "gradient_clip": 1e30,
        "schedule": "step",
        "epochs": 50,
        "max_steps": 50,
    }
    with pytest.raises(DivergedError, match="on images"):
        fit_tiny(tiny_data, make_tiny_params(train=params["train"]), tmp_path)

"""Mixed precision: the same features for normals and anomalies; a scaler that overflows and goes on."""

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from onenip.data.cache import Cache
from onenip.data.manifest import select
from onenip.errors import DeviceError
from onenip.synthesis.bank import build_synthesizer
from onenip.training.batches import BatchPlan, build_training_set
from onenip.training.fit import build_network, start_fabric
from onenip.training.step import Trainee
from tests.tiny import fit_tiny, list_samples, make_tiny_params
from tests.training.test_training import killed_at


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_normals_and_anomalies_get_their_features_in_one_way(tiny_data, precision, monkeypatch):
    """The features of one image, cached as a normal and computed as an anomaly, differ by rounding alone."""
    params = make_tiny_params(
        train={**make_tiny_params().dump()["train"], "precision": precision, "jitter_scale": 0.0}
    )
    fabric = start_fabric(params.train)
    torch.manual_seed(0)
    network = build_network(params, fabric)
    samples = select(list_samples(tiny_data, params), category="disc", subset="fit")[:4]
    data = build_training_set(network, samples, seed=0, cache=Cache(), progress=False)
    synthesizer = build_synthesizer(params.synthesize, size=params.model.input_size, seed=0)
    plan = BatchPlan(data, synthesizer, batch_size=4, seed=0, prompt_choice="random")
    batch = plan[0]
    batch = batch._replace(
        anomalous=torch.tensor(np.stack([data.images[i] for i in batch.indices.tolist()]))
    )
    trainee = fabric.setup(Trainee(network, data, params.train))
    seen = {}
    refine = network.refine

    def note(**evidence):
        seen.update(evidence)
        return refine(**evidence)

    monkeypatch.setattr(network, "refine", note)
    trainee(batch)

    for kind in ("fine", "tokens"):
        normal, anomalous = seen[kind].float().chunk(2)
        assert float((normal - anomalous).abs().max()) < 1e-4 * float(normal.std())


def start_scaled(scale):
    """A fabric whose losses are scaled, as on a GPU without bfloat16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    fabric.launch()
    return fabric


def test_an_overflow_of_the_scaler_is_no_divergence(tiny_data, tmp_path):
    """Gradients that overflow by their scale skip a step and lower it, whatever params call the precision."""
    fabric = start_scaled(2.0**100)

    fit_tiny(tiny_data, make_tiny_params(), tmp_path, fabric=fabric)

    assert fabric.strategy.precision.scaler.get_scale() == 2.0**96  # halved in each of four steps


def test_a_killed_training_keeps_the_state_of_its_scaler(tiny_data, tmp_path, monkeypatch):
    """The scale goes on where it was, not where a scaler begins."""
    train = {**make_tiny_params().dump()["train"], "checkpoint_seconds": 1e-9}
    params = make_tiny_params(train=train)
    with killed_at(monkeypatch, 3):
        fit_tiny(tiny_data, params, tmp_path, fabric=start_scaled(2.0**100))
    resumed = start_scaled(2.0**100)
    fit_tiny(tiny_data, params, tmp_path, fabric=resumed)

    assert resumed.strategy.precision.scaler.get_scale() == 2.0**96


def test_training_runs_on_the_device_of_the_variable(monkeypatch):
    """ONENIP_DEVICE decides for training, too; a device that is not there is one line."""
    params = make_tiny_params().train
    monkeypatch.setenv("ONENIP_DEVICE", "cpu")

    assert start_fabric(params).device.type == "cpu"
    monkeypatch.setenv("ONENIP_DEVICE", "cuda:77")
    with pytest.raises(DeviceError, match="ONENIP_DEVICE=cuda:77"):
        start_fabric(params)

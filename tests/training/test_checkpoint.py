"""What a training is identified by, and what may resume it."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from onenip.data.cache import Cache
from onenip.data.manifest import select
from onenip.errors import CheckpointError
from onenip.synthesis.bank import build_synthesizer
from onenip.training import checkpoint
from onenip.training.batches import BatchPlan, build_training_set
from onenip.training.checkpoint import CHECKPOINT_FILE, identify
from onenip.training.fit import build_network, start_fabric
from tests.paths import ROOT
from tests.tiny import fit_tiny, list_samples, make_tiny_params
from tests.training.test_training import killed_at


def read_code_digest(folder, *libraries):
    code = (
        f"from onenip.version import hash_code; print(hash_code('training', libraries={libraries}))"
    )
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_digest_of_code_changes_with_it(tmp_path):
    """Another loss, another file name or a library beside gives another digest; other files do not."""
    package = tmp_path / "onenip"
    (package / "training").mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "onenip/version.py", package)
    step = package / "training/step.py"
    step.write_text("loss = 1\n")
    first = read_code_digest(tmp_path)
    (package / "other.py").write_text("x = 1\n")
    same = read_code_digest(tmp_path)
    step.write_text("loss = 2\n")
    changed = read_code_digest(tmp_path)
    step.rename(package / "training/pace.py")
    renamed = read_code_digest(tmp_path)

    assert first == same
    assert len({first, changed, renamed, read_code_digest(tmp_path, "numpy")}) == 4


@pytest.fixture
def training(tiny_data):
    """Network, plan and the further facts of a tiny training."""
    params = make_tiny_params(model={**make_tiny_params().dump()["model"], "weights": "random"})
    torch.manual_seed(0)
    network = build_network(params, start_fabric(params.train))
    samples = select(list_samples(tiny_data, params), category="disc", subset="fit")[:3]
    data = build_training_set(network, samples, seed=0, cache=Cache(), progress=False)
    synthesizer = build_synthesizer(params.synthesize, size=params.model.input_size, seed=0)
    plan = BatchPlan(data, synthesizer, batch_size=2, seed=0, prompt_choice="random")
    facts = {
        "params": params.train,
        "seed": 0,
        "total": 4,
        "numerics": "cpu 32-true",
        "selected_on": "",
    }
    return network, plan, facts


CHANGES = {
    "backbone": lambda network, _plan, _facts: next(iter(network.backbone.parameters()))[0].add_(1),
    "first weights": lambda network, _plan, _facts: network.reconstruction.final_norm.bias[0].add_(
        1
    ),
    "texture": lambda _network, plan, _facts: plan.synthesizer.textures[5].__ixor__(1),
    "image": lambda _network, plan, _facts: plan.data.digests.__setitem__(2, "other"),
    "category": lambda _network, plan, _facts: plan.data.categories.__setitem__(2, "other"),
    "device": lambda _network, _plan, facts: facts.update(numerics="cuda bf16-mixed"),
    "selection": lambda _network, _plan, facts: facts.update(selected_on="other"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_training_is_identified_by_all_that_its_result_depends_on(training, change):
    """The same training has the same identity, and any change of what it starts from gives another."""
    network, plan, facts = training
    with torch.no_grad():
        before = identify(network, plan, **facts)
        again = identify(network, plan, **facts)
        change(network, plan, facts)

        assert before == again
        assert identify(network, plan, **facts) != before


@pytest.mark.parametrize("name", ["_CODE", "_LIBRARIES"])
def test_code_and_libraries_are_part_of_the_identity(training, monkeypatch, name):
    """A digest of other source files, or of other versions, is another training."""
    network, plan, facts = training
    before = identify(network, plan, **facts)
    monkeypatch.setattr(checkpoint, name, getattr(checkpoint, name)[1:])

    assert identify(network, plan, **facts) != before


@pytest.mark.parametrize("section", ["network", "average", "best"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tiny_data, tmp_path, monkeypatch, section):
    """Tensors are loaded strictly: a training never goes on with some of its own and some random ones."""
    params = make_tiny_params(
        train={
            **make_tiny_params().dump()["train"],
            "checkpoint_seconds": 1e-9,
            "ema_decay": 0.5,
            "selection_trials": 4,
        }
    )
    with killed_at(monkeypatch, 3):
        fit_tiny(tiny_data, params, tmp_path)
    path = tmp_path / "checkpoint" / CHECKPOINT_FILE
    values = torch.load(path, weights_only=True)
    tensors = values["best"]["tensors"] if section == "best" else values[section]
    del tensors["reconstruction.final_norm.bias"]
    torch.save(values, path)

    with pytest.raises(CheckpointError, match="damaged"):
        fit_tiny(tiny_data, params, tmp_path)

"""The model on disk: both files belong together, and no changed bit goes unnoticed."""

import json
import random
import shutil

import pytest
import torch

from onenip.errors import CheckpointError
from onenip.images import hash_file
from onenip.model.file import DetectorSpec, read_model, write_model
from tests.tiny import make_tiny_params


def describe(seed=0):
    params = make_tiny_params()
    return DetectorSpec(
        model=params.model, calibrate=params.calibrate, categories={}, provenance={"seed": seed}
    )


def write(folder, seed=0):
    tensors = {"weight": torch.full((4, 5), float(seed)), "bias": torch.arange(3)}
    return write_model(folder, describe(seed), tensors)


@pytest.mark.parametrize("name", ["detector.json", "model.safetensors"])
def test_every_flipped_bit_is_noticed(tmp_path, name):
    """Whichever byte of either file differs in one bit, the model does not load."""
    write(tmp_path / "model")
    file = tmp_path / "model" / name
    whole, draw = file.read_bytes(), random.Random(0)

    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_model(tmp_path / "model")


def test_tensors_of_another_model_are_refused(tmp_path):
    """New weights beside old thresholds, as a kill between two renames would leave them, do not load."""
    write(tmp_path / "a", seed=1)
    write(tmp_path / "b", seed=2)
    shutil.copy(tmp_path / "b/model.safetensors", tmp_path / "a/model.safetensors")

    with pytest.raises(CheckpointError, match="another model"):
        read_model(tmp_path / "a")


def test_a_model_is_replaced_whole_or_not_at_all(tmp_path):
    """A write that fails leaves the old model; one that succeeds gives the digest of what is loaded."""
    first = write(tmp_path / "model", seed=1)
    broken = describe().model_copy(update={"provenance": {"not": object()}})
    with pytest.raises(ValueError, match="serialize"):
        write_model(tmp_path / "model", broken, {"weight": torch.zeros(2)})

    assert read_model(tmp_path / "model")[2] == first
    second = write(tmp_path / "model", seed=2)
    spec, tensors, digest = read_model(tmp_path / "model")
    assert spec.provenance == {"seed": 2}
    assert float(tensors["weight"][0, 0]) == 2
    assert digest == second != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    """A model never takes the place of a folder that holds something else."""
    (tmp_path / "notes.txt").write_text("keep me")

    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        write(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_models_without_a_seal_still_load(tmp_path):
    """Format 1, of versions up to 0.1, has neither seal nor hash."""
    write(tmp_path / "model")
    path = tmp_path / "model/detector.json"
    values = json.loads(path.read_text())
    assert values["tensors_sha256"] == hash_file(tmp_path / "model/model.safetensors")
    del values["seal"], values["tensors_sha256"]
    path.write_text(json.dumps({**values, "format_version": 1}))

    assert read_model(tmp_path / "model")[0].provenance == {"seed": 0}

"""The model on disk: both files belong together, and no changed bit goes unnoticed."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from onenip import Detector
from onenip.errors import CheckpointError
from onenip.images import hash_file
from onenip.model.file import DetectorSpec, read_model, seal_spec, write_model
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


def hold(folder, change=None, *, tensors=None):
    """Give a model other values under a right seal."""
    values = json.loads((folder / "detector.json").read_text())
    if change is not None:
        change(values)
    if tensors is not None:
        save_file(
            {**load_file(folder / "model.safetensors"), **tensors}, folder / "model.safetensors"
        )
    text = seal_spec(values, hash_file(folder / "model.safetensors"))
    (folder / "detector.json").write_text(text)
    return folder


TOKENS = ("encoded", "embeddings")
NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e400]


@pytest.mark.parametrize("value", NUMBERS, ids=["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize(
    "key", ["image_threshold", "pixel_threshold", "fusion_constant", "normal_scores", "mean", "std"]
)
def test_no_number_of_a_model_is_infinite_or_none(tiny_model, tmp_path, key, value):
    """Thresholds, scales and scores that no verdict can rest on do not load, even under a right seal."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")

    def change(values):
        known = values["categories"]["disc"]
        if key in ("mean", "std"):
            known["scales"]["distance"][key] = value
        else:
            known[key] = [value] if key == "normal_scores" else value

    hold(folder, change)

    with pytest.raises(CheckpointError, match=r"detector\.json"):
        Detector.load(folder)


@pytest.mark.parametrize("std", [0.0, -1.0, 1e-300])
def test_a_spread_is_not_next_to_nothing(tiny_model, tmp_path, std):
    """A spread of nothing, or below what calibration measures at least, does not load."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    hold(folder, lambda values: values["categories"]["disc"]["scales"]["refined"].update(std=std))

    with pytest.raises(CheckpointError, match=r"disc\.scales\.refined\.std"):
        Detector.load(folder)


def test_a_missing_scale_is_named(tiny_model, tmp_path):
    """A category without the scale of a map that its score rests on does not load."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    hold(folder, lambda values: values["categories"]["disc"].update(scales={}))

    with pytest.raises(CheckpointError, match="category 'disc' has no scale of the distance map"):
        Detector.load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("network.coarse_mean", None, "network.coarse_mean holds values that are not finite"),
        ("category.disc.memory", None, "category.disc.memory holds values that are not finite"),
        ("category.disc.std", torch.zeros(1), "category.disc.std does not fit"),
        ("category.disc.memory", torch.zeros(0, 3), "category.disc.memory does not fit"),
        ("category.disc.prompts", torch.zeros(1, 2, 2, 3), "category.disc.prompts does not fit"),
        ("category.disc.encoded", torch.zeros(2, 9, 9), "category.disc.encoded does not fit"),
        ("category.disc.embeddings", torch.zeros(1, 3), "category.disc.embeddings does not fit"),
    ],
)
def test_tensors_are_looked_at(tiny_model, tmp_path, name, tensor, words):
    """Values that are not finite, and tensors that do not fit the network, are named."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    if tensor is None:
        tensor = load_file(folder / "model.safetensors")[name].clone()
        tensor.view(-1)[3] = float("nan")
    hold(folder, tensors={name: tensor})

    with pytest.raises(CheckpointError, match=words):
        Detector.load(folder)


def test_prompts_are_embedded_by_the_training_alone(tiny_model, tmp_path):
    """Loading takes what the file holds of the prompts; of an older file, without it, it is computed."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    kept = Detector.load(folder).state("disc")
    tensors = load_file(folder / "model.safetensors")
    other = {f"category.disc.{kind}": tensors[f"category.disc.{kind}"] + 1 for kind in TOKENS}
    shifted = Detector.load(hold(folder, tensors=other)).state("disc")
    for name in other:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    computed = Detector.load(hold(folder)).state("disc")

    for kind in TOKENS:
        assert torch.equal(getattr(shifted, kind), getattr(kept, kind) + 1)
        assert torch.allclose(getattr(computed, kind), getattr(kept, kind), atol=1e-4)


@pytest.mark.parametrize("name", ["../../evil", "/etc/x", "", "a\x1b[2Jb", "con", "good"])
def test_a_models_categories_lead_nowhere(tiny_model, tmp_path, name):
    """Their names become folders: of reports, exports and kept answers."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    hold(folder, lambda values: values["categories"].update({name: values["categories"]["disc"]}))

    with pytest.raises(CheckpointError, match="category"):
        Detector.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 10**9),
        ("encoder_layers", 10**6),
        ("input_size", [10**6, 10**6]),
        ("zoom", 99),
    ],
)
def test_a_network_that_no_machine_holds_is_refused(tiny_model, tmp_path, key, value):
    """A description of a few kilobytes neither fills the memory nor takes hours."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    hold(folder, lambda values: values["model"].update({key: value}))

    with pytest.raises(CheckpointError, match=f"{key}|input_size"):
        Detector.load(folder)


def test_a_description_as_deep_as_a_well_is_one_line(tmp_path):
    """A description of 100,000 levels is refused, not a traceback."""
    (tmp_path / "detector.json").write_text("[" * 100_000)

    with pytest.raises(CheckpointError, match="cannot be read"):
        read_model(tmp_path)

"""Presets: each starts for real, with random weights where its own need a model hub."""

import pytest
from typer.testing import CliRunner

from onenip.cli import app
from onenip.errors import ParamsError
from onenip.params import Params
from onenip.params.presets import apply_preset, list_presets, load_preset, merge, render
from tests.tiny import fit_tiny

# nine lines that stand for a billion values
_MULTIPLIED = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


def start(name, tiny_data, folder):
    """Two steps of a preset on the tiny data; hub weights are replaced by random ones."""
    values = load_preset(name).dump()
    weights = "random" if values["model"]["weights"] == "pretrained" else "package"
    overlay = {
        "train": {"max_steps": 2, "batch_size": 2, "log_steps": 1},
        "model": {"weights": weights},
        "data": {"calibration_fraction": 0.3},
        "synthesize": {"per_image": 1},
    }
    return fit_tiny(tiny_data, Params.parse(merge(values, overlay)), folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list_presets())
def test_every_preset_starts(name, tiny_data, tmp_path):
    """Two steps through the real entry point, with random weights where a hub would give them."""
    assert [row["step"] for row in start(name, tiny_data, tmp_path).record.history] == [1, 2]


def test_paper_presets_are_the_papers_model():
    """Size, schedule and scoring as published; nothing of ours on top."""
    paper = load_preset("paper-mvtec-320")

    assert paper.model.input_size == (320, 320)
    assert (paper.model.width, paper.model.heads, paper.model.neighbor_size) == (256, 8, 7)
    assert (paper.model.encoder_layers, paper.model.decoder_layers) == (4, 4)
    assert (paper.model.refiner, paper.model.memory_tokens) == ("paper", 0)
    assert not paper.model.standardize
    assert (paper.train.epochs, paper.train.step_epoch) == (1000, 800)
    assert (paper.train.learning_rate, paper.train.gradient_clip) == (1e-4, 0.1)
    assert (paper.calibrate.fusion, paper.calibrate.prompts) == ("paper", 1)


def test_an_unknown_preset_is_named():
    """The error lists what there is."""
    with pytest.raises(ParamsError, match=r"no preset 'papr'.*paper-visa"):
        load_preset("papr")


def test_rendered_params_read_back_equal(tmp_path):
    """What `onenip preset` writes is what it means."""
    params = load_preset("paper-visa-256")
    (tmp_path / "params.yaml").write_text(render(params))

    assert Params.load(tmp_path / "params.yaml") == params


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train:\n  epoch: 3\n", "train.epoch"),
        ('train:\n  epochs: "3"\n', "train.epochs"),
        ("model:\n  width: 130\n  heads: 4\n", "model.width"),
        ("model:\n  memory_tokens: 0\n", "model.memory_tokens"),
        ("model: [1, 2\n", "YAML"),
        ("just text\n", "keys and values"),
        ("model:\n  input_size: [224]\n", "model.input_size"),
        ("train: &again\n  epochs: *again\n", "more than 100000 values"),
        (f"train: {'[' * 5000}{']' * 5000}\n", "params.yaml"),
        (_MULTIPLIED, "more than 100000 values"),
        (f"seed: {'9' * 5000}\n", "params.yaml: not valid YAML"),
        ("seed: 2026-11-26\n", "params.yaml"),
    ],
)
def test_wrong_params_name_the_key(tmp_path, text, key):
    """Unknown keys, wrong types and contradictions are one error that names the key."""
    (tmp_path / "params.yaml").write_text(text)

    with pytest.raises(ParamsError, match=key.replace(".", r"\.")):
        Params.load(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path):
    """No params file, one line."""
    with pytest.raises(ParamsError, match="no such params file"):
        Params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"backbone": "efficientnet_typo"}, "model.backbone"),
        ({"levels": [0, 9]}, "model.levels"),
        ({"backbone": "vit_tiny_patch16_224", "levels": [3, 20]}, "model.levels"),
    ],
    ids=["no such model", "no such level", "no such block"],
)
@pytest.mark.parametrize("stage", ["download", "validate", "synthesize", "train"])
def test_a_backbone_that_does_not_fit_is_told_by_the_first_stage(tmp_path, stage, model, key):
    """Before any image is read; one line names the key."""
    path = tmp_path / "params.yaml"
    path.write_text(render(Params.parse(merge(Params().dump(), {"model": model}))))

    result = CliRunner().invoke(app, [stage, "--params", str(path), "--data", str(tmp_path)])

    assert isinstance(result.exception, ParamsError)
    assert result.exception.key == key
    assert key in str(result.exception)


def test_a_preset_keeps_the_plants_settings_and_asks_before_it_replaces_others(tmp_path):
    """Inbox and webhook stay; a changed number is named and lost with `force` alone."""
    path = tmp_path / "params.yaml"
    apply_preset("demo", path)
    values = merge(Params.load(path).dump(), {"retrain": {"inbox": "arrivals"}})
    path.write_text(render(Params.parse(values)))

    apply_preset("cpu", path)
    assert Params.load(path).train == Params().train
    assert Params.load(path).retrain.inbox == "arrivals"

    path.write_text(render(Params.parse(merge(values, {"train": {"batch_size": 3}}))))
    with pytest.raises(ParamsError, match=r"would lose train\.batch_size;"):
        apply_preset("cpu", path)
    assert Params.load(path).train.batch_size == 3
    apply_preset("cpu", path, force=True)
    assert Params.load(path).retrain.inbox == "arrivals"
    assert Params.load(path).train == Params().train

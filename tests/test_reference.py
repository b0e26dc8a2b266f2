"""Importing authors' checkpoints: strict, safe, and usable like a model of ours."""

import pickle

import numpy as np
import pytest
import timm
import torch

from onenip import Detector
from onenip.errors import CheckpointError
from onenip.network import Network
from onenip.preset import load_preset
from onenip.reference import BACKBONE, import_reference, rename_trained
from onenip.weights import rename_efficientnet


@pytest.fixture(scope="module")
def checkpoint():
    """A whole checkpoint in the reference's form, random weights, 224-pixel grid."""
    torch.manual_seed(0)
    network = Network(load_preset("paper").model)
    trained = {}
    for key, value in network.reconstruction.state_dict().items():
        text = key
        if key.startswith("encoder."):
            text = "transformer.encoder.layers." + key.removeprefix("encoder.")
            pairs = (
                (".attention.", ".self_attn."), ("attention_norm", "norm1"),
                ("feedforward_norm", "norm2"), ("expand", "linear1"), ("contract", "linear2"),
            )  # fmt: skip
        elif key.startswith("decoder."):
            text = "transformer.decoder.layers." + key.removeprefix("decoder.")
            pairs = (
                ("prompt_reads", "cross_attn_prompt_to_image"), ("query_norm", "norm3"),
                ("query_reads", "cross_attn_image_to_prompt"), ("prompt_norm", "norm1"),
                ("feedforward_norm", "norm2"), ("expand", "mlp.lin1"), ("contract", "mlp.lin2"),
            )  # fmt: skip
        else:
            pairs = (
                ("input_projection", "input_proj"), ("output_projection", "output_proj"),
                ("position.row", "pos_embed.row_embed.weight"),
                ("position.column", "pos_embed.col_embed.weight"),
                ("final_norm", "transformer.decoder.norm"),
                ("final_attention", "transformer.decoder.final_attn_token_to_image"),
            )  # fmt: skip
        for ours, theirs in (*pairs, ("packed_", "in_proj_"), (".output.", ".out_proj.")):
            text = text.replace(ours, theirs)
        assert rename_trained(text) == key
        trained[f"reconstruction.{text}"] = value
    blocks = {"0": "upconv1.0", "1": "upconv1.1", "3": "upconv1.3", "4": "upconv2.0"}
    blocks |= {"5": "upconv2.1", "7": "upconv2.3"}
    for key, value in network.refiner.state_dict().items():
        parts = key.split(".")
        name = f"{blocks[parts[1]]}.{parts[2]}" if parts[0] == "blocks" else key
        trained[f"reconstruction.seghead.{name}"] = value
    return trained | draw_backbone()


def draw_backbone():
    model = timm.create_model(BACKBONE, pretrained=False)
    port = {}
    number = 0
    plain = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    full = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    full |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    squeeze = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    for i, stage in enumerate(model.blocks):
        for block in stage:
            names = (plain if i == 0 else full) | squeeze
            for key, value in block.state_dict().items():
                inner = next(name for name in names if key.startswith(name + "."))
                port[f"_blocks.{number}.{names[inner]}.{key.removeprefix(inner + '.')}"] = value
            number += 1
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    for ours, theirs in (outer | {"classifier": "_fc"}).items():
        for key, value in getattr(model, ours).state_dict().items():
            port[f"{theirs}.{key}"] = value
    assert set(rename_efficientnet(port, BACKBONE)) == set(model.state_dict())
    return {f"backbone.{key}": value for key, value in port.items()}


def write(state, folder):
    path = folder / "checkpoint.pth"
    torch.save({"state_dict": state}, path)
    return path


def test_an_imported_model_is_calibrated_and_predicts(checkpoint, tiny_data, tmp_path):
    """With normal images it gets prompts and thresholds, saves, loads and judges."""
    path = write({f"module.{k}": v for k, v in checkpoint.items()}, tmp_path)

    import_reference(path, data_dir=tiny_data).save(tmp_path / "model")
    detector = Detector.load(tmp_path / "model")
    prediction = detector.predict([next((tiny_data / "disc/test/spot").iterdir())])[0]

    assert detector.categories == ("disc", "stripes")
    assert detector.network.backbone.channels == (24, 32, 56, 160)
    assert np.isfinite(prediction.score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("reconstruction.input_proj.bias"), "input_projection.bias"),
        (lambda s: s.pop("backbone._conv_stem.weight"), "conv_stem.weight"),
        (lambda s: s.update({"reconstruction.extra": torch.zeros(1)}), "unexpected key extra"),
        (lambda s: s.update({"other.extra": torch.zeros(1)}), "unexpected key other.extra"),
        (
            lambda s: s.update({"reconstruction.input_proj.bias": torch.zeros(7)}),
            r"input_proj.bias has shape \(7,\)",
        ),
        (lambda s: s.pop("reconstruction.pos_embed.row_embed.weight"), "row_embed"),
    ],
    ids=["missing", "missing-backbone", "extra", "foreign", "misshapen", "no-grid"],
)
def test_every_key_is_accounted_for(checkpoint, tmp_path, change, message):
    """A missing, extra or misshapen key is an error that names it."""
    state = dict(checkpoint)
    change(state)

    with pytest.raises(CheckpointError, match=message):
        import_reference(write(state, tmp_path))


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_pickle_with_code_runs_nothing(tmp_path):
    """Code in a checkpoint is refused and not run."""
    mark = tmp_path / "ran"
    torch.save({"state_dict": Bomb(mark)}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(mark)))

    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match=name):
            import_reference(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    """Empty, truncated and foreign files are named."""
    (tmp_path / "bad.pth").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        import_reference(tmp_path / "bad.pth")

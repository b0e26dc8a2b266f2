"""Importing authors' checkpoints: strict, safe, and usable like a model of ours."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from onenip import Detector
from onenip.errors import CheckpointError
from onenip.model.network import Network
from onenip.params.presets import load_preset
from onenip.training.authors import import_authors_checkpoint
from tests.recipe import spell_backbone, spell_trained


@pytest.fixture(scope="module")
def checkpoint():
    """A whole checkpoint in the authors' form, random weights, 224-pixel grid."""
    torch.manual_seed(0)
    trained = spell_trained(Network(load_preset("paper").model))
    parts = {"reconstruction": trained, "backbone": spell_backbone()}
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


def write(state, folder):
    path = folder / "checkpoint.pth"
    torch.save({"state_dict": state}, path)
    return path


def test_an_imported_model_is_calibrated_and_predicts(checkpoint, tiny_data, tmp_path):
    """With normal images it gets prompts and thresholds, saves, loads and judges."""
    path = write({f"module.{k}": v for k, v in checkpoint.items()}, tmp_path)

    import_authors_checkpoint(path, data_dir=tiny_data).save(tmp_path / "model")
    detector = Detector.load(tmp_path / "model")
    prediction = detector.predict([next((tiny_data / "disc/test/spot").iterdir())])[0]

    assert detector.categories == ("disc", "stripes")
    assert detector.network.backbone.channels == (24, 32, 56, 160)
    assert np.isfinite(prediction.score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("reconstruction.input_proj.bias"),
            "key reconstruction.input_proj.bias is missing",
        ),
        (
            lambda s: s.pop("backbone._conv_stem.weight"),
            "key backbone._conv_stem.weight is missing",
        ),
        (lambda s: s.pop("backbone._fc.bias"), "key backbone._fc.bias is missing"),
        (lambda s: s.update({"reconstruction.extra": torch.zeros(1)}), "key reconstruction.extra"),
        (
            lambda s: s.update({"backbone._blocks.40._bn0.bias": torch.zeros(1)}),
            r"_blocks\.40\._bn0",
        ),
        (lambda s: s.update({"backbone._blocks.x": torch.zeros(1)}), r"key backbone\._blocks\.x"),
        (
            lambda s: s.update({"reconstruction.input_projection.bias": torch.zeros(256)}),
            "unexpected key reconstruction.input_projection.bias",
        ),
        (lambda s: s.update({"other.extra": torch.zeros(1)}), "unexpected key other.extra"),
        (
            lambda s: s.update({"reconstruction.input_proj.bias": torch.zeros(7)}),
            r"input_proj.bias has shape \(7,\)",
        ),
        (lambda s: s.pop("reconstruction.pos_embed.row_embed.weight"), "row_embed"),
    ],
    ids=[
        "missing",
        "missing-backbone",
        "missing-unused",
        "extra",
        "extra-block",
        "no-block",
        "ours",
        "foreign",
        "misshapen",
        "no-grid",
    ],
)
def test_every_key_is_accounted_for(checkpoint, tmp_path, change, message):
    """A missing, extra or misshapen key is an error that names it."""
    state = dict(checkpoint)
    change(state)

    with pytest.raises(CheckpointError, match=message):
        import_authors_checkpoint(write(state, tmp_path))


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
            import_authors_checkpoint(tmp_path / name)
    assert not mark.exists()


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    """A zip bomb is told by its directory, before anything is unpacked."""
    torch.save({"state_dict": {"backbone.x": torch.zeros(4)}}, tmp_path / "small.pth")
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "small.pth") as small, zipfile.ZipFile(bomb, "w") as archive:
        for entry in small.infolist():
            grows = entry.filename.endswith("data/0")
            content = bytes(50_000_000) if grows else small.read(entry)
            archive.writestr(entry.filename, content, compress_type=zipfile.ZIP_DEFLATED)

    with pytest.raises(CheckpointError, match=r"bomb\.pth: 0\.0 MB would unpack to 50 MB"):
        import_authors_checkpoint(bomb)


def test_another_architecture_is_told_by_its_first_key(tmp_path):
    """A checkpoint of another model is one line."""
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.zeros(1)}}, tmp_path / "other.pth")

    with pytest.raises(CheckpointError, match=r"unexpected key layer1\.0\.conv1\.weight|missing"):
        import_authors_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    """Empty, truncated and foreign files are named."""
    (tmp_path / "bad.pth").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        import_authors_checkpoint(tmp_path / "bad.pth")

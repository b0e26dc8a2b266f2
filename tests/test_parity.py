"""Our numbers against those that the authors' code computed, on weights drawn from the same recipe."""

import json

import numpy as np
import pytest
import torch

from onenip.model.network import Network
from onenip.model.refiner import upsample_logits
from onenip.params.presets import load_preset
from onenip.training.authors import import_authors_checkpoint, load_authors_backbone, load_trained
from onenip.training.step import dice_loss, feature_mse
from tests.paths import SHARED
from tests.recipe import draw_features, draw_weights

PARITY = SHARED / "spec" / "parity"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not PARITY.is_dir(), reason="the authors' numbers are not at hand"),
]


def draw_listed(keys_file, seed):
    return draw_weights(json.loads((PARITY / keys_file).read_text()), seed)


@pytest.fixture(scope="module")
def network():
    return Network(load_preset("paper").model).eval()


def relative_error(ours, theirs):
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def test_reconstruction_agrees_with_the_reference(network):
    """Features, restoration map and refiner logits agree to 1e-4 of their range."""
    load_trained(network, draw_listed("reconstruction_keys.json", 7), origin="recipe")
    query, prompt = draw_features()
    expected = np.load(PARITY / "reconstruction.npz")

    with torch.inference_mode():
        restored = network.decode(network.encode(query), network.encode(prompt))
        rec_map = network.restoration_map(restored, query)[:, ::8, ::8]
        logits = network.refiner((restored - query).abs())
        ref_logit = upsample_logits(logits, network.params.input_size)[:, ::8, ::8]

    assert relative_error(restored, expected["rec_feat"]) < 1e-4
    assert relative_error(rec_map, expected["rec_map"]) < 1e-4
    assert relative_error(ref_logit, expected["ref_logit"]) < 1e-4


def test_backbone_and_neck_agree_with_the_reference(network):
    """EfficientNet-B4 with 380-pixel padding and the neck agree to 1e-4 of their range."""
    load_authors_backbone(network, draw_listed("backbone_keys.json", 13), origin="recipe")
    images = np.random.default_rng(17).standard_normal((2, 3, 224, 224), dtype=np.float32)
    expected = np.load(PARITY / "backbone.npz")

    with torch.inference_mode():
        levels = network.backbone.forward_normalized(torch.tensor(images))
        neck = network.fuse(levels).coarse

    assert relative_error(neck, expected["neck"]) < 1e-4


def test_losses_agree_with_the_reference():
    """Feature loss and Dice agree to 1e-6."""
    rng = np.random.default_rng(19)
    features = [rng.standard_normal((2, 272, 14, 14), dtype=np.float32) for _ in range(2)]
    logits = rng.standard_normal((2, 1, 56, 56), dtype=np.float32)
    mask = rng.random((2, 1, 56, 56)) > 0.8
    expected = json.loads((PARITY / "losses_and_metrics.json").read_text())

    mse = feature_mse(torch.tensor(features[0]), torch.tensor(features[1]))
    dice = dice_loss(torch.tensor(logits).sigmoid(), torch.tensor(mask).float(), overlap_weight=1)

    assert float(mse) == pytest.approx(expected["feature_mse"], abs=1e-6)
    assert float(dice) == pytest.approx(expected["dice"], abs=1e-6)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_the_recipe_imports_end_to_end(tmp_path, prefix):
    """A written checkpoint imports, saves, loads and reproduces the authors' numbers."""
    from onenip import Detector

    state = {
        f"{prefix}reconstruction.{k}": v
        for k, v in draw_listed("reconstruction_keys.json", 7).items()
    } | {f"{prefix}backbone.{k}": v for k, v in draw_listed("backbone_keys.json", 13).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "ckpt.pth.tar")
    expected = np.load(PARITY / "reconstruction.npz")

    import_authors_checkpoint(tmp_path / "ckpt.pth.tar").save(tmp_path / "model")
    result = Detector.load(tmp_path / "model").reconstruct(*draw_features())

    assert relative_error(result.features, expected["rec_feat"]) < 1e-4
    assert relative_error(result.map[:, ::8, ::8], expected["rec_map"]) < 1e-4
    logits = torch.logit(result.refined[:, ::8, ::8].double())
    assert relative_error(logits, expected["ref_logit"]) < 1e-3

"""Folded batch normalisation: the same maps, with less to compute, and nothing of it in the file."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onenip import Detector
from onenip.detector.category import draw_maps, draw_restored
from onenip.model.folding import _fold_part, fold_backbone, fold_network
from onenip.model.network import Network
from tests.tiny import make_tiny_params


def randomize(network):
    """Statistics and scales as a long training might leave them."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
            module.running_var.mul_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return network.eval()


def count_norms(module):
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"refiner": "paper", "memory_tokens": 0, "standardize": False},
        {"backbone": "tf_efficientnet_b4", "padding_size": 380, "input_size": [96, 64]},
        {"backbone": "resnet18", "levels": [1, 2, 3]},
    ],
    ids=["cpu", "paper", "b4", "resnet"],
)
def test_folded_networks_give_the_same_features_and_logits(changes):
    """Nothing is left to normalise, and results differ by 1e-5 of their range at most."""
    torch.manual_seed(0)
    base = make_tiny_params().dump()["model"]
    params = make_tiny_params(model={**base, **changes}).model
    network = randomize(Network(params))
    folded = fold_network(network)
    image = torch.randint(0, 256, (1, *params.input_size, 3), dtype=torch.uint8)

    with torch.inference_mode():
        ours, theirs = folded.embed(image), network.embed(image)
        channels = folded.refiner.blocks[0] if params.refiner == "paper" else folded.refiner.mix[0]
        evidence = torch.rand(1, channels.in_channels, 8, 8)
        pairs = [
            (ours.coarse, theirs.coarse),
            (folded.refiner(evidence), network.refiner(evidence)),
        ]

    assert count_norms(folded) == 0 < count_norms(network)
    for a, b in pairs:
        assert float((a - b).abs().max()) < 1e-5 * float(b.abs().max())


def test_a_backbone_without_norms_is_not_copied():
    """A large transformer is not held twice while it is trained with."""
    base = make_tiny_params().dump()["model"]
    vit = {"backbone": "vit_tiny_patch16_224", "levels": [3], "input_size": [64, 64]}
    network = Network(make_tiny_params(model={**base, **vit}).model)

    assert fold_backbone(network) is network.backbone


def test_a_detectors_maps_are_those_of_its_network(tiny_detector, tiny_data):
    """Every map of the detector is the unfolded network's, to 1e-5 of its range."""
    from onenip.images import load_image, resize_image

    file = next((tiny_data / "disc/test/spot").iterdir())
    image = torch.tensor(resize_image(load_image(file), tiny_detector.input_size))[None]
    state, network = tiny_detector.state("disc"), tiny_detector.network

    with torch.inference_mode():
        maps = draw_maps(tiny_detector.folded, tiny_detector.folded.embed(image), state)
        features = network.embed(image)
        nearest = torch.cdist(features.coarse.mean((2, 3)), state.embeddings).argmin(1)
        prompt = network.embed(state.prompts[nearest]).coarse
        restored = network.decode(network.encode(features.coarse), network.encode(prompt))
        expected = draw_restored(network, features, restored, state.statistics)

    for kind, theirs in expected.items():
        assert float((maps[kind] - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_the_file_holds_the_network_as_it_was_trained(tiny_detector, tiny_model, tmp_path):
    """Saving what was loaded gives the same files, with every normalisation in them."""
    tiny_detector.save(tmp_path)

    tensors = load_file(tmp_path / "model.safetensors")
    assert Detector.load(tmp_path).digest == Detector.load(tiny_model).digest
    assert any(key.endswith("running_var") for key in tensors)


class Forked(nn.Module):
    """A convolution whose output is normalised, and read besides."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        """[B, 3, H, W] to the same."""
        y = self.convolution(x)
        return self.norm(y) + y


def test_a_part_that_cannot_be_folded_stays_whole():
    """Where folding would change the answer, the part is left as it is."""
    part = randomize(Forked())

    with torch.no_grad():
        assert _fold_part(part, torch.rand(1, 3, 4, 4)) is part

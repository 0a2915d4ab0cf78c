"""biox's own plain CNN: time halves, layers are written-out convolutions, any length fits."""

import math

import pytest
import torch
from fill import windows
from torch.nn import functional as F

from biox.backbones import build, load, save
from biox.report.models import origins, published_sizes


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    backbone = build("plain_cnn", "tiny", seconds=7)
    for module in backbone.modules():  # statistics and scales that make a difference
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.copy_(0.1 * windows("mean", module.running_mean.shape))
            module.running_var.copy_(1 + windows("variance", module.running_var.shape).abs())
            module.bias.data.copy_(0.1 * windows("bias", module.bias.shape))
    return backbone.requires_grad_(False)


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("seconds", [60, 10, 7.13])
def test_time_halves_at_every_step(size, seconds):
    backbone = build("plain_cnn", size, seconds=seconds)
    samples = backbone.input_spec.samples
    for l in range(backbone.n_layers + 1):
        assert backbone.token_shape(l)[0] == math.ceil(samples / 2 ** (l + 1))


def test_slices_give_the_whole_and_its_states(tiny):
    x = windows("ecg", (3, 1, 700))
    states = tiny.hidden_states(x)
    for cut in range(tiny.n_layers + 1):
        torch.testing.assert_close(tiny.run(tiny.run(tiny.stem(x), 0, cut), cut, 6), tiny(x))
        assert tuple(states[cut].shape[1:]) == tiny.token_shape(cut)


def test_a_block_is_two_convolutions_beside_a_mean_of_neighbours(tiny):
    """Layer 2, whose channels double, written out with functions."""
    h = tiny.for_seconds(7.1).hidden_states(windows("ecg", (2, 1, 710)))[2]
    weights = {name: value.double() for name, value in tiny.blocks[2].state_dict().items()}

    def norm(x, name):
        values = [weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        mean, var, scale, shift = (value[:, None] for value in values)
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = h.transpose(1, 2).double()
    out = norm(F.conv1d(x, weights["conv1.weight"], stride=2, padding=3), "bn1").clamp_min(0)
    out = norm(F.conv1d(out, weights["conv2.weight"], padding=3), "bn2")
    assert x.shape[2] % 2 == 1
    pairs = torch.cat([x, x[..., -1:]], dim=2)  # the last sample has no neighbour
    halves = pairs.unflatten(2, (-1, 2)).mean(-1)
    short = torch.einsum("oi,bit->bot", weights["shortcut.weight"][..., 0], halves)
    expected = (out + short + weights["shortcut.bias"][:, None]).clamp_min(0).transpose(1, 2)
    torch.testing.assert_close(tiny.layer(2, h).double(), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_shared_between_lengths_and_survive_a_file(tiny, tmp_path):
    x = windows("ecg", (2, 1, 1000))
    longer = tiny.for_seconds(10)
    assert tiny.input_spec.seconds == 7 and longer.input_spec.samples == 1000
    assert next(longer.parameters()) is next(tiny.parameters())
    save(tiny, tmp_path / "weights.safetensors")
    other = build("plain_cnn", "tiny", seconds=10)
    assert not torch.allclose(other(x), longer(x), atol=1e-3)
    load(other, tmp_path / "weights.safetensors")
    torch.testing.assert_close(other(x), longer(x), rtol=0, atol=0)


def test_it_reads_what_hubert_reads_and_is_nobodys_published_model():
    spec, published = build("plain_cnn", "base").input_spec, build("hubert_ecg", "tiny").input_spec
    assert spec == published
    assert "plain_cnn" not in origins().index
    assert not any(name == "plain_cnn" for name, _ in published_sizes())

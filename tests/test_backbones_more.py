"""Tails under autograd, the weights that count, broken signals and models, ECG-FM and CBraMod."""

import re

import numpy as np
import pytest
import torch
from fill import windows

from biox.backbones import BACKBONES, build

NAMES = sorted(BACKBONES)
SECONDS = {"hubert_ecg": 4, "papagei": 4, "ecg_fm": 1}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return {name: build(name, "tiny", seconds=SECONDS.get(name, 3)) for name in NAMES}


def some_windows(backbone, batch=2):
    spec = backbone.input_spec
    return windows(spec.modality, (batch, spec.channels, spec.samples))


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_layers_are_slices_of_the_whole_with_their_gradients(tiny, name):
    backbone = tiny[name]
    h0 = backbone.stem(some_windows(backbone)).detach()
    with torch.no_grad():  # CBraMod's attention then takes another way
        states = [h0, *(backbone.run(h0, 0, i + 1) for i in range(backbone.n_layers))]
    direction = windows("direction", states[-1].shape)

    whole = h0.clone().requires_grad_()
    inner = [whole]
    for i in range(backbone.n_layers):
        inner.append(backbone.layer(i, inner[-1]))
    expected = torch.autograd.grad((inner[-1] * direction).sum(), inner[:-1])
    for start in range(backbone.n_layers + 1):
        for stop in range(start, backbone.n_layers + 1):
            torch.testing.assert_close(backbone.run(states[start], start, stop), states[stop])
            if start < backbone.n_layers:
                h = states[start].clone().requires_grad_()
                out = backbone.run(backbone.run(h, start, stop), stop, backbone.n_layers)
                (found,) = torch.autograd.grad((out * direction).sum(), h)
                torch.testing.assert_close(found, expected[start], rtol=1e-4, atol=1e-5)


# The first block's norm is unused; a bias common to all keys drops out of the softmax; and a group
# norm takes away what is common to a group, which in LaBraM's tiny size is a single channel.
WITHOUT_EFFECT = re.compile(
    r"basicblock_list\.0\.bn1\.|\.k_(proj|norm)\.bias$|patch_embed\.conv\d\.bias$"
)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_moves_the_last_layer(tiny, name):
    backbone = tiny[name]
    out = backbone(some_windows(backbone))
    keys, parameters = zip(*backbone.named_parameters(), strict=True)
    weighted = (out * windows("weights", out.shape)).sum()
    gradients = torch.autograd.grad(weighted, parameters, allow_unused=True)
    sizes = {
        key: 0.0 if gradient is None else gradient.abs().max().item()
        for key, gradient in zip(keys, gradients, strict=True)
    }
    idle = {key for key, size in sizes.items() if size < 1e-4}
    assert idle == {key for key in keys if WITHOUT_EFFECT.search(key)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NAMES)
def test_broken_windows_are_refused(tiny, name, value):
    x = some_windows(tiny[name], batch=3)
    x[1, 0, -1] = value
    found = r"found NaN or infinity in 1 of 3 windows \(the first: 1\)"
    with pytest.raises(ValueError, match=f"stem: expected finite values, {found}"):
        tiny[name].hidden_states(x)


def test_broken_scalograms_are_refused(tiny):
    backbone = tiny["normwear"]
    ready = backbone.scalogram(some_windows(backbone))
    ready[0, 2, 1, 5, 64] = float("nan")
    with pytest.raises(ValueError, match="emg stem: expected finite values, found NaN or infinity"):
        backbone.stem(ready)


INSIDE_LAYER_2 = re.compile(r"(?:^|\.)(?:blocks|layers|basicblock_list|encoder_blocks)\.2\..*bias$")


@pytest.mark.parametrize("name", NAMES)
def test_activations_that_are_not_finite_name_the_layer(name):
    torch.manual_seed(0)
    backbone = build(name, "tiny", seconds=SECONDS.get(name, 3))
    x = some_windows(backbone)
    h = backbone.stem(x)
    part = f"{type(backbone).__name__}: expected finite activations, .* at the "
    with torch.no_grad():
        keys = [key for key, _ in backbone.named_parameters() if INSIDE_LAYER_2.search(key)]
        backbone.get_parameter(keys[-1])[0] = float("nan")
    for call in (
        lambda: backbone.hidden_states(x),
        lambda: backbone(x),
        lambda: backbone.run(h, 0, backbone.n_layers),
    ):
        with pytest.raises(FloatingPointError, match=part + "output of layer 2, in"):
            call()
    backbone.run(h, 0, 2)  # what is sound still runs
    h = backbone.run(h, 0, 1)
    h[0, 0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=part + r"input of layer 1, in 1 of \d+ values"):
        backbone.run(h, 1, 2)
    with pytest.raises(FloatingPointError, match=r"input of layer 0 \(the stem's output\)"):
        backbone.run(torch.full_like(backbone.stem(x), float("nan")), 0, 1)


@torch.no_grad()
def test_a_single_lead_is_the_first_beside_silent_ones(tiny):
    twelve, one = tiny["ecg_fm"], build("ecg_fm", "tiny", n_channels=1, seconds=1)
    one.load_state_dict(twelve.state_dict())
    lead = windows("lead", (2, 1, 500))
    padded = torch.cat([lead, torch.zeros(2, 11, 500)], dim=1)
    torch.testing.assert_close(one(lead), twelve(padded), rtol=0, atol=0)
    assert not torch.allclose(one(lead), twelve(padded.roll(1, dims=1)), atol=1e-2)


@torch.no_grad()
def test_criss_cross_attention_reads_one_electrode_and_one_second():
    torch.manual_seed(0)
    electrodes, seconds = 5, 4
    backbone = build("cbramod", "tiny", n_channels=electrodes, seconds=seconds)
    h = backbone.stem(some_windows(backbone, 1))
    moved = h.clone()
    moved[0, 2 * seconds + 1] += windows("push", moved[0, 0].shape)  # electrode 2, second 1
    change = (backbone.layer(0, moved) - backbone.layer(0, h)).abs().amax(-1)
    expected = torch.zeros(electrodes, seconds, dtype=bool)
    expected[2, :] = expected[:, 1] = True
    np.testing.assert_array_equal(change.view(electrodes, seconds) > 1e-6, expected)


@torch.no_grad()
def test_cbramod_reads_amplitudes_of_the_spectrum():
    """The spectral embedding of a patch does not change when the patch is turned around in time."""
    embedding = build("cbramod", "tiny", n_channels=1, seconds=1).patch_embedding
    for parameter in embedding.proj_in.parameters():
        parameter.zero_()
    patch = windows("patch", (1, 1, 1, 200))
    torch.testing.assert_close(embedding(patch.flip(-1)), embedding(patch), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(embedding(patch.roll(1, -1) * 2), embedding(patch), atol=1e-3)

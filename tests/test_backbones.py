"""The interface of the backbones on tiny models: layers, shapes, gradients, refusals."""

import re
import subprocess
import sys

import pytest
import torch
from fill import windows
from hypothesis import given, settings
from hypothesis import strategies as st

from biox.backbones import BACKBONES, build

NAMES = sorted(BACKBONES)
SECONDS = {"hubert_ecg": 4, "papagei": 4, "ecg_fm": 1, "plain_cnn": 7}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return {name: build(name, "tiny", seconds=SECONDS.get(name, 3)) for name in NAMES}


def some_windows(backbone, batch=2):
    spec = backbone.input_spec
    return windows(spec.modality, (batch, spec.channels, spec.samples))


def test_importing_the_backbones_loads_no_transformers():
    code = "import sys, biox.backbones; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(NAMES), cuts=st.lists(st.integers(0, 4), min_size=1, max_size=3))
@torch.no_grad()
def test_run_composes(tiny, name, cuts):
    backbone = tiny[name]
    states = backbone.hidden_states(some_windows(backbone))
    stops = sorted(cuts)
    h = states[stops[0]]
    for start, stop in zip(stops, [*stops[1:], backbone.n_layers], strict=True):
        h = backbone.run(h, start, stop)
        torch.testing.assert_close(h, states[stop])


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_layers_are_slices_of_the_whole_with_their_gradients(tiny, name):
    backbone = tiny[name].requires_grad_(False)
    h0 = backbone.stem(some_windows(backbone))
    with torch.no_grad():  # CBraMod's attention then takes another way
        states = [h0, *(backbone.run(h0, 0, i + 1) for i in range(backbone.n_layers))]
    # The plain mean would not do: after a LayerNorm it does not depend on h.
    direction = windows("direction", states[-1].shape)

    inner = [h0.clone().requires_grad_()]
    for i in range(backbone.n_layers):
        inner.append(backbone.layer(i, inner[-1]))
    expected = torch.autograd.grad((inner[-1] * direction).sum(), inner[:-1])
    for start in range(backbone.n_layers):
        stop = (start + backbone.n_layers + 1) // 2
        h = states[start].clone().requires_grad_()
        out = backbone.run(backbone.run(h, start, stop), stop, backbone.n_layers)
        (found,) = torch.autograd.grad((out * direction).sum(), h)
        torch.testing.assert_close(found, expected[start], rtol=1e-4, atol=1e-5)
    assert found.isfinite().all() and expected[1].abs().amax(dim=(0, 2)).min() > 0


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_token_shapes_are_those_of_the_hidden_states(tiny, name):
    backbone = tiny[name]
    assert not backbone.training
    states = backbone.hidden_states(some_windows(backbone))
    shapes = [backbone.token_shape(l) for l in range(backbone.n_layers + 1)]
    assert shapes == [tuple(h.shape[1:]) for h in states]
    assert backbone.pool(states[-1]).shape == (2, shapes[-1][1])
    with pytest.raises(ValueError, match="run: expected 0 <= start <= stop"):
        backbone.token_shape(backbone.n_layers + 1)
    with pytest.raises(ValueError, match="run: expected 0 <= start <= stop"):
        backbone.run(states[0], 2, 1)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_windows_of_a_batch_do_not_touch_each_other_and_may_be_precomputed(tiny, name):
    x = some_windows(tiny[name], batch=3)
    torch.testing.assert_close(tiny[name](x)[1:2], tiny[name](x[1:2]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tiny[name].stem(tiny[name].precompute(x)), tiny[name].stem(x))


# The first block's norm is unused; a bias common to all keys drops out of the softmax; and a group
# norm takes away what is common to a group, which in LaBraM's tiny size is a single channel.
WITHOUT_EFFECT = re.compile(
    r"basicblock_list\.0\.bn1\.|\.k_(proj|norm)\.bias$|patch_embed\.conv\d\.bias$"
)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_moves_the_last_layer(tiny, name):
    backbone = tiny[name].requires_grad_(True)
    out = backbone(some_windows(backbone))
    keys, parameters = zip(*backbone.named_parameters(), strict=True)
    weighted = (out * windows("weights", out.shape)).sum()
    gradients = torch.autograd.grad(weighted, parameters, allow_unused=True)
    for key, gradient in zip(keys, gradients, strict=True):
        idle = gradient is None or gradient.abs().max() < 1e-4
        assert idle == bool(WITHOUT_EFFECT.search(key)), key


@pytest.mark.parametrize("name", NAMES)
def test_training_from_scratch_lowers_the_loss(name):
    torch.manual_seed(0)
    backbone = build(name, "tiny", seconds=SECONDS.get(name, 3)).train()
    x, y, losses = some_windows(backbone, batch=8), torch.arange(8) // 4, []
    x[4:] = x[4:].cumsum(-1) / 10  # white noise and smooth noise
    optimiser = torch.optim.Adam(backbone.parameters(), lr=1e-3)
    for _ in range(12):
        logits = backbone.pool(backbone(x))[:, :2]
        loss = torch.nn.functional.cross_entropy(logits, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


# --- windows and models that cannot be


@pytest.mark.parametrize("name", NAMES)
def test_windows_that_do_not_fit_or_are_broken_are_refused(tiny, name):
    x = some_windows(tiny[name], batch=3)
    for bad in (x.repeat(1, 2, 1), x[..., :-1], torch.cat([x, x], dim=-1), x[0], x.long()):
        with pytest.raises(ValueError, match=r"expected floating-point windows \[batch, "):
            tiny[name].stem(bad)
    found = r"found NaN or infinity in 1 of 3 windows \(the first: 1\)"
    for value in (float("nan"), float("-inf")):
        x[1, 0, -1] = value
        with pytest.raises(ValueError, match=f"stem: expected finite values, {found}"):
            tiny[name].hidden_states(x)


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
    for call in (backbone.hidden_states, backbone):
        with pytest.raises(FloatingPointError, match=part + "output of layer 2, in"):
            call(x)
    backbone.run(h, 0, 2)  # what is sound still runs
    h = backbone.run(h, 0, 1)
    h[0, 0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=part + r"input of layer 1, in 1 of \d+ values"):
        backbone.run(h, 1, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("labrum",), r"expected one of \['cbramod', 'cbramod_ecg', 'ecg_fm'.*found 'labrum'"),
        (("papagei",), r"papagei: expected a size of \['small', 'tiny'\], found 'base'"),
        (("hubert_ecg", "tiny", None, 12), "n_channels of ecg: expected 1, .*found 12"),
        (("papagei", "tiny", None, 2), "n_channels of ppg: expected 1, .*found 2"),
        (("ecg_fm", "tiny", None, 2), "n_channels of ecg: expected 1 or 12, .*found 2"),
        (("labram", "tiny", None, 0), "n_channels of eeg: expected at least 1, found 0"),
        (("ecg_fm", "tiny", None, 12, 0.03), "seconds of ecg: expected at least 16 .* 0.03 s"),
        (("hubert_ecg", "tiny", None, 1, 0.81), "of ecg: expected at least 82 samples .* 0.81 s"),
        (("normwear", "tiny", None, 3, 0.05), "seconds of emg: expected at least 11 samples"),
        (("papagei", "tiny", None, 1, 0), "seconds of ppg: expected at least 1 .* found 0 s"),
        (("labram", "tiny", None, 6, 2.5), "in whole patches of 1 s; found 2.5 s"),
        (("cbramod", "tiny", None, 1, 2.5), "in whole patches of 1 s; found 2.5 s"),
        (("papagei", "tiny", None, None, None, "extend"), "papagei: expected no `widen`"),
    ],
)
def test_models_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments)

"""What is particular to one model: its order of tokens, its position table, its blocks."""

import math

import numpy as np
import pytest
import torch
from fill import GOLDEN, samples, windows
from torch.nn import functional as F

from biox.backbones import BACKBONES, build
from biox.backbones.normwear import RickerScalogram
from biox.backbones.papagei import BasicBlock

# --- NormWear


def test_normwear_position_table_is_the_released_one():
    golden = np.load(GOLDEN / "normwear_pos_embed.npz")
    with torch.device("meta"):
        shape = build("normwear").pos_embed.shape
    assert list(shape) == golden["shape"].tolist()
    table = build("normwear").pos_embed
    # The released table comes from single-precision angles of up to 42: off by 2.2e-6 at most.
    np.testing.assert_allclose(samples(table, 512), golden["sample"], atol=3e-6)
    for row in (1, 2, 14, 559):
        np.testing.assert_allclose(table[0, row], golden[f"row_{row}"], atol=3e-6)


def test_scalogram_is_that_of_the_released_preprocessing():
    # Recipe of preprocess_FOG.npz: 20 s of noise at 500 Hz, interpolated to 130 Hz, z-scored.
    golden = np.load(GOLDEN / "preprocess_FOG.npz")
    noise = windows("raw:FOG", (10000, 58)).double().numpy()
    raw = np.round(noise[:, [25, 26, 29]].T * 50, 4)  # columns 27, 28 and 31 of the file
    at = np.linspace(0, 9999, 2600)
    emg = np.stack([np.interp(at, np.arange(10000), channel) for channel in raw])
    emg = (emg - emg.mean(1, keepdims=True)) / emg.std(1, keepdims=True)
    x = torch.tensor(emg[None, :, :390])

    picture = RickerScalogram(390).double()(x)[0]
    assert list(picture.shape) == golden["first_EMG_shape"].tolist()
    np.testing.assert_allclose(samples(picture), golden["first_EMG_sample"], atol=2e-6)
    np.testing.assert_allclose(picture[0, 0, 100], golden["first_EMG_ch0_kind0_t100"], atol=2e-6)
    np.testing.assert_allclose(picture[2, 2, 387], golden["first_EMG_ch2_kind2_t387"], atol=2e-6)
    single = RickerScalogram(390)(x.float())[0]
    np.testing.assert_allclose(single, picture, atol=2e-5)


def test_scalograms_of_the_wrong_shape_or_broken_are_refused():
    backbone = build("normwear", "tiny", n_channels=2, seconds=2)
    ready = backbone.precompute(windows("emg", (3, 2, 260)))
    assert ready.shape == (3, 2, 3, 258, 65)
    with pytest.raises(ValueError, match=r"expected scalograms \[batch, 2, 3, 258, 65\]"):
        backbone.stem(ready[:, :1])
    ready[0, 1, 1, 5, 64] = float("nan")
    with pytest.raises(ValueError, match="emg stem: expected finite values, found NaN or infinity"):
        backbone.stem(ready)


# --- EEG


@torch.no_grad()
def test_electrodes_and_seconds_sit_where_the_order_says():
    backbone = build("labram", "tiny", seconds=4)
    x = torch.zeros(1, 6, 800)
    x[0, 2, 200:400] = windows("patch", (200,))  # electrode 2, second 1
    silent = backbone.stem(torch.zeros_like(x))
    moved = (backbone.stem(x) - silent).abs().sum(-1)[0]
    assert moved.argmax() == 1 + 2 * 4 + 1


@torch.no_grad()
def test_criss_cross_attention_reads_one_electrode_and_one_second():
    torch.manual_seed(0)
    electrodes, seconds = 5, 4
    backbone = build("cbramod", "tiny", n_channels=electrodes, seconds=seconds)
    h = backbone.stem(windows("eeg", (1, electrodes, 200 * seconds)))
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


# --- ECG and PPG


@torch.no_grad()
def test_a_single_lead_is_the_first_beside_silent_ones():
    twelve, one = (build("ecg_fm", "tiny", n_channels=n, seconds=1) for n in (12, 1))
    one.load_state_dict(twelve.state_dict())
    lead = windows("lead", (2, 1, 500))
    padded = torch.cat([lead, torch.zeros(2, 11, 500)], dim=1)
    torch.testing.assert_close(one(lead), twelve(padded), rtol=0, atol=0)
    assert not torch.allclose(one(lead), twelve(padded.roll(1, dims=1)), atol=1e-2)


@pytest.mark.parametrize("samples", [1, 2, 7, 8])
def test_papageis_blocks_pool_and_pad_as_released(samples):
    """Without the copies that the released forms make; of equal neighbours the first one learns."""
    h = torch.randint(-2, 3, (3, 2, samples), dtype=torch.float64, requires_grad=True)
    for stride in (1, 2):
        block = BasicBlock(2, 4, stride, first=False).double()
        total = (-(-samples // stride) - 1) * stride + 3 - samples
        sides = (total // 2, total - total // 2)
        first, second = block.conv1.conv, block.conv2.conv
        out = F.pad(F.relu(block.bn1(h)), sides)
        out = F.conv1d(out, first.weight, first.bias, stride)
        out = F.pad(F.relu(block.bn2(out)), (1, 1))
        out = F.conv1d(out, second.weight, second.bias)
        kept = F.max_pool1d(F.pad(h, (0, stride - 1)), stride)
        released = out + F.pad(kept, (0, 0, 1, 1))
        found = block(h)
        torch.testing.assert_close(found, released)
        weights = torch.randn_like(found)
        for a, b in zip(
            torch.autograd.grad((found * weights).sum(), [h, *block.parameters()]),
            torch.autograd.grad((released * weights).sum(), [h, *block.parameters()]),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.fixture(scope="module")
def plain_cnn():
    torch.manual_seed(0)
    backbone = build("plain_cnn", "tiny", seconds=7.1)
    for module in backbone.modules():  # statistics and scales that make a difference
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.copy_(0.1 * windows("mean", module.running_mean.shape))
            module.running_var.copy_(1 + windows("variance", module.running_var.shape).abs())
            module.bias.data.copy_(0.1 * windows("bias", module.bias.shape))
    return backbone.requires_grad_(False)


@pytest.mark.parametrize("seconds", [60, 7.13])
def test_plain_cnn_halves_time_at_every_step(seconds):
    backbone = build("plain_cnn", "tiny", seconds=seconds)
    samples = backbone.input_spec.samples
    for l in range(backbone.n_layers + 1):
        assert backbone.token_shape(l)[0] == math.ceil(samples / 2 ** (l + 1))
    spec = build("hubert_ecg", "tiny", seconds=seconds).input_spec
    assert backbone.input_spec == spec
    assert not BACKBONES["plain_cnn"].origin.weights  # nobody's published model


def test_plain_cnn_block_is_two_convolutions_beside_a_mean_of_neighbours(plain_cnn):
    """Layer 2, whose channels double, written out with functions."""
    h = plain_cnn.hidden_states(windows("ecg", (2, 1, 710)))[2]
    weights = {name: value.double() for name, value in plain_cnn.blocks[2].state_dict().items()}

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
    torch.testing.assert_close(plain_cnn.layer(2, h).double(), expected, rtol=1e-4, atol=1e-5)


def test_windows_of_another_length_share_the_weights(plain_cnn):
    longer = plain_cnn.for_seconds(10)
    assert plain_cnn.input_spec.seconds == 7.1 and longer.input_spec.samples == 1000
    assert next(longer.parameters()) is next(plain_cnn.parameters())
    assert longer(windows("ecg", (2, 1, 1000))).shape[1] == longer.token_shape(6)[0]

"""What is particular to one model: its position table, its scalogram, its blocks."""

import numpy as np
import pytest
import torch
from fill import GOLDEN, samples, windows
from torch.nn import functional as F

from biox.backbones import build
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
        found, weights = block(h), torch.randn_like(released)
        torch.testing.assert_close(found, released)
        grads = [torch.autograd.grad((y * weights).sum(), h)[0] for y in (found, released)]
        torch.testing.assert_close(*grads)


def test_plain_cnn_block_is_two_convolutions_beside_a_mean_of_neighbours():
    """Layer 2, whose channels double, written out with functions."""
    torch.manual_seed(0)
    plain_cnn = build("plain_cnn", "tiny", seconds=7.1).requires_grad_(False)
    for module in plain_cnn.modules():  # statistics and scales that make a difference
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.copy_(0.1 * windows("mean", module.running_mean.shape))
            module.running_var.copy_(1 + windows("variance", module.running_var.shape).abs())
            module.bias.copy_(0.1 * windows("bias", module.bias.shape))
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

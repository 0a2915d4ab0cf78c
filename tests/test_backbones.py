"""The interface of the backbones, on tiny models, and what enters NormWear."""

import numpy as np
import pytest
import torch
from fill import GOLDEN, samples, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from biox.backbones import BACKBONES, build, load, save
from biox.backbones.papagei import BasicBlock
from biox.backbones.wavelet import RickerScalogram

NAMES = sorted(BACKBONES)


def test_normwear_position_table_is_the_released_one():
    golden = np.load(GOLDEN / "normwear_pos_embed.npz")
    table = build("normwear").pos_embed
    assert list(table.shape) == golden["shape"].tolist()
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


def test_normwear_takes_windows_or_their_scalograms():
    backbone = build("normwear", "tiny", n_channels=2, seconds=2)
    x = windows("emg", (3, 2, 260))
    ready = RickerScalogram(260)(x)
    assert ready.shape == (3, 2, 3, 258, 65)
    torch.testing.assert_close(backbone.stem(ready), backbone.stem(x))
    with pytest.raises(ValueError, match=r"expected scalograms \[batch, 2, 3, 258, 65\]"):
        backbone.stem(ready[:, :1])


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return {name: build(name, "tiny") for name in NAMES}


def some_windows(backbone, batch=2):
    spec = backbone.input_spec
    return windows(spec.modality, (batch, spec.channels, spec.samples))


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
@torch.no_grad()
def test_token_shapes_are_those_of_the_hidden_states(tiny, name):
    backbone = tiny[name]
    assert not backbone.training
    states = backbone.hidden_states(some_windows(backbone))
    shapes = [backbone.token_shape(layer) for layer in range(backbone.n_layers + 1)]
    assert shapes == [tuple(h.shape[1:]) for h in states]
    assert backbone.pool(states[-1]).shape == (2, shapes[-1][1])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_windows_of_a_batch_do_not_touch_each_other(tiny, name):
    x = some_windows(tiny[name], batch=3)
    torch.testing.assert_close(tiny[name](x)[1:2], tiny[name](x[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_input_of_the_tail_only(tiny, name):
    backbone = tiny[name]
    parameters = list(backbone.parameters())
    for p in parameters:
        p.requires_grad_(False)
    try:
        with torch.no_grad():
            h = backbone.run(backbone.stem(some_windows(backbone)), 0, 1)
        h.requires_grad_()
        out = backbone.run(h, 1, backbone.n_layers)
        # The plain mean would not do: after a LayerNorm it does not depend on h.
        (out * windows("weights", out.shape)).sum().backward()
        assert torch.isfinite(h.grad).all() and h.grad.abs().amax(dim=(0, 2)).min() > 0
        assert all(p.grad is None for p in parameters)
    finally:
        for p in parameters:
            p.requires_grad_(True)


TRAINED = {"labram": 3, "normwear": 3, "ecg_fm": 3, "cbramod": 3}  # seconds


@pytest.mark.parametrize("name", NAMES)
def test_training_from_scratch_lowers_the_loss(name):
    torch.manual_seed(0)
    backbone = build(name, "tiny", seconds=TRAINED.get(name, 30))
    spec = backbone.input_spec
    # Two classes of noise: white, and smooth.
    x = windows("noise", (16, spec.channels, spec.samples))
    x[8:] = x[8:].cumsum(-1) / 10
    y = torch.arange(16) // 8
    head = torch.nn.Linear(backbone.token_shape(backbone.n_layers)[1], 2)
    optimiser = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=1e-3)
    backbone.train()
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(head(backbone.pool(backbone(x))), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    unused = [key for key, p in backbone.named_parameters() if p.grad is None]
    assert all(key.startswith("basicblock_list.0.bn1.") for key in unused)


@pytest.mark.parametrize(
    "name, seconds",
    [("labram", 3), ("hubert_ecg", 30), ("papagei", 30), ("ecg_fm", 5), ("cbramod", 4)],
)
def test_same_weights_serve_another_window_length(tmp_path, tiny, name, seconds):
    save(tiny[name], tmp_path / "weights.safetensors")
    short = build(name, "tiny", checkpoint=tmp_path / "weights.safetensors", seconds=seconds)
    assert short.token_shape(0)[0] < tiny[name].token_shape(0)[0]
    assert torch.isfinite(short(some_windows(short))).all()


def test_same_labram_weights_serve_other_electrodes(tmp_path, tiny):
    save(tiny["labram"], tmp_path / "weights.safetensors")
    one = build("labram", "tiny", checkpoint=tmp_path / "weights.safetensors", n_channels=1)
    assert one.token_shape(0) == (1 + 30, 100)


@torch.no_grad()
def test_electrodes_and_seconds_sit_where_the_order_says():
    backbone = build("labram", "tiny", seconds=4)
    x = torch.zeros(1, 6, 800)
    x[0, 2, 200:400] = windows("patch", (200,))  # electrode 2, second 1
    silent = backbone.stem(torch.zeros_like(x))
    moved = (backbone.stem(x) - silent).abs().sum(-1)[0]
    assert moved.argmax() == 1 + 2 * 4 + 1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_survive_a_round_trip(tmp_path, tiny, name):
    save(tiny[name], tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    other = build(name, "tiny")
    x = some_windows(other)
    assert not torch.allclose(other(x), tiny[name](x), atol=1e-3)
    load(other, tmp_path / "weights.safetensors")
    torch.testing.assert_close(other(x), tiny[name](x), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_files_that_do_not_fit_are_refused(tmp_path, tiny):
    path = tmp_path / "weights.safetensors"
    save(tiny["labram"], path)
    before = {key: value.clone() for key, value in tiny["hubert_ecg"].state_dict().items()}
    with pytest.raises(
        ValueError, match=r"weights.safetensors: blocks.*expected no such key.*tiny"
    ):
        load(tiny["hubert_ecg"], path)
    torch.testing.assert_close(tiny["hubert_ecg"].state_dict(), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"blocks.*: expected .*\[200\], found .*\[100\].*tiny"):
        build("labram", "base", checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="weights.safetensors: expected a whole safetensors file"):
        build("labram", "tiny", checkpoint=path)
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        build("labram", "tiny", checkpoint=tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_windows_that_do_not_fit_are_refused(tiny, name):
    x = some_windows(tiny[name])
    wrong = {
        "channels": x.repeat(1, 2, 1),
        "short": x[..., :-1],
        "long": torch.cat([x, x], dim=-1),
        "rank": x[0],
        "integers": x.long(),
    }
    for bad in wrong.values():
        with pytest.raises(ValueError, match=r"expected floating-point windows \[batch, "):
            tiny[name].stem(bad)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("labrum",), r"expected one of \['cbramod', 'ecg_fm', 'hubert_ecg'.*found 'labrum'"),
        (("papagei",), r"papagei: expected a size of \['small', 'tiny'\], found 'base'"),
        (("labram", "small"), r"labram: expected a size of \['base', 'tiny'\], found 'small'"),
        (("hubert_ecg", "tiny", None, 12), "n_channels: expected 1.*found 12"),
        (("papagei", "tiny", None, 2), "n_channels: expected 1.*found 2"),
        (("ecg_fm", "tiny", None, 2), "n_channels: expected 1 or 12 leads for ecg_fm, found 2"),
        (("ecg_fm", "tiny", None, 12, 0.03), "ecg_fm: expected windows of at least 16 .* found 15"),
        (
            ("cbramod", "tiny", None, 1, 2.5),
            "cbramod: expected windows of whole patches, 1 s each, found 2.5",
        ),
        (("labram", "tiny", None, 0), "found 0 channels of 30 s"),
        (
            ("labram", "tiny", None, 6, 2.5),
            "labram: expected windows of whole patches, 1 s each, found 2.5",
        ),
        (("papagei", "tiny", None, 1, 0), "found 1 channels of 0 s"),
        (("hubert_ecg", "tiny", None, 1, 0.5), "expected windows of at least .* found 50"),
        (("normwear", "tiny", None, 3, 0.05), "expected windows of at least 11 samples.*found 6"),
    ],
)
def test_models_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments)


def test_hubert_asks_for_no_more_samples_than_it_needs():
    from biox.backbones.hubert_ecg import CONV_KERNELS, CONV_STRIDES

    samples = 1
    for kernel, stride in zip(reversed(CONV_KERNELS), reversed(CONV_STRIDES), strict=True):
        samples = (samples - 1) * stride + kernel
    assert build("hubert_ecg", "tiny", seconds=samples / 100).token_shape(0)[0] == 1
    with pytest.raises(ValueError, match=f"at least {samples} samples"):
        build("hubert_ecg", "tiny", seconds=(samples - 1) / 100)


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

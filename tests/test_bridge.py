"""The bridge against the published code's numbers, closed forms and its own promises."""

import numpy as np
import pytest
import torch
from fill import GOLDEN, normals, samples, weight
from torch import nn
from toy import toy_models

from biox.backbones import build
from biox.bridge import BridgedModel, PrototypeBridge

# d_m r + r N_l N_p + N_p d_l of the six released bridges.
PUBLISHED = {
    "isruc_eeg2ecg": 1_813_984,
    "isruc_ecg2eeg": 140_000,
    "fog_eeg2emg": 1_209_408,
    "fog_emg2eeg": 712_000,
    "wesad_ecg2ppg": 188_912,
    "wesad_ppg2ecg": 398_784,
}
SIZES = ("in_features", "out_features", "n_tokens", "rank", "n_prototypes")


def assert_close(found, golden):
    """Compare to float32 precision: a value near zero is a sum of terms as large as the largest."""
    np.testing.assert_allclose(found, golden, rtol=1e-5, atol=2e-6 * np.abs(golden).max())


def golden_bridge(golden, reshaped=False):
    """Golden weights: A by the recipe of all weights, B small, prototypes standard normal."""
    bridge = PrototypeBridge(*(int(golden[size]) for size in SIZES), reshaped)
    with torch.no_grad():
        bridge.A.copy_(weight("A", bridge.A.shape))
        bridge.B.copy_(0.02 * normals("B", bridge.B.shape))
        bridge.prototypes.copy_(normals("prototypes", bridge.prototypes.shape))
    return bridge


@pytest.mark.parametrize("direction", PUBLISHED)
def test_output_and_size_are_the_published_ones(direction):
    golden = np.load(GOLDEN / f"bridge_{direction}.npz")
    bridge = golden_bridge(golden)
    out = bridge(torch.from_numpy(golden["bridge_in"])).transpose(1, 2).contiguous().detach()
    assert list(out.shape) == golden["bridge_out_shape"].tolist()
    assert_close(samples(out), golden["bridge_out_sample"])
    means = golden["bridge_out_mean_tokens"]
    np.testing.assert_allclose(out.mean(2).numpy(), means, rtol=1e-4, atol=1e-5)
    assert bridge.n_parameters == int(golden["n_parameters"]) == PUBLISHED[direction]


@pytest.mark.parametrize("direction", ["fog_eeg2emg", "isruc_eeg2ecg"])
def test_released_layout_writes_what_the_released_code_writes_into_labram(direction):
    golden = np.load(GOLDEN / f"bridge_{direction}.npz")
    written = {}
    for reshaped in (False, True):
        bridge = golden_bridge(golden, reshaped)
        written[reshaped] = bridge(torch.from_numpy(golden["bridge_in"])).detach().contiguous()
    assert list(written[True].shape) == golden["injected_shape"].tolist()
    assert_close(samples(written[True]), golden["injected_sample"])
    assert np.abs(samples(written[False]) - golden["injected_sample"]).max() > 0.1


def test_prototypes_are_tokens_of_the_old_model_and_the_seed_decides():
    tokens = torch.randn(20, 12)
    bridge, same, other = (
        PrototypeBridge.initial(7, 12, 5, 3, 4, seed=s, tokens=tokens) for s in (0, 0, 1)
    )
    rows = {tuple(row.tolist()) for row in tokens}
    assert {tuple(p.tolist()) for p in bridge.prototypes.T} <= rows
    assert len(torch.unique(bridge.prototypes, dim=1).T) == 4
    assert torch.equal(bridge.prototypes, same.prototypes) and torch.equal(bridge.A, same.A)
    assert not torch.equal(bridge.prototypes, other.prototypes)
    few = PrototypeBridge.initial(7, 12, 5, 3, 4, seed=0, tokens=tokens[:2])  # some twice
    assert len(torch.unique(few.prototypes, dim=1).T) <= 2
    before = torch.get_rng_state()
    PrototypeBridge.initial(7, 12, 5, 3, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not bridge(torch.randn(6, 7)).any()  # B starts at zero


@pytest.fixture(scope="module")
def parts():
    return toy_models()


def bridged(parts, m=2, l=1, reshaped=False):
    new, old, head = parts
    n_l, d_l = old.token_shape(l)
    bridge = PrototypeBridge(new.token_shape(m + 1)[1], d_l, n_l, 4, 6, reshaped)
    nn.init.normal_(bridge.B, std=0.1)
    return BridgedModel(new, old, bridge, head, m, l)


def test_bridged_model_is_the_chain_of_its_parts(parts):
    model, (new, old, head) = bridged(parts), parts
    x = torch.randn(3, 1, new.input_spec.samples)
    pooled = new.hidden_states(x)[3].mean(1)  # output of layer 2
    h = old.run(model.bridge(pooled), 1, old.n_layers)
    torch.testing.assert_close(model(x), head(h.mean(1)))


def test_only_the_bridge_trains(parts):
    model = bridged(parts).train()
    assert not model.new.training and not model.old.training
    model(torch.randn(2, 1, model.new.input_spec.samples)).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"bridge.A", "bridge.B", "bridge.prototypes"}


@pytest.mark.parametrize("reshaped", [False, True])
def test_saves_and_loads(parts, tmp_path, reshaped):
    model = bridged(parts, reshaped=reshaped)
    model.save(tmp_path / "seed-0")
    again = BridgedModel.load(tmp_path / "seed-0", *parts)
    x = torch.randn(2, 1, model.new.input_spec.samples)
    torch.testing.assert_close(again(x), model(x))
    assert (again.m, again.l, again.bridge.reshaped) == (2, 1, reshaped)


def test_refuses_what_is_no_bridge_for_these_models(parts, tmp_path):
    bridged(parts).save(tmp_path)
    other = build("hubert_ecg", "tiny", seconds=20)
    with pytest.raises(ValueError, match=r"bridge.safetensors.*expected .* for these backbones"):
        BridgedModel.load(tmp_path, parts[0], other, parts[2])
    path = tmp_path / "bridge.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        BridgedModel.load(tmp_path, *parts)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="expected a bridge"):
        BridgedModel.load(tmp_path, *parts)
    with pytest.raises(ValueError, match=r"m in 0..7, l in 0..3"):
        BridgedModel(*parts[:2], bridged(parts).bridge, parts[2], 9, 0)

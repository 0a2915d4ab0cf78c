"""The bridge against the published code's numbers, closed forms and its own promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fill import normals, samples, weight
from torch import nn

from biox.backbones import build
from biox.bridge import BridgedModel, PrototypeBridge

GOLDEN = sorted((Path(__file__).parent / "golden").glob("bridge_*.npz"))
# d_m r + r N_l N_p + N_p d_l, as printed in section 9 of our notes on the released code.
PUBLISHED = {
    "isruc_eeg2ecg": 1_813_984,
    "isruc_ecg2eeg": 140_000,
    "fog_eeg2emg": 1_209_408,
    "fog_emg2eeg": 712_000,
    "wesad_ecg2ppg": 188_912,
    "wesad_ppg2ecg": 398_784,
}


def filled(bridge):
    """Golden weights: A by the recipe of all weights, B small, prototypes standard normal."""
    with torch.no_grad():
        bridge.A.copy_(weight("A", bridge.A.shape))
        bridge.B.copy_(0.02 * normals("B", bridge.B.shape))
        bridge.prototypes.copy_(normals("prototypes", bridge.prototypes.shape))
    return bridge


def test_there_is_a_golden_file_for_each_direction():
    assert {path.stem.removeprefix("bridge_") for path in GOLDEN} == set(PUBLISHED)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_output_is_the_published_one(path):
    golden = np.load(path)
    sizes = ("in_features", "out_features", "n_tokens", "rank", "n_prototypes")
    bridge = filled(PrototypeBridge(*(int(golden[size]) for size in sizes)))
    out = bridge(torch.from_numpy(golden["bridge_in"])).transpose(1, 2).contiguous()
    assert list(out.shape) == golden["bridge_out_shape"].tolist()
    np.testing.assert_allclose(
        samples(out.detach()), golden["bridge_out_sample"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        out.mean(2).detach().numpy(), golden["bridge_out_mean_tokens"], rtol=1e-4, atol=1e-6
    )
    assert bridge.n_parameters == int(golden["n_parameters"])


def test_published_parameter_counts_differ_by_direction():
    counts = {p.stem.removeprefix("bridge_"): int(np.load(p)["n_parameters"]) for p in GOLDEN}
    assert {name: counts[name] for name in PUBLISHED} == PUBLISHED


def test_every_token_is_a_combination_of_prototypes():
    torch.manual_seed(0)
    bridge = PrototypeBridge(7, 12, 5, rank=3, n_prototypes=4)
    nn.init.normal_(bridge.B)
    tokens = bridge(torch.randn(6, 7)).flatten(0, 1).T  # [d_l, any]
    both = torch.cat([bridge.prototypes, tokens], dim=1)
    assert torch.linalg.matrix_rank(both) == torch.linalg.matrix_rank(bridge.prototypes) == 4


def test_starts_at_zero_whatever_the_input():
    assert not PrototypeBridge(7, 12, 5, 3, 4)(torch.randn(6, 7)).any()


def test_prototypes_are_tokens_of_the_old_model():
    bridge, tokens = PrototypeBridge(7, 12, 5, 3, 4), torch.randn(20, 12)
    bridge.set_prototypes(tokens)
    rows = {tuple(row.tolist()) for row in tokens}
    assert {tuple(p.tolist()) for p in bridge.prototypes.T} <= rows
    assert len(torch.unique(bridge.prototypes, dim=1).T) == 4
    bridge.set_prototypes(tokens[:2])  # fewer tokens than prototypes: some twice
    with pytest.raises(ValueError, match=r"tokens \[any, 12\]"):
        bridge.set_prototypes(torch.randn(20, 11))


@pytest.mark.parametrize("size", ["rank", "n_prototypes", "n_tokens"])
def test_refuses_empty_sizes(size):
    sizes = dict(in_features=3, out_features=3, n_tokens=3, rank=3, n_prototypes=3) | {size: 0}
    with pytest.raises(ValueError, match=size):
        PrototypeBridge(**sizes)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    new = build("papagei", "tiny", seconds=10)
    old = build("hubert_ecg", "tiny", seconds=10)
    return new, old, nn.Linear(old.token_shape(old.n_layers)[1], 3)


def bridged(parts, m=2, l=1):
    new, old, head = parts
    bridge = PrototypeBridge(
        new.token_shape(m + 1)[1], old.token_shape(l)[1], old.token_shape(l)[0], 4, 6
    )
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


def test_saves_and_loads(parts, tmp_path):
    model = bridged(parts)
    model.save(tmp_path)
    again = BridgedModel.load(tmp_path, *parts)
    x = torch.randn(2, 1, model.new.input_spec.samples)
    torch.testing.assert_close(again(x), model(x))
    assert (again.m, again.l) == (2, 1)


def test_refuses_what_is_no_bridge_for_these_models(parts, tmp_path):
    bridged(parts).save(tmp_path)
    other = build("hubert_ecg", "tiny", seconds=20)
    with pytest.raises(ValueError, match="bridge.safetensors.*expected .* for these backbones"):
        BridgedModel.load(tmp_path, parts[0], other, parts[2])
    path = tmp_path / "bridge.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        BridgedModel.load(tmp_path, *parts)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="weights of a bridge"):
        BridgedModel.load(tmp_path, *parts)
    with pytest.raises(ValueError, match="m in 0..7, l in 0..3"):
        BridgedModel(*parts[:2], bridged(parts).bridge, parts[2], 9, 0)

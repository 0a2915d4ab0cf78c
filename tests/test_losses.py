# ruff: noqa: F811 (fixtures of test_training are parameters here)
"""Losses in closed form, what is aligned where, and the released code's layout for LaBraM."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fill import GOLDEN, normals, samples, weight
from test_training import cached, models  # noqa: F401 (fixtures)
from torch import nn

from biox.backbones import build
from biox.bridge import BridgedModel, PrototypeBridge
from biox.config import load_settings
from biox.losses import LOSSES, Objective, infonce_loss, mae_loss
from biox.training import train_seeds

ROOT = GOLDEN.parent.parent
TINY = replace(
    load_settings(ROOT / "params.yaml").bridge, rank=4, n_prototypes=6, lr=1e-2, epochs=2, batch=8
)


def test_mae_in_closed_form():
    x, y = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[0.0, 4.0]], [[3.0, 5.0]]])
    assert mae_loss(x, y).item() == pytest.approx((1 + 2 + 0 + 1) / 4)


def test_infonce_of_orthogonal_windows_in_closed_form():
    """Own cosine 1, all others 0: -log of e^(1/T) / (e^(1/T) + n - 1)."""
    x = 3.0 * torch.eye(4).view(4, 2, 2)
    for temperature in (0.1, 0.5, 2.0):
        own = np.exp(1 / temperature)
        expected = -np.log(own / (own + 3))
        assert infonce_loss(x, 7 * x, temperature).item() == pytest.approx(expected, abs=1e-6)
    shifted = x.roll(1, dims=0)  # now another window's target fits
    assert infonce_loss(x, shifted, 0.1).item() == pytest.approx(10, abs=1e-3)


def test_infonce_takes_other_windows_of_the_batch_as_wrong_answers():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    cosines = torch.tensor(
        [[nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) for b in y] for a in x]
    )
    expected = torch.stack([cosines[i].div(0.3).softmax(0)[i] for i in range(5)]).log().mean()
    assert infonce_loss(x, y, 0.3).item() == pytest.approx(-expected.item(), rel=1e-5)


def bridged(models, cached, reshaped=False):
    new, old, head = models
    n_tokens, width = old.token_shape(2)
    bridge = PrototypeBridge(cached.new[5].shape[1], width, n_tokens, 4, 6, reshaped)
    nn.init.normal_(bridge.B, std=0.1)
    return BridgedModel(new, old, bridge, head, 5, 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_alignment_at_the_input_leaves_out_the_tail(models, cached, loss):
    model, pooled = bridged(models, cached), cached.new[5][:4]
    target = torch.randn(4, *model.old.token_shape(2))
    found = Objective(loss, "input", 0.1)(model, pooled, target)
    torch.testing.assert_close(found, LOSSES[loss](model.bridge(pooled), target))
    found = Objective(loss, "last", 0.1)(model, pooled, cached.last[:4])
    torch.testing.assert_close(found, LOSSES[loss](model.last_layer(pooled), cached.last[:4]))


@pytest.mark.parametrize("changes", [{"loss": "mae"}, {"loss": "infonce"}, {"align": "input"}])
def test_settings_decide_what_is_trained(models, cached, changes):
    parts = dict.fromkeys(("pair", "val", "test"), cached)
    targets = {s: torch.randn(24, *models[1].token_shape(2)) for s in ("pair", "val")}

    def bridge_of(settings):
        (result,) = train_seeds(*models, parts, 5, 2, settings, [0], targets=targets)
        assert -1 <= result.cosine <= 1  # always that of last layers
        return result.model.bridge.B

    assert not torch.equal(bridge_of(TINY), bridge_of(replace(TINY, **changes)))


def test_alignment_at_the_input_needs_its_targets(models, cached):
    parts = dict.fromkeys(("pair", "val", "test"), cached)
    with pytest.raises(ValueError, match=r"targets of pair and val for align: input, found \[\]"):
        train_seeds(*models, parts, 5, 2, replace(TINY, align="input"), [0])


@pytest.mark.parametrize("direction", ["fog_eeg2emg", "isruc_eeg2ecg"])
def test_released_layout_injects_what_the_released_code_injects(direction):
    golden = np.load(GOLDEN / f"bridge_{direction}.npz")
    names = ("in_features", "out_features", "n_tokens", "rank", "n_prototypes")
    injected = {}
    for reshaped in (False, True):
        bridge = released_start(PrototypeBridge(*(int(golden[n]) for n in names), reshaped))
        injected[reshaped] = bridge(torch.from_numpy(golden["bridge_in"])).detach()
    assert list(injected[True].shape) == golden["injected_shape"].tolist()
    np.testing.assert_allclose(
        samples(injected[True].contiguous()), golden["injected_sample"], rtol=1e-5, atol=1e-6
    )
    assert np.abs(samples(injected[False].contiguous()) - golden["injected_sample"]).max() > 0.1


def released_start(bridge):
    with torch.no_grad():
        bridge.A.copy_(weight("A", bridge.A.shape))
        bridge.B.copy_(0.02 * normals("B", bridge.B.shape))
        bridge.prototypes.copy_(normals("prototypes", bridge.prototypes.shape))
    return bridge


def test_released_layout_is_for_labram_alone_and_is_saved(models, cached, tmp_path):
    parts = dict.fromkeys(("pair", "val", "test"), cached)
    settings = replace(TINY, layout="released", epochs=1)
    (result,) = train_seeds(*models, parts, 5, 2, settings, [0])
    assert not result.model.bridge.reshaped  # HuBERT-ECG is the old model here
    model = bridged(models, cached, reshaped=True)
    model.save(tmp_path)
    again = BridgedModel.load(tmp_path, *models)
    torch.testing.assert_close(again.classify(cached.new[5]), model.classify(cached.new[5]))
    assert again.bridge.reshaped


def test_released_layout_reaches_labram(cached):
    torch.manual_seed(0)
    old = build("labram", "tiny", seconds=3)
    n_tokens, width = old.token_shape(4)
    fake = replace(
        cached,
        last=torch.randn(24, n_tokens, width),
        tokens=tuple(torch.randn(50, width) for _ in range(4)),
    )
    parts = dict.fromkeys(("pair", "val", "test"), fake)
    model = (old, old, nn.Linear(width, 2))
    for layout in ("tokens", "released"):
        settings = replace(TINY, layout=layout, epochs=1)
        (result,) = train_seeds(*model, parts, 3, 2, settings, [0])
        assert result.model.bridge.reshaped == (layout == "released")

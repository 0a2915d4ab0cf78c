"""Cached training against the online procedure, against the golden losses, and on a toy problem."""

import numpy as np
import pytest
import torch
from torch import nn

from biox.activations import (
    Activations,
    compute_activations,
    flattened_states,
    layer_input,
)
from biox.agreement import best_epoch
from biox.backbones import build
from biox.bridge import BridgedModel
from biox.cka import linear_cka
from biox.data.windows import Windows
from biox.losses import cosine_loss
from biox.training import Pairs, fit_bridge, initial_bridge, mean_loss, predict


def toy_windows(n=24, seed=0):
    """PPG and ECG that share a slow rhythm whose rate is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    t = [np.arange(1250) / 125, np.arange(1000) / 100]
    waves = [np.sin(2 * np.pi * (1 + labels[:, None]) * s + rng.uniform(0, 6, (n, 1))) for s in t]
    signals = {
        name: (w + 0.2 * rng.normal(size=w.shape))[:, None].astype(np.float32)
        for name, w in zip(("ppg", "ecg"), waves, strict=True)
    }
    return Windows(
        signals=signals,
        rates={"ppg": 125.0, "ecg": 100.0},
        units={"ppg": "z-score", "ecg": "z-score"},
        channels={"ppg": ("PPG",), "ecg": ("ECG",)},
        labels=labels.astype(np.int64),
        subjects=np.array([f"p{i % 4}" for i in range(n)]),
        recordings=np.array([f"p{i % 4}" for i in range(n)]),
        starts=np.arange(n, dtype=float),
        classes=("slow", "fast"),
        source="toy",
    )


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    new = build("papagei", "tiny", seconds=10)
    old = build("hubert_ecg", "tiny", seconds=10)
    return new, old, nn.Linear(old.token_shape(old.n_layers)[1], 2)


@pytest.fixture(scope="module")
def cached(models):
    return compute_activations(toy_windows(), *models, batch=7)


def test_cache_holds_what_the_models_compute(models, cached):
    new, old, head = models
    windows = toy_windows()
    ppg, ecg = (torch.from_numpy(windows.signals[name]) for name in ("ppg", "ecg"))
    with torch.no_grad():
        states = old.hidden_states(ecg)
        for found, h in zip(cached.new, new.hidden_states(ppg)[1:], strict=True):
            torch.testing.assert_close(found, h.mean(1), rtol=1e-4, atol=1e-5)
        for found, h in zip((*cached.old, cached.pooled_last), states, strict=True):
            torch.testing.assert_close(found, h.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cached.last, states[-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cached.logits, head(states[-1].mean(1)), rtol=1e-4, atol=1e-5)
    rows = {tuple(r) for r in states[1].flatten(0, 1).numpy().round(3).tolist()}
    kept = {tuple(r) for r in cached.tokens[1].numpy().round(3).tolist()}
    assert len(kept & rows) > 0.9 * len(kept)  # rounding may split a few


def test_layer_inputs_and_flattened_states_are_those_of_the_models(models):
    old = models[1]
    x = torch.from_numpy(toy_windows().signals["ecg"])
    with torch.no_grad():
        states = old.hidden_states(x)
    torch.testing.assert_close(layer_input(old, x, 2, batch=7), states[2], rtol=1e-4, atol=1e-5)
    flat = flattened_states(old, x, batch=7)
    assert [h.shape for h in flat] == [(24, 24)] * len(states)  # far fewer than tokens x features
    for debiased in (False, True):
        whole = [h.flatten(1).double().numpy() for h in (states[1], states[4])]
        expected = linear_cka(*whole, debiased)
        assert linear_cka(flat[1], flat[4], debiased) == pytest.approx(expected, abs=1e-4)


def test_cache_survives_the_disk(cached, tmp_path):
    path = tmp_path / "pair.safetensors"
    cached.save(path)
    again = Activations.load(path)
    torch.testing.assert_close(again.last[:], cached.last)
    torch.testing.assert_close(again.tokens[2], cached.tokens[2])
    assert again.subjects.tolist() == cached.subjects.tolist() and again.source == "toy"
    before = path.read_bytes()
    cached.save(path)
    assert path.read_bytes() == before
    path.write_bytes(before[:5000])
    with pytest.raises(ValueError, match="truncated"):
        Activations.load(path)


def test_activations_that_are_not_finite_name_the_layer(models):
    windows = toy_windows(4)
    broken = build("papagei", "tiny", seconds=10)
    with torch.no_grad():
        broken.basicblock_list[3].conv2.conv.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="PaPaGei.*output of layer 3"):
        compute_activations(windows, broken, *models[1:])


def make_model(models, cached, seed=0, m=5, l=2):
    new, old, head = models
    bridge = initial_bridge(
        cached.new[m].shape[1], old.token_shape(l), 8, 10, seed, tokens=cached.tokens[l]
    )
    return BridgedModel(new, old, bridge, head, m, l)


def test_cached_training_is_the_online_procedure(models, cached):
    """Same losses as running both foundation models in every step (algorithm 1)."""
    model, lr, batch = make_model(models, cached), 1e-2, 8
    pairs = Pairs(cached.new[model.m], cached.last)
    fit = fit_bridge(model, pairs, pairs, lr, epochs=3, batch=batch, seed=5)

    online = make_model(models, cached)
    windows = toy_windows()
    ppg, ecg = (torch.from_numpy(windows.signals[name]) for name in ("ppg", "ecg"))
    optimizer = torch.optim.Adam(online.bridge.parameters(), lr=lr)
    generator, losses = torch.Generator().manual_seed(5), []
    for _ in range(3):
        total = 0.0
        for rows in torch.randperm(len(windows), generator=generator).split(batch):
            with torch.no_grad():
                target = online.old(ecg[rows])
            bridged = online.last_layer(online.pooled(ppg[rows]))
            loss = nn.CosineEmbeddingLoss()(
                bridged.flatten(1), target.flatten(1), torch.ones(len(rows))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(windows))
    np.testing.assert_allclose(fit.train_loss[1:], losses, rtol=1e-4)


def test_loss_falls_and_the_best_epoch_is_kept(models, cached):
    model = make_model(models, cached)
    pairs = Pairs(cached.new[model.m], cached.last)
    fit = fit_bridge(model, pairs, pairs, 1e-2, epochs=8, batch=8)
    assert fit.train_loss[-1] < 0.7 * fit.train_loss[0]
    assert fit.best_epoch == best_epoch(fit.val_agreement, fit.val_loss)
    assert mean_loss(model, pairs) == pytest.approx(fit.val_loss[fit.best_epoch], rel=1e-5)


def test_a_watcher_sees_every_epoch_and_changes_nothing(models, cached):
    pairs, seen = Pairs(cached.new[5], cached.last), []
    fits = []
    for watch in (None, lambda epoch, model: seen.append((epoch, mean_loss(model, pairs)))):
        model = make_model(models, cached)
        fits.append(fit_bridge(model, pairs, pairs, 1e-2, epochs=3, batch=8, watch=watch))
    assert fits[0] == fits[1]
    assert seen == [(i, pytest.approx(fits[1].val_loss[i])) for i in (1, 2, 3)]


def test_seed_decides_everything(models, cached):
    pairs = Pairs(cached.new[5], cached.last)

    def run(seed):
        torch.rand(seed + 1)  # the global generator must not matter
        model = make_model(models, cached, seed)
        fit = fit_bridge(model, pairs, pairs, 1e-2, epochs=2, batch=8, seed=seed)
        return fit, predict(model, pairs.pooled)

    (fit_a, p_a), (fit_b, p_b), (fit_c, _) = run(0), run(0), run(1)
    assert fit_a == fit_b and torch.equal(p_a, p_b) and fit_a != fit_c


def test_cosine_loss_in_closed_form():
    x = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    y = torch.tensor([[[4.0, 0.0], [0.0, 3.0]]])
    assert cosine_loss(x, x).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(x, -7 * x).item() == pytest.approx(2)
    assert cosine_loss(x, y).item() == pytest.approx(1 - 24 / 25)


def test_a_learning_rate_that_explodes_is_named(models, cached):
    model = make_model(models, cached)
    pairs = Pairs(cached.new[5], torch.full_like(cached.last, float("nan")))
    with pytest.raises(FloatingPointError, match="epoch 1 at learning rate 0.01"):
        fit_bridge(model, pairs, pairs, 1e-2, epochs=2)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="found 3 and 2"):
        Pairs(torch.zeros(3, 2), torch.zeros(2, 4, 5))

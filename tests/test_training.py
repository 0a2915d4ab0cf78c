"""The training loop against the online procedure; losses, selection, seeds and learning rates."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from toy import SETTINGS, noise, toy_direction, toy_root, toy_windows

from biox.activations import compute_activations, layer_input, load_direction
from biox.backbones import build
from biox.bridge import BridgedModel, PrototypeBridge
from biox.config import PATHS
from biox.metrics import Result
from biox.training import (
    LOSSES,
    Pairs,
    agreement,
    best_epoch,
    chosen_lr,
    cosine_loss,
    fit,
    infonce_loss,
    parallel,
    predict,
    run_seeds,
    share_rows,
    train_bridge,
)

SIMULATED = list(SETTINGS.directions)[:6]
CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def frozen():
    return toy_direction()


# --- losses


def test_losses_are_those_of_torch():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    cosines = nn.functional.cosine_similarity(x.flatten(1)[:, None], y.flatten(1)[None], dim=2)
    expected = {
        "cosine": nn.CosineEmbeddingLoss()(x.flatten(1), y.flatten(1), torch.ones(5)),
        "mae": nn.L1Loss()(x, y),
        "infonce": -(cosines / 0.1).log_softmax(1).diagonal().mean(),
    }
    assert set(LOSSES) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(LOSSES[name](x, y), value)
    warm = -(cosines / 2).log_softmax(1).diagonal().mean()
    torch.testing.assert_close(infonce_loss(x, y, temperature=2.0), warm)
    assert cosine_loss(0 * x, y).item() == pytest.approx(1)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    old = build("hubert_ecg", "tiny", seconds=5).double().eval().requires_grad_(False)
    n_tokens, d_l = old.token_shape(2)
    bridge = PrototypeBridge(5, d_l, n_tokens, 3, 4).double()
    nn.init.normal_(bridge.B, std=0.3)
    pooled = torch.randn(4, 5, dtype=torch.double)
    target = torch.randn(4, *old.token_shape(old.n_layers), dtype=torch.double)

    def value():
        return cosine_loss(old.run(bridge(pooled), 2, old.n_layers), target)

    value().backward()
    for parameter in bridge.parameters():
        direction, at, around = torch.randn_like(parameter), parameter.detach().clone(), []
        with torch.no_grad():
            for distance in (1e-6, -1e-6, 0.0):
                parameter.copy_(at + distance * direction)
                around.append(value().item())
        found = (parameter.grad * direction).sum().item()
        assert found == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-4, abs=1e-8)


# --- the loop


def online_losses(model, x_new, x_old, *, lr, epochs, batch_size, seed, align="last"):
    """The released procedure (algorithm 1): both foundation models run in every step."""
    new, old, bridge, head_loss = model.new, model.old, model.bridge, nn.CosineEmbeddingLoss()
    optimizer = torch.optim.Adam(bridge.parameters(), lr=lr)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x_new), generator=generator).split(batch_size):
            with torch.no_grad():
                pooled = new.hidden_states(x_new[rows])[model.m + 1].mean(1)
                target = old.hidden_states(x_old[rows])[-1 if align == "last" else model.l]
            h = bridge(pooled)
            for i in range(model.l, old.n_layers if align == "last" else model.l):
                h = old.layer(i, h)
            loss = head_loss(h.flatten(1), target.flatten(1), torch.ones(len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(x_new))
    return losses


@pytest.mark.parametrize("direction", SIMULATED)
@pytest.mark.parametrize("align", ["last", "input"])
def test_losses_are_those_of_running_both_models_in_every_step(direction, align):
    torch.manual_seed(0)
    d = SETTINGS.direction(direction)
    new, old = (build(SETTINGS.backbone(k).name, "tiny", seconds=3.0) for k in (d.new, d.old))
    windows = noise({d.new: new.input_spec, d.old: old.input_spec}, n=8)
    head = nn.Linear(old.token_shape(old.n_layers)[1], 2)
    cached = compute_activations(windows, new, old, head, new_key=d.new, old_key=d.old)
    m, l = new.n_layers // 2, old.n_layers // 2
    x_new, x_old = (torch.from_numpy(windows.signals[key]) for key in (d.new, d.old))
    target = cached.last if align == "last" else layer_input(old, x_old, l)
    pairs = Pairs(cached.new[m], target)
    (n_l, d_l), d_m = old.token_shape(l), pairs.pooled.shape[1]
    options = {"lr": 1e-3, "epochs": 5, "batch_size": 3, "seed": 7, "align": align}

    def started():
        bridge = PrototypeBridge.initial(d_m, d_l, n_l, 4, 6, seed=3, tokens=cached.tokens[l])
        nn.init.normal_(bridge.B, std=0.02, generator=torch.Generator().manual_seed(0))
        return BridgedModel(new, old, bridge, head, m, l)

    found = train_bridge(started(), pairs, pairs, **options)["train"][1:]
    expected = online_losses(started(), x_new, x_old, **options)
    assert len(set(np.round(expected, 5))) == 5  # they move
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_loss_falls_and_the_epoch_that_agrees_best_is_kept(frozen):
    model, pairs = frozen.bridge(0), frozen.pairs("pair")
    history = train_bridge(model, pairs, pairs, lr=1e-2, epochs=8, batch_size=8, seed=0)
    assert history.columns.tolist() == ["epoch", "train", "val", "agreement"]
    assert history["epoch"].tolist() == list(range(9))
    assert history["train"].iloc[-1] < 0.7 * history["train"][0]
    trained = history[1:].sort_values(["agreement", "val", "epoch"], ascending=[False, True, True])
    kept = trained.iloc[0]
    assert best_epoch(history) == kept["epoch"]
    with torch.no_grad():
        loss = cosine_loss(model.last_layer(pairs.pooled), torch.from_numpy(pairs.target))
    assert loss.item() == pytest.approx(kept["val"], rel=1e-5)
    p = predict(model, pairs.pooled)
    teacher = frozen.activations["val"].pseudo_labels
    by_class = [p[teacher == c, c].mean().item() for c in (0, 1)]
    assert kept["agreement"] == pytest.approx(np.mean(by_class), rel=1e-4)


def test_predictions_and_losses_are_those_of_the_model(frozen):
    model, pairs = frozen.bridge(0), frozen.pairs("test")
    nn.init.normal_(model.bridge.B)
    x = torch.from_numpy(toy_windows().signals["ppg"])
    with torch.no_grad():
        expected, h = model(x).softmax(1), model.last_layer(pairs.pooled)
    found = predict(model, pairs.pooled, batch_size=5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    target = torch.from_numpy(pairs.target)
    for name in LOSSES:  # 24 windows are one batch
        options = {"lr": 1e-9, "epochs": 1, "batch_size": 24, "seed": 0, "loss": name}
        history = train_bridge(model, pairs, pairs, **options)
        assert history["val"][0] == pytest.approx(LOSSES[name](h, target).item(), rel=1e-5)


def test_a_loss_that_is_not_finite_names_epoch_and_learning_rate(frozen):
    pairs = frozen.pairs("pair")
    broken = Pairs(pairs.pooled, np.full_like(pairs.target, np.nan))
    for lr, learnt in ((1e-2, broken), (1e30, pairs)):
        with pytest.raises(FloatingPointError, match=r"in epoch 1 at learning rate (0.01|1e\+30)"):
            train_bridge(frozen.bridge(0), learnt, learnt, lr=lr, epochs=2, batch_size=8, seed=0)


# --- selection without labels


@given(CLASSES, st.integers(0, 2**32 - 1), st.floats(0, 1))
@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label")
def test_agreement_is_a_mean_over_classes_and_of_hard_decisions_balanced_accuracy(both, seed, p):
    decisions, teacher = np.array(both).T
    expected = balanced_accuracy_score(teacher, decisions)
    assert agreement(np.eye(4)[decisions], teacher) == pytest.approx(expected)
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(4), len(teacher))
    own = pd.Series(probabilities[np.arange(len(teacher)), teacher])
    expected = own.groupby(teacher).mean().mean()
    assert agreement(torch.from_numpy(probabilities), teacher) == pytest.approx(expected)
    constant = torch.tensor([[p, 1 - p]]).expand(100, 2)
    assert agreement(constant, torch.tensor([0] * 90 + [1] * 10)) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=9))
def test_best_epoch_agrees_most_then_loses_least_then_comes_first(rows):
    agreements, losses = np.array(rows).T / 4
    history = pd.DataFrame({"epoch": range(len(rows)), "val": losses, "agreement": agreements})
    found = best_epoch(history)
    assert found > 0  # epoch 0 is before training
    key = [(-a, v, i) for i, (a, v) in enumerate(zip(agreements, losses, strict=True)) if i]
    assert found == min(key)[2]


@given(st.integers(0, 99), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_shares_are_nested_and_drawn_from_every_subject(seed, a, b, data_seed):
    subjects = np.random.default_rng(data_seed).choice(["x", "y", "z"], 60)
    small, large = (share_rows(subjects, share, seed) for share in sorted((a, b)))
    assert set(small) <= set(large) and (np.diff(large) > 0).all()
    for subject in np.unique(subjects):
        n = (subjects == subject).sum()
        assert (subjects[small] == subject).sum() == max(1, round(min(a, b) * n))
    assert share_rows(subjects, 1.0, seed).tolist() == list(range(60))


# --- one bridge of a direction


def test_fit_trains_a_bridge_and_predicts_the_test_windows(frozen):
    result, model = fit(frozen, seed=1, lr=1e-2)
    assert (result.method, result.seed, result.lr, result.failed) == ("BioX-Bridge", 1, 1e-2, "")
    expected = predict(model, frozen.pairs("test").pooled)
    np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5)
    assert result.n_parameters == sum(p.numel() for p in model.bridge.parameters())
    assert result.best_epoch == best_epoch(result.history) and len(result.history) == 3


def test_a_bridge_of_a_share_learns_from_these_windows_alone(frozen):
    rows = share_rows(frozen.activations["pair"].subjects, 0.5, 1)
    whole, model = frozen.pairs("pair"), frozen.bridge(1)
    part = Pairs(whole.pooled[rows], whole.target[rows])
    expected = train_bridge(model, part, whole, seed=1, lr=1e-2, epochs=2, batch_size=8)
    torch.rand(1)  # the global generator changes nothing
    found = fit(frozen, seed=1, lr=1e-2, share=0.5)[0].history
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_settings_decide_what_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = SETTINGS.override("bridge", {"rank": 4, "n_prototypes": 6, "epochs": 1, "batch": 8})
    frozen = load_direction(quick, toy_root())
    changes = [{}, {"loss": "mae"}, {"loss": "infonce"}, {"align": "input"}, {"rank": 2},
               {"loss": "infonce", "temperature": 1.0}, {"prototypes": "random"}]  # fmt: skip
    found = [fit(frozen, seed=0, lr=1e-2, **change)[0].probabilities for change in changes]
    for i, a in enumerate(found):
        assert all(not np.allclose(a, b, rtol=1e-6) for b in found[:i]), changes[i]
    with pytest.raises(ValueError, match="bridge.lr: "):
        fit(frozen, seed=0, lr=-1.0)


# --- seeds and learning rates


def test_tasks_keep_their_order_and_leave_the_threads_alone():
    before = torch.get_num_threads()
    tasks = [lambda i=i: (i, torch.get_num_threads()) for i in range(6)]
    assert parallel(tasks, n_jobs=2) == [(i, 1) for i in range(6)]
    assert torch.get_num_threads() == before


COURSES = {  # learning rate -> agreement and loss on val by epoch; the best is epoch 2, 1, 2
    1e-4: ([0.9, 0.5, 0.6], [0.1, 0.9, 0.3]),
    1e-3: ([0.9, 0.7, 0.1], [0.1, 0.5, 0.8]),
    1e-2: ([0.9, 0.7, 0.7], [0.1, 0.8, 0.6]),
}


def course(asked, failing=()):
    """A method whose trainings are known."""

    def run(seed, lr):
        asked.append((seed, lr))
        if lr in failing or lr not in COURSES:
            raise FloatingPointError("bridge: expected a finite loss, found nan")
        agreements, losses = COURSES[lr]
        history = pd.DataFrame({"epoch": range(3), "val": losses, "agreement": agreements})
        p = np.full((4, 2), 0.5)
        return Result("KD", seed, p, 3, lr, history, best_epoch(history))

    return run


def test_each_method_takes_what_agrees_best_on_val_and_survives_failures():
    asked, lrs, options = [], [*COURSES, 1e-1], {"shape": (4, 2), "n_jobs": 1}
    slow = course([], failing=(1e-3, 1e-2))
    methods = {"KD": course(asked), "LoRA-KD": lambda s, lr: replace(slow(s, lr), method="LoRA-KD")}
    results, search = run_seeds(methods, lrs, [5, 6, 7], **options)
    assert [(r.method, r.lr) for r in results] == [("KD", 1e-3)] * 3 + [("LoRA-KD", 1e-4)] * 3
    assert [(r.seed, r.failed) for r in results] == [(5, ""), (6, ""), (7, "")] * 2
    assert asked == [*((5, lr) for lr in lrs), (6, 1e-3), (7, 1e-3)]  # no run twice
    assert search.groupby("method")["chosen"].sum().tolist() == [1, 1]
    search = search[search["method"] == "KD"]
    assert search["chosen"].tolist() == [False, True, False, False]  # of equals by loss
    np.testing.assert_array_equal(search["agreement"], [0.6, 0.7, 0.7, np.nan])
    np.testing.assert_array_equal(search["loss"], [0.3, 0.5, 0.6, np.nan])
    assert "found nan" in search["failed"][3] and not search["failed"][:3].any()
    asked.clear()
    run_seeds({"KD": course(asked)}, [1e-4], [0, 1], **options)  # a single rate is no search
    assert asked == [(0, 1e-4), (1, 1e-4)]


def test_a_method_that_fails_at_every_rate_has_failed_runs():
    methods, lrs = {"KD": course([], failing=COURSES)}, list(COURSES)
    results, search = run_seeds(methods, lrs, [0, 1], shape=(4, 2), n_jobs=1)
    assert [(r.method, r.seed, r.lr) for r in results] == [("KD", 0, 1e-4), ("KD", 1, 1e-4)]
    for result in results:
        assert "finite loss" in result.failed and np.isnan(result.probabilities).all()
        assert result.probabilities.shape == (4, 2) and math.isnan(result.n_parameters)
    assert search["failed"].all() and search["agreement"].isna().all()


def test_the_rate_of_a_direction_is_set_or_was_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chosen_lr(SETTINGS.override("bridge", {"lr": 0.5}), "fog-eeg2emg") == 0.5
    searched = SETTINGS.override("bridge", {"lr": None})
    with pytest.raises(FileNotFoundError, match="runs.csv: .* run bridge@fog-eeg2emg"):
        chosen_lr(searched, "fog-eeg2emg")
    path = PATHS.results("bridges", "fog-eeg2emg") / "runs.csv"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"seed": [0, 1], "lr": [3e-3, 3e-3]}).to_csv(path, index=False)
    assert chosen_lr(searched, "fog-eeg2emg") == 3e-3

"""Distillation against closed forms, torch, scikit-learn and a toy problem."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from toy import SETTINGS, toy_windows

from biox.activations import FrozenDirection, compute_activations
from biox.backbones import build
from biox.baselines import distillation
from biox.baselines.distillation import Student, contrast_loss, kd_loss
from biox.teacher import PENALTIES, choose_penalty

SECONDS = {"papagei": 10, "hubert_ecg": 10, "labram": 3, "normwear": 3}
SIZES = {"pair": 25, "val": 14, "test": 16}


def pretrained(name="papagei"):
    """A backbone with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build(name, "tiny", seconds=SECONDS.get(name, 10)).eval()


def some_input(backbone, n=3):
    spec = backbone.input_spec
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, spec.channels, spec.samples, generator=generator)


@pytest.fixture(scope="module")
def windows():
    return {split: toy_windows(n, i) for i, (split, n) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def x(windows):
    return {split: torch.from_numpy(w.signals["ppg"]) for split, w in windows.items()}


@pytest.fixture(scope="module")
def frozen(windows):
    """A direction whose teacher is right, and sure of it."""
    settings = SETTINGS.with_seeds([0, 1])
    settings = settings.model_copy(update={"device": "cpu"})
    settings = settings.override("bridge", {"epochs": 2, "batch": 8, "rank": 4, "n_prototypes": 8})
    settings = settings.override("search", {"students": [1e-3, 3e-3]})
    new, old = pretrained().requires_grad_(False), pretrained("hubert_ecg").requires_grad_(False)
    head, activations = nn.Linear(old.token_shape(old.n_layers)[1], 2), {}
    for split, w in windows.items():
        found = compute_activations(w, new, old, head, new_key="ppg", old_key="ecg")
        logits = torch.from_numpy(4.0 * np.eye(2, dtype=np.float32)[w.labels] - 2)
        activations[split] = replace(found, logits=logits)
    direction = settings.direction("wesad-ecg2ppg")
    name = "wesad-ecg2ppg"
    return FrozenDirection(settings, name, direction, new, old, head, 3, 2, activations)


def with_settings(frozen, section, **values):
    return replace(frozen, settings=frozen.settings.override(section, values))


def train(frozen, x, method="KD", budget=None, seed=0, lr=3e-3, **baselines):
    """One student, its data and its history."""
    settings = frozen.settings.override("baselines", {"patience": None} | baselines).baselines
    data = distillation.distillation_data(frozen, x)
    student = distillation.initial_student(frozen, method, budget, seed)
    data = {s: part._replace(x=student.inputs(part.x)) for s, part in data.items()}
    sizes = {"lr": lr, "epochs": frozen.settings.bridge.epochs, "batch_size": 8, "seed": seed}
    history = distillation.train_student(student, data["pair"], data["val"], settings, **sizes)
    return student, data, history


# --- losses ---------------------------------------------------------------------------------------


def test_kd_loss_is_the_scaled_divergence_of_softened_predictions():
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    p, q = (torch.distributions.Categorical(logits=z / 3) for z in (b, a))
    divergence = torch.distributions.kl_divergence(p, q).mean()
    torch.testing.assert_close(kd_loss(a, b, 3.0), 9 * divergence)


def test_contrast_loss_is_the_mean_cross_entropy_of_both_ways():
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 5)
    similar = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1
    own = torch.arange(6)
    expected = (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2
    torch.testing.assert_close(contrast_loss(a, b, 0.1), expected)


# --- students -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SECONDS, "cbramod", "ecg_fm", "plain_cnn"])
def test_lora_starts_from_the_frozen_models_output_within_its_budget(name):
    backbone, budget = pretrained(name), 6000
    x = some_input(backbone)
    with torch.no_grad():
        before = backbone(x)
    student = Student(backbone, 2, lora_budget=budget).train()
    torch.testing.assert_close(student.backbone(x), before)
    logits = student(student.inputs(x))[0]  # what is frozen below the adapters is left out
    torch.testing.assert_close(logits, student.head(before.mean(1)), rtol=1e-4, atol=1e-5)
    trained = {k for k, p in student.named_parameters() if p.requires_grad}
    assert all("lora_" in k or k.startswith("head.") for k in trained)
    adapters = student.n_parameters - sum(p.numel() for p in student.head.parameters())
    rank = next(p for k, p in student.named_parameters() if "lora_A" in k).shape[0]
    n = student.n_parameters
    assert n <= budget < n + adapters / rank
    exact, short = (Student(pretrained(name), 2, lora_budget=b).n_parameters for b in (n, n - 1))
    assert short < exact == n
    logits.square().sum().backward()
    grads = {k: p.grad for k, p in student.named_parameters()}
    assert {k for k, g in grads.items() if g is not None} == trained
    assert all(grads[k].abs().sum() > 0 for k in trained if "lora_B" in k)


def test_an_adapter_adds_b_times_a_to_the_weight():
    student = Student(pretrained("labram"), 2, lora_budget=6000)
    layer = student.backbone.get_submodule("blocks.3.mlp.fc1")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(b)
    x = torch.randn(5, a.shape[1])
    torch.testing.assert_close(layer(x) - layer.base_layer(x), x @ (b @ a).T, rtol=1e-4, atol=1e-4)


def test_a_budget_below_rank_one_adapts_the_last_layers_only():
    backbone, d = pretrained("labram"), 100
    layers = distillation.adaptable(backbone)
    assert layers[2] == [f"blocks.2.{k}" for k in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    layer = (d + 3 * d) + (d + d) + 2 * (d + 2 * d)  # rank 1 on qkv, proj, fc1, fc2
    assert distillation.lora_plan(backbone, 4 * layer)[:2] == (0, sum(layers, []))
    assert distillation.lora_plan(backbone, 3 * layer - 1) == (2, layers[2] + layers[3], 1)
    assert distillation.lora_plan(backbone, 10**9)[2] == d  # the full rank of its weights
    with pytest.raises(ValueError, match=f"at least {layer} parameters.*found {layer - 1}"):
        distillation.lora_plan(backbone, layer - 1)


# --- training -------------------------------------------------------------------------------------


def test_the_epoch_kept_agrees_best_on_val_and_the_student_is_that_of_it(frozen, x):
    four = with_settings(frozen, "bridge", epochs=4)
    student, data, history = train(four, x)
    trained = history.iloc[1:]
    best = trained.sort_values(["agreement", "val"], ascending=[False, True]).iloc[0]
    assert history["epoch"].tolist() == list(range(5)) and math.isnan(history["train"][0])
    settings = frozen.settings.baselines
    loss, agreed = distillation.evaluate(student, data["val"], settings, 8)
    assert (loss, agreed) == pytest.approx((best["val"], best["agreement"]))
    given = distillation.predict(student, data["val"].x)
    teacher = data["val"].logits.argmax(1).numpy()
    by_class = [given[teacher == c, c].mean() for c in np.unique(teacher)]
    assert agreed == pytest.approx(np.mean(by_class), rel=1e-5)
    np.testing.assert_allclose(distillation.predict(student, data["val"].x, 5), given, atol=1e-6)


def test_patience_ends_a_training_but_changes_nothing_before(frozen, x):
    eight = with_settings(frozen, "bridge", epochs=8)
    short, whole = (train(eight, x, lr=3e-2, patience=p)[2] for p in (1, None))
    n = len(short)
    assert n < len(whole) == 9
    pd.testing.assert_frame_equal(whole.iloc[:n], short)
    before, last = short.iloc[1:-1], short.iloc[-1]
    assert last["agreement"] <= before["agreement"].max() and last["val"] >= before["val"].min()


def test_students_learn_the_toy(frozen, x):
    student, data, history = train(with_settings(frozen, "bridge", epochs=6), x)
    assert history["val"][1:].min() < 0.5 * history["val"][0]
    predicted = distillation.predict(student, data["test"].x).argmax(1)
    assert (predicted == frozen.activations["test"].labels).mean() > 0.8


@pytest.mark.parametrize("method", ["KD", "KD-Contrast", "LoRA-KD"])
def test_training_is_decided_by_its_seed(method, frozen, x):
    one, budget = with_settings(frozen, "bridge", epochs=1), 6000 if method == "LoRA-KD" else None
    torch.manual_seed(99)  # what ran before must not matter
    runs = [train(one, x, method, budget, seed, lr=1e-4) for seed in (0, 0, 1)]
    assert (runs[0][0].projection is not None) == (method == "KD-Contrast")
    (first, again, other) = (distillation.predict(s, d["test"].x) for s, d, _ in runs)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_a_last_batch_of_one_window_is_left_out(frozen, x):
    data = distillation.distillation_data(frozen, x)
    pair = data["pair"]._replace(x=data["pair"].x[:5])
    student, sizes = distillation.initial_student(frozen, "KD", None, 0), []
    student.register_forward_pre_hook(
        lambda model, inputs: sizes.append(len(inputs[0])) if model.training else None
    )
    options = {"lr": 1e-3, "epochs": 2, "batch_size": 4, "seed": 0}
    distillation.train_student(student, pair, data["val"], frozen.settings.baselines, **options)
    assert sizes == [4, 4]


def test_labels_are_not_read_and_embeddings_are_standardised_as_on_pair(frozen, x):
    hidden = {s: replace(a, labels=1 - a.labels) for s, a in frozen.activations.items()}
    data = distillation.distillation_data(frozen, x)
    blind = distillation.distillation_data(replace(frozen, activations=hidden), x)
    standard = StandardScaler().fit(frozen.activations["pair"].pooled_last.numpy())
    for split, part in data.items():
        for a, b in zip(part, blind[split], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        expected = standard.transform(frozen.activations[split].pooled_last.numpy())
        np.testing.assert_allclose(part.embedding, expected, atol=1e-4)


def test_every_nth_window_of_pair(frozen, x):
    data = distillation.distillation_data(with_settings(frozen, "baselines", every=5), x)
    assert [len(data[split].x) for split in ("pair", "val", "test")] == [5, 14, 16]
    torch.testing.assert_close(data["pair"].x[1], x["pair"][5])
    torch.testing.assert_close(data["pair"].logits[1], frozen.activations["pair"].logits[5])
    np.testing.assert_allclose(data["pair"].embedding.mean(0), 0, atol=1e-5)


# --- all students ---------------------------------------------------------------------------------


def test_distil_gives_the_same_whatever_the_number_of_threads(frozen, x):
    both = with_settings(frozen, "baselines", methods=["KD", "LoRA-KD"])
    one, search = distillation.distil(both, x, n_jobs=1)
    two, _ = distillation.distil(both, x, n_jobs=2)
    assert [(r.method, r.seed) for r in one] == [(m, s) for m in ("KD", "LoRA-KD") for s in (0, 1)]
    for a, b in zip(one, two, strict=True):
        assert (a.lr, a.failed, a.best_epoch) == (b.lr, "", b.best_epoch)
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
    assert len(search) == 4  # two methods, two rates
    n_bridge = frozen.bridge(seed=0).bridge.n_parameters
    assert one[2].n_parameters <= n_bridge < one[0].n_parameters


def test_a_given_learning_rate_is_not_searched_for_and_a_wild_one_fails(frozen, x):
    wild = with_settings(frozen, "baselines", methods=["KD"], lr=1e30)
    results, search = distillation.distil(wild, x, n_jobs=1)
    assert [r.seed for r in results] == [0, 1] and len(search) == 1
    for result in results:
        assert "epoch 1 at learning rate 1e+30" in result.failed
        assert np.isnan(result.probabilities).all() and result.probabilities.shape == (16, 2)


def test_probe_transfer_is_a_logistic_regression_on_pseudo_labels(frozen):
    first, second = distillation.probe_transfer(frozen)
    pair, test = (frozen.activations[s].new[-1].numpy() for s in ("pair", "test"))
    decided = frozen.activations["pair"].logits.argmax(1).numpy()
    subjects = frozen.activations["pair"].subjects
    penalty = choose_penalty(torch.from_numpy(pair), decided, subjects)
    assert penalty in PENALTIES and (first.seed, second.seed) == (0, 1)
    scaler = StandardScaler().fit(pair)
    regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
    regression.fit(scaler.transform(pair), decided)
    expected = regression.predict_proba(scaler.transform(test))
    np.testing.assert_allclose(first.probabilities, expected, atol=1e-4)
    assert first.n_parameters == 2 * (pair.shape[1] + 1)
    one = replace(frozen.activations["pair"], logits=torch.tensor([[1.0, 0.0]]).expand(25, -1))
    unsure = replace(frozen, activations=frozen.activations | {"pair": one})
    lost = distillation.probe_transfer(unsure)
    assert "no window of pair has pseudo-labels ['fast']" in lost[0].failed

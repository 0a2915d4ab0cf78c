"""Distillation baselines against closed forms, torch, peft's promises, and a toy problem."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_training import toy_windows
from torch import nn

from biox.activations import compute_activations
from biox.agreement import best_epoch
from biox.backbones import build
from biox.baselines import summary
from biox.baselines.distillation import METHODS, contrast_loss, kd_loss, lessons_of
from biox.baselines.lora import adaptable, plan_lora
from biox.baselines.outcome import Outcome, save_outcomes
from biox.baselines.probe_transfer import probe_transfer
from biox.baselines.settings import Baselines
from biox.baselines.student_training import examine, predict, train_student
from biox.baselines.students import Student, ready
from biox.baselines.trials import Course, bridge_size, distil, train_one
from biox.config import load_settings
from biox.files import read_json
from biox.report.metrics import scores
from biox.teacher import PENALTIES, choose_penalty

ROOT = Path(__file__).parent.parent
SECONDS = {"papagei": 10, "hubert_ecg": 10, "labram": 3, "normwear": 3}
MODELS = sorted(SECONDS)


def pretrained(name="papagei"):
    """A backbone with the same weights each time; other processes can make it, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build(name, "tiny", seconds=SECONDS[name]).eval()


def some_input(backbone, n=3):
    spec = backbone.input_spec
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, spec.channels, spec.samples, generator=generator)


@pytest.fixture(scope="module")
def cached():
    """A teacher that knows the toy's answer: its head separates the classes."""
    old = pretrained("hubert_ecg")
    head = nn.Linear(old.token_shape(old.n_layers)[1], 2)
    parts = {s: toy_windows(n, i) for i, (s, n) in enumerate(SIZES.items())}
    found = {s: compute_activations(w, pretrained(), old, head) for s, w in parts.items()}
    sure = {s: torch.from_numpy(4.0 * np.eye(2, dtype=np.float32)[a.labels] - 2)
            for s, a in found.items()}  # fmt: skip
    return {s: replace(a, logits=sure[s]) for s, a in found.items()}


SIZES = {"pair": 25, "val": 14, "test": 16}


@pytest.fixture(scope="module")
def windows():
    return {s: toy_windows(n, i) for i, (s, n) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def course(cached, windows):
    lessons = lessons_of(pretrained(), cached, windows)
    return Course(pretrained, lessons, Baselines(), 3, 8, 6000, "cpu")


@pytest.fixture
def settings():
    own = load_settings(ROOT / "params.yaml").with_seeds([0, 1])
    own = own.override("bridge", {"epochs": 2, "batch": 8})
    return own.override("search", {"lr": [1e-3, 3e-3]})


# Losses


def test_kd_loss_is_the_scaled_divergence_of_softened_answers():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9) * 2, 0.0]])
    # At T = 2 the teacher says (0.9, 0.1), the student (0.5, 0.5).
    expected = 4 * (0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    p, q = (torch.distributions.Categorical(logits=x / 3) for x in (b, a))
    divergence = torch.distributions.kl_divergence(p, q).mean()
    torch.testing.assert_close(kd_loss(a, b, 3.0), 9 * divergence)
    assert kd_loss(a, a, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_kd_loss_of_a_high_temperature_compares_centred_logits():
    """Hinton et al. 2015, section 2.1: its gradient becomes (z - v) / C for centred logits."""
    torch.manual_seed(0)
    z, v = (x - x.mean(1, keepdim=True) for x in torch.randn(2, 4, 3, dtype=torch.float64))
    z.requires_grad_()
    kd_loss(z, v, 1000.0).backward()
    torch.testing.assert_close(z.grad * len(z), (z - v).detach() / 3, rtol=0, atol=2e-3)


def test_contrast_loss_is_symmetric_and_knows_its_bounds():
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 5)
    assert contrast_loss(a, b, 0.1).item() == pytest.approx(contrast_loss(b, a, 0.1).item())
    same = torch.ones(6, 5)
    assert contrast_loss(same, same, 0.1).item() == pytest.approx(math.log(6), rel=1e-5)
    assert contrast_loss(torch.eye(6), torch.eye(6), 0.01).item() == pytest.approx(0, abs=1e-5)
    similar = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1
    own = torch.arange(6)
    expected = (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2
    torch.testing.assert_close(contrast_loss(a, b, 0.1), expected)


# Students


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_all_of_a_student_that_the_answer_depends_on(name):
    student = Student.of(pretrained(name), 2, 7, seed=0).train()
    logits, embedding = student(some_input(student.backbone))
    (logits.square().sum() + embedding.square().sum()).backward()
    without = {k for k, p in student.named_parameters() if p.grad is None}
    assert without <= {f"backbone.basicblock_list.0.bn1.{k}" for k in ("weight", "bias")}
    assert student.n_parameters == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_lora_starts_from_the_frozen_models_answer_within_its_budget(name):
    backbone, budget = pretrained(name), 6000
    x = some_input(backbone)
    with torch.no_grad():
        before = backbone(x)
    student = Student.of(pretrained(name), 2, None, budget, seed=0).train()
    torch.testing.assert_close(student.backbone(x), before)
    trained = {k for k, p in student.named_parameters() if p.requires_grad}
    assert all("lora_" in k or k.startswith("head.") for k in trained)
    head = sum(p.numel() for p in student.head.parameters())
    plan = student.plan
    assert student.n_parameters == plan.n_parameters + head <= budget
    assert budget - student.n_parameters < plan.n_parameters / plan.rank  # one rank more: too much
    assert plan.n_layers == backbone.n_layers and len(plan.modules) * 2 == len(trained) - 2
    student(x)[0].square().sum().backward()
    grads = {k: p.grad for k, p in student.named_parameters()}
    assert {k for k, g in grads.items() if g is not None} == trained
    assert all(grads[k].abs().sum() > 0 for k in trained if "lora_B" in k)


def test_a_budget_below_rank_one_adapts_the_last_layers_only():
    backbone = pretrained("labram")
    layers = adaptable(backbone)
    assert layers[2] == [f"blocks.2.{k}" for k in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    d = 100
    layer = (d + 3 * d) + (d + d) + 2 * (d + 2 * d)  # rank 1 on qkv, proj, fc1, fc2
    assert plan_lora(backbone, 4 * layer).modules == tuple(sum(layers, []))
    plan = plan_lora(backbone, 3 * layer - 1)
    assert (plan.modules, plan.rank) == (tuple(layers[2] + layers[3]), 1)
    assert plan.n_parameters == 2 * layer
    assert plan_lora(backbone, 10**9).rank == d  # the full rank of its weights
    with pytest.raises(ValueError, match=f"at least {layer} parameters.*found {layer - 1}"):
        plan_lora(backbone, layer - 1)


def test_a_ready_scalogram_gives_the_same_answer_and_others_stay_windows():
    backbone = pretrained("normwear")
    x = some_input(backbone)
    assert ready(backbone, x).ndim == 5
    with torch.no_grad():
        torch.testing.assert_close(backbone(ready(backbone, x)), backbone(x))
    assert ready(pretrained(), x) is x


# Training


def test_the_epoch_kept_agrees_best_on_val_and_the_student_is_that_of_it(course):
    lessons, own = course.lessons, replace(course.settings, patience=None)
    student = course.student("KD", 0)
    how = (lessons["pair"], lessons["val"], own)
    curves = train_student(student, *how, lr=3e-3, epochs=4, batch=8, seed=0)
    assert curves.best_epoch == best_epoch(curves.val_agreement, curves.val_loss)
    assert len(curves.train_loss) == len(curves.val_loss) == 5
    loss, agreed = examine(student, lessons["val"], own, 8)
    assert loss == pytest.approx(curves.val_loss[curves.best_epoch])
    given = predict(student, lessons["val"].x)
    teacher = lessons["val"].logits.argmax(1)
    by_class = [given[teacher == c, c].mean() for c in np.unique(teacher)]
    assert agreed == pytest.approx(np.mean(by_class), rel=1e-5)
    assert agreed == curves.val_agreement[curves.best_epoch]
    # Untrained, it may be better than trained with a learning rate that destroys; never kept.
    wild = train_student(course.student("KD", 0), *how, lr=0.3, epochs=1, batch=8, seed=0)
    assert wild.val_loss[0] < wild.val_loss[1] and wild.best_epoch == 1


def test_patience_ends_a_training_but_changes_nothing_before(course):
    lessons = course.lessons
    runs = {}
    for patience in (1, None):
        own = replace(course.settings, patience=patience)
        how = (lessons["pair"], lessons["val"], own, 3e-2, 8, 8, 0)
        runs[patience] = train_student(course.student("KD", 0), *how)
    short, whole = runs[1], runs[None]
    n = len(short.val_loss)
    assert whole.val_loss[:n] == short.val_loss and n < len(whole.val_loss) == 9
    both = zip(short.val_agreement[1:], short.val_loss[1:], strict=True)
    *before, last = both
    assert last[0] <= max(a for a, _ in before) and last[1] >= min(loss for _, loss in before)


def test_students_learn_the_toy(course):
    longer = replace(course, epochs=6, settings=replace(course.settings, patience=None))
    outcome = train_one(longer, "KD", 0, 3e-3)
    assert min(outcome.val_loss[1:]) < 0.5 * outcome.val_loss[0]
    assert (outcome.probabilities.argmax(1) == toy_windows(16, 2).labels).mean() > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_training_is_decided_by_its_seed(method, course):
    course = replace(course, epochs=1)
    torch.manual_seed(99)  # what ran before must not matter
    first = train_one(course, method, 0, 1e-3)
    again, other = (train_one(course, method, seed, 1e-3) for seed in (0, 1))
    assert not first.failed and first.val_loss == again.val_loss
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    assert np.abs(first.probabilities - other.probabilities).max() > 1e-4


def test_teacher_and_labels_do_not_change_and_labels_are_not_read(cached, windows):
    """Were a label read, other labels would give other lessons."""
    blind = {s: replace(w, labels=1 - w.labels) for s, w in windows.items()}
    hidden = {s: replace(a, labels=np.zeros_like(a.labels)) for s, a in cached.items()}
    a, b = (lessons_of(pretrained(), *x) for x in ((cached, windows), (hidden, blind)))
    for split in a:
        for name in ("x", "logits", "embedding"):
            np.testing.assert_array_equal(getattr(a[split], name), getattr(b[split], name))
    pooled = cached["pair"].pooled_last.numpy()
    standard = StandardScaler().fit(pooled)
    np.testing.assert_allclose(a["pair"].embedding, standard.transform(pooled), atol=1e-4)
    expected = standard.transform(cached["val"].pooled_last.numpy())
    np.testing.assert_allclose(a["val"].embedding, expected, atol=1e-4)


def test_lessons_refuse_windows_of_other_times(cached, windows):
    moved = windows | {"val": replace(windows["val"], starts=windows["val"].starts + 1)}
    with pytest.raises(ValueError, match="expected val windows .* found other starts"):
        lessons_of(pretrained(), cached, moved)


# All together


def test_distil_gives_the_same_whatever_the_number_of_processes(cached, windows, settings):
    how = (pretrained, cached, windows, settings, 6000)
    one, searches = distil(["KD", "KD-Contrast"], *how, n_jobs=1)
    two, _ = distil(["KD"], *how, n_jobs=2)
    assert [(o.method, o.seed) for o in one] == [
        (m, s) for m in ("KD", "KD-Contrast") for s in (0, 1)
    ]
    assert not any(o.failed for o in one)
    for a, b in zip(one[:2], two, strict=True):
        assert (a.lr, a.val_loss) == (b.lr, b.val_loss)
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
    for method, found in searches.items():
        own = [o for o in one if o.method == method]
        assert {o.lr for o in own} == {found.lr}
        assert own[0].val_loss[own[0].best_epoch] == found.losses[found.index]
        assert own[0].val_agreement[own[0].best_epoch] == max(found.agreements)
    embedding = cached["pair"].pooled_last.shape[1]
    features = cached["pair"].new[-1].shape[1]
    assert one[2].n_parameters - one[0].n_parameters == (features + 1) * embedding


def test_a_method_that_cannot_train_has_failed_for_every_seed(cached, windows, settings):
    broken = settings.override("search", {"lr": [1e30, 1e32]})
    outcomes, searches = distil(["KD"], pretrained, cached, windows, broken, 6000, n_jobs=1)
    assert [o.seed for o in outcomes] == [0, 1] and searches["KD"].index is None
    for outcome in outcomes:
        assert outcome.failed.startswith("KD: ") and "epoch 1 at learning rate" in outcome.failed
        assert outcome.failed.endswith("nor did it train at any other of [1e+30, 1e+32]")
        assert np.isnan(outcome.probabilities).all() and outcome.probabilities.shape == (16, 2)
    poor, _ = distil(["LoRA-KD"], pretrained, cached, windows, settings, 300, n_jobs=1)
    assert all("LoRA: expected a budget of at least" in o.failed for o in poor)
    table = summary.readable(summary.numbers(outcomes + poor, cached["test"]))
    assert table["balanced accuracy"].tolist() == ["failed", "failed"]
    assert "KD **failed** to train" in summary.verdict(
        summary.numbers(outcomes, cached["test"]), cached["test"]
    )


def test_bridge_size_is_that_of_equation_6(cached, settings):
    old = pretrained("hubert_ecg")
    tokens, width = old.token_shape(1)
    r, n = settings.bridge.rank, settings.bridge.n_prototypes
    expected = cached["pair"].new[2].shape[1] * r + r * tokens * n + n * width
    assert bridge_size(cached["pair"], old, 2, 1, settings.bridge) == expected


def test_probe_transfer_is_a_logistic_regression_on_pseudo_labels(cached):
    outcome = probe_transfer(cached, seed=4)
    pair, test = (cached[s].new[-1].numpy() for s in ("pair", "test"))
    decided = cached["pair"].logits.argmax(1).numpy()
    penalty = choose_penalty(cached["pair"].new[-1], decided, cached["pair"].subjects)
    assert penalty in PENALTIES
    scaler = StandardScaler().fit(pair)
    regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
    regression.fit(scaler.transform(pair), decided)
    expected = regression.predict_proba(scaler.transform(test))
    np.testing.assert_allclose(outcome.probabilities, expected, atol=1e-4)
    assert outcome.n_parameters == 2 * (pair.shape[1] + 1) and outcome.seed == 4
    one = replace(cached["pair"], logits=torch.tensor([[1.0, 0.0]]).expand(25, -1))
    lost = probe_transfer(cached | {"pair": one})
    assert "expected pseudo-labels of every class, found none of ['fast']" in lost.failed


def test_saved_predictions_give_the_scores_again(cached, tmp_path, course):
    test = cached["test"]
    outcomes = [train_one(replace(course, epochs=1), "KD", 0, 1e-3), probe_transfer(cached)]
    lost = Outcome("LoRA-KD", 0, np.full((16, 2), np.nan), 9, failed="LoRA-KD: why")
    save_outcomes(tmp_path, [*outcomes, lost], test, "toy")
    table = summary.numbers([*outcomes, lost], test)
    found = pd.read_csv(tmp_path / "predictions.csv")
    for method in ("KD", "Probe transfer"):
        rows = found[found["method"] == method]
        again = [scores(part) for _, part in rows.groupby("seed")]
        for metric in again[0]:
            mean = 100 * np.mean([s[metric] for s in again])
            assert table.loc[method, metric] == pytest.approx(mean)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert curves["val"].tolist() == pytest.approx(list(outcomes[0].val_loss), rel=1e-6)
    assert read_json(tmp_path / "methods.json")["methods"]["LoRA-KD"][0]["failed"] == "LoRA-KD: why"
    assert "KD reaches" in summary.verdict(table, test)
    assert len(summary.plot_losses(outcomes).axes) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("patience", 0, "baselines.patience: expected a number of epochs above 0, or null"),
        ("temperature", 0.0, "baselines.temperature: expected a number above 0"),
    ],
)
def test_wrong_settings_are_refused(key, value, message, settings):
    with pytest.raises(ValueError, match=message):
        settings.override("baselines", {key: value})


def test_predictions_do_not_depend_on_the_batch(course):
    student = course.student("KD", 0)
    x = course.lessons["test"].x
    np.testing.assert_allclose(predict(student, x, 5), predict(student, x), atol=1e-6)


def test_pretrained_backbones_can_be_made_elsewhere():
    import pickle

    make = pickle.loads(pickle.dumps(partial(pretrained, "hubert_ecg")))
    torch.testing.assert_close(make().state_dict(), pretrained("hubert_ecg").state_dict())

"""Teacher heads against scikit-learn, the choice of the penalty, fine-tuning, files."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from toy import toy_windows

from biox.backbones import build
from biox.config import Teacher
from biox.teacher import (
    PENALTIES,
    Labelled,
    choose_penalty,
    fine_tune,
    fit_head,
    load_head,
    pooled_last,
    save_teacher,
    teach,
    teacher_probabilities,
)


def ppg(n, seed):
    """Waves of two rates, of four subjects."""
    windows = toy_windows(n, seed)
    return Labelled(torch.from_numpy(windows.signals["ppg"]), windows.labels, windows.subjects)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return build("papagei", "tiny", seconds=10)


def settings(train, **changes):
    return Teacher(train={"ppg": train}, **dict(lr=1e-3, epochs=3, batch=16, seed=0) | changes)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_head_is_the_folded_logistic_regression(n_classes, penalty):
    rng = np.random.default_rng(0)
    y = np.minimum(np.arange(90) % 5, n_classes - 1)  # one class has most windows
    features = 5 + 3 * rng.normal(size=(90, 4)) + 4 * np.eye(n_classes, 4)[y]
    x = torch.from_numpy(features).float()
    found = fit_head(x, y, n_classes, penalty)(x).softmax(1).detach().numpy()
    z = StandardScaler().fit_transform(features)
    regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000).fit(z, y)
    np.testing.assert_allclose(found, regression.predict_proba(z), atol=1e-3)


def test_the_penalty_is_that_of_the_lowest_loss_on_left_out_subjects():
    """Written out: each subject predicted by a regression fitted on the others."""
    rng = np.random.default_rng(1)
    subjects, y = np.repeat(np.arange(5), 20), rng.integers(0, 3, 100)
    x = rng.normal(size=(100, 4)) + 0.8 * np.eye(4)[y] + rng.normal(size=(5, 4))[subjects]
    losses = []
    for penalty in PENALTIES:
        own = np.empty(100)
        for left_out in range(5):
            rest, out = subjects != left_out, subjects == left_out
            mean, std = x[rest].mean(0), x[rest].std(0)
            head = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
            head.fit((x[rest] - mean) / std, y[rest])
            p = head.predict_proba((x[out] - mean) / std)
            own[out] = -np.log(p[np.arange(20), y[out]])
        losses.append(np.mean([own[y == c].mean() for c in range(3)]))
    best = PENALTIES[int(np.argmin(losses))]
    assert choose_penalty(torch.from_numpy(x), y, subjects) == best
    assert best not in (PENALTIES[0], PENALTIES[-1])


def test_a_class_missing_from_train_is_named():
    with pytest.raises(ValueError, match=r"windows of every class in train, found none of \[2\]"):
        fit_head(torch.randn(10, 3), np.arange(10) % 2, 3)


def test_the_head_alone_learns_from_train_and_val_and_leaves_the_backbone_alone(backbone):
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    train, val = ppg(40, 0), ppg(20, 1)
    head, curve = teach(backbone, train, val, 2, settings("head"))
    assert curve == []
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    x, y = torch.cat([train.x, val.x]), np.r_[train.y, val.y]
    features = pooled_last(backbone, x)
    with torch.no_grad():
        torch.testing.assert_close(features, backbone(x).mean(1), rtol=1e-4, atol=1e-5)
    penalty = choose_penalty(features, y, np.r_[train.subjects, val.subjects])
    torch.testing.assert_close(head.weight, fit_head(features, y, 2, penalty).weight)
    p = teacher_probabilities(backbone, head, val.x)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert balanced_accuracy_score(val.y, p.argmax(1)) > 0.7


@pytest.mark.parametrize("good_start", [True, False])
def test_fine_tuning_keeps_the_epoch_that_is_best_on_val(backbone, tmp_path, good_start):
    train, val = ppg(64, 0), ppg(32, 1)
    if good_start:  # a rate that spoils the model
        head, curve = teach(backbone, train, val, 2, settings("all", lr=3e-3))
    else:
        head = torch.nn.Linear(backbone.token_shape(backbone.n_layers)[1], 2)
        torch.nn.init.zeros_(head.weight)
        curve = fine_tune(backbone, head, train, val, settings("all"))
    assert len(curve) == 4 and (curve[0] == max(curve)) == good_start
    p = teacher_probabilities(backbone, head, val.x)
    assert balanced_accuracy_score(val.y, p.argmax(1)) == pytest.approx(max(curve))
    assert not any(q.requires_grad for model in (backbone, head) for q in model.parameters())
    save_teacher(tmp_path, head, backbone)
    again = build("papagei", "tiny", checkpoint=tmp_path / "backbone.safetensors", seconds=10)
    loaded = load_head(tmp_path)
    np.testing.assert_allclose(teacher_probabilities(again, loaded, val.x), p, atol=1e-6)


def test_a_fine_tuning_that_explodes_names_its_learning_rate(backbone):
    message = r"teacher: expected a finite loss.* learning rate 1e\+30"
    with pytest.raises(FloatingPointError, match=message):
        teach(backbone, ppg(32, 0), ppg(16, 1), 2, settings("all", lr=1e30))


def test_a_head_is_read_back_and_other_files_are_refused(backbone, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"head.safetensors: expected a teacher's head"):
        load_head(tmp_path / "none")
    head = torch.nn.Linear(5, 3)
    save_teacher(tmp_path / "teacher", head)
    path = tmp_path / "teacher" / "head.safetensors"
    assert list(path.parent.iterdir()) == [path]
    again = load_head(path.parent)
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)
    assert not again.training and not again.weight.requires_grad
    save_teacher(tmp_path, head, backbone)
    for foreign in (path.read_bytes()[:50], b"", (tmp_path / "backbone.safetensors").read_bytes()):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match=r"head.safetensors: .* foreign or truncated file"):
            load_head(path.parent)

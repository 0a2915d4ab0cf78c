"""Teacher heads and pretraining on problems whose answer is known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from biox.backbones import build
from biox.config import Teacher
from biox.pretraining import KnownWindows, common_energy, pretrain
from biox.teacher import (
    PENALTIES,
    Labelled,
    choose_penalty,
    fit_head,
    load_head,
    save_teacher,
    teach,
)


def two_rates(n, seed):
    """Ten-second PPG-like waves; class 1 beats twice as fast."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    t = np.arange(1250) / 125
    x = np.sin(2 * np.pi * (1 + y[:, None]) * t + rng.uniform(0, 6, (n, 1)))
    x = torch.from_numpy((x + 0.3 * rng.normal(size=x.shape))[:, None]).float()
    return Labelled(x, y, np.array([f"{seed}.{i % 4}" for i in range(n)]))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_head_is_the_folded_logistic_regression(n_classes):
    rng = np.random.default_rng(0)
    y = np.arange(90) % n_classes
    features = 5 + 3 * rng.normal(size=(90, 4)) + 4 * np.eye(n_classes, 4)[y]
    x = torch.from_numpy(features).float()
    found = fit_head(x, y, n_classes)(x).softmax(1).detach().numpy()
    z = StandardScaler().fit_transform(features)
    regression = LogisticRegression(class_weight="balanced", max_iter=2000).fit(z, y)
    np.testing.assert_allclose(found, regression.predict_proba(z), atol=1e-3)


def test_penalty_is_chosen_on_left_out_subjects():
    """Noise that names the subject asks for a strong penalty; a clean class asks for none."""
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(10), 12)
    y = np.tile([0, 1], 60)
    clean = torch.from_numpy(np.c_[y, rng.normal(size=120)] + 0.01 * rng.normal(size=(120, 2)))
    mixed = (subjects + rng.integers(0, 2, 120)) % 2
    noisy = np.c_[0.4 * mixed[:, None] + rng.normal(size=(120, 1)), 5 * np.eye(10)[subjects]]
    assert choose_penalty(clean, y, subjects) in PENALTIES
    assert choose_penalty(torch.from_numpy(noisy), mixed, subjects) < 1.0


def test_the_penalty_is_that_of_the_lowest_loss_on_left_out_subjects():
    """Written out: each subject answered by a regression fitted on the others."""
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
    x = torch.randn(10, 3)
    with pytest.raises(ValueError, match=r"found none of \[2\]"):
        fit_head(x, np.arange(10) % 2, 3)


def test_fine_tuning_never_ends_below_the_head_alone_on_val(tmp_path):
    torch.manual_seed(0)
    backbone = build("papagei", "tiny", seconds=10)
    settings = Teacher({"ppg": "all"}, lr=1e-3, epochs=3, batch=16, seed=0)
    train, val = two_rates(64, 0), two_rates(32, 1)
    head, curve = teach(backbone, train, val, 2, settings)
    reached = (val.probabilities(backbone, head).argmax(1) == val.y).mean()
    assert len(curve) == 4 and reached == pytest.approx(max(curve)) and reached > 0.8
    save_teacher(tmp_path, backbone, head, {"balanced_accuracy": 1.0})
    torch.testing.assert_close(load_head(tmp_path).weight, head.weight)
    again = build("papagei", "tiny", checkpoint=tmp_path / "backbone.safetensors", seconds=10)
    np.testing.assert_allclose(
        val.probabilities(again, head), val.probabilities(backbone, head), atol=1e-6
    )


def test_head_only_leaves_the_backbone_alone(tmp_path):
    torch.manual_seed(0)
    backbone = build("papagei", "tiny", seconds=10)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    settings = Teacher({"ppg": "head"}, lr=1e-3, epochs=3, batch=16, seed=0)
    teach(backbone, two_rates(40, 0), two_rates(20, 1), 2, settings)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    with pytest.raises(FileNotFoundError, match="head.safetensors: expected a teacher's head"):
        load_head(tmp_path / "none")


def test_pretraining_learns_what_windows_show_and_not_what_they_do_not():
    rng = np.random.default_rng(0)
    corpora = []
    for seconds in (4, 8):
        hz = rng.uniform(0.8, 2.5, 160)
        t = np.arange(seconds * 125) / 125
        x = np.sin(2 * np.pi * hz[:, None] * t + rng.uniform(0, 6, (160, 1)))
        targets = np.stack([hz, rng.normal(size=160)], axis=1)
        corpora.append(
            KnownWindows(torch.from_numpy(x[:, None]).float(), torch.from_numpy(targets).float())
        )

    def run(common):
        torch.manual_seed(0)
        backbone = build("papagei", "tiny", seconds=8)
        done = pretrain(
            backbone,
            corpora,
            epochs=10,
            batch=16,
            lr=3e-3,
            mask=0.3,
            reconstruction=0.3,
            common=common,
            seed=0,
        )
        return done, backbone

    (result, backbone), (again, _) = run(0.3), run(0.3)
    assert result.losses == again.losses
    assert result.r2[0] > 0.6 and result.r2[1] < 0.3
    assert result.losses[-1][1] < result.losses[0][1]
    without, _ = run(0.0)
    assert result.losses[-1][2] < 0.5 * without.losses[-1][2]
    assert not any(p.requires_grad for p in backbone.parameters())


def test_the_penalty_is_chosen_for_a_single_subject_too():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 20)
    features = torch.from_numpy(rng.normal(size=(40, 3)) + 2 * y[:, None]).float()
    assert choose_penalty(features, y, np.full(40, "008")) in PENALTIES


def test_common_energy_is_that_of_the_mean():
    rng = torch.Generator().manual_seed(0)
    apart = torch.randn(50, 6, 4, generator=rng)
    apart -= apart.mean(dim=(0, 1))
    common = torch.tensor([3.0, 0.0, -1.0, 2.0])
    assert common_energy(apart).item() == pytest.approx(0, abs=1e-6)
    expected = (common**2).mean() / ((common**2).mean() + (apart**2).mean())
    assert common_energy(apart + common).item() == pytest.approx(expected.item(), rel=1e-5)

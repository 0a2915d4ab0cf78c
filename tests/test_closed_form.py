"""The computed bridge against brute force; centring, calibration and folds without labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score
from test_audit_pages import functions_of
from toy import SETTINGS, toy_direction, toy_root

from biox.activations import load_direction
from biox.bridge import BridgedModel, PrototypeBridge
from biox.positions import remove_offsets
from biox.training import centre_by_subject, fit, objective

OURS = {"affine": True, "start": "regression", "epochs": 0}


def problem(seed=0, n=60, d_m=7, n_l=4, d_l=5):
    """Features with a mean and unequal scales, and tokens that follow them in part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 1, (n, d_m)) * rng.uniform(0.1, 9, d_m)
    y = x @ rng.normal(size=(d_m, n_l * d_l)) / 5 + rng.normal(2, 3, (n, n_l * d_l))
    return torch.from_numpy(x), y.reshape(n, n_l, d_l)


def regressed(x, y, rank, n_prototypes, ridge):
    bridge = PrototypeBridge(x.shape[1], y.shape[2], y.shape[1], rank, n_prototypes, affine=True)
    bridge.double().regress(x, y, ridge)
    return bridge


def standardised(x, y):
    z, flat = x.numpy(), y.reshape(len(y), -1)
    return (z - z.mean(0)) / z.std(0), flat - flat.mean(0), flat.mean(0)


def penalised(w, z, y, ridge):
    return ((y - z @ w) ** 2).sum() + ridge * len(z) * (w**2).sum()


@given(st.integers(0, 99), st.integers(1, 7), st.sampled_from([1e-3, 0.1, 2.0]))
@settings(max_examples=5, deadline=None)
def test_no_map_of_this_rank_is_better_by_brute_force(seed, rank, ridge):
    """Products A B found by L-BFGS from a random start, in the same penalised squares."""
    x, y = problem(seed)
    z, centred, mean = standardised(x, y)
    with torch.no_grad():
        written = regressed(x, y, rank, 5, ridge)(x).flatten(1).numpy() - mean
    computed = np.linalg.lstsq(z, written, rcond=None)[0]
    assert np.linalg.matrix_rank(computed, tol=1e-6) == rank

    def value(flat):
        a, b = flat[: 7 * rank].reshape(7, rank), flat[7 * rank :].reshape(rank, -1)
        w = a @ b
        g = -2 * z.T @ (centred - z @ w) + 2 * ridge * len(z) * w
        slope = np.concatenate([(g @ b.T).ravel(), (a.T @ g).ravel()])
        return penalised(w, z, centred, ridge), slope

    starts = np.random.default_rng(seed).normal(size=(3, rank * (7 + 20)))  # some end in saddles
    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-9}
    how = {"jac": True, "method": "L-BFGS-B", "options": options}
    found = min(minimize(value, start, **how).fun for start in starts)
    assert penalised(computed, z, centred, ridge) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("n_prototypes", [5, 8])  # d_l is 5
def test_full_rank_is_ridge_regression_and_rank_0_the_mean(n_prototypes):
    x, y = problem()
    z, centred, mean = standardised(x, y)
    ridge = np.linalg.solve(z.T @ z + 0.1 * len(z) * np.eye(7), z.T @ centred)
    for rank, expected in ((7, z @ ridge + mean), (9, z @ ridge + mean), (0, 0 * z @ ridge + mean)):
        with torch.no_grad():
            found = regressed(x, y, rank, n_prototypes, 0.1)(x).flatten(1)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_fewer_prototypes_span_the_tokens_best():
    """The error falls with N_p, and no other P of the same size is better for these tokens."""
    x, y = problem(n_l=6)
    errors = []
    with torch.no_grad():
        full = regressed(x, y, 3, 5, 0.1)(x)
        for n_p in range(1, 6):
            bridge = regressed(x, y, 3, n_p, 0.1)
            errors.append(((bridge(x) - full) ** 2).sum().item())
            tokens = (full - bridge.t).flatten(0, 1)
            lost = np.linalg.svd(tokens, compute_uv=False)[n_p:]
            assert (lost**2).sum() <= errors[-1] * (1 + 1e-9) + 1e-9
    assert all(np.diff(errors) < 0) and errors[-1] < 1e-16 * (full**2).sum()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A direction with the files of a pipeline, so that layer l's input can be computed."""
    monkeypatch.chdir(tmp_path)
    small = {"rank": 4, "n_prototypes": 6, "epochs": 1, "batch": 8}
    return load_direction(SETTINGS.override("bridge", small), toy_root())


def test_an_affine_bridge_is_saved_whole(files, tmp_path):
    frozen = replace(files, settings=files.settings.override("bridge", OURS))
    model, pooled = frozen.bridge(0), frozen.pairs("pair").pooled
    n_l, n_p, d_l = model.bridge.n_tokens, 6, len(model.bridge.t)
    plain = frozen.bridge(0, affine=False, start="zeros", epochs=1).bridge
    assert model.bridge.n_parameters == plain.n_parameters + n_l * n_p + d_l
    model.save(tmp_path)
    again = BridgedModel.load(tmp_path, frozen.new, frozen.old, frozen.head)
    torch.testing.assert_close(again.bridge(pooled), model.bridge(pooled))


# --- losses, centring


@pytest.mark.parametrize("loss", ["centred", "centred_kl"])
def test_a_constant_gains_nothing_in_centred_losses(loss):
    frozen = toy_direction()
    model, pairs = frozen.bridge(0), frozen.pairs("pair")
    value = objective(model, pairs, loss, kl_weight=0.0)
    h = torch.from_numpy(np.array(pairs.target))
    assert value(h, h).item() == pytest.approx(0, abs=1e-5)
    constant = h.mean(0).expand_as(h)
    assert objective(model, pairs, "cosine")(constant, h) < 0.6
    assert value(constant, h).item() == pytest.approx(1, abs=1e-3)


def test_the_divergence_weighs_pseudo_classes_alike():
    frozen = toy_direction()
    model, pairs = frozen.bridge(0), frozen.pairs("pair")
    h = torch.from_numpy(np.array(pairs.target))
    other = h.flip(0)
    with torch.no_grad():
        p, q = (model.logits(x).softmax(1) for x in (h, other))
        kl = (p * (p / q).log()).sum(1)
        by_class = [kl[p.argmax(1) == c].mean().item() for c in (0, 1)]
        found = [objective(model, pairs, "centred_kl", kl_weight=w)(other, h) for w in (0.0, 2.0)]
    assert (found[1] - found[0]).item() == pytest.approx(2 * np.mean(by_class), rel=1e-3)


@settings(deadline=None)
@given(st.integers(0, 99))
def test_centring_removes_what_is_added_to_a_subject(seed):
    rng = np.random.default_rng(seed)
    subjects, x = rng.choice(["a", "b", "c"], 30), torch.from_numpy(rng.normal(size=(30, 4)))
    shift = dict(zip("abc", rng.normal(size=(3, 4)), strict=True))
    shifted = x + torch.from_numpy(np.array([shift[s] for s in subjects]))
    for centre in ("subject", "causal"):
        found = centre_by_subject(x, subjects, centre)
        torch.testing.assert_close(centre_by_subject(shifted, subjects, centre), found)
    own = torch.from_numpy(subjects == subjects[0])
    torch.testing.assert_close(found[0], torch.zeros(4, dtype=torch.double))
    torch.testing.assert_close(centre_by_subject(x, subjects)[own], x[own] - x[own].mean(0))
    within = centre_by_subject(x, subjects, "within")
    torch.testing.assert_close(within, centre_by_subject(x, subjects) + x.mean(0))
    # causal: nothing depends on later windows
    torch.testing.assert_close(centre_by_subject(x[:20], subjects[:20], "causal"), found[:20])


# --- folds and offsets


def test_held_out_subjects_play_no_part_in_their_predictions(files):
    out_of_fold = functions_of("21_closed_form").out_of_fold
    cached = files.activations["pair"]
    for change in (OURS, OURS | {"centre": "within"}):
        frozen = files.override(**change)
        p = out_of_fold(frozen, n_folds=4)
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
        own = cached.subjects == cached.subjects[0]
        last, inputs = cached.last.copy(), frozen.pairs("pair", "input").target.clone()
        last[own], inputs[own] = 0, 0
        changed = frozen.activations | {"pair": replace(cached, last=last)}
        other = replace(frozen, activations=changed, _inputs={("pair", frozen.l): inputs})
        q = out_of_fold(other, n_folds=4)
        np.testing.assert_allclose(p[own], q[own], rtol=1e-5)
        assert not np.allclose(p[~own], q[~own], rtol=1e-5)


def test_the_computed_bridge_is_a_run_like_any_other(files):
    frozen = files
    one, model = fit(frozen, seed=0, lr=1e-3, **OURS)
    two, _ = fit(frozen, seed=1, lr=1e-3, **OURS)
    np.testing.assert_allclose(one.probabilities, two.probabilities, rtol=1e-5)  # nothing is drawn
    assert (one.best_epoch, len(one.history)) == (0, 1)
    # a step size that destroys the start leaves it in place
    trained, after = fit(frozen, seed=0, lr=10.0, **OURS | {"epochs": 2, "loss": "centred_kl"})
    assert trained.best_epoch == 0
    torch.testing.assert_close(after.bridge.A, model.bridge.A)
    found = [one.probabilities]
    for centre in ("subject", "within", "causal"):
        found.append(fit(frozen, seed=0, lr=1e-3, centre=centre, **OURS)[0].probabilities)
        assert all(not np.allclose(found[-1], p, rtol=1e-3) for p in found[:-1]), centre
    with pytest.raises(ValueError, match="bridge.start: expected affine"):
        fit(frozen, seed=0, lr=1e-3, start="regression")


def answers(rng, offset_sd, one_class, n_subjects=8, n=60, classes=2):
    """Predictions with a known offset a subject, the classes and the subjects."""
    labels, subjects, logits = [], [], []
    for subject in range(n_subjects):
        share = rng.dirichlet(5 + np.ones(classes))
        share = np.eye(classes)[subject % classes] if one_class else share
        y = rng.choice(classes, n, p=share)
        labels.append(y)
        subjects += [f"s{subject}"] * n
        offset, noise = rng.normal(0, offset_sd, classes), rng.normal(0, 0.6, (n, classes))
        logits.append(3 * np.eye(classes)[y] + offset + noise)
    return softmax(np.concatenate(logits), 1), np.concatenate(labels), np.array(subjects)


@pytest.mark.parametrize("classes", [2, 3])
def test_offsets_help_subjects_of_several_classes_and_spare_those_of_one(classes):
    """Centring alone would put subjects of a single class at chance."""
    rng = np.random.default_rng(0)
    held_out = answers(rng, 1.0, False, classes=classes, n_subjects=12)
    for one_class in (False, True):
        p, y, subjects = answers(rng, 1.0, one_class, classes=classes, n_subjects=12)
        found = remove_offsets(p, subjects, *held_out)
        np.testing.assert_allclose(found.sum(1), 1)
        before, after = (balanced_accuracy_score(y, x.argmax(1)) for x in (p, found))
        allowed = 1.03 - before if one_class else 0.5 * (1 - before)
        assert 1 - after < allowed, (one_class, before, after)
        order = rng.permutation(len(p))
        again = remove_offsets(p[order], subjects[order], *held_out)
        np.testing.assert_allclose(again, found[order], atol=1e-8)
    inverted = held_out[0][:, ::-1], *held_out[1:]  # nothing can be learnt from these
    np.testing.assert_array_equal(remove_offsets(p, subjects, *inverted), p)


def test_a_class_that_the_teacher_never_predicts_is_never_predicted():
    p, y, subjects = answers(np.random.default_rng(1), 0.5, False, classes=3)
    kept = y < 2
    found = remove_offsets(p, subjects, p[kept], y[kept], subjects[kept])
    assert (found[:, 2] == 0).all() and np.isfinite(found).all()

"""Linear CKA against the golden table, Gram-matrix closed forms and invariances."""

from pathlib import Path

import numpy as np
import pytest
from fill import windows as golden_input
from hypothesis import given, settings
from hypothesis import strategies as st

from biox.cka import few_features, linear_cka

GOLDEN = np.load(Path(__file__).parent / "golden" / "cka.npz")
COLUMNS = [str(name) for name in GOLDEN["columns"]]


def golden_features(n, dx, dy):
    """Rebuild the features of one golden row by the published recipe."""
    x = golden_input(f"cka:x:{n}:{dx}", (n, dx)).double() + 1
    w = golden_input(f"cka:w:{dx}:{dy}", (dx, dy)).double() / np.sqrt(dx)
    noise = golden_input(f"cka:noise:{n}:{dy}", (n, dy)).double()
    return x.numpy(), (x @ w + 0.5 * noise).numpy()


@pytest.mark.parametrize(
    "row", GOLDEN["table"], ids=lambda row: "-".join(f"{v:g}" for v in row[:3])
)
def test_agrees_with_golden_table(row):
    row = dict(zip(COLUMNS, row, strict=True))
    x, y = golden_features(int(row["n"]), int(row["dx"]), int(row["dy"]))
    assert linear_cka(x, y) == pytest.approx(row["gram_biased"], rel=1e-8)
    assert linear_cka(x, y, debiased=True) == pytest.approx(row["gram_debiased"], rel=1e-8)


def gram_debiased(x, y):
    """Song et al. (2012), equation 4, on n x n matrices."""
    n, one = len(x), np.ones(len(x))

    def hsic(k, l):
        cross = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return np.trace(k @ l) + cross - 2 * one @ k @ l @ one / (n - 2)

    k, l = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@given(st.integers(20, 60), st.integers(1, 12), st.integers(1, 30), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_feature_space_equals_gram_space(n, dx, dy, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx)) + 3
    y = x[:, :1] + rng.normal(size=(n, dy))
    assert linear_cka(x, y, debiased=True) == pytest.approx(gram_debiased(x, y), abs=1e-8)


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.booleans())
@settings(max_examples=30, deadline=None)
def test_invariant_to_rotation_shift_and_scale(seed, scale, debiased):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 7))
    y[:, 0] += x[:, 0]
    rotation, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    value = linear_cka(x, y, debiased)
    assert linear_cka(x, scale * y @ rotation + 2, debiased) == pytest.approx(value, abs=1e-7)
    assert linear_cka(y, x, debiased) == pytest.approx(value, abs=1e-10)
    assert linear_cka(x, scale * x, debiased) == pytest.approx(1)
    order = rng.permutation(40)
    assert linear_cka(x[order], y[order], debiased) == pytest.approx(value, abs=1e-10)
    assert 0 <= linear_cka(x, y) <= 1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.eye(5), np.eye(6), "as many rows"),
        (np.eye(3), np.eye(3), "n >= 4"),
        (np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)), "constant"),
        (np.full((9, 2), np.nan), np.eye(9), "finite"),
    ],
)
def test_refuses_what_has_no_cka(x, y, message):
    with pytest.raises(ValueError, match=message):
        linear_cka(x, y)


@pytest.mark.parametrize("debiased", [False, True])
def test_few_features_stand_for_very_many(debiased):
    """CKA of 30 windows with 5000 features each, against the direct computation."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5000)) + 2
    y = np.hstack([x[:, :40] + rng.normal(size=(30, 40)), rng.normal(size=(30, 200))])
    few = few_features(x.astype(np.float32))
    assert few.shape == (30, 30) and few_features(y[:, :7]).shape == (30, 7)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    if debiased:
        direct = gram_debiased(centred_x, centred_y)
    else:
        norms = [np.linalg.norm(c.T @ c) for c in (centred_x, centred_y)]
        direct = np.linalg.norm(centred_x.T @ centred_y) ** 2 / np.prod(norms)
    assert linear_cka(few, few_features(y), debiased) == pytest.approx(direct, abs=1e-5)
    assert linear_cka(x, y, debiased) == pytest.approx(direct, abs=1e-8)

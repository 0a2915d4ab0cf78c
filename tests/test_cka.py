"""Linear CKA against the golden table, Gram-matrix closed forms and invariances."""

from pathlib import Path

import numpy as np
import pytest
from fill import windows as golden_input
from hypothesis import given, settings
from hypothesis import strategies as st

from biox.cka import StreamingCKA, few_features, linear_cka

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


def test_only_the_debiased_value_is_near_zero_for_independent_features():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 768)), rng.normal(size=(200, 200))
    assert linear_cka(x, y) > 0.6
    assert abs(linear_cka(x, y, debiased=True)) < 0.05


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


def related(n, seed, widths=(40, 30, 700)):
    """One x [n, 40], and y's of which the first resembles it most."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, widths[0])) + 2
    noises = (0.5, 2.0)
    return x, [
        x @ rng.normal(size=(widths[0], d)) / 6 + noise * rng.normal(size=(n, d))
        for d, noise in zip(widths[1:], noises, strict=True)
    ]


def streamed(x, ys, batch):
    stream = StreamingCKA()
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        stream.update([x[rows]], (y[rows] for y in ys))
    return stream.value()[0]


def test_one_batch_is_exact_for_every_pair_of_layers():
    x, ys = related(60, 0)
    stream = StreamingCKA()
    stream.update([x.astype(np.float32), ys[0]], ys)
    found = stream.value()
    exact = [[linear_cka(a, b, debiased=True) for b in ys] for a in (x, ys[0])]
    np.testing.assert_allclose(found, exact, atol=1e-7)
    assert found[0, 0] == pytest.approx(gram_debiased(x, ys[0]), abs=1e-7)
    assert found[1, 0] == pytest.approx(1)


def test_hsic_of_a_batch_is_the_mean_over_distinct_windows():
    """Song et al. (2012), theorem 2: a U-statistic, here over all quadruples of 6 windows."""
    from itertools import permutations

    from biox.cka import _grams_without_diagonal, _hsic_1

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    k, l = x @ x.T, y @ y.T
    terms = [
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(6), 4)
    ]
    found = _hsic_1(_grams_without_diagonal([x], "X"), _grams_without_diagonal([y], "Y"))
    assert found.item() == pytest.approx(np.mean(terms), abs=1e-12)


def test_error_shrinks_as_batches_grow_and_has_no_direction():
    errors = {batch: [] for batch in (8, 32, 128)}
    for seed in range(12):
        x, ys = related(512, seed)
        exact = np.array([linear_cka(x, y, debiased=True) for y in ys])
        for batch, found in errors.items():
            found.append(streamed(x, ys, batch) - exact)
    spread = {batch: np.sqrt(np.mean(np.square(found))) for batch, found in errors.items()}
    assert spread[128] < spread[32] < spread[8]
    assert spread[128] < 0.02
    for found in errors.values():  # the mean error is within its own uncertainty, or tiny
        mean, sd = np.mean(found, axis=0), np.std(found, axis=0)
        assert (np.abs(mean) < np.maximum(4 * sd / np.sqrt(12), 0.01)).all()


def test_small_batches_do_not_favour_wide_layers():
    """Independent features: a biased estimate of batches of 8 would be near 1."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 300)), rng.normal(size=(2000, 768))
    assert abs(streamed(x, [y], 8)[0]) < 0.02


def test_memory_is_that_of_a_batch():
    import tracemalloc

    n, width, batch = 1600, 5000, 16
    rng = np.random.default_rng(0)

    def layers(shared):
        for _ in range(3):  # one after another: a layer is forgotten before the next is made
            yield (shared + rng.normal(size=(batch, width))).astype(np.float32)

    stream = StreamingCKA()
    tracemalloc.start()
    for _ in range(n // batch):
        shared = rng.normal(size=(batch, 1))
        stream.update(layers(shared), layers(shared))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stream.value().shape == (3, 3)
    assert peak < 6 * 8 * batch * width  # a few batches of one layer; all windows: 64 MB a layer


@pytest.mark.parametrize(
    ("X", "Y", "message"),
    [
        ([np.eye(3)], [np.eye(3)], "n >= 4"),
        ([np.eye(5)], [np.eye(6)], "as many windows in X as in Y, found 5, 6"),
        ([np.eye(5), np.eye(6)], [np.eye(5)], r"layer of X as \[5, features\]"),
        ([np.eye(5)], [], "at least one layer of Y"),
        ([np.full((5, 2), np.inf)], [np.eye(5)], "finite values in X"),
        ([np.eye(5), np.eye(5)], [np.eye(5)], "as before"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_refused_batch_leaves_no_trace(X, Y, message):
    stream = StreamingCKA()
    with pytest.raises(ValueError, match="at least one batch"):
        stream.value()
    x, ys = related(20, 0)
    stream.update([x], ys[:1])
    before = stream.value()
    with pytest.raises(ValueError, match=message):
        stream.update(X, Y)
    np.testing.assert_array_equal(stream.value(), before)


def test_a_constant_layer_has_no_value():
    stream = StreamingCKA()
    x, ys = related(20, 0)
    stream.update([x, np.ones((20, 3))], ys)
    assert np.isfinite(stream.value()[0]).all() and np.isnan(stream.value()[1]).all()

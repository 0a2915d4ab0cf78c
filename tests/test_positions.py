"""Probe and two-stage selection against the authors' selector and against constructed layers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fill import windows as golden_input

from biox.activations import flattened_states
from biox.backbones import build
from biox.cka import linear_cka
from biox.positions import flattened_cka, select_positions
from biox.probe import probe_score, probe_scores

GOLDEN = np.load(Path(__file__).parent / "golden" / "selector.npz")


def golden_layers():
    """Rebuild the synthetic layers of selector.npz by its published recipe."""
    n = 200
    labels = golden_input("selector:logits", (n, 3)).argmax(1)
    emb = golden_input("selector:emb", (3, 24))
    inputs = [
        s * emb[labels][:, None, :] + golden_input(f"selector:in:{i}", (n, 7, 24))
        for i, s in enumerate(GOLDEN["in_strength"].tolist())
    ]
    base = inputs[3].mean(1)
    outputs = [
        a * (base @ golden_input(f"selector:w:{i}", (24, 40))) / np.sqrt(24)
        + golden_input(f"selector:out:{i}", (n, 40))
        for i, a in enumerate(GOLDEN["out_strength"].tolist())
    ]
    return [x.mean(1).numpy() for x in inputs], [y.numpy() for y in outputs], labels.numpy()


def test_as_published_agrees_with_the_authors_selector():
    new, old, labels = golden_layers()
    selection = select_positions(new, old, labels, cka="biased")
    np.testing.assert_allclose(selection.probe, GOLDEN["in_scores"], atol=0.02)
    np.testing.assert_allclose(selection.cka_biased, GOLDEN["out_scores"], rtol=1e-3)
    assert selection.m == int(GOLDEN["best_in"])
    assert selection.l == int(GOLDEN["best_out"])


@pytest.mark.parametrize("best", [0, 2, 4])
def test_finds_the_layers_that_carry_the_information(best):
    rng = np.random.default_rng(best)
    labels, subjects = rng.integers(0, 2, 120), np.repeat([f"p{i}" for i in range(6)], 20)
    signal = labels[:, None] + 0.1 * rng.normal(size=(120, 1))
    new = [rng.normal(size=(120, 6)) + (3 * signal if i == best else 0) for i in range(5)]
    old = [rng.normal(size=(120, 9)) + (3 * signal if i == 4 - best else 0) for i in range(5)]
    selection = select_positions(new, old, labels, subjects)
    assert (selection.m, selection.l) == (best, 4 - best)


def test_width_of_a_layer_misleads_only_the_biased_estimate():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 40))
    related = x[:, :4] + 1.0 * rng.normal(size=(100, 4))
    wide = rng.normal(size=(100, 3000))
    labels = (x[:, 0] > 0).astype(int)
    assert select_positions([x], [related, wide], labels, cka="biased").l == 1
    assert select_positions([x], [related, wide], labels, cka="debiased").l == 0


def test_folds_by_subject_see_through_subject_identity():
    """Features that name the subject predict subject-constant labels only if folds mix subjects."""
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(12), 15)
    labels = (subjects % 2).astype(int)
    features = 3 * rng.normal(size=(12, 40))[subjects] + rng.normal(size=(180, 40))
    order = rng.permutation(180)
    mixed = probe_score(features[order], labels[order])
    apart = probe_score(features, labels, subjects.astype(str))
    assert mixed > 0.95 and apart < 0.8


def test_one_pseudo_class_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="the teacher answers the same for every window"):
        probe_score(np.random.default_rng(0).normal(size=(30, 3)), np.zeros(30, int))


def test_flattened_features_decide_where_they_are_given():
    """Token averages of the first old layer match; all tokens, flattened, do in the second only."""
    rng = np.random.default_rng(0)
    new = rng.normal(size=(80, 5, 6))  # windows, tokens, features
    noise = 3 * rng.normal(size=new.shape)
    first = new.mean(1, keepdims=True) + noise - noise.mean(1, keepdims=True)
    second = new - new.mean(1, keepdims=True) + rng.normal(size=(80, 1, 6))
    labels = (new.mean(1)[:, 0] > 0).astype(int)
    pooled = [h.mean(1) for h in (new, first, second)]
    flat = [h.reshape(80, -1) for h in (new, first, second)]
    assert select_positions(pooled[:1], pooled[1:], labels).l == 0
    found = select_positions(pooled[:1], pooled[1:], labels, flattened=(flat[:1], flat[1:]))
    assert found.l == 1
    assert found.cka[1] == pytest.approx(linear_cka(flat[0], flat[2], debiased=True))
    assert found.cka_biased[0] == pytest.approx(linear_cka(flat[0], flat[1]))


def test_unknown_cka_is_refused():
    with pytest.raises(ValueError, match="'debiased' or 'biased', found 'cosine'"):
        select_positions([], [], np.zeros(3), cka="cosine")


def test_given_positions_are_taken_and_scored_all_the_same():
    rng = np.random.default_rng(0)
    new, old = ([rng.normal(size=(40, 5)) for _ in range(3)] for _ in range(2))
    labels = np.arange(40) % 2
    free = select_positions(new, old, labels)
    given = select_positions(new, old, labels, m=2, l=0)
    assert (given.m, given.l) == (2, 0) and given.probe == free.probe
    assert given.cka[1] == pytest.approx(linear_cka(new[2], old[1], debiased=True))
    with pytest.raises(ValueError, match=r"expected l out of 0..2, found 3"):
        select_positions(new, old, labels, l=3)


@pytest.mark.parametrize("by_subject", [True, False])
def test_processes_share_probes_without_changing_a_bit(by_subject):
    new, _, labels = golden_layers()
    subjects = np.repeat([f"p{i}" for i in range(8)], 25) if by_subject else None
    alone = probe_scores(new, labels, subjects)
    assert probe_scores(new, labels, subjects, n_jobs=2) == alone
    np.testing.assert_allclose(alone, [probe_score(x, labels, subjects) for x in new], rtol=1e-6)


def paired_windows(n):
    """Tiny models with random weights, and windows of one rhythm a pair."""
    torch.manual_seed(0)
    new, old = (build(name, "tiny", seconds=10) for name in ("papagei", "hubert_ecg"))
    rate = torch.rand(n, 1, 1) + 1
    signals = []
    for backbone in (new, old):
        spec = backbone.input_spec
        time = torch.arange(spec.samples) / spec.rate
        noise = 0.3 * torch.randn(n, spec.channels, spec.samples)
        signals.append(torch.sin(2 * torch.pi * rate * time) + noise)
    return new, old, *signals


def test_streamed_cka_of_flattened_layers_is_exact_in_one_batch():
    new, old, x_new, x_old = paired_windows(24)
    outputs, inputs = flattened_states(new, x_new)[1:], flattened_states(old, x_old)[:-1]
    exact = [[linear_cka(a, b, debiased=True) for b in inputs] for a in outputs]
    found = flattened_cka(new, old, x_new, x_old, batch=24)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    batches = flattened_cka(new, old, x_new, x_old, batch=10)
    assert batches.shape == found.shape and not np.allclose(batches, found, atol=1e-4)
    np.testing.assert_array_equal(batches, flattened_cka(new, old, x_new, x_old, batch=10))
    np.testing.assert_allclose(batches, found, atol=0.15)
    with pytest.raises(ValueError, match="found 24 new and 5 old"):
        flattened_cka(new, old, x_new, x_old[:5])


def test_streamed_values_decide_and_leave_no_biased_ones():
    rng = np.random.default_rng(0)
    new, old = ([rng.normal(size=(40, 5)) for _ in range(n)] for n in (2, 3))
    labels, table = np.arange(40) % 2, np.array([[0.1, 0.9, 0.2], [0.3, np.nan, 0.7]])
    for m, l in ((0, 1), (1, 2)):
        found = select_positions(new, old, labels, m=m, streamed=table)
        assert found.l == l and np.isnan(found.cka_biased).all()
        np.testing.assert_array_equal(found.cka, table[m])
    with pytest.raises(ValueError, match="found cka 'biased'"):
        select_positions(new, old, labels, cka="biased", streamed=table)
    with pytest.raises(ValueError, match="and flattened states"):
        select_positions(new, old, labels, streamed=table, flattened=(new, old))
    with pytest.raises(ValueError, match=r"\(2, 3\), found \(3, 2\)"):
        select_positions(new, old, labels, streamed=table.T)

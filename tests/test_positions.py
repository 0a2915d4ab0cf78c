"""Probe and two-stage selection against the authors' selector and against constructed layers."""

import numpy as np
import pytest
from fill import GOLDEN
from fill import windows as golden_input
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from biox.cka import linear_cka
from biox.positions import probe_folds, select_positions


def golden_layers(golden):
    """Rebuild the synthetic layers of selector.npz by its published recipe."""
    n = 200
    labels = golden_input("selector:logits", (n, 3)).argmax(1)
    emb = golden_input("selector:emb", (3, 24))
    inputs = [
        s * emb[labels][:, None, :] + golden_input(f"selector:in:{i}", (n, 7, 24))
        for i, s in enumerate(golden["in_strength"].tolist())
    ]
    base = inputs[3].mean(1)
    outputs = [
        a * (base @ golden_input(f"selector:w:{i}", (24, 40))) / np.sqrt(24)
        + golden_input(f"selector:out:{i}", (n, 40))
        for i, a in enumerate(golden["out_strength"].tolist())
    ]
    return [x.mean(1).numpy() for x in inputs], [y.numpy() for y in outputs], labels.numpy()


def test_as_published_agrees_with_the_authors_selector():
    golden = np.load(GOLDEN / "selector.npz")
    new, old, labels = golden_layers(golden)
    assert np.bincount(labels).tolist() == golden["class_counts"].tolist()
    selection = select_positions(new, old, labels, cka="biased")
    np.testing.assert_allclose(selection.probe, golden["in_scores"], atol=0.02)
    np.testing.assert_allclose(selection.cka_biased, golden["out_scores"], rtol=1e-3)
    assert (selection.m, selection.l) == (int(golden["best_in"]), int(golden["best_out"]))


@given(best=st.integers(0, 4), found=st.integers(0, 4), seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_finds_the_layers_that_carry_the_information(best, found, seed):
    rng = np.random.default_rng(seed)
    labels, subjects = np.tile([0, 1], 60), np.repeat([f"p{i}" for i in range(6)], 20)
    signal = labels[:, None] + 0.1 * rng.normal(size=(120, 1))
    new = [rng.normal(size=(120, 6)) + (3 * signal if i == best else 0) for i in range(5)]
    old = [rng.normal(size=(120, 9)) + (3 * signal if i == found else 0) for i in range(5)]
    selection = select_positions(new, old, labels, subjects)
    assert (selection.m, selection.l) == (best, found)
    assert max(selection.probe) > 0.95 and len(selection.probe) == len(selection.cka) == 5


def test_width_of_a_layer_misleads_only_the_biased_estimate():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 40))
    related, wide = x[:, :4] + rng.normal(size=(100, 4)), rng.normal(size=(100, 3000))
    labels = (x[:, 0] > 0).astype(int)
    biased, debiased = (
        select_positions([x], [related, wide], labels, cka=cka) for cka in ("biased", "debiased")
    )
    assert (biased.l, debiased.l) == (1, 0)
    assert biased.cka == debiased.cka and biased.cka_biased == debiased.cka_biased


def test_probe_by_subject_is_the_regression_of_the_other_subjects():
    """Two subjects are two folds: each predicted by a regression fitted on the other."""
    rng = np.random.default_rng(2)
    subjects, labels = np.repeat(["a", "b"], 40), rng.integers(0, 3, 80)
    features = rng.normal(size=(80, 5)) + np.eye(5)[labels]
    scores = []
    for left_out in ("a", "b"):
        rest, out = subjects != left_out, subjects == left_out
        scale = StandardScaler().fit(features[rest])
        head = LogisticRegression(max_iter=1000)
        head.fit(scale.transform(features[rest]), labels[rest])
        predicted = head.predict(scale.transform(features[out]))
        scores.append(f1_score(labels[out], predicted, average="macro"))
    found = probe_folds(features, labels, subjects)
    assert sorted(found) == pytest.approx(sorted(scores), abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "subjects", "message"),
    [
        ([0] * 30, None, "only class .0.: the teacher predicts the same for every window"),
        ([0] * 27 + [1] * 3, None, "at least 5 windows of each pseudo-class, found {0: 27, 1: 3}"),
        ([0, 1] * 15, ["a"] * 30, "at least two subjects.*found .'a'.; probe: as_published"),
        ([0] * 15 + [1] * 15, ["a"] * 15 + ["b"] * 15, "two classes in some training fold"),
    ],
)
def test_pseudo_labels_that_cannot_be_probed_are_refused(labels, subjects, message):
    features = np.random.default_rng(0).normal(size=(30, 3))
    subjects = None if subjects is None else np.array(subjects)
    with pytest.raises(ValueError, match=message):
        select_positions([features], [features], np.array(labels), subjects)


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


def test_given_positions_are_taken_and_scored_all_the_same():
    rng = np.random.default_rng(0)
    new, old = ([rng.normal(size=(40, 5)) for _ in range(3)] for _ in range(2))
    labels = np.arange(40) % 2
    free = select_positions(new, old, labels)
    taken = select_positions(new, old, labels, m=2, l=0)
    assert (taken.m, taken.l) == (2, 0) and taken.probe == pytest.approx(free.probe)
    assert taken.cka[1] == pytest.approx(linear_cka(new[2], old[1], debiased=True))
    for m, l, name, wrong in ((None, 3, "l", 3), (-1, None, "m", -1)):
        with pytest.raises(ValueError, match=rf"expected {name} in 0..2, found {wrong}"):
            select_positions(new, old, labels, m=m, l=l)


def test_an_undefined_cka_is_never_chosen():
    """Four windows at equal distances have no debiased CKA; others of them do."""
    new, labels = np.arange(40.0).reshape(20, 2) ** 2, np.arange(20) % 2
    x = new[:4]
    apart, related = np.eye(4), np.c_[x, np.arange(4) % 2]
    selection = select_positions([new], [new, new], labels, flattened=([x], [apart, related]))
    assert np.isnan(selection.cka[0]) and selection.l == 1
    assert np.isfinite(selection.cka_biased).all()
    with pytest.raises(ValueError, match="expected a defined CKA for some old layer, found none"):
        select_positions([new], [new], labels, flattened=([x], [apart]))


def test_a_dead_layer_is_named_and_never_chosen(caplog):
    rng = np.random.default_rng(0)
    new, old = ([rng.normal(size=(40, 5)) for _ in range(3)] for _ in range(2))
    labels = (new[2][:, 0] > 0).astype(int)
    new[0], old[1] = np.zeros((40, 5)), np.full((40, 5), 0.1)
    selection = select_positions(new, old, labels)
    assert selection.m == 2 and selection.l != 1
    assert np.isnan([selection.probe[0], selection.cka[1], selection.cka_biased[1]]).all()
    assert "output of new layers [0]: the same for every window" in caplog.text
    assert "input of old layers [1]: the same for every window" in caplog.text
    with pytest.raises(ValueError, match="differ between windows at the input of old layer 1"):
        select_positions(new, old, labels, l=1)

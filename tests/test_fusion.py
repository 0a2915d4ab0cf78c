"""Fusion: what is concatenated, trained and left out; problems whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from test_audit_pages import functions_of

from biox.backbones import build
from biox.fusion import FusionModel, train_fusion

HOW = dict(epochs=60, batch=32, lr=0.02, weight_decay=0.0)


def embeddings(n=300, seed=0, shared=False):
    """ECG tells half of the classes' logit, EEG the other half (or each all of it)."""
    rng = np.random.default_rng(seed)
    ecg, eeg = rng.normal(size=(n, 4)), 5 + 3 * rng.normal(size=(n, 6))
    score = ecg[:, 0] + (eeg[:, 1] - 5) / 3
    if shared:
        eeg[:, 1] = 5 + 3 * ecg[:, 0] + 0.5 * rng.normal(size=n)
        score = ecg[:, 0]
    y = (score + 0.3 * rng.normal(size=n) > 0).astype(np.int64)
    return {"ecg": torch.tensor(ecg).float(), "eeg": torch.tensor(eeg).float()}, y


def accuracy(model, inputs, y):
    return (model.predict(inputs).argmax(1) == y).mean()


def trained(inputs, y, hidden=None, **changes):
    torch.manual_seed(0)
    model = FusionModel({k: x.shape[1] for k, x in inputs.items()}, 2, hidden)
    train_fusion(model, inputs, y, **HOW | changes)
    return model


def test_fusion_finds_what_neither_modality_tells_alone():
    inputs, y = embeddings()
    test, truth = embeddings(seed=1)
    both = accuracy(trained(inputs, y, hidden=16), test, truth)
    alone = [accuracy(trained({k: inputs[k]}, y, 16), {k: test[k]}, truth) for k in inputs]
    assert both > 0.84 and both > max(alone) + 0.05


def test_a_linear_head_is_logistic_regression():
    inputs, y = embeddings()
    model = trained(inputs, y, epochs=400, batch=300, lr=0.05)
    x = torch.cat(list(inputs.values()), 1).numpy()
    x = (x - x.mean(0)) / x.std(0)
    fit = LogisticRegression(C=1e6, class_weight="balanced", max_iter=5000).fit(x, y)
    np.testing.assert_allclose(model.predict(inputs), fit.predict_proba(x), atol=0.02)


def test_modality_dropout_serves_a_modality_that_is_missing():
    """Both modalities tell the same: without dropout the head leans on both of them."""
    inputs, y = embeddings(shared=True)
    test, truth = embeddings(seed=1, shared=True)
    dropped = trained(inputs, y, modality_dropout=0.6)
    assert accuracy(dropped, {"eeg": test["eeg"]}, truth) > 0.85
    assert accuracy(dropped, {"ecg": test["ecg"]}, truth) > 0.85


def test_dropped_windows_lose_one_modality_and_only_that():
    inputs, _ = embeddings(6)
    model = FusionModel({"ecg": 4, "eeg": 6}, 2).eval()
    torch.nn.init.normal_(model.head[0].weight)
    model.calibrate(inputs)
    lost = torch.tensor([True, False, False, True, False, False])
    scaled = [(x - x.mean(0)) / x.std(0, correction=0) for x in inputs.values()]
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), model.head(torch.cat(scaled, dim=1)))
        found = model(inputs, {"ecg": lost, "eeg": torch.zeros(6, dtype=bool)})
        torch.testing.assert_close(found[~lost], model(inputs)[~lost])
        torch.testing.assert_close(found[lost], model({"eeg": inputs["eeg"]})[lost])


def test_encoders_are_fine_tuned_where_they_are_part_of_the_model():
    torch.manual_seed(0)
    encoder = build("cbramod_ecg", "tiny", n_channels=2, seconds=1)
    rng = np.random.default_rng(0)
    y = np.arange(48) % 2
    phase = 2 * np.pi * (5 + 10 * y[:, None]) * np.arange(200) / 200
    wave = np.sin(phase + rng.uniform(0, 6, (48, 1)))
    x = torch.tensor(np.stack([wave, 0.5 * wave], 1)).float()
    inputs = {"ecg": x, "eeg": torch.randn(48, 3)}
    model = FusionModel({"ecg": 80, "eeg": 3}, 2, encoders={"ecg": encoder})
    before = encoder.encoder.layers[0].linear1.weight.clone()
    how = HOW | {"epochs": 8, "batch": 16, "lr": 0.01, "encoder_lr": 1e-3}
    curve = train_fusion(model, inputs, y, **how)
    assert curve[-1] < 0.5 * curve[0] and accuracy(model, inputs, y) > 0.9
    assert not torch.equal(before, encoder.encoder.layers[0].linear1.weight)
    with torch.no_grad():
        torch.testing.assert_close(model.embed("ecg", x), encoder(x).mean(1))
    assert torch.equal(model.embed("eeg", inputs["eeg"]), inputs["eeg"])


def test_the_seed_decides():
    inputs, y = embeddings(64)
    a, b, c = (trained(inputs, y, epochs=3, seed=s, modality_dropout=0.5) for s in (0, 0, 1))
    assert np.array_equal(a.predict(inputs), b.predict(inputs))
    assert not np.array_equal(a.predict(inputs), c.predict(inputs))


def test_a_class_without_windows_is_named():
    inputs, y = embeddings(20)
    with pytest.raises(ValueError, match=r"windows of all 2 classes in train, found \[20, 0\]"):
        trained(inputs, 0 * y)


# --- the page's areas and intervals


@pytest.fixture(scope="module")
def page():
    return functions_of("20_fusion")


def predicted(n=120, subjects=7, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    p = np.round(rng.normal(0.4 * label, 1.0), 1)  # rounded: some are equal
    p = 1 / (1 + np.exp(-p))
    of = rng.integers(0, subjects, n).astype(str)
    return pd.DataFrame({"subject": of, "label": label, "p low": 1 - p, "p high": p})


def test_pairs_of_subjects_add_up_to_the_area_under_the_roc_curve(page):
    frame = predicted()
    right, every = page.pairs(frame)
    area = roc_auc_score(frame["label"], frame["p high"])
    assert right.shape == every.shape == (7, 7)
    assert right.sum() / every.sum() == pytest.approx(area)
    found = page.interval(frame)
    assert found[""] == pytest.approx(100 * area)
    assert page.interval(frame, frame) == {"": 0, " interval low": 0, " interval high": 0}


def test_intervals_are_those_of_subjects_drawn_again(page):
    frame, areas = predicted(), []
    parts = [part for _, part in frame.groupby("subject")]
    for drawn in np.random.default_rng(1).integers(0, 7, (400, 7)):
        again = pd.concat([parts[i] for i in drawn])
        areas.append(100 * roc_auc_score(again["label"], again["p high"]))
    found = page.interval(frame, n=4000)
    ends = [found[" interval low"], found[" interval high"]]
    np.testing.assert_allclose(ends, np.quantile(areas, [0.025, 0.975]), atol=2.5)


def test_accuracy_counts_windows_and_resamples_subjects(page):
    frame = predicted()
    right = (frame["p high"] > 0.5) == frame["label"]
    found = page.interval(frame, counts=page.hits)
    assert found[""] == pytest.approx(100 * right.mean())
    assert found[" interval low"] < found[""] < found[" interval high"]

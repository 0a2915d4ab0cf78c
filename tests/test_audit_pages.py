"""Functions of the pages on controls, leakage and deviations, on cases whose answer is known."""

import ast
import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from torch import nn
from toy import SETTINGS

from biox import metrics
from biox.activations import Activations, FrozenDirection
from biox.backbones.base import Backbone, InputSpec
from biox.data.windows import Windows
from biox.training import parallel

ROOT = Path(__file__).parents[1]


def functions_of(stem):
    """Imports, functions and constants of a page; what its data would make is left out."""
    cells = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    kinds, namespace = (ast.Import, ast.ImportFrom, ast.FunctionDef), {}
    for node in ast.parse(code).body:
        constant = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper()
        if isinstance(node, kinds) or constant:
            with suppress(NameError):
                exec(compile(ast.Module([node], []), stem, "exec"), namespace)
    return SimpleNamespace(**namespace)


pages = ("14_controls", "15_leakage", "16_deviations")
controls, leakage, deviations = map(functions_of, pages)


class Toy(Backbone):
    """Two layers that leave three tokens of four features as they are."""

    sizes, default_spec = {"toy": {}}, InputSpec("ecg", 1, 12.0, 1.0, "1", "none")

    def make(self):
        self.n_layers = 2
        self.unused = nn.Parameter(torch.zeros(1))

    def stem(self, x):
        return x.reshape(len(x), 3, 4)

    def layer(self, i, h):
        return h


def toy_split(n, seed):
    """Features of both models say the class (30 % are of class 1) and little else."""
    labels, generator = torch.arange(n) % 10 < 3, torch.Generator().manual_seed(seed)
    sign = 2.0 * labels - 1
    last = 0.2 * torch.randn(n, 3, 4, generator=generator) + sign[:, None, None]
    new = 0.2 * torch.randn(n, 5, generator=generator) + sign[:, None]
    new[:, 0] = 3  # what windows have in common: without it no bridge could predict one class
    subjects = np.array([f"p{i % 7}" for i in range(n)])
    logits, tokens = torch.stack([-sign, sign], dim=1), (last.flatten(0, 1),) * 2
    about = {"labels": labels.long().numpy(), "subjects": subjects, "recordings": subjects}
    about |= {"starts": np.arange(n, dtype=float), "classes": ("no", "yes"), "source": "toy"}
    old = (last.mean(1),) * 2
    return Activations((new,) * 2, old, last.numpy(), logits, tokens, **about)


@pytest.fixture(scope="module")
def frozen():
    head = nn.Linear(4, 2)
    head.load_state_dict({"weight": torch.tensor([[-1.0] * 4, [1.0] * 4]), "bias": torch.zeros(2)})
    sizes = {"pair": 140, "val": 70, "test": 70}
    cached = {split: toy_split(n, seed) for seed, (split, n) in enumerate(sizes.items())}
    settings = SETTINGS.override("bridge", {"rank": 4, "n_prototypes": 6})
    settings, name = settings.model_copy(update={"device": "cpu"}), "wesad-ecg2ppg"
    direction = settings.direction(name)
    return FrozenDirection(settings, name, direction, Toy("toy"), Toy("toy"), head, 0, 1, cached)


def score(result, frozen):
    labels = frozen.activations["test"].labels
    return balanced_accuracy_score(labels, result.probabilities.argmax(axis=1))


def test_true_pairs_transfer_and_shuffled_pairs_do_not(frozen):
    train = partial(controls.train_control, lr=2e-2, epochs=5)
    mixed = [partial(train, "x", s, controls.shuffle_pairs(frozen, s)) for s in range(10)]
    true, *mixed = parallel([partial(train, "true", 0, frozen), *mixed])
    assert score(true, frozen) == 1
    scores = [score(result, frozen) for result in mixed]
    assert np.mean([(r.probabilities.argmax(axis=1) == 0).all() for r in mixed]) > 0.5
    assert abs(np.mean(scores) - 0.5) < 3 * np.std(scores, ddof=1) / np.sqrt(10) + 1e-9


def test_pairs_are_shuffled_and_test_stays(frozen):
    numbered = {
        split: replace(a, new=(torch.arange(len(a)),)) for split, a in frozen.activations.items()
    }
    shuffled = controls.shuffle_pairs(replace(frozen, activations=numbered), 0).activations
    order = {split: a.new[0].tolist() for split, a in shuffled.items()}
    for split in ("pair", "val"):
        assert order[split] != sorted(order[split]) == list(range(len(order[split])))
    assert order["test"] == list(range(70))


def test_no_label_is_read(frozen):
    blind = {s: replace(a, labels=np.full(len(a), -99)) for s, a in frozen.activations.items()}
    found = []
    for f in (frozen, replace(frozen, activations=blind)):
        bridge = controls.train_control("x", 1, controls.shuffle_pairs(f, 1), 1e-2, 2)
        probe = controls.probe_permuted_labels(f, 0)
        place = controls.select_with_permuted_labels(f, 0)
        found.append((bridge.probabilities.tolist(), probe.probabilities.tolist(), place))
    assert found[0] == found[1]


def test_permuted_pseudo_labels_leave_nothing_to_learn(frozen):
    probes = [controls.select_with_permuted_labels(frozen, seed).probe[0] for seed in range(4)]
    assert np.mean(probes) < 0.55
    scores = [score(controls.probe_permuted_labels(frozen, seed), frozen) for seed in range(40)]
    assert abs(np.mean(scores) - 0.5) < 3 * np.std(scores, ddof=1) / np.sqrt(40) + 0.01


def test_random_positions_are_all_but_the_selected_one(frozen):
    assert sorted(controls.random_positions_of(frozen, 9)) == [(0, 0), (1, 0), (1, 1)]
    first = [controls.random_positions_of(frozen, 1, seed)[0] for seed in range(600)]
    assert pd.Series(first).value_counts().between(150, 250).all()  # 200 each, sd 12


def test_untrained_weights_are_drawn_and_not_read(frozen, monkeypatch):
    """The file of trained weights does not exist."""
    x = torch.randn(4, 1, 250)
    windows = SimpleNamespace(signals={"ppg": x}, seconds=lambda key: 2.0)
    page = controls.untrain_new_model.__wrapped__.__globals__  # below torch.no_grad
    monkeypatch.setitem(page, "load_windows", lambda *_: (x, None, windows))
    absent = SETTINGS.backbone("ppg").model_copy(update={"checkpoint": "no such file"})
    backbones = {"backbones": SETTINGS.backbones | {"ppg": absent}}
    f = replace(frozen, settings=frozen.settings.model_copy(update=backbones))
    found = [controls.untrain_new_model(f, seed).activations["pair"].new for seed in (0, 0, 1)]
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] is f.activations["pair"].new[1]
    assert not torch.allclose(found[0][0], found[2][0], rtol=0.1)


def predicted(right, seed=0, method="x"):
    """Predictions that are all right or all wrong."""
    test = toy_split(70, 0)
    p = np.eye(2)[test.labels if right else 1 - test.labels]
    return metrics.prediction_frame(test, p, method=method, seed=seed)


def test_intervals_resample_runs_and_say_where_chance_lies():
    runs = [predicted(1, 0), predicted(0, 1)]
    assert controls.control_interval(runs) == (0, 1)
    for chosen, where in ((runs, "includes"), (runs[:1] * 2, "above"), (runs[1:] * 2, "below")):
        row = controls.control_row(chosen, controls.control_interval)
        assert row["interval against chance"] == where


def calibration_error(frame, adaptive):
    """Mean distance of accuracy to confidence in ten bins, weighted by windows."""
    bins = metrics.reliability(frame, 10, adaptive).dropna()
    return np.average((bins["accuracy"] - bins["confidence"]).abs(), weights=bins["windows"])


def test_calibration_is_the_mean_over_runs_with_intervals_over_subjects():
    rng, frames = np.random.default_rng(0), []
    for _ in range(3):
        p, labels = rng.uniform(0.5, 1, 300), rng.integers(0, 2, 300)
        columns = {"subject": [f"p{i % 5}" for i in range(300)], "label": labels}
        frames.append(pd.DataFrame(columns | {"p no": p, "p yes": 1 - p}))
    row = controls.calibration(frames, 10)
    expected = {"ECE": [calibration_error(f, adaptive=False) for f in frames]}
    expected["adaptive ECE"] = [calibration_error(f, adaptive=True) for f in frames]
    expected["Brier score"] = [2 * brier_score_loss(f["label"], f["p yes"]) for f in frames]
    for name, values in expected.items():
        assert row[name] == pytest.approx(np.mean(values))
        assert row[f"{name} interval low"] < row[name] < row[f"{name} interval high"]


FRACTIONS = {"train": 5, "val": 2, "test": 3}


def long_windows(n_classes=2):
    """Windows of 3 s every 0.3 s of 6 subjects, labelled in independent bouts of 10."""
    rng, subjects = np.random.default_rng(0), np.repeat([f"p{i}" for i in range(6)], 120)
    bouts = np.concatenate([rng.permutation(np.arange(12) % n_classes) for _ in range(6)])
    about = {"labels": np.repeat(bouts, 10), "subjects": subjects, "recordings": subjects}
    about |= {"rates": {"eeg": 4.0}, "units": {"eeg": "1"}, "channels": {"eeg": ("x",)}}
    about |= {"starts": np.tile(0.3 * np.arange(120), 6), "classes": tuple("abc"[:n_classes])}
    return Windows({"eeg": np.zeros((720, 1, 12), np.float32)}, **about, source="toy")


def leaks_of(features, windows, n_splits=4):
    features, found = torch.from_numpy(features.astype(np.float32)), []
    for split in leakage.SPLITS:
        for seed in range(n_splits):
            args = ("toy", windows, features, split, FRACTIONS, seed)
            found.append(leakage.evaluate_split(*args))
    predictions, rows = zip(*found, strict=True)
    table = leakage.inflation(pd.concat(predictions), pd.DataFrame(rows))
    return table.set_index(["classifier", "split"])


def test_overlap_inflates_what_a_memoriser_scores_and_blocks_take_it_away():
    """Features drift with time and know no label: the neighbour in time has the same one."""
    x, y = torch.randn(50, 4), np.arange(50) % 2
    assert (leakage.nearest_neighbour(x, y, x, 2).argmax(axis=1) == y).all()  # copies
    drift = np.random.default_rng(1).normal(size=(6, 120, 12)).cumsum(axis=1).reshape(720, 12)
    near = leaks_of(drift, long_windows()).loc["nearest neighbour"]
    assert near["balanced_accuracy"]["windows shuffled"] > 85
    assert near["balanced_accuracy"]["blocked in time"] < 65
    assert (near["interval low"].dropna() > 0).all() and near["interval low"].count() == 2
    assert near["overlapping test windows (%)"].tolist() == [pytest.approx(100, abs=1), 0, 0]


def test_without_a_leak_there_is_no_inflation():
    """Features of a window know its label and nothing of their neighbours or their subject."""
    windows, noise = long_windows(3), np.random.default_rng(2).normal(size=(720, 5))
    table = leaks_of(noise + np.eye(5)[windows.labels] * 3, windows)
    assert (table["shuffling adds"].dropna().abs() < 3).all()
    assert table["balanced_accuracy"].between(80, 100).all()


FACTS, RELEASED = deviations.read_facts(ROOT / "notebooks" / "deviations.yaml")


def test_there_are_sixteen_and_each_is_measured_or_says_why_not():
    assert list(FACTS.index) == list(range(1, 17))
    assert not FACTS.drop(columns="not_measured").isna().any().any()
    assert FACTS["verdict"].str.match("keep|fix|choose|report").all()
    about = {"change": "c", "data": "d", "default": 84.4, "value": 0.632, "unit": "%"}
    measured = [about | {"number": n} for n in FACTS.index[FACTS["not_measured"].isna()]]
    cells = deviations.all_deviations(FACTS, measured)["measured"]
    assert cells[1] == "c [d] 84.4 to 0.63 %" and cells[7].startswith("not measured: ")
    assert cells.notna().all() and len(cells) == 16
    assert deviations.all_deviations(FACTS, measured[1:])["measured"].isna().sum() == 1


def test_settings_of_bridge_and_positions_exist_and_start_with_the_default():
    settings = "; ".join(FACTS["setting"]).split("; ")
    named = [s.partition(": ") for s in settings if s.startswith(("bridge", "positions"))]
    for (section, name), values in ((key.split("."), values) for key, _, values in named):
        default = getattr(getattr(SETTINGS, section), name)
        assert not values or default == values.split(" or ")[0], name
    for _, changes in deviations.BRIDGE_VARIANTS.values():
        SETTINGS.override("bridge", changes)
        assert changes and all(getattr(SETTINGS.bridge, k) != v for k, v in changes.items())


def test_bridges_of_published_sizes_have_the_released_number_of_parameters():
    counts = deviations.parameter_counts(RELEASED)
    assert len(counts) == 6 and (counts["parameters"] == counts["released code"]).all()


def test_variants_stand_beside_their_default():
    predictions = pd.concat([predicted(1, method="default"), predicted(0)])
    predictions = predictions.assign(folder="f", direction="d")
    runs = predictions[["folder", "direction", "method", "seed"]].drop_duplicates()
    row = deviations.against_default(predictions, runs.assign(number=3, m=0, l=1)).iloc[1]
    assert (row["difference"], row["interval low"], row["balanced_accuracy"]) == (-100, -100, 0)

"""Table 3 follows from saved predictions; failures show; tiny sizes keep proportions."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fill import windows
from memory_task import fill_memory
from sklearn.metrics import balanced_accuracy_score, f1_score

from biox.activations import Activations
from biox.apart import apart
from biox.backbones import build
from biox.baselines.outcome import Outcome, save_outcomes
from biox.bench import Cost
from biox.bridge import PrototypeBridge
from biox.config import load_settings
from biox.data.windows import Windows
from biox.files import write_json
from biox.report import table3 as report
from biox.table3 import check_same_windows, pooled_layers, thinned

ROOT = Path(__file__).parents[1]
CLASSES = ("baseline", "stress", "amusement")


@dataclass(frozen=True)
class Split:
    """What `save_outcomes` reads of test activations."""

    labels: np.ndarray
    subjects: np.ndarray
    recordings: np.ndarray
    starts: np.ndarray
    logits: torch.Tensor
    classes: tuple = CLASSES
    source: str = "simulated"


@pytest.fixture(scope="module")
def test_windows():
    n = 90
    subjects = np.repeat(["S7", "S14", "S17"], n // 3)
    return Split(np.arange(n) % 3, subjects, subjects, np.arange(n) * 5.0, torch.zeros(n, 3))


def answers(test, share, seed):
    """Probabilities that are right for about this share of windows."""
    rng = np.random.default_rng(seed)
    chosen = np.where(rng.random(len(test.labels)) < share, test.labels, rng.integers(0, 3, 90))
    return 0.1 + 0.7 * np.eye(3)[chosen]


def write(folder, test, outcomes, parameters=1000):
    save_outcomes(folder, outcomes, test, "wesad-ppg2ecg")
    about = {"layers": 4, "width": 64, "tokens": 93, "parameters": parameters, "m": 1, "l": 7}
    per_method = {"BioX-Bridge": 5_000_000, "KD": 20_000_000}
    about |= {"peak_memory": per_method, "windows": {"BioX-Bridge": 635, "KD": 127}}
    write_json(folder / "model.json", about | {"pass_seconds": 2.0, "choice_seconds": 1.5})


def outcomes_of(test, bridge, kd):
    curves = dict(train_loss=(1.0, 0.5), val_loss=(1.0, 0.6), best_epoch=1, lr=1e-3)
    return [
        Outcome(method, seed, answers(test, share, seed), n, seconds=2.0 + seed, **curves)
        for method, share, n in (("BioX-Bridge", bridge, 50), ("KD", kd, 1195))
        for seed in (0, 1, 2)
    ]


def table_of(tmp_path, test, **models):
    folders = {}
    for i, (key, outcomes) in enumerate(models.items()):
        folders[key.replace("_", " ").replace("HuBERT ", "HuBERT-ECG ")] = tmp_path / key
        write(tmp_path / key, test, outcomes, parameters=1000 * (i + 1))
    return report.table3(folders, "wesad-ppg2ecg")


def test_every_score_follows_from_the_saved_predictions(tmp_path, test_windows):
    outcomes = outcomes_of(test_windows, 0.8, 0.4)
    table = table_of(tmp_path, test_windows, HuBERT_small=outcomes)
    saved = pd.read_csv(tmp_path / "HuBERT_small" / "predictions.csv")
    for _, row in table.iterrows():
        runs = saved[saved["method"] == row["method"]]
        by_seed = []
        for _, run in runs.groupby("seed"):
            said = run[[f"p {name}" for name in CLASSES]].to_numpy().argmax(1)
            by_seed.append(
                [
                    balanced_accuracy_score(run["label"], said),
                    f1_score(run["label"], said, average="macro"),
                    f1_score(run["label"], said, average="weighted"),
                ]
            )
        means, sds = 100 * np.mean(by_seed, axis=0), 100 * np.std(by_seed, axis=0, ddof=1)
        names = ["balanced_accuracy", "macro_f1", "weighted_f1"]
        np.testing.assert_allclose(row[names].to_numpy(float), means)
        np.testing.assert_allclose(row[[f"{n} sd" for n in names]].to_numpy(float), sds)
        assert row["interval low"] < row["balanced_accuracy"] < row["interval high"]
        assert row["seconds"] == 3.0 and row["chance"] == pytest.approx(100 / 3)
    assert table["trained parameters"].tolist() == [50, 1195]
    assert table["seconds once"].tolist() == [3.5, 0.0]
    assert table["peak memory (MB)"].tolist() == [5.0, 20.0]


def test_reported_numbers_stand_beside_the_models_they_are_of(tmp_path, test_windows):
    outcomes = outcomes_of(test_windows, 0.8, 0.4)
    models = {"ECG-FM": outcomes, "HuBERT_base": outcomes}
    table = table_of(tmp_path, test_windows, **models).set_index(["model", "method"])
    assert table.loc[("ECG-FM", "BioX-Bridge"), "balanced_accuracy reported"] == 58.80
    assert table.loc[("ECG-FM", "KD"), "parameters reported (M)"] == 90.8
    assert table.loc["HuBERT-ECG base"].filter(like="reported").isna().all(axis=None)
    shown = report.readable(table.reset_index())
    assert shown.iloc[0, -1] == "58.80 / 57.11 / 72.12, 0.11M" and shown.iloc[2, -1] == ""


def test_a_failed_method_shows_as_failed(tmp_path, test_windows):
    outcomes = outcomes_of(test_windows, 0.8, 0.4)[:3]
    shape = outcomes[0].probabilities.shape
    outcomes += [Outcome.failure("KD", s, shape, "loss NaN in epoch 3") for s in (0, 1, 2)]
    table = table_of(tmp_path, test_windows, plain=outcomes)
    assert report.readable(table)["balanced accuracy"].tolist()[1] == "failed"
    assert "KD **failed** (loss NaN in epoch 3)" in report.verdict(table)
    figure = report.plot(table)
    assert len(figure.axes) == 1
    report.save_table(table, tmp_path / "table3.csv")
    again = pd.read_csv(tmp_path / "table3.csv")
    assert np.isnan(again.loc[1, "macro_f1"]) and again.loc[1, "failed"].startswith("loss")


def test_a_collapsed_method_shows_as_collapsed(tmp_path, test_windows):
    outcomes, one = outcomes_of(test_windows, 0.8, 0.4)[:3], np.tile([0.8, 0.1, 0.1], (90, 1))
    outcomes += [Outcome("KD", seed, one, 7, seconds=1.0) for seed in (0, 1, 2)]
    table = table_of(tmp_path, test_windows, plain=outcomes)
    assert report.readable(table)["balanced accuracy"].tolist()[1] == "collapsed"
    assert "3 of 3 KD runs **collapsed**" in report.verdict(table)


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ((0.2, 0.5, 0.95), "Larger HuBERT-ECG transfers better here, as the paper reports"),
        ((0.2, 0.95, 0.5), "Larger HuBERT-ECG does **not** always transfer better here"),
    ],
)
def test_verdict_says_whether_larger_is_better(tmp_path, test_windows, shares, sentence):
    names = ("HuBERT_small", "HuBERT_base", "HuBERT_large")
    models = {
        name: outcomes_of(test_windows, share, 0.4)
        for name, share in zip(names, shares, strict=True)
    }
    said = report.verdict(table_of(tmp_path, test_windows, **models))
    assert sentence in said and said.count("bridge ") >= 3 and "4.2% of the trained" in said


def test_foreign_predictions_are_refused(tmp_path, test_windows):
    write(tmp_path / "a", test_windows, outcomes_of(test_windows, 0.8, 0.4)[:3])
    with pytest.raises(ValueError, match=r"predictions.csv: expected .*'KD'.*found \['BioX-Bridge"):
        report.predictions_of(tmp_path / "a", "wesad-ppg2ecg")
    with pytest.raises(ValueError, match=r"expected predictions of \['fog'\], found \['wesad"):
        report.predictions_of(tmp_path / "a", "fog")
    with pytest.raises(FileNotFoundError, match="expected predictions of a swapped model"):
        report.predictions_of(tmp_path / "b", "fog")


# --- models ---------------------------------------------------------------------------------------


def test_tiny_hubert_sizes_keep_the_proportions_of_the_published_ones():
    sizes = type(build("hubert_ecg", "tiny")).sizes
    for tiny, published in (("tiny_base", "base"), ("tiny_large", "large")):
        for what in ("hidden_size", "num_hidden_layers", "intermediate_size"):
            ratio = sizes[published][what] / sizes["small"][what]
            assert sizes[tiny][what] / sizes["tiny"][what] == ratio


def test_ecg_fm_at_100_hz_has_a_fifth_of_the_tokens():
    slow, fast = (
        build("ecg_fm", size, n_channels=1, seconds=60) for size in ("tiny_100hz", "tiny")
    )
    assert (slow.token_shape(0)[0], fast.input_spec.samples // 16) == (375, 1875)
    assert slow.state_dict().keys() == fast.state_dict().keys()


def test_published_bridges_have_the_papers_number_of_parameters(monkeypatch):
    monkeypatch.setattr(report, "measure", lambda *_: Cost(1.0, 10**9))
    models = load_settings(ROOT / "params.yaml").table3.models
    sizes = report.published_sizes(models, seconds=60)
    assert sizes.loc["HuBERT-ECG small", "bridge's parameters"] == 398_784  # released code
    assert round(sizes.loc["ECG-FM", "bridge's parameters"] / 1e6, 2) == 0.11  # table 3
    bridge = PrototypeBridge(960, *reversed(build("papagei", "small").token_shape(11)), 32, 50)
    assert sizes.loc["HuBERT-ECG large", "bridge's parameters"] == bridge.n_parameters
    assert sizes.loc["ECG-FM", "tokens x features, 60 s"] == "1875 x 768"


def test_one_setting_can_be_overridden_and_models_stay():
    settings = load_settings(ROOT / "params.yaml")
    other = settings.override("table3", {"minutes": 20.0})
    assert other.table3.minutes == 20 and other.table3.models == settings.table3.models
    with pytest.raises(ValueError, match="table3.every: expected a number above 0, found 0"):
        settings.override("table3", {"every": 0})


# --- computing ------------------------------------------------------------------------------------


@torch.no_grad()
def test_pooled_layers_are_those_of_the_model():
    torch.manual_seed(0)
    backbone, x = build("plain_cnn", "tiny", seconds=4), windows("ecg", (5, 1, 400))
    pooled = pooled_layers(backbone, x, batch=2)
    assert len(pooled) == backbone.n_layers
    expected = backbone.run(backbone.stem(x), 0, 3).mean(dim=1)
    torch.testing.assert_close(pooled[2], expected, rtol=1e-4, atol=1e-5)


def toy_windows(n=6):
    names = np.array(["S1"] * n)
    signals = {"ecg": np.zeros((n, 1, 4), np.float32)}
    about = ({"ecg": 1.0}, {"ecg": "mV"}, {"ecg": ("ECG",)})
    return Windows(signals, *about, np.arange(n) % 3, names, names, np.arange(n) * 5.0, CLASSES)


def toy_activations(n=6):
    w = toy_windows(n)
    last, logits = torch.arange(n * 2.0).view(n, 1, 2), torch.arange(n * 3.0).view(n, 3)
    rest = (w.labels, w.subjects, w.recordings, w.starts, CLASSES, "simulated")
    return Activations((), (), last, logits, (), *rest)


def test_thinned_activations_are_those_of_the_kept_windows():
    rows = np.array([0, 2, 4])
    few = thinned(toy_activations(), rows)
    assert len(few) == 3 and few.starts.tolist() == [0, 10, 20]
    assert few.logits[:, 0].tolist() == [0, 6, 12]
    assert few.pooled_last[:, 1].tolist() == [1, 5, 9]
    check_same_windows("pair", toy_windows().select(rows), few)


def test_other_windows_than_those_of_the_activations_are_refused():
    cached = toy_activations()
    check_same_windows("pair", toy_windows(), cached)
    with pytest.raises(ValueError, match="pair: expected the 6 windows .* found 5 with other subj"):
        check_same_windows("pair", toy_windows(5), cached)
    shifted = toy_windows().select(np.array([0, 1, 2, 3, 5, 4]))
    with pytest.raises(ValueError, match="found 6 with other starts"):
        check_same_windows("pair", shifted, cached)


def test_each_task_is_measured_by_itself():
    tasks = {n: partial(fill_memory, n) for n in (300, 10)}
    done = apart(tasks, at_a_time=1)
    assert {n: m.value for n, m in done.items()} == {300: 300, 10: 10}
    assert 250e6 < done[300].peak_memory < 400e6
    assert done[10].peak_memory < 60e6  # nothing is left of the task before

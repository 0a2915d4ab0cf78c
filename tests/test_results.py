"""Results are read back as they were saved, and become tables, pictures and pages."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from biox import metrics, plots
from biox.activations import Activations
from biox.config import load_settings

ROOT = Path(__file__).parents[1]
CLASSES = {"wesad": ("baseline", "stress", "amusement"), "fog": ("normal", "freezing of gait")}
SKILL = {"BioX-Bridge": 1.0, "Oracle": 2.0}


@pytest.fixture(autouse=True)
def one_theme():
    with plt.rc_context():
        plots.theme()
        yield
    plt.close("all")


def windows(dataset="fog", subjects=4, each=20, source="simulated"):
    k, n = len(CLASSES[dataset]), subjects * each
    return SimpleNamespace(
        subjects=np.repeat([f"00{i}" for i in range(subjects)], each),
        recordings=np.full(n, "01"),
        starts=np.arange(n) * 0.6,
        labels=np.random.default_rng(0).permutation(np.arange(n) % k),
        classes=CLASSES[dataset],
        source=source,
    )


def result(test, method="KD", seed=0, failed="", constant=False):
    """Made-up predictions of some skill, with a made-up history."""
    rng = np.random.default_rng([seed, len(method)])
    p = rng.normal(size=(len(test.labels), len(test.classes)))
    p[np.arange(len(p)), test.labels] += SKILL.get(method, 0.7)
    p = np.exp(100 * np.eye(len(test.classes))[0] + 0 * p if constant else p)
    p = p / p.sum(axis=1, keepdims=True)
    epochs = np.arange(4)
    history = {"epoch": epochs, "train": 1 / (1 + epochs), "val": 1.1 / (1 + epochs)}
    history = pd.DataFrame(history | {"agreement": 0.5 + 0.1 * epochs})
    n = np.nan if method == "Oracle" else 1000 * len(method)
    if failed:
        return metrics.Result(method, seed, np.full_like(p, np.nan), n, 1e-3, failed=failed)
    return metrics.Result(method, seed, p, n, 1e-3, history, best_epoch=2)


# --- files ----------------------------------------------------------------------------------------


def test_what_is_saved_is_read_back(tmp_path):
    test, val = windows(), windows(subjects=2)
    results = [result(test, seed=0), result(test, seed=1, failed="loss is not finite")]
    results[0].val = result(val).probabilities
    metrics.save_results(tmp_path, results, test, "fog-eeg2emg", val, m=2, cosine=[0.5, np.nan])
    predictions, curves, runs = metrics.read_results(tmp_path)
    p = predictions[[f"p {name}" for name in test.classes]].to_numpy()
    np.testing.assert_allclose(p, np.concatenate([r.probabilities for r in results]), rtol=1e-7)
    assert predictions["subject"].tolist() == 2 * test.subjects.tolist()
    assert predictions["recording"].unique().tolist() == ["01"]
    np.testing.assert_allclose(predictions["start"], np.tile(test.starts, 2))
    assert predictions["label"].tolist() == 2 * test.labels.tolist()
    assert runs["failed"].tolist() == ["", "loss is not finite"]
    assert runs["cosine"].iloc[0] == 0.5 and runs["m"].tolist() == [2, 2]
    assert runs["direction"].unique().tolist() == ["fog-eeg2emg"]
    assert runs["source"].unique().tolist() == ["simulated"]
    assert curves["epoch"].tolist() == [0, 1, 2, 3] and curves["best"].unique().tolist() == [2]
    assert len(metrics.run_frames(predictions)) == 1
    kept = pd.read_csv(tmp_path / "val.csv", dtype={"subject": str})
    assert kept["subject"].tolist() == val.subjects.tolist() and set(kept["seed"]) == {0}
    np.testing.assert_allclose(kept.filter(regex="^p "), results[0].val, rtol=1e-7)


def test_only_failed_runs_have_no_predictions(tmp_path):
    wrong = result(windows())
    wrong.failed = "says so"
    with pytest.raises(AssertionError, match="KD, seed 0"):
        metrics.save_results(tmp_path, [wrong], windows(), "fog-eeg2emg")


def test_missing_results_are_named_with_the_command_that_makes_them(tmp_path):
    folders = [tmp_path / "bridges" / "x", tmp_path / "sweep" / "rank-1"]
    with pytest.raises(FileNotFoundError, match=r"dvc repro bridge@x sweep@rank-1$"):
        metrics.read_results(folders)


def test_data_sets_with_other_classes_stay_apart(tmp_path):
    expected = {}
    for dataset in CLASSES:
        test, run = windows(dataset), result(windows(dataset))
        metrics.save_results(tmp_path / dataset, [run], test, dataset)
        expected[dataset] = metrics.score_row([metrics.prediction_frame(test, run.probabilities)])
    predictions, _, runs = metrics.read_results([tmp_path / dataset for dataset in CLASSES])
    table = metrics.score_table(predictions, runs).set_index("direction")
    for dataset, row in expected.items():
        assert table.loc[dataset, list(row)].to_dict() == pytest.approx(row, nan_ok=True)


def test_classes_in_another_order_are_refused(tmp_path):
    test = windows()
    metrics.save_results(tmp_path / "a", [result(test)], test, "a")
    test.classes = test.classes[::-1]
    metrics.save_results(tmp_path / "b", [result(test)], test, "b")
    with pytest.raises(ValueError, match="the same order"):
        metrics.read_results([tmp_path / "a", tmp_path / "b"])


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    test = windows()
    results = [result(test, "KD", seed) for seed in (0, 1)]
    results += [result(test, "KD-Contrast", seed, constant=True) for seed in (0, 1)]
    results += [result(test, "LoRA-KD", seed, failed="why") for seed in (0, 1)]
    results += [result(test, "Probe transfer", 0), result(test, "Probe transfer", 1, failed="why")]
    metrics.save_results(tmp_path / "a", results, test, "fog-eeg2emg")
    predictions, _, runs = metrics.read_results(tmp_path / "a")
    return metrics.score_table(predictions, runs, by=["method"])


def test_a_group_is_scored_by_the_runs_that_worked(table):
    rows = table.set_index("method")
    assert rows["runs"].tolist() == [2, 2, 2, 2]
    assert rows["failed runs"].tolist() == [0, 0, 2, 1]
    assert rows["collapsed runs"].tolist()[:2] == [0, 2]
    assert np.isnan(rows.loc["LoRA-KD", "balanced_accuracy"])
    assert np.isnan(rows.loc["Probe transfer", "balanced_accuracy sd"])


def test_tables_are_written_for_readers_beside_all_numbers(table, tmp_path):
    shown = metrics.format_table(table).set_index("method")
    kd, row = shown.loc["KD"], table.set_index("method").loc["KD"]
    mean, sd = row["balanced_accuracy"], row["balanced_accuracy sd"]
    assert kd["balanced accuracy"] == f"{mean:.1f} ± {sd:.1f}"
    assert kd["95 % interval"] == f"[{row['interval low']:.1f}, {row['interval high']:.1f}]"
    assert kd["trained parameters"] == "2,000" and kd["failed runs"] == "0 of 2"
    assert shown.loc["KD-Contrast", "balanced accuracy"] == "collapsed"
    assert shown.loc["LoRA-KD", ["AUROC", "95 % interval"]].tolist() == ["failed", ""]
    assert "±" not in shown.loc["Probe transfer", "balanced accuracy"]
    small = pd.DataFrame({"a": [True], "b": [1234], "c": [0.04]})
    assert metrics.format_table(small, decimals=2).iloc[0].tolist() == ["yes", "1,234", "0.04"]
    metrics.save_table(table, "table", "Per cent.", folder=tmp_path)
    again, text = pd.read_csv(tmp_path / "table.csv"), (tmp_path / "table.md").read_text()
    pd.testing.assert_frame_equal(again, table, rtol=1e-5)
    assert "collapsed" in text and text.endswith("\n\nPer cent.\n")


# --- pictures -------------------------------------------------------------------------------------


def test_directions_are_written_out():
    assert plots.direction_name("isruc-eeg2ecg") == "ISRUC: EEG → ECG"
    name = plots.direction_name("wesad-ppg2ecg-hubert_small")
    assert name == "WESAD: PPG → ECG, hubert small"
    assert plots.direction_name("my own") == "my own"


def test_scores_show_subjects_chance_and_failures_and_are_saved_with_the_same_bytes(tmp_path):
    test = windows(subjects=5)
    kd = metrics.prediction_frame(test, result(test).probabilities, seed=0)
    for name in "ab":
        axis = plots.plot_scores({"KD": [kd], "LoRA-KD": [], "x": None})
        plots.save(axis.figure, name, "figure", root=tmp_path)
    for kind in ("svg", "png"):
        first, second = ((tmp_path / name / f"figure.{kind}").read_bytes() for name in "ab")
        assert len(first) > 5000 and first == second
    assert max(len(line.get_xdata()) for line in axis.lines) == 5
    assert {text.get_text() for text in axis.texts} == {"chance", "failed"}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["KD", "LoRA-KD", "x"]


def test_other_pictures_have_their_panels():
    signals = {"ecg": (np.zeros((1, 50)), 50.0, "mV"), "eeg": (np.zeros((3, 50)), 50.0, "uV")}
    assert len(plots.plot_windows(signals, "title").axes) == 2
    counts = {name: np.array([[9, 1], [2, 8]]) for name in ("KD", "Oracle", "BioX-Bridge")}
    shown = [a for a in plots.plot_confusion(counts, CLASSES["fog"]).axes if a.get_visible()]
    assert len(shown) == 3
    assert shown[0].get_yticklabels()[1].get_text().replace("\n", " ") == "freezing of gait"
    axis = plots.grid(1, 3)[1][0]
    plots.plot_interval(axis, 0, 1, (-3, 5), [-20, -1, 2, 30], limit=10, color="C0")
    markers = {line.get_marker(): line.get_xdata().tolist() for line in axis.lines}
    assert (markers["o"], markers["<"], markers[">"]) == ([-1, 2], [-10], [10])


def test_a_class_recognised_less_often_than_by_guessing_gets_a_frame():
    counts = {"ours": np.array([[6, 2, 2], [9, 1, 0], [0, 6, 4]])}
    axis = plots.plot_confusion(counts, ("rest", "stress", "joy")).axes[0]
    assert [patch.get_xy() for patch in axis.patches] == [(0, 1)]


# --- pages ----------------------------------------------------------------------------------------


def frozen_layers(test):
    """Three new and two old layers of noise, on windows of `test`."""
    n, k = len(test.labels), len(test.classes)
    layers = torch.randn(5, n, 6, generator=torch.Generator().manual_seed(0)).unbind()
    about = {key: getattr(test, key) for key in ("labels", "subjects", "recordings", "starts")}
    about |= {
        "classes": test.classes,
        "source": test.source,
        "tokens": (torch.zeros(4, 6), torch.ones(4, 6)),
    }
    logits, last = torch.eye(k)[test.labels], np.zeros((n, 1, 6), np.float32)
    return Activations(new=layers[:3], old=layers[3:], last=last, logits=logits, **about)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with made-up results of two directions, a sweep and a swapped model."""
    root = tmp_path_factory.mktemp("project")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    settings, data = load_settings(root / "params.yaml"), root / "data"
    methods = ["KD", "KD-Contrast", "LoRA-KD", "Probe transfer"]
    about = {"rank": 16, "n_prototypes": 50, "prototypes": "tokens", "loss": "cosine"}
    about |= {"align": "last", "share": 1.0, "m": 2, "l": 1}
    for name in ("fog-eeg2emg", "wesad-ppg2ecg", "wesad-ppg2ecg-ecg_fm"):
        test = windows(name.split("-")[0], source="original" if "fog" in name else "simulated")
        bridges = [result(test, "BioX-Bridge", s) for s in (0, 1)] + [result(test, "Oracle")]
        metrics.save_results(data / "bridges" / name, bridges, test, name, **about)
        others = [
            result(test, m, s, "why" if m == "LoRA-KD" else "") for m in methods for s in (0, 1)
        ]
        metrics.save_results(data / "baselines" / name, others, test, name)
        ours = [result(test, "Bridge (ours)", s) for s in (0, 1)]
        ours += [result(test, "Computed bridge")]
        metrics.save_results(data / "computed" / name, ours, test, name)
        selection = {"m": 2, "l": 1, "probe": [0.4, 0.5, 0.6], "cka": [0.1, 0.3]}
        path = data / "activations" / name / "pair.safetensors"
        frozen_layers(test).save(path)
        (data / "positions").mkdir(exist_ok=True)
        (data / "positions" / f"{name}.json").write_text(json.dumps(selection))
    test = windows("wesad")
    for i, (name, options) in enumerate(settings.ablations.runs.items()):
        words = options.split()
        changes = {key: yaml.safe_load(v) for key, v in zip(words[1::3], words[2::3], strict=True)}
        runs = [result(test, "BioX-Bridge", 10 * i + s) for s in (0, 1)]
        metrics.save_results(data / "sweep" / name, runs, test, "wesad-ppg2ecg", **about | changes)
    return root


@pytest.mark.parametrize(
    ("page", "parameters", "files"),
    [
        ("08_table1", {"directions": ["fog-eeg2emg", "wesad-ppg2ecg"]}, "table1/claim.svg"),
        ("09_figure3", {"directions": ["fog-eeg2emg", "wesad-ppg2ecg"]}, "figure3/figure3.svg"),
        ("11_figure4", {}, "tables/figure4c.md"),
        ("13_table3_backbones", {"directions": ["wesad-ppg2ecg-ecg_fm"]}, "tables/table3.csv"),
    ],
)
def test_a_page_of_results_runs_on_made_up_ones(page, parameters, files, project, monkeypatch):
    monkeypatch.chdir(project)
    resamples = metrics._resamples  # fewer than the page takes
    monkeypatch.setattr(metrics, "_resamples", lambda counts, n, seed: resamples(counts, 99, seed))
    cells = json.loads((ROOT / "notebooks" / f"{page}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace: dict = {}
    exec(code[0], namespace)
    namespace |= parameters
    for cell in code[1:]:
        exec(cell, namespace)
    assert (project / "figures" / files).stat().st_size > 200
    if page == "08_table1":
        table = pd.read_csv("figures/tables/table1.csv").set_index("method")
        assert table.loc["LoRA-KD", "failed runs"].tolist() == [2, 2]

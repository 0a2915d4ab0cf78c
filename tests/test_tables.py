"""The collector of Table 1 takes what params.yaml lists, whole, and nothing else."""

import numpy as np
import pandas as pd
import pytest

from biox.files import read_json, write_json
from biox.report.metrics import scores
from biox.report.results import verdict, verdict_table1
from biox.report.tables import collect, readable, save_table, table1


def predictions(direction, accuracy, seeds=(0, 1), constant=False):
    """Windows of six subjects; each method right with the given probability."""
    rng = np.random.default_rng(0)
    frames = []
    for method, runs in (("Oracle", seeds[:1]), ("BioX-Bridge", seeds)):
        for seed in runs:
            label = np.tile([0, 0, 1], 40)
            answer = np.where(rng.random(120) < accuracy, label, 1 - label)
            answer = np.zeros(120, int) if constant and method != "Oracle" else answer
            frames.append(
                pd.DataFrame(
                    {
                        "subject": np.repeat([f"s{i}" for i in range(6)], 20),
                        "recording": "r",
                        "start": np.arange(120.0),
                        "label": label,
                        "p no": 1.0 - answer,
                        "p yes": answer.astype(float),
                        "method": method,
                        "direction": direction,
                        "seed": seed,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def write(root, direction, frame):
    folder = root / direction
    folder.mkdir()
    frame.to_csv(folder / "predictions.csv", index=False)
    runs = [part for _, part in frame[frame["method"] == "BioX-Bridge"].groupby("seed")]
    mean = float(np.mean([scores(part)["balanced_accuracy"] for part in runs]))
    content = {"BioX-Bridge": {"balanced_accuracy": mean}, "source": "simulated"}
    write_json(folder / "scores.json", content | {"n_parameters": 1234, "models": "a -> b"})


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "fog-eeg2emg", predictions("fog-eeg2emg", 0.8))
    write(tmp_path, "wesad-ecg2ppg", predictions("wesad-ecg2ppg", 0.5, constant=True))
    return tmp_path


def test_missing_directions_are_all_named(root):
    with pytest.raises(FileNotFoundError, match=r"\['isruc-x', 'isruc-y'\]"):
        collect(root, ["fog-eeg2emg", "isruc-x", "isruc-y"], (0, 1))


def test_only_what_was_asked_for_is_read(root):
    (root / "left-over").mkdir()
    assert list(collect(root, ["fog-eeg2emg"], (0, 1))) == ["fog-eeg2emg"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("direction", "other", r"expected predictions of fog-eeg2emg, found \['other'\]"),
        ("method", "Guess", r"expected predictions of BioX-Bridge and Oracle"),
        ("seed", 7, r"expected bridges of the seeds \[0, 1\], found \[7\]"),
        ("label", 1, r"found none of class \[0\]"),
    ],
)
def test_foreign_predictions_are_refused(root, column, value, message):
    path = root / "fog-eeg2emg" / "predictions.csv"
    pd.read_csv(path).assign(**{column: value}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        collect(root, ["fog-eeg2emg"], (0, 1))


def test_scores_that_do_not_follow_from_the_predictions_are_refused(root):
    path = root / "fog-eeg2emg" / "scores.json"
    content = read_json(path)
    content["BioX-Bridge"]["balanced_accuracy"] += 0.01
    write_json(path, content)
    with pytest.raises(ValueError, match="the two are from different runs"):
        collect(root, ["fog-eeg2emg"], (0, 1))


def test_table_holds_ours_beside_the_reported_and_names_a_collapse(root, tmp_path):
    table = table1(root, ["fog-eeg2emg", "wesad-ecg2ppg"], (0, 1))
    good = table[(table["direction"] == "fog-eeg2emg") & (table["method"] == "BioX-Bridge")].iloc[0]
    expected = predictions("fog-eeg2emg", 0.8)
    runs = [p for _, p in expected[expected["method"] == "BioX-Bridge"].groupby("seed")]
    ours = [100 * scores(p)["balanced_accuracy"] for p in runs]
    assert good["balanced_accuracy"] == pytest.approx(np.mean(ours))
    assert good["balanced_accuracy sd"] == pytest.approx(np.std(ours, ddof=1))
    assert good["interval low"] <= np.mean(ours) <= good["interval high"]
    assert good["balanced_accuracy reported"] == 72.24 and good["test subjects"] == 6
    shown = readable(table).set_index(["direction", "method"])
    assert shown.loc[("wesad-ecg2ppg", "BioX-Bridge"), "balanced accuracy"] == "collapsed"
    assert shown.loc[("wesad-ecg2ppg", "BioX-Bridge"), "95 % interval"] == ""
    save_table(table, tmp_path / "t.csv", "a note")
    assert "collapsed" in (tmp_path / "t.md").read_text()
    assert len(pd.read_csv(tmp_path / "t.csv")) == 6
    assert "collapsed runs: 2 of 2" in verdict_table1(table)
    assert "**Collapsed**: 2 of 2" in verdict(table[table["direction"] == "wesad-ecg2ppg"])

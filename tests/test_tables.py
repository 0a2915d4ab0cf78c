"""Table 1 takes what params.yaml lists, whole, and nothing else; its numbers follow from it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_results import SEEDS, write_baselines, write_bridge

from biox.config import load_settings
from biox.files import read_json, write_json
from biox.report.metrics import random_scores, scores, subject_interval
from biox.report.predictions import METHODS, collect, random_answers
from biox.report.results import verdict, verdict_table1
from biox.report.tables import direction_rows, readable, recompute, save_table1, table1

BOTH = ["fog-eeg2emg", "wesad-ecg2ppg"]


@pytest.fixture
def data(tmp_path):
    write_bridge(tmp_path, "fog-eeg2emg")
    write_bridge(tmp_path, "wesad-ecg2ppg", constant=True)
    write_baselines(tmp_path, "fog-eeg2emg", failed={("LoRA-KD", 0), ("LoRA-KD", 1), ("KD", 1)})
    write_baselines(tmp_path, "wesad-ecg2ppg")
    return tmp_path


def edit(path, **columns):
    frame = pd.read_csv(path)
    frame.assign(**{k: v(frame) if callable(v) else v for k, v in columns.items()}).to_csv(
        path, index=False
    )


def test_missing_directions_are_all_named(data):
    asked = ["fog-eeg2emg", "isruc-x", "isruc-y"]
    with pytest.raises(FileNotFoundError, match=r"bridges: .*\['isruc-x', 'isruc-y'\]"):
        collect(data, asked, SEEDS)
    (data / "baselines" / "fog-eeg2emg" / "methods.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"baselines: .*\['fog-eeg2emg'\]"):
        collect(data, BOTH, SEEDS)
    without = collect(data, BOTH, SEEDS, baselines=False)
    assert list(without["fog-eeg2emg"].methods) == ["Random (sampled)", "BioX-Bridge", "Oracle"]
    assert "KD" in without["wesad-ecg2ppg"].methods


def test_only_what_was_asked_for_is_read(data):
    (data / "bridges" / "left-over").mkdir()
    assert list(collect(data, ["fog-eeg2emg"], SEEDS)) == ["fog-eeg2emg"]


def test_methods_come_in_the_papers_order_and_cardiogan_where_it_exists(data):
    table = table1(collect(data, BOTH, SEEDS))
    rows = table[table["direction"] == "wesad-ecg2ppg"]["method"].tolist()
    assert rows == list(METHODS)
    rows = table[table["direction"] == "fog-eeg2emg"]["method"].tolist()
    assert rows == [method for method in METHODS if method != "CardioGAN"]


@pytest.mark.parametrize(
    ("folder", "columns", "message"),
    [
        ("bridges", {"direction": "other"}, r"expected predictions of fog-eeg2emg, found"),
        ("bridges", {"method": "Guess"}, r"expected the methods \['BioX-Bridge', 'Oracle'\]"),
        ("bridges", {"seed": 7}, r"expected BioX-Bridge of the seeds \[0, 1\], found \[7\]"),
        ("bridges", {"label": 1}, r"found none of class \[0\]"),
        ("baselines", {"direction": "other"}, r"expected predictions of fog-eeg2emg, found"),
        ("baselines", {"method": "KD"}, r"expected the methods \['KD', .*found \['KD'\]"),
        ("baselines", {"seed": 7}, r"expected KD of the seeds \[0, 1\], found \[7\]"),
        ("baselines", {"p yes": np.nan}, r"KD, seed 0, .*found NaN in 120 of 120 windows"),
        ("baselines", {"start": lambda f: f["start"] + 1}, r"for the bridge's 120 test windows"),
    ],
)
def test_foreign_predictions_are_refused(data, folder, columns, message):
    edit(data / folder / "fog-eeg2emg" / "predictions.csv", **columns)
    with pytest.raises(ValueError, match=message):
        collect(data, ["fog-eeg2emg"], SEEDS)


def test_scores_that_do_not_follow_from_the_predictions_are_refused(data):
    path = data / "bridges" / "fog-eeg2emg" / "scores.json"
    content = read_json(path)
    content["BioX-Bridge"]["balanced_accuracy"] += 0.01
    write_json(path, content)
    with pytest.raises(ValueError, match="the two are from different runs"):
        collect(data, ["fog-eeg2emg"], SEEDS)


def test_numbers_are_those_of_the_single_runs(data):
    results = collect(data, BOTH, SEEDS)["fog-eeg2emg"]
    table = table1({"fog-eeg2emg": results}).set_index("method")
    for method in ("BioX-Bridge", "KD-Contrast", "Random (sampled)"):
        runs = results.methods[method].frames
        row = table.loc[method]
        for metric in ("balanced_accuracy", "macro_f1", "weighted_f1"):
            values = [100 * scores(run)[metric] for run in runs]
            assert row[metric] == pytest.approx(np.mean(values))
            assert row[f"{metric} sd"] == pytest.approx(np.std(values, ddof=1))
            low, high = subject_interval(runs, metric, n_resamples=5000)
            prefix = "" if metric == "balanced_accuracy" else f"{metric} "
            assert row[f"{prefix}interval low"] == pytest.approx(100 * low)
            assert row[f"{prefix}interval high"] == pytest.approx(100 * high)
    assert table.loc["BioX-Bridge", "balanced_accuracy reported"] == 72.24
    assert table.loc["BioX-Bridge", "test subjects"] == 6
    labels = results.methods["Oracle"].frames[0]["label"].to_numpy()
    assert table.loc["Random", "macro_f1"] == 100 * random_scores(labels, 2)["macro_f1"]


def test_sampled_random_answers_agree_with_the_closed_form(data):
    results = collect(data, ["fog-eeg2emg"], SEEDS)["fog-eeg2emg"]
    first, second, *others = results.methods["Random (sampled)"].frames
    assert len(others) > 90 and not first["p yes"].equals(second["p yes"])
    drawn = [scores(random_answers(first, seed))["macro_f1"] for seed in range(300)]
    expected = random_scores(first["label"].to_numpy(), 2)["macro_f1"]
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / np.sqrt(300) + 0.003)


def test_failed_and_collapsed_methods_are_called_that(data):
    table = table1(collect(data, BOTH, SEEDS))
    shown = readable(table).set_index(["direction", "method"])
    lora, kd = (shown.loc[("fog-eeg2emg", m)] for m in ("LoRA-KD", "KD"))
    assert (lora["balanced accuracy"], lora["weighted F1"], lora["95 % interval"]) == (
        "failed",
        "failed",
        "",
    )
    assert (lora["failed runs"], kd["failed runs"]) == ("2 of 2", "1 of 2")
    assert "±" not in kd["balanced accuracy"] and kd["balanced accuracy"] != "failed"
    why = table.set_index(["direction", "method"])["why failed"]
    assert why[("fog-eeg2emg", "KD")] == "seed 1: loss is not finite"
    bridge = shown.loc[("wesad-ecg2ppg", "BioX-Bridge")]
    assert (bridge["balanced accuracy"], bridge["95 % interval"]) == ("collapsed", "")
    assert "collapsed runs: 2 of 2" in verdict_table1(table)
    assert "**Collapsed**: 2 of 2" in verdict(table[table["direction"] == "wesad-ecg2ppg"])


def test_the_bridges_own_page_gets_the_same_numbers(data):
    folder = data / "bridges" / "fog-eeg2emg"
    frame = pd.read_csv(folder / "predictions.csv", dtype={"subject": str})
    rows = direction_rows(frame, read_json(folder / "scores.json")).set_index("method")
    whole = table1(collect(data, BOTH, SEEDS)).set_index(["direction", "method"])
    for method in ("Random", "Random (sampled)", "BioX-Bridge", "Oracle"):
        expected = whole.loc[("fog-eeg2emg", method), "balanced_accuracy"]
        assert rows.loc[method, "balanced_accuracy"] == expected


def test_saved_tables_can_be_recomputed_and_a_changed_number_is_found(data, tmp_path):
    save_table1(collect(data, BOTH, SEEDS), tmp_path, "table1")
    assert recompute(tmp_path, "table1", data, BOTH, SEEDS) > 200
    assert "failed" in (tmp_path / "table1.md").read_text()
    path = tmp_path / "table1.csv"
    whole = path.read_text()
    frame = pd.read_csv(path)
    frame.loc[3, "macro_f1"] += 0.01
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"expected macro_f1 of fog-eeg2emg, KD-Contrast to"):
        recompute(tmp_path, "table1", data, BOTH, SEEDS)
    path.write_text(whole)
    predictions = data / "baselines" / "wesad-ecg2ppg" / "predictions.csv"
    frame = pd.read_csv(predictions)
    frame.loc[0, ["p no", "p yes"]] = frame.loc[0, ["p yes", "p no"]].to_numpy()
    frame.to_csv(predictions, index=False)
    with pytest.raises(ValueError, match="of wesad-ecg2ppg, CardioGAN to follow from the"):
        recompute(tmp_path, "table1", data, BOTH, SEEDS)


def test_the_pipeline_gives_table1_every_direction():
    root = Path(__file__).parents[1]
    deps = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["table1"]["deps"]
    for folder in ("bridges", "baselines"):
        named = [d.split("/")[-1] for d in deps if d.startswith(f"data/{folder}/")]
        assert named == list(load_settings(root / "params.yaml").directions)
    assert all((root / d).exists() for d in deps if not d.startswith("data/"))

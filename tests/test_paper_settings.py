"""The paper's settings: valid, as released, and leading from raw files to the released windows."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from raw_files import golden, noise, samples, write_fog, write_isruc, write_wesad
from test_conditioning import isruc_ecg, wesad_signals

from biox import notebook
from biox.commands.data import paper_settings
from biox.config import load_settings
from biox.data import READERS
from biox.data.splits import read_windows
from biox.data.windows import UNLABELLED
from biox.experiment import input_spec

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
DIRECTIONS = sorted(load_settings(ROOT / "params.yaml").directions)


def merged(base, over):
    return {
        k: merged(base[k], over[k]) if isinstance(over.get(k), dict) and k in base
        else over.get(k, base.get(k))
        for k in {**base, **over}
    }  # fmt: skip


def paper(name, tmp_path, **over):
    """params.yaml with the paper's values for a data set put over it."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content = merged(merged(content, yaml.safe_load(paper_settings(name))), over)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_settings(tmp_path / "params.yaml")


@pytest.mark.parametrize(("name", "counts"), [
    ("wesad", {"train": 5, "val": 2, "pair": 5, "test": 3}),
    ("isruc", {"train": 33, "val": 11, "pair": 33, "test": 22}),
    ("fog", {"all": 1}),
])  # fmt: skip
def test_fragments_are_valid_and_have_the_published_counts(name, counts, tmp_path):
    settings = paper(name, tmp_path)
    data = settings.dataset(name)
    assert data.source == "original" and settings.seeds == (0, 1, 2, 3, 4)
    assert {split: len(subjects) for split, subjects in data.splits.items()} == counts
    splits = ("all",) if name == "fog" else ("train", "val", "pair", "test")
    subjects = [subject for split in splits for subject in data.splits[split]]
    if name != "fog":
        assert subjects == list(READERS[name].PUBLISHED)  # natural order, nobody left out
    sizes = {"hubert_ecg": "small", "papagei": "small", "labram": "base", "normwear": "base"}
    for modality in settings.modalities(name):
        choice = settings.backbones[modality]
        assert choice.size == sizes[choice.name]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bridges_have_the_released_values(direction, tmp_path):
    settings = paper(direction.split("-")[0], tmp_path)
    bridge, own = settings.for_direction(direction).bridge, settings.direction(direction)
    with np.load(GOLDEN / f"bridge_{direction.replace('-', '_')}.npz") as want:
        assert bridge.rank == want["rank"] and bridge.n_prototypes == want["n_prototypes"]
        assert bridge.lr == pytest.approx(float(want["lr"]))
        parameters = f"{int(want['n_parameters']):,} parameters"
    assert parameters in paper_settings(own.dataset)
    assert own.m is not None and own.l is not None and bridge.batch == 16
    other = next(name for name in settings.directions if name.split("-")[0] != own.dataset)
    assert settings.for_direction(other).bridge == settings.bridge


def test_a_parameter_on_the_command_line_wins_over_the_directions_own(tmp_path, monkeypatch):
    paper("wesad", tmp_path)
    for name in ("dvc.yaml", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    given = {"direction": "wesad-ppg2ecg", "rank": None, "lr": 0.5}
    run = notebook.begin("bridge", given, section="bridge")
    assert (run.settings.bridge.rank, run.settings.bridge.lr) == (32, 0.5)
    assert run.name_of("x") == "x-lr0.5"  # the direction's own values are its settings


# Raw files -> reader -> the paper's settings -> the windows of the released code


def windows_of(name, folder, tmp_path, subject, keep_unlabelled):
    small = {m: {"size": "tiny"} for m in ("ecg", "ppg", "eeg", "emg")}  # wants the same input
    settings = paper(name, tmp_path, backbones=small)
    data = settings.dataset(name)
    specs = {m: input_spec(settings, name, m) for m in settings.modalities(name)}
    per_window = data.condition_per == "window"
    return read_windows(
        READERS[name], folder, [subject], specs, data.seconds, data.step,
        per_window=per_window, keep_unlabelled=keep_unlabelled,
    )  # fmt: skip


def check_samples(windows, want, names, factor=1.0):
    for i, position in ((0, "first"), (-1, "last")):
        for modality, short in names.items():
            got = samples(windows.signals[modality][i].astype(float)) * factor
            np.testing.assert_allclose(got, want[f"{position}_{short}_sample"], atol=1e-4)


def test_wesad_from_the_pickle(tmp_path):
    want, (ecg, bvp) = golden("WESAD"), wesad_signals()
    t = np.arange(len(ecg)) / 700
    edges = ((30, 150), (170, 290), (310, 420), (420, 480))
    track = np.select([(t >= a) & (t < b) for a, b in edges], [1, 2, 3, 4])
    signal = {"chest": {"ECG": ecg[:, None]}, "wrist": {"BVP": bvp[:, None]}}
    write_wesad(tmp_path / "WESAD", "S5", track=track, signal=signal)
    windows = windows_of("wesad", tmp_path, tmp_path, "S5", False)
    check_samples(windows, want, {"ecg": "ECG", "ppg": "PPG"})
    # The released code loses the windows at 170 and 310 s to ringing of its resampled labels.
    kept = ~np.isin(windows.starts, [170.0, 310.0])
    assert kept.sum() == len(windows) - 2 == want["n_windows"]
    np.testing.assert_array_equal(windows.labels[kept], want["labels"])
    everything = windows_of("wesad", tmp_path, tmp_path, "S5", True)
    assert len(everything) == 85 and (everything.labels == UNLABELLED).sum() == 85 - len(windows)


def test_isruc_from_the_mat_file(tmp_path):
    want = golden("ISRUC")
    eeg = {c: noise(f"raw:ISRUC:{c}", (12, 6000), 50.0) for c in READERS["isruc"].EEG_CHANNELS}
    stages = [0, 0, 1, 2, 3, 5, 5, 2, 1, 0, 3, 2]
    write_isruc(tmp_path, "7", n=12, stages=stages, X2=isruc_ecg(), **eeg)
    windows = windows_of("isruc", tmp_path, tmp_path, "7", False)
    check_samples(windows, want, {"ecg": "ECG"})
    check_samples(windows, want, {"eeg": "EEG"}, factor=100)  # the released files are in uV
    assert windows.units["eeg"] == "uV/100"
    assert len(windows) == want["n_windows"] - 1  # without the constant epoch
    np.testing.assert_array_equal(windows.labels, np.delete(want["labels"], 5))


def test_fog_from_the_text(tmp_path):
    want, row = golden("FOG"), np.arange(10000)
    raw = np.round(noise("raw:FOG", (10000, 58)) * np.r_[np.full(25, 20.0), np.full(33, 50.0)], 4)
    table = np.c_[row + 1, row / 500, raw, (row >= 4000) & (row < 7000)]
    write_fog(tmp_path / "FilteredData", "001", table=table)
    windows = windows_of("fog", tmp_path, tmp_path, "001", False)
    assert len(windows) == want["n_windows"]
    np.testing.assert_array_equal(windows.labels, want["labels"])
    check_samples(windows, want, {"eeg": "EEG"}, factor=100)
    # The released EMG windows are scalograms; test_windows takes the same windows there.
    assert windows.signals["emg"].shape == (45, 3, 390)

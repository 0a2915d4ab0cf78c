"""Readers, conditioning and labels on recordings that nobody here made (PhysioNet)."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from raw_files import ECG, EEG, PPG

from biox.data import bidmc, eegmat
from biox.data.cutting import cut
from biox.data.quality import bad_windows
from biox.data.splits import make_splits
from biox.data.windows import UNLABELLED

FOLDER = Path(os.environ.get("BIOX_RECORDINGS", Path(__file__).parents[1] / "../shared/real"))


def need(name):
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{FOLDER / name} is absent; set BIOX_RECORDINGS to a folder that holds {name}")
    return FOLDER / name


SPECS = {"ecg": replace(ECG, seconds=30.0), "ppg": replace(PPG, seconds=30.0)}


def test_bidmc_labels_equal_those_derived_from_the_monitor_elsewhere():
    folder = need("bidmc")
    if not (folder / "windows_30s.csv").is_file():
        pytest.skip("windows_30s.csv is absent")
    table = pd.read_csv(folder / "windows_30s.csv")
    patients = dict(zip(table["record"], table["patient"], strict=True))
    assert bidmc.subjects(folder) == sorted(set(patients.values()))
    n_labelled = 0
    for patient in ("s01182", "s03386", "s11342", "s08915"):
        for recording in bidmc.read(folder, patient):
            assert patients[recording.name] == patient
            for row in table[table["record"] == recording.name].itertuples():
                label = recording.label(row.start_s, row.start_s + row.len_s)
                near = abs(row.hr_mean - 90) < 2
                assert label == (UNLABELLED if near else row.hr_gt90)
                n_labelled += not near
    assert n_labelled > 80


@pytest.mark.parametrize("patient", ["s01182", "s08915", "s12531"])
def test_bidmc_heart_beats_survive_conditioning(patient):
    """Beats counted in conditioned ECG and PPG agree with the bedside monitor."""
    import neurokit2 as nk

    folder = need("bidmc")
    (recording,) = bidmc.read(folder, patient)
    windows = cut(recording, SPECS, 30.0, 60.0, bidmc.CLASSES)
    numerics = pd.read_csv(folder / f"{recording.name}_Numerics.csv", skipinitialspace=True)
    errors = {"ecg": [], "ppg": []}
    for i, start in enumerate(windows.starts):
        inside = numerics["Time [s]"].between(start, start + 29.5)
        ecg, ppg = (windows.signals[name][i, 0].astype(float) for name in ("ecg", "ppg"))
        beats = {
            "ecg": nk.ecg_peaks(ecg, sampling_rate=100)[1]["ECG_R_Peaks"] / 100,
            "ppg": nk.ppg_findpeaks(ppg, sampling_rate=125)["PPG_Peaks"] / 125,
        }
        for name, times in beats.items():
            errors[name].append(60 / np.median(np.diff(times)) - numerics["HR"][inside].mean())
    assert np.median(np.abs(errors["ecg"])) < 3
    assert np.median(np.abs(errors["ppg"])) < 3


SUGGESTED = {
    "train": (1, 3, 4, 5, 10, 11, 12, 13, 17),
    "val": (14, 15, 19, 31),
    "pair": (2, 6, 7, 8, 9, 18, 20, 21, 22, 23, 26, 29),
    "test": (16, 24, 25, 27, 28, 30, 32),
}
"""Record numbers; 6-9 and 20-23 are one patient each."""


def test_bidmc_suggested_split_shares_no_patient_and_has_both_classes():
    folder = need("bidmc")
    table = pd.read_csv(folder / "windows_30s.csv").set_index("record")
    patient = table["patient"].groupby(level=0).first()
    names = {split: [f"bidmc_{n:02d}" for n in numbers] for split, numbers in SUGGESTED.items()}
    splits = {split: sorted(set(patient[records])) for split, records in names.items()}
    parts = make_splits(bidmc, folder, SPECS, 30.0, 30.0, splits)
    for split, part in parts.items():
        assert part.source == "BIDMC" and set(part.recordings) == set(names[split])
        assert np.isfinite(part.signals["ecg"]).all() and np.isfinite(part.signals["ppg"]).all()
        clear = table.loc[names[split]].query("abs(hr_mean - 90) >= 2")
        want = np.bincount(clear["hr_gt90"])
        assert np.bincount(part.labels[part.labels >= 0]).tolist() == want.tolist()


@pytest.mark.parametrize(
    ("folder", "subject"), [("eegmat", "Subject01"), ("eegmat_full", "Subject00")]
)
def test_eegmat_units_are_plausible(folder, subject):
    folder = need(folder)
    assert subject in eegmat.subjects(folder)
    rest, task = eegmat.read(folder, subject)
    assert (rest.label(0, 30), task.label(0, 30)) == (0, 1)
    for recording in (rest, task):
        eeg, ecg = recording.signals["eeg"], recording.signals["ecg"]
        assert eeg.channels == eegmat.EEG_CHANNELS and eeg.rate == ecg.rate == 500
        assert (eeg.unit, ecg.unit) == ("uV", "mV") and recording.seconds >= 62
        assert np.all((eeg.values.std(axis=1) > 2) & (eeg.values.std(axis=1) < 60))
        assert 0.3 < np.ptp(ecg.values) < 5
    specs = {"ecg": SPECS["ecg"], "eeg": replace(EEG, channels=12, seconds=30.0, unit="uV/100")}
    windows = cut(task, specs, 30.0, 4.0, eegmat.CLASSES)
    assert windows.signals["eeg"].shape == (9, 12, 6000)
    assert 0.02 < windows.signals["eeg"].std() < 0.6


def test_eegmat_alpha_rhythm_is_occipital_at_rest():
    """8-13 Hz power at O1 and O2 exceeds its neighbours at rest: channel order is right."""
    from scipy.signal import welch

    folder = need("eegmat")
    ratios = []
    for subject in ("Subject03", "Subject05", "Subject08", "Subject12"):
        rest, _ = eegmat.read(folder, subject)
        f, power = welch(rest.signals["eeg"].values, 500, nperseg=1000)
        alpha = power[:, (f >= 8) & (f <= 13)].mean(axis=1) / power[:, (f >= 14) & (f <= 30)].mean(
            1
        )
        ratios.append(alpha[10:].mean() / alpha[:2].mean())
    assert np.median(ratios) > 1


def test_the_dead_ecg_is_read_and_named():
    folder = need("eegmat")
    rest, task = eegmat.read(folder, "Subject02")
    starts = np.arange(0, 32.5, 4.0)
    assert bad_windows(rest.signals, starts, 30.0) == ["ecg ECG too weak"] * 9
    assert bad_windows(task.signals, starts, 30.0) == [""] * 9
    with pytest.raises(ValueError, match="Subject02_1 of Subject02: .*9 ecg ECG too weak"):
        cut(rest, {"ecg": SPECS["ecg"]}, 30.0, 4.0, eegmat.CLASSES)


def test_all_other_eegmat_recordings_are_sound():
    folder = need("eegmat")
    bad = {}
    for subject in eegmat.subjects(folder):
        for recording in eegmat.read(folder, subject):
            reasons = {r for r in bad_windows(recording.signals, [0.0, 30.0], 30.0) if r}
            if reasons:
                bad[recording.name] = reasons
    assert list(bad) == ["Subject02_1"]

"""BIDMC and EEGMAT: the files in data/recordings, the published forms, the step between them."""

import hashlib
import importlib.util
import warnings
from pathlib import Path

import mne
import neurokit2 as nk
import numpy as np
import pandas as pd
import pytest
import wfdb
from raw_files import ECG, PPG
from scipy.signal import welch

from biox.config import load_settings
from biox.data.conditioning import condition
from biox.data.readers import bidmc, eegmat
from biox.data.windows import UNLABELLED, bad_windows

FOLDER = Path(__file__).parents[1] / "data" / "recordings"
BIDMC, EEGMAT = FOLDER / "bidmc", FOLDER / "eegmat"
BIDMC_SHA256 = "d9fad7827ae7a689e16c98dd10d405cbec7152f62dccdf1fc458aee3680c1e52"
EEGMAT_SHA256 = "dcb6dbd24a2ca531477c9852473599878bbc0fb5d016fe7e513061b27e4be23f"
RECORDS = [f"bidmc_{number:02d}" for number in range(1, 33)]


@pytest.fixture(scope="module")
def patients():
    """All records of BIDMC, by name."""
    recordings = [r for patient in bidmc.subjects(BIDMC) for r in bidmc.read(BIDMC, patient)]
    return {recording.name: recording for recording in recordings}


@pytest.fixture(scope="module")
def students():
    """All recordings of EEGMAT, by name."""
    recordings = [r for name in eegmat.subjects(EEGMAT) for r in eegmat.read(EEGMAT, name)]
    return {recording.name: recording for recording in recordings}


@pytest.fixture
def convert(monkeypatch):
    """The conversion script, for record 1 and subject 1."""
    spec = importlib.util.spec_from_file_location("convert", FOLDER / "convert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BIDMC_RECORDS", [1])
    monkeypatch.setattr(module, "EEGMAT_SUBJECTS", [1])
    return module


# The files


def test_wfdb_and_mne_read_the_numbers_that_were_recorded():
    bidmc_digest, eegmat_digest = hashlib.sha256(), hashlib.sha256()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in RECORDS:
            record = wfdb.rdrecord(str(BIDMC / name), physical=False)
            assert (record.fs, record.sig_name) == (125, ["II", "PLETH"])
            assert record.calc_checksum() == record.checksum
            bidmc_digest.update(record.d_signal.astype("<i2").tobytes())
        for path in sorted(EEGMAT.glob("*.edf")):
            raw = mne.io.read_raw_edf(path, verbose="WARNING")
            assert raw.get_data().shape == (7, 12000) and raw.info["sfreq"] == 200
            eegmat_digest.update(path.read_bytes())
    assert bidmc_digest.hexdigest() == BIDMC_SHA256
    assert eegmat_digest.hexdigest() == EEGMAT_SHA256


# BIDMC


def test_heart_rate_from_conditioned_beats_equals_the_monitors(patients):
    """Median over two minutes of all 32 records, 13 too, whose raw ECG misleads detectors."""
    errors = {"ecg": [], "ppg": []}
    for name, recording in patients.items():
        monitor = pd.read_csv(BIDMC / f"{name}_Numerics.csv", skipinitialspace=True)["HR"][:120]
        ecg = condition(recording.signals["ecg"], ECG).values[0, : 120 * 100]
        ppg = condition(recording.signals["ppg"], PPG).values[0, : 120 * 125]
        beats = {
            "ecg": nk.ecg_peaks(ecg, sampling_rate=100)[1]["ECG_R_Peaks"] / 100,
            "ppg": nk.ppg_findpeaks(ppg, sampling_rate=125)["PPG_Peaks"] / 125,
        }
        for modality, times in beats.items():
            errors[modality].append(abs(60 / np.median(np.diff(times)) - monitor.mean()))
    for found in errors.values():
        assert max(found) < 4.5 and np.median(found) < 0.6


def test_heart_rate_labels_follow_the_monitor(patients):
    table = pd.read_csv(BIDMC / "windows_30s.csv")
    assert list(table["record"].unique()) == RECORDS and len(table) == 32 * 16
    for row in table.itertuples():
        recording = patients[row.record]
        assert recording.subject == row.patient
        label = recording.label(row.start_s, row.start_s + row.len_s)
        assert label == (UNLABELLED if abs(row.hr_mean - 90) < 2 else int(row.hr_mean > 90))
    assert (table.groupby("patient")["record"].nunique() > 1).sum() == 2  # s03386 and s11342
    assert table["rr_ref"].between(5, 32).sum() == table["rr_ref"].notna().sum() == 470


# EEGMAT


def test_eegmat_units_are_plausible(students):
    for name, recording in students.items():
        eeg, ecg = recording.signals["eeg"], recording.signals["ecg"]
        assert eeg.channels == ("F3", "C3", "O1", "F4", "C4", "O2") and eeg.rate == ecg.rate == 200
        assert (eeg.unit, ecg.unit, recording.seconds) == ("uV", "mV", 60)
        assert recording.label(0, 30) == int(name.endswith("_2"))
        assert np.all((eeg.values.std(axis=1) > 2) & (eeg.values.std(axis=1) < 60))
        assert np.all(np.diff(eeg.values[:, -50:]).any(axis=1))  # no padding at the end
        assert 0.1 < np.ptp(ecg.values) < 5


def test_alpha_rhythm_is_occipital_at_rest(students):
    """8-13 Hz stands out more at O1 and O2 than at F3 and F4: the order of channels is right."""
    ratios = []
    for name in ("Subject03_1", "Subject05_1", "Subject08_1", "Subject12_1"):
        f, power = welch(students[name].signals["eeg"].values, 200, nperseg=400)
        alpha = power[:, (f >= 8) & (f <= 13)].mean(1) / power[:, (f >= 14) & (f <= 30)].mean(1)
        ratios.append(alpha[[2, 5]].mean() / alpha[[0, 3]].mean())
    assert np.median(ratios) > 1


def test_only_one_recording_is_unsound(students, patients):
    recordings = [*students.values(), *patients.values()]
    reasons = {r.name: set(bad_windows(r.signals, [0.0, 30.0], 30.0)) for r in recordings}
    bad = {name: found for name, found in reasons.items() if found != {""}}
    assert bad == {"Subject02_1": {"ecg ECG too weak"}}


# Splits


@pytest.mark.parametrize("name", ["bidmc", "eegmat"])
def test_splits_share_no_subject_and_have_both_classes(name, patients, students):
    dataset = load_settings().datasets[name]
    recordings = {"bidmc": patients, "eegmat": students}[name].values()
    assigned = [subject for names in dataset.splits.values() for subject in names]
    assert sorted(assigned) == sorted({r.subject for r in recordings} - {"Subject02"})
    for names in dataset.splits.values():
        labels = []
        for recording in (r for r in recordings if r.subject in names):
            starts = np.arange(0, recording.seconds - dataset.seconds + 1e-6, dataset.step)
            labels += [recording.label(start, start + dataset.seconds) for start in starts]
        assert min(labels.count(0), labels.count(1)) >= 16


# Published forms, and their conversion


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_bidmc_published_form_and_its_conversion(ending, patients, convert, tmp_path):
    """Five significant digits, names padded with blanks, another column between."""
    folder, want = tmp_path / "bidmc_csv", patients["bidmc_01"]
    folder.mkdir()
    ecg, ppg = (want.signals[m].values[0] for m in ("ecg", "ppg"))
    table = pd.DataFrame({"Time [s]": np.arange(60001) / 125, " PLETH": ppg, " V": 0, " II": ecg})
    table.to_csv(folder / f"bidmc_01_Signals{ending}", index=False, float_format="%.5g")
    (folder / "bidmc_01_Fix.txt").write_text("bidmc_01\nMIMIC II matched wdb ID: s01182\n")
    for name in ("bidmc_01_Numerics.csv", "bidmc_01_Breaths.csv"):
        (folder / name).write_bytes((BIDMC / name).read_bytes())

    assert bidmc.subjects(tmp_path) == bidmc.subjects(folder) == ["s01182"]
    (published,) = bidmc.read(tmp_path, "s01182")
    for modality, signal in want.signals.items():
        np.testing.assert_allclose(published.signals[modality].values, signal.values, rtol=6e-5)
        assert published.signals[modality].channels == signal.channels
    assert [published.label(s, s + 30) for s in (0, 210)] == [1, UNLABELLED]

    convert.bidmc(folder, tmp_path)
    assert (tmp_path / "bidmc_01.hea").read_bytes() == (BIDMC / "bidmc_01.hea").read_bytes()
    table[:4000].drop(range(2500, 3750)).to_csv(folder / f"bidmc_01_Signals{ending}", index=False)
    with pytest.raises(ValueError, match="01_Signals.csv.*: expected 125 Hz without a gap"):
        bidmc.read(tmp_path, "s01182")


@pytest.mark.parametrize("no_value", [0, -1, np.nan, 32767])
def test_what_a_monitor_writes_for_no_value_is_no_heart_rate(no_value, tmp_path):
    for path in BIDMC.glob("bidmc_01*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    numerics = pd.read_csv(BIDMC / "bidmc_01_Numerics.csv", skipinitialspace=True).astype(float)
    numerics.loc[::2, "HR"] = numerics.loc[60:, "HR"] = no_value
    numerics.to_csv(tmp_path / "bidmc_01_Numerics.csv", index=False)
    (got,) = bidmc.read(tmp_path, "s01182")
    assert [got.label(start, start + 30) for start in (0, 90)] == [1, UNLABELLED]


def test_eegmat_published_form_and_its_conversion(convert, tmp_path):
    """Channels in any order, 500 Hz, constant values in the last 2 s; nothing aliases."""
    names = [f"EEG {name}" for name in "Fp1 Fp2 F3 F4 C3 C4 O1 O2 A2-A1".split()] + ["ECG ECG"]
    t = np.arange(62 * 500) / 500
    slow = np.stack([(k + 1) * np.sin(2 * np.pi * (k + 5) * t) for k in range(10)])
    values = slow + 3 * np.sin(2 * np.pi * 140 * t)  # would appear at 60 Hz
    values[:, 60 * 500 :] = 1.0
    about = {"units": ["uV"] * 9 + ["mV"], "prefilters": ["HP:0.5Hz"] * 10, "year": "2011"}
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for part in (1, 2):
        path = source / f"Subject01_{part}.edf"
        convert.write_edf(path, values, names=names, rate=500, subject="1", **about)
    convert.eegmat(source, out)
    rows = [names.index(f"EEG {name}") for name in eegmat.EEG_CHANNELS]
    published, compact = eegmat.read(source, "Subject01")[1], eegmat.read(out, "Subject01")[1]
    assert published.seconds == compact.seconds == 60 and published.signals["ecg"].rate == 500
    np.testing.assert_allclose(published.signals["eeg"].values, values[rows, :-1000], atol=1e-3)
    wanted = np.stack([slow[k, : 60 * 500].reshape(-1, 5)[:, 0] for k in [*rows, 9]])
    found = np.concatenate([compact.signals[m].values for m in ("eeg", "ecg")])[:, ::2]
    np.testing.assert_allclose(found[:, 50:-50], wanted[:, 50:-50], atol=0.02)
    assert "HP:0.5Hz" in (out / "Subject01_1.edf").read_bytes()[:2048].decode("ascii")


# Damage


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("bidmc/bidmc_01_Numerics.csv", b"480,", b"580,", "expected 580 s .*, found 480.01 s"),
    ("bidmc/bidmc_01_Numerics.csv", b"HR", b"HF", "expected numbers in the columns \\['HR'\\]"),
    ("bidmc/bidmc_01_Numerics.csv", b"93", b"\xff", "expected a whole CSV file"),
    ("bidmc/bidmc_01.hea", b"II", b"V5", "expected the channels \\['II'\\]"),
    ("bidmc/bidmc_01.hea", b"matched", b"", "expected .*MIMIC II matched wdb ID"),
    ("bidmc/bidmc_01.dat", 1.0, b"", "expected a WFDB record"),
    ("bidmc/bidmc_01.dat", 0.001, b"", "expected a WFDB record"),
    ("eegmat/Subject01_1.edf", b"mV  ", b"mmHg", "expected voltages, found .*'ecg': 'mmHg'"),
    ("eegmat/Subject01_1.edf", b"EEG O2", b"EEG P4", "expected the channels \\['EEG O2'\\]"),
    ("eegmat/Subject01_1.edf", 1e-5, b"", "bytes by its header"),
])  # fmt: skip
def test_damaged_files_are_named(file, old, new, message, tmp_path):
    """`old` is replaced by `new`; a number is the share that is cut off."""
    folder = (FOLDER / file).parent
    for path in [*folder.glob("bidmc_01*"), *folder.glob("Subject01_?.edf")]:
        content = path.read_bytes()
        if path == FOLDER / file:
            cut = isinstance(old, float)
            content = content[: -int(len(content) * old)] if cut else content.replace(old, new)
        (tmp_path / path.name).write_bytes(content)
    reader, subject = (bidmc, "s01182") if folder == BIDMC else (eegmat, "Subject01")
    with pytest.raises(ValueError, match=message) as error:
        reader.read(tmp_path, subject)
    assert str(error.value).startswith(str(tmp_path))


def test_absent_subjects_are_named():
    with pytest.raises(FileNotFoundError, match="expected records of patient s99"):
        bidmc.read(BIDMC, "s99")
    with pytest.raises(FileNotFoundError, match="SubjectNN_1.edf and SubjectNN_2.edf"):
        eegmat.read(EEGMAT, "Subject99")

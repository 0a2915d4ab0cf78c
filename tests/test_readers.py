"""Readers: what they read from published layouts, and what they say about damaged files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from raw_files import (
    heart,
    write_bidmc,
    write_dreamer,
    write_edf,
    write_eegmat,
    write_fog,
    write_isruc,
    write_wesad,
)

from biox.data import READERS, bidmc, eegmat, fog, isruc, wesad
from biox.data.windows import UNLABELLED

WRITERS = {
    "wesad": write_wesad,
    "fog": write_fog,
    "isruc": write_isruc,
    "dreamer": write_dreamer,
    "bidmc": write_bidmc,
    "eegmat": write_eegmat,
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_an_absent_data_set_is_described_in_one_sentence(name, tmp_path):
    reader = READERS[name]
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as error:
            reader.subjects(folder)
        text = str(error.value)
        assert text.startswith(str(folder)) and text.endswith("found nothing")
        assert reader.ABOUT.title in text and reader.ABOUT.licence in text


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_readers_share_one_shape(name, tmp_path):
    WRITERS[name](tmp_path)
    reader = READERS[name]
    (subject,) = reader.subjects(tmp_path)
    for recording in reader.read(tmp_path, subject, source="simulated"):
        assert (recording.subject, recording.source) == (subject, "simulated")
        assert len(recording.signals) == 2 and recording.seconds > 5
        assert recording.label(0.0, 2.0) in range(len(reader.CLASSES))
    with pytest.raises(FileNotFoundError):
        reader.read(tmp_path, "S99" if name == "wesad" else "099")


# WESAD and its pickles


def test_wesad_reads_values_rates_and_labels(tmp_path):
    path = write_wesad(tmp_path / "WESAD", "S10", seconds=9)  # also one folder level down
    write_wesad(tmp_path / "WESAD", "S2", seconds=9)
    assert wesad.subjects(tmp_path) == wesad.subjects(tmp_path / "WESAD") == ["S2", "S10"]
    (got,) = wesad.read(tmp_path, "S10")
    want = pickle.loads(path.read_bytes(), encoding="latin1")
    np.testing.assert_array_equal(
        got.signals["ecg"].values[0], want["signal"]["chest"]["ECG"][:, 0]
    )
    np.testing.assert_array_equal(
        got.signals["ppg"].values[0], want["signal"]["wrist"]["BVP"][:, 0]
    )
    assert (got.signals["ecg"].rate, got.signals["ppg"].rate) == (700, 64)
    assert [got.label(a, a + 2) for a in (0.5, 2, 4, 6.5)] == [0, UNLABELLED, 1, 2]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_cut_pickle_is_named(keep, tmp_path):
    path = write_wesad(tmp_path, seconds=3)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match="S2.pkl: expected a whole pickle"):
        wesad.read(tmp_path, "S2")


@pytest.mark.parametrize(("change", "message"), [
    ({"label": np.ones(5)}, "expected 2100 labels, one per ECG sample, found 5"),
    ({"label": np.full(2100, 9)}, "expected labels 0 to 7, found \\[9\\]"),
    ({"label": "none"}, "expected one column of numbers in label"),
    ({"signal": {"chest": {}}}, "expected the key signal/chest/ECG, found no 'ECG'"),
    ({"signal": 3}, "found no 'chest'"),
    ({"label": 3}, "S2.pkl: expected one column of numbers in label, found int64 of shape \\(\\)"),
    ({"label": [[1], [1, 2]]}, "S2.pkl: expected one column .* found rows of unequal length"),
    ({"label": np.ones((2100, 1, 1))}, "found float64 of shape \\(2100, 1, 1\\)"),
    ({"label": np.ones((1, 2100))}, "found float64 of shape \\(1, 2100\\)"),
    ({"label": np.array(["1"] * 2100)}, "found <U1 of shape \\(2100,\\)"),
    ({"label": {"a": 1}}, "found object of shape"),
    ({"signal": {"chest": {"ECG": 0.5}}}, "numbers in signal/chest/ECG, found float64"),
    ({"signal": {"chest": {"ECG": np.ones((9, 2))}}}, "found float64 of shape \\(9, 2\\)"),
    ({"signal": {"chest": {"ECG": np.ones(2100)}, "wrist": {"BVP": [[1.0], []]}}},
     "numbers in signal/wrist/BVP, found rows of unequal length"),
])  # fmt: skip
def test_wesad_content_is_checked(change, message, tmp_path):
    write_wesad(tmp_path, seconds=3, **change)
    with pytest.raises(ValueError, match=message):
        wesad.read(tmp_path, "S2")


# FOG


def test_fog_takes_the_columns_of_the_patient_and_session(tmp_path):
    rows = 60
    table = np.tile(np.arange(61.0), (rows, 1)) + np.arange(rows)[:, None] / 100
    table[:, 60] = 0
    for session in ("001", "003", "008/OFF_1", "008/OFF_2", "009"):
        write_fog(tmp_path / "FilteredData", session, table=table)
    write_fog(tmp_path / "FilteredData", "008/OFF_1", task=10, table=table)
    write_fog(tmp_path / "FilteredData", "008/OFF_1", task=2, table=table)
    assert fog.subjects(tmp_path) == ["001", "003", "008", "009"]
    names = [r.name for r in fog.read(tmp_path, "008")]
    assert names == [
        "008_OFF_1_task_1",
        "008_OFF_1_task_2",
        "008_OFF_1_task_10",
        "008_OFF_2_task_1",
    ]
    want = {"001": (27, 28, 31), "003": (28, 27, 31), "009": (28, 27, 30)}
    for patient, columns in want.items():
        (got,) = fog.read(tmp_path, patient)
        assert tuple(got.signals["emg"].values[:, 0]) == columns
        assert tuple(got.signals["eeg"].values[:, 0]) == (4, 5, 6, 7, 10, 11)
        np.testing.assert_allclose(
            got.signals["eeg"].values[0], 4 + np.arange(rows) / 100, rtol=1e-6
        )
    assert tuple(fog.read(tmp_path, "008")[3].signals["emg"].values[:, 0]) == (27, 31, 28)


def spoil_fog(path, how):
    lines = path.read_text().splitlines()
    if how == "columns":
        lines = [line.rsplit(",", 1)[0] for line in lines]
    elif how == "truncated":
        lines[-1] = lines[-1][:100]
    elif how == "text":
        lines[7] = lines[7].replace(",", ",abc", 60)
    elif how == "long":
        lines[7] += ",1,1"
    elif how == "label":
        lines[7] = lines[7][:-1] + "2"
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(("how", "message"), [
    ("columns", "expected 61 comma-separated columns, found 60"),
    ("truncated", "found none in row 300 of 300"),
    ("text", "expected numbers"),
    ("long", "found 2 more"),
    ("label", "expected labels 0 and 1 in the last column, found \\[2.0\\]"),
])  # fmt: skip
def test_fog_names_the_damage(how, message, tmp_path):
    path = write_fog(tmp_path, rows=300)
    spoil_fog(path, how)
    with pytest.raises(ValueError, match=message) as error:
        fog.read(tmp_path, "001")
    assert str(path) in str(error.value)


def test_fog_does_not_guess_columns_of_unknown_patients(tmp_path):
    write_fog(tmp_path, "013", rows=20)
    with pytest.raises(ValueError, match="expected a session with known EMG columns"):
        fog.read(tmp_path, "013")


# ISRUC


def test_isruc_joins_epochs_and_drops_the_surplus_labels(tmp_path):
    eeg = np.arange(4 * 6000.0).reshape(4, 6000)
    write_isruc(tmp_path, "2", C3_A2=eeg, stages=[0, 5, 2, 0])
    write_isruc(tmp_path, "10")
    assert isruc.subjects(tmp_path) == ["2", "10"]
    (got,) = isruc.read(tmp_path, "2")
    np.testing.assert_array_equal(got.signals["eeg"].values[1], np.arange(24000))
    assert got.signals["eeg"].channels[1] == "C3_A2" and got.seconds == 120
    assert [got.label(a, a + 30) for a in (0, 30, 60, 90, 15)] == [0, 1, 1, 0, UNLABELLED]


@pytest.mark.parametrize(("change", "message"), [
    ({"stages": [0, 1, 2]}, "expected 34 stages \\(4 epochs and 30 more\\), found 33"),
    ({"stages": [0, 1, 2, 4]}, "expected stages out of \\[0, 1, 2, 3, 5\\], found \\['4'\\]"),
    ({"stages": [0, 1, 2, "W"]}, "found \\['W'\\]"),
    ({"X2": None}, "found none of \\['X2'\\]"),
    ({"O1_A2": np.zeros((4, 100))}, "expected \\[epochs, 6000\\].*O1_A2"),
])  # fmt: skip
def test_isruc_content_is_checked(change, message, tmp_path):
    write_isruc(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        isruc.read(tmp_path, "1")


@pytest.mark.parametrize("keep", [0, 50, 5000, -100])
def test_isruc_truncated_and_foreign_files_are_named(keep, tmp_path):
    mat, text = write_isruc(tmp_path)
    mat.write_bytes(mat.read_bytes()[:keep])
    with pytest.raises(ValueError, match="subject1.mat: expected"):
        isruc.read(tmp_path, "1")
    text.unlink()
    with pytest.raises(FileNotFoundError, match="N_1.txt"):
        isruc.read(tmp_path, "1")


# BIDMC


@pytest.mark.parametrize("pack", [False, True])
def test_bidmc_groups_records_by_patient_at_125_hz(pack, tmp_path):
    rates = np.r_[np.full(40, 80), np.full(40, 100), np.full(41, 91)]
    write_bidmc(tmp_path, "bidmc_02", "s00007", rates=rates, pack=pack)
    write_bidmc(tmp_path, "bidmc_10", "s00007", pack=pack)
    write_bidmc(tmp_path, "bidmc_03", "s00002", pack=pack)
    assert bidmc.subjects(tmp_path) == ["s00002", "s00007"]
    got = bidmc.read(tmp_path, "s00007")
    assert [r.name for r in got] == ["bidmc_02", "bidmc_10"]
    assert got[0].signals["ecg"].rate == 125 and got[0].seconds == pytest.approx(120.008)
    np.testing.assert_allclose(
        got[0].signals["ecg"].values[0, :900], heart(121, 125)[:900], atol=1e-5
    )
    np.testing.assert_allclose(got[0].signals["ppg"].values[0, 0], 0.5)
    assert [got[0].label(a, a + 30) for a in (0, 45, 85, 25)] == [0, 1, UNLABELLED, UNLABELLED]


@pytest.mark.parametrize(("how", "message"), [
    ("cut", "expected 120 s as in the numerics, found 60"),
    ("column", "expected numbers in the columns \\['II'\\]"),
    ("gzip", "expected a whole CSV file"),
    ("foreign", "expected"),
])  # fmt: skip
def test_bidmc_names_the_damage(how, message, tmp_path):
    path = write_bidmc(tmp_path, pack=how == "gzip")
    content = path.read_bytes()
    half = content[: len(content) // 2]
    changed = {
        "cut": half[: half.rfind(b"\n") + 1],
        "column": content.replace(b" II", b" III"),
        "gzip": half,
        "foreign": bytes(range(256)) * 9,
    }
    path.write_bytes(changed[how])
    with pytest.raises(ValueError, match=message) as error:
        bidmc.read(tmp_path, "s00001")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("how", "where"), [
    ("changed", 0), ("changed", 12), ("changed", 400), ("changed", 0.5), ("changed", -6),
    ("cut", 5), ("cut", 12), ("cut", 400), ("cut", 0.5), ("cut", -6),
])  # fmt: skip
def test_bidmc_damaged_gzip_is_named(how, where, tmp_path):
    path = write_bidmc(tmp_path, pack=True)
    content = path.read_bytes()
    where = len(content) // 2 if where == 0.5 else where
    rest = b"" if how == "cut" else b"\xff\xff\xff\xff" + content[where:][4:]
    path.write_bytes(content[:where] + rest)
    with pytest.raises(ValueError, match="Signals.csv.gz: expected .*found") as error:
        bidmc.read(tmp_path, "s00001")
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_bidmc_without_its_numerics_or_patient_is_an_error(tmp_path):
    write_bidmc(tmp_path)
    (tmp_path / "bidmc_01_Numerics.csv").unlink()
    with pytest.raises(FileNotFoundError, match="Numerics"):
        bidmc.read(tmp_path, "s00001")
    (tmp_path / "bidmc_01_Fix.txt").write_text("nothing")
    with pytest.raises(ValueError, match="bidmc_01_Fix.txt: expected .*MIMIC II matched wdb ID"):
        bidmc.subjects(tmp_path)


# EEGMAT


def test_eegmat_picks_channels_in_order_and_converts_by_the_header_unit(tmp_path):
    rng = np.random.default_rng(0)
    t = np.arange(10 * 500) / 500
    wave = {name: k + rng.normal(size=t.size) for k, name in enumerate(eegmat.EEG_CHANNELS)}
    units = {"Fp1": ("mV", 1e-3), "O2": ("V", 1e-6)}
    for part in (1, 2):
        channels = {"EEG A2-A1": ("uV", np.zeros(t.size)), "ECG ECG": ("mV", heart(10, 500))}
        for name in reversed(eegmat.EEG_CHANNELS):
            unit, factor = units.get(name, ("uV", 1.0))
            # keep 16-bit steps small by writing millivolts and volts near their full scale
            channels[f"EEG {name}"] = (unit, wave[name] * factor * (1e3 if factor < 1 else 1))
        write_edf(tmp_path / f"Subject03_{part}.edf", channels)
    assert eegmat.subjects(tmp_path) == ["Subject03"]
    rest, task = eegmat.read(tmp_path, "Subject03")
    assert [rest.name, task.name] == ["Subject03_1", "Subject03_2"]
    assert (rest.label(0, 4), task.label(0, 4)) == (0, 1)
    eeg, ecg = rest.signals["eeg"], rest.signals["ecg"]
    assert (eeg.unit, ecg.unit, eeg.rate) == ("uV", "mV", 500)
    np.testing.assert_allclose(eeg.values[4], wave["C3"], atol=1e-3)
    np.testing.assert_allclose(eeg.values[0], wave["Fp1"] * 1e3, atol=0.1)
    np.testing.assert_allclose(eeg.values[11] / 1e6, wave["O2"] * 1e-3, atol=1e-3)
    np.testing.assert_allclose(ecg.values[0], heart(10, 500), atol=1e-3)


def edf_with(tmp_path, **changed):
    names = [f"EEG {name}" for name in eegmat.EEG_CHANNELS]
    channels = {name: ("uV", np.arange(1500.0)) for name in names} | {
        "ECG ECG": ("mV", heart(3, 500))
    }
    channels |= {name.replace("_", " "): value for name, value in changed.items()}
    channels = {k: v for k, v in channels.items() if v is not None}
    for part in (1, 2):
        write_edf(tmp_path / f"Subject01_{part}.edf", channels)
    return tmp_path / "Subject01_1.edf"


def test_eegmat_refuses_units_that_are_no_voltage(tmp_path):
    edf_with(tmp_path, ECG_ECG=("mmHg", heart(3, 500)))
    with pytest.raises(ValueError, match="found {'ECG ECG': 'mmHg'}"):
        eegmat.read(tmp_path, "Subject01")


def test_eegmat_refuses_missing_channels(tmp_path):
    edf_with(tmp_path, EEG_O2=None)
    with pytest.raises(ValueError, match="found none of \\['EEG O2'\\]"):
        eegmat.read(tmp_path, "Subject01")


@pytest.mark.parametrize("keep", [0, 100, 256, 1000, 0.5, -3])
def test_a_cut_edf_is_named(keep, tmp_path):
    path = edf_with(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if keep == 0.5 else keep])
    with pytest.raises(ValueError, match="Subject01_1.edf: expected"):
        eegmat.read(tmp_path, "Subject01")


def test_listing_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    for subject in ("S4", "S2", "S11"):
        write_wesad(tmp_path, subject, seconds=3)
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, p: reversed(sorted(listed(self, p))))
    assert wesad.subjects(tmp_path) == ["S2", "S4", "S11"]

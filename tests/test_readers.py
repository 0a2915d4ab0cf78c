"""Readers of WESAD, FOG, ISRUC and DREAMER: published layouts, and damaged or hostile files.

For the recordings in this repository see test_recorded_data, for one's own test_recordings.
"""

import os
import pathlib
import pickle

import numpy as np
import pytest
from raw_files import dreamer_person, write_dreamer, write_fog, write_isruc, write_wesad
from scipy.io import loadmat, savemat

from biox.data.readers import READERS, dreamer, fog, isruc, reader_named, wesad
from biox.data.windows import UNLABELLED

WRITERS = {"wesad": write_wesad, "fog": write_fog, "isruc": write_isruc, "dreamer": write_dreamer}


@pytest.mark.parametrize("name", READERS)
def test_an_absent_data_set_is_described_in_one_sentence(name, tmp_path):
    reader = reader_named(name)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as error:
            reader.subjects(folder)
        text = str(error.value)
        assert text.startswith(str(folder)) and text.endswith("found nothing")
        assert reader.ABOUT.title in text and reader.ABOUT.licence in text


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_readers_have_one_interface(name, tmp_path):
    WRITERS[name](tmp_path)
    reader = reader_named(name)
    (subject,) = reader.subjects(tmp_path)
    assert subject in reader.ABOUT.subjects
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
    want = pickle.loads(path.read_bytes(), encoding="latin1")["signal"]
    np.testing.assert_array_equal(got.signals["ecg"].values[0], want["chest"]["ECG"][:, 0])
    np.testing.assert_array_equal(got.signals["ppg"].values[0], want["wrist"]["BVP"][:, 0])
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
    ({"label": "none"}, "expected an array of numbers in label"),
    ({"signal": {"chest": {}}}, "expected the key signal/chest/ECG, found no 'ECG'"),
    ({"signal": 3}, "found no 'chest'"),
    ({"label": [[1], [1, 2]]}, "S2.pkl: expected an array of numbers in label"),
    ({"label": np.ones((1, 2100))}, "expected one column in label, found shape \\(1, 2100\\)"),
    ({"label": np.array(["1"] * 2100)}, "expected an array of numbers in label"),
    ({"signal": {"chest": {"ECG": np.ones((9, 2))}}}, "in signal/chest/ECG, found shape \\(9, 2"),
    ({"signal": {"chest": {"ECG": np.ones(0)}}}, "found shape \\(0,\\)"),
])  # fmt: skip
def test_wesad_content_is_checked(change, message, tmp_path):
    write_wesad(tmp_path, seconds=3, **change)
    with pytest.raises(ValueError, match=message):
        wesad.read(tmp_path, "S2")


def test_a_pickle_as_python_2_wrote_it_is_read(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(
        b"\x80\x02}q\x00U\x05labelq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85U\x01bq\x04\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f8K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10"
        + np.array([1.5, -2.25]).tobytes()
        + b"tbs."
    )
    np.testing.assert_array_equal(wesad.read_pickle(path)["label"], [1.5, -2.25])


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_safe_pickles_equal_pickle(protocol, tmp_path):
    content = {
        "a": np.arange(6, dtype=np.int32).reshape(2, 3),
        "b": [1, 2.5, "text", None, (True, b"x")],
        "c": {"d": np.float32(3.5), "e": np.zeros((0, 1))},
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    np.testing.assert_equal(wesad.read_pickle(path), content)


class Attack:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("attack", [
    lambda mark: Attack(open, mark, "w"), lambda mark: Attack(eval, f"open({mark!r}, 'w')"),
    lambda mark: Attack(os.system, f"touch {mark}"), lambda mark: Attack(np.save, mark, 1),
    lambda mark: Attack(pathlib.Path.touch, pathlib.Path(mark)),
])  # fmt: skip
def test_a_hostile_pickle_is_refused_and_runs_nothing(attack, tmp_path):
    path = write_wesad(tmp_path, seconds=3, label=attack(str(tmp_path / "mark")))
    with pytest.raises(ValueError, match="nothing of it was run") as error:
        wesad.read(tmp_path, "S2")
    assert str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["S2"]
    pickle.loads(path.read_bytes())  # the attack is real: an ordinary reader falls for it
    assert len(list(tmp_path.iterdir())) == 2


# FOG


def test_fog_takes_the_columns_of_the_patient_and_session(tmp_path):
    table = np.arange(61.0) + np.arange(60)[:, None] / 100
    table[:, 1], table[:, 60] = np.arange(60) / 500, 0
    base = tmp_path / "FilteredData"
    for session in ("001", "003", "008/OFF_1", "008/OFF_2", "009", "013"):
        write_fog(base, session, table=table)
    for task in (10, 2):
        write_fog(base, "008/OFF_1", task, table=table)
    assert fog.subjects(tmp_path) == ["001", "003", "008", "009", "013"]
    sessions = fog.read(tmp_path, "008")
    names = [recording.name.removeprefix("008_OFF_") for recording in sessions]
    assert names == ["1_task_1", "1_task_2", "1_task_10", "2_task_1"]
    assert tuple(sessions[3].signals["emg"].values[:, 0]) == (27, 31, 28)
    for patient, columns in {"001": (27, 28, 31), "003": (28, 27, 31), "009": (28, 27, 30)}.items():
        (got,) = fog.read(tmp_path, patient)
        assert tuple(got.signals["emg"].values[:, 0]) == columns
        eeg = got.signals["eeg"].values
        assert tuple(eeg[:, 0]) == (4, 5, 6, 7, 10, 11)
        np.testing.assert_allclose(eeg[0], table[:, 4], rtol=1e-6)
    with pytest.raises(ValueError, match="expected a session with known EMG columns"):
        fog.read(tmp_path, "013")


@pytest.mark.parametrize(("row", "change", "message"), [
    (0, lambda line: line.rsplit(",", 1)[0], "expected 61 comma-separated columns, found 60"),
    (-1, lambda line: line[:100], "found none in row 300 of 300"),
    (7, lambda line: line.replace(",", ",abc", 60), "expected numbers"),
    (7, lambda line: line + ",1,1", "found 2 more"),
    (7, lambda line: line[:-1] + "2", "labels 0 and 1 in the last column, found \\[2.0\\]"),
])  # fmt: skip
def test_fog_names_the_damage(row, change, message, tmp_path):
    path = write_fog(tmp_path, rows=300)
    lines = path.read_text().splitlines()
    lines[row] = change(lines[row])
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as error:
        fog.read(tmp_path, "001")
    assert str(path) in str(error.value)


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


# DREAMER


def test_clips_come_out_as_scipy_finds_them_without_the_headsets_level(tmp_path):
    path = write_dreamer(tmp_path / "DREAMER", [dreamer_person(s) for s in range(11)])
    assert dreamer.subjects(tmp_path) == [str(s) for s in range(1, 12)]
    person = loadmat(path)["DREAMER"][0, 0]["Data"][0, 10]  # as torcheeg reads it
    got = dreamer.read(tmp_path, "11")
    assert [r.name for r in got] == [f"subject11_clip{i}" for i in (1, 2, 3)]
    for i, recording in enumerate(got):
        eeg, ecg = recording.signals["eeg"], recording.signals["ecg"]
        raw = person["EEG"][0, 0]["stimuli"][0, 0][i, 0]
        want = (raw - np.median(raw, axis=0)).T
        np.testing.assert_allclose(eeg.values, want, rtol=1e-4, atol=1e-3)
        raw = person["ECG"][0, 0]["stimuli"][0, 0][i, 0]
        np.testing.assert_allclose(ecg.values, raw.T, rtol=1e-6)
        assert (eeg.rate, ecg.rate, eeg.unit, ecg.unit) == (128, 256, "uV", "a.u.")
        assert eeg.channels == dreamer.EEG_CHANNELS and eeg.seconds == ecg.seconds == 20 + 2 * i


@pytest.mark.parametrize(("target", "want"), [
    ("valence", [0, 1, 0]), ("arousal", [1, 0, 0]), ("dominance", [0, 0, 0]),
])  # fmt: skip
def test_scores_above_three_are_high_and_leads_are_picked(target, want, tmp_path):
    write_dreamer(tmp_path)
    got = dreamer.read(tmp_path, "1", target=target, channels={"ecg": ["ECG 2"]})
    assert [recording.label(0, 10) for recording in got] == want
    both = dreamer.read(tmp_path, "1")[0].signals["ecg"].values
    np.testing.assert_array_equal(got[0].signals["ecg"].values, both[1:])
    with pytest.raises(ValueError, match="ecg: expected channels out of .* found \\['V1'\\]"):
        dreamer.read(tmp_path, "1", channels={"ecg": ["V1"]})


def test_electrodes_are_those_that_the_file_names(tmp_path, caplog):
    """A file in another order gives the same channels; one without names is taken as published."""
    person = dreamer_person()
    order = np.random.default_rng(0).permutation(14)
    shuffled = person | {"EEG": {k: [x[:, order] for x in v] for k, v in person["EEG"].items()}}
    names = [dreamer.EEG_CHANNELS[i] for i in order]
    write_dreamer(tmp_path / "a", [person])
    want = dreamer.read(tmp_path / "a", "1")[0].signals["eeg"]
    assert "a/DREAMER.mat: no EEG_Electrodes, so the published order is taken" in caplog.text
    write_dreamer(tmp_path / "b", [shuffled], names)
    got = dreamer.read(tmp_path / "b", "1", channels={"eeg": ["O1", "AF3"]})[0].signals["eeg"]
    np.testing.assert_array_equal(got.values, want.values[[6, 0]])
    assert "b/DREAMER.mat" not in caplog.text


@pytest.mark.parametrize(("fields", "message"), [
    ({"electrodes": ["Fp1", *dreamer.EEG_CHANNELS[1:]]}, "EEG_Electrodes AF3 .*found Fp1 "),
    ({"electrodes": ["AF3"] * 14}, "in any order, found AF3 AF3"),
    ({"electrodes": dreamer.EEG_CHANNELS[:13]}, "expected EEG_Electrodes"),
    ({"electrodes": [1.0] * 14}, "expected EEG_Electrodes"),
    ({"EEG_SamplingRate": "fast"}, "expected EEG_SamplingRate in Hz, found"),
    ({"ECG_SamplingRate": 0}, r"expected ECG_SamplingRate in Hz, found \[0\]"),
])  # fmt: skip
def test_a_wrong_head_of_dreamer_is_named(fields, message, tmp_path):
    write_dreamer(tmp_path, **fields)
    with pytest.raises(ValueError, match=f"DREAMER.mat: .*{message}") as error:
        dreamer.read(tmp_path, "1")
    assert "\n" not in str(error.value)


def test_rates_thresholds_and_baselines_of_dreamer(tmp_path):
    write_dreamer(tmp_path, EEG_SamplingRate=64)
    found = dreamer.read(tmp_path, "1", threshold=1.5, baselines=True)
    assert [r.name for r in found[:2]] == ["subject1_clip1", "subject1_clip1_baseline"]
    assert [r.label(0, 5) for r in found] == [1, UNLABELLED, 1, UNLABELLED, 1, UNLABELLED]
    assert found[0].signals["eeg"].rate == 64 and found[1].signals["ecg"].seconds == 5


def short(**changed):
    return dreamer_person(seconds=4, **changed)


def changed_stimuli(device, change):
    person = short()
    person[device]["stimuli"] = change(person[device]["stimuli"])
    return person


@pytest.mark.parametrize(("person", "message"), [
    (short(ScoreValence=None), "expected EEG.stimuli, ECG.stimuli and ScoreValence"),
    (short(ECG=None), "expected EEG.stimuli, ECG.stimuli"),
    (short(EEG={"baseline": []}), "expected EEG.stimuli"),
    (short(EEG=3.0), "expected EEG.stimuli"),
    (short(ScoreValence=[2, 0, 5]), "expected one score from 1 to 5 .* found scores \\[2, 0, 5\\]"),
    (short(ScoreValence=[2, 2.5, 5]), "found scores \\[2.0, 2.5, 5.0\\]"),
    (short(ScoreValence=[2, np.nan, 5]), "found scores .*nan"),
    (short(ScoreValence="high"), "found scores \\['high'\\]"),
    (short(ScoreValence=[2, 4]), "found scores \\[2, 4\\], 3 clips of EEG"),
    (changed_stimuli("ECG", lambda x: x[:2]), "2 clips of ECG"),
    (changed_stimuli("EEG", lambda x: [x[0], x[1][:, :13], x[2]]),
     "expected numbers \\[samples, 14\\] in clip 2, found float64 of shape .*, 13"),
    (changed_stimuli("EEG", lambda x: [x[0].T, *x[1:]]), "clip 1, found .* shape \\(14, 512\\)"),
    (changed_stimuli("ECG", lambda x: [x[0], x[1], x[2][:0]]), "clip 3, found"),
    (changed_stimuli("ECG", lambda x: [x[0], "text", x[2]]), "clip 2, found <U4"),
])  # fmt: skip
def test_what_is_wrong_in_dreamer_is_named(person, message, tmp_path):
    path = write_dreamer(tmp_path, [short(), person])
    assert len(dreamer.read(tmp_path, "1")) == 3  # the others stay readable
    with pytest.raises(ValueError, match=message) as error:
        dreamer.read(tmp_path, "2")
    assert str(error.value).startswith(f"{path}, subject 2: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [
    0, 50, 200, 5000, -100, b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600),
    b"not MATLAB\n" * 60, {"other": np.ones(3)}, {"DREAMER": np.ones(3)},
    {"DREAMER": {"Score": np.ones(3)}},
])  # fmt: skip
def test_cut_and_foreign_mat_files_are_named(content, tmp_path):
    path = write_dreamer(tmp_path, [short()])
    if isinstance(content, dict):
        savemat(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:content])
    with pytest.raises(ValueError, match="expected a whole MATLAB v5 file with DREAMER.Data"):
        dreamer.subjects(tmp_path)


def test_a_replaced_mat_file_is_read_again(tmp_path):
    path = write_dreamer(tmp_path, [short()])
    with pytest.raises(FileNotFoundError, match="subject 2, found 1 to 1"):
        dreamer.read(tmp_path, "2")
    write_dreamer(tmp_path, [short()] * 2)
    os.utime(path, (1, 1))
    assert dreamer.subjects(tmp_path) == ["1", "2"]

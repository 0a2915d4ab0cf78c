"""DREAMER: clips, ratings and rates as scipy's own reader finds them, and every kind of damage."""

import os
from dataclasses import replace

import numpy as np
import pytest
from raw_files import DREAMER_EEG, ECG, EEG, dreamer_person, write_dreamer
from scipy.io import loadmat, savemat

from biox.data import dreamer
from biox.data.cutting import concatenate, cut
from biox.data.raw_formats import mat_v5


def test_clips_come_out_as_scipy_finds_them_without_the_headsets_level(tmp_path):
    path = write_dreamer(tmp_path / "DREAMER", [dreamer_person(s) for s in range(11)])
    assert dreamer.subjects(tmp_path) == dreamer.subjects(tmp_path / "DREAMER")
    assert dreamer.subjects(tmp_path) == [str(s) for s in range(1, 12)]
    person = loadmat(path)["DREAMER"][0, 0]["Data"][0, 10]  # the path torcheeg goes
    got = dreamer.read(tmp_path, "11")
    assert [r.name for r in got] == [f"subject11_clip{i}" for i in (1, 2, 3)]
    for i, recording in enumerate(got):
        eeg, ecg = recording.signals["eeg"], recording.signals["ecg"]
        raw = person["EEG"][0, 0]["stimuli"][0, 0][i, 0]
        np.testing.assert_allclose(
            eeg.values, (raw - np.median(raw, axis=0)).T, rtol=1e-4, atol=1e-3
        )
        raw = person["ECG"][0, 0]["stimuli"][0, 0][i, 0]
        np.testing.assert_allclose(ecg.values, raw.T, rtol=1e-6)
        assert (eeg.rate, ecg.rate, eeg.unit, ecg.unit) == (128, 256, "uV", "a.u.")
        assert eeg.channels == DREAMER_EEG and eeg.seconds == ecg.seconds == 20 + 2 * i


@pytest.mark.parametrize(("target", "want"), [
    ("valence", [0, 1, 0]), ("arousal", [1, 0, 0]), ("dominance", [0, 0, 0]),
])  # fmt: skip
def test_scores_above_three_are_high(target, want, tmp_path):
    write_dreamer(tmp_path)
    got = dreamer.read(tmp_path, "1", target=target)
    assert [recording.label(0, 10) for recording in got] == want
    with pytest.raises(ValueError, match="target: expected one of .*'valence'.*found 'joy'"):
        dreamer.read(tmp_path, "1", target="joy")


def test_rates_are_those_the_file_states(tmp_path):
    write_dreamer(tmp_path, eeg_rate=64, ecg_rate=128.0)
    signals = dreamer.read(tmp_path, "1")[0].signals
    assert (signals["eeg"].rate, signals["ecg"].rate) == (64, 128)
    path = write_dreamer(tmp_path, eeg_rate=np.nan)
    with pytest.raises(ValueError, match="expected a rate in Hz in EEG_SamplingRate, found"):
        dreamer.read(tmp_path, "1")
    content = loadmat(write_dreamer(tmp_path))["DREAMER"]
    savemat(path, {"DREAMER": {"Data": content["Data"][0, 0]}})  # no rate stated
    signals = dreamer.read(tmp_path, "1")[0].signals
    assert (signals["eeg"].rate, signals["ecg"].rate) == (128, 256)


def test_windows_for_one_lead_and_for_two(tmp_path):
    write_dreamer(tmp_path)
    eeg = replace(EEG, channels=14, seconds=10.0, unit="uV/100")
    one, two = (replace(ECG, seconds=10.0, channels=n, rate=r) for n, r in ((1, 100.0), (2, 200.0)))
    for ecg, picks in ((one, ["ECG 2"]), (two, ["ECG 1", "ECG 2"])):
        parts = [
            cut(r, {"eeg": eeg, "ecg": ecg}, 10.0, 5.0, dreamer.CLASSES)
            for r in dreamer.read(tmp_path, "1", channels={"ecg": picks})
        ]
        windows = concatenate(parts)
        assert windows.signals["eeg"].shape == (3 + 3 + 3, 14, 2000)
        assert windows.signals["ecg"].shape == (9, len(picks), round(10 * ecg.rate))
        assert windows.channels["ecg"] == tuple(picks)
        assert windows.labels.tolist() == [0] * 3 + [1] * 3 + [0] * 3
    # 20 uV of noise, by linear interpolation from 128 to 200 Hz: weaker, but of that size
    assert 0.1 < windows.signals["eeg"].std() < 0.2 and abs(windows.signals["eeg"].mean()) < 0.01
    with pytest.raises(ValueError, match="ecg: expected channels out of .* found \\['V1'\\]"):
        dreamer.read(tmp_path, "1", channels={"ecg": ["V1"]})
    with pytest.raises(ValueError, match="emg: expected channels out of \\[\\]"):
        dreamer.read(tmp_path, "1", channels={"emg": ["V1"]})


def test_gaps_are_left_to_cutting(tmp_path):
    person = dreamer_person()
    person["EEG"]["stimuli"][0][:, 3] = np.nan
    person["EEG"]["stimuli"][1][100, 5] = np.nan
    write_dreamer(tmp_path, [person])
    first, second, _ = dreamer.read(tmp_path, "1")
    spec = {"eeg": replace(EEG, channels=14, seconds=10.0)}
    with pytest.raises(ValueError, match="all 3 windows bad \\(3 eeg FC5 not finite"):
        cut(first, spec, 10.0, 5.0, dreamer.CLASSES)
    assert cut(second, spec, 10.0, 5.0, dreamer.CLASSES).starts.tolist() == [5, 10]


def short(**changed):
    return dreamer_person(seconds=4, **changed)


def changed_stimuli(device, change):
    person = short()
    person[device]["stimuli"] = change(person[device]["stimuli"])
    return person


@pytest.mark.parametrize(("person", "message"), [
    (short(ScoreValence=None), "found no 'ScoreValence'"),
    (short(ECG=None), "expected the field ECG.stimuli, found no 'ECG'"),
    (short(EEG={"baseline": []}), "expected the field EEG.stimuli, found no 'stimuli'"),
    (short(EEG=3.0), "expected the field EEG.stimuli, found no 'stimuli'"),
    (short(ScoreValence=[2, 0, 5]), "scores from 1 to 5 in ScoreValence, found \\[0\\]"),
    (short(ScoreValence=[2, 6, 5]), "found \\[6\\]"),
    (short(ScoreValence=[2, 2.5, 5]), "found \\[2.5\\]"),
    (short(ScoreValence=[2, np.nan, 5]), "found \\[nan\\]"),
    (short(ScoreValence="high"), "scores from 1 to 5 in ScoreValence"),
    (short(ScoreValence=[2, 4]), "expected one score .*'EEG': 3, .*'ScoreValence': 2"),
    (changed_stimuli("ECG", lambda x: x[:2]), "'ECG': 2"),
    (changed_stimuli("EEG", lambda x: [x[0], x[1][:, :13], x[2]]),
     "expected numbers \\[samples, 14\\] in EEG.stimuli, clip 2, found float64 of shape .*, 13"),
    (changed_stimuli("EEG", lambda x: [x[0].T, *x[1:]]), "clip 1, found .* shape \\(14, 512\\)"),
    (changed_stimuli("ECG", lambda x: [x[0], x[1], x[2][:0]]), "clip 3, found"),
    (changed_stimuli("ECG", lambda x: [x[0], "text", x[2]]), "clip 2, found <U4"),
    (short(n_clips=0), "expected one score and both signals a clip"),
])  # fmt: skip
def test_what_is_wrong_is_named(person, message, tmp_path):
    path = write_dreamer(tmp_path, [short(), person])
    assert len(dreamer.read(tmp_path, "1")) == 3  # the others stay readable
    with pytest.raises(ValueError, match=message) as error:
        dreamer.read(tmp_path, "2")
    assert str(error.value).startswith(f"{path}, subject 2: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 50, 127, 200, 5000, -100])
def test_a_cut_file_is_named(keep, tmp_path):
    path = write_dreamer(tmp_path, [short()])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="DREAMER.mat: expected .* found"):
        dreamer.read(tmp_path, "1")


@pytest.mark.parametrize(("content", "message"), [
    (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600), "a whole MATLAB v5 file"),
    (b"not a MATLAB file\n" * 40, "a whole MATLAB v5 file"),
    (mat_v5({"other": np.ones(3)}), "expected the variable DREAMER"),
    (mat_v5({"DREAMER": np.ones(3)}), "expected the field Data, found no 'Data'"),
    (mat_v5({"DREAMER": {"Data": np.ones(3)}}), "expected a cell array in Data, found none"),
])  # fmt: skip
def test_foreign_files_are_named(content, message, tmp_path):
    (tmp_path / "DREAMER.mat").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        dreamer.subjects(tmp_path)


def test_an_absent_subject_is_named_and_a_replaced_file_is_read_again(tmp_path):
    path = write_dreamer(tmp_path, [short()])
    for subject in ("0", "2", "S1"):
        with pytest.raises(FileNotFoundError, match=f"subject {subject}, found 1 to 1"):
            dreamer.read(tmp_path, subject)
    write_dreamer(tmp_path, [short()] * 2)
    os.utime(path, (1, 1))
    assert dreamer.subjects(tmp_path) == ["1", "2"]

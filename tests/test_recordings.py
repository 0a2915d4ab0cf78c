"""Your own recordings: files that MNE or WFDB reads, a table of labels; and ``data check``."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import odd_files as odd
import pytest
import yaml
from raw_files import ECG, PPG, heart, write_fog, write_isruc, write_wesad

from biox import __main__
from biox.config import Dataset
from biox.data.readers import recordings
from biox.data.splits import cut_dataset, source_of
from biox.data.windows import UNLABELLED

PICKS = {"ecg": ["II"], "ppg": ["PLETH"]}


def wfdb_record(folder):
    odd.wfdb(folder, "r1", [heart(20, 125), np.sin(np.arange(2500) / 20)], 125, ["mV", "NU"])


def test_recordings_reads_edf_and_fif_in_the_same_units(tmp_path):
    wave = heart(10, 500)
    odd.edf(tmp_path / "a.edf", [("II", "mV", wave, 500), ("PLETH", "%", 1 + wave, 500)])
    channels = [("II", "ecg", wave * 1e-3), ("PLETH", "misc", 1 + wave)]
    odd.fif(tmp_path / "b_raw.fif", channels, 500.0)
    odd.labels(tmp_path, "a.edf,p1,0,10,calm", "b_raw.fif,p1,0,10,busy")
    for i, got in enumerate(recordings.read(tmp_path, "p1", PICKS, ("calm", "busy"))):
        assert [got.signals[m].unit for m in PICKS] == ["mV", ("%", "a.u.")[i]]
        np.testing.assert_allclose(got.signals["ecg"].values[0], wave, atol=1e-3)
        np.testing.assert_allclose(got.signals["ppg"].values[0], 1 + wave, atol=1e-3)
        assert got.label(0, 4) == i


@pytest.mark.parametrize(("rows", "message"), [
    ("r1.hea,p1,0,8,calm\n\nr1.hea,p1,8,9,sleepy",
     "row 4: expected a label out of calm, busy or none, found label 'sleepy'"),
    ("r1.hea,p1,0,8,calm\nr1.hea,p1,7,9,busy",
     "row 3: expected no overlap .* r1.hea, found start_s '7', stop_s '9'"),
    ("r1.hea,p1,zero,8,calm", "row 2: expected 0 <= start_s < stop_s in seconds, found .*'zero'"),
    ("r1.hea,p1,00:00:00,00:00:08,calm", "row 2: .* found start_s '00:00:00', stop_s '00:00:08'"),
    ("r1.hea,p1,nan,8,calm", "row 2: expected .* found start_s 'nan'"),
    ("r1.hea,p1,,8,calm", "row 2: expected .* found start_s ''"),
    ("r1.hea,p1,0,8,calm\nr1.hea,p1,-1,8,calm", "row 3: .* found start_s '-1'"),
    ("r1.hea,p1,8,8,calm", "row 2: .* found start_s '8', stop_s '8'"),
    ("r1.hea,p1,9,8,calm", "row 2: .* found start_s '9', stop_s '8'"),
    ("r1.hea,p1,0,inf,calm", "row 2: .* stop_s 'inf'"),
    ("r1.hea,p1,0", "row 2: .* found start_s '0', stop_s ''"),
    ("", "labels.csv: expected a row for each segment, found only the header"),
    (",p1,0,8,calm", "row 2: expected a file and a subject, found file ''"),
    ("r1.hea,p1,0,8,calm\nr1.hea,p1,20,28,busy",
     "row 3: expected a start within the 20 s of r1.hea, found start_s '20'"),
    ("r1.hea,p1,0,8000,calm\nr1.hea,p1,8000,20000,busy", "0 to 20000: milliseconds, or numbers of"),
    ("r1.hea,p1,0,8,calm\nr1.hea,p2,8,9,calm",
     "row 3: expected one subject a file, found file 'r1.hea', subject 'p2'"),
    ("r1.hea,p1,0,8,calm\n./r1.hea,p2,8,9,calm", "row 3: expected one subject a file"),
    ("r1.hea,p1,0,8,calm,5", "labels.csv: expected columns"),
    ("r2.hea,p1,0,8,calm", "r2.hea: expected a recording, found nothing"),
    ("foreign.edf,p1,0,8,calm", "foreign.edf: expected an EDF"),
    ("foreign.fif,p1,0,8,calm", "foreign.fif: expected a file MNE reads"),
    ("foreign.hea,p1,0,8,calm", "foreign.hea: expected a WFDB record"),
    ("cut.hea,p1,0,8,calm", "cut.hea: expected a WFDB record"),
])  # fmt: skip
def test_recordings_names_what_is_wrong(rows, message, tmp_path):
    wfdb_record(tmp_path)
    for suffix in ("edf", "fif", "hea"):
        (tmp_path / f"foreign.{suffix}").write_text("not a recording\n" * 40)
    head = (tmp_path / "r1.hea").read_text()
    (tmp_path / "cut.hea").write_text(head.replace("r1", "cut"))
    (tmp_path / "cut.dat").write_bytes((tmp_path / "r1.dat").read_bytes()[:3000])
    odd.labels(tmp_path, rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        recordings.read(tmp_path, "p1", PICKS, ("calm", "busy"))


def test_recordings_names_missing_subjects_and_columns(tmp_path):
    wfdb_record(tmp_path)
    odd.labels(tmp_path, "r1.hea,p1,0,8,calm")
    with pytest.raises(FileNotFoundError, match="subject p2"):
        recordings.read(tmp_path, "p2", PICKS, ("calm",))
    (tmp_path / "labels.csv").write_text("file,subject\nr1.hea,p1\n")
    message = "labels.csv: expected columns .* found no start_s, stop_s, label in row 1, but file"
    with pytest.raises(ValueError, match=message):
        recordings.subjects(tmp_path)


MINE = dict(
    source="original", folder="unused", seconds=60.0, step=5.0, condition_per="recording",
    reader="recordings", picks=PICKS, classes=["calm", "busy"],
    splits={"train": ["p1"], "val": ["p2"], "pair": ["p3"], "test": ["p10"]},
)  # fmt: skip


def own_folder(folder):
    """An EDF file a subject: calm, no label, a gap, busy."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i, subject in enumerate(("p1", "p2", "p3", "p10")):
        wave = np.sin(np.arange(160 * 200) / 30)
        wave += 0.1 * np.random.default_rng(i).normal(size=wave.size)
        channels = [("II", "mV", heart(160, 200, seed=i), 200), ("PLETH", "%", wave, 200)]
        odd.edf(folder / f"{subject}.edf", channels)
        rows += [f"{subject}.edf,{subject},0,75,calm", f"{subject}.edf,{subject},75,80,"]
        rows += [f"{subject}.edf,{subject.upper()} ,85,160,busy"]
    odd.labels(folder, *rows)


def test_own_recordings_go_from_settings_to_windows(tmp_path):
    own_folder(tmp_path)
    spelt = {"train": ["p1"], "val": ["P2"], "pair": [" p3"], "test": ["P10 "]}
    choice, specs = Dataset(**MINE | {"splits": spelt}), {"ecg": ECG, "ppg": PPG}
    parts = cut_dataset("mine", choice, specs, tmp_path)
    assert [set(part.subjects) for part in parts.values()] == [{"p1"}, {"p2"}, {"p3"}, {"p10"}]
    for name, part in parts.items():
        assert part.classes == ("calm", "busy")
        assert part.source == source_of("mine", choice) == "original mine"
        assert part.signals["ecg"].shape[1:] == (1, 6000)
        assert part.signals["ppg"].shape[1:] == (1, 7500)
        # purity 0.8: 48 of the 60 s must be calm (until 75 s) or busy (from 85 s)
        labels = [0] * 6 + [UNLABELLED] * 9 + [1] * 6
        assert part.labels.tolist() == [k for k in labels if k >= 0 or name == "pair"]
    odd.edf(tmp_path / "p3.edf", [("PLETH", "%", np.ones(4000), 200)])
    with pytest.raises(ValueError, match="p3.edf: expected the channels \\['II'\\], found"):
        cut_dataset("mine", choice, specs, tmp_path)
    assert Dataset(**MINE | {"picks": {"eeg": [2, "T7"]}}).n_channels("eeg") == 2


def test_one_recording_under_two_names_never_is_in_two_splits(tmp_path):
    own_folder(tmp_path)
    shutil.copy(tmp_path / "p1.edf", tmp_path / "p10.edf")
    found = "the same in p10.edf of p10 and p1.edf of p1"
    with pytest.raises(ValueError, match=f"other samples in test than in train, found {found}"):
        cut_dataset("mine", Dataset(**MINE), {"ecg": ECG, "ppg": PPG}, tmp_path)
    splits = MINE["splits"] | {"test": ["P1 "]}
    with pytest.raises(ValueError, match="each subject in one split, found P1  in train and test"):
        Dataset(**MINE | {"splits": splits})


# data check


def check(capsys, *arguments):
    """Status and printed text of the command."""
    status = __main__.main(["data", "check", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_a_check_finds_subjects_as_the_splits_do(tmp_path, capsys, monkeypatch):
    own_folder(tmp_path)
    spelt = {"train": ["p1"], "val": ["P2"], "pair": [" p3"], "test": ["P10 ", "p11"]}
    chosen = SimpleNamespace(datasets={"mine": Dataset(**MINE | {"splits": spelt})})
    monkeypatch.setattr("biox.config.load_settings", lambda path: chosen)
    shown = check(capsys, "mine", tmp_path)[1].splitlines()
    assert [line.split()[0] for line in shown if "no files" in line] == ["p11"]


def test_missing_damaged_and_partly_dead_subjects_are_told_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_isruc(tmp_path, "1", n=8, stages=[0, 2] * 4)
    write_isruc(tmp_path, "2")[1].unlink()
    mat, _ = write_isruc(tmp_path, "3")
    mat.write_bytes(mat.read_bytes()[:2000])
    ecg = heart(240, 200).reshape(8, 6000)
    ecg[2:4] = 0.3
    write_isruc(tmp_path, "4", n=8, stages=[0] * 8, X2=ecg)
    write_isruc(tmp_path, "5", X2=np.zeros((4, 6000)))
    status, said = check(capsys, "isruc", tmp_path)
    lines = {line.split()[0]: line for line in reversed(said.splitlines())}
    assert status == 1
    assert re.search(r"ok +4.0 +eeg 200 Hz, ecg 200 Hz +wake 2.0, sleep 2.0", lines["1"])
    assert re.search("missing .*N_1.txt", lines["2"])
    assert re.search("damaged .*subject3.mat: expected", lines["3"])
    assert re.search("ok .* 1.0 min ecg X2 constant", lines["4"])
    assert re.search("damaged .*expected sound signals, found none", lines["5"])
    assert re.search("missing .*no files", lines["6"])
    assert "2 of 99 subjects sound, 0.1 hours of signal" in said and "Cite: Khalighi" in said


def test_a_check_shows_what_is_in_any_folder_of_recordings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_folder(tmp_path)
    shutil.copy(tmp_path / "p1.edf", tmp_path / "p10.edf")
    odd.fif(tmp_path / "b_raw.fif", [("F3", "eeg", odd.brain(60, 200))], 200.0)
    pulse = np.sin(odd.clock(60, 100))
    channels = [("ECG", "mV", heart(60, 200, seed=9), 200), ("PLETH", "", pulse, 100)]
    onsets, notes = [*range(30), *range(70, 100)], [(80, 5, "BAD_loose")]
    odd.edf(tmp_path / "a.edf", channels, onsets, notes)
    wfdb_record(tmp_path)
    with open(tmp_path / "labels.csv", "a") as file:
        file.write("a.edf,s1,0,30,calm\nb_raw.fif,s2,0,60,calm\nr1.hea,s3,0,20,busy\n")
    status, said = check(capsys, "recordings", tmp_path)
    lines = {line.split()[0]: line for line in said.splitlines()}
    for word in ("ok", "ecg 200 Hz, ppg 100 Hz", "calm 0.5", "a.edf", "1, 40.0 s", "5.0 s"):
        assert word in lines["s1"]
    assert "implausible" in lines["s2"] and "microvolts that are called volts" in lines["s2"]
    assert re.search("ok .*ecg 70, ppg 6[345]", lines["p1"]) and status == 1
    assert "ok" in lines["s3"] and "ecg 125 Hz, ppg 125 Hz" in lines["s3"]
    assert "copy" in lines["p10"] and "same samples as p1.edf of p1" in lines["p10"]


def test_clocks_that_do_not_fit_are_damage(tmp_path, capsys):
    signal = {"chest": {"ECG": heart(20, 700)}, "wrist": {"BVP": heart(20, 32)}}
    write_wesad(tmp_path, seconds=20, signal=signal)
    _, said = check(capsys, "wesad", tmp_path)
    assert re.search("S2 +damaged .*S2: expected modalities of equal length within 1 s", said)


def test_a_sound_data_set_of_the_settings_passes(tmp_path, capsys, monkeypatch):
    own_folder(tmp_path / "mine")
    content = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    content["datasets"]["mine"] = MINE
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    status, said = check(capsys, "mine", "mine")
    assert status == 0 and "4 of 4 subjects sound" in said
    assert re.search("p10 +ok +2.7 +ecg 200 Hz, ppg 200 Hz +calm 1.2, busy 1.2", said)
    (tmp_path / "mine" / "p10.edf").write_bytes(b"none")
    status, said = check(capsys, "mine", "mine")
    assert status == 1 and "p10.edf: expected an EDF file" in said


@pytest.mark.parametrize(("name", "message"), [
    ("wesda", "reader: expected one of bidmc, dreamer, .* found 'wesda'"),
    ("fog", "expected folders 001 .*Mendeley.* found nothing"),
])  # fmt: skip
def test_what_cannot_be_checked_is_named(name, message, tmp_path, capsys):
    status, said = check(capsys, name, tmp_path)
    assert status == 1 and re.search(message, said)


def test_a_check_survives_any_failure_of_a_reader(tmp_path, capsys, monkeypatch):
    write_fog(tmp_path)
    monkeypatch.setattr("biox.data.readers.fog._table", lambda *arguments: 1 / 0)
    _, said = check(capsys, "fog", tmp_path)
    assert re.search("001 +damaged .*ZeroDivisionError: division by zero", said)

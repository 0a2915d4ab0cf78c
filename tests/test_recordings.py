"""Your own recordings: files that MNE or WFDB reads, a table of labels; and ``data check``."""

import re

import numpy as np
import pytest
import wfdb
import yaml
from raw_files import ECG, PPG, heart, write_edf, write_fog, write_isruc, write_wesad

from biox import __main__
from biox.config import Dataset
from biox.data.readers import recordings
from biox.data.splits import cut_dataset, source_of
from biox.data.windows import UNLABELLED

PICKS = {"ecg": ["II"], "ppg": ["PLETH"]}
TABLE = "file,subject,start_s,stop_s,label\n"


def wfdb_record(folder, seconds=20):
    ppg = np.sin(np.arange(seconds * 125) / 20)
    x = np.stack([ppg, np.zeros_like(ppg), heart(seconds, 125)], axis=1)
    wfdb.wrsamp(
        "r1", 125, ["NU", "mmHg", "mV"], ["PLETH", "ABP", "II"], x,
        fmt=["16"] * 3, write_dir=str(folder), adc_gain=[10000.0] * 3, baseline=[0] * 3,
    )  # fmt: skip
    return x


def test_recordings_reads_wfdb_with_several_segments(tmp_path):
    x = wfdb_record(tmp_path)
    rows = "r1.hea,p1,0,8,calm\nr1.hea,p1,12,20,busy\nr1.hea,p1,8,10,\n"
    (tmp_path / "labels.csv").write_text(TABLE + rows)
    assert recordings.subjects(tmp_path) == ["p1"]
    (got,) = recordings.read(tmp_path, "p1", PICKS, ("calm", "busy"), source="mine")
    np.testing.assert_allclose(got.signals["ecg"].values[0], x[:, 2], atol=1e-4)
    np.testing.assert_allclose(got.signals["ppg"].values[0], x[:, 0], atol=1e-4)
    assert got.signals["ecg"].unit == "mV" and got.signals["ppg"].rate == 125
    assert [got.label(a, a + 4) for a in (0, 4, 6, 13, 9)] == [0, 0, UNLABELLED, 1, UNLABELLED]


def test_recordings_reads_edf_and_fif_in_the_same_units(tmp_path):
    import mne

    wave = heart(10, 500)
    write_edf(tmp_path / "a.edf", {"II": ("mV", wave), "PLETH": ("%", 1 + wave)})
    info = mne.create_info(["II", "PLETH"], 500.0, ["ecg", "misc"])
    raw = mne.io.RawArray(np.stack([wave * 1e-3, 1 + wave]), info, verbose="ERROR")
    raw.save(tmp_path / "b_raw.fif", verbose="ERROR")
    (tmp_path / "labels.csv").write_text(TABLE + "a.edf,p1,0,10,calm\nb_raw.fif,p1,0,10,busy\n")
    edf, fif = recordings.read(tmp_path, "p1", PICKS, ("calm", "busy"))
    for got in (edf, fif):
        assert got.signals["ecg"].unit == "mV"
        np.testing.assert_allclose(got.signals["ecg"].values[0], wave, atol=1e-3)
    np.testing.assert_allclose(fif.signals["ppg"].values[0], 1 + wave, atol=1e-3)
    np.testing.assert_allclose(edf.signals["ppg"].values[0], 1 + wave, atol=1e-3)
    assert (edf.signals["ppg"].unit, fif.signals["ppg"].unit) == ("%", "a.u.")
    assert (edf.label(0, 4), fif.label(0, 4)) == (0, 1)


@pytest.mark.parametrize(("rows", "message"), [
    ("r1.hea,p1,0,8,calm\n\nr1.hea,p1,8,9,sleepy\n",
     "labels.csv, row 4: expected a label out of calm, busy or none, found label 'sleepy'"),
    ("r1.hea,p1,0,8,calm\nr1.hea,p1,7,9,busy\n",
     "labels.csv, row 3: expected no overlap .* r1.hea, found start_s '7', stop_s '9'"),
    ("r1.hea,p1,zero,8,calm\n", "row 2: expected 0 <= start_s < stop_s in seconds, found .*'zero'"),
    ("r1.hea,p1,nan,8,calm\n", "labels.csv, row 2: expected .* found start_s 'nan'"),
    ("r1.hea,p1,,8,calm\n", "labels.csv, row 2: expected .* found start_s ''"),
    ("r1.hea,p1,0,8,calm\nr1.hea,p1,-1,8,calm\n", "labels.csv, row 3: .* found start_s '-1'"),
    ("r1.hea,p1,8,8,calm\n", "labels.csv, row 2: .* found start_s '8', stop_s '8'"),
    ("r1.hea,p1,9,8,calm\n", "labels.csv, row 2: .* found start_s '9', stop_s '8'"),
    ("r1.hea,p1,0,inf,calm\n", "labels.csv, row 2: .* stop_s 'inf'"),
    ("r1.hea,p1,0\n", "labels.csv, row 2: .* found start_s '0', stop_s ''"),
    ("", "labels.csv: expected a row for each segment, found only the header"),
    ("\n\n", "labels.csv: expected a row for each segment, found only the header"),
    (",p1,0,8,calm\n", "labels.csv, row 2: expected a file and a subject, found file ''"),
    ("r1.hea,p1,0,8,calm\nr1.hea,p1,20,28,busy\n",
     "labels.csv, row 3: expected a start within the 20 s of r1.hea, found start_s '20'"),
    ("r1.hea,p1,0,8,calm,5\n", "labels.csv: expected columns"),
    ("r2.hea,p1,0,8,calm\n", "r2.hea: expected a recording, found nothing"),
    ("foreign.edf,p1,0,8,calm\n", "foreign.edf: expected an EDF"),
    ("foreign.fif,p1,0,8,calm\n", "foreign.fif: expected a file MNE reads"),
    ("foreign.hea,p1,0,8,calm\n", "foreign.hea: expected a WFDB record"),
    ("cut.hea,p1,0,8,calm\n", "cut.hea: expected a WFDB record"),
])  # fmt: skip
def test_recordings_names_what_is_wrong(rows, message, tmp_path):
    wfdb_record(tmp_path)
    for suffix in ("edf", "fif", "hea"):
        (tmp_path / f"foreign.{suffix}").write_text("not a recording\n" * 40)
    head = (tmp_path / "r1.hea").read_text()
    (tmp_path / "cut.hea").write_text(head.replace("r1", "cut"))
    (tmp_path / "cut.dat").write_bytes((tmp_path / "r1.dat").read_bytes()[:3000])
    (tmp_path / "labels.csv").write_text(TABLE + rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        recordings.read(tmp_path, "p1", PICKS, ("calm", "busy"))


def test_recordings_names_missing_channels_and_columns(tmp_path):
    wfdb_record(tmp_path)
    (tmp_path / "labels.csv").write_text(TABLE + "r1.hea,p1,0,8,calm\n")
    with pytest.raises(ValueError, match="expected the channels \\['V9'\\], found .*PLETH"):
        recordings.read(tmp_path, "p1", {"ecg": ["V9"]}, ("calm",))
    with pytest.raises(FileNotFoundError, match="subject p2"):
        recordings.read(tmp_path, "p2", PICKS, ("calm",))
    (tmp_path / "labels.csv").write_text("file,subject\nr1.hea,p1\n")
    message = "labels.csv: expected columns .* found no start_s, stop_s, label in row 1, but file"
    with pytest.raises(ValueError, match=message):
        recordings.subjects(tmp_path)


MINE = {
    "source": "original",
    "folder": "unused",
    "seconds": 60.0,
    "step": 5.0,
    "condition_per": "recording",
    "reader": "recordings",
    "picks": PICKS,
    "classes": ["calm", "busy"],
    "splits": {"train": ["p1"], "val": ["p2"], "pair": ["p3"], "test": ["p10"]},
}


def own_folder(folder, subjects=("p1", "p2", "p3", "p10")):
    """An EDF file a subject: calm, a gap, busy."""
    rows = []
    for i, subject in enumerate(subjects):
        wave = np.sin(np.arange(160 * 200) / 30)
        wave += 0.1 * np.random.default_rng(i).normal(size=wave.size)
        channels = {"II": ("mV", heart(160, 200, seed=i)), "PLETH": ("%", wave)}
        write_edf(folder / f"{subject}.edf", channels, rate=200)
        rows += [f"{subject}.edf,{subject},0,75,calm", f"{subject}.edf,{subject},85,160,busy"]
    (folder / "labels.csv").write_text(TABLE + "\n".join(rows) + "\n")


def test_own_recordings_go_from_settings_to_windows(tmp_path):
    own_folder(tmp_path)
    choice, specs = Dataset(**MINE), {"ecg": ECG, "ppg": PPG}
    parts = cut_dataset("mine", choice, specs, tmp_path)
    assert {name: sorted(set(part.subjects)) for name, part in parts.items()} == choice.splits
    for name, part in parts.items():
        assert part.classes == ("calm", "busy")
        assert part.source == source_of("mine", choice) == "original mine"
        assert part.signals["ecg"].shape[1:] == (1, 6000)
        assert part.signals["ppg"].shape[1:] == (1, 7500)
        # purity 0.8: 48 of the 60 s must be calm (until 75 s) or busy (from 85 s)
        labels = [0] * 6 + [UNLABELLED] * 9 + [1] * 6
        assert part.labels.tolist() == [k for k in labels if k >= 0 or name == "pair"]
    write_edf(tmp_path / "p3.edf", {"PLETH": ("%", np.ones(4000))}, rate=200)
    with pytest.raises(ValueError, match="p3.edf: expected the channels \\['II'\\], found"):
        cut_dataset("mine", choice, specs, tmp_path)


# data check


def check(capsys, *arguments):
    """Status and printed text of the command."""
    status = __main__.main(["data", "check", *map(str, arguments)])
    return status, capsys.readouterr().out


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


def test_clocks_that_do_not_fit_are_damage(tmp_path, capsys):
    signal = {"chest": {"ECG": heart(20, 700)}, "wrist": {"BVP": heart(20, 32)}}
    write_wesad(tmp_path, seconds=20, signal=signal)
    _, said = check(capsys, "wesad", tmp_path)
    assert re.search("S2 +damaged .*S2: expected modalities of equal length within 1 s", said)


def test_a_sound_data_set_of_the_settings_passes(tmp_path, capsys, monkeypatch):
    own_folder(tmp_path / "mine")
    root = __main__.__file__.replace("biox/__main__.py", "params.yaml")
    with open(root) as file:
        content = yaml.safe_load(file)
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
    ("recordings", "expected labels.csv .* found nothing"),
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

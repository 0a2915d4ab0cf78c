"""``python -m biox data check``: what is there, what is missing, what is damaged."""

import re
import sys

import numpy as np
import pytest
import yaml
from raw_files import (
    dreamer_person,
    heart,
    write_bidmc,
    write_dreamer,
    write_eegmat,
    write_fog,
    write_isruc,
    write_wesad,
)
from test_recordings import own_folder, own_settings

from biox import __main__
from biox.commands.data import paper_settings
from biox.data import READERS
from biox.data.check import DAMAGED, MISSING, OK
from biox.data.check import check as check_data

WRITERS = {
    "wesad": (write_wesad, {"ecg": {700.0}, "ppg": {64.0}}),
    "fog": (write_fog, {"eeg": {500.0}, "emg": {500.0}}),
    "isruc": (write_isruc, {"eeg": {200.0}, "ecg": {200.0}}),
    "dreamer": (write_dreamer, {"eeg": {128.0}, "ecg": {256.0}}),
    "bidmc": (write_bidmc, {"ecg": {125.0}, "ppg": {125.0}}),
    "eegmat": (write_eegmat, {"eeg": {500.0}, "ecg": {500.0}}),
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_sound_subject_of_every_data_set_is_measured(name, tmp_path):
    write, rates = WRITERS[name]
    write(tmp_path)
    (subject,) = READERS[name].subjects(tmp_path)
    report = check_data(READERS[name], tmp_path, [subject])
    (found,) = report.subjects
    assert report.fine and report.usable == [subject] and (found.status, found.sentence) == (OK, "")
    assert found.rates == rates and not found.unusable
    recordings = READERS[name].read(tmp_path, subject)
    assert found.minutes == pytest.approx(sum(r.seconds for r in recordings) / 60)
    assert set(found.labels) <= set(READERS[name].CLASSES) and 0 < sum(found.labels.values())
    assert sum(found.labels.values()) <= found.minutes
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert report.n_bytes == on_disk


def test_labels_are_counted_in_minutes(tmp_path):
    track = np.repeat([1, 0, 2, 3, 3], 60 * 700)
    write_wesad(tmp_path, seconds=300, track=track)
    (found,) = check_data(READERS["wesad"], tmp_path, ["S2"]).subjects
    assert found.labels == {"baseline": 1.0, "stress": 1.0, "amusement": 2.0}
    assert list(found.labels) == ["baseline", "stress", "amusement"]


def test_missing_damaged_and_partly_dead_subjects_are_told_apart(tmp_path):
    write_isruc(tmp_path, "1", n=8, stages=[0, 2] * 4)
    write_isruc(tmp_path, "2")[1].unlink()
    mat, _ = write_isruc(tmp_path, "3")
    mat.write_bytes(mat.read_bytes()[:2000])
    ecg = heart(240, 200).reshape(8, 6000)
    ecg[2:4] = 0.3
    write_isruc(tmp_path, "4", n=8, stages=[0] * 8, X2=ecg)
    write_isruc(tmp_path, "5", X2=np.zeros((4, 6000)))
    report = check_data(READERS["isruc"], tmp_path, ["1", "2", "3", "4", "5", "6"])
    status = {found.subject: found.status for found in report.subjects}
    assert status == {"1": OK, "2": MISSING, "3": DAMAGED, "4": OK, "5": DAMAGED, "6": MISSING}
    sentences = {found.subject: found.sentence for found in report.subjects}
    assert "N_1.txt" in sentences["2"]
    assert "subject3.mat: expected" in sentences["3"]
    assert "expected sound signals, found none (ecg X2 constant)" in sentences["5"]
    assert report.subjects[3].unusable == {"ecg X2 constant": pytest.approx(1.0)}
    assert not report.fine and report.usable == ["1", "4"]
    assert report.hours == pytest.approx(8 / 60)
    assert check_data(READERS["isruc"], tmp_path, ["1", "4"]).fine  # the others are not expected


def test_clocks_that_do_not_fit_are_damage(tmp_path):
    write_wesad(tmp_path, seconds=20, signal={
        "chest": {"ECG": heart(20, 700)}, "wrist": {"BVP": heart(20, 32)},
    })  # fmt: skip
    write_wesad(tmp_path, "S3", seconds=20, track=np.ones(20 * 700, int))
    found = check_data(READERS["wesad"], tmp_path, ["S2", "S3"]).subjects
    assert "S2: expected modalities of equal length within 1 s" in found[0].sentence
    assert [s.status for s in found] == [DAMAGED, OK]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["biox", "data", "check", *map(str, arguments)])
    return __main__.main()


def test_the_command_says_it_in_a_line_each_and_by_its_exit_code(tmp_path, monkeypatch, capsys):
    people = [dreamer_person(seed, n_clips=1, seconds=3) for seed in range(23)]
    path = write_dreamer(tmp_path, people)
    assert run(monkeypatch, "dreamer", tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  1   ok  0.1 min  eeg 128 Hz, ecg 256 Hz  low 0.1", said[1])
    assert said[24].startswith("23 of 23 subjects usable, 0.0 hours of signal, ")
    write_dreamer(tmp_path, people[:22])
    assert run(monkeypatch, "dreamer", tmp_path) == 1
    said = capsys.readouterr().out
    assert "  23  missing: no files of this subject" in said and "22 of 23 subjects" in said
    assert "https://doi.org/10.5281/zenodo.546113" in said and "Licence: for research" in said
    path.write_bytes(path.read_bytes()[:500])
    assert run(monkeypatch, "dreamer", tmp_path) == 1
    said = capsys.readouterr().out
    assert "DREAMER.mat: expected a whole MATLAB v5 file" in said and "0 of 23" in said


def test_the_papers_values_are_shown_for_the_folder_that_was_checked(tmp_path, monkeypatch, capsys):
    write_fog(tmp_path, "008/OFF_1")
    assert run(monkeypatch, "fog", tmp_path) == 1
    said = capsys.readouterr().out
    assert "Subjects of the paper's setting (1): all usable" in said
    fragment = yaml.safe_load(said[said.index("# FOG as in the paper") :])
    assert fragment["datasets"]["fog"]["folder"] == str(tmp_path)
    assert run(monkeypatch, "fog", tmp_path / "nowhere") == 1
    said = capsys.readouterr().out
    assert "(1): not usable 008" in said and "found nothing" in said and "Mendeley" in said


def test_own_recordings_are_checked_by_the_name_of_their_dataset(tmp_path, monkeypatch, capsys):
    own_folder(tmp_path / "mine")
    own_settings(tmp_path)
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "mine", "mine") == 0
    said = capsys.readouterr().out
    assert "  p10  ok  1.0 min  ecg 200 Hz, ppg 200 Hz  calm 0.4, busy 0.4" in said
    (tmp_path / "mine" / "p10.edf").write_bytes(b"none")
    assert run(monkeypatch, "mine", "mine") == 1
    assert "p10.edf: expected an EDF file" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "message"), [
    ("recordings", "expected the name of a dataset of params.yaml with reader: recordings"),
    ("wesda", "reader: expected one of bidmc, dreamer, .* found 'wesda'"),
])  # fmt: skip
def test_names_that_cannot_be_checked_are_refused(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, name, tmp_path) == 1
    assert re.search(message, capsys.readouterr().out)


def test_a_check_survives_any_failure_of_a_reader(tmp_path, monkeypatch):
    write_wesad(tmp_path, seconds=3)
    monkeypatch.setattr(READERS["wesad"], "read_pickle", lambda path: 1 / 0)
    (found,) = check_data(READERS["wesad"], tmp_path, ["S2"]).subjects
    assert (found.status, found.sentence) == (DAMAGED, "ZeroDivisionError: division by zero")
    assert paper_settings("eegmat") is None

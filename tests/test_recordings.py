"""Your own recordings: files that MNE or WFDB reads, and what is said about a wrong table."""

from types import MappingProxyType

import numpy as np
import pytest
import wfdb
import yaml
from raw_files import heart, write_edf

from biox import real
from biox.config import load_settings
from biox.data import recordings
from biox.data.windows import UNLABELLED
from biox.experiment import cut_dataset, input_spec, source_of
from biox.files import project_root

PICKS = MappingProxyType({"ecg": ["II"], "ppg": ["PLETH"]})
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
    ("r2.hea,p1,0,8,calm\n", "r2.hea: named in labels.csv, found nothing"),
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


def own_settings(tmp_path, **changed):
    """The project's settings with a data set of one's own, and that data set's choice."""
    content = yaml.safe_load((project_root() / "params.yaml").read_text())
    subjects = {"train": ["p1"], "val": ["p2"], "pair": ["p3"], "test": ["p10"]}
    content["real_datasets"] = {
        "mine": {
            "source": "original",
            "folder": "unused",
            "seconds": 10.0,
            "step": 5.0,
            "condition_per": "recording",
            "reader": "recordings",
            "picks": {name: list(picks) for name, picks in PICKS.items()},
            "classes": ["calm", "busy"],
            "splits": subjects,
        }
        | changed
    }
    content["real_directions"] = {"mine-ecg2ppg": {"dataset": "mine", "old": "ecg", "new": "ppg"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    settings = load_settings(tmp_path / "params.yaml")
    return settings, settings.dataset("mine")


def own_folder(folder, subjects=("p1", "p2", "p3", "p10")):
    """An EDF file a subject: calm, a gap, busy."""
    rows = []
    for i, subject in enumerate(subjects):
        wave = np.sin(np.arange(60 * 200) / 30) + 0.1 * np.random.default_rng(i).normal(size=12000)
        channels = {"II": ("mV", heart(60, 200, seed=i)), "PLETH": ("%", wave)}
        write_edf(folder / f"{subject}.edf", channels, rate=200)
        rows += [f"{subject}.edf,{subject},0,25,calm", f"{subject}.edf,{subject},35,60,busy"]
    (folder / "labels.csv").write_text(TABLE + "\n".join(rows) + "\n")


def test_own_recordings_go_from_settings_to_windows(tmp_path):
    own_folder(tmp_path / "mine")
    settings, choice = own_settings(tmp_path)
    specs = {name: input_spec(settings, "mine", name) for name in settings.modalities("mine")}
    parts = cut_dataset("mine", choice, tmp_path / "mine", specs)
    assert {name: set(part.subjects) for name, part in parts.items()} == {
        name: set(names) for name, names in choice.splits.items()
    }
    for name, part in parts.items():
        assert part.classes == ("calm", "busy")
        assert part.source == source_of("mine", choice) == "original mine"
        assert part.signals["ecg"].shape[1:] == (1, 1000)
        assert part.signals["ppg"].shape[1:] == (1, 1250)
        # purity 0.8: 8 of the 10 s must be calm (until 25 s) or busy (from 35 s)
        labels = [0] * 4 + [-1] * 3 + [1] * 4
        want = [k for k in labels if k >= 0 or name == "pair"]
        assert part.labels.tolist() == want
    write_edf(tmp_path / "mine" / "p3.edf", {"PLETH": ("%", np.ones(4000))}, rate=200)
    with pytest.raises(ValueError, match="p3.edf: expected the channels \\['II'\\], found"):
        cut_dataset("mine", choice, tmp_path / "mine", specs)


def test_make_real_asks_for_the_folder_of_own_recordings(tmp_path):
    settings, _ = own_settings(tmp_path)
    (sentence,) = real._missing(settings, tmp_path)
    assert sentence.startswith(f"{tmp_path / 'mine'}: expected labels.csv")
    own_folder(tmp_path / "mine")
    assert real._missing(settings, tmp_path) == []
    settings, _ = own_settings(tmp_path, reader="recording", picks={}, classes=[])
    (sentence,) = real._missing(settings, tmp_path)
    assert sentence.startswith("reader: expected one of bidmc, ")
    assert sentence.endswith("found 'recording'")

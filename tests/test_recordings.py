"""Your own recordings: files that MNE or WFDB reads, and what is said about a wrong table."""

from types import MappingProxyType

import numpy as np
import pytest
import wfdb
from raw_files import heart, write_edf

from biox.data import recordings
from biox.data.windows import UNLABELLED

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

"""Your own recordings: any folder of files that MNE or WFDB reads, and one table of labels.

The folder holds ``labels.csv`` with a header row and the columns

========  ======================================================================
file      file name relative to the folder; a WFDB record by its ``.hea`` file
subject   who was recorded
start_s   begin of the segment in seconds from the start of the file
stop_s    end of the segment
label     one of the classes, or empty for a stretch without a label
========  ======================================================================

A file appears once for each labelled segment; time that no segment covers is unlabelled. Channels
of one EDF file that differ in rate come at the highest of their rates (MNE resamples them).

In params.yaml, under ``datasets``, beside the keys that every data set has::

    mine:
      source: original
      reader: recordings
      picks: {ecg: [II], ppg: [PLETH]}  # channels of each modality, as the files name them
      classes: [rest, task]  # their order numbers them
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from biox.data.conditioning import VOLTS
from biox.data.readers import Origin, natural
from biox.data.readers.labels import TOLERANCE, Label, majority
from biox.data.windows import UNLABELLED, Recording, Signal

ABOUT = Origin(
    title="a folder of recordings",
    database="your own",
    files="labels.csv (file, subject, start_s, stop_s, label) and the files it names",
    licence="your own",
    citation="none",
)

CLASSES: tuple[str, ...] = ()
"""Given by the caller."""

SHOWN = {"ecg": "mV"}
"""Unit of voltages by modality; uV where a modality is not named."""

COLUMNS = ["file", "subject", "start_s", "stop_s", "label"]
PURITY = 0.8
"""Share of a window that one label must cover."""


def subjects(folder: Path | str) -> list[str]:
    """Names of the subjects in ``labels.csv``."""
    return sorted(set(_table(folder)["subject"]), key=natural)


def read(
    folder: Path | str,
    subject: str,
    channels: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    source: str = "recordings",
) -> list[Recording]:
    """All files of a subject; for the units see `read_signals`.

    Parameters
    ----------
    folder, subject, source
    channels : mapping of str to sequence of str
        Names of the channels of each modality, as the files name them, in the wanted order.
    classes : sequence of str
        Names of the classes; their order numbers them.

    Raises
    ------
    FileNotFoundError
        ``labels.csv`` or a file it names is absent.
    ValueError
        A damaged file, a missing channel, a label outside `classes`, segments that overlap, are
        no stretch of time, or begin after the file's end.
    """
    table = _table(folder)
    chosen = table[table["subject"] == subject]
    if chosen.empty:
        raise FileNotFoundError(f"{folder}: expected files of subject {subject}, found none")
    recordings = []
    for name in sorted(set(chosen["file"]), key=natural):
        signals = read_signals(Path(folder) / name, channels)
        seconds = min(signal.seconds for signal in signals.values())
        rows = chosen[chosen["file"] == name]
        label = _label(Path(folder) / "labels.csv", rows, tuple(classes), seconds)
        recordings.append(Recording(subject, name, signals, label, source))
    return recordings


def read_signals(path: Path, channels: Mapping[str, Sequence[str]]) -> dict[str, Signal]:
    """Signals of one file, by modality: a WFDB record (``.hea``) or anything that MNE reads.

    `channels` names the channels of each modality as the file does. Voltages come in mV (ECG) or
    uV (other modalities), other quantities in the unit the file states.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        It is damaged or foreign, or lacks a channel.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a recording, found nothing")
    reader, kind = (_mne, "file MNE reads") if path.suffix != ".hea" else (_wfdb, "WFDB record")
    names = list(dict.fromkeys(name for picks in channels.values() for name in picks))
    try:
        values, rate, units = reader(path, names)
    except Exception as error:  # a damaged file may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not reason.startswith(str(path)):
            reason = f"{path}: expected a {kind}, found a foreign or damaged one ({reason})"
        raise ValueError(reason) from None
    signals = {}
    for modality, picks in channels.items():
        rows = [names.index(name) for name in picks]
        x, found, shown = values[rows], [units[row] for row in rows], SHOWN.get(modality, "uV")
        if set(found) <= set(VOLTS):
            x, found = x * (np.array([[VOLTS[unit]] for unit in found]) / VOLTS[shown]), [shown]
        unit = found[0] if len(set(found)) == 1 and found[0] else "a.u."
        signals[modality] = Signal(x, rate, unit, tuple(picks))
    return signals


def _wfdb(path: Path, picks: list[str]) -> tuple[np.ndarray, float, list[str]]:
    """Values [channels, samples], rate and units."""
    import wfdb

    record = wfdb.rdrecord(str(path.with_suffix("")))
    _check_channels(path, picks, record.sig_name)
    rows = [record.sig_name.index(name) for name in picks]
    values = np.ascontiguousarray(record.p_signal[:, rows].T)
    return values, float(record.fs), [record.units[row] for row in rows]


def _mne(path: Path, picks: list[str]) -> tuple[np.ndarray, float, list[str]]:
    """Values [channels, samples], rate and units; MNE has made volts of all voltages."""
    import mne
    from mne.io.constants import FIFF

    header = edf_units(path) if path.suffix.lower() in (".edf", ".bdf") else {}
    raw = mne.io.read_raw(path, verbose="ERROR")
    _check_channels(path, picks, raw.ch_names)
    volts = {c["ch_name"]: "V" if c["unit"] == FIFF.FIFF_UNIT_V else "" for c in raw.info["chs"]}
    units = [header.get(name, volts[name]) for name in picks]
    units = ["V" if unit in ("uV", "µV", "mV") else unit for unit in units]
    return raw.get_data(picks=picks), float(raw.info["sfreq"]), units


def _check_channels(path: Path, wanted: list[str], found: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{path}: expected the channels {missing}, found {list(found)}")


def edf_units(path: Path) -> dict[str, str]:
    """Unit of each channel of an EDF or BDF file, whose size is checked against its header.

    MNE does not keep the units where a reader could see them, and reads a file that was cut short
    without complaint. Widths of fields: EDF specification (Kemp et al. 1992).
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        fixed = file.read(256)
        try:
            n_bytes, n_records, n = int(fixed[184:192]), int(fixed[236:244]), int(fixed[252:256])
            fields = file.read(n_bytes - 256).decode("latin1")
            samples = sum(map(int, _texts(fields[n * 216 :], 8, n)))
        except ValueError:
            raise ValueError(f"{path}: expected an EDF file, found a foreign or cut one") from None
    width = 3 if fixed[:1] == b"\xff" else 2  # BDF has 24-bit samples
    expected = n_bytes + n_records * samples * width
    if size < expected:
        raise ValueError(f"{path}: expected {expected} bytes by its header, found {size}")
    return dict(zip(_texts(fields, 16, n), _texts(fields[n * 96 :], 8, n), strict=True))


def _texts(fields: str, width: int, n: int) -> list[str]:
    return [fields[i * width : (i + 1) * width].strip() for i in range(n)]


# --- labels.csv -----------------------------------------------------------------------------------


def _table(folder: Path | str) -> pd.DataFrame:
    """``labels.csv``, indexed by the row of the file; the header is row 1."""
    path = Path(folder) / "labels.csv"
    if not path.is_file():
        raise ABOUT.missing(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # surplus fields
            table = pd.read_csv(
                path, dtype=str, na_filter=False, skipinitialspace=True, skip_blank_lines=False,
                index_col=False,
            )  # fmt: skip
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ValueError(f"no {', '.join(missing)} in row 1, but {', '.join(table.columns)}")
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected columns {', '.join(COLUMNS)}, found {reason}") from None
    table = table[COLUMNS].fillna("")
    table.index += 2
    table = table[(table != "").any(axis=1)]  # blank lines count as rows, but say nothing
    if table.empty:
        raise ValueError(f"{path}: expected a row for each segment, found only the header")
    times = table[["start_s", "stop_s"]].apply(pd.to_numeric, errors="coerce")
    stretch = (times["start_s"] >= 0) & (times["stop_s"] > times["start_s"])
    stretch &= np.isfinite(times["stop_s"])
    _expect(path, table, stretch, "0 <= start_s < stop_s in seconds", ["start_s", "stop_s"])
    named = (table["file"] != "") & (table["subject"] != "")
    _expect(path, table, named, "a file and a subject", ["file", "subject"])
    return table.assign(**times)


def _label(path: Path, rows: pd.DataFrame, classes: tuple[str, ...], seconds: float) -> Label:
    index = {name: i for i, name in enumerate(classes)} | {"": UNLABELLED}
    file = rows["file"].iloc[0]
    expected = f"a label out of {', '.join(classes)} or none"
    _expect(path, rows, rows["label"].isin(list(index)), expected, ["label"])
    expected = f"a start within the {seconds:g} s of {file}"
    _expect(path, rows, rows["start_s"] < seconds, expected, ["start_s"])
    rows = rows.sort_values("start_s")
    later = ~(rows["start_s"] < rows["stop_s"].shift() - TOLERANCE)
    expected = f"no overlap with another segment of {file}"
    _expect(path, rows, later, expected, ["start_s", "stop_s"])
    return majority(rows["start_s"], rows["stop_s"], rows["label"].map(index), PURITY)


def _expect(
    path: Path, rows: pd.DataFrame, sound: pd.Series, expected: str, columns: Sequence[str]
) -> None:
    """Raise ValueError about the first row that is not sound."""
    if not sound.all():
        row = rows[~sound].iloc[0]
        found = ", ".join(f"{name} {str(row[name])!r}" for name in columns)
        raise ValueError(f"{path}, row {row.name}: expected {expected}, found {found}")

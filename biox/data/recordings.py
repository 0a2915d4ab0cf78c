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

In params.yaml, under ``real_datasets``, beside the keys that every dataset has::

    mine:
      source: original
      reader: recordings
      picks: {ecg: [II], ppg: [PLETH]}  # channels of each modality, as the files name them
      classes: [rest, task]  # their order numbers them

Directions of ``mine`` then go under ``real_directions``, and ``make real`` looks for its folder.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.errors import ParserWarning

from biox.data.edf import read_header
from biox.data.labels import TOLERANCE, Label, majority
from biox.data.origin import Origin, natural
from biox.data.windows import UNLABELLED, Recording, Signal

ABOUT = Origin(
    title="a folder of recordings",
    database="your own",
    files="labels.csv (file, subject, start_s, stop_s, label) and the files it names",
    licence="your own",
    citation="none",
)
PUBLISHED: tuple[str, ...] = ()
CLASSES: tuple[str, ...] = ()
"""Given by the caller."""

COLUMNS = ("file", "subject", "start_s", "stop_s", "label")
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
    """All files of a subject.

    Parameters
    ----------
    folder, subject
    channels : mapping of str to sequence of str
        Names of the channels of each modality, as the files name them, in the wanted order.
    classes : sequence of str
        Names of the classes; their order numbers them.
    source : str
        What tables and figures call these data.

    Returns
    -------
    list of Recording
        Voltages in uV (EEG, EMG) or mV (ECG); other quantities in the unit the file states.

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
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: named in labels.csv, found nothing")
        reader = _read_wfdb if path.suffix == ".hea" else _read_mne
        signals = reader(path, channels)
        seconds = min(signal.seconds for signal in signals.values())
        rows = chosen[chosen["file"] == name]
        label = _label(Path(folder) / "labels.csv", rows, tuple(classes), seconds)
        recordings.append(Recording(subject, name, signals, label, source))
    return recordings


def _table(folder: Path | str) -> pd.DataFrame:
    """``labels.csv``, indexed by the row of the file; the header is row 1."""
    path = Path(folder) / "labels.csv"
    if not path.is_file():
        raise ABOUT.missing(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # surplus fields
            table = pd.read_csv(
                path, dtype=str, na_filter=False, skipinitialspace=True, skip_blank_lines=False,
                index_col=False,
            )  # fmt: skip
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ValueError(f"no {', '.join(missing)} in row 1, but {', '.join(table.columns)}")
    except (ValueError, ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected columns {', '.join(COLUMNS)}, found {reason}") from None
    table = table[list(COLUMNS)].fillna("")
    table.index += 2
    table = table[(table != "").any(axis=1)]  # blank lines count as rows, but say nothing
    if table.empty:
        raise ValueError(f"{path}: expected a row for each segment, found only the header")
    times = table[["start_s", "stop_s"]].apply(pd.to_numeric, errors="coerce")
    sound = (times["start_s"] >= 0) & (times["stop_s"] > times["start_s"])
    _refuse(
        path, table, ~(sound & np.isfinite(times["stop_s"])), "0 <= start_s < stop_s in seconds",
        ["start_s", "stop_s"],
    )  # fmt: skip
    unnamed = (table["file"] == "") | (table["subject"] == "")
    _refuse(path, table, unnamed, "a file and a subject", ["file", "subject"])
    return table.assign(**times)


def _refuse(
    path: Path, rows: pd.DataFrame, wrong: pd.Series, expected: str, columns: Sequence[str]
) -> None:
    """Raise ValueError about the first row that is wrong."""
    if wrong.any():
        row = rows[wrong].iloc[0]
        found = ", ".join(f"{name} {str(row[name])!r}" for name in columns)
        raise ValueError(f"{path}, row {row.name}: expected {expected}, found {found}")


def _label(path: Path, rows: pd.DataFrame, classes: tuple[str, ...], seconds: float) -> Label:
    index = {name: i for i, name in enumerate(classes)} | {"": UNLABELLED}
    known = f"a label out of {', '.join(classes)} or none"
    _refuse(path, rows, ~rows["label"].isin(list(index)), known, ["label"])
    end = f"a start within the {seconds:g} s of {rows['file'].iloc[0]}"
    _refuse(path, rows, rows["start_s"] >= seconds, end, ["start_s"])
    rows = rows.sort_values("start_s")
    early = rows["start_s"] < rows["stop_s"].shift() - TOLERANCE
    apart = f"no overlap with another segment of {rows['file'].iloc[0]}"
    _refuse(path, rows, early, apart, ["start_s", "stop_s"])
    return majority(rows["start_s"], rows["stop_s"], rows["label"].map(index), PURITY)


def _check_channels(path: Path, wanted: Mapping[str, Sequence[str]], found: Sequence[str]) -> None:
    missing = [name for names in wanted.values() for name in names if name not in found]
    if missing:
        raise ValueError(f"{path}: expected the channels {missing}, found {list(found)}")


def _read_mne(path: Path, channels: Mapping[str, Sequence[str]]) -> dict[str, Signal]:
    import mne

    units: dict[str, str] = {}
    if path.suffix.lower() in (".edf", ".bdf"):
        header = read_header(path)  # MNE reads a truncated EDF file without complaint
        units = dict(zip(header.channels, header.units, strict=False))
    try:
        raw = mne.io.read_raw(path, verbose="ERROR")
        _check_channels(path, channels, raw.ch_names)
        values = {name: raw.get_data(picks=list(picks)) for name, picks in channels.items()}
    except Exception as error:  # a damaged file may fail in any way
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = (
            text
            if text.startswith(str(path))
            else (f"{path}: expected a file MNE reads, found a foreign or damaged one ({text})")
        )
        raise ValueError(message) from None
    rate = float(raw.info["sfreq"])
    signals = {}
    for modality, picks in channels.items():
        unit = _mne_unit(path, raw, picks, units)
        factor, shown = _SHOWN.get(modality, (1e6, "uV")) if unit == "V" else (1.0, unit)
        signals[modality] = Signal(values[modality] * factor, rate, shown, tuple(picks))
    return signals


_SHOWN = {"ecg": (1e3, "mV"), "eeg": (1e6, "uV"), "emg": (1e6, "uV")}


def _mne_unit(path: Path, raw, picks: Sequence[str], header: Mapping[str, str]) -> str:
    """``V`` for channels that MNE has converted to volts, else what the header states."""
    from mne.io.constants import FIFF

    if header:
        stated = {header.get(name, "") for name in picks}
        if stated <= {"uV", "µV", "mV", "V"}:
            return "V"
        return stated.pop() or "a.u." if len(stated) == 1 else "a.u."
    kinds = {int(raw.info["chs"][raw.ch_names.index(name)]["unit"]) for name in picks}
    return "V" if kinds == {int(FIFF.FIFF_UNIT_V)} else "a.u."


def _read_wfdb(path: Path, channels: Mapping[str, Sequence[str]]) -> dict[str, Signal]:
    import wfdb

    try:
        record = wfdb.rdrecord(str(path.with_suffix("")))
    except Exception as error:  # a damaged record may fail in any way
        raise ValueError(
            f"{path}: expected a WFDB record, found a foreign or damaged one ({error})"
        ) from None
    _check_channels(path, channels, record.sig_name)
    signals = {}
    for modality, picks in channels.items():
        rows = [record.sig_name.index(name) for name in picks]
        units = {record.units[row] for row in rows}
        values = np.ascontiguousarray(record.p_signal[:, rows].T)
        unit = units.pop() if len(units) == 1 else "a.u."
        signals[modality] = Signal(values, float(record.fs), unit, tuple(picks))
    return signals

"""Your own recordings: any folder of files that MNE or WFDB reads, and one table of labels.

The folder holds ``labels.csv`` with a header row and the columns

========  ======================================================================
file      file name relative to the folder; a WFDB record by its ``.hea`` file
subject   who was recorded
start_s   begin of the segment in seconds from the file's first sample, pauses included
stop_s    end of the segment
label     one of the classes, or empty for a stretch without a label
========  ======================================================================

A file appears once for each labelled segment, and belongs to one subject; time that no segment
covers is unlabelled. What spreadsheets make of the table is read, too (semicolons with decimal
commas, tabs, UTF-16). Blanks around names do not count, nor does case in those of subjects.

In params.yaml, under ``datasets``, beside the keys that every data set has::

    mine:
      source: original
      reader: recordings
      picks: {ecg: [II], ppg: [PLETH]}  # channels of each modality, as the files name them; or
                                        # their numbers in the file, from 1
      classes: [rest, task]  # their order numbers them
"""

import io
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from biox.data.readers import Origin, expect, natural
from biox.data.readers.files import known_channels, read_file
from biox.data.readers.labels import TOLERANCE, Label, majority
from biox.data.windows import UNLABELLED, Recording

log = logging.getLogger(__name__)

ABOUT = Origin(
    title="a folder of recordings",
    database="your own",
    files="labels.csv (file, subject, start_s, stop_s, label) and the files it names",
    licence="your own",
    citation="none",
)

CLASSES: tuple[str, ...] = ()
"""Given by the caller."""

COLUMNS = ["file", "subject", "start_s", "stop_s", "label"]
PURITY = 0.8
"""Share of a window that one label must cover."""


def subjects(folder: Path | str) -> list[str]:
    """Names of the subjects in ``labels.csv``."""
    return sorted(set(_table(folder)["subject"]), key=natural)


def labels(folder: Path | str) -> tuple[str, ...]:
    """Labels in ``labels.csv``, sorted."""
    return tuple(sorted(set(_table(folder)["label"]) - {""}, key=natural))


def read(
    folder: Path | str,
    subject: str,
    channels: Mapping[str, Sequence[str | int]] | None,
    classes: Sequence[str],
    source: str = "recordings",
) -> list[Recording]:
    """All files of a subject; for units, pauses and marks see `biox.data.readers.files`.

    Parameters
    ----------
    channels : mapping of str to sequence of str or int
        Channels of each modality, as the files name them or by number, in the wanted order. None:
        those whose names or types say what they are.
    classes : sequence of str
        Names of the classes; their order numbers them.

    Raises
    ------
    ValueError
        Beside what all readers refuse: a label outside `classes`, or segments that overlap, are no
        stretch of time, begin after the file's end or are on another clock.
    """
    table = _table(folder)
    chosen = table[table["subject"].str.casefold() == subject.strip().casefold()]
    if chosen.empty:
        raise FileNotFoundError(f"{folder}: expected files of subject {subject}, found none")
    recordings, table_path = [], Path(folder) / "labels.csv"
    for name in sorted(set(chosen["file"]), key=natural):
        path, rows = Path(folder) / name, chosen[chosen["file"] == name]
        signals, marked, begins = read_file(path, channels or known_channels(path))
        seconds = min(signal.seconds for signal in signals.values())
        _check_clock(table_path, rows, seconds, begins)
        label = _label(table_path, rows, classes, seconds)
        recordings.append(Recording(subject, name, signals, label, source, marked))
    return recordings


# --- labels.csv -----------------------------------------------------------------------------------


def _table(folder: Path | str) -> pd.DataFrame:
    """``labels.csv``, indexed by the row of the file; the header is row 1."""
    path = ABOUT.file(Path(folder) / "labels.csv")
    text, above = _decoded(path)
    header = text.split("\n", 1)[0]
    mark = max(",;\t", key=header.count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # surplus fields
            table = pd.read_csv(
                io.StringIO(text), dtype=str, na_filter=False, skipinitialspace=True,
                skip_blank_lines=False, index_col=False, sep=mark,
            ).rename(columns=lambda name: name.strip().lower())  # fmt: skip
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ValueError(f"no {', '.join(missing)} in row 1, but {', '.join(table.columns)}")
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected columns {', '.join(COLUMNS)}, found {reason}") from None
    table = table[COLUMNS].fillna("").map(str.strip)
    table.index += 2 + above
    table = table[(table != "").any(axis=1)]  # blank lines count as rows, but say nothing
    expect(not table.empty, path, "a row for each segment", "only the header")
    times = table[["start_s", "stop_s"]]
    if mark != ",":  # else a decimal comma would be a surplus field
        times = times.replace(",", ".", regex=True)
    times = times.apply(pd.to_numeric, errors="coerce")
    stretch = (times["start_s"] >= 0) & (times["stop_s"] > times["start_s"])
    stretch &= np.isfinite(times["stop_s"])
    _expect_rows(path, table, stretch, "0 <= start_s < stop_s in seconds", ["start_s", "stop_s"])
    named = (table["file"] != "") & (table["subject"] != "")
    _expect_rows(path, table, named, "a file and a subject", ["file", "subject"])
    # one spelling a subject, and a file is the same whichever way its path is written
    table["file"] = [Path(os.path.normpath(name)).as_posix() for name in table["file"]]
    names = table["subject"].str.casefold()
    table["subject"] = table["subject"].groupby(names).transform("first")
    owner = table.groupby("file")["subject"].transform("first")
    _expect_rows(path, table, owner == table["subject"], "one subject a file", ["file", "subject"])
    return table.assign(**times)


def _decoded(path: Path) -> tuple[str, int]:
    """Text of the table in whatever code a spreadsheet wrote it, and the lines left out above."""
    content = path.read_bytes()
    code = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(code)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    above = text[:4].lower() == "sep="  # a hint for Excel
    return text.split("\n", 1)[-1] if above else text, int(above)


def _check_clock(path: Path, rows: pd.DataFrame, seconds: float, begins: float) -> None:
    """Refuse times that are not seconds from the first sample; say where they go beyond the end."""
    file, first, last = rows["file"].iloc[0], rows["start_s"].min(), rows["stop_s"].max()
    why = "milliseconds, or numbers of samples?" if last > 10 * seconds else ""
    if begins and begins - 1 <= first and seconds + 1 < last <= begins + seconds + 1:
        why = f"on the file's own clock, which begins at {begins:g} s; subtract that"
    expected = f"segments within the {seconds:g} s of {file}"
    expect(not why, path, expected, f"{first:g} to {last:g}: {why}")
    if begins:
        log.warning("%s: %s begins at %g s of its own clock; times count from there",
                    path, file, begins)  # fmt: skip
    if last > seconds + 1:
        log.warning("%s: %s ends at %g s, but its segments at %g s", path, file, seconds, last)


def _label(path: Path, rows: pd.DataFrame, classes: Sequence[str], seconds: float) -> Label:
    index = {name: i for i, name in enumerate(classes)} | {"": UNLABELLED}
    file = rows["file"].iloc[0]
    expected = f"a label out of {', '.join(classes)} or none"
    _expect_rows(path, rows, rows["label"].isin(list(index)), expected, ["label"])
    expected = f"a start within the {seconds:g} s of {file}"
    _expect_rows(path, rows, rows["start_s"] < seconds, expected, ["start_s"])
    rows = rows.sort_values("start_s")
    later = ~(rows["start_s"] < rows["stop_s"].shift() - TOLERANCE)
    expected = f"no overlap with another segment of {file}"
    _expect_rows(path, rows, later, expected, ["start_s", "stop_s"])
    return majority(rows["start_s"], rows["stop_s"], rows["label"].map(index), PURITY)


def _expect_rows(
    path: Path, rows: pd.DataFrame, sound: pd.Series, expected: str, columns: Sequence[str]
) -> None:
    """Raise ValueError about the first row that is not sound."""
    if not sound.all():
        row = rows[~sound].iloc[0]
        found = ", ".join(f"{name} {str(row[name])!r}" for name in columns)
        raise ValueError(f"{path}, row {row.name}: expected {expected}, found {found}")

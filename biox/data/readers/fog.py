"""FOG: EEG and leg EMG of people with Parkinson's disease, walking and freezing.

Layout of the filtered data (Mendeley Data r8gmbtv7w2, version 3) as the released code reads it
(`dataset_preprocessing/make_FOG.py`): ``<patient>/task_k.txt``, for patient 008
``008/OFF_1/task_k.txt`` and ``008/OFF_2``; comma-separated, no header, 61 columns at 500 Hz, the
last one 0 for normal and 1 for freezing.
"""

import io
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from biox.data.readers import Origin, expect, inside, natural
from biox.data.readers.labels import sample_track
from biox.data.windows import Marked, Recording, Signal

log = logging.getLogger(__name__)

ABOUT = Origin(
    title="Multimodal Dataset of Freezing of Gait in Parkinson's Disease, version 3",
    database="Mendeley Data r8gmbtv7w2",
    files="folders 001 ... 012 of FilteredData with task_k.txt",
    licence="stated on its page",
    citation="Zhang W et al., Multimodal data for the detection of freezing of gait in Parkinson's "
    "disease, Scientific Data 9:606, 2022, doi:10.1038/s41597-022-01713-8",
    url="https://doi.org/10.17632/r8gmbtv7w2.3",
    subjects=tuple(f"{number:03d}" for number in range(1, 13)),
)

CLASSES = ("normal", "freezing")
CODES = {0: 0, 1: 1}
FILES = "[!.]*.txt"  # but no hidden ones: macOS writes ``._task_1.txt``
RATE = 500.0
PURITY = 0.8
"""Share of a window that one label must cover."""

N_COLUMNS, TIME_COLUMN, LABEL_COLUMN = 61, 1, 60
UNITS_OF_TIME = (1.0, 1e-3, 1e-6, 1 / RATE)
"""Seconds in a unit of the time column: s, ms, us, rows. The source does not state which it is."""

EEG_COLUMNS = (4, 5, 6, 7, 10, 11)
EEG_CHANNELS = ("F3", "C3", "O1", "F4", "C4", "O2")
"""Names as the released loader's comment gives them. Doubtful: if the 25 EEG columns follow the
usual order Fp1 Fp2 F3 F4 C3 C4 P3 P4 O1 O2, these six are F3 F4 C3 C4 O1 O2."""

EMG_COLUMNS = {
    **dict.fromkeys(("001", "002", "006", "007", "008/OFF_1"), (27, 28, 31)),
    **dict.fromkeys(("003", "004", "005", "010", "011", "012"), (28, 27, 31)),
    "008/OFF_2": (27, 31, 28),
    "009": (28, 27, 30),
}
"""EMG columns by patient (and session): the electrodes were plugged in different orders."""

EMG_CHANNELS = ("EMG 1", "EMG 2", "EMG 3")


def subjects(folder: Path | str) -> list[str]:
    """Numbers of the patients, such as ``008``."""
    base = inside(folder, "FilteredData")
    return ABOUT.present(base, f"**/{FILES}", r"(\d+)/.*")


def read(folder: Path | str, subject: str, source: str = "FOG") -> list[Recording]:
    """All tasks of a patient: ``eeg`` [6, n] in uV and ``emg`` [3, n], both at 500 Hz."""
    base = inside(folder, "FilteredData")
    paths = sorted((base / subject).rglob(FILES), key=lambda path: natural(str(path)))
    if not paths:
        raise ABOUT.missing(base / subject)
    return [_recording(base, path, subject, source) for path in paths]


def _recording(base: Path, path: Path, subject: str, source: str) -> Recording:
    session = path.parent.relative_to(base).as_posix()
    known = f"a session with known EMG columns, one of {', '.join(sorted(EMG_COLUMNS))}"
    expect(session in EMG_COLUMNS, path, known, session)
    emg = EMG_COLUMNS[session]
    table = _table(path, [*EEG_COLUMNS, *emg, LABEL_COLUMN])
    unknown = sorted(set(np.unique(table[LABEL_COLUMN]).tolist()) - set(CODES))
    expect(not unknown, path, "labels 0 and 1 in the last column", unknown[:5])
    table, marked = _on_the_clock(path, table)
    track = table[LABEL_COLUMN].fillna(-1).to_numpy()
    signals = {
        "eeg": Signal(table[list(EEG_COLUMNS)].to_numpy().T, RATE, "uV", EEG_CHANNELS),
        "emg": Signal(table[list(emg)].to_numpy().T, RATE, "a.u.", EMG_CHANNELS),
    }
    name = f"{session}/{path.stem}".replace("/", "_")
    label = sample_track(track, RATE, CODES, PURITY)
    return Recording(subject, name, signals, label, source, marked)


def _on_the_clock(path: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, list[Marked]]:
    """Put rows where the time column has them, NaN between; say so where it is no clock."""
    times = pd.to_numeric(table.pop(TIME_COLUMN), errors="coerce").to_numpy(dtype=float)
    steps, n = np.diff(times), min(round(RATE), len(times) - 1)
    step = np.median(times[n:] - times[:-n]) / n if n and np.mean(steps >= 0) > 0.99 else 0.0
    unit = next((u for u in UNITS_OF_TIME if abs(step * u * RATE - 1) < 0.05), None)
    if unit is None:
        even = step and np.mean(np.abs(steps - step) <= 0.5 * step) > 0.9
        wrong = even and any(50 <= 1 / (step * u) <= 5000 for u in UNITS_OF_TIME[:2])
        expect(not wrong, path, f"{RATE:g} rows a second", f"steps of {step:g} in column 2")
        log.warning("%s: no clock in column 2: rows are taken as %g Hz", path, RATE)
        return table, []
    seconds = steps * unit
    jitter = np.mean(np.abs(seconds * RATE - 1) > 0.25) > 0.001  # or a coarse clock
    longest = max(0.012, 1.5 * np.min(seconds[seconds > 0])) if jitter else 1.5 / RATE
    late = np.cumsum(np.round(np.where(seconds > longest, seconds * RATE - 1, 0)))
    wrong = (seconds < -longest) | ~np.isfinite(seconds) | (late > 24 * 3600 * RATE)
    row = int(np.argmax(wrong))
    found = f"{times[row + 1]:g} after {times[row]:g} in row {row + 2}"
    expect(not wrong.any(), path, "time to go on in column 2", found)
    places = np.arange(len(table)) + np.append(0, late).astype(int)
    gaps = np.flatnonzero(np.diff(places) > 1)
    if not len(gaps):
        return table, []
    log.warning("%s: %d rows lost in %d places, which no window touches", path, late[-1], len(gaps))
    marked = [(float(places[i] + 1) / RATE, float(places[i + 1]) / RATE, "lost rows") for i in gaps]
    return table.set_axis(places).reindex(np.arange(places[-1] + 1)), marked


def _table(path: Path, columns: list[int]) -> pd.DataFrame:
    """The named columns of a file as float32, and the time column as it stands."""
    content = path.read_bytes()
    found = content[: content.find(b"\n")].count(b",") + 1
    expect(found == N_COLUMNS, path, f"{N_COLUMNS} comma-separated columns", found)
    try:
        table = pd.read_csv(
            io.BytesIO(content), header=None, usecols=[TIME_COLUMN, *columns], engine="c",
            dtype=dict.fromkeys(columns, np.float32),
        )  # fmt: skip
    except ValueError as error:  # pandas' ParserError is one too
        expected = f"numbers in {N_COLUMNS} columns"
        raise ValueError(f"{path}: expected {expected}, found {error}") from None
    broken = table[LABEL_COLUMN].isna()
    found = f"none in row {broken.argmax() + 1} of {len(table)}"
    expect(not broken.any(), path, "a label in each row", found)
    # pandas ignores surplus fields, which would shift the columns of their row
    surplus = content.count(b",") - (N_COLUMNS - 1) * len(table)
    expect(surplus == 0, path, f"{N_COLUMNS} columns in each row", f"{surplus} more")
    return table

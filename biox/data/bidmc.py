"""BIDMC: ECG and PPG of intensive-care patients, with the bedside monitor's own heart rate.

The CSV form of the data set: per record ``bidmc_NN_Signals.csv`` (also gzipped) at 125 Hz, whose
header names carry blanks and whose column order varies, ``bidmc_NN_Numerics.csv`` at 1 Hz, and
``bidmc_NN_Fix.txt``, which tells the patient. A patient may have several records.
"""

import re
import zlib
from pathlib import Path

import pandas as pd

from biox.data.labels import mean_above
from biox.data.origin import Origin, inside, natural
from biox.data.windows import Recording, Signal

ABOUT = Origin(
    title="BIDMC PPG and Respiration Dataset v1.0.0",
    database="PhysioNet",
    files="bidmc_NN_Signals.csv[.gz], bidmc_NN_Numerics.csv and bidmc_NN_Fix.txt",
    licence="ODC-By 1.0",
    citation="Pimentel MAF et al., Towards a robust estimation of respiratory rate from pulse "
    "oximeters, IEEE TBME 64(8):1914-1923, 2017, doi:10.1109/TBME.2016.2613124; "
    "dataset doi:10.13026/C2208R",
    url="https://physionet.org/content/bidmc/1.0.0/",
)
PUBLISHED: tuple[str, ...] = ()
"""Patients are named by their records; there is no list of them here."""

CLASSES = ("HR <= 90", "HR > 90")
THRESHOLD, MARGIN = 90.0, 2.0
"""Beats per minute; windows whose mean rate is closer to the threshold than the margin are left
unlabelled."""

RATE = 125.0
"""Hz. Not to be inferred from the time column, which is rounded to 0.01 s after 100 s."""

MAX_MISMATCH = 2.0
"""Seconds between the end of the signals and the last of the numerics; record 23 has 1.0."""

COLUMNS = {"ecg": ("II", "a.u."), "ppg": ("PLETH", "a.u.")}
"""Column and unit by modality; the ECG's scale differs between records."""


def subjects(folder: Path | str) -> list[str]:
    """MIMIC-II numbers of the patients, such as ``s01182``."""
    return sorted(_records(folder), key=natural)


def read(folder: Path | str, subject: str, source: str = "BIDMC") -> list[Recording]:
    """All records of a patient: ``ecg`` (lead II) and ``ppg``, both at 125 Hz.

    Raises
    ------
    FileNotFoundError
        The patient is not in the folder, or a record lacks a file.
    ValueError
        A file is damaged, lacks a column, or is shorter than the monitor's numerics.
    """
    records = _records(folder)
    if subject not in records:
        raise FileNotFoundError(
            f"{folder}: expected records of patient {subject}, found {len(records)} other patients"
        )
    base = inside(folder, "bidmc_csv")
    return [_recording(base, name, subject, source) for name in records[subject]]


def _records(folder: Path | str) -> dict[str, list[str]]:
    """Records by patient."""
    found: dict[str, list[str]] = {}
    for path in sorted(inside(folder, "bidmc_csv").glob("bidmc_*_Fix.txt")):
        match = re.search(r"matched wdb ID:\s*(\w+)", path.read_text(errors="replace"))
        if not match:
            raise ValueError(f"{path}: expected a line 'MIMIC II matched wdb ID: ...', found none")
        found.setdefault(match[1], []).append(path.name.removesuffix("_Fix.txt"))
    if not found:
        raise ABOUT.missing(folder)
    return found


def _recording(base: Path, name: str, subject: str, source: str) -> Recording:
    plain = base / f"{name}_Signals.csv"
    path = plain if plain.is_file() else base / f"{name}_Signals.csv.gz"
    table = _table(path, [column for column, _ in COLUMNS.values()])
    numerics = _table(base / f"{name}_Numerics.csv", ["Time [s]", "HR"])
    seconds, expected = len(table) / RATE, numerics["Time [s]"].max()
    if not abs(seconds - expected) <= MAX_MISMATCH:  # also if no time is a number
        raise ValueError(
            f"{path}: expected {expected:g} s as in the numerics, found {seconds:.2f} s"
        )
    signals = {
        modality: Signal(table[column].to_numpy()[None], RATE, unit, (column,))
        for modality, (column, unit) in COLUMNS.items()
    }
    rate = mean_above(numerics["Time [s]"], numerics["HR"], THRESHOLD, MARGIN)
    return Recording(subject, name, signals, rate, source)


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Columns of a CSV whose header names are padded with blanks."""
    if not path.is_file():
        raise ABOUT.missing(path.parent)
    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: expected a whole CSV file, found a truncated or foreign one ({reason})"
        ) from None
    table.columns = [str(name).strip() for name in table.columns]
    wrong = [c for c in columns if c not in table or table[c].dtype.kind not in "fiu"]
    if wrong:
        raise ValueError(
            f"{path}: expected numbers in the columns {wrong}, found columns {list(table.columns)}"
        )
    return table[columns]

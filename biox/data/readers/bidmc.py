"""BIDMC: ECG and PPG of intensive-care patients, with the bedside monitor's own heart rate.

Two forms are read. In ``data/recordings/bidmc``, a record is ``bidmc_NN.hea`` and ``bidmc_NN.dat``
(WFDB with FLAC). In the published CSV form it is ``bidmc_NN_Signals.csv``, also gzipped, whose
header names are padded with blanks and whose column order varies, and ``bidmc_NN_Fix.txt``. Both
have ``bidmc_NN_Numerics.csv``, the monitor's numbers at 1 Hz. A patient may have several records.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from biox.data.readers import Origin, expect, inside, natural, whole
from biox.data.readers.files import read_file
from biox.data.readers.labels import mean_above
from biox.data.windows import Recording, Signal

ABOUT = Origin(
    title="BIDMC PPG and Respiration Dataset v1.0.0",
    database="PhysioNet",
    files="bidmc_NN_Signals.csv[.gz], bidmc_NN_Numerics.csv and bidmc_NN_Fix.txt",
    licence="ODC-By 1.0",
    citation="Pimentel MAF et al., Toward a robust estimation of respiratory rate from pulse "
    "oximeters, IEEE TBME 64(8):1914-1923, 2017, doi:10.1109/TBME.2016.2613124; "
    "dataset doi:10.13026/C2208R",
    url="https://physionet.org/content/bidmc/1.0.0/",
)

CLASSES = ("HR <= 90", "HR > 90")
THRESHOLD, MARGIN = 90.0, 2.0
"""Beats per minute. Windows whose mean rate is closer to the threshold than the margin have no
label."""

RATE = 125.0
"""Hz. Do not infer it from the time column, which is rounded to 0.01 s after 100 s."""

MAX_MISMATCH = 2.0
"""Seconds between the end of the signals and the last of the numerics; record 23 has 1.0."""

CHANNELS = {"ecg": ("II",), "ppg": ("PLETH",)}
"""Channels by modality. Neither is calibrated: the scale of the ECG differs between records."""


def subjects(folder: Path | str) -> list[str]:
    """MIMIC-II numbers of the patients, such as ``s01182``."""
    return sorted(_records(folder), key=natural)


def read(folder: Path | str, subject: str, source: str = "BIDMC") -> list[Recording]:
    """Read all records of a patient: ``ecg`` (lead II) and ``ppg``, both [1, n] at 125 Hz."""
    records = _records(folder)
    if subject not in records:
        found = f"{len(records)} other patients"
        raise FileNotFoundError(f"{folder}: expected records of patient {subject}, found {found}")
    base = inside(folder, "bidmc_csv")
    return [_recording(base, name, subject, source) for name in records[subject]]


def _records(folder: Path | str) -> dict[str, list[str]]:
    """Names of the records of each patient."""
    found: dict[str, list[str]] = {}
    for path in sorted(inside(folder, "bidmc_csv").glob("bidmc_*"), key=str):
        name = re.fullmatch(r"(bidmc_\d+)(_Fix\.txt|\.hea)", path.name)
        if name:
            patient = re.search(r"matched wdb ID:\s*(\w+)", path.read_text(errors="replace"))
            expect(patient is not None, path, "'MIMIC II matched wdb ID: ...'", "none")
            found.setdefault(patient[1], []).append(name[1])
    if not found:
        raise ABOUT.missing(folder)
    return found


def _recording(base: Path, name: str, subject: str, source: str) -> Recording:
    path, marked = base / f"{name}.hea", []
    if path.is_file():
        compact, marked, _ = read_file(path, CHANNELS)
        values = {modality: signal.values for modality, signal in compact.items()}
        rate = min(signal.rate for signal in compact.values())
    else:
        plain = base / f"{name}_Signals.csv"
        path = plain if plain.is_file() else plain.with_suffix(".csv.gz")
        table = _table(path, ["Time [s]", *(column for (column,) in CHANNELS.values())])
        values = {modality: table[list(names)].to_numpy().T for modality, names in CHANNELS.items()}
        rate = RATE if np.diff(table["Time [s]"]).max(initial=0) < 2.5 / RATE else np.nan
    expect(rate == RATE, path, f"{RATE:g} Hz without a gap", "other steps of time")
    numerics = _table(base / f"{name}_Numerics.csv", ["Time [s]", "HR"])
    seconds, expected = values["ecg"].shape[1] / RATE, numerics["Time [s]"].max()
    fits = abs(seconds - expected) <= MAX_MISMATCH  # not if no time is a number
    expect(fits, path, f"{expected:g} s as in the numerics", f"{seconds:.2f} s")
    signals = {name: Signal(values[name], RATE, "a.u.", CHANNELS[name]) for name in CHANNELS}
    rates = numerics["HR"].to_numpy(float)
    rates = np.where((rates >= 1) & (rates <= 350), rates, np.nan)  # else the monitor's "no value"
    label = mean_above(numerics["Time [s]"], rates, THRESHOLD, MARGIN)
    return Recording(subject, name, signals, label, source, marked)


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Columns of a CSV file whose header names are padded with blanks."""
    with whole(ABOUT.file(path), "CSV file"):
        table = pd.read_csv(path, skipinitialspace=True).rename(columns=str.strip)
    wrong = [c for c in columns if c not in table or table[c].dtype.kind not in "fiu"]
    expect(not wrong, path, f"numbers in the columns {wrong}", f"columns {list(table)}")
    return table[columns]

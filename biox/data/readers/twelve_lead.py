"""Twelve-lead ECG: any folder of WFDB (``.hea``) or EDF records, for pretraining.

Leads are found by the names in each file, in whatever order, and come out in the order of `LEADS`;
rate, unit and gain are the header's. Layouts that this was written for:

PTB-XL
    ``records500/00000/00001_hr.hea`` and ``.dat`` (500 Hz; ``records100``: 100 Hz), leads ``I II
    III AVR AVL AVF V1 ... V6``; ``ptbxl_database.csv`` names the ``patient_id`` of each file.
CODE-15%
    Published as HDF5; scripts of the George B. Moody Challenge 2025 write it as WFDB, one record an
    exam, 400 Hz. Limb leads may be ``DI DII DIII``. ``exams.csv`` names each exam's ``patient_id``.

Without such a table each record counts as a subject of its own.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from biox.data.readers import Origin, expect, natural, whole
from biox.data.readers.files import edf_header, read_file
from biox.data.readers.labels import constant
from biox.data.windows import UNLABELLED, Recording, Signal

ABOUT = Origin(
    title="twelve-lead ECG",
    database="such as PTB-XL (PhysioNet) or CODE-15% (Zenodo 4916206)",
    files="WFDB or EDF records with twelve leads",
    licence="of the database; PTB-XL and CODE-15%: CC BY 4.0",
    citation="Wagner P et al., PTB-XL, a large publicly available electrocardiography dataset, "
    "Scientific Data 7:154, 2020, doi:10.1038/s41597-020-0495-6; Ribeiro AH et al., CODE-15%, "
    "Zenodo, 2021, doi:10.5281/zenodo.4916206",
    url="https://physionet.org/content/ptb-xl/",
)

CLASSES = ("unlabelled",)  # pretraining reads no labels

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MIN_RATE = 100.0  # in Hz; a slower one leaves no QRS
MAX_MISFIT = 0.2
"""Largest deviation from Einthoven's and Goldberger's relations, over the size of the limb leads;
rounding and filters leave a few hundredths, swapped leads more than a half."""

SUFFIXES = (".hea", ".edf")


def subjects(folder: Path | str) -> list[str]:
    """Patients, where a table names them, else records."""
    return sorted(set(_records(Path(folder)).values()), key=natural)


def read(folder: Path | str, subject: str, source: str = "twelve-lead ECG") -> list[Recording]:
    """All records of a subject: ``ecg`` [12, n] in mV, leads as in `LEADS`.

    Refused are also names of leads that are swapped, and leads that are flat or not finite.
    """
    folder = Path(folder)
    paths = [path for path, who in _records(folder).items() if who == subject]
    if not paths:
        raise FileNotFoundError(f"{folder}: expected records of subject {subject}, found none")
    recordings = []
    for path in paths:
        name, signals = path.relative_to(folder).as_posix(), {"ecg": read_record(path)}
        recordings.append(Recording(subject, name, signals, constant(UNLABELLED), source))
    return recordings


def read_record(path: Path) -> Signal:
    """One record's twelve leads in mV, [12, samples]; for errors see `read`."""
    names: dict[str, str] = {}
    for name in _signal_names(path):
        lead = lead_name(name)
        expect(lead not in names, path, f"lead {lead} once", f"{names.get(lead)} and {name}")
        if lead is not None:
            names[lead] = name
    missing = ", ".join(lead for lead in LEADS if lead not in names)
    expect(not missing, path, f"the leads {', '.join(LEADS)}", f"no {missing}")
    signal = read_file(path, {"ecg": [names[lead] for lead in LEADS]})[0]["ecg"]
    expect(signal.unit == "mV", path, "voltages", f"the unit {signal.unit}")
    stated = re.search(r"records(\d+)", path.parent.as_posix())
    sound = signal.rate >= MIN_RATE and (not stated or float(stated[1]) == signal.rate)
    expected = f"{stated[1]} Hz, as its folder says" if stated else f"{MIN_RATE:g} Hz or more"
    expect(sound, path, expected, f"{signal.rate:g} Hz")
    for lead, values in zip(LEADS, signal.values, strict=True):
        broken = int((~np.isfinite(values)).sum())
        found = f"{broken} values that are not finite" if broken else "a flat line"
        expect(not broken and np.ptp(values) > 0, path, f"a signal in lead {lead}", found)
    lead, misfit = _worst_relation(signal.values)
    expected = "limb leads that fit together (Einthoven, Goldberger)"
    found = f"{lead} off by {misfit:.0%} of their size: names swapped, or leads of other signals"
    expect(not misfit > MAX_MISFIT, path, expected, found)
    return Signal(signal.values, signal.rate, "mV", LEADS)


def _signal_names(path: Path) -> list[str]:
    if path.suffix.lower() != ".hea":
        return edf_header(path)["fields"]["name"]
    import wfdb

    with whole(path, "WFDB header"):
        return list(wfdb.rdheader(str(path.with_suffix(""))).sig_name or [])


def lead_name(name: str) -> str | None:
    """Name in `LEADS` that a file's name stands for: ``ECG DII`` is II, ``AVR`` aVR; or None."""
    bare = re.sub(r"^(ECG|EKG|LEAD)[\s_-]*|[-_ ]REF$", "", name.strip().upper()).strip()
    bare = bare[1:] if bare in ("DI", "DII", "DIII") else bare
    return {lead.upper(): lead for lead in LEADS}.get(bare)


def _worst_relation(x: np.ndarray) -> tuple[str, float]:
    """The limb lead that fits I and II worst, and its deviation over the size of limb leads."""
    x = x[:6] - x[:6].mean(axis=1, keepdims=True)
    one, two = x[:2]
    expected = (two - one, -(one + two) / 2, one - two / 2, two - one / 2)
    misfits = np.array([(a - b).std() for a, b in zip(x[2:], expected, strict=True)])
    size = np.sqrt(np.mean(x**2))
    return LEADS[2 + int(misfits.argmax())], float(misfits.max() / size)


@lru_cache(maxsize=4)
def _records(folder: Path) -> dict[Path, str]:
    """Record -> subject, in natural order."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ABOUT.missing(folder)
    patients, names = _patients(folder), {}
    for path in sorted(paths, key=lambda path: natural(path.as_posix())):
        name = path.relative_to(folder).with_suffix("").as_posix()
        names[path] = patients.get(name, patients.get(path.stem, name))
    return names


def _patients(folder: Path) -> dict[str, str]:
    """Record -> patient, by the table of PTB-XL or CODE-15%, if there is one."""
    keys = {"ptbxl_database.csv": ("filename_hr", "filename_lr"), "exams.csv": ("exam_id",)}
    found = {}
    for path in (folder / name for name in keys if (folder / name).is_file()):
        table, columns = pd.read_csv(path, dtype=str), keys[path.name]
        expected = ("patient_id", *columns)
        sound = set(expected) <= set(table)
        expect(sound, path, f"the columns {', '.join(expected)}", ", ".join(table))
        patients = table["patient_id"].str.removesuffix(".0")  # PTB-XL writes 15709.0
        for column in columns:
            found |= dict(zip(table[column], patients, strict=True))
    return found

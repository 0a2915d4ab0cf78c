"""EEGMAT: EEG and ECG at rest and during mental arithmetic.

``SubjectNN_1.edf`` is rest, ``SubjectNN_2.edf`` is serial subtraction, 500 Hz. Subject02's first
file has a dead ECG: it is read like the others, and left out of the splits that are scored.
"""

import re
from pathlib import Path

from biox.data.edf import read_header
from biox.data.labels import constant
from biox.data.origin import Origin, natural
from biox.data.windows import Recording, Signal

ABOUT = Origin(
    title="EEG During Mental Arithmetic Tasks v1.0.0 (eegmat)",
    database="PhysioNet",
    files="SubjectNN_1.edf and SubjectNN_2.edf",
    licence="ODC-By 1.0",
    citation="Zyma I et al., Electroencephalograms during mental arithmetic task performance, "
    "Data 4(1):14, 2019, doi:10.3390/data4010014; dataset doi:10.13026/C2JQ1P",
    url="https://physionet.org/content/eegmat/1.0.0/",
)
PUBLISHED = tuple(f"Subject{number:02d}" for number in range(36))
"""The subjects that the data set has."""

CLASSES = ("rest", "arithmetic")
EEG_CHANNELS = ("Fp1", "Fp2", "F3", "F4", "C3", "C4", "T3", "T4", "P3", "P4", "O1", "O2")
ECG_CHANNEL = "ECG ECG"
HEADER_UNITS = {"uV", "µV", "mV", "V"}
"""Units that MNE converts to volts; values of any other would pass through as they are."""


def subjects(folder: Path | str) -> list[str]:
    """Names such as ``Subject01``, for which both files are there."""
    folder = Path(folder)
    matches = [re.fullmatch(r"(Subject\d+)_1\.edf", path.name) for path in folder.glob("*.edf")]
    names = [match[1] for match in matches if match]
    names = [name for name in names if (folder / f"{name}_2.edf").is_file()]
    if not names:
        raise ABOUT.missing(folder)
    return sorted(names, key=natural)


def read(folder: Path | str, subject: str, source: str = "EEGMAT") -> list[Recording]:
    """Rest and arithmetic of a subject: ``eeg`` [12, n] in uV and ``ecg`` [1, n] in mV.

    Raises
    ------
    FileNotFoundError
        One of the two files is absent.
    ValueError
        A file is damaged, lacks a channel, or states a unit that is no voltage.
    """
    return [
        _recording(Path(folder) / f"{subject}_{part}.edf", subject, label, source)
        for label, part in enumerate(("1", "2"))
    ]


def _recording(path: Path, subject: str, label: int, source: str) -> Recording:
    import mne

    if not path.is_file():
        raise ABOUT.missing(path.parent)
    header = read_header(path)
    picks = [f"EEG {name}" for name in EEG_CHANNELS] + [ECG_CHANNEL]
    units = dict(zip(header.channels, header.units, strict=True))
    missing = [name for name in picks if name not in units]
    if missing:
        raise ValueError(f"{path}: expected the channels {picks}, found none of {missing}")
    wrong = {name: units[name] for name in picks if units[name] not in HEADER_UNITS}
    if wrong:
        raise ValueError(f"{path}: expected units out of {sorted(HEADER_UNITS)}, found {wrong}")
    try:
        raw = mne.io.read_raw_edf(path, verbose="ERROR")
        volts = raw.get_data(picks=picks)
    except Exception as error:  # a damaged file may fail in any way
        raise ValueError(
            f"{path}: expected an EDF file, found one MNE cannot read ({error})"
        ) from None
    rate = float(raw.info["sfreq"])
    signals = {
        "eeg": Signal(volts[:-1] * 1e6, rate, "uV", EEG_CHANNELS),
        "ecg": Signal(volts[-1:] * 1e3, rate, "mV", ("ECG",)),
    }
    return Recording(subject, path.stem, signals, constant(label), source)

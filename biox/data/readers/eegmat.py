"""EEGMAT: EEG and ECG at rest and during mental arithmetic.

``SubjectNN_1.edf`` is rest, ``SubjectNN_2.edf`` is serial subtraction. The published files have
500 Hz; ``data/recordings/eegmat`` holds a minute of each at 200 Hz. Subject02's first file has a
dead ECG: it is read like the others, and left out of the splits that are scored.
"""

from dataclasses import replace
from pathlib import Path

from biox.data.readers import Origin, expect
from biox.data.readers.files import read_file
from biox.data.readers.labels import constant
from biox.data.windows import Recording

ABOUT = Origin(
    title="EEG During Mental Arithmetic Tasks v1.0.0 (eegmat)",
    database="PhysioNet",
    files="SubjectNN_1.edf and SubjectNN_2.edf",
    licence="ODC-By 1.0",
    citation="Zyma I et al., Electroencephalograms during mental arithmetic task performance, "
    "Data 4(1):14, 2019, doi:10.3390/data4010014; dataset doi:10.13026/C2JQ1P",
    url="https://physionet.org/content/eegmat/1.0.0/",
)

CLASSES = ("rest", "arithmetic")
EEG_CHANNELS = ("F3", "C3", "O1", "F4", "C4", "O2")
CHANNELS = {"eeg": tuple(f"EEG {name}" for name in EEG_CHANNELS), "ecg": ("ECG ECG",)}
UNITS = {"eeg": "uV", "ecg": "mV"}

PUBLISHED_RATE = 500.0
PADDING = 2.0
"""Seconds of constant values that every published file ends with. They would give the class away,
since the files of rest are longer."""


def subjects(folder: Path | str) -> list[str]:
    """Names such as ``Subject01``, for which both files are there."""
    one, two = (ABOUT.present(folder, "*.edf", rf"(Subject\d+)_{part}\.edf") for part in (1, 2))
    both = [name for name in one if name in two]
    if not both:
        raise ABOUT.missing(folder)
    return both


def read(folder: Path | str, subject: str, source: str = "EEGMAT") -> list[Recording]:
    """Rest and arithmetic of a subject: ``eeg`` [6, n] in uV and ``ecg`` [1, n] in mV."""
    return [
        _recording(Path(folder) / f"{subject}_{part}.edf", subject, label, source)
        for label, part in enumerate(("1", "2"))
    ]


def _recording(path: Path, subject: str, label: int, source: str) -> Recording:
    signals, marked, _ = read_file(ABOUT.file(path), CHANNELS)
    found = {modality: signal.unit for modality, signal in signals.items()}
    expect(found == UNITS, path, "voltages", f"the units {found}")
    for modality, signal in signals.items():
        end = -round(PADDING * signal.rate) if signal.rate == PUBLISHED_RATE else None
        names = tuple(name.split()[-1] for name in signal.channels)
        signals[modality] = replace(signal, values=signal.values[:, :end], channels=names)
    return Recording(subject, path.stem, signals, constant(label), source, marked)

"""ISRUC-Sleep, subgroup I: nights with EEG, ECG and sleep stages per 30-s epoch.

Layout as the released code reads it (`dataset_preprocessing/make_ISRUC.py`):
``ExtractedChannels/subjectN.mat`` holds one array [epochs, 6000] per channel (200 Hz);
``RawData/N/N_1.txt`` holds the first expert's stages, one per line: 0 wake, 1-3 N1-N3, 5 REM,
with 30 lines more than there are epochs.
"""

from pathlib import Path

import numpy as np

from biox.data.readers import Origin, expect, whole
from biox.data.readers.labels import majority
from biox.data.windows import Recording, Signal

ABOUT = Origin(
    title="ISRUC-Sleep, subgroup I",
    database="ISR, University of Coimbra",
    files="ExtractedChannels/subjectN.mat and RawData/N/N_1.txt",
    licence="free for research",
    citation="Khalighi S et al., ISRUC-Sleep: a comprehensive public dataset for sleep "
    "researchers, Computer Methods and Programs in Biomedicine 124:180-192, 2016, "
    "doi:10.1016/j.cmpb.2015.10.013",
    url="https://sleeptight.isr.uc.pt",
    # The released code's splits have 99 of the 100, and 40 is known to be odd.
    subjects=tuple(str(number) for number in range(1, 101) if number != 40),
)

CLASSES = ("wake", "sleep")
STAGES = {0: 0, 1: 1, 2: 1, 3: 1, 5: 1}
"""Class index of a stage."""

EEG_CHANNELS = ("F3_A2", "C3_A2", "O1_A2", "F4_A1", "C4_A1", "O2_A1")
ECG_CHANNEL = "X2"
RATE, EPOCH_SECONDS, EPOCH_SAMPLES = 200.0, 30.0, 6000
SURPLUS = 30
"""Stages at the end of the text that have no epoch; dropped, as in the released code."""


def subjects(folder: Path | str) -> list[str]:
    """Numbers of the subjects as text, 2 before 10."""
    return ABOUT.present(folder, "ExtractedChannels/*.mat", r"ExtractedChannels/subject(\d+)\.mat")


def read(folder: Path | str, subject: str, source: str = "ISRUC") -> list[Recording]:
    """The one night of a subject: ``eeg`` [6, n] in uV and ``ecg`` [1, n], both at 200 Hz.

    The epochs follow each other in time; windows of 30 s every 30 s are the epochs. The source
    states no unit for the ECG.
    """
    path = ABOUT.file(Path(folder) / "ExtractedChannels" / f"subject{subject}.mat")
    text = ABOUT.file(Path(folder) / "RawData" / subject / f"{subject}_1.txt")
    epochs = _epochs(path)
    stages = _stages(text, len(epochs[ECG_CHANNEL]))
    eeg = np.stack([epochs[name].reshape(-1) for name in EEG_CHANNELS])
    signals = {
        "eeg": Signal(eeg, RATE, "uV", EEG_CHANNELS),
        "ecg": Signal(epochs[ECG_CHANNEL].reshape(1, -1), RATE, "a.u.", (ECG_CHANNEL,)),
    }
    starts = np.arange(len(stages)) * EPOCH_SECONDS
    label = majority(starts, starts + EPOCH_SECONDS, [STAGES[s] for s in stages], purity=1.0)
    return [Recording(subject, f"subject{subject}", signals, label, source)]


def _epochs(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    names = [*EEG_CHANNELS, ECG_CHANNEL]
    with whole(path, "MATLAB v5 file"):
        content = loadmat(path, variable_names=names)
    missing = [name for name in names if name not in content]
    expect(not missing, path, f"the channels {names}", f"none of {missing}")
    shape = (len(content[ECG_CHANNEL]), EPOCH_SAMPLES)
    wrong = {name: content[name].shape for name in names if content[name].shape != shape}
    expect(not wrong, path, f"[epochs, {EPOCH_SAMPLES}] in each channel", wrong)
    return {name: content[name].astype(np.float32) for name in names}


def _stages(path: Path, n_epochs: int) -> list[int]:
    stages, n = path.read_text(errors="replace").split(), n_epochs + SURPLUS
    unknown = sorted(set(stages) - set(map(str, STAGES)))
    expect(not unknown, path, f"stages out of {sorted(STAGES)}", unknown[:5])
    expected = f"{n} stages ({n_epochs} epochs and {SURPLUS} more)"
    expect(len(stages) == n, path, expected, len(stages))
    return [int(stage) for stage in stages[:n_epochs]]

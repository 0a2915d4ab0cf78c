"""DREAMER: EEG and ECG of 23 people who watched 18 film clips and rated what they felt.

One file, ``DREAMER.mat`` (MATLAB v5), as read by torcheeg (`torcheeg/datasets/module/
emotion_recognition/dreamer.py`): ``DREAMER.Data{s}`` holds ``EEG`` and ``ECG``, each with
``stimuli{clip}`` of [samples, channels], and ``ScoreValence``, ``ScoreArousal`` and
``ScoreDominance``, one whole number from 1 to 5 for each clip. The 61 s of ``baseline`` before each
clip are left out: nobody rated them.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from biox.data.labels import constant
from biox.data.origin import Origin, inside
from biox.data.windows import Recording, Signal

ABOUT = Origin(
    title="DREAMER",
    database="Zenodo 546113",
    files="DREAMER.mat",
    licence="for research, on request to its authors",
    citation="Katsigiannis S and Ramzan N, DREAMER: a database for emotion recognition through "
    "EEG and ECG signals from wireless low-cost off-the-shelf devices, IEEE JBHI 22(1):98-107, "
    "2018, doi:10.1109/JBHI.2017.2688239",
    url="https://doi.org/10.5281/zenodo.546113",
)
PUBLISHED = tuple(str(number) for number in range(1, 24))
"""The subjects that the data set has."""

CLASSES = ("low", "high")
TARGETS = {"valence": "ScoreValence", "arousal": "ScoreArousal", "dominance": "ScoreDominance"}
"""Field of the file by what `read` may label the clips with."""

THRESHOLD = 3
"""Scores above it are high: the usual split of the scale from 1 to 5."""

EEG_CHANNELS = tuple("AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4".split())
ECG_CHANNELS = ("ECG 1", "ECG 2")
EEG_RATE, ECG_RATE = 128.0, 256.0
"""Hz, where the file does not state them (``EEG_SamplingRate``, ``ECG_SamplingRate``)."""


def subjects(folder: Path | str) -> list[str]:
    """Numbers of the subjects as text: their places in the file, from 1."""
    path = _path(folder)
    return [str(number) for number in range(1, len(_people(path)) + 1)]


def read(
    folder: Path | str,
    subject: str,
    source: str = "DREAMER",
    target: str = "valence",
    channels: Mapping[str, Sequence[str]] | None = None,
) -> list[Recording]:
    """All clips of a subject: ``eeg`` [14, n] at 128 Hz and ``ecg`` [2, n] at 256 Hz.

    The file states no units. EEG is taken as uV, which the Emotiv headset stores on a level of some
    thousand uV; that level (the median of each channel and clip) is subtracted, since the
    conditioning of EEG has no high-pass. ECG is in units of the sensor, ``a.u.``, as it is.

    The whole file is read for the first subject (some GB of memory) and kept for the next.

    Parameters
    ----------
    folder, subject, source
    target : {"valence", "arousal", "dominance"}
        The rating that labels the clips: above 3 is ``high``.
    channels : mapping of str to sequence of str, optional
        Channels to keep by modality, such as ``{"ecg": ["ECG 1"]}`` for a model of one lead; all of
        a modality that is not named.

    Raises
    ------
    FileNotFoundError
        ``DREAMER.mat`` is absent, or has no such subject.
    ValueError
        A file that is foreign or cut short, lacks a field, or holds a signal that is not
        [samples, channels] or a score that is no whole number from 1 to 5; an unknown target or
        channel.
    """
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {list(TARGETS)}, found {target!r}")
    path = _path(folder)
    known = subjects(folder)
    if subject not in known:
        raise FileNotFoundError(f"{path}: expected subject {subject}, found 1 to {len(known)}")
    scores, clips = _person(path, int(subject), TARGETS[target])
    recordings = []
    for i, (score, signals) in enumerate(zip(scores, clips, strict=True)):
        picked = {m: _picked(m, signals, names) for m, names in (channels or {}).items()}
        label = constant(int(score > THRESHOLD))
        name = f"subject{subject}_clip{i + 1}"
        recordings.append(Recording(subject, name, signals | picked, label, source))
    return recordings


def _person(path: Path, number: int, field: str) -> tuple[np.ndarray, list[dict[str, Signal]]]:
    """Scores, and the signals of each clip, of one subject."""
    person, where = _people(path)[number - 1], f"{path}, subject {number}"
    eeg, ecg = _clips(where, person, "EEG"), _clips(where, person, "ECG")
    scores = _scores(where, person, field)
    found = {"EEG": len(eeg), "ECG": len(ecg), field: len(scores)}
    if len(set(found.values())) != 1 or not len(scores):
        raise ValueError(f"{where}: expected one score and both signals a clip, found {found}")
    top = _load(path, *_stamp(path))
    eeg_rate = _rate(path, top, "EEG_SamplingRate", EEG_RATE)
    ecg_rate = _rate(path, top, "ECG_SamplingRate", ECG_RATE)
    return scores, [
        {
            "eeg": Signal(_without_level(a), eeg_rate, "uV", EEG_CHANNELS),
            "ecg": Signal(b, ecg_rate, "a.u.", ECG_CHANNELS),
        }
        for a, b in zip(eeg, ecg, strict=True)
    ]


def _path(folder: Path | str) -> Path:
    path = inside(folder, "DREAMER") / "DREAMER.mat"
    if not path.is_file():
        raise ABOUT.missing(folder)
    return path


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    return path.stat().st_size, path.stat().st_mtime_ns


@lru_cache(maxsize=1)
def _load(path: Path, size: int, changed: int) -> np.ndarray:
    """The struct ``DREAMER``; read once for all subjects, because MATLAB v5 has no parts."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["DREAMER"])
    except Exception as error:  # a damaged file may fail in any way
        kind = type(error).__name__
        raise ValueError(
            f"{path}: expected a whole MATLAB v5 file, found a truncated or foreign one ({kind})"
        ) from None
    if "DREAMER" not in content:
        raise ValueError(f"{path}: expected the variable DREAMER, found a file without it")
    return content["DREAMER"]


def _people(path: Path) -> list[np.ndarray]:
    return _cells(str(path), _field(str(path), _load(path, *_stamp(path)), "Data"), "Data")


def _field(where: str, struct: object, *names: str) -> np.ndarray:
    """Go down MATLAB structs, which scipy gives as arrays of one record."""
    for name in names:
        known = getattr(getattr(struct, "dtype", None), "names", None) or ()
        if name not in known or struct.size != 1:
            raise ValueError(f"{where}: expected the field {'.'.join(names)}, found no {name!r}")
        struct = struct.reshape(-1)[0][name]
    return struct


def _cells(where: str, value: np.ndarray, name: str) -> list[np.ndarray]:
    """The entries of a MATLAB cell array."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "O":
        raise ValueError(f"{where}: expected a cell array in {name}, found none")
    return list(value.reshape(-1))


def _clips(where: str, person: np.ndarray, device: str) -> list[np.ndarray]:
    """Signals while the clips were shown, each [channels, samples] float32."""
    n_channels = {"EEG": len(EEG_CHANNELS), "ECG": len(ECG_CHANNELS)}[device]
    clips = _cells(where, _field(where, person, device, "stimuli"), f"{device}.stimuli")
    for i, clip in enumerate(clips):
        clip = np.asarray(clip)
        good = clip.dtype.kind in "fiu" and clip.ndim == 2 and clip.shape[1] == n_channels
        if not good or not len(clip):
            raise ValueError(
                f"{where}: expected numbers [samples, {n_channels}] in {device}.stimuli, "
                f"clip {i + 1}, found {clip.dtype} of shape {clip.shape}"
            )
    return [np.ascontiguousarray(clip.T, dtype=np.float32) for clip in clips]


def _scores(where: str, person: np.ndarray, field: str) -> np.ndarray:
    scores = np.asarray(_field(where, person, field))
    if scores.dtype.kind not in "fiu" or not np.isin(scores, [1, 2, 3, 4, 5]).all():
        wrong = [s for s in scores.reshape(-1).tolist() if s not in (1, 2, 3, 4, 5)]
        raise ValueError(f"{where}: expected scores from 1 to 5 in {field}, found {wrong[:5]}")
    return scores.reshape(-1)


def _rate(path: Path, top: np.ndarray, field: str, default: float) -> float:
    if field not in (top.dtype.names or ()):
        return default
    stated = np.asarray(_field(str(path), top, field))
    if stated.size != 1 or stated.dtype.kind not in "fiu" or not 0 < stated.item() < np.inf:
        raise ValueError(f"{path}: expected a rate in Hz in {field}, found {stated.tolist()}")
    return float(stated.item())


def _without_level(values: np.ndarray) -> np.ndarray:
    """Subtract each channel's median, where it has values."""
    finite = [row[np.isfinite(row)] for row in values]
    return values - np.array([[np.median(row) if len(row) else 0] for row in finite], np.float32)


def _picked(modality: str, signals: Mapping[str, Signal], names: Sequence[str]) -> Signal:
    known = signals[modality].channels if modality in signals else ()
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ValueError(f"{modality}: expected channels out of {list(known)}, found {missing}")
    signal = signals[modality]
    rows = [known.index(name) for name in names]
    return Signal(signal.values[rows], signal.rate, signal.unit, tuple(names))

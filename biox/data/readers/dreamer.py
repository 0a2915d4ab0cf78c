"""DREAMER: EEG and ECG of 23 people who watched 18 film clips and rated what they felt.

One file, ``DREAMER.mat`` (MATLAB v5), as read by torcheeg (`torcheeg/datasets/module/
emotion_recognition/dreamer.py`): ``DREAMER.Data{s}`` holds ``EEG`` and ``ECG``, each with
``stimuli{clip}`` of [samples, channels], and ``ScoreValence``, ``ScoreArousal`` and
``ScoreDominance``, one whole number from 1 to 5 for each clip; ``EEG_Electrodes`` names the columns
of the EEG, and ``EEG_SamplingRate`` and ``ECG_SamplingRate`` its rates. The 61 s of ``baseline``
before each clip are left out unless asked for: nobody rated them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from biox.data.readers import Origin, expect, inside, whole
from biox.data.readers.labels import constant
from biox.data.windows import UNLABELLED, Recording, Signal

log = logging.getLogger(__name__)

ABOUT = Origin(
    title="DREAMER",
    database="Zenodo 546113",
    files="DREAMER.mat",
    licence="for research, on request to its authors",
    citation="Katsigiannis S and Ramzan N, DREAMER: a database for emotion recognition through "
    "EEG and ECG signals from wireless low-cost off-the-shelf devices, IEEE JBHI 22(1):98-107, "
    "2018, doi:10.1109/JBHI.2017.2688239",
    url="https://doi.org/10.5281/zenodo.546113",
    subjects=tuple(str(number) for number in range(1, 24)),
)

CLASSES = ("low", "high")
TARGETS = {"valence": "ScoreValence", "arousal": "ScoreArousal", "dominance": "ScoreDominance"}
"""Field of the file by what `read` may label the clips with."""

THRESHOLD = 3
"""Scores above it are high: the usual split of the scale from 1 to 5."""

EEG_CHANNELS = tuple("AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4".split())
"""In the order in which they come out, whatever the file's."""
ECG_CHANNELS = ("ECG 1", "ECG 2")
RATES = {"EEG": 128.0, "ECG": 256.0}
"""Where the file states none."""


def subjects(folder: Path | str) -> list[str]:
    """Numbers of the subjects as text: their places in the file, from 1."""
    return [str(number) for number in range(1, len(_structs(folder)[-1]) + 1)]


def read(
    folder: Path | str,
    subject: str,
    source: str = "DREAMER",
    target: str = "valence",
    channels: Mapping[str, Sequence[str]] | None = None,
    threshold: float = THRESHOLD,
    baselines: bool = False,
) -> list[Recording]:
    """All clips of a subject: ``eeg`` [14, n] at 128 Hz and ``ecg`` [2, n] at 256 Hz.

    The order of the electrodes is read from the file; where it names none, the published one is
    taken, and a logged line says so.

    The file states no units. EEG is taken as uV, which the Emotiv headset stores on a level of some
    thousand uV; that level (the median of each channel and clip) is subtracted, since the
    conditioning of EEG has no high-pass. ECG is in units of the sensor, ``a.u.``, as it is.

    The whole file is read for the first subject (some GB of memory) and kept for the next.

    Parameters
    ----------
    target, threshold : {"valence", "arousal", "dominance"} and float
        The rating that labels the clips; ratings above the threshold are ``high``.
    channels : mapping of str to sequence of str, optional
        Channels to keep by modality, such as ``{"ecg": ["ECG 1"]}`` for a model of one lead; all of
        a modality that is not named.
    baselines : bool
        Also return what was recorded before each clip, unlabelled, as ``subject1_clip1_baseline``.
    """
    path, header, structs = _structs(folder)
    if subject not in subjects(folder):
        raise FileNotFoundError(f"{path}: expected subject {subject}, found 1 to {len(structs)}")
    where, person = f"{path}, subject {subject}", structs[int(subject) - 1]
    devices = {modality: getattr(person, modality, None) for modality in RATES}
    parts = ("stimuli", "baseline") if baselines else ("stimuli",)
    try:
        scores = getattr(person, TARGETS[target]).reshape(-1)
        clips = {
            (modality, part): getattr(device[0, 0], part).reshape(-1)
            for modality, device in devices.items()
            for part in parts
        }
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(
            f"{where}: expected {', '.join(f'EEG.{p}, ECG.{p}' for p in parts)} and "
            f"{TARGETS[target]} ({error})"
        ) from None
    counts = {f"{m}.{part}": len(x) for (m, part), x in clips.items()}
    sound = {len(scores)} == set(counts.values()) != {0} and np.isin(scores, [1, 2, 3, 4, 5]).all()
    found = f"scores {scores.tolist()[:5]}", *(f"{n} clips of {k}" for k, n in counts.items())
    expect(sound, where, "one score from 1 to 5 and both signals a clip", ", ".join(found))
    order, rates = _electrodes(path, header), {m: _rate(path, header, m) for m in RATES}
    recordings = []
    for (i, score), part in product(enumerate(scores), parts):
        eeg = _clip(where, i, clips["EEG", part][i], 14)[order]
        ecg = _clip(where, i, clips["ECG", part][i], 2)
        signals = {
            "eeg": Signal(_without_level(eeg), rates["EEG"], "uV", EEG_CHANNELS),
            "ecg": Signal(ecg, rates["ECG"], "a.u.", ECG_CHANNELS),
        }
        for modality, names in (channels or {}).items():
            signals[modality] = _picked(modality, signals, names)
        rated = part == "stimuli"
        label = constant(int(score > threshold) if rated else UNLABELLED)
        name = f"subject{subject}_clip{i + 1}" + ("" if rated else "_baseline")
        recordings.append(Recording(subject, name, signals, label, source))
    return recordings


def _electrodes(path: Path, header: Mapping[str, np.ndarray]) -> list[int]:
    """Column of the file for each of `EEG_CHANNELS`."""
    if "EEG_Electrodes" not in header:
        log.warning("%s: no EEG_Electrodes, so the published order is taken", path)
        return list(range(len(EEG_CHANNELS)))
    cells = [np.ravel(cell) for cell in np.ravel(header["EEG_Electrodes"])]
    found = [str(cell[0]).strip() if len(cell) else "" for cell in cells]
    names = [name.upper() for name in found]
    expected = f"EEG_Electrodes {' '.join(EEG_CHANNELS)} in any order"
    expect(sorted(names) == sorted(EEG_CHANNELS), path, expected, " ".join(found))
    return [names.index(name) for name in EEG_CHANNELS]


def _rate(path: Path, header: Mapping[str, np.ndarray], modality: str) -> float:
    """Sampling rate in Hz, as the file states it."""
    field = f"{modality}_SamplingRate"
    found = np.ravel(header.get(field, RATES[modality]))
    sound = len(found) == 1 and found.dtype.kind in "fiu" and 0 < found[0] < np.inf
    expect(sound, path, f"{field} in Hz", found.tolist()[:3])
    return float(found[0])


def _structs(folder: Path | str) -> tuple[Path, dict[str, np.ndarray], list]:
    """The file, the fields beside its data, and MATLAB's structs of all subjects."""
    path = ABOUT.file(inside(folder, "DREAMER") / "DREAMER.mat")
    return path, *_load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load(path: Path, changed: int) -> tuple[dict[str, np.ndarray], list]:
    """Read once for all subjects, because MATLAB v5 has no parts; again if the file changed."""
    from scipy.io import loadmat

    with whole(path, "MATLAB v5 file with DREAMER.Data"):
        content = loadmat(path, variable_names=["DREAMER"], struct_as_record=False)
        top = content["DREAMER"][0, 0]
        fields = {name: getattr(top, name) for name in top._fieldnames if name != "Data"}
        return fields, [cell[0, 0] for cell in top.Data.reshape(-1)]


def _clip(where: str, i: int, values: np.ndarray, n_channels: int) -> np.ndarray:
    """A signal while a clip was shown, [channels, samples] float32."""
    sound = values.dtype.kind in "fiu" and values.shape[1:] == (n_channels,) and len(values) > 0
    found = f"{values.dtype} of shape {values.shape}"
    expect(sound, where, f"numbers [samples, {n_channels}] in clip {i + 1}", found)
    return np.ascontiguousarray(values.T, dtype=np.float32)


def _without_level(values: np.ndarray) -> np.ndarray:
    """Subtract each channel's median, where it has values."""
    finite = [row[np.isfinite(row)] for row in values]
    return values - np.array([[np.median(row) if len(row) else 0] for row in finite], np.float32)


def _picked(modality: str, signals: Mapping[str, Signal], names: Sequence[str]) -> Signal:
    known = signals[modality].channels if modality in signals else ()
    expect(set(names) <= set(known), modality, f"channels out of {list(known)}", list(names))
    values = signals[modality].values[[known.index(name) for name in names]]
    return replace(signals[modality], values=values, channels=tuple(names))

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

from biox.data.readers import Origin, inside
from biox.data.readers.labels import constant
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
    subjects=tuple(str(number) for number in range(1, 24)),
)

CLASSES = ("low", "high")
TARGETS = {"valence": "ScoreValence", "arousal": "ScoreArousal", "dominance": "ScoreDominance"}
"""Field of the file by what `read` may label the clips with."""

THRESHOLD = 3
"""Scores above it are high: the usual split of the scale from 1 to 5."""

EEG_CHANNELS = tuple("AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4".split())
ECG_CHANNELS = ("ECG 1", "ECG 2")
RATES = {"EEG": 128.0, "ECG": 256.0}  # where the file states none


def subjects(folder: Path | str) -> list[str]:
    """Numbers of the subjects as text: their places in the file, from 1."""
    return [str(number) for number in range(1, len(_people(folder)[1]) + 1)]


def read(
    folder: Path | str,
    subject: str,
    source: str = "DREAMER",
    target: str = "valence",
    channels: Mapping[str, Sequence[str]] | None = None,
) -> list[Recording]:
    """All clips of a subject: ``eeg`` [14, n] at 128 Hz and ``ecg`` [2, n] at 256 Hz.

    Rates and electrodes are as the file states them; it states no units. EEG is taken as uV, which
    the Emotiv headset stores on a level of some thousand uV; that level (the median of each channel
    and clip) is subtracted. ECG is in units of the sensor, ``a.u.``, as it is.

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
        A foreign or damaged file, a score that is no whole number from 1 to 5, an unknown channel.
    """
    path, people, rates, order = _people(folder)
    if subject not in subjects(folder):
        raise FileNotFoundError(f"{path}: expected subject {subject}, found 1 to {len(people)}")
    where, person = f"{path}, subject {subject}", people[int(subject) - 1]
    try:
        scores = getattr(person, TARGETS[target]).reshape(-1)
        eeg, ecg = person.EEG[0, 0].stimuli.reshape(-1), person.ECG[0, 0].stimuli.reshape(-1)
    except (AttributeError, IndexError) as error:
        raise ValueError(
            f"{where}: expected EEG.stimuli, ECG.stimuli and {TARGETS[target]} ({error})"
        ) from None
    if not len(scores) == len(eeg) == len(ecg) > 0 or not np.isin(scores, [1, 2, 3, 4, 5]).all():
        raise ValueError(
            f"{where}: expected one score from 1 to 5 and both signals a clip, found scores "
            f"{scores.tolist()[:5]}, {len(eeg)} clips of EEG, {len(ecg)} of ECG"
        )
    recordings = []
    for i, score in enumerate(scores):
        brain = _without_level(_clip(where, i, eeg[i], 14)[order])
        signals = {
            "eeg": Signal(brain, rates[0], "uV", EEG_CHANNELS),
            "ecg": Signal(_clip(where, i, ecg[i], 2), rates[1], "a.u.", ECG_CHANNELS),
        }
        for modality, names in (channels or {}).items():
            signals[modality] = _picked(modality, signals, names)
        label = constant(int(score > THRESHOLD))
        name = f"subject{subject}_clip{i + 1}"
        recordings.append(Recording(subject, name, signals, label, source))
    return recordings


def _people(folder: Path | str) -> tuple[Path, list, list[float], list[int]]:
    """The file, MATLAB's structs of all subjects, rates, and where each of `EEG_CHANNELS` is."""
    path = inside(folder, "DREAMER") / "DREAMER.mat"
    if not path.is_file():
        raise ABOUT.missing(folder)
    content = _load(path, path.stat().st_mtime_ns)
    people = [cell[0, 0] for cell in content.Data.reshape(-1)]
    rates = [np.squeeze(getattr(content, f"{x}_SamplingRate", RATES[x])).item() for x in RATES]
    names = np.ravel(getattr(content, "EEG_Electrodes", np.array(EEG_CHANNELS)))
    names = [str(np.squeeze(name)).strip().upper() for name in names]
    wanted = [name.upper() for name in EEG_CHANNELS]
    if sorted(names) != sorted(wanted) or not all(0 < rate < np.inf for rate in rates):
        raise ValueError(
            f"{path}: expected rates and the electrodes {wanted}, found {rates} Hz and {names}"
        )
    return path, people, rates, [names.index(name) for name in wanted]


@lru_cache(maxsize=1)
def _load(path: Path, changed: int):
    """Read once for all subjects, because MATLAB v5 has no parts; again if the file changed."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["DREAMER"], struct_as_record=False)["DREAMER"][0, 0]
        assert [cell[0, 0] for cell in content.Data.reshape(-1)]
        return content
    except Exception as error:  # a damaged file may fail in any way
        raise ValueError(
            f"{path}: expected a whole MATLAB v5 file with DREAMER.Data, found a truncated or "
            f"foreign one ({type(error).__name__}: {error})"
        ) from None


def _clip(where: str, i: int, values: np.ndarray, n_channels: int) -> np.ndarray:
    """A signal while a clip was shown, [channels, samples] float32."""
    good = values.dtype.kind in "fiu" and values.ndim == 2 and values.shape[1] == n_channels
    if not good or not len(values):
        raise ValueError(
            f"{where}: expected numbers [samples, {n_channels}] in clip {i + 1}, "
            f"found {values.dtype} of shape {values.shape}"
        )
    return np.ascontiguousarray(values.T, dtype=np.float32)


def _without_level(values: np.ndarray) -> np.ndarray:
    """Subtract each channel's median, where it has values."""
    finite = [row[np.isfinite(row)] for row in values]
    return values - np.array([[np.median(row) if len(row) else 0] for row in finite], np.float32)


def _picked(modality: str, signals: Mapping[str, Signal], names: Sequence[str]) -> Signal:
    known = signals[modality].channels if modality in signals else ()
    if not set(names) <= set(known):
        raise ValueError(f"{modality}: expected channels out of {list(known)}, found {list(names)}")
    signal = signals[modality]
    values = signal.values[[known.index(name) for name in names]]
    return Signal(values, signal.rate, signal.unit, tuple(names))

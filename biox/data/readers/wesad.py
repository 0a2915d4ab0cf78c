"""WESAD: chest ECG and wrist PPG under baseline, stress and amusement.

Layout as published and as read by the released code (`dataset_preprocessing/make_WESAD.py`):
``Sx/Sx.pkl``, a Python-2 pickle with ``signal.chest.ECG`` [N, 1] and ``label`` [N] at 700 Hz and
``signal.wrist.BVP`` [n, 1] at 64 Hz, aligned at their start.
"""

import _codecs
import pickle
from pathlib import Path

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar

from biox.data.readers import Origin, expect, inside, whole
from biox.data.readers.labels import sample_track
from biox.data.windows import Recording, Signal

ABOUT = Origin(
    title="WESAD (Wearable Stress and Affect Detection)",
    database="UCI Machine Learning Repository",
    files="folders S2 ... S17 with Sx/Sx.pkl",
    licence="non-commercial research use",
    citation="Schmidt P et al., Introducing WESAD, a multimodal dataset for wearable stress and "
    "affect detection, ICMI 2018, doi:10.1145/3242969.3242985",
    url="https://archive.ics.uci.edu/dataset/465",
    subjects=tuple(f"S{number}" for number in range(2, 18) if number != 12),
)

CLASSES = ("baseline", "stress", "amusement")
CODES = {1: 0, 2: 1, 3: 2}
"""Class index of a code of the label track; 0 transient, 4 meditation and 5-7 have no class."""

CHEST_RATE, WRIST_RATE = 700.0, 64.0
PURITY = 1.0
"""A window counts only if one label covers all of it."""


def subjects(folder: Path | str) -> list[str]:
    """Names of the subjects, S2 before S10."""
    return ABOUT.present(inside(folder, "WESAD"), "S*/S*.pkl", r"(S\d+)/\1\.pkl")


def read(folder: Path | str, subject: str, source: str = "WESAD") -> list[Recording]:
    """The one recording of a subject: ``ecg`` [1, n] in mV at 700 Hz, ``ppg`` [1, n] at 64 Hz.

    A pickle that refers to code is refused, and nothing of it is run.
    """
    path = ABOUT.file(inside(folder, "WESAD") / subject / f"{subject}.pkl")
    content = read_pickle(path)
    ecg = _column(path, content, "signal", "chest", "ECG")
    bvp = _column(path, content, "signal", "wrist", "BVP")
    track = _column(path, content, "label")
    expected = f"{len(ecg)} labels, one per ECG sample"
    expect(len(track) == len(ecg), path, expected, len(track))
    unknown = sorted(set(np.unique(track).tolist()) - set(range(8)))
    expect(not unknown, path, "labels 0 to 7", unknown[:5])
    signals = {
        "ecg": Signal(ecg[None], CHEST_RATE, "mV", ("chest",)),
        "ppg": Signal(bvp[None], WRIST_RATE, "a.u.", ("wrist",)),
    }
    label = sample_track(track, CHEST_RATE, CODES, PURITY)
    return [Recording(subject, subject, signals, label, source)]


def _column(path: Path, content: object, *keys: str) -> np.ndarray:
    """A signal of one column, as [samples]."""
    where = "/".join(keys)
    for key in keys:
        known = isinstance(content, dict) and key in content
        expect(known, path, f"the key {where}", f"no {key!r}")
        content = content[key]
    numbers = isinstance(content, np.ndarray) and content.dtype.kind in "fiu"
    expect(numbers, path, f"an array of numbers in {where}", type(content).__name__)
    column = content.shape in ((content.size,), (content.size, 1)) and content.size > 0
    expect(column, path, f"one column in {where}", f"shape {content.shape}")
    return content.reshape(-1)


class _NumbersOnly(pickle.Unpickler):
    """Loading a pickle may call any importable function: this one knows those of numpy arrays."""

    allowed = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _codecs.encode,
        ("__builtin__", "bytes"): bytes,  # how Python 3 writes empty bytes for Python 2
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 2 renamed it
        allowed |= {(module, "_reconstruct"): _reconstruct, (module, "scalar"): scalar}

    def find_class(self, module: str, name: str):
        if (module, name) not in self.allowed:
            raise PermissionError(f"{module}.{name}")
        return self.allowed[module, name]


def read_pickle(path: Path) -> object:
    """Read dicts, lists, strings, numbers and numpy arrays from a pickle of Python 2 or 3.

    Strings of Python 2 are read as latin1, which keeps the bytes of its arrays.
    """
    with whole(path, "pickle"), open(path, "rb") as file:
        try:
            return _NumbersOnly(file, encoding="latin1").load()
        except PermissionError as error:
            found = f"found a reference to {error}; nothing of it was run"
    raise ValueError(f"{path}: expected a pickle of numpy arrays only, {found}")

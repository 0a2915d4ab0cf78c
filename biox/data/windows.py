"""Recordings, paired windows, and splits that share no subject.

A reader turns raw files into `Recording` objects; `cut` turns recordings into `Windows`, the one
container of everything downstream; a split is one safetensors file of windows.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from biox.files import written_whole

UNLABELLED = -1
"""Class index of a window without a label: kept in the pair split, dropped elsewhere."""

SPLITS = ("train", "val", "pair", "test")


@dataclass(frozen=True)
class Signal:
    """One modality of one recording, as read: `values` is [channels, samples].

    Attributes
    ----------
    values : ndarray, [channels, samples]
    rate : float
        Sampling rate in Hz.
    unit : str
        Unit of the values, such as ``"mV"``, or ``"a.u."`` where the source states none.
    channels : tuple of str
        Channel names in the order of the rows.
    """

    values: np.ndarray
    rate: float
    unit: str
    channels: tuple[str, ...]

    def __post_init__(self):
        if self.values.ndim != 2 or len(self.channels) != len(self.values):
            raise ValueError(
                f"a signal needs [channels, samples] and a name for each channel, "
                f"found shape {self.values.shape} and names {self.channels}"
            )
        if self.values.dtype.kind not in "fiu":
            raise ValueError(f"a signal needs real numbers, found {self.values.dtype}")
        if not 0 < self.rate < np.inf:
            raise ValueError(f"a signal needs a rate in Hz above 0, found {self.rate}")

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.values.shape[1] / self.rate


@dataclass(frozen=True)
class Recording:
    """Simultaneous signals of one subject, all starting at the same instant.

    Attributes
    ----------
    subject, name : str
        Who was recorded, and which recording it is (a subject may have several).
    signals : mapping of str to Signal
        By modality: ``ecg``, ``ppg``, ``eeg``, ``emg``.
    label : callable
        ``label(start, stop)`` is the class index of the window [start, stop) in seconds, or
        `UNLABELLED`.
    source : str
        Where it comes from, in words that figures and tables repeat: ``simulated``, ``BIDMC``, ...
    """

    subject: str
    name: str
    signals: Mapping[str, Signal]
    label: Callable[[float, float], int]
    source: str

    @property
    def seconds(self) -> float:
        """Duration that all modalities cover, in seconds."""
        return min(signal.seconds for signal in self.signals.values())


@dataclass(frozen=True)
class Windows:
    """Paired windows: the same stretch of time in every modality.

    Attributes
    ----------
    signals : mapping of str to ndarray
        By modality, float32 [n, channels, samples].
    rates, units, channels : mapping
        By modality: sampling rate in Hz, unit, channel names.
    labels : ndarray of int64, [n]
        Class index, or `UNLABELLED`.
    subjects, recordings : ndarray of str, [n]
    starts : ndarray of float64, [n]
        Start of the window in its recording, in seconds.
    classes : tuple of str
        Names of the classes, in the order of their indices.
    source : str
        Which data this is: ``simulated``, ``BIDMC``, ...
    """

    signals: Mapping[str, np.ndarray]
    rates: Mapping[str, float]
    units: Mapping[str, str]
    channels: Mapping[str, tuple[str, ...]]
    labels: np.ndarray
    subjects: np.ndarray
    recordings: np.ndarray
    starts: np.ndarray
    classes: tuple[str, ...]
    source: str = field(default="unknown")

    def __len__(self) -> int:
        return len(self.labels)

    def __post_init__(self):
        sizes = {name: len(x) for name, x in self.signals.items()}
        sizes |= {name: len(getattr(self, name)) for name in ("subjects", "recordings", "starts")}
        wrong = {name: size for name, size in sizes.items() if size != len(self.labels)}
        if wrong:
            raise ValueError(f"windows: expected {len(self.labels)} of each, found {wrong}")
        bad = sorted(set(np.unique(self.labels).tolist()) - {UNLABELLED, *range(len(self.classes))})
        if bad:
            raise ValueError(f"windows: expected labels of the classes {self.classes}, found {bad}")

    def select(self, keep: np.ndarray) -> "Windows":
        """The windows picked by a boolean mask or an index array, in that order."""
        return Windows(
            signals={name: x[keep] for name, x in self.signals.items()},
            rates=self.rates,
            units=self.units,
            channels=self.channels,
            labels=self.labels[keep],
            subjects=self.subjects[keep],
            recordings=self.recordings[keep],
            starts=self.starts[keep],
            classes=self.classes,
            source=self.source,
        )

    def seconds(self, modality: str) -> float:
        """Length of a window in seconds, from a modality's samples and rate."""
        return self.signals[modality].shape[2] / self.rates[modality]

    def save(self, path: Path | str) -> None:
        """Write one safetensors file: signals, labels, starts; the names as JSON in its header."""
        arrays = {f"signal.{name}": np.ascontiguousarray(x) for name, x in self.signals.items()}
        arrays |= {"labels": self.labels.astype(np.int64), "starts": self.starts.astype(np.float64)}
        header = {
            "rates": dict(self.rates),
            "units": dict(self.units),
            "channels": {name: list(names) for name, names in self.channels.items()},
            "subjects": self.subjects.tolist(),
            "recordings": self.recordings.tolist(),
            "classes": list(self.classes),
            "source": self.source,
        }
        with written_whole(path) as part:  # one metadata key, so that equal windows are equal bytes
            save_file(arrays, part, metadata={"windows": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str, modalities: Sequence[str] | None = None) -> "Windows":
        """Read windows back, all modalities or only those named.

        Raises
        ------
        FileNotFoundError
            The file is absent.
        ValueError
            The file is no file of windows, is cut short, or lacks a modality.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a file of windows, found nothing")
        try:
            with safe_open(path, "np") as file:
                header = json.loads((file.metadata() or {})["windows"])
                names = list(header["rates"]) if modalities is None else list(modalities)
                missing = sorted(set(names) - set(header["rates"]))
                if missing:
                    raise ValueError(
                        f"{path}: expected modalities {missing}, found {sorted(header['rates'])}"
                    )
                signals = {name: file.get_tensor(f"signal.{name}") for name in names}
                labels, starts = file.get_tensor("labels"), file.get_tensor("starts")
            content = {
                "rates": {name: header["rates"][name] for name in names},
                "units": {name: header["units"][name] for name in names},
                "channels": {name: tuple(header["channels"][name]) for name in names},
                "subjects": np.array(header["subjects"], dtype=str),
                "recordings": np.array(header["recordings"], dtype=str),
                "classes": tuple(header["classes"]),
                "source": header["source"],
            }
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path}: expected a whole file of windows, "
                f"found a foreign or truncated one ({reason})"
            ) from None
        try:
            return cls(signals=signals, labels=labels, starts=starts, **content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

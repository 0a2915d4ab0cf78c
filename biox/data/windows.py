"""Recordings and paired windows.

A reader turns raw files into `Recording` objects; `cut` turns a recording into `Windows`, the one
container of everything downstream; a split is one safetensors file of windows.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from biox.data.conditioning import VOLTS, condition
from biox.data.quality import bad_windows, checked

if TYPE_CHECKING:
    from biox.backbones.base import InputSpec

log = logging.getLogger(__name__)

UNLABELLED = -1
"""Class index of a window without a label: kept in the pair split, dropped elsewhere."""

Marked = tuple[float, float, str]
"""A stretch that no window may touch: start and stop in seconds, and why."""


@dataclass(frozen=True)
class Signal:
    """One modality of one recording.

    Attributes
    ----------
    values : ndarray, [channels, samples]
    rate : float
        Sampling rate in Hz.
    unit : str
        Such as ``"mV"``, or ``"a.u."`` where the source states none.
    channels : tuple of str
    """

    values: np.ndarray
    rate: float
    unit: str
    channels: tuple[str, ...]

    def __post_init__(self):
        assert self.values.ndim == 2 and len(self.channels) == len(self.values)
        assert self.values.dtype.kind in "fiu" and 0 < self.rate < np.inf

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
        In words that figures and tables repeat: ``simulated``, ``BIDMC``, ...
    marked : sequence of Marked
        Pauses and stretches that the source calls bad. Their samples are there, as NaN.
    """

    subject: str
    name: str
    signals: Mapping[str, Signal]
    label: Callable[[float, float], int]
    source: str
    marked: Sequence[Marked] = ()

    @property
    def seconds(self) -> float:
        """Duration that all modalities cover, in seconds."""
        return min(signal.seconds for signal in self.signals.values())

    def aligned(self, modalities: Iterable[str]) -> dict[str, Signal]:
        """The modalities asked for, cut to the length that all of them cover.

        ValueError if one is missing, or lengths differ by more than `MAX_MISMATCH`.
        """
        if missing := sorted(set(modalities) - set(self.signals)):
            found = sorted(self.signals)
            raise ValueError(f"{self.name}: expected modalities {missing}, found {found}")
        signals = {name: self.signals[name] for name in modalities}
        lengths = {name: signal.seconds for name, signal in signals.items()}
        shortest, longest = min(lengths.values()), max(lengths.values())
        described = ", ".join(f"{name} {length:.2f} s" for name, length in lengths.items())
        if longest - shortest > MAX_MISMATCH:
            expected = f"modalities of equal length within {MAX_MISMATCH:g} s"
            raise ValueError(f"{self.name}: expected {expected}, found {described}")
        if longest - shortest > 2 / min(signal.rate for signal in signals.values()):
            log.warning("%s: cut to %.2f s, the shortest of %s", self.name, shortest, described)
        return {
            name: replace(signal, values=signal.values[:, : round(shortest * signal.rate)])
            for name, signal in signals.items()
        }


MAX_MISMATCH = 1.0
"""Seconds by which modalities of one recording may differ in length."""


@dataclass(frozen=True)
class Windows:
    """Paired windows: the same stretch of time, conditioned for one or more backbones.

    Attributes
    ----------
    signals : mapping of str to ndarray
        By backbone key (such as ``ecg``), float32 [n, channels, samples].
    rates, units, channels : mapping
        By backbone key: sampling rate in Hz, unit, channel names.
    labels : ndarray of int64, [n]
        Index in `classes`, or `UNLABELLED`.
    subjects, recordings : ndarray of str, [n]
    starts : ndarray of float64, [n]
        Start of the window in its recording, in seconds.
    classes, source
        See `Recording`.
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
    source: str = "unknown"

    def __len__(self) -> int:
        return len(self.labels)

    def __post_init__(self):
        arrays = (*self.signals.values(), *(getattr(self, name) for name in _PER_WINDOW))
        assert {len(x) for x in arrays} == {len(self.labels)}
        assert set(self.labels.tolist()) <= {UNLABELLED, *range(len(self.classes))}

    def select(self, keep: np.ndarray) -> Windows:
        """The windows picked by a boolean mask or an index array, in that order."""
        rows = {name: getattr(self, name)[keep] for name in _PER_WINDOW}
        return replace(self, signals={name: x[keep] for name, x in self.signals.items()}, **rows)

    def seconds(self, key: str) -> float:
        """Length of a window in seconds, from a signal's samples and rate."""
        return self.signals[key].shape[2] / self.rates[key]

    def save(self, path: Path | str) -> None:
        """Write one safetensors file: signals, labels, starts; the names as JSON in its header."""
        arrays = {f"signal.{name}": np.ascontiguousarray(x) for name, x in self.signals.items()}
        arrays |= {"labels": self.labels.astype(np.int64), "starts": self.starts.astype(np.float64)}
        header = {name: dict(getattr(self, name)) for name in ("rates", "units", "channels")}
        header |= {"subjects": self.subjects.tolist(), "recordings": self.recordings.tolist()}
        header |= {"classes": self.classes, "source": self.source}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # one metadata key, so that equal windows are equal bytes
        save_file(arrays, path, metadata={"windows": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str, keys: Sequence[str] | None = None) -> Windows:
        """Read windows back, all signals or only those named.

        FileNotFoundError if the file is absent, ValueError if it is cut short, foreign, or lacks
        a signal.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a file of windows, found nothing")
        try:
            with safe_open(path, "np") as file:
                header = json.loads((file.metadata() or {})["windows"])
                known = header["rates"]
                names = list(known if keys is None else keys)
                signals = {
                    name: file.get_tensor(f"signal.{name}") for name in names if name in known
                }
                labels, starts = file.get_tensor("labels"), file.get_tensor("starts")
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            found = f"a foreign or truncated one ({error})"
            raise ValueError(f"{path}: expected a whole file of windows, found {found}") from None
        if len(signals) < len(names):
            raise ValueError(f"{path}: expected signals {sorted(names)}, found {sorted(known)}")
        return cls(
            signals=signals,
            rates={name: header["rates"][name] for name in names},
            units={name: header["units"][name] for name in names},
            channels={name: tuple(header["channels"][name]) for name in names},
            labels=labels,
            subjects=np.array(header["subjects"], dtype=str),
            recordings=np.array(header["recordings"], dtype=str),
            starts=starts,
            classes=tuple(header["classes"]),
            source=header["source"],
        )


_PER_WINDOW = ("labels", "subjects", "recordings", "starts")


def concatenate(parts: Sequence[Windows]) -> Windows:
    """Join windows of several recordings, alike in rates, units, channels, classes and source."""
    first = parts[0]
    for name in ("rates", "units", "channels", "classes", "source"):
        assert all(getattr(part, name) == getattr(first, name) for part in parts), name
    rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_WINDOW}
    signals = {key: np.concatenate([part.signals[key] for part in parts]) for key in first.signals}
    return replace(first, signals=signals, **rows)


# --- cutting --------------------------------------------------------------------------------------


def cut(
    recording: Recording,
    specs: Mapping[str, InputSpec],
    seconds: float,
    step: float,
    classes: Sequence[str],
    per_window: bool = False,
    keep_unlabelled: bool = True,
    resampling: str = "linear",
    z_scored: bool = True,
) -> Windows:
    """Cut a recording into paired windows, conditioned for each backbone.

    Every signal passes `biox.data.quality.checked` first. Windows that `bad_windows` objects to, or
    that touch a pause or a marked stretch, are dropped, with a logged sentence.

    Parameters
    ----------
    recording : Recording
    specs : mapping of str to InputSpec
        By backbone key; ``spec.modality`` names the signal that the backbone reads.
    seconds, step : float
        Length of a window, and the distance between the starts of consecutive windows.
    classes : sequence of str
        Names of the classes that `recording.label` numbers.
    per_window : bool
        Condition each window by itself (ISRUC in the released code) instead of the whole
        recording (WESAD, FOG).
    keep_unlabelled : bool
        Keep windows without a label; they serve as unlabelled pairs.
    resampling, z_scored
        See `biox.data.conditioning.condition`.

    Raises
    ------
    ValueError
        A modality is missing or cannot be conditioned (see `condition`), an amplitude is none of
        its modality where the model reads volts, lengths differ by more than a second, the
        recording is shorter than a window, or none of its windows is sound.
    """
    signals = recording.aligned(dict.fromkeys(spec.modality for spec in specs.values()))
    for spec in specs.values():
        assert abs(spec.seconds - seconds) < 1e-6
        rate = signals[spec.modality].rate
        if rate < spec.rate / 2:
            log.warning(
                "%s: %s is sampled at %g Hz, less than half the %g Hz of its backbone",
                recording.name, spec.modality, rate, spec.rate,
            )  # fmt: skip
    where = f"{recording.name} of {recording.subject}"
    for name, signal in signals.items():
        absolute = any(spec.modality == name and spec.unit in VOLTS for spec in specs.values())
        signals[name] = checked(signal, name, where, absolute)
    starts = _sound_starts(recording, signals, seconds, step)
    labels = np.array([recording.label(start, start + seconds) for start in starts], dtype=np.int64)
    if not keep_unlabelled:
        starts, labels = starts[labels != UNLABELLED], labels[labels != UNLABELLED]
    arrays = {}
    try:
        for key, spec in specs.items():
            signal = signals[spec.modality]
            if per_window:
                pieces = _slices(signal, starts, seconds)
                pieces = [condition(_without_gaps(piece), spec, resampling) for piece in pieces]
            else:
                whole = _without_gaps(signal)
                whole = condition(whole, spec, resampling, recording.marked, z_scored)
                pieces = _slices(whole, starts, seconds)
            values = [piece.values[:, : spec.samples].astype(np.float32) for piece in pieces]
            arrays[key] = np.array(values).reshape(len(starts), spec.channels, spec.samples)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Windows(
        signals=arrays,
        rates={key: spec.rate for key, spec in specs.items()},
        units={key: spec.unit for key, spec in specs.items()},
        channels={key: signals[spec.modality].channels for key, spec in specs.items()},
        labels=labels,
        subjects=np.full(len(starts), recording.subject),
        recordings=np.full(len(starts), recording.name),
        starts=starts,
        classes=tuple(classes),
        source=recording.source,
    )


def _sound_starts(
    recording: Recording, signals: Mapping[str, Signal], seconds: float, step: float
) -> np.ndarray:
    """Starts of the windows that fit into the recording and that no reason speaks against."""
    name, duration = recording.name, min(signal.seconds for signal in signals.values())
    n = int(np.floor((duration - seconds) / step + 1e-6)) + 1
    if n < 1:
        expected = f"at least one window of {seconds:g} s"
        raise ValueError(f"{name}: expected {expected}, found a recording of {duration:.2f} s")
    starts = np.arange(n) * step
    reasons = bad_windows(signals, starts, seconds, recording.marked)
    counts = Counter(reason for reason in reasons if reason)
    why = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    n_bad = counts.total()
    if n_bad == n:
        where = f"{name} of {recording.subject}"
        raise ValueError(f"{where}: expected sound signals, found all {n} windows bad ({why})")
    if n_bad:
        log.warning("%s: dropped %d of %d windows: %s", name, n_bad, n, why)
    return starts[[not reason for reason in reasons]]


def _slices(signal: Signal, starts: np.ndarray, seconds: float) -> list[Signal]:
    """Stretches of a signal; a part of a sample more, where rates are no integers."""
    n = int(np.ceil(seconds * signal.rate - 1e-6))
    # rounding may place the last window one sample too far
    firsts = [min(round(start * signal.rate), signal.values.shape[1] - n) for start in starts]
    return [replace(signal, values=signal.values[:, first : first + n]) for first in firsts]


def _without_gaps(signal: Signal) -> Signal:
    """Bridge values that are not finite by straight lines, so that filters see none of them.

    Windows that hold such values are dropped; this protects their neighbours. Values next to a
    gap are altered by less than the length of the filters (0.3 s for ECG, some 2 s for PPG).
    """
    finite = np.isfinite(signal.values)
    if finite.all():
        return signal
    values = signal.values.astype(np.float64)
    samples = np.arange(values.shape[1])
    for channel, known in zip(values, finite, strict=True):
        channel[~known] = (
            np.interp(samples[~known], samples[known], channel[known]) if known.any() else 0.0
        )
    return replace(signal, values=values)

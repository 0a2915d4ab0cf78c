"""Recordings to paired windows: align, judge, condition, slice, label."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from biox.data.conditioning import condition
from biox.data.quality import bad_windows
from biox.data.windows import UNLABELLED, Recording, Signal, Windows

if TYPE_CHECKING:
    from biox.backbones.base import InputSpec

log = logging.getLogger(__name__)

MAX_MISMATCH = 1.0
"""Seconds by which modalities of one recording may differ in length."""


def cut(
    recording: Recording,
    specs: Mapping[str, InputSpec],
    seconds: float,
    step: float,
    classes: Sequence[str],
    per_window: bool = False,
    keep_unlabelled: bool = True,
    resampling: str = "linear",
) -> Windows:
    """Cut a recording into paired windows, conditioned for one backbone per modality.

    Windows that `biox.data.quality.bad_windows` objects to are dropped, with a logged sentence.

    Parameters
    ----------
    recording : Recording
    specs : mapping of str to InputSpec
        By modality; modalities not named are left out.
    seconds, step : float
        Length of a window, and the distance between the starts of consecutive windows.
    classes : sequence of str
        Names of the classes that `recording.label` numbers.
    per_window : bool
        Condition each window by itself (ISRUC in the released code) instead of the whole
        recording (WESAD, FOG).
    keep_unlabelled : bool
        Keep windows without a label; they serve as unlabelled pairs.
    resampling : str
        See `biox.data.conditioning.condition`.

    Raises
    ------
    ValueError
        A modality is missing or cannot be conditioned (wrong channels, unknown unit), lengths
        differ by more than a second, the recording is shorter than a window, or none of its windows
        is sound. The message names recording and subject.
    """
    signals = aligned(recording, specs)
    _check_specs(recording, signals, specs, seconds)
    starts = _sound(recording, signals, _grid(recording, signals, seconds, step), seconds)
    labels = np.array([recording.label(start, start + seconds) for start in starts], dtype=np.int64)
    if not keep_unlabelled:
        starts, labels = starts[labels != UNLABELLED], labels[labels != UNLABELLED]
    slicer = _slices_conditioned_alone if per_window else _slices_conditioned_whole
    try:
        cut_signals = {
            name: slicer(signals[name], spec, starts, resampling) for name, spec in specs.items()
        }
    except ValueError as error:
        raise ValueError(f"{recording.name} of {recording.subject}: {error}") from None
    return Windows(
        signals=cut_signals,
        rates={name: spec.rate for name, spec in specs.items()},
        units={name: spec.unit for name, spec in specs.items()},
        channels={name: signals[name].channels for name in specs},
        labels=labels,
        subjects=np.full(len(starts), recording.subject),
        recordings=np.full(len(starts), recording.name),
        starts=starts,
        classes=tuple(classes),
        source=recording.source,
    )


def concatenate(parts: Sequence[Windows]) -> Windows:
    """Join windows of several recordings.

    Raises
    ------
    ValueError
        Nothing to join, or parts that differ in modalities, rates, units, channels, classes or
        source.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("concatenate: expected at least one set of windows, found none")
    first = parts[0]
    for part in parts[1:]:
        for name in ("rates", "units", "channels", "classes", "source"):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(
                    f"concatenate: expected {name} {getattr(first, name)} throughout, "
                    f"found {getattr(part, name)} in {part.recordings[:1].tolist()}"
                )

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return replace(
        first,
        signals={m: np.concatenate([part.signals[m] for part in parts]) for m in first.signals},
        **{name: join(name) for name in ("labels", "subjects", "recordings", "starts")},
    )


def aligned(recording: Recording, modalities: Iterable[str]) -> dict[str, Signal]:
    """The modalities asked for, cut to the length that all of them cover.

    Raises
    ------
    ValueError
        A modality is missing, or lengths differ by more than `MAX_MISMATCH`.
    """
    modalities = list(modalities)
    missing = sorted(set(modalities) - set(recording.signals))
    if missing:
        raise ValueError(
            f"{recording.name}: expected modalities {missing}, found {sorted(recording.signals)}"
        )
    signals = {name: recording.signals[name] for name in modalities}
    lengths = {name: signal.seconds for name, signal in signals.items()}
    shortest, longest = min(lengths.values()), max(lengths.values())
    described = ", ".join(f"{name} {length:.2f} s" for name, length in lengths.items())
    if longest - shortest > MAX_MISMATCH:
        raise ValueError(
            f"{recording.name}: expected modalities of equal length within {MAX_MISMATCH:g} s, "
            f"found {described}"
        )
    if longest - shortest > 2 / min(signal.rate for signal in signals.values()):
        log.warning("%s: cut to %.2f s, the shortest of %s", recording.name, shortest, described)
    return {
        name: replace(signal, values=signal.values[:, : round(shortest * signal.rate)])
        for name, signal in signals.items()
    }


def _check_specs(
    recording: Recording,
    signals: Mapping[str, Signal],
    specs: Mapping[str, InputSpec],
    seconds: float,
) -> None:
    """Refuse windows that a backbone does not take; say where a signal is slow for it."""
    for modality, spec in specs.items():
        if abs(spec.seconds - seconds) > 1e-6:
            raise ValueError(
                f"{modality}: expected windows of {spec.seconds:g} s for its backbone, "
                f"found {seconds:g} s"
            )
        if signals[modality].rate < spec.rate / 2:
            log.warning(
                "%s: %s is sampled at %g Hz, less than half the %g Hz of its backbone",
                recording.name, modality, signals[modality].rate, spec.rate,
            )  # fmt: skip


def _grid(
    recording: Recording, signals: Mapping[str, Signal], seconds: float, step: float
) -> np.ndarray:
    """Starts 0, step, 2 step, ... of all windows that fit, in seconds."""
    if not 0 < step < np.inf:
        raise ValueError(f"step: expected a positive number of seconds, found {step}")
    duration = min(signal.seconds for signal in signals.values())
    n = int(np.floor((duration - seconds) / step + 1e-6)) + 1
    if n < 1:
        raise ValueError(
            f"{recording.name}: expected at least one window of {seconds:g} s, "
            f"found a recording of {duration:.2f} s"
        )
    return np.arange(n) * step


def _sound(
    recording: Recording, signals: Mapping[str, Signal], starts: np.ndarray, seconds: float
) -> np.ndarray:
    """The starts of sound windows; the others are counted in one logged sentence."""
    reasons = bad_windows(signals, starts, seconds)
    counts = Counter(reason for reason in reasons if reason)
    why = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
    n_bad = sum(counts.values())
    if n_bad == len(starts):
        raise ValueError(
            f"{recording.name} of {recording.subject}: expected sound signals, "
            f"found all {n_bad} windows bad ({why})"
        )
    if n_bad:
        log.warning("%s: dropped %d of %d windows: %s", recording.name, n_bad, len(starts), why)
    return starts[[not reason for reason in reasons]]


def _slices_conditioned_whole(
    signal: Signal, spec: InputSpec, starts: np.ndarray, resampling: str
) -> np.ndarray:
    values = condition(_without_gaps(signal), spec, resampling).values
    windows = np.empty((len(starts), len(values), spec.samples), dtype=np.float32)
    for i, start in enumerate(starts):
        # rounding may place the last window one sample too far
        first = min(round(start * spec.rate), values.shape[1] - spec.samples)
        windows[i] = values[:, first : first + spec.samples]
    return windows


def _slices_conditioned_alone(
    signal: Signal, spec: InputSpec, starts: np.ndarray, resampling: str
) -> np.ndarray:
    windows = np.empty((len(starts), len(signal.values), spec.samples), dtype=np.float32)
    raw_samples = round(spec.seconds * signal.rate)
    for i, start in enumerate(starts):
        first = min(round(start * signal.rate), signal.values.shape[1] - raw_samples)
        raw = replace(signal, values=signal.values[:, first : first + raw_samples])
        windows[i] = condition(_without_gaps(raw), spec, resampling).values
    return windows


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

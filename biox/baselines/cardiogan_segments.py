"""Windows of one modality <-> short segments in [-1, 1], as CardioGAN's networks take them.

From the paper (Sarkar & Etemad 2021): segments of 4 s at 128 Hz, each min-max scaled to [-1, 1].
Ours: the signals are biox's conditioned windows, not raw recordings filtered at 3-45 Hz (ECG) and
1-8 Hz (PPG); segments do not overlap by a tenth, as windows already overlap by far more.
"""

import numpy as np

from biox.baselines.cardiogan_settings import CardioGAN
from biox.data.conditioning import polyphase


def starts(samples: int, size: int) -> list[int]:
    """First samples of the segments that cover a window.

    They follow one another; where the window is no multiple, the last one ends with it and
    overlaps the one before.

    Raises
    ------
    ValueError
        The window is shorter than a segment.
    """
    if samples < size:
        raise ValueError(
            f"CardioGAN: expected windows of at least one segment, {size} samples, found {samples}"
        )
    first = list(range(0, samples - size + 1, size))
    return first if first[-1] + size == samples else [*first, samples - size]


def cut(x: np.ndarray, size: int) -> np.ndarray:
    """Cut windows [n, samples] into segments [n, segments, size]."""
    return np.stack([x[:, i : i + size] for i in starts(x.shape[1], size)], axis=1)


def stitch(segments: np.ndarray, samples: int) -> np.ndarray:
    """Undo `cut`: [n, segments, size] -> [n, samples]. Where two overlap, the later one counts."""
    n, _, size = segments.shape
    x = np.empty((n, samples), segments.dtype)
    for k, i in enumerate(starts(samples, size)):
        x[:, i : i + size] = segments[:, k]
    return x


def scaled(segments: np.ndarray) -> np.ndarray:
    """Min-max scale along the last axis to [-1, 1]; a constant becomes zeros."""
    low = segments.min(axis=-1, keepdims=True)
    span = segments.max(axis=-1, keepdims=True) - low
    return np.where(span > 0, 2 * (segments - low) / np.where(span > 0, span, 1) - 1, 0.0)


def to_segments(x: np.ndarray, rate: float, settings: CardioGAN) -> np.ndarray:
    """Windows [n, 1, samples] at `rate` -> scaled segments [n, segments, size], float32."""
    resampled = polyphase(np.asarray(x[:, 0], np.float64), rate, settings.rate)
    return scaled(cut(resampled, settings.samples)).astype(np.float32)


def to_windows(
    segments: np.ndarray, seconds: float, rate: float, settings: CardioGAN
) -> np.ndarray:
    """Segments [n, segments, size] -> windows [n, 1, samples at `rate`], float32.

    `seconds` is the length of the windows; their scale stays that of the segments.
    """
    resampled = int(np.floor(seconds * settings.rate + 1e-9))
    whole = stitch(segments.astype(np.float64), resampled)
    x = polyphase(whole, settings.rate, rate)
    samples = round(seconds * rate)
    # Rounding twice may lose the last sample: repeat it.
    x = np.pad(x, ((0, 0), (0, max(0, samples - x.shape[1]))), mode="edge")[:, :samples]
    return x[:, None].astype(np.float32)

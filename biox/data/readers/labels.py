"""Labels of windows: functions of [start, stop) in seconds, made from what a source annotates.

Each returns a class index, or `UNLABELLED` where the window is mixed, not covered or undecided.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from biox.data.windows import UNLABELLED

Label = Callable[[float, float], int]

TOLERANCE = 1e-9
"""Slack for the rounding of times in seconds; far below any sampling interval."""


def constant(label: int) -> Label:
    """The same class for every window."""
    return lambda start, stop: label


def majority(
    starts: Sequence[float], stops: Sequence[float], labels: Sequence[int], purity: float
) -> Label:
    """The class that covers at least the share `purity`, in (0.5, 1], of a window.

    `starts` and `stops` are segments in seconds, in order of time and without overlap; `labels`
    their class indices. `UNLABELLED` segments count against every class.
    """
    starts, stops = np.asarray(starts, dtype=float), np.asarray(stops, dtype=float)
    labels = np.asarray(labels, dtype=int)
    assert 0.5 < purity <= 1
    assert np.all(stops >= starts) and np.all(starts[1:] >= stops[:-1] - TOLERANCE)

    def label(start: float, stop: float) -> int:
        first = np.searchsorted(stops, start, side="right")
        last = np.searchsorted(starts, stop, side="left")
        covered = np.minimum(stops[first:last], stop) - np.maximum(starts[first:last], start)
        inside = labels[first:last]
        for kind in np.unique(inside[inside != UNLABELLED]):
            if covered[inside == kind].sum() >= purity * (stop - start) - TOLERANCE:
                return int(kind)
        return UNLABELLED

    return label


def sample_track(
    track: np.ndarray, rate: float, classes: Mapping[int, int], purity: float
) -> Label:
    """The class of a window from a track [samples] that holds one code per sample, at `rate` Hz.

    `classes` has the class index of each code; codes that it does not name leave their samples
    unlabelled. For `purity` see `majority`.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(track)) + 1, [len(track)]]).astype(int)
    kinds = [classes.get(int(track[edge]), UNLABELLED) for edge in edges[:-1]]
    return majority(edges[:-1] / rate, edges[1:] / rate, kinds, purity)


def mean_above(
    times: np.ndarray, values: np.ndarray, threshold: float, margin: float = 0.0
) -> Label:
    """Class 1 where the mean of a slow measurement in the window exceeds `threshold`, else 0.

    Windows whose mean lies closer to the threshold than `margin`, or that hold no measurement,
    are unlabelled. `times` are in seconds, `values`, `threshold` and `margin` in the same unit.
    """
    times, values = np.asarray(times, dtype=float), np.asarray(values, dtype=float)

    def label(start: float, stop: float) -> int:
        inside = values[(times >= start) & (times < stop)]
        inside = inside[np.isfinite(inside)]
        if not len(inside) or abs(inside.mean() - threshold) < margin:
            return UNLABELLED
        return int(inside.mean() > threshold)

    return label

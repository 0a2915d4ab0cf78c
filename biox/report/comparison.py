"""The bridge against every other method on the same test people: differences with intervals.

People are resampled, not windows, and both methods see the same people in every resample: what
makes a person easy or hard for both then cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd

from biox.report.metrics import METRICS, collapsed, scores_from
from biox.report.predictions import METHODS, Results, Runs, probability_columns

N_RESAMPLES = 5000
OURS = "BioX-Bridge"
SCORE = "balanced_accuracy"
BETTER, WORSE, NOT_TOLD_APART = "better", "worse", "not told apart"
FAILED, ONE_SUBJECT = "failed", "one subject"


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; NaN ends if there is only one subject."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What a difference says: better or worse only if its interval leaves out zero."""
        if np.isnan(self.low):
            return ONE_SUBJECT
        return BETTER if self.low > 0 else WORSE if self.high < 0 else NOT_TOLD_APART


def counts_by_subject(frames: Sequence[pd.DataFrame], subjects: Sequence[str]) -> np.ndarray:
    """Count windows by run, subject, true and predicted class: [runs, subjects, K, K].

    Raises
    ------
    ValueError
        No window of some class: its recall is undefined.
    """
    k = len(probability_columns(frames[0]))
    counts = []
    for frame in frames:
        person = pd.Categorical(frame["subject"], categories=subjects).codes.astype(np.int64)
        predicted = frame[probability_columns(frame)].to_numpy().argmax(axis=1)
        cell = (person * k + frame["label"].to_numpy()) * k + predicted
        counts.append(np.bincount(cell, minlength=len(subjects) * k * k))
    counts = np.array(counts).reshape(len(frames), len(subjects), k, k)
    missing = np.flatnonzero(counts[0].sum(axis=(0, 2)) == 0).tolist()
    if missing:
        raise ValueError(f"scores: expected windows of every class, found none of class {missing}")
    return counts


def resamples(counts: np.ndarray, n: int = N_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw subjects with replacement: how often each is in a resample [n, subjects].

    A resample in which a class has no window is drawn again. The draws depend on the labels alone,
    so they are the same for all methods with the same test windows.
    """
    rng, subjects = np.random.default_rng(seed), counts.shape[1]
    support = counts[0].sum(axis=2)
    kept = np.empty((0, subjects))
    while len(kept) < n:
        drawn = rng.multinomial(subjects, np.full(subjects, 1 / subjects), 1000)
        kept = np.concatenate([kept, drawn[(drawn @ support > 0).all(axis=1)]])
    return kept[:n]


def resampled_scores(counts: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over runs of each score, in each resample [n]."""
    runs, subjects, k, _ = counts.shape
    by_subject = counts.swapaxes(0, 1).reshape(subjects, -1)
    values = scores_from((drawn @ by_subject).reshape(len(drawn), runs, k, k))
    return {name: value.mean(axis=1) for name, value in values.items()}


def score_intervals(runs: Runs, n_resamples: int = N_RESAMPLES) -> dict[str, Interval]:
    """Each score's mean over runs, with its interval over test subjects."""
    counts = counts_by_subject(runs.frames, subjects_of(runs))
    whole = resampled_scores(counts, np.ones((1, counts.shape[1])))
    if counts.shape[1] == 1:
        return {name: Interval(float(whole[name][0]), np.nan, np.nan) for name in METRICS}
    values = resampled_scores(counts, resamples(counts, n_resamples))
    return {name: _interval(float(whole[name][0]), values[name]) for name in METRICS}


def paired_difference(
    ours: Runs, theirs: Runs | None, metric: str = SCORE, n_resamples: int = N_RESAMPLES
) -> Interval:
    """Difference ours - theirs of a score's mean over runs, the same subjects drawn for both.

    Parameters
    ----------
    ours, theirs : Runs
        Of the same test windows. None: uniform random answers, whose expected balanced accuracy
        is 1 / K on any subjects.
    """
    subjects = subjects_of(ours)
    mine = counts_by_subject(ours.frames, subjects)
    if theirs is None:
        if metric != SCORE:
            raise ValueError(f"metric: expected {SCORE} against chance, found {metric!r}")

        def other(drawn: np.ndarray) -> np.ndarray:
            return np.full(len(drawn), 1 / mine.shape[2])
    else:
        counts = counts_by_subject(theirs.frames, subjects)
        if not np.array_equal(counts[0].sum(axis=2), mine[0].sum(axis=2)):
            raise ValueError("comparison: expected two methods on the same test windows")

        def other(drawn: np.ndarray) -> np.ndarray:
            return resampled_scores(counts, drawn)[metric]

    def difference(drawn: np.ndarray) -> np.ndarray:
        return resampled_scores(mine, drawn)[metric] - other(drawn)

    value = float(difference(np.ones((1, len(subjects))))[0])
    if len(subjects) == 1:
        return Interval(value, np.nan, np.nan)
    return _interval(value, difference(resamples(mine, n_resamples)))


def subjects_of(runs: Runs) -> list[str]:
    """Test subjects, sorted."""
    return sorted(runs.frames[0]["subject"].unique())


def ahead(ours: Runs, theirs: Runs | None) -> int:
    """In how many subjects our mean recall, over the classes a subject shows, is the higher one."""
    subjects = subjects_of(ours)

    def recall(runs: Runs) -> np.ndarray:
        counts = counts_by_subject(runs.frames, subjects)
        support = counts.sum(axis=3)
        hits = np.diagonal(counts, axis1=2, axis2=3) / np.maximum(support, 1)
        return (hits.sum(axis=2) / (support > 0).sum(axis=2)).mean(axis=0)

    chance = 1 / len(probability_columns(ours.frames[0]))
    return int((recall(ours) > (chance if theirs is None else recall(theirs)) + 1e-12).sum())


def paired_table(collected: Mapping[str, Results]) -> pd.DataFrame:
    """The bridge against each other method: one row a direction and method, in per cent."""
    rows = []
    for direction, results in collected.items():
        ours = results.methods[OURS]
        for method in METHODS:
            if method == OURS or method not in ("Random", *results.methods):
                continue
            theirs = None if method == "Random" else results.methods[method]
            row = {"direction": direction, "method": method}
            rows.append(row | _against(ours, theirs))
    return pd.DataFrame(rows)


def _against(ours: Runs, theirs: Runs | None) -> dict[str, object]:
    """Numbers of one comparison; NaN where the other method failed in every run."""
    n_parameters = np.nan if theirs is None else theirs.n_parameters
    row = {
        "bridge": 100 * _mean(ours),
        "other": np.nan,
        "difference": np.nan,
        "interval low": np.nan,
        "interval high": np.nan,
        "the bridge is": FAILED,
        "test subjects": len(subjects_of(ours)),
        "bridge ahead in": np.nan,
        "collapsed runs of the bridge": _collapsed(ours),
        "collapsed runs": "" if theirs is None else _collapsed(theirs),
        "fewer parameters (%)": 100 * (1 - ours.n_parameters / n_parameters),
    }
    if theirs is not None and not theirs.frames:
        return row
    found = paired_difference(ours, theirs)
    return row | {
        "other": 100 * (_mean(ours) - found.value),
        "difference": 100 * found.value,
        "interval low": 100 * found.low,
        "interval high": 100 * found.high,
        "the bridge is": found.verdict,
        "bridge ahead in": ahead(ours, theirs),
    }


def readable_paired(paired: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a person reads it."""

    def of(row: pd.Series, text: str) -> str:
        return "" if row["the bridge is"] == FAILED else text.format(**row)

    def interval(row: pd.Series) -> str:
        if np.isnan(row["interval low"]):
            return ""
        return f"[{row['interval low']:+.1f}, {row['interval high']:+.1f}]"

    def fewer(value: float) -> str:
        if value < -100:
            return f"{1 - value / 100:,.0f} times as many"
        return "" if np.isnan(value) else f"{value:.1f}"

    return pd.DataFrame(
        {
            "direction": paired["direction"],
            "against": paired["method"],
            "bridge": paired["bridge"].map("{:.1f}".format),
            "other": paired.apply(of, axis=1, text="{other:.1f}"),
            "difference": paired.apply(of, axis=1, text="{difference:+.1f}"),
            "95 % interval": paired.apply(interval, axis=1),
            "the bridge is": paired["the bridge is"],
            "ahead in subjects": paired.apply(
                of, axis=1, text="{bridge ahead in:.0f} of {test subjects}"
            ),
            "collapsed runs, bridge": paired["collapsed runs of the bridge"],
            "collapsed runs, other": paired["collapsed runs"],
            "fewer parameters (%)": paired["fewer parameters (%)"].map(fewer),
        }
    )


def paired_note(paired: pd.DataFrame) -> str:
    """What the columns mean, and how little the fewest test subjects can tell."""
    n = int(paired["test subjects"].min())
    note = (
        "Balanced accuracy in per cent, mean over seeds. Difference: bridge minus other; interval: "
        f"95 %, {N_RESAMPLES} resamples of test subjects, the same for both. Better or worse: the "
        "interval leaves out zero. Each comparison stands for itself, with no correction for their "
        f"number. The fewest test subjects are {n}, of which there are {comb(2 * n - 1, n)} "
        "different resamples."
    )
    if 1 < n and n**-n > 0.025:  # a resample of one subject alone is inside the interval's end
        note += (
            " There the interval leaves out zero only if all subjects agree, which happens to "
            f"methods without any difference in {100 * 2 / 2**n:.0f} % of cases, not in 5 %."
        )
    return note


def _mean(runs: Runs) -> float:
    counts = counts_by_subject(runs.frames, subjects_of(runs)).sum(axis=1)
    return float(scores_from(counts)[SCORE].mean())


def _collapsed(runs: Runs) -> str:
    n = len(runs.frames)
    return f"{sum(collapsed(run) for run in runs.frames)} of {n}" if n else ""


def _interval(value: float, values: np.ndarray, level: float = 0.95) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(value, float(low), float(high))

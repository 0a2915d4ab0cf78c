"""Table and verdict of the leak audits, from saved predictions."""

import numpy as np
import pandas as pd
from scipy import stats

from biox.audits import SHUFFLED
from biox.report.metrics import scores

SCORE = "balanced accuracy (%)"


def inflation(predictions: pd.DataFrame, dealt: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """How much better shuffled windows look than each protocol with a smaller leak, in points.

    Parameters
    ----------
    predictions, dealt : DataFrame
        From `biox.audits.deal_out`.

    Returns
    -------
    DataFrame
        One row an audit, head and protocol: mean score over deals and its standard deviation, the
        share of test windows that overlap a train window, and, but for shuffled windows themselves,
        the inflation with Welch's interval of the difference of two means over deals. Deals share
        the same recordings: the interval says how sure the mean over deals is, not what other
        people would give.
    """
    overlaps, rows = dealt.groupby(["audit", "protocol"], sort=False)["overlap"].mean(), []
    scored: dict[tuple[str, str, str], np.ndarray] = {}
    for (audit, method), part in predictions.groupby(["direction", "method"], sort=False):
        head, protocol = method.split(", ", 1)
        part = part.dropna(axis="columns", how="all")  # classes of other data sets
        deals = [100 * scores(run)["balanced_accuracy"] for _, run in part.groupby("seed")]
        scored[audit, head, protocol] = np.array(deals)
    for (audit, head, protocol), values in scored.items():
        row = {"audit": audit, "head": head, "protocol": protocol, "deals": len(values)}
        row["overlapping (%)"] = 100 * overlaps[audit, protocol]
        row |= {SCORE: values.mean(), "sd over deals": values.std(ddof=1)}
        leaky = scored[audit, head, SHUFFLED]
        if protocol != SHUFFLED:
            row["inflation"] = leaky.mean() - values.mean()
            ends = (row["inflation"],) * 2  # where no deal differs from another
            if np.ptp(leaky) + np.ptp(values) > 0:
                ends = stats.ttest_ind(leaky, values, equal_var=False).confidence_interval(level)
            row["inflation low"], row["inflation high"] = ends
        rows.append(row)
    return pd.DataFrame(rows)


def readable_inflation(table: pd.DataFrame) -> pd.DataFrame:
    """The table as a person reads it."""

    def difference(row: pd.Series) -> str:
        ends = f"[{row['inflation low']:+.1f}, {row['inflation high']:+.1f}]"
        return "" if np.isnan(row["inflation"]) else f"{row['inflation']:+.1f} {ends}"

    shown = table[["audit", "head", "protocol"]].copy()
    shown["overlapping test windows (%)"] = table["overlapping (%)"].map("{:.1f}".format)
    shown[SCORE] = [
        f"{m:.1f} ± {s:.1f}" for m, s in zip(table[SCORE], table["sd over deals"], strict=True)
    ]
    shown["shuffling adds [95 %]"] = table.apply(difference, axis=1)
    return shown


def verdict_inflation(table: pd.DataFrame) -> str:
    """State in sentences where shuffled windows inflate a score."""
    lines = []
    for (audit, head), rows in table[table["inflation"].notna()].groupby(
        ["audit", "head"], sort=False
    ):
        parts = [
            f"{row['inflation']:+.1f} points against *{row['protocol']}* "
            f"[{row['inflation low']:+.1f}, {row['inflation high']:+.1f}]"
            + ("" if row["inflation low"] > 0 else " (**not** shown to inflate)")
            for _, row in rows.iterrows()
        ]
        lines.append(f"- **{audit}**, {head}: shuffling windows adds {'; '.join(parts)}.")
    return "\n".join(lines)

"""What the comparison says, in sentences computed from it."""

import pandas as pd

from biox.report.comparison import BETTER, FAILED, NOT_TOLD_APART, ONE_SUBJECT, WORSE
from biox.report.predictions import METHODS

SAID = {
    BETTER: "beats {}",
    WORSE: "loses to {}",
    NOT_TOLD_APART: "is not told apart from {}",
    ONE_SUBJECT: "has but one test subject to be compared on with {}",
}


def verdict(paired: pd.DataFrame) -> str:
    """State for each direction what the bridge beats, loses to, and is not told apart from."""
    lines = []
    for direction, rows in paired.groupby("direction", sort=False):
        said = []
        for kind, words in SAID.items():
            chosen = rows[rows["the bridge is"] == kind]
            names = [f"{r['method']} ({r['difference']:+.1f})" for _, r in chosen.iterrows()]
            if names:
                said.append(words.format(listed(names)))
        failed = rows.loc[rows["the bridge is"] == FAILED, "method"].tolist()
        n = int(rows["test subjects"].iloc[0])
        line = f"- **{direction}** ({n} test subject{'s' * (n > 1)}): the bridge "
        line += f"{'; it '.join(said)}."
        if failed:
            line += f" {listed(failed)} failed to train."
        lost, _, of = rows["collapsed runs of the bridge"].iloc[0].partition(" of ")
        if int(lost):
            line += f" {lost} of its {of} runs collapsed to a single answer."
        lines.append(line)
    return "\n".join(lines)


def against(paired: pd.DataFrame) -> str:
    """Count for each method in how many directions the bridge is better, worse, or neither."""
    lines = []
    for method in (name for name in METHODS if name in set(paired["method"])):
        rows = paired[paired["method"] == method]
        counts = rows["the bridge is"].value_counts()
        n = len(rows)
        line = (
            f"- {method}: better in {counts.get(BETTER, 0)} of {n} direction{'s' * (n > 1)}, "
            f"worse in {counts.get(WORSE, 0)}, not told apart in {counts.get(NOT_TOLD_APART, 0)}"
        )
        for kind, words in ((FAILED, "failed to train in"), (ONE_SUBJECT, "one test subject in")):
            line += f", {words} {counts[kind]}" if kind in counts else ""
        shares = rows["fewer parameters (%)"].dropna()
        if len(shares):
            line += f"; {fewer(shares)}"
        lines.append(f"{line}.")
    return "The bridge against each method:\n\n" + "\n".join(lines)


def fewer(shares: pd.Series) -> str:
    """How many fewer parameters the bridge trains, by direction; negative shares are more."""
    low, high = shares.min(), shares.max()
    if low >= 0:
        return f"the bridge trains {between(low, high)} % fewer parameters"
    most, least = 1 - low / 100, 1 - high / 100  # times as many
    return f"the bridge trains {between(least, most, 2)} times as many parameters"


def between(low: float, high: float, digits: int = 1) -> str:
    """``1.0 to 2.0``, or one number if both ends read the same."""
    ends = [f"{end:,.{digits}f}" for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

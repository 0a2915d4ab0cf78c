"""Rows of the benchmark, their targets, and the table and figure made of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from biox.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AT_LEAST, AT_MOST = "at least", "at most"

TARGETS = {
    ("online / cached", None): (AT_LEAST, 2.0),
    ("online / cached", "geometric mean"): (AT_LEAST, 15.0),
    ("online / cached", "fog-eeg2emg"): (AT_LEAST, 300.0),
    ("online / cached, fastest", "geometric mean"): (AT_LEAST, 15.0),
    ("cached / bare tail", None): (AT_MOST, 1.25),
    ("once a layer / one pass", None): (AT_LEAST, 8.0),
    ("pooled / all tokens", "all"): (AT_MOST, 1.0),
    ("more memory, most / fewest windows", None): (AT_MOST, 5.0),
    ("time grows with windows to the power", None): (AT_MOST, 1.1),
    ("together / one after another", "deep"): (AT_MOST, 0.7),
    ("together / one after another", "short"): (AT_MOST, 0.3),
}
"""(measure, case) -> limit, in the unit of the measure; case None: every other case."""

COLUMNS = ["part", "case", "measure", "value", "unit"]


def row(part: str, case: str, measure: str, value: float, unit: str) -> dict:
    """One measured number; times in s, ratios in x."""
    return dict(zip(COLUMNS, (part, case, measure, value, unit), strict=True))


def rows_of(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table with fixed columns."""
    return pd.DataFrame(rows, columns=COLUMNS)


def judged(measured: pd.DataFrame, size: str = "published") -> pd.DataFrame:
    """Put each number's target beside it, and whether it is met: ``pass``, ``miss`` or nothing.

    Targets are for the published sizes; no other size is judged.
    """
    if size != "published":
        return measured.assign(target="", verdict="")
    targets, verdicts = [], []
    for _, found in measured.iterrows():
        limit = TARGETS.get((found["measure"], found["case"])) or TARGETS.get(
            (found["measure"], None)
        )
        if limit is None:
            targets.append("")
            verdicts.append("")
            continue
        side, bound = limit
        met = found["value"] >= bound if side == AT_LEAST else found["value"] <= bound
        targets.append(f"{side} {bound:g}")
        verdicts.append("pass" if met else "miss")
    return measured.assign(target=targets, verdict=verdicts)


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that have a target."""
    return table[table["target"] != ""].set_index(["measure", "case"]).drop(columns="part")


def wide(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Numbers of one part: a row a case, a column a measure, in the order they were taken."""
    chosen = table[table["part"] == part]
    found = chosen.pivot(index="case", columns="measure", values="value")
    return found.loc[chosen["case"].unique(), chosen["measure"].unique()]


def save(table: pd.DataFrame, path: Path | str, note: str) -> None:
    """Write the table as csv, and as md beside it with a note under it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        table.to_csv(part, index=False, float_format="%.5g")
    with written_whole(path.with_suffix(".md")) as part:
        text = table.to_markdown(index=False, floatfmt=".4g")
        part.write_text(f"{text}\n\n{note}\n")


def plot(table: pd.DataFrame) -> "Figure":
    """Draw the seconds of a step by direction, and memory and time as windows grow."""
    import matplotlib.pyplot as plt  # here, so that measuring processes stay small

    from biox.report.figures import colour

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(2, 1))
    shown = wide(table, "step")[["online", "cached", "bare tail"]].dropna()
    shown.plot.bar(ax=left, rot=20, width=0.75)
    left.set_yscale("log")  # log=True would start the bars of some columns at 1 second
    left.set(xlabel="", ylabel="seconds of a training step", title="one step, batch of windows")
    left.set_ylim(top=6 * shown.to_numpy().max())  # room for the legend
    left.legend(frameon=False, ncols=3, loc="upper right")
    growth = table[table["part"] == "growth"]
    curves = {
        "epoch of": ("time", colour("ppg")),
        "peak memory": ("peak memory", colour("ecg")),
    }
    for start, (label, tint) in curves.items():
        found = growth[growth["measure"].str.startswith(start)]
        n = found["measure"].str.extract(r"(\d+) windows", expand=False).astype(int)
        right.plot(n, found["value"] / found["value"].iloc[0], "o-", label=label, color=tint)
    right.plot(n, n / n.iloc[0], ":", color="grey", label="in proportion")
    right.set(xscale="log", yscale="log", xlabel="windows", ylabel="relative to the fewest")
    right.set_xticks(n, [str(count) for count in n])
    right.set_yticks(n / n.iloc[0], [f"{times:g}" for times in n / n.iloc[0]])
    right.minorticks_off()
    right.set_title("training on the cache")
    right.legend(frameon=False)
    return figure

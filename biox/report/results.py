"""What a direction leaves behind: bridges, predictions of every window, then scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from biox.activations import Activations
from biox.files import write_json, written_whole
from biox.report.metrics import collapsed, confusion, prediction_frame, scores
from biox.report.summary import training_curves
from biox.training import SeedResult


def direction_predictions(
    direction: str, test: Activations, results: Sequence[SeedResult]
) -> pd.DataFrame:
    """Predictions of the teacher (Oracle) and of every seed's bridge, one row a window."""
    oracle = test.logits.softmax(dim=1).numpy()
    frames = [
        prediction_frame(test, oracle, method="Oracle", direction=direction, seed=results[0].seed)
    ]
    frames += [
        prediction_frame(
            test, r.probabilities, method="BioX-Bridge", direction=direction, seed=r.seed
        )
        for r in results
    ]
    return pd.concat(frames, ignore_index=True)


def direction_scores(
    predictions: pd.DataFrame,
    results: Sequence[SeedResult],
    source: str,
    models: str,
    lr: float,
) -> dict:
    """Mean scores by method, and what the bridge is, as plain numbers."""
    content = {}
    for method, rows in predictions.groupby("method"):
        runs = [part for _, part in rows.groupby("seed")]
        values = pd.DataFrame([scores(part) for part in runs])
        content[method] = values.mean().to_dict() | {
            "collapsed_runs": sum(collapsed(part) for part in runs)
        }
    bridge = results[0].model
    content |= {
        "source": source,
        "models": models,
        "n_parameters": bridge.bridge.n_parameters,
        "m": bridge.m,
        "l": bridge.l,
        "lr": lr,
        "cosine_on_test": float(np.mean([result.cosine for result in results])),
        "status": "complete",
    }
    return content


def save_direction(
    folder: Path | str, results: Sequence[SeedResult], predictions: pd.DataFrame, scores: dict
) -> None:
    """Write bridges, curves and predictions, and ``scores.json`` last: with it the run is whole."""
    folder = Path(folder)
    (folder / "scores.json").unlink(missing_ok=True)
    for result in results:
        result.model.save(folder / f"seed{result.seed}")
    tables = {"predictions.csv": predictions, "curves.csv": training_curves(results)}
    for name, table in tables.items():
        with written_whole(folder / name) as part:
            table.to_csv(part, index=False, float_format="%.8g")
    write_json(folder / "scores.json", scores)


def confusions(predictions: pd.DataFrame) -> dict[str, np.ndarray]:
    """Confusion matrices by method, summed over seeds."""
    return {method: confusion(rows) for method, rows in predictions.groupby("method", sort=False)}


def verdict(rows: pd.DataFrame) -> str:
    """State in sentences what the numbers of one direction say, whichever way they went."""
    by_method = rows.set_index("method")
    bridge, oracle, chance = (
        by_method.loc[name, "balanced_accuracy"] for name in ("BioX-Bridge", "Oracle", "Random")
    )
    sd = by_method.loc["BioX-Bridge", "balanced_accuracy sd"]
    low = by_method.loc["BioX-Bridge", "interval low"]
    lines = [
        f"The bridge reaches {bridge:.1f} % balanced accuracy (sd {sd:.1f} over seeds); chance is "
        f"{chance:.1f} %, the teacher on its own modality reaches {oracle:.1f} %.",
        "One seed gives no standard deviation."
        if np.isnan(sd)
        else "It is above chance by more than two standard deviations over seeds."
        if bridge - chance > 2 * sd
        else "It is **not** above chance by more than two standard deviations over seeds.",
        "A single test subject gives no interval."
        if np.isnan(low)
        else "Its interval over test subjects excludes chance."
        if low > chance
        else "Its interval over test subjects does **not** exclude chance.",
    ]
    n, of = by_method.loc["BioX-Bridge", "collapsed runs"].split(" of ")
    if int(n):
        lines.append(
            f"**Collapsed**: {n} of {of} runs give every test window the same class; what they "
            "score is no accuracy of a classifier."
        )
    if by_method.loc["Oracle", "collapsed runs"].startswith("1"):
        lines.append("**The teacher itself has collapsed**: it gives every window one class.")
    return "\n".join(f"- {line}" for line in lines)


def verdict_table1(table: pd.DataFrame) -> str:
    """The same, one line a direction."""
    lines = []
    for direction, rows in table.groupby("direction", sort=False):
        by_method = rows.set_index("method")
        bridge = by_method.loc["BioX-Bridge"]
        chance = by_method.loc["Random", "balanced_accuracy"]
        gain, sd = bridge["balanced_accuracy"] - chance, bridge["balanced_accuracy sd"]
        gap = by_method.loc["Oracle", "balanced_accuracy"] - bridge["balanced_accuracy"]
        interval = "excludes" if bridge["interval low"] > chance else "includes"
        if np.isnan(bridge["interval low"]):
            interval = "of one subject says nothing of"
        lines.append(
            f"- **{direction}**: bridge {gain:+.1f} points against chance (sd {sd:.1f} over seeds; "
            f"interval {interval} chance), "
            f"{-gap:+.1f} against the teacher on its own modality; "
            f"collapsed runs: {bridge['collapsed runs']}."
        )
    return "\n".join(lines)

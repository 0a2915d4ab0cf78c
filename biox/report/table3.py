"""Table 3: swapped models beside each other, from saved predictions; and their published sizes."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from biox.backbones import build
from biox.bench import measure
from biox.files import read_json, written_whole
from biox.report.metrics import METRICS, collapsed, scores, subject_interval
from biox.report.models import without_memory
from biox.table3_settings import Swap

BRIDGE, KD = "BioX-Bridge", "KD"
NOTE = (
    "Per cent on test windows. Mean ± standard deviation over seeds; interval: 95 %, resampling "
    "test subjects. Seconds: of one training on one thread; once: of the pass over the windows and "
    "the choice of m and l, for all bridges of a model. Windows: in an epoch. `reported`: the "
    "paper's numbers, on original recordings with published models."
)
PAPER = {"old": ("papagei", "small", 11), "n_prototypes": 50}
"""Of the released script of WESAD PPG -> ECG: PaPaGei-S is written before layer 11."""

PUBLISHED_RANKS = {"hubert_ecg": 32, "ecg_fm": 8, "plain_cnn": 32}
"""HuBERT-ECG: released script. ECG-FM: not stated; 8 gives the 0.11M parameters of Table 3."""


# --- our table ------------------------------------------------------------------------------------


def predictions_of(folder: Path | str, direction: str) -> pd.DataFrame:
    """Read one model's predictions.

    Raises
    ------
    FileNotFoundError
        They are absent.
    ValueError
        They are of another direction, or not of the two methods.
    """
    path = Path(folder) / "predictions.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected predictions of a swapped model, found nothing")
    frame = pd.read_csv(path, dtype={"subject": str, "recording": str})
    for column, expected in (("direction", [direction]), ("method", [BRIDGE, KD])):
        found = sorted(frame[column].unique())
        if found != expected:
            raise ValueError(f"{path}: expected predictions of {expected}, found {found}")
    return frame


def table3(folders: Mapping[str, Path], direction: str) -> pd.DataFrame:
    """One row a model and method, recomputed from predictions, the reported numbers beside.

    Parameters
    ----------
    folders : mapping
        What the table calls a model -> its folder.
    direction : str

    Raises
    ------
    FileNotFoundError, ValueError
        As in `predictions_of`.
    """
    rows = []
    for key, folder in folders.items():
        predictions = predictions_of(folder, direction)
        about = read_json(Path(folder) / "model.json")
        trainings = read_json(Path(folder) / "methods.json")
        once = about["pass_seconds"] + about["choice_seconds"]
        for method in (BRIDGE, KD):
            runs = predictions[predictions["method"] == method]
            rows.append(
                {"model": key}
                | {name: about[name] for name in ("layers", "width", "tokens", "parameters")}
                | {"m": about["m"], "l": about["l"], "method": method}
                | scored([part for _, part in runs.groupby("seed", sort=True)])
                | training_facts(trainings["methods"][method])
                | {"seconds once": once if method == BRIDGE else 0.0}
                | {"peak memory (MB)": about["peak_memory"][method] / 1e6}
                | {"windows": about["windows"][method], "data": trainings["source"]}
                | reported(key, method)
            )
    return pd.DataFrame(rows)


def scored(runs: Sequence[pd.DataFrame]) -> dict[str, object]:
    """Mean, standard deviation and interval of runs, in per cent; NaN where a run failed."""
    row: dict[str, object] = {"runs": len(runs), "chance": 100 / len(runs[0].filter(like="p ").T)}
    if any(run.filter(like="p ").isna().any(axis=None) for run in runs):
        empty = [*METRICS, *(f"{m} sd" for m in METRICS), "interval low", "interval high"]
        return row | dict.fromkeys(empty, np.nan) | {"collapsed runs": 0}
    values = pd.DataFrame([scores(run) for run in runs])
    for metric in METRICS:
        row[metric] = 100 * values[metric].mean()
        row[f"{metric} sd"] = 100 * values[metric].std(ddof=1)
    low, high = subject_interval(runs)
    row |= {"interval low": 100 * low, "interval high": 100 * high}
    return row | {"collapsed runs": sum(collapsed(run) for run in runs)}


def training_facts(trainings: Sequence[Mapping]) -> dict[str, object]:
    """Trained parameters, mean seconds of a training, and why one failed."""
    seconds = [t["seconds"] for t in trainings if t["seconds"] is not None]
    return {
        "trained parameters": max(t["n_parameters"] for t in trainings),
        "seconds": np.mean(seconds) if seconds else np.nan,
        "failed": next((t["failed"] for t in trainings if t["failed"]), ""),
    }


def reported(key: str, method: str) -> dict[str, float]:
    """What the paper reports for a model and method; NaN where it reports nothing."""
    content = yaml.safe_load(files("biox.report").joinpath("reported.yaml").read_text())["table3"]
    numbers = content.get(key, {}).get(method, 4 * [np.nan])
    names = [*(f"{metric} reported" for metric in METRICS), "parameters reported (M)"]
    return dict(zip(names, numbers, strict=True))


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Table 3 as a person reads it."""

    def score(row: pd.Series, metric: str) -> str:
        if row["failed"]:
            return "failed"
        if row["collapsed runs"] == row["runs"]:
            return "collapsed"
        sd = row[f"{metric} sd"]
        return f"{row[metric]:.1f}" + ("" if np.isnan(sd) else f" ± {sd:.1f}")

    def interval(row: pd.Series) -> str:
        shown = not row["failed"] and not np.isnan(row["interval low"])
        return f"[{row['interval low']:.1f}, {row['interval high']:.1f}]" if shown else ""

    def published(row: pd.Series) -> str:
        values = [row[f"{metric} reported"] for metric in METRICS]
        if np.isnan(values[0]):
            return ""
        trained = f", {row['parameters reported (M)']:g}M"
        return " / ".join(f"{value:.2f}" for value in values) + trained

    bridge = table["method"] == BRIDGE
    shown = {
        "model": table["model"],
        "layers x width": table["layers"].astype(str) + " x " + table["width"].astype(str),
        "parameters": table["parameters"].map("{:,}".format),
        "m, l": (table["m"].astype(str) + ", " + table["l"].astype(str)).where(bridge, ""),
        "method": table["method"],
        "trained parameters": table["trained parameters"].map("{:,}".format),
        "balanced accuracy": table.apply(score, axis=1, metric="balanced_accuracy"),
        "95 % interval": table.apply(interval, axis=1),
        "macro-F1": table.apply(score, axis=1, metric="macro_f1"),
        "weighted F1": table.apply(score, axis=1, metric="weighted_f1"),
        "seconds": table["seconds"].map("{:.1f}".format),
        "once": table["seconds once"].map("{:.1f}".format).where(bridge, ""),
        "peak memory (MB)": table["peak memory (MB)"].map("{:.0f}".format),
        "windows": table["windows"],
        "collapsed runs": table["collapsed runs"].astype(str) + " of " + table["runs"].astype(str),
        "data": table["data"],
        "reported: BAcc / macro-F1 / weighted F1": table.apply(published, axis=1),
    }
    return pd.DataFrame(shown)


def save_table(table: pd.DataFrame, path: Path | str, note: str = NOTE) -> None:
    """Write all columns as csv, and the readable table as md beside it with a note."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        table.to_csv(part, index=False, float_format="%.6g")
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text(readable(table).to_markdown(index=False) + f"\n\n{note}\n")


def plot(table: pd.DataFrame) -> Figure:
    """Balanced accuracy of bridge and distillation over trained parameters, a line a model."""
    figure, axis = plt.subplots(figsize=(7, 3.4))
    markers = {BRIDGE: "o", KD: "s"}
    for i, (key, rows) in enumerate(
        table.dropna(subset="balanced_accuracy").groupby("model", sort=False)
    ):
        x, y = rows["trained parameters"], rows["balanced_accuracy"]
        axis.plot(x, y, color=f"C{i}", lw=1, alpha=0.5, label=key)
        for (_, row), marker in zip(
            rows.iterrows(), (markers[m] for m in rows["method"]), strict=True
        ):
            at, value = row["trained parameters"], row["balanced_accuracy"]
            error = [[value - row["interval low"]], [row["interval high"] - value]]
            axis.errorbar(at, value, error, fmt=marker, color=f"C{i}", capsize=2, lw=1)
    for method, marker in markers.items():
        axis.plot([], [], marker, color="grey", label=method)
    axis.axhline(table["chance"].iloc[0], color="grey", lw=1, ls=":")
    axis.set(xscale="log", xlabel="trained parameters", ylabel="balanced accuracy (%)")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# --- published sizes ------------------------------------------------------------------------------


def published_sizes(models: Mapping[str, Swap], seconds: float, batch: int = 4) -> pd.DataFrame:
    """What the models cost at their published sizes, with random weights.

    Parameters
    ----------
    models : mapping
        What the table calls a model -> what is built here, and which size it stands for.
    seconds : float
        Length of the direction's windows, for token shapes and bridges.
    batch : int
        Windows of a forward pass, each of the model's default length.

    Returns
    -------
    DataFrame
        One row a model: parameters, tokens x features behind the stem and of the last layer (both
        without memory), trained parameters of a bridge into PaPaGei-S at the released place with
        the paper's rank, and one measured forward pass.
    """
    name, size, l = PAPER["old"]
    n_tokens, features = build(name, size, seconds=seconds).token_shape(l)
    rows = {}
    for key, swap in models.items():
        default, here = without_memory(swap.name, swap.published), shaped(swap, seconds)
        states = [tuple(h.shape[1:]) for h in here]
        rank, n_p = PUBLISHED_RANKS[swap.name], PAPER["n_prototypes"]
        width = states[-1][1]
        cost = measure(swap.name, swap.published, batch)
        rows[key] = {
            "size": f"{swap.name} {swap.published}",
            "parameters": sum(p.numel() for p in default.parameters()),
            "layers": default.n_layers,
            f"tokens x features, {seconds:g} s": "{} x {}".format(*states[0]),
            "last layer": "{} x {}".format(*states[-1]),
            "rank": rank,
            "bridge's parameters": width * rank + rank * n_tokens * n_p + n_p * features,
            "window (s)": default.input_spec.seconds,
            f"forward (s), batch of {batch}": cost.seconds,
            "peak memory (GB)": cost.memory / 1e9,
        }
    return pd.DataFrame(rows).T.rename_axis("model")


def save_sizes(sizes: pd.DataFrame, path: Path | str) -> None:
    """Write the published sizes as csv, and as md beside it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        sizes.to_csv(part)
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text(sizes.to_markdown() + "\n\nRandom weights; one forward pass on a CPU.\n")


def shaped(swap: Swap, seconds: float) -> list[Tensor]:
    """Hidden states of the published size for one window of so many seconds: shapes, no values."""
    backbone = without_memory(swap.name, swap.published).for_seconds(seconds)
    spec = backbone.input_spec
    return backbone.hidden_states(torch.zeros(1, spec.channels, spec.samples, device="meta"))


# --- verdict --------------------------------------------------------------------------------------


def verdict(table: pd.DataFrame) -> str:
    """Say whether larger HuBERT-ECG transfers better, and bridge against KD model by model."""
    by = table.set_index(["model", "method"])
    hubert = [key for key in table["model"].unique() if key.startswith("HuBERT-ECG")]
    lines = [larger(by, hubert)] if len(hubert) > 1 else []
    for key in table["model"].unique():
        bridge, kd = by.loc[(key, BRIDGE)], by.loc[(key, KD)]
        wrong = [m for m, row in ((BRIDGE, bridge), (KD, kd)) if row["failed"]]
        if wrong:
            why = by.loc[(key, wrong[0]), "failed"]
            lines.append(f"**{key}**: {' and '.join(wrong)} **failed** ({why}).")
            continue
        gain = bridge["balanced_accuracy"] - kd["balanced_accuracy"]
        apart = bridge["interval low"] > kd["interval high"] or (
            kd["interval low"] > bridge["interval high"]
        )
        share = bridge["trained parameters"] / kd["trained parameters"]
        lines.append(
            f"**{key}**: bridge {bridge['balanced_accuracy']:.1f} %, KD "
            f"{kd['balanced_accuracy']:.1f} % ({gain:+.1f} points; the intervals "
            f"{'do not overlap' if apart else 'overlap'}), with {share:.1%} of the trained "
            f"parameters; a bridge took {bridge['seconds']:.1f} s over {bridge['windows']} windows "
            f"an epoch, a student {kd['seconds']:.1f} s over {kd['windows']}."
        )
        lines += [
            f"**{key}**: {row['collapsed runs']} of {row['runs']} {method} runs **collapsed**."
            for method, row in ((BRIDGE, bridge), (KD, kd))
            if row["collapsed runs"]
        ]
    return "\n".join(f"- {line}" for line in lines)


def larger(by: pd.DataFrame, models: Sequence[str]) -> str:
    """Say whether bridges transfer better from each larger HuBERT-ECG than from the one before."""
    ordered = sorted(models, key=lambda key: by.loc[(key, BRIDGE), "parameters"])
    values = [by.loc[(key, BRIDGE), "balanced_accuracy"] for key in ordered]
    numbers = ", ".join(f"{value:.1f} %" for value in values)
    if np.isnan(values).any():
        return f"Bridges from ever larger HuBERT-ECG: {numbers}; one **failed**, so no comparison."
    if (np.diff(values) > 0).all():
        return f"Larger HuBERT-ECG transfers better here, as the paper reports: {numbers}."
    return f"Larger HuBERT-ECG does **not** always transfer better here: {numbers}."

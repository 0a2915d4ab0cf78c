"""Results of every method in one format, scores, and intervals that resample subjects.

A run is one method trained with one seed. Its predictions are saved, one row a window, so that
every score shown anywhere can be computed again. Windows of one subject are not independent,
subjects are: intervals draw subjects with replacement, never windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

METHODS = ("Random", "Random (sampled)", "CardioGAN", "KD", "KD-Contrast", "LoRA-KD")
METHODS += ("Probe transfer", "BioX-Bridge", "Bridge (ours)", "Computed bridge", "Oracle")
"""In the order of Table 1; not in the paper: LoRA-KD, probe transfer, our and computed bridge."""

METRICS = ("balanced_accuracy", "macro_f1", "weighted_f1")
SCORE = METRICS[0]
RUN = ["folder", "method", "seed"]
N_RESAMPLES = 5000
Frames = Sequence[pd.DataFrame]  # predictions of the same test windows, one frame a run
_STAGES = {"bridges": "bridge@{}", "baselines": "baselines@{}", "sweep": "sweep@{}"}


@dataclass
class Result:
    """One run of a method, evaluated on the test windows.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    seed : int
    probabilities : ndarray, [n_test, classes]
        NaN if and only if the run failed.
    n_parameters : float
        Trained parameters; NaN where nothing is trained for the transfer.
    lr : float
        Learning rate.
    history : DataFrame
        One row an epoch: ``epoch train val agreement``; epoch 0 is before training.
    best_epoch : int
        The epoch that was kept.
    failed : str
        Why training failed; empty if it did not.
    val : ndarray, [n_val, classes], optional
        Probabilities of the val windows, which `save_results` can keep, too.
    """

    method: str
    seed: int
    probabilities: np.ndarray
    n_parameters: float
    lr: float = float("nan")
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    best_epoch: int = 0
    failed: str = ""
    val: np.ndarray | None = None


def prediction_frame(windows, probabilities: np.ndarray, **columns: object) -> pd.DataFrame:
    """Tabulate predictions, one row a window.

    Parameters
    ----------
    windows : Windows or Activations
        With ``subjects recordings starts labels classes``.
    probabilities : ndarray, [n, classes]
    **columns
        More columns, such as ``method`` and ``seed``. They come first, then ``subject recording
        start label`` and one column ``p CLASS`` a class.
    """
    names = ("subject", "recording", "start", "label")
    frame = pd.DataFrame({name: np.asarray(getattr(windows, f"{name}s")) for name in names})
    for i, name in enumerate(windows.classes):
        frame[f"p {name}"] = probabilities[:, i]
    return frame.assign(**columns)[[*columns, *frame.columns]]


def save_results(
    folder: Path | str, results: Sequence[Result], windows, direction: str, val=None, **columns
) -> None:
    """Write ``predictions.csv``, ``curves.csv``, ``runs.csv`` and, with `val`, ``val.csv``.

    Parameters
    ----------
    folder : path
    results : sequence of Result
    windows : Windows or Activations
        The test windows.
    direction : str
    val : Windows or Activations, optional
    **columns
        More columns of ``runs.csv``: one value for all runs, or a list with one a run.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    predictions, curves, on_val = [], [], []
    for r in results:
        broken = not np.isfinite(r.probabilities).all()
        assert broken == bool(r.failed), f"{r.method}, seed {r.seed}: NaN if and only if it failed"
        about = {"method": r.method, "direction": direction, "seed": r.seed}
        predictions.append(prediction_frame(windows, r.probabilities, **about))
        if val is not None and r.val is not None:
            on_val.append(prediction_frame(val, r.val, **about))
        curves.append(r.history.assign(method=r.method, seed=r.seed, best=r.best_epoch))
    names = ("method", "seed", "n_parameters", "lr", "best_epoch", "failed")
    runs = pd.DataFrame([{name: getattr(r, name) for name in names} for r in results])
    runs.insert(1, "direction", direction)
    runs.insert(2, "source", windows.source)
    order = ["method", "seed", "epoch", "train", "val", "agreement", "best"]
    drawn = [curve for curve in curves if len(curve)]
    tables = {"predictions": pd.concat(predictions), "runs": runs.assign(**columns)}
    tables["curves"] = pd.concat(drawn or curves).reindex(columns=order)
    tables |= {"val": pd.concat(on_val)} if on_val else {}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.8g")


def read_results(
    folders: Path | str | Iterable[Path | str],
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read what `save_results` wrote into one or more folders.

    Returns ``predictions``, ``curves`` and ``runs``, the files' rows one below another. A column
    ``folder`` says where a row is from: ``folder method seed`` (`RUN`) identify a run.

    Raises
    ------
    FileNotFoundError
        Folders without results; the message says which command makes them.
    ValueError
        A folder has the classes of another one in another order.
    """
    folders = [Path(f) for f in ([folders] if isinstance(folders, str | Path) else folders)]
    missing = [folder for folder in folders if not (folder / "runs.csv").is_file()]
    if missing:
        stages = [_STAGES.get(f.parent.name, f.parent.name).format(f.name) for f in missing]
        raise FileNotFoundError(
            f"expected results, found none in {', '.join(map(str, missing))}; "
            f"make them with: dvc repro {' '.join(dict.fromkeys(stages))}"
        )
    found, text = [], {"subject": str, "recording": str, "failed": str}
    for name in ("predictions", "curves", "runs"):
        parts = [
            pd.read_csv(f / f"{name}.csv", dtype=text).fillna({"failed": ""}).assign(folder=str(f))
            for f in folders
        ]
        found.append(pd.concat([p for p in parts if len(p)] or parts[:1], ignore_index=True))
    predictions, curves, runs = found
    for folder in predictions["folder"].unique():
        own = pd.read_csv(Path(folder) / "predictions.csv", nrows=0).columns
        if [c for c in predictions if c in own] != list(own):
            raise ValueError(f"{folder}: expected classes in the same order as in other folders")
    directions = runs.groupby("folder")["direction"].first()
    return predictions, curves.assign(direction=curves["folder"].map(directions)), runs


def run_frames(predictions: pd.DataFrame, runs: pd.DataFrame | None = None) -> list[pd.DataFrame]:
    """Split predictions into one frame a run, by seed; runs that failed (NaN) are left out.

    With `runs`, as from `read_results`, only the predictions of these.
    """
    if runs is not None:
        predictions = predictions.merge(runs[RUN], on=RUN)
    keys = [key for key in RUN if key in predictions]
    frames = [frame for _, frame in predictions.groupby(keys, sort=True)]
    return [f for f in frames if f.filter(regex="^p ").notna().any(axis=None)]


def probabilities_of(frame: pd.DataFrame) -> np.ndarray:
    """Class probabilities [n, classes] of a run; classes of other data sets are left out.

    Raises
    ------
    ValueError
        Some are not finite (a failed run has no score), or a label's class has none.
    """
    p = frame.filter(regex="^p ").dropna(axis=1, how="all").to_numpy()
    broken, labels = int((~np.isfinite(p)).any(axis=1).sum()), frame["label"]
    if broken or p.size == 0 or not labels.between(0, p.shape[1] - 1).all():
        expected = "probabilities of every class for every window"
        found = f"{broken} of {len(p)}, {p.shape[1]} classes, labels {sorted(set(labels))}"
        raise ValueError(f"predictions: expected {expected}, found NaN in {found}")
    return p


def _counts(frames: Frames) -> np.ndarray:
    """Count windows by run, subject (sorted), true and predicted class: [runs, subjects, K, K]."""
    subjects, counts = sorted(frames[0]["subject"].unique()), []
    for frame in frames:
        p = probabilities_of(frame)
        k, row = p.shape[1], pd.Categorical(frame["subject"], subjects).codes.astype(np.int64)
        cell = (row * k + frame["label"].to_numpy()) * k + p.argmax(axis=1)
        counts.append(np.bincount(cell, minlength=len(subjects) * k * k))
    counts = np.array(counts).reshape(len(frames), len(subjects), k, k)
    absent = np.flatnonzero(counts[0].sum(axis=(0, 2)) == 0).tolist()
    if absent:
        names = [name[2:] for name in frames[0].filter(regex="^p ").dropna(axis=1, how="all")]
        found = f"{absent} ({', '.join(names[k] for k in absent)})"
        raise ValueError(f"scores: expected windows of every class, found none of class {found}")
    return counts


def _scores_from(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores from confusion matrices [..., K, K]; a class never predicted has precision 0."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    recall, weighted = hits / np.maximum(support, 1), f1 * support
    values = recall.mean(-1), f1.mean(-1), weighted.sum(-1) / support.sum(-1)
    return dict(zip(METRICS, values, strict=True))


def confusion(frame: pd.DataFrame) -> np.ndarray:
    """Count windows by true (row) and predicted (column) class: [classes, classes]."""
    return _counts([frame]).sum(axis=(0, 1))


def scores(frame: pd.DataFrame) -> dict[str, float]:
    """Balanced accuracy, macro-F1 and weighted F1 of a run, as scikit-learn defines them.

    Raises
    ------
    ValueError
        A class has no window, so that its recall is undefined; or probabilities are NaN.
    """
    return {name: float(value) for name, value in _scores_from(confusion(frame)).items()}


def auroc(frame: pd.DataFrame) -> float:
    """Area under the ROC curve: of class 1 of two, else the mean of each against the rest."""
    from sklearn.metrics import roc_auc_score

    p, labels = probabilities_of(frame), frame["label"].to_numpy()
    confusion(frame)  # every class has windows
    classes = [1] if p.shape[1] == 2 else range(p.shape[1])
    return float(np.mean([roc_auc_score(labels == k, p[:, k]) for k in classes]))


def collapsed(frame: pd.DataFrame) -> bool:
    """Whether every window is predicted to be of the same class."""
    return len(np.unique(probabilities_of(frame).argmax(axis=1))) == 1


def never_predicted(frame: pd.DataFrame) -> list[str]:
    """Names of the classes that a run predicts for no window."""
    names = frame.filter(regex="^p ").dropna(axis=1, how="all").columns.str.removeprefix("p ")
    return names.delete(np.unique(probabilities_of(frame).argmax(axis=1))).to_list()


def random_scores(labels: np.ndarray, n_classes: int) -> dict[str, float]:
    """Expected scores of uniform random predictions (the Random row of Table 1).

    With a class's share s and K classes, precision is s and recall 1/K, so F1 = 2 s / (K s + 1).
    """
    share = np.bincount(labels, minlength=n_classes) / len(labels)
    f1 = 2 * share / (n_classes * share + 1)
    values = 1 / n_classes, float(f1.mean()), float((share * f1).sum())
    return dict(zip(METRICS, values, strict=True))


def _resamples(counts: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw subjects with replacement: how often each is in a resample, [n, subjects].

    A resample in which a class has no window is drawn again. The draws depend on the labels alone,
    so they are the same for all methods with the same test windows.
    """
    rng, subjects = np.random.default_rng(seed), counts.shape[1]
    support, drawn = counts[0].sum(axis=2), np.empty((0, subjects))
    while len(drawn) < n:
        more = rng.multinomial(subjects, np.full(subjects, 1 / subjects), 1000)
        drawn = np.concatenate([drawn, more[(more @ support > 0).all(axis=1)]])
    return drawn[:n]


def _resampled(counts: np.ndarray, drawn: np.ndarray, metric: str) -> np.ndarray:
    """Mean over runs of a score in each resample: [n]."""
    runs, subjects, k, _ = counts.shape
    summed = drawn @ counts.swapaxes(0, 1).reshape(subjects, -1)
    return _scores_from(summed.reshape(len(drawn), runs, k, k))[metric].mean(axis=1)


def _ends(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - 0.95) / 2
    return tuple(np.quantile(values, [tail, 1 - tail]).tolist())


def resampled_scores(
    frames: Frames, metric: str = SCORE, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Mean over runs in each resample of subjects [n_resamples], the same ones for all methods."""
    counts = _counts(frames)
    return _resampled(counts, _resamples(counts, n_resamples, seed), metric)


def subject_interval(
    frames: Frames, metric: str = SCORE, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a score's mean over runs, from resampling test subjects.

    Every run sees the same draws. Both ends are NaN if there is only one subject.
    """
    if frames[0]["subject"].nunique() == 1:
        return np.nan, np.nan
    return _ends(resampled_scores(frames, metric, n_resamples, seed))


class Interval(NamedTuple):
    """A number with the ends of its 95 % interval; NaN ends if there is only one subject."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` only where the interval of a difference excludes zero."""
        if np.isnan(self.low):
            return "one subject"
        clear = "better" if self.low > 0 else "worse"
        return clear if self.low > 0 or self.high < 0 else "no significant difference"


def paired_difference(
    frames_a: Frames,
    frames_b: Frames | None,
    metric: str = SCORE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Difference a - b of a score's mean over runs, the same subjects drawn for both.

    `frames_b` None stands for uniform random predictions, whose expected balanced accuracy is 1 / K
    on any subjects.

    Raises
    ------
    ValueError
        The two are not of the same test windows.
    """
    a, b = _counts(frames_a), None if frames_b is None else _counts(frames_b)
    names = [set(frames[0]["subject"]) for frames in (frames_a, frames_b or frames_a)]
    windows = [counts[0].sum(axis=2) for counts in (a, a if b is None else b)]
    if names[0] != names[1] or not np.array_equal(*windows):
        raise ValueError("paired_difference: expected two methods on the same test windows")
    assert b is not None or metric == SCORE, metric

    def difference(drawn: np.ndarray) -> np.ndarray:
        other = 1 / a.shape[2] if b is None else _resampled(b, drawn, metric)
        return _resampled(a, drawn, metric) - other

    value = float(difference(np.ones((1, a.shape[1])))[0])
    if a.shape[1] == 1:
        return Interval(value, np.nan, np.nan)
    return Interval(value, *_ends(difference(_resamples(a, n_resamples, seed))))


def subject_scores(frames: Frames) -> pd.Series:
    """Each subject's recall, mean over the classes that the subject has and over runs."""
    counts = _counts(frames)
    support = counts.sum(axis=3)
    recall = np.diagonal(counts, axis1=2, axis2=3) / np.maximum(support, 1)
    values = (recall.sum(axis=2) / (support > 0).sum(axis=2)).mean(axis=0)
    return pd.Series(values, index=sorted(frames[0]["subject"].unique()))


def reliability(frame: pd.DataFrame, n_bins: int = 15, adaptive: bool = False) -> pd.DataFrame:
    """Bins of a reliability diagram of the predicted class (Guo et al. 2017, section 2).

    One row a bin: edges ``low high``, number of ``windows``, mean ``confidence`` and ``accuracy``
    (NaN in an empty bin). A confidence on an edge belongs to the bin below. Adaptive bins have
    equally many windows instead of equal width; equal edges are merged.
    """
    p = probabilities_of(frame)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == frame["label"].to_numpy()
    edges = np.linspace(0, 1, n_bins + 1)
    edges = np.unique(np.quantile(confidence, edges)) if adaptive else edges
    n, rows = max(1, len(edges) - 1), np.searchsorted(edges[1:-1], confidence)
    bins = pd.DataFrame({"low": edges[:n], "high": edges[-n:]})
    bins["windows"] = np.bincount(rows, minlength=n)
    for name, values in (("confidence", confidence), ("accuracy", correct.astype(float))):
        bins[name] = np.bincount(rows, values, n) / bins["windows"].replace(0, np.nan)
    return bins


def score_row(frames: Frames) -> dict[str, float]:
    """Scores of a method's runs in per cent: mean, sd over runs, 95 % interval over subjects.

    ``interval low`` and ``interval high`` are of balanced accuracy; those of the F1 scores begin
    with the metric's name. AUROC has none. Empty if there are no runs.
    """
    if not frames:
        return {}
    by_run, row = pd.DataFrame([scores(f) | {"auroc": auroc(f)} for f in frames]), {}
    for name in by_run:
        row |= {name: 100 * by_run[name].mean(), f"{name} sd": 100 * by_run[name].std(ddof=1)}
        if name in METRICS:
            of = "interval" if name == SCORE else f"{name} interval"
            low, high = subject_interval(frames, name)
            row |= {f"{of} low": 100 * low, f"{of} high": 100 * high}
    row |= {"chance": 100 / probabilities_of(frames[0]).shape[1]}
    row |= {"collapsed runs": sum(collapsed(f) for f in frames)}
    return row | {"test subjects": frames[0]["subject"].nunique(), "test windows": len(frames[0])}


def score_table(
    predictions: pd.DataFrame, runs: pd.DataFrame, by: Sequence[str] = ("direction", "method")
) -> pd.DataFrame:
    """Tabulate scores in per cent, one row a group of runs.

    Parameters
    ----------
    predictions, runs : DataFrame
        As from `read_results`.
    by : sequence of str
        Columns of `runs` whose values make a group, such as ``["rank"]``. Groups come in the order
        in which they first occur; their other columns are those of `score_row` (NaN where all runs
        failed), with ``n_parameters``, ``runs`` and ``failed runs``.
    """
    frames, rows = dict(iter(predictions.groupby(RUN, sort=False))), []
    for group, part in runs.groupby(list(by), sort=False, dropna=False):
        worked = part[part["failed"] == ""].sort_values("seed")[RUN]
        row = dict(zip(by, group, strict=True)) | {"n_parameters": part["n_parameters"].max()}
        row |= {"runs": len(part), "failed runs": len(part) - len(worked)}
        rows.append(row | score_row([frames[run] for run in worked.itertuples(index=False)]))
    return pd.DataFrame(rows)


def _text(value: object, decimals: int) -> str:
    """Write a number with thousands separators; nothing for NaN."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, int | float | np.number):
        return str(value)
    return "" if np.isnan(value) else f"{value:,.{decimals}f}"


def format_table(table: pd.DataFrame, decimals: int = 1) -> pd.DataFrame:
    """Format numbers for readers: ``61.2 ± 1.3``, ``[50.1, 70.4]``, ``51,424``, ``1 of 3``.

    A column and that with `` sd`` behind its name become one, so do ``... low`` and ``... high``.
    Failed and collapsed runs are counted out of ``runs``; where all runs failed or collapsed, that
    word stands instead of the scores. Left out: columns without any value, intervals of the F1
    scores, chance, and the size of the test set.
    """
    if table.empty:
        return table
    words = pd.Series("", table.index)
    for word in ("collapsed", "failed"):
        if f"{word} runs" in table:
            words[table[f"{word} runs"] == table["runs"]] = word
    shown = {}
    out = ["runs", "chance", "test subjects", "test windows"]
    for name in table.columns.drop(out, errors="ignore"):
        values, sd = table[name], table.get(f"{name} sd")
        counts = pd.api.types.is_numeric_dtype(values) and (values.dropna() % 1 == 0).all()
        text = values.map(lambda v, d=0 if counts and sd is None else decimals: _text(v, d))
        label = name.replace("_", " ").replace("auroc", "AUROC").replace(" f1", " F1")
        label = "trained parameters" if name == "n_parameters" else label
        if values.isna().all() or name.endswith((" sd", " high", "f1 interval low")):
            continue
        if name.endswith(" low"):
            ends = table[[name, f"{name[:-3]}high"]].map(lambda v: _text(v, decimals))
            text = ("[" + ends.iloc[:, 0] + ", " + ends.iloc[:, 1] + "]").where(values.notna(), "")
            label = label.removesuffix(" low").replace("interval", "95 % interval")
            text = text.where(words == "", "")
        elif name in ("failed runs", "collapsed runs"):
            text = (text + table["runs"].map(" of {:.0f}".format)).where(values.notna(), "")
        elif sd is not None:
            text += sd.map(lambda v: "" if np.isnan(v) else f" ± {_text(v, decimals)}")
            text = text.where(words == "", words)
        shown[label] = text
    return pd.DataFrame(shown)


def save_table(
    table: pd.DataFrame,
    name: str,
    note: str = "",
    shown: pd.DataFrame | None = None,
    folder: Path | str = "figures/tables",
) -> None:
    """Write ``NAME.csv`` (all numbers) and ``NAME.md`` (`shown`, else formatted; then a note)."""
    path = Path(folder) / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.6g")
    shown = format_table(table) if shown is None else shown
    text = shown.to_markdown(index=False, disable_numparse=True)
    path.with_suffix(".md").write_text(f"{text}\n\n{note}\n" if note else f"{text}\n")

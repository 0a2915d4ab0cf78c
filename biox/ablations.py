"""Bridges with one thing changed at a time, and what they leave behind for tables and figures.

The changed thing is a `Variant`. Variants that differ in size alone train together
(`biox.stacking`), and such groups share the cores; no number depends on how many there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from biox.ablation_settings import Ablations
from biox.activations import Activations
from biox.bridge import BridgedModel
from biox.case import Case
from biox.compute import Compute
from biox.config import Bridge
from biox.experiment import PATHS, device_of
from biox.files import write_json, written_whole
from biox.losses import Objective
from biox.pairs import Pairs
from biox.report.metrics import prediction_frame
from biox.rows import DTYPES
from biox.training import Fit, fit_bridges, mean_loss, predict


@dataclass(frozen=True)
class Variant:
    """What is different from the bridge of Table 1.

    Attributes
    ----------
    name : str
        As tables name it.
    changes : mapping
        Of section `bridge`.
    share : float
        Share of the paired windows that the bridge sees.
    dtype : str
        In which the true last layers are stored that it learns from.
    place : (int, int), optional
        m and l, if not the chosen ones.
    """

    name: str
    changes: Mapping[str, object] = field(default_factory=dict)
    share: float = 1.0
    dtype: str = "float32"
    place: tuple[int, int] | None = None

    def settings(self, default: Bridge) -> Bridge:
        """Put the changes over section `bridge`."""
        return replace(default, **self.changes)

    def is_default(self, case: Case) -> bool:
        """Whether this is the bridge of Table 1 after all."""
        same = self.settings(case.settings.bridge) == case.settings.bridge
        whole = self.share == 1 and self.dtype == "float32"
        return same and whole and self.place in (None, (case.m, case.l))


ABLATIONS: dict[str, Callable[[Ablations], list[Variant]]] = {
    "rank": lambda a: [Variant(str(r), {"rank": r}) for r in a.rank],
    "n_prototypes": lambda a: [Variant(str(n), {"n_prototypes": n}) for n in a.n_prototypes],
    "share": lambda a: [Variant(f"{share:g}", share=share) for share in a.share],
    "loss": lambda a: [
        Variant(f"{loss}, {align}", {"loss": loss, "align": align})
        for loss, places in a.loss.items()
        for align in places
    ],
    "prototypes": lambda a: [Variant(start, {"prototypes": start}) for start in a.prototypes],
    "dtype": lambda a: [Variant(dtype, dtype=dtype) for dtype in a.dtype],
}
"""By name, as in section `ablations` of params.yaml: the variants that are trained."""

Run = tuple[Variant, int]
"""A variant and a seed."""


@dataclass(frozen=True)
class Trained:
    """One trained bridge of a variant, in numbers.

    Attributes
    ----------
    variant : Variant
    seed, m, l, n_parameters : int
    windows : int
        Paired windows it saw.
    fit : Fit
    cosine : float
        Mean cosine to the true last layer on the test windows.
    probabilities : ndarray, [n, classes]
        For the test windows, from the new modality alone.
    """

    variant: Variant
    seed: int
    m: int
    l: int
    n_parameters: int
    windows: int
    fit: Fit
    cosine: float
    probabilities: np.ndarray


def share_rows(subjects: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a share of every subject's windows, at least one of each, in their order.

    The smaller of two shares with the same seed is part of the larger one. The share is of paired
    windows only: positions stay those chosen on all, and prototypes may start from any token of the
    old modality, which is not what is scarce.
    """
    rng, rows = np.random.default_rng(seed), []
    for subject in np.unique(subjects):
        own = rng.permutation(np.flatnonzero(subjects == subject))
        rows.append(own[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(rows))


def select(activations: Activations, rows: np.ndarray) -> Activations:
    """Keep some windows of activations; the sample of tokens stays."""
    index = torch.from_numpy(rows)
    layers = {name: tuple(x[index] for x in getattr(activations, name)) for name in ("new", "old")}
    names = ("labels", "subjects", "recordings", "starts")
    of_windows = {name: getattr(activations, name)[rows] for name in names}
    last, logits = activations.last[index], activations.logits[index]
    return replace(activations, last=last, logits=logits, **layers, **of_windows)


def train(case: Case, runs: Sequence[Run], at_hand: Path | None = None) -> list[Trained]:
    """Train all runs, in their order, as many side by side as the section `compute` says.

    Parameters
    ----------
    case : Case
    runs : sequence of (Variant, int)
        Neighbours that differ in size or seed alone train together.
    at_hand : Path, optional
        Folder of the bridges of Table 1; those that the default variant asks for are taken from
        there, and not trained again.
    """
    found = [_kept(case, run, at_hand) for run in runs]
    missing = [run for run, kept in zip(runs, found, strict=True) if kept is None]
    jobs = [job for _, group in groupby(missing, _key(case)) for job in _jobs(case, list(group))]
    targets = {}
    if any(v.settings(case.settings.bridge).align == "input" for v, _ in missing):
        targets = case.targets()
    compute = case.settings.compute
    tasks = [partial(_train, case, job, targets, compute.each()) for job in jobs]
    results = compute.side_by_side(tasks, device_of(case.settings))
    trained = iter([trained for result in results for trained in result])
    return [kept or next(trained) for kept in found]


def _kept(case: Case, run: Run, folder: Path | None) -> Trained | None:
    """What stage `bridge` left of a run, if that is the default with a seed that it trained."""
    variant, seed = run
    if folder is None or not variant.is_default(case) or not (folder / f"seed{seed}").is_dir():
        return None
    model = BridgedModel.load(folder / f"seed{seed}", case.new, case.old, case.head)
    curves = pd.read_csv(folder / "curves.csv").query("seed == @seed")
    by_epoch = (tuple(curves[name]) for name in ("train", "val", "agreement"))
    fit = Fit(*by_epoch, best_epoch=int(curves["best"].iloc[0]))
    pair, test = (Pairs(case.cached[s].new[case.m], case.cached[s].last) for s in ("pair", "test"))
    sizes = (seed, case.m, case.l, model.bridge.n_parameters, len(pair.pooled))
    return Trained(variant, *sizes, fit, **_on_test(model, test))


def _on_test(model: BridgedModel, test: Pairs) -> dict:
    """Cosine and probabilities of a trained bridge."""
    probabilities = predict(model, test.pooled).cpu().numpy()
    return {"cosine": 1 - mean_loss(model, test), "probabilities": probabilities}


def _key(case: Case) -> Callable[[Run], tuple]:
    """All in which runs that train together agree."""

    def key(run: Run) -> tuple:
        variant, seed = run
        default = case.settings.bridge
        sizes = {name: getattr(default, name) for name in ("rank", "n_prototypes", "prototypes")}
        rest = replace(variant.settings(default), **sizes)
        drawn = seed if variant.share < 1 else None
        return rest, variant.place, variant.share, drawn, variant.dtype

    return key


def _jobs(case: Case, runs: list[Run]) -> list[list[Run]]:
    """Divide runs that may train together into as many as gain from it."""
    variant, device = runs[0][0], device_of(case.settings).split(":")[0]
    l = variant.place[1] if variant.place else case.l
    written = variant.settings(case.settings.bridge).batch * np.prod(case.old.token_shape(l))
    n = case.settings.compute.together(int(written), device)
    return [runs[i : i + n] for i in range(0, len(runs), n)]


def _train(
    case: Case, runs: list[Run], targets: Mapping[str, Tensor], compute: Compute
) -> list[Trained]:
    """Train runs that agree in all but size and seed as one stack."""
    variant, first_seed = runs[0]
    m, l = variant.place or (case.m, case.l)
    rows = share_rows(case.cached["pair"].subjects, variant.share, first_seed)
    if variant.share < 1:
        case = replace(case, cached=case.cached | {"pair": select(case.cached["pair"], rows)})
    case, device = replace(case, m=m, l=l), device_of(case.settings)
    every = [v.settings(case.settings.bridge) for v, _ in runs]
    seeds = [seed for _, seed in runs]
    made = [case.untrained(own, seed) for own, seed in zip(every, seeds, strict=True)]
    models, pairs = [model.to(device) for model, _ in made], made[0][1]
    objective, settings = Objective.of(every[0]), every[0]
    if objective.align == "input":
        kept = {"pair": rows, "val": slice(None)}
        given = {s: Pairs(pairs[s].pooled, targets[s][kept[s]]) for s in kept}
        pairs = pairs | given
    pairs = {s: _stored(pair, variant.dtype).to(device) for s, pair in pairs.items()}
    how = (settings.lr, settings.epochs, settings.batch, seeds, objective)
    fits = fit_bridges(models, pairs["pair"], pairs["val"], *how, compute=compute)
    return [
        Trained(
            *(v, seed, m, l, model.bridge.n_parameters, len(rows), fit),
            **_on_test(model, pairs["test"]),
        )
        for (v, seed), model, fit in zip(runs, models, fits, strict=True)
    ]


def _stored(pairs: Pairs, dtype: str) -> Pairs:
    """Round the targets as a store of this type would."""
    kind = DTYPES[dtype][0]
    return pairs if dtype == "float32" else replace(pairs, target=pairs.target[:].to(kind).float())


def runs_table(case: Case, trained: Sequence[Trained]) -> pd.DataFrame:
    """What the runs say of themselves, without a label: one row a run."""
    return pd.DataFrame(
        {
            "variant": t.variant.name,
            "seed": t.seed,
            "m": t.m,
            "l": t.l,
            "windows": t.windows,
            "parameters": t.n_parameters,
            "best epoch": t.fit.best_epoch,
            "val loss": t.fit.val_loss[t.fit.best_epoch],
            "val agreement": t.fit.val_agreement[t.fit.best_epoch],
            "cosine on test": t.cosine,
            "default": t.variant.is_default(case),
        }
        for t in trained
    )


def folder(direction: str, name: str) -> Path:
    """Where an ablation's files lie."""
    return PATHS.data / "ablations" / direction / name


def save(folder: Path | str, case: Case, trained: Sequence[Trained], **facts: object) -> None:
    """Write ``predictions.csv`` and ``runs.csv``, and ``about.json`` last: then all is there.

    Predictions: one row a test window and run; runs: one row a run. `facts` go into ``about.json``.
    """
    folder, test = Path(folder), case.cached["test"]
    (folder / "about.json").unlink(missing_ok=True)
    columns = {"method": "BioX-Bridge", "direction": case.name}
    predictions = pd.concat(
        prediction_frame(test, t.probabilities, seed=t.seed, variant=t.variant.name, **columns)
        for t in trained
    )
    for name, table in {
        "predictions.csv": predictions,
        "runs.csv": runs_table(case, trained),
    }.items():
        with written_whole(folder / name) as part:
            table.to_csv(part, index=False, float_format="%.8g")
    about = {"direction": case.name, "source": test.source, "m": case.m, "l": case.l}
    write_json(folder / "about.json", about | facts)

"""Training a bridge on cached activations (section 3.2, equation 7, algorithm 1).

Both foundation models are frozen. The new model's layers up to m and the old model's own last layer
are therefore computed once and read from files (`biox.activations`); a step computes the bridge and
the old model's tail behind layer l.

Nothing here reads a label. Epochs and learning rates are chosen by the agreement with the teacher's
pseudo-labels on val. The loss alone would not do: where most of the last layer is the same for all
windows, one output for all of them comes close to every target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import trange

from biox.bridge import BridgedModel
from biox.config import PATHS, Settings, device_of
from biox.metrics import Result

if TYPE_CHECKING:
    from biox.activations import FrozenDirection


class Pairs(NamedTuple):
    """What a bridge learns from; row i is window i.

    Attributes
    ----------
    pooled : Tensor, [n, d_m]
        Pooled output of the new model's layer m on the new modality.
    target : Tensor or ndarray, [n, N_L, d_L]
        Last layer of the old model on the old modality; with ``align="input"`` the input of its
        layer l, [n, N_l, d_l]. Of a memory-mapped array, only a batch is read at a time.
    """

    pooled: Tensor
    target: Tensor | np.ndarray

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Read some rows as float32."""
        target = self.target[rows.numpy()]
        return self.pooled[rows].to(device), torch.as_tensor(target).float().to(device)


# --- losses ---------------------------------------------------------------------------------------


def cosine_loss(h: Tensor, target: Tensor) -> Tensor:
    """``1 - cos(h~_L, h_L)`` of flattened representations, mean over the batch (equation 7).

    Like all losses here: two [batch, tokens, features] give a scalar.
    """
    h, target = h.flatten(1), target.flatten(1)
    norms = (torch.linalg.vector_norm(x, dim=1).clamp_min(1e-8) for x in (h, target))
    return 1 - (torch.linalg.vecdot(h, target) / math.prod(norms)).mean()


def mae_loss(h: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, studied in the paper's appendix."""
    return (h - target).abs().mean()


def infonce_loss(h: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of finding a window's own target among the batch's, by cosine / temperature.

    A released script asks for InfoNCE, but the released code contains no such loss: direction
    (bridged to target) and temperature are ours.
    """
    h, target = (F.normalize(x.flatten(1), dim=1) for x in (h, target))
    return F.cross_entropy(h @ target.T / temperature, torch.arange(len(h), device=h.device))


LOSSES = {"cosine": cosine_loss, "mae": mae_loss, "infonce": infonce_loss}


def objective(
    model: BridgedModel, pair: Pairs, loss: str, temperature: float = 0.1, kl_weight: float = 0.3
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of this name between h~ and h, [batch, tokens, features] each.

    Besides `LOSSES`: ``centred`` is the cosine after the mean of the target over all pairs has been
    subtracted from both; a constant then gains nothing from it. ``centred_kl`` adds `kl_weight`
    times the Kullback-Leibler divergence of the predictions of the teacher's head from h~ and h,
    in which every pseudo-class weighs the same.
    """
    if loss in LOSSES:
        return partial(infonce_loss, temperature=temperature) if loss == "infonce" else LOSSES[loss]
    total, counts, device = 0.0, 0, model.bridge.A.device
    with torch.no_grad():
        for rows in torch.arange(len(pair.pooled)).split(64):
            target = pair.batch(rows, device)[1]
            total = total + target.double().sum(0)
            if loss == "centred_kl":
                answers = model.logits(target).argmax(1)
                counts = counts + torch.bincount(answers, minlength=model.head.out_features)
    mean = (total / len(pair.pooled)).to(target)

    def centred(h: Tensor, target: Tensor) -> Tensor:
        return cosine_loss(h - mean, target - mean)

    def centred_kl(h: Tensor, target: Tensor) -> Tensor:
        p, q = (model.logits(x).log_softmax(dim=1) for x in (target, h))
        kl = F.kl_div(q, p, reduction="none", log_target=True).sum(1)
        return centred(h, target) + kl_weight * (weights[p.argmax(1)] * kl).mean()

    if loss == "centred":
        return centred
    weights = len(pair.pooled) / ((counts > 0).sum() * counts.clamp_min(1))
    return centred_kl


# --- selection without labels ---------------------------------------------------------------------


def agreement(probabilities: Tensor | np.ndarray, pseudo_labels: Tensor | np.ndarray) -> float:
    """Mean probability of the teacher's pseudo-labels [n], averaged over its classes.

    For hard decisions this is the balanced accuracy with the pseudo-labels as truth. It is at most
    1 / k if all windows get the same probabilities [n, classes] and the teacher predicts k classes.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(pseudo_labels)
    given = probabilities[np.arange(len(labels)), labels]
    return float(np.mean([given[labels == c].mean() for c in np.unique(labels)]))


def best_epoch(history: pd.DataFrame, first: int = 1) -> int:
    """Return the epoch of best agreement on val; of equals that of lowest val loss, then the first.

    Epoch 0, before training, does not compete unless `first` is 0.
    """
    trained = history[history["epoch"] >= first]
    order = np.lexsort([trained["epoch"], trained["val"], -trained["agreement"]])
    return int(trained["epoch"].iloc[order[0]])


def centre_by_subject(pooled: Tensor, subjects: np.ndarray, centre: str = "subject") -> Tensor:
    """Subtract each subject's mean from its pooled features [n, d_m], rows in order of time.

    The mean is that of all windows of the subject, future ones too, so it needs recordings as a
    whole (transductive); ``causal``, of the windows up to the row itself. ``within`` adds the mean
    of all rows: what is left of a fit is how features differ within subjects. ``none``: unchanged.
    """
    centred = pooled.clone()
    for subject in np.unique(subjects) if centre != "none" else ():
        own = torch.from_numpy(subjects == subject)
        centred[own] -= pooled[own].mean(0)
        if centre == "causal":
            counts = torch.arange(1, own.sum() + 1).unsqueeze(1)
            centred[own] = pooled[own] - pooled[own].cumsum(0) / counts
    return centred + pooled.mean(0) if centre == "within" else centred


# --- training -------------------------------------------------------------------------------------


def train_bridge(
    model: BridgedModel,
    pair: Pairs,
    val: Pairs,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int,
    loss: str = "cosine",
    align: str = "last",
    temperature: float = 0.1,
    kl_weight: float = 0.3,
    first: int = 1,
) -> pd.DataFrame:
    """Train ``model.bridge`` in place with Adam; keep the epoch that agrees best on val.

    The seed decides the order of windows. With ``align="input"`` the loss compares at the input of
    layer l, which the bridge itself writes; see `objective` for the losses. With ``first=0`` the
    start competes with the epochs.

    Returns
    -------
    DataFrame
        ``epoch train val agreement``, one row an epoch; row 0 is before training. ``train`` is the
        mean loss over an epoch's steps.

    Raises
    ------
    FloatingPointError
        The loss is not finite; the message names epoch and learning rate.
    """
    compare = objective(model, pair, loss, temperature, kl_weight)
    device, n = model.bridge.A.device, len(pair.pooled)
    optimizer = torch.optim.Adam(model.bridge.parameters(), lr=lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    evaluate = partial(_evaluate, model, compare=compare, align=align)
    history = [(0, evaluate(pair)[0], *evaluate(val))]
    best = copy.deepcopy(model.bridge.state_dict())
    for epoch in trange(1, epochs + 1, desc=f"bridge, seed {seed}", disable=None):
        with located("bridge: ", epoch, lr):
            total = 0.0
            for rows in torch.randperm(n, generator=generator).split(batch_size):
                pooled, target = pair.batch(rows, device)  # Pool(h_m) of new, h_L of old
                h = model.bridge(pooled)  # h~_l, equation 6
                if align == "last":
                    h = model.tail(h)  # h~_L = f_old_{>l}(h~_l)
                value = compare(h, target)  # equation 7
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                total += value.item() * len(rows)
            history.append((epoch, total / n, *evaluate(val)))
            if not np.isfinite(history[-1]).all():
                raise FloatingPointError(f"expected a finite loss, found {total / n} on pair")
        if best_epoch(_table(history), first) == epoch:
            best = copy.deepcopy(model.bridge.state_dict())
    model.bridge.load_state_dict(best)
    return _table(history)


def _table(history: Sequence[tuple]) -> pd.DataFrame:
    return pd.DataFrame(history, columns=["epoch", "train", "val", "agreement"])


@contextmanager
def located(who: str, epoch: int, lr: float) -> Iterator[None]:
    """Say where in training a number stopped being finite, and `who` was trained."""
    try:
        yield
    except FloatingPointError as error:
        text = f"{who}{error}, in epoch {epoch} at learning rate {lr:g}"
        raise FloatingPointError(text) from None


@torch.no_grad()
def _evaluate(
    model: BridgedModel, pairs: Pairs, compare: Callable[..., Tensor], align: str
) -> tuple[float, float]:
    """Mean loss over all pairs, and agreement with the teacher."""
    total, bridged, pseudo_labels = 0.0, [], []
    for rows in torch.arange(len(pairs.pooled)).split(64):
        pooled, target = pairs.batch(rows, model.bridge.A.device)
        h = model.bridge(pooled)
        last, true = model.tail(h), target
        if align == "input":
            true = model.tail(target)
        total += compare(last if align == "last" else h, target).item() * len(rows)
        bridged.append(model.logits(last).softmax(dim=1).cpu())
        pseudo_labels.append(model.logits(true).argmax(dim=1).cpu())
    return total / len(pairs.pooled), agreement(torch.cat(bridged), torch.cat(pseudo_labels))


@torch.no_grad()
def predict(model: BridgedModel, pooled: Tensor, batch_size: int = 64) -> Tensor:
    """Class probabilities [n, classes] from pooled new-model features [n, d_m] alone."""
    device = model.bridge.A.device
    parts = (model.logits(model.last_layer(x.to(device))) for x in pooled.split(batch_size))
    return torch.cat([logits.softmax(dim=1).cpu() for logits in parts])


def share_rows(subjects: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a share of every subject's windows, at least one of each, in their order.

    The smaller of two shares with the same seed is part of the larger one.
    """
    rng, rows = np.random.default_rng(seed), []
    for subject in np.unique(subjects):
        own = rng.permutation(np.flatnonzero(subjects == subject))
        rows.append(own[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(rows))


def fit(
    frozen: FrozenDirection, *, seed: int, lr: float, share: float | None = None, **bridge: Any
) -> tuple[Result, BridgedModel]:
    """Train one bridge of a direction and predict test and val windows.

    Parameters
    ----------
    frozen : FrozenDirection
        With activations of pair, val and test.
    seed : int
        Decides the bridge's start, the order of windows and which of them `share` keeps.
    lr : float
    share : float, optional
        Train on this share of the paired windows (figure 4c). Prototypes still start from tokens of
        all of them: the old modality is not what is scarce.
    **bridge
        Put over the section `bridge` of the settings.

    Raises
    ------
    FloatingPointError
        As in `train_bridge`.
    """
    rows = slice(None)
    if share is not None:
        rows = share_rows(frozen.activations["pair"].subjects, share, seed)
    frozen = frozen.override(lr=lr, **bridge)
    model, history, best = fit_rows(frozen, rows, seed)
    test, val = (predict(model, frozen.pairs(s).pooled).numpy() for s in ("test", "val"))
    about = (seed, test, model.bridge.n_parameters, lr, history, best)
    return Result("BioX-Bridge", *about, val=val), model.cpu()


def fit_rows(
    frozen: FrozenDirection, rows: np.ndarray | slice, seed: int
) -> tuple[BridgedModel, pd.DataFrame, int]:
    """Fit a bridge to some of the paired windows: model, history, epoch that was kept."""
    settings = frozen.settings.bridge
    pair, val = frozen.pairs("pair", settings.align, rows), frozen.pairs("val", settings.align)
    model = frozen.bridge(seed, rows).to(device_of(frozen.settings))
    names = ("lr", "epochs", "loss", "align", "temperature", "kl_weight")
    options = {name: getattr(settings, name) for name in names}
    options |= {"first": int(settings.start == "zeros"), "batch_size": settings.batch}
    history = train_bridge(model, pair, val, seed=seed, **options)
    return model, history, best_epoch(history, options["first"])


# --- seeds and learning rates ---------------------------------------------------------------------


def parallel(tasks: Sequence[Callable[[], Any]], n_jobs: int = -1) -> list:
    """Run tasks side by side on the cores, each on one thread, so that no number depends on them.

    `n_jobs` -1 is one a core; pass 1 for work on a GPU.
    """
    before = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            return Parallel(n_jobs, backend="threading")(delayed(_on_one_thread)(t) for t in tasks)
    finally:
        torch.set_num_threads(before)


def _on_one_thread(task: Callable[[], Any]) -> Any:
    threadpool_limits(1)
    torch.set_num_threads(1)
    return task()


def run_seeds(
    methods: Mapping[str, Callable[[int, float], Result]],
    lrs: Sequence[float],
    seeds: Sequence[int],
    *,
    shape: tuple[int, int],
    n_jobs: int = -1,
) -> tuple[list[Result], pd.DataFrame]:
    """Train every method with every seed; find the learning rate with the first one.

    Each learning rate is tried with the first seed. The one that agrees best with the teacher on
    val wins (of equals the lower loss): its run is that seed's result, and the other seeds use it.
    The search is the same for all methods and reads no label.

    Parameters
    ----------
    methods : mapping
        Name, that of its results -> ``run(seed, lr)``. A run that raises FloatingPointError failed.
    lrs, seeds : sequence
    shape : (int, int)
        Test windows and classes, for the NaN probabilities of failed runs.
    n_jobs : int
        See `parallel`.

    Returns
    -------
    list of Result
        By method, then seed. Of a method for which every learning rate failed, all seeds get the
        first of them.
    search : DataFrame
        ``method lr agreement loss failed chosen`` of the first seed's runs; NaN where one failed.
    """

    def attempt(name: str, seed: int, lr: float) -> Result:
        try:
            result = methods[name](seed, lr)
        except FloatingPointError as error:
            nothing = np.full(shape, np.nan)
            return Result(name, seed, nothing, math.nan, lr, failed=str(error))
        result.method = name
        return result

    done: dict[tuple, Result] = {}

    def run(jobs: list[tuple[str, int, float]]) -> None:
        jobs = [job for job in jobs if job not in done]
        tasks = [partial(attempt, *job) for job in jobs]
        done.update(zip(jobs, parallel(tasks, n_jobs), strict=True))

    first = seeds if len(lrs) == 1 else seeds[:1]
    run([(name, seed, lr) for name in methods for seed in first for lr in lrs])
    search = pd.DataFrame([_reached(done[name, seeds[0], lr]) for name in methods for lr in lrs])
    ranked = search.sort_values(["agreement", "loss"], ascending=[False, True], kind="stable")
    winners = ranked.drop_duplicates("method")
    search["chosen"] = search.index.isin(winners.index)
    lr_of = dict(zip(winners["method"], winners["lr"], strict=True))
    jobs = [(name, seed, lr_of[name]) for name in methods for seed in seeds]
    run(jobs)
    return [done[job] for job in jobs], search


def _reached(result: Result) -> dict[str, Any]:
    """Agreement and loss on val of the epoch that a run kept; NaN if it failed."""
    epoch = {"agreement": math.nan, "val": math.nan}
    if not result.failed:
        epoch = result.history.set_index("epoch").loc[result.best_epoch]
    found = {"agreement": epoch["agreement"], "loss": epoch["val"], "failed": result.failed}
    return {"method": result.method, "lr": result.lr} | found


def chosen_lr(settings: Settings, direction: str) -> float:
    """Learning rate of a direction's bridges: that of the settings, or what notebook 06 found.

    Raises
    ------
    FileNotFoundError
        The settings name none and no bridge has been trained yet.
    """
    if settings.bridge.lr is not None:
        return settings.bridge.lr
    path = PATHS.results("bridges", direction) / "runs.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected trained bridges, found none; run bridge@{direction}"
        )
    return float(pd.read_csv(path)["lr"].iloc[0])

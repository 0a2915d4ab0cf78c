"""Training bridges on cached activations (section 3.2, equation 7, algorithm 1).

A step is bridge forward, tail forward, tail backward: the new model's layers up to m and the old
model's own last layer are read from the cache, never computed again. Bridges between the same
models, of other seeds or sizes, train together (`biox.stacking`); one bridge is a stack of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

from biox.activations import Activations
from biox.backbones.base import Backbone
from biox.backbones.labram import LaBraM
from biox.bridge import BridgedModel, PrototypeBridge
from biox.compute import AS_IT_COMES, Compute
from biox.config import Bridge
from biox.losses import EQUATION_7, Objective
from biox.pairs import Pairs, on_device
from biox.resume import Resume
from biox.stacking import StackedTraining


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes
    ----------
    train_loss, val_loss : tuple of float
        By epoch; the first entry is before training. `train_loss` is the mean over an epoch's
        steps, `val_loss` is measured after the epoch.
    val_agreement : tuple of float
        Agreement with the teacher's answers on val after the epoch (`biox.agreement`).
    best_epoch : int
        The epoch whose bridge was kept: highest agreement, of equals the lowest loss on val.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_agreement: tuple[float, ...]
    best_epoch: int


_DRAWING = Lock()
"""torch's generator is one for all threads."""


def initial_bridge(
    in_features: int,
    token_shape: tuple[int, int],
    rank: int,
    n_prototypes: int,
    seed: int,
    tokens: Tensor | None = None,
    reshaped: bool = False,
) -> PrototypeBridge:
    """Make an untrained bridge; its seed alone decides A and the prototypes.

    Parameters
    ----------
    in_features : int
        d_m.
    token_shape : (int, int)
        N_l and d_l, from ``old.token_shape(l)``.
    rank, n_prototypes : int
    seed : int
    tokens : Tensor, [any, d_l], optional
        Tokens of the old model at the input of layer l; prototypes are drawn from them (the
        paper's text). Absent: standard normal prototypes (the released code).
    reshaped : bool
        See `PrototypeBridge`.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        n_tokens, out_features = token_shape
        sizes = (in_features, out_features, n_tokens, rank, n_prototypes)
        bridge = PrototypeBridge(*sizes, reshaped)
        if tokens is not None:
            bridge.set_prototypes(tokens)
    return bridge


def fit_bridge(
    model: BridgedModel,
    pair: Pairs,
    val: Pairs,
    lr: float,
    epochs: int,
    batch: int = 16,
    seed: int = 0,
    objective: Objective = EQUATION_7,
    watch: Callable[[int, BridgedModel], None] | None = None,
    compute: Compute = AS_IT_COMES,
    resume: Resume | None = None,
) -> Fit:
    """Train ``model.bridge`` in place with Adam; keep the epoch that agrees best with the teacher.

    `fit_bridges` with a single bridge; see there.
    """
    told = watch and (lambda epoch, models: watch(epoch, models[0]))
    rest = (lr, epochs, batch, [seed], objective, told, compute, resume)
    return fit_bridges([model], pair, val, *rest)[0]


def fit_bridges(
    models: Sequence[BridgedModel],
    pair: Pairs,
    val: Pairs,
    lr: float,
    epochs: int,
    batch: int = 16,
    seeds: Sequence[int] = (0,),
    objective: Objective = EQUATION_7,
    watch: Callable[[int, Sequence[BridgedModel]], None] | None = None,
    compute: Compute = AS_IT_COMES,
    resume: Resume | None = None,
) -> list[Fit]:
    """Train the bridges of several models together, each as it would train alone.

    Parameters
    ----------
    models : sequence of BridgedModel
        Their frozen parts, which they share, give the tail; only their bridges change. Ranks and
        numbers of prototypes may differ.
    pair, val : Pairs
        Cached activations of the paired and of the validation windows.
    lr : float
        Learning rate of Adam.
    epochs, batch : int
    seeds : sequence of int
        One a model: decides the order of its windows.
    objective : Objective
        By default equation 7.
    watch : callable, optional
        Told the epoch and the models after each epoch; decides nothing.
    compute : Compute
        Precision, compilation, and how many bridges pass the tail at once.
    resume : Resume, optional
        Where training saves its state, to go on from there after it was killed.

    Returns
    -------
    list of Fit
        One a model.

    Raises
    ------
    FloatingPointError
        A loss stops being finite; the message names the epoch.
    ValueError
        The models differ in more than their bridges, or there are not as many seeds.
    """
    if len(models) != len(seeds) or not models:
        raise ValueError(
            f"fit_bridges: expected some models and a seed for each, "
            f"found {len(models)} models and {len(seeds)} seeds"
        )
    bridge = models[0].bridge
    written = batch * bridge.n_tokens * len(bridge.prototypes)
    together = compute.together(written, bridge.A.device.type)
    stacks = []
    for i in range(0, len(models), together):
        part = slice(i, i + together)
        how = (lr, batch, seeds[part], objective, compute)
        stacks.append(StackedTraining(models[part], pair, val, *how))
    done = resume.restore(stacks, epochs) if resume is not None else 0
    title = f"bridge, seed {', '.join(str(seed) for seed in seeds)}"
    for epoch in trange(done, epochs + 1, desc=title, disable=None):  # 0: before training
        for stack in stacks:
            stack.epoch() if epoch > 0 else stack.measure()
        if resume is not None and epoch > 0:
            resume.save(stacks)
        if watch is not None and epoch > 0:
            for stack in stacks:
                stack.write()
            watch(epoch, models)
    for stack in stacks:
        stack.restore_best()
        stack.write()
    if resume is not None:
        resume.done()
    return [Fit(*found) for stack in stacks for found in stack.found()]


@dataclass(frozen=True)
class SeedResult:
    """One trained bridge and what it says about the test windows.

    Attributes
    ----------
    seed : int
    model : BridgedModel
    fit : Fit
    probabilities : ndarray, [n, classes]
        From the new modality alone.
    cosine : float
        Mean cosine of the bridged to the true last layer on the test windows.
    """

    seed: int
    model: BridgedModel
    fit: Fit
    probabilities: np.ndarray
    cosine: float


def train_seeds(
    new: Backbone,
    old: Backbone,
    head: nn.Linear,
    cached: Mapping[str, Activations],
    m: int,
    l: int,
    settings: Bridge,
    seeds: Sequence[int],
    device: str = "cpu",
    targets: Mapping[str, Tensor] | None = None,
    compute: Compute = AS_IT_COMES,
    resume: Resume | None = None,
) -> list[SeedResult]:
    """Train one bridge a seed, all together, on cached *pair* activations; ask each about *test*.

    Parameters
    ----------
    cached : mapping
        Activations of ``pair``, ``val`` and ``test``. Labels are not read.
    settings : Bridge
        With a learning rate; `biox.search.train_searched` finds one where there is none.
    m, l : int
        Positions.
    targets : mapping, optional
        Needed with ``align: input``: input of old layer l [n, N_l, d_l] on ``pair`` and ``val``
        (`biox.activations.layer_input`).
    compute, resume : optional
        As in `fit_bridges`; the file of `resume` is told by learning rate and seeds.

    Raises
    ------
    ValueError
        The settings say ``align: input`` and there are no targets.
    """
    objective = Objective.of(settings)
    targets = (targets or {}) if objective.align == "input" else {}
    if objective.align == "input" and not {"pair", "val"} <= set(targets):
        raise ValueError(
            f"train_seeds: expected targets of pair and val for align: input, "
            f"found {sorted(targets)}"
        )
    pairs = {s: Pairs(a.new[m], targets.get(s, a.last)).to(device) for s, a in cached.items()}
    reshaped = settings.layout == "released" and isinstance(old, LaBraM)
    sizes = (settings.rank, settings.n_prototypes)
    tokens = cached["pair"].tokens[l] if settings.prototypes == "tokens" else None
    shapes = (cached["pair"].new[m].shape[1], old.token_shape(l))
    bridges = [initial_bridge(*shapes, *sizes, seed, tokens, reshaped) for seed in seeds]
    models = [BridgedModel(new, old, bridge, head, m, l).to(device) for bridge in bridges]
    how = (settings.lr, settings.epochs, settings.batch, seeds, objective)
    if resume is not None:
        resume = resume.told_by(f"lr{settings.lr:g}", *seeds)
    results = []
    with compute.cpu_threads():
        fits = fit_bridges(
            models, pairs["pair"], pairs["val"], *how, compute=compute, resume=resume
        )
        for seed, model, fit in zip(seeds, models, fits, strict=True):
            probabilities = predict(model, pairs["test"].pooled).cpu().numpy()
            cosine = 1 - mean_loss(model, pairs["test"])
            results.append(SeedResult(seed, model, fit, probabilities, cosine))
    for model in models:
        model.cpu()
    return results


@torch.no_grad()
def mean_loss(
    model: BridgedModel, pairs: Pairs, objective: Objective = EQUATION_7, batch: int = 64
) -> float:
    """Mean loss over all pairs, by default of equation 7."""
    device = model.bridge.A.device
    losses = [
        objective(model, x, on_device(y, device)).item() * len(x)
        for x, y in zip(pairs.pooled.split(batch), pairs.target.split(batch), strict=True)
    ]
    return sum(losses) / len(pairs.pooled)


@torch.no_grad()
def predict(model: BridgedModel, pooled: Tensor, batch: int = 64) -> Tensor:
    """Class probabilities [n, classes] from pooled new-model features [n, d_m] alone."""
    return torch.cat([model.classify(x).softmax(dim=1) for x in pooled.split(batch)])

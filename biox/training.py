"""Training the bridge on cached activations (section 3.2, equation 7, algorithm 1).

A step is bridge forward, tail forward, tail backward: the new model's layers up to m and the old
model's own last layer are read from the cache, never computed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

from biox.activations import Activations
from biox.backbones.base import Backbone
from biox.backbones.labram import LaBraM
from biox.bridge import BridgedModel, PrototypeBridge
from biox.config import Bridge
from biox.losses import EQUATION_7, Objective
from biox.rows import Rows


@dataclass(frozen=True)
class Pairs:
    """What a bridge learns from: one row a paired window.

    Attributes
    ----------
    pooled : Tensor, [n, d_m]
        Pooled output of the new model's layer m on the new modality.
    target : Tensor or Rows, [n, N_L, d_L]
        Last layer of the old model on the old modality (h_L), or with ``align: input`` the input
        of its layer l [n, N_l, d_l]. Of `Rows`, only a batch is in memory at a time.
    """

    pooled: Tensor
    target: Tensor | Rows

    def __post_init__(self):
        if len(self.pooled) != len(self.target) or len(self.pooled) == 0:
            raise ValueError(
                f"pairs: expected as many pooled features as targets, and some, "
                f"found {len(self.pooled)} and {len(self.target)}"
            )

    def to(self, device: torch.device | str) -> "Pairs":
        """Copy to a device."""
        return Pairs(self.pooled.to(device), self.target.to(device))


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes
    ----------
    train_loss, val_loss : tuple of float
        By epoch; the first entry is before training. `train_loss` is the mean over an epoch's
        steps, `val_loss` is measured after the epoch.
    best_epoch : int
        The epoch whose bridge was kept: lowest loss on val, which needs no label.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    best_epoch: int


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
    with torch.random.fork_rng(devices=[]):
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
) -> Fit:
    """Train ``model.bridge`` in place with Adam; keep the epoch with the lowest loss on val.

    Parameters
    ----------
    model : BridgedModel
        Its frozen parts give the tail; only its bridge changes.
    pair, val : Pairs
        Cached activations of the paired and of the validation windows.
    lr : float
        Learning rate of Adam.
    epochs, batch : int
    seed : int
        Decides the order of the windows.
    objective : Objective
        By default equation 7.
    watch : callable, optional
        Told the epoch and the model after each epoch; decides nothing.

    Raises
    ------
    FloatingPointError
        The loss stops being finite; the message names the epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.bridge.parameters(), lr=lr)
    train_loss, val_loss = [mean_loss(model, pair, objective)], [mean_loss(model, val, objective)]
    best_epoch, best_weights = 0, None
    for epoch in trange(1, epochs + 1, desc=f"bridge, seed {seed}", disable=None):
        total = 0.0
        try:
            for rows in torch.randperm(len(pair.pooled), generator=generator).split(batch):
                loss = objective(model, pair.pooled[rows], pair.target[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            train_loss.append(total / len(pair.pooled))
            val_loss.append(mean_loss(model, val, objective))
        except FloatingPointError as error:  # of a layer of the tail
            raise FloatingPointError(
                f"bridge: {error}, in epoch {epoch} at learning rate {lr}"
            ) from error
        if not (train_loss[-1] < float("inf") and val_loss[-1] < float("inf")):
            raise FloatingPointError(
                f"bridge: expected a finite loss, found {train_loss[-1]} on pair and "
                f"{val_loss[-1]} on val in epoch {epoch} at learning rate {lr}"
            )
        if watch is not None:
            watch(epoch, model)
        if best_weights is None or val_loss[-1] < val_loss[best_epoch]:
            best_epoch = epoch
            best_weights = {k: v.clone() for k, v in model.bridge.state_dict().items()}
    model.bridge.load_state_dict(best_weights)
    return Fit(tuple(train_loss), tuple(val_loss), best_epoch)


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
) -> list[SeedResult]:
    """Train one bridge a seed on cached *pair* activations and ask each about *test*.

    Parameters
    ----------
    cached : mapping
        Activations of ``pair``, ``val`` and ``test``. Labels are not read.
    m, l : int
        Positions.
    targets : mapping, optional
        Needed with ``align: input``: input of old layer l [n, N_l, d_l] on ``pair`` and ``val``
        (`biox.activations.layer_input`).

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
    results = []
    for seed in seeds:
        bridge = initial_bridge(
            cached["pair"].new[m].shape[1],
            old.token_shape(l),
            settings.rank,
            settings.n_prototypes,
            seed,
            tokens=cached["pair"].tokens[l] if settings.prototypes == "tokens" else None,
            reshaped=reshaped,
        )
        model = BridgedModel(new, old, bridge, head, m, l).to(device)
        fit = fit_bridge(
            model,
            pairs["pair"],
            pairs["val"],
            settings.lr,
            settings.epochs,
            settings.batch,
            seed,
            objective,
        )
        probabilities = predict(model, pairs["test"].pooled).cpu().numpy()
        cosine = 1 - mean_loss(model, pairs["test"])
        results.append(SeedResult(seed, model.cpu(), fit, probabilities, cosine))
    return results


@torch.no_grad()
def mean_loss(
    model: BridgedModel, pairs: Pairs, objective: Objective = EQUATION_7, batch: int = 64
) -> float:
    """Mean loss over all pairs, by default of equation 7."""
    losses = [
        objective(model, x, y).item() * len(x)
        for x, y in zip(pairs.pooled.split(batch), pairs.target.split(batch), strict=True)
    ]
    return sum(losses) / len(pairs.pooled)


@torch.no_grad()
def predict(model: BridgedModel, pooled: Tensor, batch: int = 64) -> Tensor:
    """Class probabilities [n, classes] from pooled new-model features [n, d_m] alone."""
    return torch.cat([model.classify(x).softmax(dim=1) for x in pooled.split(batch)])

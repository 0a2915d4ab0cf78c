"""Training the bridge on cached activations (section 3.2, equation 7, algorithm 1).

A step is bridge forward, tail forward, tail backward: the new model's layers up to m and the old
model's own last layer are read from the cache, never computed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from biox.activations import Activations
from biox.backbones.base import Backbone
from biox.bridge import BridgedModel, PrototypeBridge
from biox.config import Bridge


@dataclass(frozen=True)
class Pairs:
    """What a bridge learns from: one row a paired window.

    Attributes
    ----------
    pooled : Tensor, [n, d_m]
        Pooled output of the new model's layer m on the new modality.
    last : Tensor, [n, N_L, d_L]
        Last layer of the old model on the old modality (h_L), the target.
    """

    pooled: Tensor
    last: Tensor

    def __post_init__(self):
        if len(self.pooled) != len(self.last) or len(self.pooled) == 0:
            raise ValueError(
                f"pairs: expected as many pooled features as targets, and some, "
                f"found {len(self.pooled)} and {len(self.last)}"
            )

    def to(self, device: torch.device | str) -> "Pairs":
        """Copy to a device."""
        return Pairs(self.pooled.to(device), self.last.to(device))


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


def cosine_loss(bridged: Tensor, target: Tensor) -> Tensor:
    """``1 - cos`` between flattened last layers [batch, N_L, d_L], mean over the batch (eq. 7)."""
    return 1 - F.cosine_similarity(bridged.flatten(1), target.flatten(1)).mean()


def initial_bridge(
    in_features: int,
    token_shape: tuple[int, int],
    rank: int,
    n_prototypes: int,
    seed: int,
    tokens: Tensor | None = None,
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
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        n_tokens, out_features = token_shape
        bridge = PrototypeBridge(in_features, out_features, n_tokens, rank, n_prototypes)
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

    Raises
    ------
    FloatingPointError
        The loss stops being finite; the message names the epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.bridge.parameters(), lr=lr)
    train_loss, val_loss = [mean_loss(model, pair)], [mean_loss(model, val)]
    best_epoch, best_weights = 0, None
    for epoch in trange(1, epochs + 1, desc=f"bridge, seed {seed}", disable=None):
        total = 0.0
        try:
            for rows in torch.randperm(len(pair.pooled), generator=generator).split(batch):
                loss = cosine_loss(model.last_layer(pair.pooled[rows]), pair.last[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            train_loss.append(total / len(pair.pooled))
            val_loss.append(mean_loss(model, val))
        except FloatingPointError as error:  # of a layer of the tail
            raise FloatingPointError(
                f"bridge: {error}, in epoch {epoch} at learning rate {lr}"
            ) from error
        if not (train_loss[-1] < float("inf") and val_loss[-1] < float("inf")):
            raise FloatingPointError(
                f"bridge: expected a finite loss, found {train_loss[-1]} on pair and "
                f"{val_loss[-1]} on val in epoch {epoch} at learning rate {lr}"
            )
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
) -> list[SeedResult]:
    """Train one bridge a seed on cached *pair* activations and ask each about *test*.

    Parameters
    ----------
    cached : mapping
        Activations of ``pair``, ``val`` and ``test``. Labels are not read.
    m, l : int
        Positions.
    """
    pairs = {s: Pairs(a.new[m], a.last).to(device) for s, a in cached.items()}
    results = []
    for seed in seeds:
        bridge = initial_bridge(
            cached["pair"].new[m].shape[1],
            old.token_shape(l),
            settings.rank,
            settings.n_prototypes,
            seed,
            tokens=cached["pair"].tokens[l] if settings.prototypes == "tokens" else None,
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
        )
        probabilities = predict(model, pairs["test"].pooled).cpu().numpy()
        cosine = 1 - mean_loss(model, pairs["test"])
        results.append(SeedResult(seed, model.cpu(), fit, probabilities, cosine))
    return results


@torch.no_grad()
def mean_loss(model: BridgedModel, pairs: Pairs, batch: int = 64) -> float:
    """Mean cosine loss over all pairs."""
    losses = [
        cosine_loss(model.last_layer(x), y).item() * len(x)
        for x, y in zip(pairs.pooled.split(batch), pairs.last.split(batch), strict=True)
    ]
    return sum(losses) / len(pairs.pooled)


@torch.no_grad()
def predict(model: BridgedModel, pooled: Tensor, batch: int = 64) -> Tensor:
    """Class probabilities [n, classes] from pooled new-model features [n, d_m] alone."""
    return torch.cat([model.classify(x).softmax(dim=1) for x in pooled.split(batch)])

"""The calls that are timed, in one place: if training changes its interface, this file follows."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from biox.bridge import BridgedModel
from biox.compute import AS_IT_COMES, Compute
from biox.losses import cosine_loss
from biox.pairs import Pairs
from biox.rows import StoredRows, key_of, write_rows
from biox.stacking import StackedTraining
from biox.training import fit_bridge

__all__ = ["Pairs", "bare_tail", "cached_step", "epoch", "online_step", "store", "stored"]

LR = 1e-4  # of Adam; no time depends on it
KEY = key_of({"made of": "random numbers"})


def store(path: Path, last: Tensor) -> None:
    """Write last layers [n, N_L, d_L] as the activations stage does."""
    write_rows(path, last, "float32", KEY)


def stored(path: Path, shape: tuple[int, int, int]) -> StoredRows:
    """Open what `store` wrote, to be read by the batch."""
    return StoredRows.open(path, "float32", shape, KEY)


def cached_step(
    models: Sequence[BridgedModel], pair: Pairs, batch: int, compute: Compute = AS_IT_COMES
) -> Callable[[], Tensor]:
    """Make a call that takes one training step on the cache, of one bridge or of several at once.

    A step reads rows of the cache, then runs bridge and tail forward and backward, and Adam.
    """
    seeds = range(len(models))
    training = StackedTraining(models, pair, pair, LR, batch, seeds, compute=compute)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def step() -> Tensor:
        orders = [torch.randperm(len(pair.pooled), generator=own)[:batch] for own in generators]
        return training.step(torch.stack(orders))

    return step


def epoch(model: BridgedModel, pair: Pairs, val: Pairs, batch: int) -> None:
    """Train for one epoch on the cache, with the losses before and after it."""
    fit_bridge(model, pair, val, LR, epochs=1, batch=batch)


def online_step(model: BridgedModel, x_new: Tensor, x_old: Tensor) -> dict[str, float]:
    """Train one step without a cache, as the released scripts do; seconds of its parts.

    Both frozen models run over the batch, then all of the old model once more, with the bridge's
    tokens put before layer l. Parts: ``target`` and ``below m`` are needed by any step that has no
    cache, ``bridge and tail`` by every step; ``above m`` and ``below l`` by none. All weights of
    the models are frozen here; some of the released scripts also compute their gradients.
    """
    new, old, m, l = model.new, model.old, model.m, model.l
    optimizer = torch.optim.Adam(model.bridge.parameters(), lr=LR)
    marks = [perf_counter()]

    def lap(h: Tensor) -> Tensor:
        marks.append(perf_counter())
        return h

    with torch.no_grad():
        target = lap(old(x_old))
        below = lap(new.run(new.stem(x_new), 0, m + 1))
        lap(new.run(below, m + 1, new.n_layers))
        lap(old.run(old.stem(x_old), 0, l))
    loss = cosine_loss(model.last_layer(new.pool(below)), target)
    loss.backward()
    optimizer.step()
    lap(loss)
    parts = ("target", "below m", "above m", "below l", "bridge and tail")
    return dict(zip(parts, (b - a for a, b in pairwise(marks)), strict=True))


def bare_tail(model: BridgedModel, h: Tensor) -> None:
    """Run the old model's layers from l on forward and backward, with nothing around them."""
    out = h
    for i in range(model.l, model.old.n_layers):
        out = model.old.layer(i, out)
    torch.autograd.grad(out, h, torch.ones_like(out))

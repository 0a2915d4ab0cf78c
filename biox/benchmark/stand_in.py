"""Stacked training and stored rows in their simplest form, until the package has its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from biox.bridge import BridgedModel
from biox.losses import cosine_loss
from biox.training import Pairs


class StackedTraining:
    """Bridges of one size and place that train together; each has batches of its own."""

    def __init__(
        self,
        models: Sequence[BridgedModel],
        pair: Pairs,
        val: Pairs,
        lr: float,
        batch: int,
        seeds: Sequence[int],
    ):
        self.model, self.pair, self.n = models[0], pair, len(models)
        bridges = [dict(model.bridge.named_parameters()) for model in models]
        self.stack = {
            name: torch.stack([bridge[name].detach() for bridge in bridges]).requires_grad_()
            for name in ("A", "B", "prototypes")
        }
        self.optimizer = torch.optim.Adam(self.stack.values(), lr=lr, fused=True)

    def step(self, rows: Tensor) -> Tensor:
        """One step on rows [K, batch] of the pairs; losses [K] before it."""
        one = self.model
        weights = self.pair.pooled[rows] @ self.stack["A"].mT @ self.stack["B"].mT
        weights = weights.view(*rows.shape, one.bridge.n_prototypes, one.bridge.n_tokens)
        tokens = weights.mT.flatten(1, 2) @ self.stack["prototypes"].mT
        tokens = tokens.view(rows.numel(), one.bridge.n_tokens, -1)
        last = one.old.run(tokens, one.l, one.old.n_layers)
        target = self.pair.target[rows.flatten()]
        loss = self.n * cosine_loss(last, target)  # the sum of each bridge's own mean
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return (loss.detach() / self.n).expand(self.n)


@dataclass(frozen=True)
class StoredRows:
    """Rows of a NumPy file; each read maps the file anew and lets go of it."""

    path: Path
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        rows = rows.numpy() if isinstance(rows, Tensor) else rows
        return torch.from_numpy(np.array(np.load(self.path, mmap_mode="r")[rows]))

    def split(self, batch: int) -> Iterator[Tensor]:
        """All rows in order, by the batch."""
        return (self[start : start + batch] for start in range(0, len(self), batch))


def store(path: Path, last: Tensor) -> None:
    """Write last layers [n, N_L, d_L]."""
    np.save(path, last.numpy())


def stored(path: Path, shape: tuple[int, ...]) -> StoredRows:
    """Open what `store` wrote."""
    return StoredRows(path, shape)

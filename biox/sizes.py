"""What activations take on the disk, known beforehand, and what a smaller type would cost."""

from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from biox.backbones.base import Backbone
from biox.frozen import array_shapes, state_shapes
from biox.rows import DTYPES, Rows, array_bytes


@dataclass(frozen=True)
class DiskEstimate:
    """Bytes of one split: `pooled` of all layers, `tokens` and labels, the `last` layer.

    `full` is what all layers of both models would take with all their tokens, in float32.
    """

    pooled: int
    tokens: int
    last: int
    full: int

    @property
    def total(self) -> int:
        """Bytes that are written."""
        return self.pooled + self.tokens + self.last

    def __str__(self) -> str:
        return (
            f"{_megabytes(self.total)} on the disk: pooled features {_megabytes(self.pooled)}, "
            f"last layer {_megabytes(self.last)}, tokens {_megabytes(self.tokens)} "
            f"(all layers with all tokens would be {_megabytes(self.full)})"
        )


def disk_estimate(
    new: Backbone,
    old: Backbone,
    n_windows: int,
    dtype: str = "float32",
    last: str = "stored",
    n_classes: int = 2,
) -> DiskEstimate:
    """Bytes that activations of so many windows take, from the models' measured shapes.

    Works for models on the ``meta`` device, too, which have shapes but no numbers.
    """
    shapes = array_shapes(new, old, n_classes, n_windows)
    sizes = {name: array_bytes("float32", shape) for name, shape in shapes.items()}
    states = state_shapes(new) + state_shapes(old)
    return DiskEstimate(
        pooled=sum(sizes[name] for name in sizes if name.startswith(("new.", "old."))),
        tokens=sum(sizes[name] for name in sizes if name.startswith(("tokens.", "logits"))),
        last=array_bytes(dtype, shapes["last"]) if last == "stored" else 0,
        full=sum(array_bytes("float32", (n_windows, *shape)) for shape in states),
    )


def rounding_errors(last: Tensor | Rows, batch: int = 64) -> pd.DataFrame:
    """What storing a last layer in another type would do to it: one row a type.

    Columns: MB on the disk; the largest distance to the exact last layer of a window, relative to
    its length; and one minus the smallest cosine between the two, which is what the loss sees
    (rounding gives at most 2^-11 and 2^-23 in float16, 2^-8 and 2^-17 in bfloat16).
    """
    rows = {}
    for dtype, (kind, _) in DTYPES.items():
        errors, cosines = [], []
        for part in last.split(batch):
            exact = part.flatten(1).double()
            rounded = part.to(kind).flatten(1).double()
            errors.append((rounded - exact).norm(dim=1) / exact.norm(dim=1))
            cosines.append(F.cosine_similarity(rounded, exact))
        rows[dtype] = {
            "MB": array_bytes(dtype, tuple(last.shape)) / 1e6,
            "largest relative error": torch.cat(errors).max().item(),
            "1 - smallest cosine": max(0.0, 1 - torch.cat(cosines).min().item()),
        }
    return pd.DataFrame(rows).T


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"

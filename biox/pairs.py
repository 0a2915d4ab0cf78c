"""What a bridge learns from, and how a batch of it reaches the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
        """Copy to a device, or have rows that stay on the disk sent there by the batch."""
        return Pairs(self.pooled.to(device), self.target.to(device))


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a batch to a device; to a GPU through pinned memory, without waiting for it."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)

"""What the bridge is trained to: equation 7, and the alternatives the paper's appendix studies."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from biox.bridge import BridgedModel
from biox.config import Bridge


def cosine_loss(bridged: Tensor, target: Tensor) -> Tensor:
    """``1 - cos`` between flattened last layers, mean over the batch (eq. 7).

    Like all losses here: [..., batch, N_L, d_L] gives [...], one loss for each batch.
    """
    bridged, target = bridged.flatten(-2), target.flatten(-2)
    # As in F.cosine_similarity, of which half the time would go into dividing whole layers.
    norms = (torch.linalg.vector_norm(h, dim=-1).clamp_min(1e-8) for h in (bridged, target))
    return 1 - (torch.linalg.vecdot(bridged, target) / math.prod(norms)).mean(dim=-1)


def mae_loss(bridged: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, an alternative the paper's appendix studies."""
    return (bridged - target).abs().mean(dim=(-3, -2, -1))


def infonce_loss(bridged: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of finding a window's own target among the batch's, by cosine / temperature.

    A released script asks for InfoNCE, but no such loss is in the released code: direction (bridged
    to target) and temperature are ours.
    """
    bridged, target = (F.normalize(h.flatten(-2), dim=-1) for h in (bridged, target))
    chances = (bridged @ target.mT / temperature).log_softmax(dim=-1)
    return -chances.diagonal(dim1=-2, dim2=-1).mean(dim=-1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cosine": cosine_loss,
    "mae": mae_loss,
    "infonce": infonce_loss,
}


@dataclass(frozen=True)
class Objective:
    """What a bridge learns: a loss between representations of one layer of the old model.

    Attributes
    ----------
    loss : {"cosine", "mae", "infonce"}
    align : {"last", "input"}
        ``last``: the last layer, behind the tail (eq. 7). ``input``: the input of layer l, which
        the bridge itself writes; no tail is run. There a cosine says nothing about the size of
        what is written, and its gradient at the bridge's start, zero, is huge: Adam remembers it.
    temperature : float
        Of InfoNCE. Its value depends on the batch: mean_loss takes neighbouring windows, harder to
        tell apart than shuffled ones, so losses on val compare with each other, not with train.
    """

    loss: str = "cosine"
    align: str = "last"
    temperature: float = 0.1

    @classmethod
    def of(cls, settings: Bridge) -> "Objective":
        """Take what params.yaml says."""
        return cls(settings.loss, settings.align, settings.temperature)

    def __call__(self, model: BridgedModel, pooled: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch: pooled [batch, d_m] against target [batch, N, d]."""
        bridged = model.last_layer(pooled) if self.align == "last" else model.bridge(pooled)
        return self.compare(bridged, target)

    def compare(self, bridged: Tensor, target: Tensor) -> Tensor:
        """Loss of each batch [...]: found against wanted representations [..., batch, N, d]."""
        options = {"temperature": self.temperature} if self.loss == "infonce" else {}
        return LOSSES[self.loss](bridged, target, **options)


EQUATION_7 = Objective()
"""Cosine between last layers: the paper's, and the default everywhere."""

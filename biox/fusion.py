"""Fusion of an ECG and an EEG encoder: pooled embeddings side by side, one small head.

The second system (Ghallab et al., arXiv 2512.15250): each encoder's last layer is averaged over
tokens, and a linear layer, or one with a hidden layer, reads all averages. A frozen encoder is
represented by its cached embeddings. A missing modality is zero, after scaling the training mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biox.backbones import Backbone


class FusionModel(nn.Module):
    """Scaled embeddings of all modalities, concatenated, and the head.

    Parameters
    ----------
    widths : mapping of str to int
        By modality, in the order of concatenation: features of its embedding.
    n_classes, hidden : int
        Outputs of the head, and width of its hidden layer; None: linear.
    encoders : mapping of str to Backbone, optional
        Encoders to fine-tune. Their modalities come as windows, the others as embeddings.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        n_classes: int,
        hidden: int | None = None,
        encoders: Mapping[str, Backbone] | None = None,
    ):
        super().__init__()
        self.widths = dict(widths)
        self.encoders = nn.ModuleDict(encoders or {})
        for name, width in widths.items():
            self.register_buffer(f"mean_{name}", torch.zeros(width))
            self.register_buffer(f"sd_{name}", torch.ones(width))
        total = sum(widths.values())
        layers = [nn.Linear(total, n_classes)]
        if hidden is not None:
            layers = [nn.Linear(total, hidden), nn.GELU(), nn.Linear(hidden, n_classes)]
        self.head = nn.Sequential(*layers)
        if hidden is None:
            nn.init.zeros_(layers[0].weight)  # a convex problem: nothing to break the symmetry of

    def embed(self, name: str, x: Tensor) -> Tensor:
        """Embeddings [n, width] of a modality: `x` itself, or pooled from windows."""
        if name not in self.encoders:
            return x
        encoder = self.encoders[name]
        return encoder.pool(encoder(x))

    @torch.no_grad()
    def calibrate(self, inputs: Mapping[str, Tensor], batch: int = 64) -> None:
        """Set the scaling of each modality to mean and sd of these (training) inputs."""
        for name in self.widths:
            embedded = torch.cat([self.embed(name, part) for part in inputs[name].split(batch)])
            getattr(self, f"mean_{name}").copy_(embedded.mean(0))
            getattr(self, f"sd_{name}").copy_(embedded.std(0, correction=0).clamp_min(1e-6))

    def forward(
        self, inputs: Mapping[str, Tensor], dropped: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Logits [n, classes].

        `inputs` are embeddings [n, width], or windows where the encoder is fine-tuned; modalities
        may be missing, not all of them. `dropped`, bool [n], makes one missing in single windows.
        """
        some, parts = next(iter(inputs.values())), []
        for name, width in self.widths.items():
            if name not in inputs:
                parts.append(some.new_zeros(len(some), width))
                continue
            scaled = self.embed(name, inputs[name]) - getattr(self, f"mean_{name}")
            scaled = scaled / getattr(self, f"sd_{name}")
            if dropped is not None:
                scaled = scaled.masked_fill(dropped[name][:, None], 0.0)
            parts.append(scaled)
        return self.head(torch.cat(parts, dim=1))

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Tensor], batch: int = 64) -> np.ndarray:
        """Class probabilities [n, classes]."""
        self.eval()
        n = len(next(iter(inputs.values())))
        rows = torch.arange(n).split(batch)
        parts = [self({name: x[r] for name, x in inputs.items()}) for r in rows]
        return torch.cat(parts).softmax(dim=1).numpy()


def train_fusion(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    y: np.ndarray,
    *,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    encoder_lr: float = 1e-4,
    modality_dropout: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Train the head, and the encoders that are part of the model, by class-weighted cross-entropy.

    The model is trained in place, by AdamW; its scaling is set to that of `inputs` first. Returned
    is the mean loss of each epoch.

    Parameters
    ----------
    inputs : mapping of str to Tensor
        As `FusionModel.forward` reads them.
    y : ndarray of int, [n]
    modality_dropout : float
        Share of the windows that lose one modality, others in each epoch.

    Raises
    ------
    ValueError
        A class has no training window.
    """
    n_classes = model.head[-1].out_features
    counts = np.bincount(y, minlength=n_classes)
    if not counts.all():
        raise ValueError(
            f"fusion: expected windows of all {n_classes} classes in train, found {counts.tolist()}"
        )
    weights = torch.tensor(len(y) / (n_classes * counts), dtype=torch.float32)
    generator, target = torch.Generator().manual_seed(seed), torch.from_numpy(y)
    model.eval().calibrate(inputs)
    groups = [{"params": model.head.parameters(), "lr": lr}]
    groups += [{"params": model.encoders.parameters(), "lr": encoder_lr}] if model.encoders else []
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    curve = []
    for _ in range(epochs):
        model.train()
        losses = []
        for rows in torch.randperm(len(y), generator=generator).split(batch):
            dropped = None
            if modality_dropout:  # one modality, drawn evenly, is missing
                lost = torch.rand(len(rows), generator=generator) < modality_dropout
                which = torch.randint(len(inputs), (len(rows),), generator=generator)
                dropped = {name: lost & (which == i) for i, name in enumerate(inputs)}
            logits = model({name: x[rows] for name, x in inputs.items()}, dropped)
            loss = F.cross_entropy(logits, target[rows], weight=weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(rows))
        curve.append(sum(losses) / len(y))
    model.eval()
    return curve

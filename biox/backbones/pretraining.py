"""Pretraining of tiny backbones on simulated windows, so that they stand in for foundation models.

Two tasks at once: predict what the simulator knows (heart rate, band powers, burst rate, ...) from
every token of the last layer, and fill in hidden tokens. Task labels and states are no part of it.
A third term can keep small what the last layer has in common for all windows.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from biox.backbones.base import Backbone


class KnownWindows(NamedTuple):
    """Windows x [n, channels, samples], the simulator's parameters [n, k], their names."""

    x: Tensor
    targets: Tensor
    names: tuple[str, ...] = ()


def common_energy(h: Tensor) -> Tensor:
    """Share of the energy of h [batch, tokens, features] that lies in its mean: 0 to 1.

    What all windows have in common is nothing to a linear head, but makes all cosines alike.
    """
    return h.mean(dim=(0, 1)).square().mean() / h.square().mean()


class Pretext(nn.Module):
    """The two pretext heads on a backbone; thrown away afterwards."""

    def __init__(self, backbone: Backbone, weights: Tensor, mask: float):
        super().__init__()
        self.backbone, self.mask = backbone, mask
        self.register_buffer("weights", weights / weights.sum())
        d_0 = backbone.token_shape(0)[1]
        d_last = backbone.token_shape(backbone.n_layers)[1]
        # Dropout spreads the parameters over many features, so that they dominate the layer.
        self.regression = nn.Sequential(nn.Dropout(0.5), nn.Linear(d_last, len(weights)))
        self.decoder = nn.Linear(d_last, d_0)
        self.mask_token = nn.Parameter(torch.zeros(d_0))

    def _at_length(self, x: Tensor) -> Backbone:
        """The backbone, set to the length of these windows."""
        return self.backbone.for_seconds(x.shape[2] / self.backbone.input_spec.rate)

    def predict(self, x: Tensor) -> Tensor:
        """Standardised simulator parameters [batch, k] of unmasked windows."""
        return self.regression(self.backbone.pool(self._at_length(x)(x)))

    def losses(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parameter loss, reconstruction loss, and `common_energy` of the last layer.

        Tokens are hidden in half of the windows; the other half is seen whole, as later.
        """
        h0 = self._at_length(x).stem(x)
        hidden = torch.rand(h0.shape[:2], device=h0.device) < self.mask
        hidden[len(x) // 2 :] = False
        masked = torch.where(hidden[..., None], self.mask_token, h0)
        last = self.backbone.run(masked, 0, self.backbone.n_layers)
        # Every token predicts, not only their mean: so the tokens of the last layer, which a bridge
        # has to match one by one, agree on the window.
        predicted = self.regression(last)
        errors = F.smooth_l1_loss(
            predicted, targets[:, None].expand_as(predicted), reduction="none"
        )
        parameters = (errors.mean(dim=(0, 1)) * self.weights).sum()
        common = common_energy(last)
        if last.shape[1] != h0.shape[1]:  # convolutional models shorten time
            last = F.interpolate(last.transpose(1, 2), size=h0.shape[1]).transpose(1, 2)
        goal = F.layer_norm(h0.detach(), h0.shape[-1:])
        error = (self.decoder(last) - goal).square().mean(-1)
        return parameters, (error * hidden).sum() / hidden.sum().clamp_min(1), common


def pretrain(
    backbone: Backbone,
    corpora: Sequence[KnownWindows],
    *,
    epochs: int,
    batch: int,
    lr: float,
    mask: float,
    reconstruction: float,
    common: float,
    seed: int,
    weights: Mapping[str, float] | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Train a backbone in place; a tenth of every corpus is held out to measure it.

    Parameters
    ----------
    backbone : Backbone
    corpora : sequence of KnownWindows
        One for each length of window (or number of channels) the backbone will meet; all with
        the same k parameters.
    epochs, batch : int
    lr : float
        Peak learning rate of AdamW (one-cycle schedule).
    mask : float
        Share of stem tokens hidden.
    reconstruction, common : float
        Weights of the reconstruction loss and of `common_energy`; that of the parameter loss is 1.
    seed : int
    weights : mapping of str to float, optional
        Weight of a parameter among the others, by name; 1 where not named.

    Returns
    -------
    losses : ndarray [epochs, 3]
        Means over each epoch: parameter loss, reconstruction loss, `common_energy`.
    r2 : ndarray [k]
        Share of variance explained, on held-out windows, of each parameter.
    """
    torch.manual_seed(seed)
    targets = torch.cat([corpus.targets for corpus in corpora])
    mean, std = targets.mean(0), targets.std(0).clamp_min(1e-6)
    corpora = [c._replace(targets=(c.targets - mean) / std) for c in corpora]
    held_out = [len(c.x) // 10 for c in corpora]
    shares = torch.tensor([(weights or {}).get(name, 1.0) for name in corpora[0].names])
    shares = shares if len(shares) else torch.ones(targets.shape[1])
    pretext = Pretext(backbone.requires_grad_(True), shares, mask).to(device)
    optimizer = torch.optim.AdamW(pretext.parameters(), lr=lr, weight_decay=0.01)
    n_steps = sum((len(c.x) - h) // batch for c, h in zip(corpora, held_out, strict=True))
    if n_steps == 0:
        raise ValueError(f"pretrain: expected more windows than a batch of {batch}, found fewer")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * n_steps)
    curve = np.zeros((epochs, 3))
    for epoch in trange(epochs, desc="pretraining", disable=None):
        pretext.train()
        steps = [
            (corpus, h + rows)
            for corpus, h in zip(corpora, held_out, strict=True)
            for rows in _batches(len(corpus.x) - h, batch)
        ]
        for i in torch.randperm(len(steps)).tolist():
            corpus, rows = steps[i]
            losses = pretext.losses(corpus.x[rows].to(device), corpus.targets[rows].to(device))
            if not torch.isfinite(torch.stack(losses)).all():
                raise FloatingPointError(
                    f"pretraining: expected finite losses, found {losses[0].item()} (parameters) "
                    f"and {losses[1].item()} (hidden tokens) at learning rate {lr}"
                )
            optimizer.zero_grad(set_to_none=True)
            (losses[0] + reconstruction * losses[1] + common * losses[2]).backward()
            nn.utils.clip_grad_norm_(pretext.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            curve[epoch] += torch.stack(losses).detach().cpu().numpy() / len(steps)
    pretext.eval()
    with torch.no_grad():
        parts = [
            (pretext.predict(x.to(device)).cpu(), y)
            for corpus, h in zip(corpora, held_out, strict=True)
            for x, y in zip(corpus.x[:h].split(batch), corpus.targets[:h].split(batch), strict=True)
        ]
    predicted, truth = map(torch.cat, zip(*parts, strict=True))
    r2 = 1 - (predicted - truth).square().mean(0) / truth.var(0)
    backbone.eval().requires_grad_(False).to("cpu")
    return curve, r2.numpy()


def _batches(n: int, batch: int) -> list[Tensor]:
    """Random batches of 0..n-1, whole ones only."""
    return list(torch.randperm(n)[: n // batch * batch].split(batch)) if n >= batch else []

"""Pretraining of tiny backbones on simulated windows, so that they stand in for foundation models.

`pretrain` has two tasks at once: predict what the simulator knows (heart rate, band powers, burst
rate, ...) from every token of the last layer, and fill in hidden tokens. Task labels and states are
no part of it. A third term can keep small what the last layer has in common for all windows.

`pretrain_masked` knows no parameters: it hides patches within leads and whole leads of the signal,
and reconstructs them (arXiv 2512.15250; the loop follows CBraMod's, wjq-learning/CBraMod b9e9610).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
        targets = targets[:, None].expand_as(predicted)
        errors = F.smooth_l1_loss(predicted, targets, reduction="none")
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
    corpora : sequence of KnownWindows
        One for each length of window (or number of channels) the backbone will meet; all with
        the same k parameters.
    epochs, batch, lr
        Of AdamW; `lr` is the peak of a one-cycle schedule.
    mask : float
        Share of stem tokens hidden.
    reconstruction, common : float
        Weights of the reconstruction loss and of `common_energy`; that of the parameter loss is 1.
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
        steps = []
        for corpus, h in zip(corpora, held_out, strict=True):
            steps += [(corpus, h + rows) for rows in _batches(len(corpus.x) - h, batch)]
        for i in torch.randperm(len(steps)).tolist():
            corpus, rows = steps[i]
            losses = pretext.losses(corpus.x[rows].to(device), corpus.targets[rows].to(device))
            if not torch.isfinite(torch.stack(losses)).all():
                found = f"{losses[0].item()} (parameters), {losses[1].item()} (hidden tokens)"
                raise FloatingPointError(
                    f"pretraining: expected finite losses, found {found} at learning rate {lr}"
                )
            optimizer.zero_grad(set_to_none=True)
            (losses[0] + reconstruction * losses[1] + common * losses[2]).backward()
            nn.utils.clip_grad_norm_(pretext.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            curve[epoch] += torch.stack(losses).detach().cpu().numpy() / len(steps)
    pretext.eval()
    held = [(c.x[:h], c.targets[:h]) for c, h in zip(corpora, held_out, strict=True)]
    with torch.no_grad():
        parts = [pretext.predict(x.to(device)).cpu() for xs, _ in held for x in xs.split(batch)]
    predicted, truth = torch.cat(parts), torch.cat([y for _, y in held])
    r2 = 1 - (predicted - truth).square().mean(0) / truth.var(0)
    backbone.eval().requires_grad_(False).to("cpu")
    return curve, r2.numpy()


def _batches(n: int, batch: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Random batches of 0..n-1, whole ones only."""
    order = torch.randperm(n, generator=generator)
    return list(order[: n // batch * batch].split(batch)) if n >= batch else []


# --- dual masking ---------------------------------------------------------------------------------


class DualMask(NamedTuple):
    """Which patches are hidden: some within every lead, or whole leads.

    Attributes
    ----------
    intra, inter : float
        Share of the patches hidden in each lead, and of the leads hidden whole; in (0, 1).
    mix : float
        Probability that a window loses whole leads.
    """

    intra: float
    inter: float
    mix: float

    def draw(self, n: int, leads: int, patches: int, generator: torch.Generator) -> Tensor:
        """Draw for n windows what is hidden: bool [n, leads, patches].

        Numbers of hidden patches (each lead its own) and leads are exact, at least one; one lead at
        least is seen.
        """

        def ranks(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).argsort(-1).argsort(-1)

        within = ranks(n, leads, patches) < max(1, round(self.intra * patches))
        whole = ranks(n, leads) < min(max(1, round(self.inter * leads)), leads - 1)
        across = torch.rand(n, generator=generator) < self.mix
        return torch.where(across[:, None, None], whole[..., None], within)


class MaskedModel(nn.Module):
    """A backbone that reads a window without its hidden patches, and a layer that restores them.

    Hidden patches are zeros (CBraMod's mask token) before anything reads the window: convolutions
    and spectrum see nothing of them. The backbone has one token for each lead and patch.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        tokens, features = backbone.token_shape(backbone.n_layers)
        self.backbone = backbone
        self.leads = backbone.input_spec.channels
        self.patches = tokens // self.leads
        self.patch = backbone.input_spec.samples // self.patches
        assert tokens * self.patch == self.leads * backbone.input_spec.samples
        self.proj_out = nn.Linear(features, self.patch)

    def patched(self, x: Tensor) -> Tensor:
        """Windows [n, leads, samples] as patches [n, leads, patches, samples of a patch]."""
        return x.unflatten(2, (self.patches, self.patch))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Reconstruct all patches [n, leads, patches, samples of a patch] from those not hidden."""
        seen = self.patched(x).masked_fill(hidden[..., None], 0.0).flatten(2)
        return self.proj_out(self.backbone(seen)).unflatten(1, (self.leads, self.patches))

    def loss(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Mean squared error of the hidden patches alone."""
        return (self(x, hidden) - self.patched(x))[hidden].square().mean()


def warmup_cosine(step: int, steps: int, warmup: float, end: float = 0.02) -> float:
    """Factor of the learning rate: up to 1 in the share `warmup` of the steps, then a cosine.

    It ends at `end`; CBraMod goes from 5e-4 to 1e-5, a fiftieth.
    """
    rising = warmup * steps
    if step < rising:
        return (step + 1) / math.ceil(rising)
    share = (step - rising) / max(1, steps - 1 - rising)
    return end + (1 - end) * (1 + math.cos(math.pi * min(1, share))) / 2


def pretrain_masked(
    model: MaskedModel,
    x: Tensor,
    mask: DualMask,
    *,
    epochs: int,
    batch: int,
    lr: float,
    warmup: float,
    weight_decay: float,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | str | None = None,
    on_epoch: Callable[[Backbone], Mapping[str, float]] | None = None,
) -> list[dict[str, float]]:
    """Pretrain in place by reconstruction of what a mask hides; AdamW, gradients clipped at 1.

    Parameters
    ----------
    x : Tensor, [n, leads, samples]
        Windows; the first tenth is held out.
    epochs, batch, lr, warmup, weight_decay
        Of AdamW; `lr` is the peak of `warmup_cosine`.
    seed, device
        Of masks and batches (weights start as they are); ``cuda``: mixed precision (bfloat16).
    checkpoint : path, optional
        Written after each epoch. If it exists, training goes on from there, to the same weights.
    on_epoch : callable, optional
        Called with the backbone, in evaluation mode, before training and after each epoch.

    Returns
    -------
    list of dict
        One for each epoch, from 0 (before training): ``epoch``, ``train`` (NaN in epoch 0),
        ``intra`` and ``inter``, the errors on held-out windows under either mask, and what
        `on_epoch` returned.

    Raises
    ------
    ValueError
        Fewer windows than a batch, or the checkpoint is damaged or of another training.
    FloatingPointError
        The loss is not finite.
    """
    options = mask._asdict() | dict(epochs=epochs, batch=batch, lr=lr, warmup=warmup, seed=seed)
    options |= dict(weight_decay=weight_decay, data=[*x.shape, float(x.double().square().sum())])
    generator, n_held = torch.Generator().manual_seed(seed), len(x) // 10
    per_epoch = (len(x) - n_held) // batch
    if per_epoch == 0:
        raise ValueError(
            f"pretrain_masked: expected more windows than a batch of {batch}, found {len(x)}"
        )
    model.to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    history: list[dict[str, float]] = []
    if checkpoint is not None and Path(checkpoint).is_file():
        saved = _checkpoint(checkpoint, options)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        history = saved["history"]
    for epoch in trange(len(history), epochs + 1, desc="masked pretraining", disable=None):
        model.train()
        losses = []
        for i, rows in enumerate(_batches(len(x) - n_held, batch, generator) if epoch else []):
            factor = warmup_cosine((epoch - 1) * per_epoch + i, epochs * per_epoch, warmup)
            optimizer.param_groups[0]["lr"] = lr * factor
            hidden = mask.draw(len(rows), model.leads, model.patches, generator)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = model.loss(x[n_held + rows].to(device), hidden.to(device))
            if not torch.isfinite(loss):
                text = f"expected a finite loss, found {loss.item()} in epoch {epoch}"
                raise FloatingPointError(f"masked pretraining: {text} at learning rate {lr}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        row = {"epoch": epoch, "train": float(np.mean(losses)) if losses else float("nan")}
        for name, of in (("intra", 0.0), ("inter", 1.0)):
            row[name] = reconstruction_error(model, x[:n_held].to(device), mask._replace(mix=of))
        history.append(row | dict(on_epoch(model.backbone) if on_epoch else {}))
        if checkpoint is not None:
            state = {"options": options, "history": history, "generator": generator.get_state()}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, part := Path(f"{checkpoint}.part"))
            os.replace(part, checkpoint)  # an older one is replaced by a whole new one
    model.eval().requires_grad_(False).to("cpu")
    return history


@torch.no_grad()
def reconstruction_error(model: MaskedModel, x: Tensor, mask: DualMask) -> float:
    """Mean squared error of hidden patches, the same ones whenever it is called."""
    generator, total, count = torch.Generator().manual_seed(0), 0.0, 0
    for part in x.split(64):
        hidden = mask.draw(len(part), model.leads, model.patches, generator)
        total += model.loss(part, hidden.to(x.device)).item() * int(hidden.sum())
        count += int(hidden.sum())
    return total / count


def _checkpoint(path: Path | str, options: Mapping[str, object]) -> dict:
    """Read what `pretrain_masked` wrote after an epoch, if it was with the same options."""
    try:
        saved = torch.load(path, weights_only=True)
        other = {name: saved["options"][name] for name in options}
        found = {name: value for name, value in other.items() if value != options[name]}
    except Exception as error:  # a damaged file may fail in any way
        found = f"a damaged or foreign file ({type(error).__name__})"
    if found:
        expected = f"a checkpoint of masked pretraining with {dict(options)}"
        raise ValueError(f"{path}: expected {expected}, found {found}; delete it to begin anew")
    return saved

"""Training CardioGAN: adversarial losses in time and frequency, and cycle consistency.

From the paper (Sarkar & Etemad 2021): the sum alpha (time) + beta (frequency) + lambda (cycle, mean
absolute error both ways), the adversarial losses as logarithms, segments of both modalities
shuffled separately, so that no pair is left together, Adam, and the learning rate's fall at the
end. Ours: generators maximise log D instead of minimising log(1 - D), which gives them a gradient
from the start (Goodfellow et al. 2014), Adam's averaging, and the choice of the epoch, which the
paper leaves open.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from biox.baselines.cardiogan_networks import Generator, Networks, n_parameters
from biox.baselines.cardiogan_settings import CardioGAN
from biox.compute import Compute

BATCH_FORWARD = 128
"""Segments that pass a generator at once where nothing is learnt."""

BETAS = (0.5, 0.999)
"""Adam's averaging, as in CycleGAN (Zhu et al. 2017). Ours; with torch's 0.9 the cycle loss of
simulated waves ended 80 steps above its start."""

CONSTANT = 2 / 3
"""Share of epochs before the learning rate falls: 10 of 15 in the paper."""


@dataclass(frozen=True)
class Segments:
    """Segments of both modalities, each [n, size] in [-1, 1]; their order means nothing."""

    old: np.ndarray
    new: np.ndarray

    def spread(self, at_most: int | None) -> "Segments":
        """At most so many of each, evenly spread."""
        parts = {}
        for side in ("old", "new"):
            x = getattr(self, side)
            n = min(len(x), at_most or len(x))
            parts[side] = x[np.linspace(0, len(x) - 1, n).round().astype(int)]
        return Segments(**parts)


@dataclass(frozen=True)
class Fit:
    """A finished training, or one that broke off.

    Attributes
    ----------
    generator : Generator
        From the new modality to the old one, of the best epoch.
    n_parameters : int
        All that trained: both generators and four discriminators.
    train_loss, val_loss : tuple of float
        Cycle consistency by epoch, unweighted; the first entry is before training. `train_loss`
        is the mean over an epoch's steps, `val_loss` is measured after the epoch.
    best_epoch : int
        The epoch kept: lowest `val_loss`. That takes no label, no pair and no discriminator; it
        tells how much of a signal survives both translations, not how true the one between is.
    seconds : float
    failed : str
        Why training broke off; empty if it did not.
    """

    generator: Generator
    n_parameters: int
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    best_epoch: int
    seconds: float
    failed: str = ""


def cycle_loss(networks: Networks, old: Tensor, new: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean absolute error after both translations, summed over both ways; and the translations."""
    to_old, to_new = networks.generators["old"], networks.generators["new"]
    fake = {"old": to_old(new), "new": to_new(old)}
    back = F.l1_loss(to_new(fake["old"]), new) + F.l1_loss(to_old(fake["new"]), old)
    return back, fake


def verdict(networks: Networks, x: dict[str, Tensor], real: bool, settings: CardioGAN) -> Tensor:
    """Weighted cross-entropy of all judges' answers about segments of both sides to `real`."""
    weights = {"time": settings.alpha, "frequency": settings.beta}
    total = torch.zeros((), device=x["old"].device)
    for side, judges in networks.judges.items():
        for domain, judge in judges.items():
            logits = judge(x[side])
            answer = torch.full_like(logits, float(real))
            loss = F.binary_cross_entropy_with_logits(logits, answer)
            total = total + weights[domain] * loss
    return total


def rate_share(epoch: int, epochs: int) -> float:
    """Share of the learning rate in an epoch, counted from 0: all of it, then linearly less."""
    constant = round(CONSTANT * epochs)
    return 1 - max(0, epoch - constant + 1) / (epochs - constant + 1)


class Training:
    """Networks, their optimisers, and the data of one seed."""

    def __init__(self, pair: Segments, settings: CardioGAN, seed: int, device: str):
        self.pair, self.settings, self.device = pair, settings, device
        self.rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = Networks(settings.width).to(device)
        parts = (self.networks.generators, self.networks.judges)
        self.optimizers = [
            torch.optim.Adam(part.parameters(), lr=settings.lr, betas=BETAS) for part in parts
        ]

    def batches(
        self, data: Segments, size: int, order: dict[str, np.ndarray] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of both sides on the device; sides of unequal number end with the shorter."""
        order = order or {side: np.arange(len(getattr(data, side))) for side in ("old", "new")}
        n = min(map(len, order.values()))
        for start in range(0, n, size):
            rows = slice(start, min(n, start + size))
            yield tuple(
                torch.from_numpy(getattr(data, side)[order[side][rows]]).to(self.device)
                for side in ("old", "new")
            )

    @torch.no_grad()
    def measure(self, data: Segments) -> float:
        """Cycle loss of some segments as the networks are now."""
        total, n = 0.0, 0
        for old, new in self.batches(data, BATCH_FORWARD):
            total += cycle_loss(self.networks, old, new)[0].item() * len(old)
            n += len(old)
        return self.finite(total / n)

    def epoch(self, epoch: int) -> float:
        """Train for one epoch, counted from 0; the mean cycle loss of its steps."""
        s, pair = self.settings, self.pair
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = s.lr * rate_share(epoch, s.epochs)
        order = {
            side: self.rng.permutation(len(getattr(pair, side)))[: s.segments]
            for side in ("old", "new")
        }
        losses = [self.step(old, new) for old, new in self.batches(pair, s.batch, order)]
        return float(np.mean(losses))

    def step(self, old: Tensor, new: Tensor) -> float:
        """Let the generators learn from one batch, then the judges; the cycle loss before."""
        s, networks = self.settings, self.networks
        generators, judges = self.optimizers
        networks.judges.requires_grad_(False)
        cycle, fake = cycle_loss(networks, old, new)
        loss = s.cycle * cycle + verdict(networks, fake, True, s)
        self.learn(generators, loss)
        networks.judges.requires_grad_(True)
        real, fake = {"old": old, "new": new}, {side: x.detach() for side, x in fake.items()}
        loss = verdict(networks, real, True, s) + verdict(networks, fake, False, s)
        self.learn(judges, loss)
        return cycle.item()

    def learn(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step down a loss."""
        self.finite(loss.item())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def finite(self, loss: float) -> float:
        """Pass a finite loss on.

        Raises
        ------
        FloatingPointError
            It is not finite.
        """
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"CardioGAN: expected a finite loss, found {loss} "
                f"at learning rate {self.settings.lr:g}"
            )
        return loss


def fit(pair: Segments, val: Segments, settings: CardioGAN, seed: int, device: str = "cpu") -> Fit:
    """Train on one thread, so that no number of processes changes a result; keep the best epoch.

    A loss that is no longer finite ends the training; `Fit.failed` says in which epoch.
    """
    with Compute(threads=1).cpu_threads():
        return _fit(Training(pair, settings, seed, device), val.spread(settings.segments), seed)


def _fit(training: Training, val: Segments, seed: int) -> Fit:
    began = time.perf_counter()
    settings, generator = training.settings, training.networks.generators["old"]
    best, curves, failed = copy.deepcopy(generator.state_dict()), {"train": [], "val": []}, ""
    epoch = 0
    try:
        for epoch in trange(settings.epochs + 1, desc=f"CardioGAN, seed {seed}", disable=None):
            if epoch == 0:  # before training
                train = training.measure(training.pair.spread(settings.segments))
            else:
                train = training.epoch(epoch - 1)
            loss = training.measure(val)
            if loss < min(curves["val"], default=np.inf):
                best = copy.deepcopy(generator.state_dict())
            curves["train"].append(train)
            curves["val"].append(loss)
    except FloatingPointError as error:
        failed = f"{error}, epoch {epoch}"
    generator.load_state_dict(best)
    return Fit(
        generator.eval().requires_grad_(False).cpu(),
        n_parameters(training.networks),
        tuple(curves["train"]),
        tuple(curves["val"]),
        int(np.argmin(curves["val"])) if curves["val"] else 0,
        time.perf_counter() - began,
        failed,
    )


@torch.no_grad()
def translated(generator: Generator, segments: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Translate segments [..., size], batch by batch on one CPU thread."""
    flat = segments.reshape(-1, segments.shape[-1])
    generator = generator.to(device)
    with Compute(threads=1).cpu_threads():
        parts = [
            generator(torch.from_numpy(flat[i : i + BATCH_FORWARD].copy()).to(device)).cpu()
            for i in range(0, len(flat), BATCH_FORWARD)
        ]
    return torch.cat(parts).numpy().reshape(segments.shape)

"""CardioGAN (Sarkar & Etemad, AAAI 2021): translate the new modality, then ask the old teacher.

Two attention U-Nets translate unpaired segments of 4 s at 128 Hz between the modalities, against
discriminators of the signal and of its short-time spectrum. Table 1 has this baseline for one
direction: PPG becomes ECG, which the frozen ECG teacher classifies. No label and no pair is used.

From the paper: encoders of 64, 128, 256, 512, 512, 512 filters of size 16, stride 2, layer norm and
leaky ReLU; decoders that mirror them; tanh at the end; four convolutions in a discriminator (64 to
512 filters, stride 2; size 16, or 7 x 7 on the spectrum); the losses and their weights; Adam with a
learning rate that falls linearly after two thirds of the epochs. From the released code
(pritamqu/ppg2ecg-cardiogan, which holds the generator alone): where gates and norms stand, sums
instead of concatenations, initial weights.

Ours: hop, window and logarithm of the spectrum; the discriminators' norms and outputs by place;
padding of lengths that are no multiple of 64; larger initial weights in narrower networks;
generators that maximise log D instead of minimising log(1 - D) (Goodfellow et al. 2014); Adam's
averaging, as in CycleGAN (Zhu et al. 2017); the choice of the epoch. Signals are biox's conditioned
windows, not recordings filtered at 3-45 and 1-8 Hz; segments do not overlap, as windows do.

The 28.2M parameters that the BioX-Bridge paper states are those of one generator, 28,237,255.
Training needs two, and four discriminators.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from biox.activations import FrozenDirection
from biox.baselines.distillation import seeded
from biox.config import CardioGAN, device_of
from biox.data.conditioning import polyphase, standardise
from biox.metrics import Result
from biox.teacher import teacher_probabilities
from biox.training import located, parallel

FILTERS = (64, 128, 256, 512, 512, 512)
KERNEL = 16
LEAK = 0.2
FFT, HOP = 128, 32
BETAS = (0.5, 0.999)  # of Adam; with torch's 0.9 the cycle loss of simulated waves grew
EVALUATED = 128  # segments that pass a generator at once where nothing is trained


# --- networks -------------------------------------------------------------------------------------


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place: [batch, channels, ...]."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-3)  # Keras' default

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class AttentionGate(nn.Module):
    """Share of a skip connection let through at each time step, in (0, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.skip = nn.Conv1d(channels, channels, 1)
        self.decoded = nn.Conv1d(channels, channels, 1)
        self.share = nn.Conv1d(channels, 1, 1)

    def forward(self, skip: Tensor, decoded: Tensor) -> Tensor:
        """Map two [batch, channels, time] to [batch, 1, time]."""
        return torch.sigmoid(self.share(F.relu(self.skip(skip) + self.decoded(decoded))))


class Generator(nn.Module):
    """Attention U-Net from one modality's segments to the other's, [batch, time] in [-1, 1]."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        sizes = [max(1, round(width * n)) for n in FILTERS]
        self.multiple = 2 ** len(sizes)
        down = dict(kernel_size=KERNEL, stride=2, padding=KERNEL // 2 - 1)
        self.encoder = nn.ModuleList(
            nn.Conv1d(a, b, bias=False, **down) for a, b in zip([1, *sizes], sizes, strict=False)
        )
        self.encoder_norms = nn.ModuleList(ChannelNorm(n) for n in sizes[1:])
        up = sizes[::-1]
        same = dict(kernel_size=KERNEL, stride=1, padding=KERNEL // 2 - 1)
        self.decoder = nn.ModuleList([nn.ConvTranspose1d(up[0], up[0], bias=False, **same)])
        self.decoder.extend(
            nn.ConvTranspose1d(a, b, bias=False, **down) for a, b in zip(up, up[1:], strict=False)
        )
        self.decoder_norms = nn.ModuleList(ChannelNorm(n) for n in up)
        self.gates = nn.ModuleList(AttentionGate(n) for n in up)
        self.last = nn.ConvTranspose1d(up[-1], 1, **down)
        _initialise(self, width)

    def forward(self, x: Tensor) -> Tensor:
        """Translate segments [batch, time] of any length."""
        length = x.shape[1]
        h = F.pad(x[:, None], (0, -length % self.multiple), mode="replicate")
        skips = []
        for i, layer in enumerate(self.encoder):
            h = layer(h)
            h = F.leaky_relu(self.encoder_norms[i - 1](h) if i else h, LEAK)
            skips.append(h)
        for layer, norm, gate in zip(self.decoder, self.decoder_norms, self.gates, strict=True):
            skip = skips.pop()
            # The layer of stride 1 and even size gives one step too many.
            h = F.relu(norm(layer(h)[..., : skip.shape[-1]]))
            h = h + gate(skip, h) * skip
        return torch.tanh(self.last(h))[:, 0, :length]


class Discriminator(nn.Module):
    """Four strided convolutions and a fifth that gives a logit of being real at each place.

    In the domain ``time`` they read segments [batch, time], in ``frequency`` the logarithm of their
    short-time spectrum. `width` multiplies the numbers of filters.
    """

    def __init__(self, domain: str, width: float = 1.0):
        super().__init__()
        self.domain = domain
        kind, kernel = (nn.Conv1d, KERNEL) if domain == "time" else (nn.Conv2d, 7)
        sizes = [max(1, round(width * n)) for n in FILTERS[:4]]
        padding = (kernel - 1) // 2
        self.layers = nn.ModuleList(
            kind(a, b, kernel, stride=2, padding=padding, bias=False)
            for a, b in zip([1, *sizes], sizes, strict=False)
        )
        self.norms = nn.ModuleList(ChannelNorm(n) for n in sizes[1:])
        self.last = kind(sizes[-1], 1, kernel, padding=padding)
        _initialise(self, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [batch, 1, places] or [batch, 1, bands, frames]."""
        h = (x if self.domain == "time" else log_magnitude(x))[:, None]
        for i, layer in enumerate(self.layers):
            h = layer(h)
            h = F.leaky_relu(self.norms[i - 1](h) if i else h, LEAK)
        return self.last(h)


def log_magnitude(x: Tensor) -> Tensor:
    """Segments [batch, time] -> log (1 + short-time magnitude) [batch, frequencies, frames].

    With a tiny number instead of 1, the gradient would be one over the magnitude, and the empty
    bins above a signal's band would outweigh all others.
    """
    window = torch.hann_window(FFT, device=x.device)
    return torch.log1p(torch.stft(x, FFT, HOP, window=window, return_complex=True).abs())


class Networks(nn.Module):
    """Generators to the ``old`` and ``new`` modality, and two discriminators of each."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.generators = nn.ModuleDict({side: Generator(width) for side in ("old", "new")})
        self.discriminators = nn.ModuleDict()
        for side in self.generators:
            both = {k: Discriminator(k, width) for k in ("time", "frequency")}
            self.discriminators[side] = nn.ModuleDict(both)

    @property
    def n_parameters(self) -> int:
        """Trained parameters."""
        return sum(p.numel() for p in self.parameters())


def _initialise(module: nn.Module, width: float) -> None:
    """Draw weights from a normal distribution of sd 0.02; biases start at zero.

    Narrower layers add fewer terms: larger weights give their sums the published variance.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d):
            nn.init.normal_(layer.weight, std=0.02 * (width**-0.5 if layer.in_channels > 1 else 1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


# --- windows and segments -------------------------------------------------------------------------


def segment_starts(samples: int, size: int) -> list[int]:
    """First samples of the segments that cover a window, one after another.

    Where the window is no multiple, the last one ends with it and overlaps the one before.
    """
    if samples < size:
        expected = f"windows of at least one segment, {size} samples"
        raise ValueError(f"CardioGAN: expected {expected}, found {samples}")
    first = list(range(0, samples - size + 1, size))
    return first if first[-1] + size == samples else [*first, samples - size]


def to_segments(x: np.ndarray, rate: float, settings: CardioGAN) -> np.ndarray:
    """Windows [n, 1, samples] at `rate` -> segments [n, segments, size] in [-1, 1], constants 0."""
    x = polyphase(np.asarray(x[:, 0], np.float64), rate, settings.rate)
    size = settings.samples
    cut = np.stack([x[:, i : i + size] for i in segment_starts(x.shape[1], size)], axis=1)
    low = cut.min(axis=-1, keepdims=True)
    span = cut.max(axis=-1, keepdims=True) - low
    scaled = np.where(span > 0, 2 * (cut - low) / np.where(span > 0, span, 1) - 1, 0.0)
    return scaled.astype(np.float32)


def to_windows(x: np.ndarray, seconds: float, rate: float, settings: CardioGAN) -> np.ndarray:
    """Segments [n, segments, size] -> windows [n, 1, samples at `rate`] of a length in seconds.

    Where two segments overlap, the later one counts. The scale stays that of the segments.
    """
    segments, size = x, x.shape[2]
    x = np.empty((len(x), int(np.floor(seconds * settings.rate + 1e-9))))
    for k, i in enumerate(segment_starts(x.shape[1], size)):
        x[:, i : i + size] = segments[:, k]
    x = polyphase(x, settings.rate, rate)
    samples = round(seconds * rate)
    # Rounding twice may lose the last sample: repeat it.
    x = np.pad(x, ((0, 0), (0, max(0, samples - x.shape[1]))), mode="edge")[:, :samples]
    return x[:, None].astype(np.float32)


# --- training -------------------------------------------------------------------------------------


class Segments(NamedTuple):
    """Segments of both modalities, each [n, size] in [-1, 1]; their order means nothing."""

    old: np.ndarray
    new: np.ndarray

    def spread(self, most: int | None) -> Segments:
        """Keep at most so many of each, evenly spread."""
        rows = (np.linspace(0, len(x) - 1, min(len(x), most or len(x))) for x in self)
        return Segments(*(x[r.round().astype(int)] for x, r in zip(self, rows, strict=True)))

    def batches(self, size: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of both; sides of unequal number end with the shorter."""
        for start in range(0, min(map(len, self)), size):
            stop = min(start + size, *map(len, self))
            yield tuple(torch.from_numpy(x[start:stop]).to(device) for x in self)


def cycle_loss(networks: Networks, old: Tensor, new: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean absolute error after both translations, summed over both ways; and the translations."""
    to_old, to_new = networks.generators["old"], networks.generators["new"]
    fake = {"old": to_old(new), "new": to_new(old)}
    return F.l1_loss(to_new(fake["old"]), new) + F.l1_loss(to_old(fake["new"]), old), fake


def adversarial_loss(
    networks: Networks, x: Mapping[str, Tensor], real: bool, settings: CardioGAN
) -> Tensor:
    """Weighted cross-entropy of all discriminators' logits for segments x to the class `real`."""
    weights, total = {"time": settings.alpha, "frequency": settings.beta}, 0.0
    for side, discriminators in networks.discriminators.items():
        for domain, discriminator in discriminators.items():
            logits = discriminator(x[side])
            truth = torch.full_like(logits, float(real))
            loss = F.binary_cross_entropy_with_logits(logits, truth)
            total = total + weights[domain] * loss
    return total


def adam(networks: Networks, settings: CardioGAN) -> list[torch.optim.Adam]:
    """Make the optimizers of generators and discriminators."""
    parts = (networks.generators, networks.discriminators)
    return [torch.optim.Adam(p.parameters(), lr=settings.lr, betas=BETAS) for p in parts]


def train_step(
    networks: Networks, optimizers: list, old: Tensor, new: Tensor, settings: CardioGAN
) -> float:
    """Train the generators, then the discriminators, on a batch; return the cycle loss before."""
    networks.discriminators.requires_grad_(False)
    cycle, fake = cycle_loss(networks, old, new)
    loss = settings.cycle * cycle + adversarial_loss(networks, fake, True, settings)
    _descend(optimizers[0], loss)
    networks.discriminators.requires_grad_(True)
    fake = {side: x.detach() for side, x in fake.items()}
    loss = adversarial_loss(networks, {"old": old, "new": new}, True, settings)
    _descend(optimizers[1], loss + adversarial_loss(networks, fake, False, settings))
    return cycle.item()


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    if not loss.isfinite():
        raise FloatingPointError(f"CardioGAN: expected a finite loss, found {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def lr_factor(epoch: int, epochs: int) -> float:
    """Factor of the learning rate in an epoch, counted from 1: one for two thirds, then less."""
    constant = round(2 / 3 * epochs)
    return 1 - max(0, epoch - constant) / (epochs - constant + 1)


def train_cardiogan(
    pair: Segments, val: Segments, settings: CardioGAN, *, seed: int, device: str = "cpu"
) -> tuple[Networks, pd.DataFrame]:
    """Train all networks; keep the generator to ``old`` of the lowest cycle loss on val.

    That loss reads no label and no pair. It measures how much of a signal survives both
    translations, not how true the one between is. Returned are the networks and a table ``epoch
    train val`` of cycle losses; row 0 is before training.

    Raises
    ------
    FloatingPointError
        A loss is not finite; the message names epoch and learning rate.
    """
    with seeded(seed):
        networks = Networks(settings.width).to(device)
    generator, optimizers = networks.generators["old"], adam(networks, settings)
    rng, n = np.random.default_rng(seed), settings.segments
    train = mean_cycle_loss(networks, pair.spread(n), device)
    history = [(0, train, mean_cycle_loss(networks, val.spread(n), device))]
    best = copy.deepcopy(generator.state_dict())
    for epoch in trange(1, settings.epochs + 1, desc=f"CardioGAN, seed {seed}", disable=None):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = settings.lr * lr_factor(epoch, settings.epochs)
        drawn = Segments(*(x[rng.permutation(len(x))[:n]] for x in pair))  # no pair is kept
        with located("", epoch, settings.lr):
            batches = drawn.batches(settings.batch, device)
            losses = [train_step(networks, optimizers, *batch, settings) for batch in batches]
            loss = mean_cycle_loss(networks, val.spread(n), device)
        if loss < min(value for _, _, value in history):
            best = copy.deepcopy(generator.state_dict())
        history.append((epoch, float(np.mean(losses)), loss))
    generator.load_state_dict(best)
    return networks, pd.DataFrame(history, columns=["epoch", "train", "val"])


@torch.no_grad()
def mean_cycle_loss(networks: Networks, data: Segments, device: str) -> float:
    """Mean cycle loss of segments."""
    batches = list(data.batches(EVALUATED, device))
    total = sum(cycle_loss(networks, old, new)[0].item() * len(old) for old, new in batches)
    if not np.isfinite(total):
        raise FloatingPointError(f"CardioGAN: expected a finite loss, found {total}")
    return total / sum(len(old) for old, _ in batches)


@torch.no_grad()
def translate(generator: Generator, segments: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Translate segments [..., size]."""
    flat = torch.from_numpy(segments.reshape(-1, segments.shape[-1]))
    parts = [generator(part.to(device)).cpu() for part in flat.split(EVALUATED)]
    return torch.cat(parts).numpy().reshape(segments.shape)


def cardiogan(
    frozen: FrozenDirection, x_new: Mapping[str, Tensor], x_old: Mapping[str, Tensor]
) -> tuple[list[Result], list[np.ndarray]]:
    """Train on *pair*, keep the epoch by *val*, translate *test* and classify it, for every seed.

    The teacher reads the translated segments side by side, at its rate, z-scored over the window.
    `x_new` and `x_old` are windows [n, 1, samples] by split; of the old modality only pair and val
    are read. Returned are, by seed, results and what the teacher read [n_test, 1, samples], NaN
    where training failed.
    """
    tasks = [partial(_run, frozen, x_new, x_old, seed) for seed in frozen.settings.seeds]
    found = parallel(tasks, n_jobs=-1 if device_of(frozen.settings) == "cpu" else 1)
    return [result for result, _ in found], [x for _, x in found]


def _run(frozen: FrozenDirection, x_new, x_old, seed: int) -> tuple[Result, np.ndarray]:
    settings, device = frozen.settings.cardiogan, device_of(frozen.settings)
    new, old = frozen.new.input_spec, frozen.old.input_spec
    assert new.channels == old.channels == 1, "CardioGAN: expected one channel a modality"
    cut = partial(to_segments, settings=settings)
    sides = ((x_old, old), (x_new, new))
    pair, val = (
        Segments(*(cut(x[split].numpy(), s.rate).reshape(-1, settings.samples) for x, s in sides))
        for split in ("pair", "val")
    )
    shape = (len(x_new["test"]), frozen.head.out_features)
    try:
        networks, history = train_cardiogan(pair, val, settings, seed=seed, device=device)
        segments = cut(x_new["test"].numpy(), new.rate)
        segments = translate(networks.generators["old"], segments, device)
        x = standardise(to_windows(segments, old.seconds, old.rate, settings)[:, 0])
        x = x[:, None].astype(np.float32)
        probabilities = teacher_probabilities(frozen.old, frozen.head, torch.from_numpy(x))
    except FloatingPointError as error:
        failed = Result("CardioGAN", seed, np.full(shape, np.nan), np.nan, failed=str(error))
        return failed, np.full((shape[0], 1, old.samples), np.nan)
    best, n = int(history["val"].argmin()), networks.n_parameters
    return Result("CardioGAN", seed, probabilities, n, settings.lr, history, best), x

"""How fast the published sizes run: ``python -m biox.bench`` prints ratios, not seconds alone.

Each backbone is timed beside the plain computation with the same weights: attention written out as
softmax(q k^T) v, layer after layer. NormWear's wavelet transform is timed beside a loop over
channels and widths, which is how `scipy.signal.cwt` and with it the released code did it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from biox.apart import new_processes
from biox.backbones import Backbone, build
from biox.backbones.papagei import PaPaGei
from biox.backbones.wavelet import WIDTHS, RickerScalogram, ricker

SIZES = {
    "labram": "base",
    "hubert_ecg": "small",
    "papagei": "small",
    "normwear": "base",
    "cbramod": "base",
    "ecg_fm": "base",
}
SLOWEST_FORWARD = 1.1  # target: seconds of biox over those of the plain computation
LEAST_WAVELET = 20.0  # target: seconds of the loop over those of biox

SAME = {"rtol": 1e-3, "atol": 1e-3}  # both must compute the same before they are compared


@contextmanager
def written_out_attention() -> Iterator[None]:
    """Within it, attention is two matrix products and a softmax; nothing is fused."""

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        if attn_mask is not None or dropout_p or is_causal:
            raise ValueError("written_out_attention: expected neither mask nor dropout")
        scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
        return scores.softmax(dim=-1) @ v

    fused, fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    F.scaled_dot_product_attention = attention
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused
        torch.backends.mha.set_fastpath_enabled(fast)


@torch.no_grad()
def plain_forward(backbone: Backbone, x: Tensor) -> Tensor:
    """Last layer's output [batch, tokens, features], computed without biox's interface."""
    if isinstance(backbone, PaPaGei):  # channels stay first throughout
        h = F.relu(backbone.first_block_bn(backbone.first_block_conv(x)))
        for block in backbone.basicblock_list:
            h = block(h)
        return h.transpose(1, 2)
    with written_out_attention():
        h = backbone.stem(x)
        for i in range(backbone.n_layers):
            h = backbone.layer(i, h)
    return h


def plain_scalogram(x: np.ndarray) -> np.ndarray:
    """[batch, channels, samples] -> [batch, channels, 3, samples - 2, 65], one row at a time."""
    from scipy.signal import convolve

    first = np.diff(x)
    kinds = np.stack([x[..., 2:], first[..., 1:], np.diff(first)], axis=2)
    out = np.empty((*kinds.shape, len(WIDTHS)))
    for row in np.ndindex(kinds.shape[:3]):
        for i, width in enumerate(WIDTHS):
            wavelet = ricker(min(round(10 * width), kinds.shape[3]), width)
            out[(*row, slice(None), i)] = convolve(kinds[row], wavelet[::-1], mode="same")
    return out


def fastest(calls: Sequence[Callable[[], object]], seconds: float = 6.0) -> list[float]:
    """Shortest time of each call, taken in turns (at least twice) for about so many seconds."""
    times: list[list[float]] = [[] for _ in calls]
    began = perf_counter()
    while len(times[-1]) < 2 or perf_counter() - began < seconds:
        for call, taken in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            taken.append(perf_counter() - start)
    return [min(taken) for taken in times]


def some_windows(backbone: Backbone, batch: int) -> Tensor:
    """Return noise of the shape that a backbone reads [batch, channels, samples]."""
    spec = backbone.input_spec
    return torch.randn(
        batch, spec.channels, spec.samples, generator=torch.Generator().manual_seed(0)
    )


@dataclass(frozen=True)
class Cost:
    """Seconds of one forward pass of a batch, and bytes that model and pass took at most."""

    seconds: float
    memory: int


def measure(name: str, size: str, batch: int = 4) -> Cost:
    """Measure one forward pass in a process of its own, so that no other model's memory counts."""
    with new_processes(load="biox.bench") as pool:
        return pool.submit(_measure, name, size, batch).result()


@torch.no_grad()
def _measure(name: str, size: str, batch: int) -> Cost:
    tiny = build(name, "tiny")
    tiny(some_windows(tiny, 1))  # libraries are loaded now
    before = _memory("VmRSS")
    backbone = build(name, size)
    x = some_windows(backbone, batch)
    backbone(x[:1])
    start = perf_counter()
    backbone(x)
    return Cost(perf_counter() - start, _memory("VmHWM") - before)


def _memory(field: str) -> int:
    """Resident bytes of this process now (VmRSS) or at most so far (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main(batch: int = 4) -> None:
    """Print each backbone's ratio and the wavelet's, beside their targets."""
    print(f"{torch.get_num_threads()} threads, batch {batch}, seconds of the fastest pass")
    print(f"{'':18}{'biox':>9}{'plain':>9}{'ratio':>8}   target")
    for name, size in SIZES.items():
        torch.manual_seed(0)
        backbone = build(name, size).requires_grad_(False)
        x = some_windows(backbone, batch)
        torch.testing.assert_close(backbone(x[:1]), plain_forward(backbone, x[:1]), **SAME)
        ours, plain = fastest([lambda: backbone(x), lambda: plain_forward(backbone, x)])  # noqa: B023
        print(
            f"{name + ' ' + size:18}{ours:9.3f}{plain:9.3f}{ours / plain:8.2f}"
            f"   at most {SLOWEST_FORWARD}"
        )
    x = torch.randn(batch, 3, 390)
    scalogram = RickerScalogram(390)
    ours, plain = fastest([lambda: scalogram(x), lambda: plain_scalogram(x.double().numpy())], 3.0)
    print(
        f"{'wavelet':18}{ours:9.4f}{plain:9.4f}{plain / ours:7.0f}x   at least {LEAST_WAVELET:.0f}x"
    )


if __name__ == "__main__":
    main()

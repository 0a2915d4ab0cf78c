"""NormWear (EMG and other wearables): a vision transformer over wavelet pictures of every channel.

Architecture and parameter names: Mobile-Sensing-and-UbiComp-Laboratory/NormWear, encoder part, as
BioX-Bridge runs it. The wavelet transform follows scipy.signal's ``ricker`` and ``cwt`` (removed in
SciPy 1.15) and the released BioX-Bridge code, ``dataset_preprocessing/make_FOG.py``.
"""

import numpy as np
import torch
from torch import Tensor, nn

from biox.backbones.base import Backbone, InputSpec, Origin, check_finite, check_windows
from biox.backbones.blocks import Block, initialise

# Of every LayerNorm: torch's default, not timm's 1e-6. CLS tokens are small enough to notice: the
# released model's numbers are met to 4e-6 with this, to 4e-3 with the other.
EPS = 1e-5


WIDTHS = 0.1 + np.arange(65)
"""Widths of the wavelets in samples: 0.1, 1.1, ..., 64.1."""


def ricker(points: int, width: float) -> np.ndarray:
    """Ricker wavelet (negative second derivative of a Gaussian) of unit energy, [points]."""
    t = (np.arange(points) - (points - 1) / 2) / width
    return 2 / (np.sqrt(3 * width) * np.pi**0.25) * (1 - t**2) * np.exp(-(t**2) / 2)


class RickerScalogram(nn.Module):
    """Windows [batch, channels, samples] -> [batch, channels, 3, samples - 2, 65].

    Axis 2 holds the signal and its first and second differences, each without the samples where
    the second difference does not exist. All scales are convolved in one product of spectra.

    Parameters
    ----------
    samples : int
        Samples per window, at least 3.
    """

    def __init__(self, samples: int):
        from scipy.fft import next_fast_len  # slow to import, and for this model alone

        super().__init__()
        self.length = samples - 2
        # Of the full convolution only the middle is kept (mode "same"): zeros for half of the
        # longest kernel, which is as long as the signal, keep the ends from wrapping into it.
        self.padded = next_fast_len(self.length + self.length // 2 + 1, real=True)
        kernels = np.zeros((len(WIDTHS), self.padded))
        for row, width in zip(kernels, WIDTHS, strict=True):
            wavelet = ricker(min(round(10 * width), self.length), width)
            row[: len(wavelet)] = wavelet
            row[:] = np.roll(row, -((len(wavelet) - 1) // 2))  # the middle at index 0
        # Real and imaginary parts side by side: `module.double()` leaves complex buffers alone.
        spectra = torch.view_as_real(torch.fft.rfft(torch.tensor(kernels)))
        self.register_buffer("spectra", spectra.float(), False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform windows [batch, channels, samples]."""
        first = x.diff(dim=-1)
        kinds = torch.stack([x[..., 2:], first[..., 1:], first.diff(dim=-1)], dim=2)
        spectra = torch.fft.rfft(kinds.unsqueeze(-2), self.padded)
        filtered = torch.fft.irfft(spectra * torch.view_as_complex(self.spectra), self.padded)
        return filtered[..., : self.length].transpose(-1, -2)


class ChannelBlock(nn.Module):
    """Attention within each channel; in every second block also among the channels' CLS tokens."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, fuses: bool):
        super().__init__()
        self.variate_encoder = Block(dim, heads, mlp_ratio, EPS)
        self.cls_fusion = Block(dim, heads, mlp_ratio, EPS) if fuses else None

    def forward(self, h: Tensor) -> Tensor:
        """Map [batch, channels, tokens, dim] to the same shape."""
        batch = len(h)
        h = self.variate_encoder(h.flatten(0, 1)).unflatten(0, (batch, -1))
        if self.cls_fusion is None:
            return h
        cls = self.cls_fusion(h[:, :, 0])
        return torch.cat([cls.unsqueeze(2), h[:, :, 1:]], dim=2)


def sincos_2d(dim: int, rows: int, columns: int) -> Tensor:
    """Position table [1, 1 + rows * columns, dim]: zeros for CLS, then row-major positions.

    The first half of a position encodes its column, the second its row; each half is sines, then
    cosines, at wavelengths from 2 pi to 20000 pi (masked autoencoder, ``pos_embed.py``).
    """
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    angles = [torch.outer(column, rates), torch.outer(row, rates)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, dim), table]).float().unsqueeze(0)


class NormWear(Backbone):
    """NormWear with tokens folded channel by channel, each [CLS, time 1 scale 1, ...].

    Windows are z-scored channels at 130 Hz; the stem computes their wavelet transform.

    Size ``base`` is published. The position table, which is computed, depends on the length.
    """

    sizes = {
        "base": {"dim": 768, "heads": 12, "layers": 12, "mlp_ratio": 4, "patch": (9, 5)},
        "tiny": {"dim": 64, "heads": 4, "layers": 4, "mlp_ratio": 2, "patch": (9, 32)},
    }
    wrappers = ("model",)
    key_prefixes = ("backbone.",)  # in checkpoints that BioX-Bridge's scripts save
    # Decoder and reconstruction heads of pretraining, and the final norm (paper: h_L is before it).
    unused_prefixes = ("norm.", "decoder_", "mask_token", "temporal_recon.", "spatial_recon.")
    origin = Origin(
        repository="github.com/Mobile-Sensing-and-UbiComp-Laboratory/NormWear",
        licence="Apache-2.0",
        weights="normwear_last_checkpoint-15470-correct.pth, linked from the repository",
        parameters={"base": ("136.1M", "BioX-Bridge, table 1")},
    )
    resizable = ("pos_embed",)
    default_spec = InputSpec("emg", 3, 130.0, 3.0, "z-score", "emg_normwear")
    least = 11  # a patch of 9, and two that the differences take

    def make(
        self, dim: int, heads: int, layers: int, mlp_ratio: int, patch: tuple[int, int]
    ) -> None:
        """Build the blocks; `patch` is (samples, scales) of a patch."""
        self.n_layers = layers
        self.scalogram = RickerScalogram(self.input_spec.samples)
        self.patch_embed = nn.Module()  # only for the published name
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        grid = (self.scalogram.length // patch[0], len(WIDTHS) // patch[1])
        self.register_buffer("pos_embed", sincos_2d(dim, *grid))
        self.encoder_blocks = nn.ModuleList(
            ChannelBlock(dim, heads, mlp_ratio, fuses=i % 2 == 0) for i in range(layers)
        )
        self.apply(initialise)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def stem(self, x: Tensor) -> Tensor:
        """Embed windows as [batch, channels * (1 + patches), features].

        Parameters
        ----------
        x : Tensor
            Windows [batch, channels, samples], or their ready scalograms
            [batch, channels, 3, samples - 2, 65].
        """
        if x.ndim == 5:
            ready = (self.input_spec.channels, 3, self.scalogram.length, len(WIDTHS))
            if tuple(x.shape[1:]) != ready:
                expected = f"scalograms [batch, {', '.join(map(str, ready))}]"
                raise ValueError(f"emg stem: expected {expected}, found shape {list(x.shape)}")
            check_finite(x, self.input_spec)
        else:
            check_windows(x, self.input_spec)
            x = self.scalogram(x)
        # [batch x channels, time x scale, features], time-major; what fills no patch is left out
        patches = self.patch_embed.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return (tokens + self.pos_embed).reshape(len(x), -1, tokens.shape[2])

    @torch.no_grad()
    def precompute(self, x: Tensor) -> Tensor:
        """Scalograms [n, channels, 3, samples - 2, 65] of windows [n, channels, samples].

        They take half the time of a training step of a small model.
        """
        return torch.cat([self.scalogram(part) for part in x.split(64)])

    def resized(self, key: str, table: Tensor) -> Tensor:
        """Position table [1, tokens, features] of this window: analytic, whatever the file's is."""
        return self.pos_embed

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run block i on [batch, channels * tokens, features]."""
        h = h.unflatten(1, (self.input_spec.channels, -1))
        return self.encoder_blocks[i](h).flatten(1, 2)

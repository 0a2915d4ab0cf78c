"""NormWear's picture of a signal: Ricker wavelet transform of it and of its two differences.

Definitions follow scipy.signal's ``ricker`` and ``cwt`` (removed in SciPy 1.15) and the order of
the released BioX-Bridge code, ``dataset_preprocessing/make_FOG.py``.
"""

import numpy as np
import torch
from torch import Tensor, nn

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

"""CardioGAN's networks: attention U-Nets that translate, and what judges their answers.

From the paper (Sarkar & Etemad 2021): two attention U-Nets, encoders of 64, 128, 256, 512, 512, 512
filters of size 16, stride 2, layer norm and leaky ReLU, decoders that mirror them, tanh at the end;
for each modality a discriminator of the signal and one of the logarithm of its short-time spectrum,
four convolutions each (64 to 512 filters, stride 2; size 16, or 7 x 7). From the released code
(``codes/module.py`` and ``codes/layers.py`` of pritamqu/ppg2ecg-cardiogan; it holds the generator
alone): where gates and norms stand, sums instead of concatenations, initial weights. Ours: hop,
window and logarithm of the spectrum, the discriminators' norms and answers by place, the padding of
lengths that are no multiple of 64, and larger initial weights in narrower networks.

The 28.2M trained parameters that the BioX-Bridge paper states are those of one generator:
28,237,255. Training needs two, and four discriminators.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILTERS = (64, 128, 256, 512, 512, 512)
JUDGE_FILTERS = (64, 128, 256, 512)
KERNEL = 16
LEAK = 0.2
FFT, HOP = 128, 32


def widths(filters: tuple[int, ...], width: float) -> tuple[int, ...]:
    """Scale numbers of filters, to at least one each."""
    return tuple(max(1, round(width * n)) for n in filters)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each place: [batch, channels, ...]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-3)  # Keras' default

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class AttentionGate(nn.Module):
    """Share of a skip connection let through at each time step, in (0, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.skip = nn.Conv1d(channels, channels, 1)
        self.decoded = nn.Conv1d(channels, channels, 1)
        self.share = nn.Conv1d(channels, 1, 1)

    def forward(self, skip: Tensor, decoded: Tensor) -> Tensor:
        """Both [batch, channels, time] -> [batch, 1, time]."""
        return torch.sigmoid(self.share(F.relu(self.skip(skip) + self.decoded(decoded))))


class Generator(nn.Module):
    """Attention U-Net from one modality's segments to the other's, [batch, time] in [-1, 1]."""

    def __init__(self, width: float = 1.0):
        super().__init__()
        sizes = widths(FILTERS, width)
        self.multiple = 2 ** len(sizes)
        down = dict(kernel_size=KERNEL, stride=2, padding=KERNEL // 2 - 1)
        self.encoder = nn.ModuleList(
            nn.Conv1d(a, b, bias=False, **down) for a, b in zip((1, *sizes), sizes, strict=False)
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
    """Four strided convolutions and a fifth that answers at each place: a logit of being real.

    Parameters
    ----------
    kind : type
        ``nn.Conv1d`` or ``nn.Conv2d``.
    kernel, padding : int
    width : float
        Factor of the numbers of filters.
    """

    def __init__(self, kind: type[nn.Module], kernel: int, padding: int, width: float = 1.0):
        super().__init__()
        sizes = widths(JUDGE_FILTERS, width)
        self.layers = nn.ModuleList(
            kind(a, b, kernel, stride=2, padding=padding, bias=False)
            for a, b in zip((1, *sizes), sizes, strict=False)
        )
        self.norms = nn.ModuleList(ChannelNorm(n) for n in sizes[1:])
        self.answer = kind(sizes[-1], 1, kernel, padding=padding)
        _initialise(self, width)

    def forward(self, x: Tensor) -> Tensor:
        """Judge [batch, 1, ...]."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = F.leaky_relu(self.norms[i - 1](x) if i else x, LEAK)
        return self.answer(x)


class TimeDiscriminator(Discriminator):
    """Judges segments [batch, time] as they are."""

    def __init__(self, width: float = 1.0):
        super().__init__(nn.Conv1d, KERNEL, KERNEL // 2 - 1, width)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 1, places]."""
        return super().forward(x[:, None])


class FrequencyDiscriminator(Discriminator):
    """Judges the log magnitude of the short-time Fourier transform of segments [batch, time]."""

    def __init__(self, width: float = 1.0):
        super().__init__(nn.Conv2d, 7, 3, width)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 1, bands, frames]."""
        return super().forward(log_magnitude(x)[:, None])


def log_magnitude(x: Tensor) -> Tensor:
    """Segments [batch, time] -> log (1 + short-time magnitude) [batch, frequencies, frames].

    Ours is the 1: with a tiny number in its place, as is usual, the gradient is one over the
    magnitude, and the empty bins above a signal's band outweigh all others.
    """
    window = torch.hann_window(FFT, device=x.device)
    return torch.log1p(torch.stft(x, FFT, HOP, window=window, return_complex=True).abs())


class Networks(nn.Module):
    """All that trains: a generator to each modality, and two judges of each.

    Attributes
    ----------
    generators : ModuleDict
        ``old``: from the new modality to the old one, the one that is used; ``new``: back.
    judges : ModuleDict
        By modality, ``old`` and ``new``, a ModuleDict of ``time`` and ``frequency``.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.generators = nn.ModuleDict({side: Generator(width) for side in ("old", "new")})
        self.judges = nn.ModuleDict(
            {
                side: nn.ModuleDict(
                    {"time": TimeDiscriminator(width), "frequency": FrequencyDiscriminator(width)}
                )
                for side in ("old", "new")
            }
        )


def n_parameters(module: nn.Module) -> int:
    """Count trained numbers."""
    return sum(p.numel() for p in module.parameters())


def _initialise(module: nn.Module, width: float) -> None:
    """Draw weights from a normal distribution of sd 0.02; biases start at zero.

    Narrower layers add fewer terms: larger weights give their sums the published variance.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d):
            nn.init.normal_(layer.weight, std=0.02 * (width**-0.5 if layer.in_channels > 1 else 1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

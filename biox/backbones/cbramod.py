"""CBraMod (EEG; here also ECG): one-second patches that attend across electrodes and time at once.

Architecture and parameter names: wjq-learning/CBraMod, ``models/cbramod.py`` and
``models/criss_cross_transformer.py``.
"""

import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows
from biox.backbones.blocks import initialise

PATCH = 200  # samples: one second
STEPS = 8  # time steps that the convolutions leave of a patch


class PatchEmbedding(nn.Module):
    """Patches [batch, electrodes, seconds, 200] -> features [batch, electrodes, seconds, dim].

    The sum of three convolutions along time, a projection of the patch's amplitude spectrum, and a
    depthwise convolution over the grid of electrodes and seconds, which tells positions apart.
    """

    def __init__(self, channels: int, position: tuple[int, int]):
        super().__init__()
        dim = STEPS * channels
        self.positional_encoding = nn.Sequential(
            nn.Conv2d(dim, dim, position, padding=[k // 2 for k in position], groups=dim)
        )
        layers = [nn.Conv2d(1, channels, (1, 49), stride=(1, 25), padding=(0, 24))]
        layers += [nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)) for _ in range(2)]
        blocks = ((layer, nn.GroupNorm(5, channels), nn.GELU()) for layer in layers)
        self.proj_in = nn.Sequential(*itertools.chain.from_iterable(blocks))
        self.spectral_proj = nn.Sequential(nn.Linear(PATCH // 2 + 1, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """Embed [batch, electrodes, seconds, 200]; features of the convolutions are filter-major.

        GroupNorm sees all electrodes and seconds of a window: patches are not independent.
        """
        h = self.proj_in(patches.flatten(1, 2).unsqueeze(1))
        h = h.transpose(1, 2).flatten(2).unflatten(1, patches.shape[1:3])
        h = h + self.spectral_proj(torch.fft.rfft(patches, norm="forward").abs())
        return h + self.positional_encoding(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class CrissCrossLayer(nn.Module):
    """Pre-norm transformer layer on the grid [batch, electrodes, seconds, dim].

    The first half of the features attends among the electrodes of a second, the other half among
    the seconds of an electrode.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.self_attn_s = nn.MultiheadAttention(dim // 2, heads // 2, batch_first=True)
        self.self_attn_t = nn.MultiheadAttention(dim // 2, heads // 2, batch_first=True)
        self.linear1 = nn.Linear(dim, mlp_ratio * dim)
        self.linear2 = nn.Linear(mlp_ratio * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then MLP: [batch, electrodes, seconds, dim] -> the same shape."""
        space, time = self.norm1(x).chunk(2, dim=-1)
        space = attend(self.self_attn_s, space.transpose(1, 2)).transpose(1, 2)
        x = x + torch.cat([space, attend(self.self_attn_t, time)], dim=-1)
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


def attend(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Self-attention along axis 2 of [batch, groups, tokens, dim]."""
    flat = x.flatten(0, 1)
    out, _ = attention(flat, flat, flat, need_weights=False)
    return out.view(x.shape)


class CBraMod(Backbone):
    """CBraMod with tokens [electrode 1 second 1, electrode 1 second 2, ...].

    Windows are microvolts divided by 100, whole seconds at 200 Hz, any number of electrodes.
    Size ``base`` is published, pretrained on 19 electrodes and 30 s.
    """

    sizes = {
        "base": {"channels": 25, "heads": 8, "layers": 12, "mlp_ratio": 4, "position": (19, 7)},
        "tiny": {"channels": 10, "heads": 4, "layers": 4, "mlp_ratio": 2, "position": (7, 7)},
    }
    # What stands for masked patches in pretraining (zeros), and the reconstruction head.
    unused_prefixes = ("patch_embedding.mask_encoding", "proj_out.")
    origin = Origin(
        repository="github.com/wjq-learning/CBraMod",
        licence="MIT",
        weights="huggingface.co/weighting666/CBraMod: pretrained_weights.pth",
        parameters={},
    )
    default_spec = InputSpec("eeg", 6, 200.0, 30.0, "uV/100", "eeg_cbramod")
    least = patch = PATCH

    def make(
        self, channels: int, heads: int, layers: int, mlp_ratio: int, position: tuple[int, int]
    ) -> None:
        """Build the layers; `position` is (electrodes, seconds) of the position kernel."""
        self.n_layers = layers
        self.patch_embedding = PatchEmbedding(channels, position)
        self.encoder = nn.Module()  # only for the published names
        self.encoder.layers = nn.ModuleList(
            CrissCrossLayer(STEPS * channels, heads, mlp_ratio) for _ in range(layers)
        )
        self.apply(initialise)

    def stem(self, x: Tensor) -> Tensor:
        """Embed [batch, electrodes, samples] as [batch, electrodes * seconds, features]."""
        check_windows(x, self.input_spec)
        return self.patch_embedding(x.unflatten(2, (-1, PATCH))).flatten(1, 2)

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run layer i on [batch, electrodes * seconds, features]."""
        h = h.unflatten(1, (self.input_spec.channels, -1))
        return self.encoder.layers[i](h).flatten(1, 2)


class CBraModECG(CBraMod):
    """CBraMod with leads of an ECG for electrodes (arXiv 2512.15250); files of CBraMod load.

    Only the window differs: twelve leads, 10 s at 200 Hz, in standard deviations of all leads.
    """

    origin = replace(CBraMod.origin, weights="")  # none published
    default_spec = InputSpec("ecg", 12, 200.0, 10.0, "sd of all leads", "ecg_cbramod")

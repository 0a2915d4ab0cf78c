"""LaBraM (EEG): a transformer over one-second patches of every electrode.

Architecture and parameter names: 935963004/LaBraM, ``modeling_finetune.py``
(``labram_base_patch200_200``), as BioX-Bridge runs it, without absolute position embedding.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows
from biox.backbones.blocks import Block, initialise

PATCH = 200  # samples: one second
EPS = 1e-6  # of every LayerNorm


class TemporalConv(nn.Module):
    """Three convolutions along time: one-second patches -> features [batch, patches, features]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, (1, 15), stride=(1, 8), padding=(0, 7))
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm2 = nn.GroupNorm(4, channels)
        self.conv3 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm3 = nn.GroupNorm(4, channels)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed [batch, patches, 200] as [batch, patches, 25 * channels]."""
        h = patches.unsqueeze(1)
        # GroupNorm sees all electrodes and seconds of a window: patches are not independent.
        h = F.gelu(self.norm1(self.conv1(h)))
        h = F.gelu(self.norm2(self.conv2(h)))
        h = F.gelu(self.norm3(self.conv3(h)))
        return h.permute(0, 2, 3, 1).flatten(2)


def widen_time_embed(table: Tensor, own: Tensor, mode: str) -> Tensor:
    """Make a time embedding of another number of seconds from that of a checkpoint.

    Parameters
    ----------
    table, own : Tensor [1, seconds in the file or wanted, features]
        The checkpoint's, and the model's as initialised; where fewer seconds are wanted than there
        are, the first ones are taken.
    mode : str
        ``interpolate``: linearly, first row on first and last on last. ``extend``: the learnt rows,
        then random ones as in `own`. (The released code is left with random rows only.)
    """
    rows = own.shape[1]
    if mode not in ("interpolate", "extend"):
        raise ValueError(f"widen: expected 'interpolate' or 'extend', found {mode!r}")
    if rows <= table.shape[1]:
        return table[:, :rows]
    if mode == "extend":
        return torch.cat([table, own[:, table.shape[1] :]], dim=1)
    wide = F.interpolate(table.transpose(1, 2), rows, mode="linear", align_corners=True)
    return wide.transpose(1, 2)


class LaBraM(Backbone):
    """LaBraM with tokens [CLS, electrode 1 second 1, electrode 1 second 2, ...].

    Windows are microvolts divided by 100, whole seconds at 200 Hz, any number of electrodes.

    Size ``base`` is published. The time embedding has a row for each second, at least `time_rows`;
    shorter windows use its first rows.

    `widen` (``interpolate`` or ``extend``) is how `biox.backbones.load` makes the 16 rows of the
    published time embedding serve longer windows, see `widen_time_embed`.
    """

    sizes = {
        "base": dict(channels=8, heads=10, layers=12, mlp_ratio=4, layer_scale=0.1, time_rows=16),
        "tiny": dict(channels=4, heads=5, layers=4, mlp_ratio=2, layer_scale=1.0, time_rows=30),
    }
    wrappers = ("model", "module")
    # Beside the student the published file has pretraining's own heads; run_class_finetuning.py
    # takes the student alone.
    key_prefixes = ("student.",)
    others_unused = True
    # fc_norm and head: the classifier of the released scripts; the rest: pretraining parts of the
    # published file, and its absolute position embedding, which BioX-Bridge leaves out.
    unused_prefixes = ("fc_norm.", "head.", "mask_token", "pos_embed", "norm.", "lm_head.")
    origin = Origin(
        repository="github.com/935963004/LaBraM",
        licence="MIT",
        weights="checkpoints/labram-base.pth in the repository",
        parameters={"base": ("5.8M", "BioX-Bridge, table 1")},
    )
    resizable = ("time_embed",)
    released_layout_reshaped = True  # deviation 1
    widen = "interpolate"
    default_spec = InputSpec("eeg", 6, 200.0, 30.0, "uV/100", "eeg_labram")
    least = patch = PATCH

    def make(
        self,
        channels: int,
        heads: int,
        layers: int,
        mlp_ratio: int,
        layer_scale: float,
        time_rows: int,
    ) -> None:
        """Build the blocks, and rows of the time embedding for `time_rows` seconds or more."""
        self.n_layers = layers
        self.patch_embed = TemporalConv(channels)
        dim = PATCH // 8 * channels
        rows = max(time_rows, self.input_spec.samples // PATCH)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.time_embed = nn.Parameter(torch.empty(1, rows, dim))
        options = {"qkv_bias": False, "qk_norm": True, "layer_scale": layer_scale}
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, EPS, **options) for _ in range(layers)
        )
        self.apply(initialise)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.time_embed, std=0.02)

    def stem(self, x: Tensor) -> Tensor:
        """Embed [batch, electrodes, samples] as [batch, 1 + electrodes * seconds, features]."""
        check_windows(x, self.input_spec)
        patches = x.reshape(len(x), -1, PATCH)  # electrode-major
        time = self.time_embed[:, : x.shape[2] // PATCH].repeat(1, x.shape[1], 1)
        tokens = self.patch_embed(patches) + time
        return torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)

    def resized(self, key: str, table: Tensor) -> Tensor:
        """Time embedding [1, seconds, features] of a checkpoint, for this model's seconds."""
        seconds, wanted = table.shape[1], self.time_embed.shape[1]
        if seconds < wanted:
            text = f"labram: {key} for {seconds} s is made to serve {wanted} s ({self.widen})"
            warnings.warn(text, stacklevel=4)
        return widen_time_embed(table, self.time_embed.detach(), self.widen)

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run block i on [batch, tokens, features]."""
        return self.blocks[i](h)

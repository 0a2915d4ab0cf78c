"""ECG-FM (ECG): a wav2vec 2.0 encoder over twelve leads at 500 Hz.

Architecture and parameter names: Jwoo5/fairseq-signals, ``models/wav2vec2/wav2vec2_cmsc.py`` with
the example configuration ``w2v_cmsc_rlm.yaml``. Masking belongs to pretraining and is left out
(the released BioX-Bridge code left it on, deviation 11).
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows, configured
from biox.backbones.blocks import initialise

LEADS = 12  # I, II, III, aVR, aVL, aVF, V1 to V6
CONVOLUTIONS = 4  # each halves the number of samples


@dataclass(frozen=True)
class ECGFMSize:
    """Widths of one size of ECG-FM; `position` is (kernel, groups) of the position embedding."""

    conv: int
    dim: int
    heads: int
    layers: int
    mlp_ratio: int
    position: tuple[int, int]
    norm_first: bool = True
    rate: float = 500.0  # Hz


class SelfAttention(nn.Module):
    """Multi-head self-attention over [batch, tokens, dim], under fairseq's parameter names."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: [batch, tokens, dim] -> the same shape."""
        q, k, v = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Transformer layer on [batch, tokens, dim] that normalises before or after each branch."""

    def __init__(self, size: ECGFMSize):
        super().__init__()
        self.norm_first = size.norm_first
        self.self_attn = SelfAttention(size.dim, size.heads)
        self.self_attn_layer_norm = nn.LayerNorm(size.dim)
        self.fc1 = nn.Linear(size.dim, size.mlp_ratio * size.dim)
        self.fc2 = nn.Linear(size.mlp_ratio * size.dim, size.dim)
        self.final_layer_norm = nn.LayerNorm(size.dim)

    def mlp(self, x: Tensor) -> Tensor:
        """Transform each token: [..., dim] -> the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then MLP: [batch, tokens, dim] -> the same shape."""
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x))
            return x + self.mlp(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        return self.final_layer_norm(x + self.mlp(x))


class ConvPosition(nn.Module):
    """Position embedding: a wide grouped convolution along time with normalised weights."""

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        self.pos_conv = nn.Sequential(
            nn.utils.parametrizations.weight_norm(convolution, dim=2), nn.GELU()
        )

    def forward(self, h: Tensor) -> Tensor:
        """Embed the positions of [batch, tokens, dim]; the even kernel's surplus end is cut off."""
        return self.pos_conv(h.transpose(1, 2))[..., : h.shape[1]].transpose(1, 2)


class ECGFM(Backbone):
    """ECG-FM on z-scored leads at 500 Hz, a token for every 16 samples.

    The stem is feature extractor, projection and convolutional position embedding (of post-norm
    sizes also the encoder's LayerNorm); the layers are the encoder's blocks.

    A single lead is put in the place of the first one, beside eleven silent leads: so the released
    BioX-Bridge code does it (``ecg_channel_expansion zero_pad``; it also knows ``repeat``, and does
    not say which made table 3), and so ECG-FM was pretrained, each lead silenced with probability
    1/2 (random lead masking).

    Parameters
    ----------
    size : str
        ``base`` (published) or ``tiny``, both normalising before each branch, or ``base_postnorm``;
        ``tiny_100hz`` reads 100 Hz, for a fifth of the tokens (60 s: 375 instead of 1,875).
        The same weights fit either order, and which one the published weights want is not certain:
        a re-implementation that runs them reports pre-norm; the default of fairseq-signals, which
        its example configuration leaves alone, is post-norm. ``layer_norm_first`` in the ``cfg``
        of the checkpoint decides.
    n_channels : int, optional
        12 by default, or 1.
    seconds : float, optional
        10 by default (pretraining: 5). No weight depends on it.
    """

    sizes = {
        "base": ECGFMSize(256, 768, 12, 12, 4, position=(128, 16)),
        "base_postnorm": ECGFMSize(256, 768, 12, 12, 4, position=(128, 16), norm_first=False),
        "tiny": ECGFMSize(32, 64, 4, 4, 2, position=(16, 4)),
        "tiny_100hz": ECGFMSize(32, 64, 4, 4, 2, position=(16, 4), rate=100.0),
    }
    wrappers = ("model",)
    ambiguous = True  # both orders of norms have the same keys
    # Masking and contrast of pretraining.
    unused_prefixes = ("mask_emb", "quantizer.", "project_q.", "final_proj.")
    origin = Origin(
        repository="github.com/bowang-lab/ECG-FM",
        licence="MIT",
        weights="huggingface.co/wanglab/ecg-fm: mimic_iv_ecg_physionet_pretrained.pt",
        parameters=dict.fromkeys(
            ("base", "base_postnorm"), ("90,883,072", "README of the repository, 2024")
        ),
    )
    default_spec = InputSpec("ecg", LEADS, 500.0, 10.0, "z-score", "ecg_ecgfm")

    def __init__(
        self, size: str = "base", n_channels: int | None = None, seconds: float | None = None
    ):
        super().__init__()
        config = self.sizes[size]
        default = replace(self.default_spec, rate=config.rate)
        self.input_spec = configured(default, n_channels, seconds, least=2**CONVOLUTIONS)
        if self.input_spec.channels not in (1, LEADS):
            raise ValueError(
                f"n_channels of ecg: expected 1 or {LEADS} leads, found {self.input_spec.channels}"
            )
        self.n_layers = config.layers
        self.feature_extractor = nn.Module()  # only for the published names, as is `encoder`
        self.feature_extractor.conv_layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(config.conv if i else LEADS, config.conv, 2, stride=2, bias=False),
                nn.Identity(),  # dropout
                nn.Identity() if i else nn.GroupNorm(config.conv, config.conv),
                nn.GELU(),
            )
            for i in range(CONVOLUTIONS)
        )
        self.layer_norm = nn.LayerNorm(config.conv)
        self.post_extract_proj = nn.Linear(config.conv, config.dim)
        self.conv_pos = ConvPosition(config.dim, *config.position)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        if config.norm_first:  # then it comes after the last layer (paper: h_L is before it)
            self.unused_prefixes = (*self.unused_prefixes, "encoder.layer_norm.")
            self.encoder.layer_norm = None
        else:
            self.encoder.layer_norm = nn.LayerNorm(config.dim)
        places = (("cfg", "model"), ("args",))  # fairseq with hydra, and before
        self.switches = {(*place, "layer_norm_first"): config.norm_first for place in places}
        self.apply(initialise)

    def stem(self, x: Tensor) -> Tensor:
        """Embed [batch, 12 or 1, samples] as [batch, tokens, features]."""
        check_windows(x, self.input_spec)
        x = F.pad(x, (0, 0, 0, LEADS - x.shape[1]))  # silent leads behind a single one
        for convolution in self.feature_extractor.conv_layers:
            x = convolution(x)
        h = self.post_extract_proj(self.layer_norm(x.transpose(1, 2)))
        h = h + self.conv_pos(h)
        return h if self.encoder.layer_norm is None else self.encoder.layer_norm(h)

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run encoder layer i on [batch, tokens, features]."""
        return self.encoder.layers[i](h)

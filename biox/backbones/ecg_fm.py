"""ECG-FM (ECG): a wav2vec 2.0 encoder over twelve leads at 500 Hz.

Architecture and parameter names: Jwoo5/fairseq-signals, ``models/wav2vec2/wav2vec2_cmsc.py`` with
the example configuration ``w2v_cmsc_rlm.yaml``. Masking belongs to pretraining and is left out
(the released BioX-Bridge code left it on, deviation 11).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows
from biox.backbones.blocks import initialise

LEADS = 12  # I, II, III, aVR, aVL, aVF, V1 to V6
CONVOLUTIONS = 4  # each halves the number of samples
BASE = dict(conv=256, dim=768, heads=12, layers=12, mlp_ratio=4, position=(128, 16))
TINY = dict(conv=32, dim=64, heads=4, layers=4, mlp_ratio=2, position=(16, 4))


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

    def __init__(self, dim: int, heads: int, mlp_ratio: int, norm_first: bool):
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = SelfAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

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


class ECGFM(Backbone):
    """ECG-FM on z-scored leads at 500 Hz, a token for every 16 samples.

    The stem is feature extractor, projection and convolutional position embedding (of post-norm
    sizes also the encoder's LayerNorm); the layers are the encoder's blocks.

    A single lead is put in the place of the first one, beside eleven silent leads: so the released
    BioX-Bridge code does it (``ecg_channel_expansion zero_pad``; it also knows ``repeat``, and does
    not say which made table 3), and so ECG-FM was pretrained, each lead silenced with probability
    1/2 (random lead masking).

    Size ``base`` is published and normalises before each branch, as the tiny ones do; in
    ``base_postnorm`` norms come after it. The same weights fit either order, and which one the
    published weights want is not certain: a re-implementation that runs them reports pre-norm; the
    default of fairseq-signals, which its example configuration leaves alone, is post-norm.
    ``layer_norm_first`` in the ``cfg`` of the checkpoint decides. ``tiny_100hz`` reads 100 Hz, for
    a fifth of the tokens (60 s: 375 instead of 1,875). Pretraining read 5 s.
    """

    sizes = {
        "base": BASE,
        "base_postnorm": BASE | {"norm_first": False},
        "tiny": TINY,
        "tiny_100hz": TINY | {"rate": 100.0},
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
    channel_counts = (1, LEADS)
    least = 2**CONVOLUTIONS

    def make(
        self,
        conv: int,
        dim: int,
        heads: int,
        layers: int,
        mlp_ratio: int,
        position: tuple[int, int],
        norm_first: bool = True,
    ) -> None:
        """Build the layers; `position` is (kernel, groups) of the position embedding."""
        self.n_layers = layers
        # Plain modules (here, `conv_pos`, `encoder`) are there only for the published names.
        self.feature_extractor = nn.Module()
        self.feature_extractor.conv_layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(conv if i else LEADS, conv, 2, stride=2, bias=False),
                nn.Identity(),  # dropout
                nn.Identity() if i else nn.GroupNorm(conv, conv),
                nn.GELU(),
            )
            for i in range(CONVOLUTIONS)
        )
        self.layer_norm = nn.LayerNorm(conv)
        self.post_extract_proj = nn.Linear(conv, dim)
        # Position embedding: a wide grouped convolution along time with normalised weights.
        kernel, groups = position
        convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        normalised = nn.utils.parametrizations.weight_norm(convolution, dim=2)
        self.conv_pos = nn.Module()
        self.conv_pos.pos_conv = nn.Sequential(normalised, nn.GELU())
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            EncoderLayer(dim, heads, mlp_ratio, norm_first) for _ in range(layers)
        )
        if norm_first:  # then it comes after the last layer (paper: h_L is before it)
            self.unused_prefixes = (*self.unused_prefixes, "encoder.layer_norm.")
            self.encoder.layer_norm = None
        else:
            self.encoder.layer_norm = nn.LayerNorm(dim)
        places = (("cfg", "model"), ("args",))  # fairseq with hydra, and before
        self.switches = {(*place, "layer_norm_first"): norm_first for place in places}
        self.apply(initialise)

    def stem(self, x: Tensor) -> Tensor:
        """Embed [batch, 12 or 1, samples] as [batch, tokens, features]."""
        check_windows(x, self.input_spec)
        x = F.pad(x, (0, 0, 0, LEADS - x.shape[1]))  # silent leads behind a single one
        for convolution in self.feature_extractor.conv_layers:
            x = convolution(x)
        h = self.post_extract_proj(self.layer_norm(x.transpose(1, 2)))
        positions = self.conv_pos.pos_conv(h.transpose(1, 2))
        h = h + positions[..., : h.shape[1]].transpose(1, 2)  # an even kernel gives one too many
        return h if self.encoder.layer_norm is None else self.encoder.layer_norm(h)

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run encoder layer i on [batch, tokens, features]."""
        return self.encoder.layers[i](h)

"""HuBERT-ECG (ECG): transformers' HuBERT on a single lead at 100 Hz.

Sizes: Edoar-do/HuBERT-ECG, ``pretrain.py`` and the public Hugging Face configuration of the small
model. Only the parts in use are kept, under the names of the published files.
"""

from math import prod

from torch import Tensor

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows, configured

CONV_KERNELS = (10, 3, 3, 2, 2)
CONV_STRIDES = (4, 2, 2, 2, 2)


def _size(width: int, layers: int, heads: int, mlp: int, conv: int, kernel: int, groups: int):
    """Name the settings of `transformers.HubertConfig` that differ between sizes."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "conv_dim": [conv] * len(CONV_KERNELS),
        "num_conv_pos_embeddings": kernel,
        "num_conv_pos_embedding_groups": groups,
    }


# Of HuBERT, shared by all sizes: group norm in the first convolution, post-norm encoder.
COMMON = {
    "conv_kernel": list(CONV_KERNELS),
    "conv_stride": list(CONV_STRIDES),
    "conv_bias": False,
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "layer_norm_eps": 1e-5,
    **dict.fromkeys(
        (
            "activation_dropout",
            "attention_dropout",
            "feat_proj_dropout",
            "final_dropout",
            "hidden_dropout",
            "layerdrop",
            "mask_time_prob",
        ),
        0.0,
    ),
}


class HubertECG(Backbone):
    """HuBERT-ECG on z-scored single-lead ECG at 100 Hz, a token for every 64 samples.

    The stem is feature extractor, projection, convolutional position embedding and the encoder's
    LayerNorm; the layers are the encoder's post-norm blocks.

    Parameters
    ----------
    size : str
        ``small``, ``base``, ``large`` (published), ``tiny``, ``tiny_base`` or ``tiny_large``.
    n_channels : int, optional
        Only 1.
    seconds : float, optional
        60 by default. No weight depends on it.
    """

    sizes = {
        "small": _size(512, 8, 8, 2048, conv=512, kernel=128, groups=16),
        "base": _size(768, 12, 12, 3072, conv=512, kernel=128, groups=16),
        "large": _size(960, 16, 12, 3840, conv=512, kernel=128, groups=16),
        "tiny": _size(64, 4, 4, 128, conv=32, kernel=16, groups=4),
        # To tiny as base and large are to small: 12 and 16 layers to 8, widths 768 and 960 to 512.
        "tiny_base": _size(96, 6, 6, 192, conv=32, kernel=16, groups=4),
        "tiny_large": _size(120, 8, 6, 240, conv=32, kernel=16, groups=4),
    }
    # pretrain.py saves a dict with the configuration, the optimiser and this entry.
    wrappers = ("model_state_dict",)
    switches = {
        (place, name): COMMON[name]
        for place in ("model_config", "config")
        for name in ("do_stable_layer_norm", "feat_extract_norm")
    }
    # Masking and cluster prediction of pretraining.
    unused_prefixes = ("masked_spec_embed", "final_proj.", "label_embedding.")
    origin = Origin(
        repository="github.com/Edoar-do/HuBERT-ECG",
        licence="CC BY-NC 4.0",
        weights="huggingface.co/Edoardo-BS: hubert_ecg_SIZE.pt or model.safetensors",
        parameters={
            "small": ("30.4M", "BioX-Bridge, table 1"),
            "large": ("189M", "its page on Hugging Face"),
        },
    )
    default_spec = InputSpec("ecg", 1, 100.0, 60.0, "z-score", "ecg_hubert")

    def __init__(
        self, size: str = "base", n_channels: int | None = None, seconds: float | None = None
    ):
        from transformers import HubertConfig, HubertModel

        super().__init__()
        # Samples that the convolutions need for one token.
        least = 1 + sum((k - 1) * prod(CONV_STRIDES[:i]) for i, k in enumerate(CONV_KERNELS))
        self.input_spec = configured(
            self.default_spec, n_channels, seconds, channels_free=False, least=least
        )
        config = HubertConfig(**COMMON, **self.sizes[size], attn_implementation="sdpa")
        model = HubertModel(config)
        self.n_layers = config.num_hidden_layers
        self.feature_extractor = model.feature_extractor
        self.feature_projection = model.feature_projection
        self.encoder = model.encoder

    def stem(self, x: Tensor) -> Tensor:
        """Embed [batch, 1, samples] as [batch, tokens, features]."""
        check_windows(x, self.input_spec)
        # Not feature_extractor(x): in training mode that would make the input require a gradient.
        for convolution in self.feature_extractor.conv_layers:
            x = convolution(x)
        h = self.feature_projection(x.transpose(1, 2))
        return self.encoder.layer_norm(h + self.encoder.pos_conv_embed(h))

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run encoder block i on [batch, tokens, features]."""
        return self.encoder.layers[i](h)

"""HuBERT-ECG (ECG): transformers' HuBERT on a single lead at 100 Hz.

Sizes: Edoar-do/HuBERT-ECG, ``pretrain.py`` and the public Hugging Face configuration of the small
model. Only the parts in use are kept, under the names of the published files.
"""

from math import prod

from torch import Tensor

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows

CONV_KERNELS = (10, 3, 3, 2, 2)
CONV_STRIDES = (4, 2, 2, 2, 2)
DROPOUTS = ("activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout")
DROPOUTS += ("hidden_dropout", "layerdrop")

# Of all published sizes: group norm in the first convolution, post-norm encoder.
COMMON = {
    "conv_kernel": list(CONV_KERNELS),
    "conv_stride": list(CONV_STRIDES),
    "conv_dim": [512] * 5,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "conv_bias": False,
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "layer_norm_eps": 1e-5,
    **dict.fromkeys(DROPOUTS, 0.0),
    "mask_time_prob": 0.0,  # of pretraining
}
TINY = {"conv_dim": [32] * 5, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


class HubertECG(Backbone):
    """HuBERT-ECG on z-scored single-lead ECG at 100 Hz, a token for every 64 samples.

    The stem is feature extractor, projection, convolutional position embedding and the encoder's
    LayerNorm; the layers are the encoder's post-norm blocks.
    Sizes ``small``, ``base`` and ``large`` are published.
    """

    sizes = {
        "small": {"width": 512, "layers": 8, "heads": 8, "mlp": 2048},
        "base": {"width": 768, "layers": 12, "heads": 12, "mlp": 3072},
        "large": {"width": 960, "layers": 16, "heads": 12, "mlp": 3840},
        "tiny": {"width": 64, "layers": 4, "heads": 4, "mlp": 128, **TINY},
        # To tiny as base and large are to small: 12 and 16 layers to 8, widths 768 and 960 to 512.
        "tiny_base": {"width": 96, "layers": 6, "heads": 6, "mlp": 192, **TINY},
        "tiny_large": {"width": 120, "layers": 8, "heads": 6, "mlp": 240, **TINY},
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
    channel_counts = (1,)
    # Samples that the convolutions need for one token.
    least = 1 + sum((k - 1) * prod(CONV_STRIDES[:i]) for i, k in enumerate(CONV_KERNELS))

    def make(self, width: int, layers: int, heads: int, mlp: int, **settings: object) -> None:
        """Build HuBERT; `settings` replace those of `COMMON`."""
        from transformers import HubertConfig, HubertModel

        config = HubertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=mlp,
            attn_implementation="sdpa",
            **(COMMON | settings),
        )
        model = HubertModel(config)
        self.n_layers = layers
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

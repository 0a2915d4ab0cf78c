"""Checkpoints as the authors of each model write them, around tiny models filled by the recipe."""

import argparse
import pathlib
import sys
import types
from collections import OrderedDict

import numpy as np
import torch
from fill import fill, windows

from biox.backbones import build


def tiny(name, **window):
    return fill(build(name, "tiny", **window), skip=("pos_embed",))


def output(backbone):
    spec = backbone.input_spec
    with torch.no_grad():
        return backbone(windows("checkpoint", (1, spec.channels, spec.samples)))


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def vanished(name):
    """An object of a class that cannot be imported any more when `forget` has been called."""
    module = types.ModuleType("vanished_package.configuration")
    kind = type(name, (), {"__module__": module.__name__})
    setattr(module, name, kind)
    sys.modules["vanished_package"] = types.ModuleType("vanished_package")
    sys.modules[module.__name__] = module
    config = kind()
    config.hidden_size, config.dtype, config.labels = 512, torch.float32, {0: "a"}
    config.itself = config
    return config


def forget():
    for name in [n for n in sys.modules if n.startswith("vanished_package")]:
        del sys.modules[name]


def labram(model):
    """LaBraM, engine_for_pretraining.py: the student in a wrapper, and heads beside it."""
    state = OrderedDict((f"student.{key}", value) for key, value in model.items())
    for key in ("mask_token", "norm.weight", "lm_head.weight", "pos_embed"):
        state[f"student.{key}"] = torch.zeros(2)
    state |= {"lm_head.weight": torch.zeros(2), "projection_head.0.weight": torch.zeros(2, 2)}
    optimiser = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
    options = argparse.Namespace(out=pathlib.Path("x"), seed=0, ratios=(0.5, None), set={"a"})
    return {"model": state, "optimizer": optimiser, "epoch": 49, "args": options}


def hubert_ecg(model):
    """HuBERT-ECG, pretrain.py: a pickled configuration beside the weights."""
    heads = {"masked_spec_embed": torch.zeros(2), "final_proj.0.weight": torch.zeros(2, 2)}
    return {
        "global_step": 3,
        "best_val_loss": np.float64(0.25),
        "model_config": vanished("HuBERTECGConfig"),
        "model_state_dict": OrderedDict({**model, **heads}),
        "curve": np.arange(3),
        "raw": b"x",
    }


def papagei(model):
    """PaPaGei: what DataParallel calls its keys, bare; with the experts' heads."""
    heads = {"dense.weight": torch.zeros(2), "expert_layers_1.0.0.bias": torch.zeros(2)}
    return OrderedDict((f"module.{key}", value) for key, value in {**model, **heads}.items())


def normwear(model):
    """NormWear: a masked autoencoder with its decoder."""
    decoder = {"decoder_embed.weight": torch.zeros(2, 2), "mask_token": torch.zeros(2)}
    return {"model": {**model, **decoder, "norm.bias": torch.zeros(2)}}


def ecg_fm(model, norm_first=True):
    """ECG-FM, fairseq's trainer: a configuration, and what masking and contrast need."""
    heads = {"mask_emb": torch.zeros(2), "quantizer.vars": torch.zeros(1, 2, 2)}
    heads |= {"project_q.weight": torch.zeros(2, 2), "final_proj.bias": torch.zeros(2)}
    after = {} if not norm_first else {"encoder.layer_norm.weight": torch.zeros(2)}
    return {
        "args": None,
        "cfg": {"_name": None, "model": {"_name": "wav2vec2_cmsc", "layer_norm_first": norm_first}},
        "model": OrderedDict({**model, **heads, **after}),
        "optimizer_history": [{"criterion_name": "Criterion", "num_updates": 9}],
        "extra_state": {"train_iterator": {"epoch": 3}, "val_loss": 1.5},
    }


def cbramod(model):
    """CBraMod: the keys bare, with the mask token and the reconstruction head."""
    heads = {"patch_embedding.mask_encoding": torch.zeros(2), "proj_out.0.bias": torch.zeros(2)}
    return OrderedDict({**model, **heads})


AUTHORS = {f.__name__: f for f in (labram, hubert_ecg, papagei, normwear, ecg_fm, cbramod)}


def authors_file(name, path="weights.pth", **options):
    """Write a tiny model as its authors would; return the model and the path."""
    model = tiny(name)
    torch.save(AUTHORS[name](dict(model.state_dict())), path, **options)
    forget()
    return model, pathlib.Path(path)

"""Toy models and windows, and what a pass over them leaves on the disk."""

from pathlib import Path

import torch
from test_training import toy_windows
from torch import nn

from biox.backbones import build
from biox.config import Storage
from biox.one_pass import cache_activations

BATCH5 = Storage(batch=5)
ROOT = Path(__file__).parent.parent


def toy_models(seed=0):
    torch.manual_seed(seed)
    new, old = (build(name, "tiny", seconds=10) for name in ("papagei", "hubert_ecg"))
    return new, old, nn.Linear(old.token_shape(old.n_layers)[1], 2)


def silent(_):
    pass


def store(path, models, windows=None, settings=BATCH5, say=silent):
    windows = toy_windows() if windows is None else windows
    return cache_activations(path, windows, *models, settings, say=say)


def same(a, b):
    for name in ("new", "old", "tokens"):
        for x, y in zip(getattr(a, name), getattr(b, name), strict=True):
            assert torch.equal(x, y), name
    assert torch.equal(a.logits, b.logits) and torch.equal(a.last[:], b.last[:])
    for name in ("labels", "subjects", "recordings", "starts"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist()
    assert (a.classes, a.source) == (b.classes, b.source)


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

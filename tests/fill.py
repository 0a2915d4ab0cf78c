"""Deterministic stand-ins for weights and inputs: the recipe behind the numbers in tests/golden.

A value depends only on its key and shape: standard normals seeded by the key's CRC-32, scaled so
that every layer keeps signals of order one.
"""

import zlib
from math import prod, sqrt
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def normals(seed, shape):
    """Standard normals [shape] seeded by a text."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))


def weight(key, shape):
    """Value of a floating-point parameter or buffer."""
    z, last = normals(key, shape), key.split(".")[-1]
    special = {
        "running_var": 1 + 0.1 * z.abs(),
        "running_mean": 0.02 * z,
        "original0": (1 + 0.1 * z).abs(),  # gain of a weight-normalised convolution
        "gamma_1": 0.1 * (1 + 0.1 * z),
        "gamma_2": 0.1 * (1 + 0.1 * z),
    }
    if last in special:
        return special[last]
    if len(shape) > 1:
        return z / sqrt(prod(shape[1:]))
    return 1 + 0.1 * z if last == "weight" else 0.02 * z


def fill(model, skip=()):
    """Give every parameter and buffer its value, except the keys in `skip`; counters become 0."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key not in skip:
                floating = value.is_floating_point()
                value.copy_(weight(key, value.shape) if floating else torch.zeros(()))
    return model


def windows(tag, shape, scale=1.0):
    """Input ``scale * normals`` [shape] named by a tag such as ``"labram:FOG"``."""
    return scale * normals(f"input:{tag}", shape)


def samples(values, n=64):
    """Values at n evenly spaced places of a flattened tensor or array, in float64."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, n).astype(np.int64)]

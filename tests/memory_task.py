"""A task for other processes, in a module that loads fast."""

import numpy as np


def fill_memory(megabytes):
    """Hold so many megabytes, and count them."""
    return float(np.ones(megabytes * 125_000).sum()) / 125_000

"""Answers at random, to see what scores they get; their expectation is in closed form elsewhere."""

from collections.abc import Sized

import numpy as np

from biox.baselines.outcome import Outcome

NAME = "Random (sampled)"


def sampled_random(test: Sized, n_classes: int, seed: int) -> np.ndarray:
    """Draw one class a window, all equally likely: one-hot probabilities [n, classes]."""
    drawn = np.random.default_rng(seed).integers(n_classes, size=len(test))
    return np.eye(n_classes)[drawn]


def random_outcome(test: Sized, n_classes: int, seed: int) -> Outcome:
    """`sampled_random` as a method of its own, without parameters.

    The closed-form expectation is `biox.report.metrics.random_scores`.
    """
    return Outcome(NAME, seed, sampled_random(test, n_classes, seed), n_parameters=0)

"""What a simulated subject's latent state does: random streams, reactions, their time course."""

from collections.abc import Mapping

import numpy as np
from numpy.random import Generator

from biox.data.physiology import CONTROL

SEED_KEYS = {"wesad": 1, "fog": 2, "isruc": 3}
"""Second entry of every subject's seed."""


def subject_rng(seed: int, dataset: str, *subject: int) -> Generator:
    """The random stream of one subject's recording."""
    return np.random.default_rng([seed, SEED_KEYS[dataset], *subject])


def state_track(states: np.ndarray, effects: Mapping[int, float], lag: float = 4.0) -> np.ndarray:
    """Effect of a state at every instant of the control grid, reached within about `lag` seconds.

    `states` is on the control grid; a state that `effects` does not name has effect 0.
    """
    steps = np.zeros(len(states))
    for state, effect in effects.items():
        steps[states == state] = effect
    kernel = np.exp(-0.5 * (np.arange(-2 * lag, 2 * lag, 1 / CONTROL) / lag) ** 2)
    padded = np.pad(steps, len(kernel), mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="same")[len(kernel) : -len(kernel)]


def reactions(
    rng: Generator, effect: float, table: Mapping[int, tuple[float, float]]
) -> dict[int, float]:
    """One subject's reaction to each state: normal with the (mean, sd) given, times `effect`."""
    return {state: effect * rng.normal(mean, sd) for state, (mean, sd) in table.items()}

"""Content of a simulated FOG recording: freezing of gait drives the EEG and the leg EMG.

The settings are plausible physiology, not fits to the original recordings.
"""

import numpy as np
from numpy.random import Generator

from biox.data import neurophysiology as neuro
from biox.data import physiology as phys
from biox.data.latent import reactions, state_track, subject_rng
from biox.data.physiology import CONTROL, at, wander

FOG_RATE = 500
FOG_SESSIONS = {f"{k:03d}": ("",) for k in range(1, 13)} | {"008": ("OFF_1", "OFF_2")}
"""Patients and their sub-folders."""

FOG_EMG_COLUMNS = {
    "003": (28, 27, 31), "004": (28, 27, 31), "005": (28, 27, 31), "010": (28, 27, 31),
    "011": (28, 27, 31), "012": (28, 27, 31), "008/OFF_2": (27, 31, 28), "009": (28, 27, 30),
}  # fmt: skip
"""Columns of the three EMG channels where they are not (27, 28, 31)."""

FOG_EEG = slice(2, 27)
# Decimals in the text: a counter, seconds, EEG and EMG in uV to a tenth, nothing, the label.
FOG_DECIMALS = np.array([0, 3] + [1] * 30 + [0] * 29)


def fog_states(rng: Generator, seconds: float) -> np.ndarray:
    """0 (normal) or 1 (freezing) on the control grid: episodes of 3-15 s, 40-50 % of the time."""
    parts, state = [], rng.integers(2)
    while sum(map(len, parts)) < seconds * CONTROL:
        length = rng.uniform(3, 15) if state else rng.uniform(4, 16)
        parts.append(np.full(int(length * CONTROL), state))
        state = 1 - state
    return np.concatenate(parts)[: round(seconds * CONTROL)]


def fog_eeg(rng: Generator, states: np.ndarray, n: int, effect: float) -> np.ndarray:
    """EEG in uV, [25, n] at 500 Hz: freezing raises theta and beta, lowers alpha."""
    grid = len(states)
    table = {
        "theta": (0.6, 0.25),
        "alpha": (-0.25, 0.25),
        "beta": (0.5, 0.25),
        "delta": (0.15, 0.2),
    }
    rest = {"delta": 6.0, "theta": 4.0, "alpha": 4.0, "beta": 3.0, "gamma": 1.2}
    level = rng.normal(0, 0.2)
    levels = {}
    for band, microvolts in rest.items():
        change = reactions(rng, effect, {1: table.get(band, (0.0, 0.1))})
        log = level + rng.normal(0, 0.2) + state_track(states, change, 0.7)
        levels[band] = microvolts * np.exp(log + 0.2 * wander(rng, grid, 6))
    y = neuro.eeg(rng, 25, n, FOG_RATE, levels, 5 * np.exp(level), rng.uniform(0.8, 1.4), 0.6)
    step = phys.shaped_noise(rng, n, FOG_RATE, lambda f: np.exp(-0.5 * ((f - 1) / 0.3) ** 2))
    front = np.linspace(1, 0.1, 25)[:, None]
    y += 3 * step + 60 * front * neuro.blinks(rng, n, FOG_RATE, 12.0)
    jaw = at(phys.bumps(rng, grid, 4.0, 1.0), n, FOG_RATE)
    return y + 6 * front * jaw * phys.band_noise(rng, n, FOG_RATE, 20, 50)


def fog_emg(rng: Generator, states: np.ndarray, n: int, effect: float) -> np.ndarray:
    """EMG in uV, [3, n] at 500 Hz: gait bursts near 1 Hz, trembling at 4-7 Hz in freezing."""
    grid = len(states)
    mixing = np.clip(state_track(states, {1: effect * rng.uniform(0.4, 0.95)}, 0.4), 0, 1)
    gait = rng.uniform(0.8, 1.2) * np.exp(0.05 * wander(rng, grid, 5))
    tremor = rng.uniform(4, 7) * np.exp(0.05 * wander(rng, grid, 3))
    # Trembling comes and goes within an episode, and some shows in gait.
    share = np.clip(mixing + 0.3 * wander(rng, grid, 1.5), 0, 1)
    y = np.empty((3, n), np.float32)
    for i in range(3):
        size = rng.lognormal(np.log(40), 0.5)
        # Opposing muscles contract together in freezing, so the tone between bursts rises.
        tonic = size * rng.uniform(0.1, 0.35) * np.exp(0.2 * wander(rng, grid, 4) + 0.8 * share)
        walking = neuro.burst_envelope(
            rng, n, FOG_RATE, gait, rng.uniform(0.3, 0.6), tonic, size * (1 - share)
        )
        trembling = neuro.burst_envelope(
            rng, n, FOG_RATE, tremor, rng.uniform(0.4, 0.7), 0.0, size * rng.uniform(0.4, 1) * share
        )
        low, high = rng.uniform(20, 45), rng.uniform(100, 180)
        y[i] = neuro.emg(rng, walking + trembling, FOG_RATE, low, high)
        y[i] += 2 * phys.mains(rng, n, FOG_RATE) + 5 * at(wander(rng, grid, 0.5), n, FOG_RATE)
    return y


def fog_patient(
    seed: int, patient: str, seconds: float = 80.0, effect: float = 1.0
) -> dict[str, np.ndarray]:
    """One patient's recordings by session (``""`` where there is only one), [samples, 61] each.

    Sessions are consecutive stretches of one simulated walk, so that a patient stays the same.
    """
    rng = subject_rng(seed, "fog", int(patient))
    sessions = FOG_SESSIONS[patient]
    n = round(seconds * FOG_RATE)
    states = fog_states(rng, seconds * len(sessions))
    eeg = fog_eeg(rng, states, n * len(sessions), effect)
    emg = fog_emg(rng, states, n * len(sessions), effect)
    labels = np.repeat(states, FOG_RATE // int(CONTROL))
    tables = {}
    for k, session in enumerate(sessions):
        part, key = slice(k * n, (k + 1) * n), f"{patient}/{session}".rstrip("/")
        table = tables[session] = np.zeros((n, 61))
        table[:, 0] = np.arange(n)
        table[:, 1] = np.arange(n) / FOG_RATE
        table[:, FOG_EEG] = eeg[:, part].T
        table[:, 27:32] = 5 * rng.standard_normal((n, 5))
        table[:, FOG_EMG_COLUMNS.get(key, (27, 28, 31))] = emg[:, part].T
        table[:, 60] = labels[part]
    return tables

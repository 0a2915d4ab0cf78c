"""A simulated WESAD subject: stress drives the chest ECG and the wrist PPG.

The settings are plausible physiology, not fits to the original recordings.
"""

import pickle
import struct
from pathlib import Path

import numpy as np
from numpy.random import Generator

from biox.data.simulate import physiology as phys
from biox.data.simulate.neurophysiology import reaction, state_track
from biox.data.simulate.physiology import CONTROL, at, recorded, wander

SUBJECTS = tuple(f"S{number}" for number in range(2, 18) if number != 12)
RATE = 700
BASELINE, STRESS, AMUSEMENT, MEDITATION = 1, 2, 3, 4
SECONDS = {BASELINE: 310, STRESS: 195, AMUSEMENT: 130, MEDITATION: 18}
"""Length of each condition; windows of 60 s every 5 s come out near the original's 1112:607:312."""

CHEST_STEPS = {
    "ACC": 10_000 / 2, "ECG": 65536 / 3, "EMG": 65536 / 3, "EDA": 65536 * 0.12 / 3,
    "Temp": 650, "Resp": 65536 / 100,
}  # fmt: skip
"""Steps per unit (g, mV, mV, uS, degrees, %) of the chest belt, RespiBAN. It has 16 bits: of ECG
and EMG from -1.5 to 1.5 mV. Values beyond are not clipped here."""

WRIST_STEPS = {"ACC": 1, "BVP": 100, "EDA": 1000, "TEMP": 50}
"""Steps per unit (g / 64, a.u., uS, degrees) of the wristband, Empatica E4."""


def protocol(rng: Generator, length: float = 1.0) -> np.ndarray:
    """Labels on the control grid: baseline first, stress and amusement in either order."""
    first, last = (STRESS, AMUSEMENT) if rng.random() < 0.5 else (AMUSEMENT, STRESS)
    pause = np.zeros(int(8 * CONTROL), int)
    parts = [pause]
    for state in (BASELINE, first, MEDITATION, last):
        parts += [np.full(round(SECONDS[state] * length * CONTROL), state), pause]
    return np.concatenate(parts)


def heart(rng: Generator, states: np.ndarray, effect: float) -> tuple:
    """Respiration and beats of one subject in the states given."""
    n = len(states)

    def track(mean: float, **table: tuple[float, float]) -> np.ndarray:
        named = {STRESS: table["stress"], AMUSEMENT: table["amusement"], MEDITATION: (0.0, 0.2)}
        return mean + reaction(rng, states, effect, named)

    rate = track(rng.normal(14, 2), stress=(4.0, 2.0), amusement=(1.5, 1.5))
    irregular = np.exp(track(np.log(0.12), stress=(0.2, 0.3), amusement=(0.9, 0.3)))
    resp = phys.breathing(rng, np.clip(rate + 0.8 * wander(rng, n, 40), 7, 30), irregular)
    bpm = track(rng.uniform(55, 90), stress=(12.0, 7.0), amusement=(3.0, 3.0))
    bpm = bpm + 2.5 * wander(rng, n, 45)
    hrv = np.exp(track(rng.normal(0, 0.3), stress=(-0.55, 0.3), amusement=(0.2, 0.2)))
    ectopic = rng.choice([0, 0, 0.004])
    return resp, phys.heartbeats(rng, bpm, resp, 0.035 * hrv, 0.025 * hrv, 0.004, ectopic)


def chest_signals(
    rng: Generator, states: np.ndarray, resp: np.ndarray, beats: phys.Beats, effect: float
) -> dict[str, np.ndarray]:
    """Chest signals at 700 Hz, [samples, channels] float32."""
    n, grid, rate = len(states) * RATE // int(CONTROL), len(states), RATE
    shape = phys.EcgShape.draw(rng)
    drive = {STRESS: (0.35, 0.2), AMUSEMENT: (0.05, 0.1)}
    sympathetic = reaction(rng, states, effect, drive)
    laughing = state_track(states, {STRESS: 1.5 * effect, AMUSEMENT: 7 * effect}, 1.0)
    effort = phys.bumps(rng, grid, 0.7 + np.maximum(laughing, 0), 2.0)
    ecg = phys.ecg(beats, n, rate, shape, resp, np.exp(-sympathetic + 0.08 * wander(rng, grid, 30)))
    level = shape.amplitude.max()
    ecg = ecg + level * rng.uniform(0.03, 0.12) * at(resp, n, rate)
    ecg = ecg + level * rng.uniform(0.03, 0.15) * at(wander(rng, grid, 2.5), n, rate)
    muscle = rng.uniform(0.01, 0.03) + 0.05 * effort * rng.uniform(0.5, 1.5)
    ecg = ecg + level * at(muscle, n, rate) * phys.band_noise(rng, n, rate, 20, 150)
    ecg = ecg + 0.25 * level * at(effort * wander(rng, grid, 0.4), n, rate)
    ecg = ecg + level * 0.008 * phys.mains(rng, n, rate, np.float64)
    ecg = ecg + level * phys.pops(rng, n, rate, 0.1)
    arousal = 0.5 * rng.uniform(1, 4) * (1 + sympathetic + 0.1 * wander(rng, grid, 20))
    tone = 0.01 * (1 + 0.5 * sympathetic + 2 * effort)
    gravity = np.array([0.9, 0.05, -0.3]) + 0.05 * rng.standard_normal(3)
    motion = [0.01 * (0.2 + effort) * wander(rng, grid, 0.5) for _ in gravity]
    acceleration = np.stack([at(g + m, n, rate) for g, m in zip(gravity, motion, strict=True)])
    chest = {
        "ACC": acceleration.T + 0.003 * rng.standard_normal((n, 3), dtype=np.float32),
        "ECG": ecg,
        "EMG": at(tone, n, rate) * phys.band_noise(rng, n, rate, 20, 250),
        "EDA": at(arousal + phys.bumps(rng, grid, 1 + 5 * sympathetic.clip(0), 5) * 0.2, n, rate),
        "Temp": at(33.5 + rng.normal() - 0.4 * sympathetic + 0.05 * wander(rng, grid, 60), n, rate),
        "Resp": at(4 * resp, n, rate) + 0.1 * rng.standard_normal(n, dtype=np.float32),
    }
    return _columns(chest, CHEST_STEPS)


def wrist_signals(
    rng: Generator, states: np.ndarray, resp: np.ndarray, beats: phys.Beats, effect: float
) -> dict[str, np.ndarray]:
    """Wrist signals (ACC 32 Hz, BVP 64 Hz, EDA and TEMP 4 Hz), [samples, channels] float32."""
    grid, seconds = len(states), len(states) / CONTROL
    tone = {STRESS: (0.45, 0.25), AMUSEMENT: (0.1, 0.15)}
    constrict = reaction(rng, states, effect, tone)
    tone = {STRESS: (0.35, 0.2), AMUSEMENT: (0.15, 0.15)}
    stiff = reaction(rng, states, effect, tone)
    gesture = state_track(states, {STRESS: 1.5 * effect, AMUSEMENT: 5 * effect}, 1.0)
    effort = phys.bumps(rng, grid, 0.7 + np.maximum(gesture, 0), 2.5)
    shape = phys.PpgShape.draw(rng)
    gain = np.exp(-constrict + 0.15 * wander(rng, grid, 15)) * (1 + 0.06 * resp)
    n = int(seconds * 64)
    bvp = phys.ppg(beats, n, 64, shape, gain, np.exp(-stiff + 0.1 * wander(rng, grid, 30)))
    bvp = bvp + rng.uniform(0.02, 0.12) * at(resp, n, 64) + 0.1 * at(wander(rng, grid, 3), n, 64)
    bvp = bvp + at(0.6 * effort * wander(rng, grid, 0.4), n, 64)
    bvp = rng.uniform(25, 70) * (bvp - bvp.mean() + 0.015 * rng.standard_normal(n))
    wrist, k = {"BVP": bvp}, int(seconds * 32)
    motion = np.stack([at(8 * effort * wander(rng, grid, 0.4), k, 32) for _ in range(3)], 1)
    wrist["ACC"] = motion + np.array([-30, 20, 50]) + rng.normal(0, 0.4, (k, 3))
    k = int(seconds * 4)
    eda = rng.uniform(0.3, 2) * (1 + constrict) + 0.05 * wander(rng, grid, 20)
    wrist["EDA"] = at(eda + 0.1 * phys.bumps(rng, grid, 1 + 4 * constrict.clip(0), 5), k, 4)
    wrist["TEMP"] = at(33 - 0.5 * constrict + 0.03 * wander(rng, grid, 60), k, 4)
    return _columns(wrist, WRIST_STEPS)


def _columns(signals: dict[str, np.ndarray], steps: dict[str, float]) -> dict[str, np.ndarray]:
    return {
        name: recorded(x.reshape(len(x), -1), steps[name]).astype(np.float32)
        for name, x in signals.items()
    }


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its `str`, which is what WESAD's pickles hold."""

    def _save_bytes(self, content: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch = pickle._Pickler.dispatch | {bytes: _save_bytes}


def write(folder: Path, seed: int, subject: str, length: float, effect: float) -> list[Path]:
    """Write ``Sx/Sx.pkl``: a dict of ``subject``, ``signal`` (chest and wrist) and ``label``."""
    rng = np.random.default_rng([seed, 1, int(subject[1:])])
    states = protocol(rng, length)
    resp, beats = heart(rng, states, effect)
    chest = chest_signals(rng, states, resp, beats, effect)
    wrist = wrist_signals(rng, states, resp, beats, effect)
    label = np.repeat(states, RATE // int(CONTROL)).astype(np.int32)
    content = {"subject": subject, "signal": {"chest": chest, "wrist": wrist}, "label": label}
    path = folder / subject / f"{subject}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    return [path]

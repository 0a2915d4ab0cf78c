"""Simulated DREAMER: people watch film clips, and what they feel moves EEG and ECG a little.

The settings are plausible physiology, not fits to the original recordings. A clip makes most people
feel alike, and what they feel they rate, each on an own scale. It moves heart rate, alpha and beta
by a fraction of what people, and clips within a person, differ in.
"""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from biox.data.readers.dreamer import EEG_CHANNELS, RATES, TARGETS
from biox.data.simulate import neurophysiology as neuro
from biox.data.simulate import physiology as phys
from biox.data.simulate.physiology import CONTROL, at, recorded, save_mat, wander

SUBJECTS = tuple(str(number) for number in range(1, 24))
CLIPS = 18
SECONDS = {"baseline": 10, "stimuli": 30}
"""Of each clip; the original has 61 s, and 65 to 393 s."""

LEVELS = {"delta": 7.0, "theta": 4.5, "alpha": 5.0, "beta": 3.5, "gamma": 1.5}
"""Standard deviation of each band in uV before a clip."""

FRONT = np.array([1, 0.9, 0.8, 0.6, 0.3, 0.1, 0, 0, 0.1, 0.3, 0.6, 0.8, 0.9, 1])
RIGHT = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
"""Where the electrodes of `EEG_CHANNELS` are, 0 to 1."""

EEG_STEP, ECG_STEP = 0.51, 1.0
"""Steps of the headset in uV and of the chest sensor in its own unit."""


def felt(seed: int) -> np.ndarray:
    """Valence, arousal and dominance that each clip evokes in most people: [18, 3], sd 1."""
    rng = np.random.default_rng([seed, 4, 0])
    values = rng.standard_normal((CLIPS, len(TARGETS)))
    values[:, 2] = 0.6 * values[:, 0] - 0.3 * values[:, 1] + 0.7 * values[:, 2]
    return (values - values.mean(0)) / values.std(0)


def clip_eeg(rng: Generator, n: int, mood: np.ndarray, person: dict, effect: float) -> np.ndarray:
    """EEG in uV on the headset's level, [n, 14] at 128 Hz; `mood` is 0 before a clip."""
    rate = RATES["EEG"]
    valence, arousal, dominance = effect * mood * person["reaction"]
    drift = dict(zip(LEVELS, 0.12 * rng.standard_normal(len(LEVELS)), strict=True))
    shift = {"alpha": -0.1 * arousal, "beta": 0.07 * arousal + 0.04 * dominance}
    levels = {
        band: uv * np.exp(person["bands"][band] + drift[band] + shift.get(band, 0))
        for band, uv in LEVELS.items()
    }
    # Pleasant clips: less alpha over the left forehead than over the right.
    asymmetry = np.exp(0.1 * valence * FRONT * (RIGHT - 0.5))
    peaks = {"alpha": (1.3 - 0.7 * FRONT) * asymmetry * person["alpha"], "delta": 0.8 + 0.3 * FRONT}
    options = {"alpha_hz": person["alpha_hz"], "peaks": peaks, "dtype": np.float64}
    y = neuro.eeg(rng, 14, n, rate, levels, 5.0, person["slope"], 0.5, **options)
    y += 60 * FRONT[:, None] ** 2 * neuro.blinks(rng, n, rate, person["blinks"])
    y += person["muscle"] * phys.band_noise(rng, (14, n), rate, 20, 55)
    return recorded(y.T + person["level"], 1 / EEG_STEP).astype(np.float32)


def clip_ecg(rng: Generator, n: int, mood: np.ndarray, person: dict, effect: float) -> np.ndarray:
    """Two leads in units of the sensor, [n, 2] at 256 Hz."""
    rate = RATES["ECG"]
    grid = int(n / rate * CONTROL) + 2
    valence, arousal, _ = effect * mood * person["reaction"]
    drift = 2.0 * rng.standard_normal()
    resp = phys.breathing(rng, np.full(grid, person["breaths"] + 0.6 * arousal), 0.1)
    bpm = person["bpm"] + drift + 1.6 * arousal + 0.4 * valence + 1.5 * wander(rng, grid, 20)
    hrv = person["hrv"] * np.exp(-0.12 * arousal)
    beats = phys.heartbeats(rng, bpm, resp, 0.03 * hrv, 0.02 * hrv, 0.004)
    leads = []
    for shape in person["shapes"]:
        y = phys.ecg(beats, n, rate, shape, resp, np.exp(-0.08 * arousal))
        y = y + 0.05 * at(resp + wander(rng, grid, 2.5), n, rate)
        leads.append(y + person["noise"] * phys.band_noise(rng, n, rate, 15, 100))
    return recorded(2000 + 400 * np.stack(leads, axis=1), 1 / ECG_STEP).astype(np.float32)


def person(seed: int, subject: str, length: float = 1.0, effect: float = 1.0) -> dict:
    """One subject of the file: EEG, ECG and the scores of all clips, as `write_all` nests them."""
    rng = np.random.default_rng([seed, 4, int(subject)])
    one = phys.EcgShape.draw(rng)
    traits = {
        "reaction": rng.normal(1.0, 0.7, 3),
        "bands": {band: 0.3 * rng.standard_normal() for band in LEVELS},
        "alpha": np.exp(0.25 * rng.standard_normal(len(EEG_CHANNELS))),
        "alpha_hz": rng.uniform(8.8, 11.0),
        "slope": rng.uniform(1.0, 1.8),
        "blinks": rng.uniform(3, 20),
        "muscle": rng.uniform(0.5, 3),
        "level": 4200 + 40 * rng.standard_normal(len(EEG_CHANNELS)),
        "bpm": rng.uniform(58, 88),
        "breaths": rng.uniform(12, 18),
        "hrv": rng.lognormal(0, 0.35),
        "shapes": (one, one.scaled(R=rng.uniform(0.3, 0.9), T=rng.uniform(0.4, 1.2))),
        "noise": rng.uniform(0.005, 0.03),
    }
    moods = 0.75 * felt(seed) + 0.65 * rng.standard_normal((CLIPS, len(TARGETS)))
    scores = 3.1 + 1.1 * moods + 0.3 * rng.standard_normal(3)  # the own way to use the scale
    scores = np.clip(np.rint(scores), 1, 5)
    found: dict = {
        device: {part: np.empty((CLIPS, 1), dtype=object) for part in SECONDS} for device in RATES
    }
    for i, mood in enumerate(moods):
        for part, seconds in SECONDS.items():
            now = mood * (part == "stimuli")
            for device, make in (("EEG", clip_eeg), ("ECG", clip_ecg)):
                n = round(seconds * length * RATES[device])
                found[device][part][i, 0] = make(rng, n, now, traits, effect)
    return found | {name: scores[:, [i]] for i, name in enumerate(TARGETS.values())}


def write_all(folder: Path, subjects: list[dict]) -> list[Path]:
    """Write ``DREAMER.mat``: one file for all subjects, nested as its authors do."""
    data = np.empty((1, len(subjects)), dtype=object)  # a MATLAB cell array
    data[0, :] = subjects
    content = {f"{device}_SamplingRate": rate for device, rate in RATES.items()}
    content |= {"noOfSubjects": float(len(subjects)), "noOfVideoSequences": float(CLIPS)}
    content |= {"EEG_Electrodes": np.array([EEG_CHANNELS], dtype=object), "Data": data}
    return [save_mat(folder / "DREAMER.mat", {"DREAMER": content})]

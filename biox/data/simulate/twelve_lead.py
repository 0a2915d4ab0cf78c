"""Simulated twelve-lead ECG: one moving heart vector, seen by nine electrodes.

The heart is a dipole whose vector (mV; x left, y to the feet, z to the front) draws a loop in each
wave. An electrode's potential is its lead vector times the heart vector, plus own noise. Leads are
differences of these potentials, so Einthoven's and Goldberger's relations hold, noise included.
Rhythm, axis and conduction are drawn, and known.
"""

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from biox.data.readers.twelve_lead import LEADS
from biox.data.simulate import physiology as phys
from biox.data.simulate.physiology import CONTROL, at, wander

RHYTHMS = ("sinus", "atrial fibrillation", "ectopic beats")
AXES = ("left", "normal", "right")  # of the QRS: -90 to -30, to 90, to 180 degrees
AXIS_EDGES = (-30.0, 90.0)
CONDUCTION = ("normal", "right bundle-branch block", "left bundle-branch block")

ELECTRODES = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")
_ANGLES = np.deg2rad([115, 94, 70, 47, 22, 0])  # of V1 to V6 in the horizontal plane, from x to z
LEAD_VECTORS = np.concatenate([
    [[-0.5, -np.sqrt(3) / 6, 0], [0.5, -np.sqrt(3) / 6, 0], [0, np.sqrt(3) / 3, 0]],
    np.stack([np.cos(_ANGLES), [-0.2, -0.1, 0, 0.2, 0.2, 0.2], np.sin(_ANGLES)], axis=1)
    * np.array([[1.3], [1.8], [1.9], [1.7], [1.4], [1.0]]),
])  # fmt: skip
"""[9, 3]; limb electrodes at the corners of Einthoven's triangle."""

_RA, _LA, _LL, *_CHEST = np.eye(len(ELECTRODES))
LEAD_MATRIX = np.stack([
    _LA - _RA, _LL - _RA, _LL - _LA,
    _RA - (_LA + _LL) / 2, _LA - (_RA + _LL) / 2, _LL - (_RA + _LA) / 2,
    *(v - (_RA + _LA + _LL) / 3 for v in _CHEST),
])  # fmt: skip
"""[12, 9]: leads from potentials of electrodes."""


def draw_beats(rng: Generator, seconds: float) -> tuple[np.ndarray, phys.Beats, int]:
    """Respiration, beats, and the index in `RHYTHMS` of what was really drawn."""
    grid = int(seconds * CONTROL) + 2
    rhythm = rng.choice(3, p=[0.4, 0.3, 0.3])
    resp = phys.breathing(rng, np.full(grid, rng.uniform(9, 24)), rng.uniform(0.03, 0.25))
    bpm = rng.uniform(48, 120) * (1 + 0.02 * wander(rng, grid, 20))
    variability = 0 if rhythm == 1 else rng.lognormal(-0.3, 0.5)
    jitter = rng.uniform(0.1, 0.2) if rhythm == 1 else 0.004
    ectopic = rng.uniform(0.12, 0.35) if rhythm == 2 else 0.0
    swings = 0.03 * variability, 0.02 * variability
    beats = phys.heartbeats(rng, bpm, resp, *swings, jitter, ectopic)
    inside = (beats.times > 0.2) & (beats.times < seconds - 0.4)
    if rhythm == 2 and not beats.ectopic[inside].any():
        rhythm = 0
    return resp, beats, int(rhythm)


def heart_vectors(
    rng: Generator, shape: phys.EcgShape, axis: float, conduction: int
) -> tuple[phys.EcgShape, np.ndarray]:
    """Time course of a beat's waves, and the heart vector of each: [3, 7] in mV.

    `axis` is in degrees. A right block adds a slow last vector to the right and front, a left one
    slows the whole QRS and turns T against it.
    """
    r, t, turn = shape.amplitude[2], abs(shape.amplitude[6]), np.deg2rad(axis)
    back, t_turn = rng.uniform(0.2, 0.8), turn + np.deg2rad(rng.normal(0, 20))
    main = r * np.array([np.cos(turn), np.sin(turn), -back])
    p_turn = np.deg2rad(rng.normal(50, 15))
    vectors = np.zeros((3, len(phys.WAVES)))
    vectors[:, 0] = 1.2 * shape.amplitude[0] * np.array([np.cos(p_turn), np.sin(p_turn), 0.2])
    vectors[:, 1] = r * rng.uniform(0.08, 0.25) * np.array([-0.5, 0.0, 1.0])
    vectors[:, 2] = main
    vectors[:, 3] = r * rng.uniform(0.1, 0.35) * np.array([-0.6, -0.4, -0.6])
    vectors[:, 6] = t * np.array([np.cos(t_turn), np.sin(t_turn), rng.uniform(0.1, 0.8)])
    vectors[:, 5] = rng.uniform(0, 0.2) * vectors[:, 6]
    width, center = shape.width.copy(), shape.center.copy()
    if conduction == 1:
        vectors[:, 4] = r * rng.uniform(0.35, 0.8) * np.array([-0.8, 0.1, 0.9])
        center[4], width[4] = rng.uniform(0.06, 0.08), rng.uniform(0.018, 0.026)
        vectors[2, 6] = -abs(vectors[2, 6])
    elif conduction == 2:
        wide = rng.uniform(1.8, 2.4)
        width[2:5], center[3:5] = wide * width[2:5], wide * center[3:5]
        vectors[:, 1] = 0
        vectors[:, 4] = r * rng.uniform(0.3, 0.7) * np.array([np.cos(turn), np.sin(turn), -0.6])
        vectors[:, 6] = -0.4 * main * rng.uniform(0.6, 1.2)
    return replace(shape, width=width, center=center), vectors


def window(rng: Generator, seconds: float, rate: float, channels: int) -> tuple:
    """One window of all leads in mV, [12, samples], and what is known about it."""
    assert channels == len(LEADS)
    n, grid = round(seconds * rate), int(seconds * CONTROL) + 2
    resp, beats, rhythm = draw_beats(rng, seconds)
    ends = [(-30, 90), (-90, -30), (90, 180)][rng.choice(3, p=[0.5, 0.25, 0.25])]
    axis, conduction = rng.uniform(*ends), int(rng.choice(3, p=[0.6, 0.2, 0.2]))
    shape, vectors = heart_vectors(rng, phys.EcgShape.draw(rng), axis, conduction)
    if rhythm == 1:
        vectors[:, 0] = 0  # no P wave, but fibrillating atria
    waves = np.eye(len(phys.WAVES))  # each wave's time course times its vector
    courses = [phys.ecg(beats, n, rate, replace(shape, amplitude=one), resp) for one in waves]
    heart = vectors @ np.stack(courses)
    if rhythm == 1:
        quiver = rng.uniform(0.02, 0.08) * phys.band_noise(rng, n, rate, 4, 8)
        heart += np.array([[0.2], [0.5], [0.8]]) * quiver
    people = LEAD_VECTORS * rng.lognormal(0, 0.1, (len(ELECTRODES), 1))
    people = people + rng.normal(0, 0.06, LEAD_VECTORS.shape)
    at_electrodes = people @ heart
    level = np.exp(rng.uniform(np.log(0.004), np.log(0.05)))
    low, high = rng.uniform(0.5, 10), rng.uniform(40, 90)
    at_electrodes += level * phys.band_noise(rng, at_electrodes.shape, rate, low, high)
    sway, hum = rng.uniform(0, 0.12), rng.choice([0, rng.uniform(0, 0.02)])
    for electrode in at_electrodes:
        electrode += sway * at(wander(rng, grid, 2.5) + 0.5 * resp, n, rate)
        electrode += hum * rng.normal() * phys.mains(rng, n, rate)
    rr = np.diff(beats.inside(0, seconds))
    known = {"rhythm": rhythm, "axis_deg": axis, "conduction": conduction}
    known |= {"heart_rate_bpm": 60 / rr.mean(), "log_noise_mv": np.log(level)}
    return LEAD_MATRIX @ at_electrodes, known

"""A small transfer from ECG to PPG: windows, untrained tiny models, and what a pass keeps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from biox.activations import FrozenDirection, compute_activations
from biox.backbones import build, save
from biox.config import PATHS, load_settings
from biox.data.windows import Windows
from biox.teacher import save_teacher

torch.set_num_threads(1)  # models this small only wait for each other's threads
threadpool_limits(1)

SETTINGS = load_settings(Path(__file__).parents[1] / "params.yaml")
SMALL = {"rank": 4, "n_prototypes": 6, "epochs": 2, "batch": 8}
"""Settings of a bridge that trains in no time."""


def _windows(signals, rates, labels, classes, source):
    n = len(labels)
    return Windows(
        signals={key: x.astype(np.float32) for key, x in signals.items()},
        rates=rates,
        units=dict.fromkeys(signals, "z-score"),
        channels={k: tuple(f"c{i}" for i in range(x.shape[1])) for k, x in signals.items()},
        labels=labels.astype(np.int64),
        subjects=np.array([f"p{i % 4}" for i in range(n)]),
        recordings=np.array([f"p{i % 4}" for i in range(n)]),
        starts=np.arange(n, dtype=float),
        classes=classes,
        source=source,
    )


def toy_windows(n=24, seed=0):
    """PPG and ECG that share a slow rhythm whose rate is the class."""
    rng, labels, signals = np.random.default_rng(seed), np.arange(n) % 2, {}
    rates = {"ppg": 125.0, "ecg": 100.0}
    for name, rate in rates.items():
        t = np.arange(10 * rate) / rate
        wave = np.sin(2 * np.pi * (1 + labels[:, None]) * t + rng.uniform(0, 6, (n, 1)))
        signals[name] = (wave + 0.2 * rng.normal(size=wave.shape))[:, None]
    return _windows(signals, rates, labels, ("slow", "fast"), "toy")


def noise(specs, n=8):
    """Windows of white noise for models with these input specs."""
    rng = np.random.default_rng(0)
    signals = {key: rng.normal(size=(n, s.channels, s.samples)) for key, s in specs.items()}
    rates = {key: s.rate for key, s in specs.items()}
    return _windows(signals, rates, np.arange(n) % 2, ("x", "y"), "noise")


def toy_models(seed=0):
    """A new model of PPG, an old model of ECG and its head."""
    torch.manual_seed(seed)
    new, old = (build(name, "tiny", seconds=10) for name in ("papagei", "hubert_ecg"))
    return new, old, nn.Linear(old.token_shape(old.n_layers)[1], 2)


def toy_pass(models, windows=None, **options):
    """Run the models over toy windows."""
    windows = toy_windows() if windows is None else windows
    options = {"batch_size": 7} | options
    return compute_activations(windows, *models, new_key="ppg", old_key="ecg", **options)


def centred_head(head, logits):
    """Shift the head so that no class gets all windows, and return the shifted logits."""
    with torch.no_grad():
        head.bias.sub_(logits.mean(0))
    return logits - logits.mean(0)


def toy_direction():
    """A frozen direction with the same windows in every split."""
    new, old, head = toy_models()
    cached = toy_pass((new, old, head))
    cached = replace(cached, logits=centred_head(head, cached.logits))
    return FrozenDirection(
        settings=SETTINGS.override("bridge", SMALL),
        name="wesad-ecg2ppg",
        direction=SETTINGS.direction("wesad-ecg2ppg"),
        new=new,
        old=old,
        head=head,
        m=5,
        l=2,
        activations=dict.fromkeys(("pair", "val", "test"), cached),
    )


def toy_root():
    """Write the files of the toy direction where the pipeline would, below the current folder."""
    name = "wesad-ecg2ppg"
    new, old, head = toy_models()
    for key, model in (("ppg", new), ("ecg", old)):
        save(model, PATHS.pretrained(key))
    centred_head(head, toy_pass((new, old, head)).logits)
    save_teacher(PATHS.teacher(name), head)
    for seed, split in enumerate(("pair", "val", "test")):
        windows = toy_windows(seed=seed)
        windows.save(PATHS.windows("wesad", split))
        toy_pass((new, old, head), windows, path=PATHS.activations(name, split))
    PATHS.positions(name).parent.mkdir(parents=True)
    PATHS.positions(name).write_text('{"m": 5, "l": 2}')
    return name

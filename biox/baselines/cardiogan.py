"""The baseline CardioGAN: translate the new modality to the old one, then ask the old teacher.

PPG becomes ECG by a generator that never sees a label or a pair (Sarkar & Etemad, AAAI 2021), and
the frozen ECG teacher classifies the result (BioX-Bridge, Table 1, WESAD ECG->PPG). What is taken
from the paper and what is ours stands in `cardiogan_networks`, `cardiogan_segments` and
`cardiogan_training`; here, ours is how the teacher gets its window: the translated segments side by
side, at the teacher's rate, z-scored over the window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
import torch
from torch import nn

from biox.backbones.base import Backbone, InputSpec
from biox.baselines.cardiogan_segments import to_segments, to_windows
from biox.baselines.cardiogan_settings import CardioGAN
from biox.baselines.cardiogan_training import Fit, Segments, fit, translated
from biox.baselines.outcome import Outcome
from biox.data.conditioning import standardise
from biox.data.windows import Windows
from biox.teacher import pooled_last

METHOD = "CardioGAN"


@dataclass(frozen=True)
class Translation:
    """The test windows in the old modality, as one training translates them.

    Attributes
    ----------
    seed : int
    signals : ndarray, [n, 1, samples], float32
        At the old modality's rate, z-scored per window; NaN if the training failed.
    fit : Fit
    """

    seed: int
    signals: np.ndarray
    fit: Fit


def translate_and_classify(
    windows: Mapping[str, Windows],
    old: Backbone,
    head: nn.Linear,
    settings: CardioGAN,
    seeds: Sequence[int],
    device: str = "cpu",
    n_jobs: int | None = None,
) -> list[Outcome]:
    """Train on *pair*, keep the epoch by *val*, translate *test* and classify it.

    Parameters
    ----------
    windows : mapping of str to Windows
        ``pair``, ``val`` and ``test`` with both modalities. No label is read.
    old, head : Backbone, Linear
        The frozen teacher.
    settings : CardioGAN
    seeds : sequence of int
        One training each.
    device : str
    n_jobs : int, optional
        Processes that share the seeds; results are the same for any number. None: one a core on a
        CPU, one on a GPU.

    Returns
    -------
    list of Outcome
        One a seed; a training that broke off or a teacher that cannot answer is `failed`.

    Raises
    ------
    ValueError
        The windows do not hold both modalities with one channel each, or are too short.
    """
    made = translate(windows, old.input_spec, settings, seeds, device, n_jobs)
    return [classify(translation, old, head, settings.lr) for translation in made]


def translate(
    windows: Mapping[str, Windows],
    spec: InputSpec,
    settings: CardioGAN,
    seeds: Sequence[int],
    device: str = "cpu",
    n_jobs: int | None = None,
) -> list[Translation]:
    """Train and translate *test* for each seed; see `translate_and_classify`.

    `spec` is what the teacher expects: it names the old modality and its rate.
    """
    new = other_modality(windows, spec.modality)
    pair, val = (_both(windows[split], spec.modality, new, settings) for split in ("pair", "val"))
    test = windows["test"]
    x = to_segments(test.signals[new], test.rates[new], settings)
    if n_jobs is None:
        n_jobs = 1 if device != "cpu" else min(len(seeds), joblib.cpu_count())
    job = joblib.delayed(_fit_and_translate)
    found = joblib.Parallel(n_jobs=n_jobs)(
        job(pair, val, x, settings, seed, device) for seed in seeds
    )
    seconds = test.seconds(new)
    made = []
    for seed, (result, segments) in zip(seeds, found, strict=True):
        signals = to_windows(segments, seconds, spec.rate, settings)[:, 0]
        broken = np.full_like(signals, np.nan)
        signals = broken if result.failed else standardise(signals).astype(np.float32)
        made.append(Translation(seed, signals[:, None], result))
    return made


def classify(
    translation: Translation, old: Backbone, head: nn.Linear, lr: float = float("nan")
) -> Outcome:
    """What the frozen teacher says about translated windows."""
    made = translation.fit
    failed, n = made.failed, len(translation.signals)
    probabilities = np.full((n, head.out_features), np.nan)
    if not failed:
        try:
            with torch.no_grad():
                pooled = pooled_last(old, torch.from_numpy(translation.signals))
                answers = head(pooled.to(head.weight.device)).softmax(dim=1)
            probabilities = answers.cpu().numpy()
        except FloatingPointError as error:
            failed = str(error)
    return Outcome(
        method=METHOD,
        seed=translation.seed,
        probabilities=probabilities,
        n_parameters=made.n_parameters,
        train_loss=made.train_loss,
        val_loss=made.val_loss,
        best_epoch=made.best_epoch,
        lr=lr,
        seconds=made.seconds,
        failed=failed,
    )


def example_translations(
    test: Windows, translation: Translation, old: str, n: int = 3, seconds: float = 8.0
) -> pd.DataFrame:
    """Beginnings of some test windows, evenly spread, for `biox.report.translations`.

    Returns
    -------
    DataFrame
        One row a sample; columns ``subject start modality translated time value``. Every signal is
        z-scored over its window; time is in seconds since the window's start.

    Raises
    ------
    ValueError
        The training had failed: there is no translation.
    """
    if translation.fit.failed:
        raise ValueError(
            f"example_translations: expected a finished training, found one that failed "
            f"({translation.fit.failed})"
        )
    new = other_modality({"test": test}, old)
    signals = (
        (new, False, test.signals[new]),
        (old, True, translation.signals),
        (old, False, test.signals[old]),
    )
    frames = []
    for i in np.unique(np.linspace(0, len(test) - 1, n).round().astype(int)):
        for modality, made, x in signals:
            value = standardise(x[i])[0, : round(seconds * test.rates[modality])]
            columns = {
                "subject": test.subjects[i],
                "start": test.starts[i],
                "modality": modality,
                "translated": made,
                "time": np.arange(len(value)) / test.rates[modality],
                "value": value,
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def other_modality(windows: Mapping[str, Windows], old: str) -> str:
    """The modality that is not the old one; every split must hold both, with one channel each.

    Raises
    ------
    ValueError
        A split does not.
    """
    names = {split: sorted(w.signals) for split, w in windows.items()}
    for split, w in windows.items():
        if len(names[split]) != 2 or old not in names[split]:
            raise ValueError(
                f"CardioGAN: expected {old} and one other modality in {split}, found {names[split]}"
            )
        channels = {name: x.shape[1] for name, x in w.signals.items() if x.shape[1] != 1}
        if channels:
            raise ValueError(f"CardioGAN: expected one channel in {split}, found {channels}")
    if len(set(map(tuple, names.values()))) > 1:
        raise ValueError(f"CardioGAN: expected the same modalities in all splits, found {names}")
    return next(name for name in next(iter(names.values())) if name != old)


def _both(windows: Windows, old: str, new: str, settings: CardioGAN) -> Segments:
    sides = {}
    for side, name in (("old", old), ("new", new)):
        x = to_segments(windows.signals[name], windows.rates[name], settings)
        sides[side] = x.reshape(-1, settings.samples)
    return Segments(**sides)


def _fit_and_translate(
    pair: Segments, val: Segments, x: np.ndarray, settings: CardioGAN, seed: int, device: str
) -> tuple[Fit, np.ndarray]:
    found = fit(pair, val, settings, seed, device)
    return found, translated(found.generator, x, device)

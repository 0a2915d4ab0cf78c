"""Predictions as the stages would leave them, made up: six methods on windows of six people."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from biox.baselines.outcome import Outcome, save_outcomes
from biox.files import write_json
from biox.report.metrics import prediction_frame, scores
from biox.report.predictions import expected_baselines

SEEDS = (0, 1)
ACCURACY = {"Oracle": 0.9, "BioX-Bridge": 0.8, "KD": 0.6, "KD-Contrast": 0.8, "LoRA-KD": 0.75}


def windows(subjects=6, each=20):
    label = np.tile([0, 0, 1, 0, 1], subjects * each // 5)
    return SimpleNamespace(
        subjects=np.repeat([f"s{i}" for i in range(subjects)], each),
        recordings=np.full(subjects * each, "r"),
        starts=np.arange(subjects * each, dtype=float),
        labels=label,
        classes=("no", "yes"),
        source="simulated",
    )


def answers(test, accuracy, seed, constant=False):
    """Probabilities that are right with the given probability, or always the first class."""
    rng = np.random.default_rng(seed)
    answer = np.where(rng.random(len(test.labels)) < accuracy, test.labels, 1 - test.labels)
    answer = 0 * answer if constant else answer
    return np.eye(2)[answer] * 0.8 + 0.1


def write_bridge(data, direction, test=None, accuracy=0.8, constant=False, seeds=SEEDS):
    test = test or windows()
    frames = [
        prediction_frame(test, answers(test, 0.9, 99), method="Oracle", seed=seeds[0]),
        *(
            prediction_frame(
                test, answers(test, accuracy, seed, constant), method="BioX-Bridge", seed=seed
            )
            for seed in seeds
        ),
    ]
    frame = pd.concat(frames).assign(direction=direction)
    folder = data / "bridges" / direction
    folder.mkdir(parents=True)
    frame.to_csv(folder / "predictions.csv", index=False)
    curve = {"epoch": [0, 1, 2], "train": [1.0, 0.5, 0.3], "val": [1.0, 0.6, 0.7], "best": 1}
    curves = pd.concat(pd.DataFrame(curve).assign(seed=seed) for seed in seeds)
    curves.to_csv(folder / "curves.csv", index=False)
    runs = [part for _, part in frame[frame["method"] == "BioX-Bridge"].groupby("seed")]
    mean = float(np.mean([scores(run)["balanced_accuracy"] for run in runs]))
    content = {"BioX-Bridge": {"balanced_accuracy": mean}, "source": "simulated"}
    write_json(folder / "scores.json", content | {"n_parameters": 1000, "models": "a -> b"})


def write_baselines(data, direction, test=None, failed=(), seeds=SEEDS):
    """`failed`: (method, seed) of the runs that did not train."""
    test = test or windows()
    outcomes = []
    for i, method in enumerate(expected_baselines(direction)):
        for seed in seeds:
            lost = (method, seed) in failed
            found = answers(test, ACCURACY.get(method, 0.5), 10 * (i + 1) + seed)
            outcomes.append(
                Outcome(
                    method,
                    seed,
                    np.full_like(found, np.nan) if lost else found,
                    n_parameters=50_000 if method.startswith("KD") else 1_100,
                    train_loss=(2.0, 1.0),
                    val_loss=(2.0, 1.5),
                    val_agreement=(0.5, 0.7),
                    best_epoch=1,
                    failed="loss is not finite" if lost else "",
                )
            )
    save_outcomes(data / "baselines" / direction, outcomes, test, direction)

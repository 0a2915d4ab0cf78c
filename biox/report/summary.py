"""The small tables that stage notebooks show: counts, shapes, scores of one stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from torch import Tensor

from biox.activations import Activations
from biox.backbones.base import Backbone, InputSpec
from biox.data.windows import UNLABELLED, Windows
from biox.sizes import DiskEstimate
from biox.training import SeedResult


def label_shares(reader: ModuleType, folder: Path | str, seconds: float) -> pd.DataFrame:
    """Seconds of each class, over all subjects, on a grid of whole windows without overlap."""
    counts = np.zeros(len(reader.CLASSES) + 1)
    n_subjects = 0
    for subject in reader.subjects(folder):
        n_subjects += 1
        for recording in reader.read(folder, subject, source="simulated"):
            for start in np.arange(0, recording.seconds - seconds + 1e-6, seconds):
                counts[recording.label(start, start + seconds)] += 1  # UNLABELLED is the last
    shares = pd.DataFrame(
        {"windows without overlap": counts, "share": counts / counts.sum()},
        index=[*reader.CLASSES, "mixed or other"],
    )
    return shares.rename_axis(f"{n_subjects} subjects").round(3)


def describe_specs(specs: Mapping[str, InputSpec], condition_per: str) -> pd.DataFrame:
    """One row a modality: what its backbone wants of a window."""
    return pd.DataFrame(
        [
            {
                "modality": modality,
                "channels": spec.channels,
                "rate (Hz)": spec.rate,
                "window (s)": spec.seconds,
                "unit": spec.unit,
                "recipe": spec.conditioning,
                "conditioned per": condition_per,
            }
            for modality, spec in specs.items()
        ]
    ).set_index("modality")


def count_windows(parts: Mapping[str, Windows]) -> pd.DataFrame:
    """Windows of each class and subjects, by split."""
    rows = {}
    for split, windows in parts.items():
        row = {name: int((windows.labels == i).sum()) for i, name in enumerate(windows.classes)}
        row["without label"] = int((windows.labels == UNLABELLED).sum())
        row["subjects"] = ", ".join(sorted(set(windows.subjects)))
        rows[split] = row
    return pd.DataFrame(rows).T


def explained(names: Sequence[str], r2: Tensor) -> pd.DataFrame:
    """Share of variance explained of each simulator parameter on held-out windows."""
    return pd.DataFrame({"variance explained": r2.numpy().round(2)}, index=list(names))


def oracle_scores(
    direction: str, scores: Mapping[str, float], interval: tuple[float, float]
) -> pd.DataFrame:
    """The teacher on test, beside what the paper reports for this direction's Oracle."""
    from biox.report.tables import reported_table1

    table = reported_table1()
    reported = table[(table["direction"] == direction) & (table["method"] == "Oracle")]
    rows = {
        metric: {
            "teacher on test (%)": f"{100 * value:.1f}",
            "reported, original data (%)": ", ".join(
                f"{v:.2f}" for v in reported[f"{metric} reported"]
            ),
        }
        for metric, value in scores.items()
    }
    low, high = interval
    rows["balanced_accuracy"]["95 % interval over subjects"] = (
        "one subject" if np.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}"
    )
    return pd.DataFrame(rows).T.fillna("")


def layer_shapes(**backbones: Backbone) -> pd.DataFrame:
    """Tokens and features at the input of every layer, the last layer's output at the end."""
    columns = {
        f"{role} model: tokens x features": {
            l: "{} x {}".format(*backbone.token_shape(l)) for l in range(backbone.n_layers + 1)
        }
        for role, backbone in backbones.items()
    }
    return pd.DataFrame(columns).rename_axis("input of layer").fillna("")


def disk_table(estimates: Mapping[str, DiskEstimate]) -> pd.DataFrame:
    """What activations take, in MB, by split; beside it what full features would."""
    names = {
        "pooled": "pooled features",
        "tokens": "tokens and logits",
        "last": "last layer",
        "full": "all layers, all tokens",
    }
    rows = {split: vars(estimate) for split, estimate in estimates.items()}
    return (pd.DataFrame(rows).T.rename(columns=names) / 1e6).round(1)


def pseudo_label_counts(cached: Mapping[str, Activations]) -> pd.DataFrame:
    """How often the teacher answers each class on its own modality, by split."""
    return pd.DataFrame(
        {
            split: {
                name: int((activations.pseudo_labels == i).sum())
                for i, name in enumerate(activations.classes)
            }
            for split, activations in cached.items()
        }
    )


def training_curves(results: Sequence[SeedResult]) -> pd.DataFrame:
    """Losses by seed and epoch: columns ``seed epoch train val agreement best``."""
    return pd.concat(
        pd.DataFrame(
            {
                "seed": result.seed,
                "epoch": range(len(result.fit.train_loss)),
                "train": result.fit.train_loss,
                "val": result.fit.val_loss,
                "agreement": result.fit.val_agreement,
                "best": result.fit.best_epoch,
            }
        )
        for result in results
    )


def bridge_summary(results: Sequence[SeedResult], new: Backbone, old: Backbone) -> pd.DataFrame:
    """One row a seed: parameters, losses, the epoch kept, the cosine reached on test."""
    whole = sum(p.numel() for p in new.parameters())
    return pd.DataFrame(
        [
            {
                "seed": result.seed,
                "trained parameters": f"{result.model.bridge.n_parameters:,}",
                "of the new model's": f"{result.model.bridge.n_parameters / whole:.1%}",
                "loss before": round(result.fit.train_loss[0], 4),
                "loss after": round(result.fit.train_loss[-1], 4),
                "epoch kept": result.fit.best_epoch,
                "agreement on val": f"{result.fit.val_agreement[result.fit.best_epoch]:.1%}",
                "cosine on test": round(result.cosine, 4),
            }
            for result in results
        ]
    ).set_index("seed")

"""Deviations that act before there is a bridge: protocols, resampling, time rows, model sizes."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import signal as dsp
from sklearn.metrics import balanced_accuracy_score

from biox.backbones import Backbone, build
from biox.backbones.labram import widen_time_embed
from biox.bridge import PrototypeBridge
from biox.config import Settings
from biox.data import READERS
from biox.data.conditioning import condition
from biox.data.splits import blocked_split, overlap, read_windows, shuffle_split
from biox.data.windows import Windows
from biox.experiment import PATHS, PUBLISHED_FRACTIONS, frozen_backbone, input_spec
from biox.teacher import fit_head, pooled_last

PENALTY = 1e-2
"""Inverse strength of the linear heads here: one for all, so that only the data differ."""


def linear_oracle(backbone: Backbone, parts: Mapping[str, Windows], modality: str) -> float:
    """Balanced accuracy on test (%) of a linear head on the frozen backbone, fitted on train."""
    train, test = (parts[split] for split in ("train", "test"))
    features = [pooled_last(backbone, torch.from_numpy(p.signals[modality])) for p in (train, test)]
    head = fit_head(features[0], train.labels, len(train.classes), PENALTY)
    with torch.no_grad():
        answers = head(features[1]).argmax(dim=1).numpy()
    return 100 * balanced_accuracy_score(test.labels, answers)


def fog_protocols(settings: Settings, modality: str = "eeg", deals: int = 5) -> pd.DataFrame:
    """One frozen backbone, four ways to split FOG: what shuffled windows add to an Oracle.

    Windows every 0.3 s, as published, in every protocol; each is dealt out several times.
    """
    choice = settings.dataset("fog")
    subjects = sorted(name for names in choice.splits.values() for name in names)
    specs = {modality: input_spec(settings, "fog", modality)}
    windows = read_windows(
        READERS["fog"], choice.folder, subjects, specs, choice.seconds, 0.3,
        keep_unlabelled=False, resampling=choice.resampling, source=choice.source,
    )  # fmt: skip
    alone = windows.select(np.flatnonzero(windows.subjects == "008"))
    backbone, fractions = frozen_backbone(settings, windows, modality), PUBLISHED_FRACTIONS
    protocols = {
        "shuffled_windows of patient 008 (published)": lambda i: shuffle_split(alone, fractions, i),
        "shuffled_windows": lambda i: shuffle_split(windows, fractions, i),
        "blocked_windows (biox)": lambda i: blocked_split(windows, fractions, i),
        "by_subject": lambda i: _split_by_subject(windows, fractions, i),
    }
    rows = {}
    for name, deal in protocols.items():
        dealt = [deal(i) for i in range(deals)]
        scores = [linear_oracle(backbone, parts, modality) for parts in dealt]
        overlaps = [overlap(parts["test"], parts["train"]) for parts in dealt]
        rows[name] = {
            "windows": sum(len(part) for part in dealt[0].values()),
            "test windows overlapping train (%)": 100 * np.mean(overlaps),
            "Oracle: balanced accuracy (%)": np.mean(scores),
            "sd over deals": np.std(scores, ddof=1),
        }
    return pd.DataFrame(rows).T.rename_axis("protocol")


def _split_by_subject(
    windows: Windows, fractions: Mapping[str, float], seed: int
) -> dict[str, Windows]:
    order = np.random.default_rng(seed).permutation(np.unique(windows.subjects))
    share = np.cumsum(list(fractions.values())) / sum(fractions.values())
    groups = np.split(order, np.round(share[:-1] * len(order)).astype(int))
    return {
        split: windows.select(np.flatnonzero(np.isin(windows.subjects, group)))
        for split, group in zip(fractions, groups, strict=True)
    }


def resampling_effects(settings: Settings, signals: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Linear interpolation beside a resampler that does not alias, on one recording each.

    Parameters
    ----------
    signals : sequence of (data set, modality)
        Not PPG, which is always resampled by FFT.

    Returns
    -------
    DataFrame
        Rates; difference of the conditioned signals relative to the anti-aliased one's standard
        deviation; the share of the raw signal's power above the new Nyquist rate, which linear
        interpolation folds into the band that is kept (ECG is band-passed before that); and the
        delay at the recording's end that comes from aligning end points.
    """
    rows = {}
    for dataset, modality in signals:
        reader, choice = READERS[dataset], settings.dataset(dataset)
        subject = reader.subjects(choice.folder)[0]
        signal = reader.read(choice.folder, subject, source=choice.source)[0].signals[modality]
        spec = input_spec(settings, dataset, modality)
        published, clean = (condition(signal, spec, r).values for r in ("linear", "polyphase"))
        samples = min(published.shape[1], clean.shape[1])
        difference = (published[:, :samples] - clean[:, :samples]).std() / clean.std()
        frequency, power = dsp.welch(signal.values, signal.rate, nperseg=int(4 * signal.rate))
        above = power[:, frequency > spec.rate / 2].sum() / power[:, frequency > 0].sum()
        rows[dataset, modality] = {
            "recorded (Hz)": signal.rate,
            "model (Hz)": spec.rate,
            "difference (% of sd)": 100 * difference,
            "raw power above Nyquist (%)": 100 * above,
            "delay at the end (ms)": 1000 * (1 / spec.rate - 1 / signal.rate),
        }
    return pd.DataFrame(rows).T.rename_axis(["data set", "modality"])


def resampling_oracles(settings: Settings, dataset: str) -> pd.DataFrame:
    """Balanced accuracy of a linear head on windows resampled either way: train, then test.

    Both modalities of the data set, in stretches of time (`blocked_split`).
    """
    choice, reader = settings.dataset(dataset), READERS[dataset]
    modalities = settings.modalities(dataset)
    specs = {modality: input_spec(settings, dataset, modality) for modality in modalities}
    scores = {f"{dataset} {modality}": {} for modality in modalities}
    for resampling in ("linear", "polyphase"):
        windows = read_windows(
            reader, choice.folder, sorted(sum(choice.splits.values(), ())), specs, choice.seconds,
            choice.step, per_window=choice.condition_per == "window", keep_unlabelled=False,
            resampling=resampling, source=choice.source,
        )  # fmt: skip
        parts = blocked_split(windows, PUBLISHED_FRACTIONS, seed=0)
        for modality in modalities:
            backbone = frozen_backbone(settings, windows, modality)
            scores[f"{dataset} {modality}"][resampling] = linear_oracle(backbone, parts, modality)
    return pd.DataFrame(scores).T


def time_rows(settings: Settings, rows: int = 16, seed: int = 0) -> pd.DataFrame:
    """LaBraM's time embedding cut to 16 rows and brought back to 30 in two ways: Oracle on ISRUC.

    The embedded default was trained with 30 rows; this puts it where the published model stands.
    """
    parts = {s: Windows.load(PATHS.windows("isruc", s), ["eeg"]) for s in ("train", "test")}
    backbone = frozen_backbone(settings, parts["train"], "eeg")
    trained = backbone.time_embed.clone()
    noise = 0.02 * torch.randn(trained.shape, generator=torch.Generator().manual_seed(seed))
    published = trained[:, :rows]
    tables = {
        "all 30 rows trained": trained,
        "16 rows, widen: interpolate (default)": widen_time_embed(published, noise, "interpolate"),
        "16 rows, widen: extend (14 untrained)": widen_time_embed(published, noise, "extend"),
    }
    scores = {}
    for name, table in tables.items():
        with torch.no_grad():
            backbone.time_embed.copy_(table)
        scores[name] = linear_oracle(backbone, parts, "eeg")
    return pd.DataFrame({"Oracle: balanced accuracy (%)": scores})


def parameter_counts() -> pd.DataFrame:
    """Parameters of the six released bridges, from published model sizes, beside those reported.

    Models are built without memory (``meta`` device); widths and tokens are measured, not typed.
    """
    text = files("biox.report").joinpath("deviations.yaml").read_text(encoding="utf-8")
    rows = []
    with torch.device("meta"):
        for name, s in yaml.safe_load(text)["released_bridges"].items():
            new, old = (build(*s[side], seconds=s["seconds"]) for side in ("new", "old"))
            n_tokens, d_l = old.token_shape(s["l"])
            d_m = new.token_shape(s["m"] + 1)[1]
            bridge = PrototypeBridge(d_m, d_l, n_tokens, s["rank"], s["n_prototypes"])
            rows.append(
                {
                    "direction": name,
                    "d_m": d_m,
                    "N_l x d_l": f"{n_tokens} x {d_l}",
                    "rank": s["rank"],
                    "prototypes": s["n_prototypes"],
                    "parameters": bridge.n_parameters,
                    "released code": s["parameters"],
                    "Table 1 (M)": s["table1_millions"],
                }
            )
    return pd.DataFrame(rows).set_index("direction")

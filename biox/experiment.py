"""Where a stage's files lie and which models it uses: the settings made concrete.

Notebooks call this; the method's modules know nothing of folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from biox.activations import Activations, check_made_of, flattened_states, layer_input
from biox.backbones import build
from biox.backbones.base import Backbone, InputSpec
from biox.config import Dataset, Direction, Pretrain, Settings
from biox.data import reader_named
from biox.data.conditioning import condition
from biox.data.corpus import Corpus, corpus
from biox.data.splits import blocked_split, check_classes, make_splits, read_windows, shuffle_split
from biox.data.windows import Signal, Windows
from biox.files import digest, read_json
from biox.identity import model_digest, signal_digest
from biox.pretraining import KnownWindows
from biox.rows import AbsentRows, RecomputedRows, SignalRows
from biox.teacher import load_head

PUBLISHED_FRACTIONS = {"train": 33, "val": 11, "pair": 33, "test": 22}
"""FOG's split of shuffled windows (make_FOG.py of the released code)."""

N_FLATTENED = 512
"""Paired windows, evenly spread, on which CKA compares flattened tokens: the rest would cost only
memory."""


@dataclass(frozen=True)
class Paths:
    """Folders of the pipeline, relative to the project's root; all but figures are DVC outputs."""

    data: Path = Path("data")
    figures: Path = Path("figures")

    def windows(self, dataset: str, split: str) -> Path:
        """Return the file of one split's windows."""
        return self.data / "windows" / dataset / f"{split}.safetensors"

    def pretrained(self, modality: str) -> Path:
        """Return the file of a tiny backbone's pretrained weights."""
        return self.data / "pretrained" / f"{modality}.safetensors"

    def teacher(self, direction: str) -> Path:
        """Return the folder of a direction's teacher."""
        return self.data / "teachers" / direction

    def activations(self, direction: str, split: str) -> Path:
        """Return the file of one split's activations."""
        return self.data / "activations" / direction / f"{split}.safetensors"

    def positions(self, direction: str) -> Path:
        """Return the file of the chosen positions and all layers' scores."""
        return self.data / "positions" / f"{direction}.json"

    def bridge(self, name: str) -> Path:
        """Return the folder of trained bridges (one a seed), predictions and scores."""
        return self.data / "bridges" / name


PATHS = Paths()


def device_of(settings: Settings) -> str:
    """Resolve ``device: auto`` to ``cuda`` where there is one, else ``cpu``."""
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def input_spec(settings: Settings, dataset: str, modality: str) -> InputSpec:
    """What the backbone of a modality expects of a dataset's windows."""
    choice, data = settings.backbones[modality], settings.dataset(dataset)
    channels = data.n_channels(modality)
    return build(choice.name, choice.size, n_channels=channels, seconds=data.seconds).input_spec


def source_of(dataset: str, choice: Dataset) -> str:
    """Which recordings these are, in the words that tables and figures repeat."""
    if choice.source == "simulated":
        return "simulated"
    title = reader_named(choice.reader or dataset).ABOUT.title
    return f"original {dataset if choice.classes else title}"  # own recordings have own classes


def cut_dataset(
    dataset: str, choice: Dataset, folder: str, specs: Mapping[str, InputSpec]
) -> dict[str, Windows]:
    """Read, condition, cut and split one dataset as its settings say."""
    reader = reader_named(choice.reader or dataset)
    window = dict(
        specs=specs,
        seconds=choice.seconds,
        step=choice.step,
        per_window=choice.condition_per == "window",
        resampling=choice.resampling,
        source=source_of(dataset, choice),
        **choice.reader_options(),
    )
    if choice.protocol == "by_subject":
        return make_splits(reader, folder, splits=choice.splits, **window)
    windows = read_windows(reader, folder, choice.splits["all"], keep_unlabelled=False, **window)
    deal = {"shuffled_windows": shuffle_split, "blocked_windows": blocked_split}[choice.protocol]
    parts = deal(windows, PUBLISHED_FRACTIONS, seed=0)
    check_classes(parts)
    return parts


def pretraining_corpora(
    modality: str, name: str, settings: Pretrain
) -> tuple[Backbone, dict[float, KnownWindows]]:
    """Build an untrained tiny backbone, and windows of every length, conditioned for it."""
    torch.manual_seed(settings.seed)
    lengths = settings.seconds[modality]
    backbone = build(name, "tiny", seconds=max(lengths))
    corpora = {}
    for i, seconds in enumerate(lengths):
        n = round(60 * settings.minutes[modality] / seconds)
        spec = backbone.for_seconds(seconds).input_spec
        raw = corpus(modality, n, seconds, settings.seed + i, channels=spec.channels, n_jobs=-1)
        corpora[seconds] = conditioned_corpus(raw, spec)
    return backbone, corpora


def conditioned_corpus(raw: Corpus, spec: InputSpec) -> KnownWindows:
    """Condition simulated windows for a backbone; one corpus serves several."""
    x = [
        condition(Signal(values, raw.rate, raw.unit, raw.channels), spec).values
        for values in tqdm(raw.signals, desc="conditioning", disable=None)
    ]
    x = torch.from_numpy(np.stack(x)[:, :, : spec.samples].astype(np.float32))
    return KnownWindows(x, torch.from_numpy(raw.targets), raw.names)


def frozen_backbone(
    settings: Settings, windows: Windows, modality: str, checkpoint: Path | None = None
) -> Backbone:
    """Build a modality's backbone for these windows; its weights: given, or as the settings say."""
    choice = settings.backbones[modality]
    backbone = build(
        choice.name,
        choice.size,
        checkpoint=checkpoint or choice.checkpoint,
        n_channels=windows.signals[modality].shape[1],
        seconds=windows.seconds(modality),
        widen=choice.widen,
    )
    return backbone.eval().requires_grad_(False)


def teacher_of(settings: Settings, name: str, windows: Windows) -> tuple[Backbone, nn.Linear]:
    """Load a direction's teacher: the old backbone, fine-tuned where it was, and its head."""
    old, folder = settings.direction(name).old, PATHS.teacher(name)
    tuned = folder / "backbone.safetensors" if settings.teacher.train[old] == "all" else None
    return frozen_backbone(settings, windows, old, tuned), load_head(folder)


def activations_of(settings: Settings, name: str, split: str) -> Activations:
    """Load a split's activations; where the last layer is not stored, the old model gives it.

    Raises
    ------
    ValueError
        The old model or the windows are not those that the activations were made from.
    """
    path = PATHS.activations(name, split)
    found = Activations.load(path)
    if not isinstance(found.last, AbsentRows):
        return found
    d = settings.direction(name)
    file = PATHS.windows(d.dataset, split)
    x, one = SignalRows(file, d.old), Windows.load(file, [d.old])
    old, _ = teacher_of(settings, name, one)
    here = {"old model": model_digest(old), "old windows": signal_digest(x)}
    check_made_of(path, here, {key: found.made_of.get(key, "") for key in here})
    return replace(found, last=RecomputedRows(old, x, found.last.shape))


def flattened_pair(settings: Settings, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Flattened tokens on *pair*: every new layer's output, every old layer's input.

    For `biox.positions.select_positions`; on at most `N_FLATTENED` windows.
    """
    d = settings.direction(name)
    windows = Windows.load(PATHS.windows(d.dataset, "pair"), [d.old, d.new])
    windows = windows.select(_spread(len(windows), N_FLATTENED))
    old, _ = teacher_of(settings, name, windows)
    new = frozen_backbone(settings, windows, d.new)
    states = {
        m: flattened_states(model, torch.from_numpy(windows.signals[m]))
        for m, model in ((d.new, new), (d.old, old))
    }
    return states[d.new][1:], states[d.old][:-1]


def _spread(n: int, at_most: int) -> np.ndarray:
    return np.linspace(0, n - 1, min(n, at_most)).round().astype(int)


def targets_at(settings: Settings, name: str, l: int) -> dict[str, Tensor]:
    """Input of old layer l on *pair* and *val*: what bridges learn with ``align: input``."""
    d = settings.direction(name)
    targets = {}
    for split in ("pair", "val"):
        windows = Windows.load(PATHS.windows(d.dataset, split), [d.old])
        old, _ = teacher_of(settings, name, windows)
        targets[split] = layer_input(old, torch.from_numpy(windows.signals[d.old]), l)
    return targets


def with_found_lr(settings: Settings, name: str) -> Settings:
    """Put in the learning rate that the stage `bridge` found for a direction, if none is set.

    Raises
    ------
    FileNotFoundError
        None is set and the direction has no trained bridge yet.
    """
    settings = settings.for_direction(name)
    if settings.bridge.lr is not None:
        return settings
    return settings.override("bridge", {"lr": read_json(PATHS.bridge(name) / "scores.json")["lr"]})


def models_of(settings: Settings, direction: Direction) -> str:
    """Both models of a direction in a few words: ``labram tiny -> hubert_ecg tiny``."""
    old, new = (settings.backbones[m] for m in (direction.old, direction.new))
    return f"{old.name} {old.size} -> {new.name} {new.size}"


def describe_backbone(settings: Settings, modality: str) -> str:
    """One line on a modality's backbone, for the line that says what a page used."""
    choice = settings.backbones[modality]
    parameters = sum(p.numel() for p in build(choice.name, choice.size).parameters())
    weights = "untrained"
    if choice.checkpoint is not None:
        weights = f"weights {choice.checkpoint} (sha256 {digest(choice.checkpoint)})"
    return f"{modality}: {choice.name} {choice.size}, {parameters / 1e6:.3g}M parameters, {weights}"

"""One pass of both frozen models over a split, its files, and everything a direction needs.

Both foundation models are frozen, so each sees each window once. The pass keeps what the method
reads: the pooled output of every new layer, the pooled input of every old layer, the old model's
last layer, the teacher's logits, and a sample of the old model's tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from biox.backbones import Backbone, InputSpec, build
from biox.bridge import BridgedModel, PrototypeBridge
from biox.cka import few_features
from biox.config import PATHS, Dataset, Direction, Settings, digest
from biox.data.windows import Windows
from biox.teacher import load_head
from biox.training import Pairs, centre_by_subject

N_TOKENS = 1024
"""Tokens of each old layer kept for prototypes to be drawn from."""

_LAYERS = ("new", "old", "tokens")
_OF_WINDOWS = ("labels", "subjects", "recordings", "starts", "classes", "source")


@dataclass(frozen=True)
class Activations:
    """Frozen activations of one split of one direction; row i is window i.

    Attributes
    ----------
    new : tuple of M Tensor, [n, d_m]
        Pooled output of every new layer on the new modality.
    old : tuple of L Tensor, [n, d_l]
        Pooled input of every old layer on the old modality.
    last : ndarray, [n, N_L, d_L]
        Last layer of the old model, before any final norm, all tokens. From a file it is
        memory-mapped: rows are read when they are indexed.
    logits : Tensor, [n, classes]
        The teacher's logits on the old modality.
    tokens : tuple of L Tensor, [1024, d_l]
        Tokens at the input of every old layer, drawn over all windows with a fixed seed.
    labels : ndarray, [n]
    subjects, recordings : ndarray of str, [n]
    starts : ndarray, [n]
        Seconds.
    classes : tuple of str
    source : str
        Which data, as in `Windows.source`.
    """

    new: tuple[Tensor, ...]
    old: tuple[Tensor, ...]
    last: np.ndarray
    logits: Tensor
    tokens: tuple[Tensor, ...]
    labels: np.ndarray
    subjects: np.ndarray
    recordings: np.ndarray
    starts: np.ndarray
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pseudo_labels(self) -> np.ndarray:
        """The teacher's decisions on its own modality: argmax of the logits."""
        return self.logits.argmax(dim=1).numpy()

    @property
    def pooled_last(self) -> Tensor:
        """Pooled last layer of the old model [n, d_L]: what the teacher's head reads."""
        parts = (self.last[i : i + 256] for i in range(0, len(self), 256))
        return torch.cat([Backbone.pool(torch.from_numpy(np.array(p)).float()) for p in parts])

    def save(self, path: Path | str) -> None:
        """Write all but the last layer to `path`, and the last layer to `last_path` beside it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(self.last, np.memmap):
            np.save(last_path(path), self.last)
        arrays = {f"{kind}.{i}": x for kind in _LAYERS for i, x in enumerate(getattr(self, kind))}
        arrays |= {k: torch.from_numpy(getattr(self, k)) for k in ("labels", "starts")}
        arrays["logits"] = self.logits
        header = {k: getattr(self, k).tolist() for k in ("subjects", "recordings")}
        header |= {"layers": [len(self.new), len(self.old)]}
        header |= {"classes": list(self.classes), "source": self.source}
        arrays = {name: x.contiguous() for name, x in arrays.items()}
        save_file(arrays, path, metadata={"activations": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str) -> Activations:
        """Read activations; of the last layer nothing is read yet.

        Raises
        ------
        FileNotFoundError
            A file is absent.
        ValueError
            It holds no activations or is cut short.
        """
        path = Path(path)
        if not (path.is_file() and last_path(path).is_file()):
            raise FileNotFoundError(f"{path}: expected activations, found none")
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["activations"])
                n_new, n_old = header["layers"]
                found = {
                    kind: tuple(file.get_tensor(f"{kind}.{i}") for i in range(n))
                    for kind, n in {"new": n_new, "old": n_old, "tokens": n_old}.items()
                }
                found |= {k: file.get_tensor(k).numpy() for k in ("labels", "starts")}
                found |= {k: np.array(header[k], dtype=str) for k in ("subjects", "recordings")}
                found |= {"classes": tuple(header["classes"]), "source": header["source"]}
                last = np.load(last_path(path), mmap_mode="r")
                return cls(last=last, logits=file.get_tensor("logits"), **found)
        except (SafetensorError, KeyError, TypeError, ValueError, EOFError) as error:
            expected = "whole files of activations"
            found = f"foreign or truncated ones ({error})"
            raise ValueError(f"{path}: expected {expected}, found {found}") from None


def last_path(path: Path | str) -> Path:
    """File of the last layer beside a file of activations: ``pair.last.npy``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.last.npy")


# --- the pass -------------------------------------------------------------------------------------


@torch.no_grad()
def compute_activations(
    windows: Windows,
    new: Backbone,
    old: Backbone,
    head: nn.Linear,
    *,
    new_key: str,
    old_key: str,
    batch_size: int = 32,
    path: Path | str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> Activations:
    """Run both frozen models once over the windows.

    Parameters
    ----------
    windows : Windows
    new, old : Backbone
    head : nn.Linear
        The teacher's.
    new_key, old_key : str
        Names of the signals that the models read; see `window_key`.
    batch_size : int
    path : path, optional
        Write the result here, the last layer batch by batch. The files get their names when they
        are complete.
    dtype : {"float32", "float16"}
        Of the last layer.
    device : str

    Raises
    ------
    ValueError
        A value does not fit into float16.
    FloatingPointError
        A layer gives values that are not finite; the message names it.
    """
    n = len(windows)
    x_new, x_old = (torch.from_numpy(windows.signals[key]) for key in (new_key, old_key))
    new, old, head = (model.eval().to(device) for model in (new, old, head))
    shapes = [tuple(h.shape[1:]) for h in old.hidden_states(x_old[:1].to(device))]
    draws = _token_draws(n, [n_tokens for n_tokens, _ in shapes[:-1]])
    if path is None:
        last = np.empty((n, *shapes[-1]), dtype)
    else:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}-part.safetensors")
        last = np.lib.format.open_memmap(last_path(part), "w+", dtype, (n, *shapes[-1]))
    found: dict[str, list[Tensor]] = {}
    for a in tqdm(range(0, n, batch_size), desc="frozen activations", disable=None):
        b = min(a + batch_size, n)
        outputs = new.hidden_states(x_new[a:b].to(device))[1:]
        *inputs, h_L = old.hidden_states(x_old[a:b].to(device))
        batch = {f"new.{i}": new.pool(h) for i, h in enumerate(outputs)}
        batch |= {f"old.{i}": old.pool(h) for i, h in enumerate(inputs)}
        for i, (window, token) in enumerate(draws):
            drawn = (a <= window) & (window < b)
            batch[f"tokens.{i}"] = inputs[i].cpu()[window[drawn] - a, token[drawn]]
        batch["logits"] = head(old.pool(h_L))
        for name, x in batch.items():
            found.setdefault(name, []).append(x.cpu())
        h_L = h_L.cpu().numpy()
        if (largest := np.abs(h_L).max()) > np.finfo(dtype).max:
            expected = f"values that {dtype} can hold, found {largest:.3g}; choose float32"
            raise ValueError(f"activations.dtype: expected {expected}")
        last[a:b] = h_L
    arrays = {name: torch.cat(parts) for name, parts in found.items()}
    sizes = {"new": new.n_layers, "old": old.n_layers, "tokens": old.n_layers}
    activations = Activations(
        **{kind: tuple(arrays[f"{kind}.{i}"] for i in range(k)) for kind, k in sizes.items()},
        last=last,
        logits=arrays["logits"],
        **{name: getattr(windows, name) for name in _OF_WINDOWS},
    )
    if path is None:
        return activations
    activations.save(part)
    os.replace(last_path(part), last_path(path))
    os.replace(part, path)
    return Activations.load(path)


def _token_draws(n: int, n_tokens: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Which tokens are kept of each layer: (window, token), in the order of the windows."""
    generator, per_window = torch.Generator().manual_seed(0), -(-N_TOKENS // n)
    drawn: list[list[Tensor]] = [[] for _ in n_tokens]
    for rows in torch.arange(n).split(32):  # a part of the seed, whatever the batch size
        for layer, count in zip(drawn, n_tokens, strict=True):
            layer.append(torch.randint(count, (len(rows), per_window), generator=generator))
    draws = []
    for layer in drawn:
        kept = torch.randperm(n * per_window, generator=generator)[:N_TOKENS].sort().values
        draws.append((kept // per_window, torch.cat(layer).flatten()[kept]))
    return draws


@torch.no_grad()
def layer_input(backbone: Backbone, x: Tensor, l: int, batch_size: int = 32) -> Tensor:
    """All tokens at the input of layer l (h_l): [n, channels, samples] -> [n, N_l, d_l]."""
    device = next(backbone.parameters()).device
    tokens = torch.empty(len(x), *backbone.token_shape(l))  # torch.cat would take twice as much
    for rows in torch.arange(len(x)).split(batch_size):
        tokens[rows] = backbone.run(backbone.stem(x[rows].to(device)), 0, l).cpu()
    return tokens


@torch.no_grad()
def flattened_states(backbone: Backbone, x: Tensor, batch_size: int = 32) -> list[np.ndarray]:
    """Every hidden state with its tokens flattened, as `biox.cka.few_features` [n, <= n].

    The stem's output first, then each layer's. One state of all windows is in memory at a time.
    """
    h = layer_input(backbone, x, 0, batch_size)
    device = next(backbone.parameters()).device
    states = [few_features(h.flatten(1).numpy())]
    for i in range(backbone.n_layers):
        h = torch.cat([backbone.layer(i, part.to(device)).cpu() for part in h.split(batch_size)])
        states.append(few_features(h.flatten(1).numpy()))
    return states


# --- windows and models of the settings -----------------------------------------------------------


def _empty(settings: Settings, key: str, dataset: Dataset | None = None) -> Backbone:
    """A model of the right shapes without numbers, for a data set's windows or its own."""
    choice, n = settings.backbone(key), dataset and dataset.n_channels(settings.modality(key))
    with torch.device("meta"):
        return build(choice.name, choice.size, n_channels=n, seconds=dataset and dataset.seconds)


def window_specs(settings: Settings, dataset: str) -> dict[str, InputSpec]:
    """Return what the models used on a data set expect of its windows, each distinct spec once.

    The key is that of the first model with such windows; `window_key` finds it for the others.
    """
    data, specs = settings.dataset(dataset), {}
    for key in settings.keys_of(dataset):
        spec = _empty(settings, key, data).input_spec
        if spec not in specs.values():
            specs[key] = spec
    return specs


def window_key(settings: Settings, dataset: str, key: str) -> str:
    """Return the name in `Windows.signals` of the windows that a model reads."""
    specs = window_specs(settings, dataset)
    spec = _empty(settings, key, settings.dataset(dataset)).input_spec
    return next(name for name, other in specs.items() if other == spec)


def load_windows(settings: Settings, direction: str, split: str) -> tuple[Tensor, Tensor, Windows]:
    """Load a split's windows as both models of a direction read them.

    Returns
    -------
    x_new, x_old : Tensor, [n, channels, samples]
    Windows
        With both signals, named by `window_key`.
    """
    d = settings.direction(direction)
    keys = [window_key(settings, d.dataset, key) for key in (d.new_key, d.old_key)]
    windows = Windows.load(PATHS.windows(d.dataset, split), keys)
    x_new, x_old = (torch.from_numpy(windows.signals[key]) for key in keys)
    return x_new, x_old, windows


def frozen_backbone(
    settings: Settings, key: str, windows: Windows, checkpoint: Path | str | None = None
) -> Backbone:
    """Build a model for these windows, in evaluation mode and without gradients.

    Parameters
    ----------
    settings : Settings
    key : str
        Of `backbones`.
    windows : Windows
        Of its data set: number of channels and length.
    checkpoint : path, optional
        Weights in the place of those that the settings name.
    """
    choice, modality = settings.backbone(key), settings.modality(key)
    signal = next(k for k in windows.signals if settings.modality(k) == modality)
    n_channels, seconds = windows.signals[signal].shape[1], windows.seconds(signal)
    weights = checkpoint or choice.checkpoint
    backbone = build(choice.name, choice.size, weights, n_channels, seconds, choice.widen)
    return backbone.requires_grad_(False)


def describe(settings: Settings, key: str) -> str:
    """One line on a model: architecture, size, parameters, weights."""
    choice = settings.backbone(key)
    parameters = sum(p.numel() for p in _empty(settings, key).parameters())
    weights = "untrained"
    if choice.checkpoint is not None:
        weights = f"weights {choice.checkpoint} (sha256 {digest(choice.checkpoint)})"
    return f"{key}: {choice.name} {choice.size}, {parameters / 1e6:.3g}M parameters, {weights}"


# --- a direction ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrozenDirection:
    """What bridges and students of one direction are made from; see `load_direction`.

    Attributes
    ----------
    settings : Settings
    name : str
        Key of `directions`.
    direction : Direction
    new, old : Backbone
        Frozen; the old one fine-tuned where the teacher was.
    head : nn.Linear
        The teacher's.
    m, l : int or None
        Positions; None before they are chosen.
    activations : dict
        By split.
    """

    settings: Settings
    name: str
    direction: Direction
    new: Backbone
    old: Backbone
    head: nn.Linear
    m: int | None
    l: int | None
    activations: dict[str, Activations]
    _inputs: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)

    @property
    def models(self) -> str:
        """Both models in a few words: ``labram tiny -> hubert_ecg tiny``."""
        d = self.direction
        old, new = (self.settings.backbone(k) for k in (d.old_key, d.new_key))
        return f"{old.name} {old.size} -> {new.name} {new.size}"

    def override(self, **bridge: Any) -> FrozenDirection:
        """Put values over the section `bridge` of the settings."""
        return replace(self, settings=self.settings.override("bridge", bridge))

    def pairs(self, split: str, align: str = "last", rows: Any = slice(None)) -> Pairs:
        """Return what a bridge learns from (see `train_bridge`), of some windows or of all."""
        cached, centre = self.activations[split], self.settings.bridge.centre
        centre = "none" if centre == "within" and split != "pair" else centre
        pooled = centre_by_subject(cached.new[self.m][rows], cached.subjects[rows], centre)
        if align == "last":
            return Pairs(pooled, cached.last[rows])
        if (split, self.l) not in self._inputs:
            _, x_old, _ = load_windows(self.settings, self.name, split)
            self._inputs[split, self.l] = layer_input(self.old, x_old, self.l)
        return Pairs(pooled, self._inputs[split, self.l][rows])

    def bridge(self, seed: int, rows: Any = slice(None), **changes: Any) -> BridgedModel:
        """Make a bridge between m and l, untrained or, with ``start: regression``, computed.

        Parameters
        ----------
        seed : int
            Decides A and the prototypes.
        rows : ndarray of int, optional
            Paired windows to compute it from; absent: all.
        **changes
            Put over the section `bridge` of the settings.
        """
        if self.m is None or self.l is None:
            made = f"make them with: dvc repro positions@{self.name}"
            path = PATHS.positions(self.name)
            raise FileNotFoundError(f"{path}: expected positions, found none; {made}")
        if changes:
            return self.override(**changes).bridge(seed, rows)
        settings, cached = self.settings.bridge, self.activations["pair"]
        n_tokens, d_l = self.old.token_shape(self.l)
        sizes = (cached.new[self.m].shape[1], d_l, n_tokens, settings.rank, settings.n_prototypes)
        tokens = cached.tokens[self.l] if settings.prototypes == "tokens" else None
        reshaped = settings.layout == "released" and self.old.released_layout_reshaped
        options = {"tokens": tokens, "reshaped": reshaped, "affine": settings.affine}
        bridge = PrototypeBridge.initial(*sizes, seed=seed, **options)
        if settings.start == "regression":
            bridge.regress(*self.pairs("pair", "input", rows), settings.ridge)
        elif settings.affine:
            bridge.standardise(self.pairs("pair", rows=rows).pooled)
        return BridgedModel(self.new, self.old, bridge, self.head, self.m, self.l)

    def flattened(self, n: int = 512) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Flatten all tokens of every new output and old input, for `select_positions`.

        On at most `n` paired windows, evenly spread: more would cost memory and change little.
        """
        x_new, x_old, _ = load_windows(self.settings, self.name, "pair")
        rows = np.linspace(0, len(x_new) - 1, min(n, len(x_new))).round().astype(int)
        outputs = flattened_states(self.new, x_new[rows])[1:]
        return outputs, flattened_states(self.old, x_old[rows])[:-1]


def load_direction(
    settings: Settings, name: str, splits: Sequence[str] = ("pair", "val", "test")
) -> FrozenDirection:
    """Load the frozen models, the teacher's head, activations and positions of a direction.

    Parameters
    ----------
    settings : Settings
        Of this direction: ``settings.for_direction(name)``, which the first cell of a page applies
        where the page has a parameter `direction`.
    name : str
    splits : sequence of str
        Whose activations are wanted; they are memory-mapped.
    """
    d, folder = settings.direction(name), PATHS.teacher(name)
    activations = {split: Activations.load(PATHS.activations(name, split)) for split in splits}
    _, _, windows = load_windows(settings, name, splits[0] if splits else "val")
    tuned = folder / "backbone.safetensors" if settings.teacher.train[d.old] == "all" else None
    m, l = d.m, d.l
    if PATHS.positions(name).is_file():
        chosen = json.loads(PATHS.positions(name).read_text())
        m, l = chosen["m"], chosen["l"]
    new = frozen_backbone(settings, d.new_key, windows)
    old = frozen_backbone(settings, d.old_key, windows, tuned)
    return FrozenDirection(settings, name, d, new, old, load_head(folder), m, l, activations)

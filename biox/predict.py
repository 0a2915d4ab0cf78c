"""A trained bridge on new recordings: pack it into a folder, predict, stream, export to ONNX.

A folder of `pack` holds everything that a prediction needs::

    recipe.json          models with digests, window, conditioning, classes, scores, licences
    bridge.safetensors   A, B and prototypes; bridge.json: the layers m and l
    head.safetensors     the teacher's head
    new.safetensors      weights of both models, copied where they have at most `MAX_COPY` bytes.
    old.safetensors      Larger ones, with licences of their own, are named by path and digest
    README.md            model card

    model = BridgedModel.load("FOLDER")  # from biox.bridge
    table = predict(model, "recording.edf")  # or an mne Raw
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from biox import __version__
from biox.backbones import BACKBONES, Backbone, save
from biox.bridge import BridgedModel
from biox.config import PATHS, Settings, digest, load_settings
from biox.data.conditioning import RECIPES, VOLTS, Z_SCORED, condition
from biox.data.quality import bad_windows, checked
from biox.data.readers import reader_named
from biox.data.readers.files import read_modality
from biox.data.windows import UNLABELLED, Marked, Recording, Signal, Windows, cut
from biox.teacher import save_teacher

if TYPE_CHECKING:
    import mne

    from biox.activations import FrozenDirection

    Source = Path | str | mne.io.BaseRaw | Signal

log = logging.getLogger(__name__)

MAX_COPY = 16 * 2**20
RATE_AND_UNIT = {"eeg_labram", "eeg_cbramod"}
"""Conditioning that changes nothing but rate and unit."""


def pack(
    folder: Path | str,
    frozen: FrozenDirection,
    model: BridgedModel,
    windows: Windows,
    scores: Mapping[str, float],
) -> Path:
    """Write a folder that holds everything a trained bridge needs; all of it or nothing.

    Parameters
    ----------
    folder : path
        New, or an earlier packed bridge, which is replaced.
    frozen : FrozenDirection
        Its settings, models and head.
    model : BridgedModel
    windows : Windows
        The paired ones: channels of the new modality, and how much there is of each subject.
    scores : mapping
        Name -> number, for the model card, such as ``{"balanced accuracy": 0.81}``.

    Raises
    ------
    ValueError
        The folder holds something else.
    """
    folder, settings, d = Path(folder), frozen.settings, frozen.direction
    if folder.exists() and not (folder / "recipe.json").is_file():
        raise ValueError(f"{folder}: expected a new folder or a packed bridge, found another one")
    dataset, spec, centre = settings.dataset(d.dataset), frozen.new.input_spec, "none"
    if settings.bridge.centre in ("subject", "causal"):  # `within` changes training alone
        centre = settings.bridge.centre
    spans = pd.Series(windows.starts).groupby(windows.subjects).agg(np.ptp) + spec.seconds
    (channels,) = (x for k, x in windows.channels.items() if settings.modality(k) == d.new)
    licence = "MIT (simulated by biox)"
    if dataset.source == "original":
        licence = reader_named(dataset.reader or d.dataset).ABOUT.licence
    recipe: dict[str, Any] = {"direction": frozen.name, "old": d.old, "new": d.new}
    recipe |= {"classes": list(windows.classes), "channels": list(channels)}
    recipe |= {"seconds": spec.seconds, "step": dataset.step, "resampling": dataset.resampling}
    per = "window" if dataset.condition_per == "window" else "recording"
    recipe |= {"conditioning": spec.conditioning, "condition_per": per, "centre": centre}
    recipe |= {"centre_seconds": 0.0 if centre == "none" else float(spans.min())}
    recipe |= {"scores": {name: float(value) for name, value in scores.items()}}
    recipe |= {"data": windows.source, "licence": licence, "biox": __version__}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as outer:
        part = Path(outer) / folder.name
        model.save(part)
        save_teacher(part, frozen.head)
        tuned = settings.teacher.train[d.old] == "all"
        recipe["models"] = {
            "new": _weights(part / "new.safetensors", settings, d.new_key, frozen.new),
            "old": _weights(part / "old.safetensors", settings, d.old_key, frozen.old, tuned),
        }
        names = ("bridge.json", "bridge.safetensors", "head.safetensors")
        recipe["files"] = {name: digest(part / name) for name in names}
        (part / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
        (part / "README.md").write_text(card(recipe))
        if folder.exists():
            os.replace(folder, Path(outer) / "earlier")
        os.replace(part, folder)
    return folder


def _weights(
    copy: Path, settings: Settings, key: str, backbone: Backbone, tuned: bool = False
) -> dict[str, Any]:
    """Copy a model's weights, unless they are large, and say which they are."""
    choice = settings.backbone(key)
    source = None if tuned or choice.checkpoint is None else Path(choice.checkpoint)
    if source is None:
        save(backbone, copy)
    elif source.stat().st_size <= MAX_COPY and source.suffix == copy.suffix:
        shutil.copyfile(source, copy)
    about = choice.model_dump(include={"name", "size", "widen", "checkpoint"})
    about |= {"channels": backbone.input_spec.channels}
    about |= {"digest": digest(copy if copy.is_file() else source)}
    published = source is not None and source.parent != PATHS.pretrained(key).parent
    licence = BACKBONES[choice.name].origin.licence if published else "MIT, trained by biox"
    return about | {"licence": licence}


def pack_direction(direction: str, seed: int, folder: Path | str) -> Path:
    """Pack a bridge of the pipeline; raise FileNotFoundError if it has not been trained."""
    from biox.activations import load_direction, load_windows
    from biox.metrics import read_results, run_frames, scores

    settings = load_settings().for_direction(direction)
    trained = PATHS.results("bridges", direction) / f"seed-{seed}"
    if not trained.is_dir():
        made = f"make it with: dvc repro bridge@{direction}"
        raise FileNotFoundError(f"{trained}: expected a trained bridge, found none; {made}")
    frozen, found = load_direction(settings, direction, splits=()), {}
    model = BridgedModel.load(trained, frozen.new, frozen.old, frozen.head)
    for frame in run_frames(read_results(trained.parent)[0]):
        teacher = frame["method"].iloc[0] == "Oracle"
        if teacher or frame["seed"].iloc[0] == seed:
            name = f"teacher on {frozen.direction.old}" if teacher else "bridge"
            found |= {f"{name}, {k.replace('_', ' ')}": v for k, v in scores(frame).items()}
    found |= {"test subjects": frame["subject"].nunique()}
    return pack(folder, frozen, model, load_windows(settings, direction, "pair")[2], found)


def card(recipe: Mapping[str, Any]) -> str:
    """Write the model card of a recipe."""
    old, new, centre = recipe["old"].upper(), recipe["new"].upper(), recipe["centre"]
    wants = f"It wants {recipe['centre_seconds']:g} s of unlabelled signal of a person first."
    scores = pd.Series(recipe["scores"], name="on test subjects").round(3).to_markdown()
    return f"""# A bridge from {old} to {new}: {recipe["direction"]}

Predicts {" / ".join(recipe["classes"])} from windows of {recipe["seconds"]:g} s of {new}. Labels were read on {old}
alone, the bridge was trained on pairs of both (BioX-Bridge, arXiv 2510.02276, by biox {recipe["biox"]}).
Input: {", ".join(recipe["channels"])} at any rate, conditioned per {recipe["condition_per"]} as `{recipe["conditioning"]}` of biox.
{wants if centre != "none" else ""}

    python -m biox predict --bridge FOLDER recording.edf

{scores}

Shares of 1, on {recipe["data"]} recordings. The models:

{pd.DataFrame(recipe["models"]).fillna("").to_markdown()}

**Limits.** For research; no medical device. Scores hold for recordings like those of training. Offsets of
persons (`biox.positions.remove_offsets`), which need all windows of a person, are not taken out.
**Licences.** Bridge and head: MIT. Recordings: {recipe["licence"]}. Models: as in the table.
"""  # noqa: E501


# --- predict --------------------------------------------------------------------------------------


def predict(
    model: BridgedModel,
    recording: Source,
    *,
    channels: Sequence[str | int] | None = None,
    step: float | None = None,
    per_window: bool = False,
    calibration: Source | None = None,
) -> pd.DataFrame:
    """Class probabilities of every sound window of a recording.

    Parameters
    ----------
    model : BridgedModel
        Of ``BridgedModel.load(FOLDER)``.
    recording : path, mne Raw or Signal
        See `read_signal`.
    channels : sequence of str or int, optional
        Of the new modality, by name or number from 1.
    step : float, optional
        Seconds between the starts of windows; absent: as in training.
    per_window : bool
        Condition each window by itself, as `Stream` does, where training took whole recordings.
    calibration : optional
        Unlabelled signal of the same person, read like `recording`. Of a bridge that centres by
        subject, the mean that is taken off comes from here; absent: from `recording`.

    Returns
    -------
    DataFrame
        ``start_s stop_s predicted`` and ``p CLASS`` for each class. Windows that
        `biox.data.quality` objects to have no row; a logged sentence counts them.

    Raises
    ------
    FileNotFoundError, ValueError
        The file is absent or damaged, lacks channels, has no sound window, or too little signal
        for the mean of a person.
    """
    starts, pooled = _features(model, recording, channels, step, per_window)
    if model.recipe["centre"] == "causal":
        pooled = pooled - pooled.cumsum(0) / torch.arange(1, len(pooled) + 1)[:, None]
    elif model.recipe["centre"] == "subject":
        source = recording if calibration is None else calibration
        pooled = pooled - _mean(model, source, channels, per_window)
    return pd.DataFrame(_rows(model, starts, pooled))


@torch.no_grad()
def _features(model: BridgedModel, source: Source, channels=None, step=None, per_window=False):
    """Starts in seconds [n] and pooled features [n, d_m] of the sound windows."""
    name, signal, marked = read_signal(model, source, channels)
    r, signals = model.recipe, {model.recipe["new"]: signal}
    whole = Recording("somebody", name, signals, lambda *_: UNLABELLED, name, marked)
    windows = cut(
        whole, {"new": model.new.input_spec}, r["seconds"], step or r["step"], r["classes"],
        per_window=per_window or r["condition_per"] == "window", resampling=r["resampling"],
    )  # fmt: skip
    parts = torch.from_numpy(windows.signals["new"]).split(32)
    return windows.starts, torch.cat([model.pooled(part) for part in parts])


def _mean(model: BridgedModel, source: Source | None, channels=None, per_window=False) -> Tensor:
    """Mean pooled feature [d_m] of a person."""
    wanted, found = model.recipe["centre_seconds"], 0.0
    if source is not None:
        starts, pooled = _features(model, source, channels, None, per_window)
        found = np.ptp(starts) + model.recipe["seconds"]
    if found < wanted - 1e-6:
        raise ValueError(
            f"calibration: expected at least {wanted:g} s of unlabelled signal of this person, "
            f"whose mean feature this bridge takes off, found {found:g} s"
        )
    return pooled.mean(0)


@torch.no_grad()
def _rows(model: BridgedModel, starts: Sequence[float], pooled: Tensor) -> list[dict[str, Any]]:
    """Rows of the table of `predict`."""
    logits = torch.cat([model.logits(model.last_layer(part)) for part in pooled.split(32)])
    rows, classes = [], model.recipe["classes"]
    for start, p in zip(map(float, starts), logits.softmax(dim=1).tolist(), strict=True):
        row = {"start_s": start, "stop_s": start + model.recipe["seconds"]}
        row |= {"predicted": classes[int(np.argmax(p))]}
        rows.append(row | {f"p {name}": x for name, x in zip(classes, p, strict=True)})
    return rows


def read_signal(
    model: BridgedModel, source: Source, channels: Sequence[str | int] | None = None
) -> tuple[str, Signal, Sequence[Marked]]:
    """Read the new modality of a recording: name, signal, and stretches marked as bad.

    Files are what `biox.data.readers.files` reads: EDF, BDF, FIF, WFDB (``.hea``), csv and others.
    Without `channels`, see `biox.data.readers.files.read_modality`.
    """
    if model.recipe is None:
        raise ValueError("model: expected one of BridgedModel.load(FOLDER), found no recipe")
    if isinstance(source, Signal):
        return "the signal", source, ()
    if not isinstance(source, str | Path):  # marks, units and bad channels as in files
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recording_raw.fif"
            source.save(path, fmt="double", verbose="ERROR")
            return read_signal(model, path, channels)
    new, path = model.recipe["new"], Path(source)
    signal, marked = read_modality(path, new, model.recipe["channels"], channels)
    return path.name, signal, marked


# --- stream ---------------------------------------------------------------------------------------


class Stream:
    """Predictions while samples arrive, in chunks of any size; two windows at most are kept.

    Training saw a window's own samples alone where it conditioned window by window or changed the
    unit at most. Elsewhere filters, z-scores or resampling took whole recordings: an error, unless
    `per_window` is set, which gives the model another input than in training. Results are those of
    `predict` with the same `per_window`, but levels and flat lines are judged by the window.

    Parameters
    ----------
    model : BridgedModel
        Of ``BridgedModel.load(FOLDER)``.
    rate : float
        Hz.
    unit : str
        Such as ``"uV"``.
    per_window, step, calibration : optional
        See `predict`; a bridge that centres by subject needs the last.

    Raises
    ------
    ValueError
        The bridge needs what only a whole recording has; the message says what.
    """

    def __init__(
        self,
        model: BridgedModel,
        rate: float,
        unit: str,
        *,
        per_window: bool = False,
        step: float | None = None,
        calibration: Source | None = None,
    ):
        recipe, self._mean = model.recipe, torch.zeros(())
        kind = recipe["conditioning"]
        same = kind in RATE_AND_UNIT and rate == model.new.input_spec.rate
        if not (per_window or same or recipe["condition_per"] == "window"):
            what = RECIPES[kind].__doc__.splitlines()[0] + " Z-scores." * (kind in Z_SCORED)
            raise ValueError(
                f"Stream: expected conditioning that needs no future sample, found {kind} of whole "
                f"recordings ({what}); per_window=True conditions each window by itself"
            )
        if recipe["centre"] == "subject":
            self._mean = _mean(model, calibration, per_window=per_window)
        self.model, self.rate, self.unit, self.step = model, rate, unit, step or recipe["step"]
        self._n = int(np.ceil(recipe["seconds"] * rate - 1e-6))  # samples of a window
        self._parts: list[np.ndarray] = []  # samples self._from to self._to
        self._from = self._to = self._windows = self._seen = 0

    def push(self, chunk: np.ndarray) -> list[dict[str, Any]]:
        """Take the next samples [channels, any]; return a row of `predict` a whole window."""
        rows, chunk = [], np.asarray(chunk, dtype=np.float64)
        for part in np.split(chunk, range(self._n, chunk.shape[1], self._n), axis=1):
            self._parts.append(part.copy())
            self._to += part.shape[1]
            while (first := round(self._windows * self.step * self.rate)) + self._n <= self._to:
                held = np.concatenate(self._parts, axis=1)[:, first - self._from :]
                self._parts, self._from = [held], first
                rows += self._predict(held[:, : self._n])
                self._windows += 1
            if first >= self._to:  # between windows, where `step` is longer than one
                self._parts, self._from = [], self._to
        return rows

    @torch.no_grad()
    def _predict(self, values: np.ndarray) -> list[dict[str, Any]]:
        recipe, spec = self.model.recipe, self.model.new.input_spec
        start = self._windows * self.step
        signal = Signal(values, self.rate, self.unit, tuple(recipe["channels"]))
        reason = bad_windows({recipe["new"]: signal}, [0.0], recipe["seconds"])[0]
        try:
            signal = checked(signal, recipe["new"], "window", absolute=spec.unit in VOLTS)
        except ValueError as error:
            reason = reason or str(error)
        if reason:
            log.warning("%g s: no prediction, %s", start, reason)
            return []
        x = condition(signal, spec, recipe["resampling"]).values[None, :, : spec.samples]
        pooled, self._seen = self.model.pooled(torch.from_numpy(x).float()), self._seen + 1
        if recipe["centre"] == "causal":  # the mean of the windows up to this one
            self._mean = self._mean + (pooled[0] - self._mean) / self._seen
        return _rows(self.model, [start], pooled - self._mean)


# --- ONNX -----------------------------------------------------------------------------------------


def export_onnx(model: BridgedModel, path: Path | str) -> float:
    """Write new model up to m, bridge, tail, head and softmax as one ONNX graph, for one window.

    Input ``window`` [1, channels, samples], conditioned; output ``probabilities`` [1, classes]; the
    recipe is in the metadata. Return the largest difference of a probability from torch, over
    random windows; more than 1e-4 is a ValueError, as is centring by subject. Needs ``biox[onnx]``.
    """
    import onnxruntime

    spec, path, centre = model.new.input_spec, Path(path), model.recipe["centre"]
    if centre != "none":
        raise ValueError(f"ONNX: expected a bridge without centring, found centre: {centre}")
    whole = nn.Sequential(copy.deepcopy(model), nn.Softmax(dim=1)).eval()
    for module in filter(parametrize.is_parametrized, list(whole.modules())):
        for name in list(module.parametrizations):  # normalised weights become constants
            parametrize.remove_parametrizations(module, name)
    x = torch.randn(4, 1, spec.channels, spec.samples, generator=torch.Generator().manual_seed(0))
    names = {"input_names": ["window"], "output_names": ["probabilities"]}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        with warnings.catch_warnings():  # of torch's exporter about torch itself
            warnings.simplefilter("ignore", FutureWarning)
            graph = torch.onnx.export(whole, (x[0],), dynamo=True, verbose=False, **names)
        for node in graph.model.graph:  # it names the folders of this machine
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        graph.model.metadata_props["biox"] = json.dumps(model.recipe)
        graph.save(part)
        run = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"]).run
        with torch.no_grad():
            differences = [whole(w).numpy() - run(None, {"window": w.numpy()})[0] for w in x]
        found = float(np.abs(differences).max())
        if not found <= 1e-4:
            raise ValueError(f"{path}: expected torch's numbers, found differences of {found:g}")
        os.replace(part, path)
    return found


# --- write ----------------------------------------------------------------------------------------


def annotations(frame: pd.DataFrame) -> mne.Annotations:
    """Predicted classes; a window that overlaps the next one ends where that begins."""
    import mne

    starts = frame["start_s"].to_numpy()
    ends = np.minimum(frame["stop_s"].to_numpy(), np.append(starts[1:], np.inf))
    return mne.Annotations(starts, ends - starts, frame["predicted"])


def write(folder: Path | str, name: str, frame: pd.DataFrame, signal: Signal) -> list[Path]:
    """Write ``NAME.csv``, ``NAME-annot.fif``, ``NAME-annot.edf`` (EDF+) and ``NAME.png``."""
    from edfio import Edf, EdfAnnotation

    from biox import plots

    notes, folder = annotations(frame), Path(folder)
    marks = zip(notes.onset, notes.duration, notes.description, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        ends = (".csv", "-annot.fif", "-annot.edf", ".png")
        csv, fif, edf, png = paths = [Path(part) / f"{name}{end}" for end in ends]
        frame.to_csv(csv, index=False, float_format="%.6g")
        notes.save(fif, verbose="ERROR")
        Edf([], annotations=[EdfAnnotation(*mark) for mark in marks]).write(edf)
        plots.theme()
        figure = plots.plot_predictions(frame, signal, name)
        figure.savefig(png)
        plots.plt.close(figure)
        return [path.replace(folder / path.name) for path in paths]


def main(parsed: Namespace) -> int:
    """Run ``pack``, ``predict`` or ``export`` of the command line; return the exit status."""
    try:
        if parsed.command == "pack":
            print(pack_direction(parsed.direction, parsed.seed, parsed.folder))
            return 0
        model = BridgedModel.load(parsed.bridge)
        if parsed.command == "export":
            print(f"{parsed.file}: as torch, to {export_onnx(model, parsed.file):.0e}")
            return 0
        if wanted := model.recipe["centre_seconds"]:
            print(f"wants {wanted:g} s of unlabelled signal of a person first")
        options = {"step": parsed.step, "per_window": parsed.per_window}
        for file in map(Path, parsed.recording):
            signal = read_signal(model, file, parsed.channels)[1]
            frame = predict(model, file, channels=parsed.channels, **options)
            name = f"{file.stem}-{model.recipe['direction']}"
            print(*write(parsed.out, name, frame, signal), sep="\n")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0

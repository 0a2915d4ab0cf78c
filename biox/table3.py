"""Table 3: other models in the new model's place, between the same old model and the same windows.

Only the new side changes: positions are chosen anew, bridges are trained with all seeds, and, for
comparison, whole models are distilled. `biox.table3_models` pretrains the models.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from biox.activations import Activations, check_made_of
from biox.apart import apart
from biox.backbones import Backbone
from biox.backbones.base import InputSpec
from biox.baselines.outcome import Outcome, save_outcomes
from biox.config import Settings
from biox.data import reader_named
from biox.data.splits import read_windows
from biox.data.windows import Windows
from biox.experiment import PATHS, activations_of, input_spec, source_of, teacher_of
from biox.files import read_json, write_json
from biox.identity import model_digest, signal_digest
from biox.positions import select_positions
from biox.table3_models import by_cost, folder_of, swapped, trained_model
from biox.training import train_seeds

SPLITS = ("pair", "val", "test")
BRIDGE, KD = "BioX-Bridge", "KD"


# --- the direction --------------------------------------------------------------------------------


def cached_of(settings: Settings) -> dict[str, Activations]:
    """Load the direction's activations, whose old side serves every model.

    Raises
    ------
    ValueError
        They were made from another old model or from other old windows than those here.
    """
    name = settings.table3.direction
    d, cached = settings.direction(name), {}
    for split in SPLITS:
        windows = Windows.load(PATHS.windows(d.dataset, split), [d.old])
        old, head = teacher_of(settings, name, windows)
        cached[split] = activations_of(settings, name, split)
        signals = torch.from_numpy(windows.signals[d.old])
        here = {"old model": model_digest(old), "old windows": signal_digest(signals)}
        here |= {"head": model_digest(head)}
        made_of = cached[split].made_of
        path = PATHS.activations(name, split)
        check_made_of(path, here, {key: made_of.get(key, "") for key in here})
    return cached


def windows_for(
    settings: Settings, spec: InputSpec, cached: Mapping[str, Activations]
) -> dict[str, Windows]:
    """Windows of the new modality, by split, conditioned for a model.

    The stored ones where the model reads what they hold; else cut again from the recordings.

    Raises
    ------
    ValueError
        The windows cut again are not those that the activations are of.
    """
    name = settings.table3.direction
    d, parts = settings.direction(name), {}
    choice = settings.dataset(d.dataset)
    stored, old = (input_spec(settings, d.dataset, modality) for modality in (d.new, d.old))
    for split in SPLITS:
        if spec == stored:
            windows = Windows.load(PATHS.windows(d.dataset, split), [d.new])
        else:
            windows = read_windows(
                reader_named(choice.reader or d.dataset),
                choice.folder,
                choice.splits[split],
                {d.new: spec, d.old: old},
                choice.seconds,
                choice.step,
                per_window=choice.condition_per == "window",
                keep_unlabelled=split == "pair",
                resampling=choice.resampling,
                source=source_of(d.dataset, choice),
                **choice.reader_options(),
            )
        check_same_windows(split, windows, cached[split])
        parts[split] = replace(windows, signals={d.new: windows.signals[d.new]})
    return parts


def check_same_windows(split: str, windows: Windows, cached: Activations) -> None:
    """Refuse windows of other stretches of time than those of the activations.

    Raises
    ------
    ValueError
        Recordings, starts or labels differ.
    """
    for what in ("subjects", "recordings", "starts", "labels"):
        found, expected = getattr(windows, what), getattr(cached, what)
        if len(found) != len(expected) or (found != expected).any():
            raise ValueError(
                f"{split}: expected the {len(expected)} windows of the activations, "
                f"found {len(found)} with other {what}"
            )


# --- bridge and distillation ----------------------------------------------------------------------


@torch.no_grad()
def pooled_layers(new: Backbone, x: Tensor, batch: int = 32) -> tuple[Tensor, ...]:
    """Pooled output of every layer, M x [n, d_m], from windows [n, channels, samples]."""
    new.eval()
    parts = [[new.pool(h) for h in new.hidden_states(rows)[1:]] for rows in x.split(batch)]
    return tuple(torch.cat(layer) for layer in zip(*parts, strict=True))


def bridged(
    settings: Settings, key: str, windows: Mapping[str, Windows]
) -> tuple[list[Outcome], dict[str, object]]:
    """One pass, two-stage selection, bridges with all seeds: outcomes, and what was chosen."""
    name = settings.table3.direction
    settings, d = settings.override("bridge", {"lr": settings.table3.lr}), settings.direction(name)
    old, head = teacher_of(settings, name, Windows.load(PATHS.windows(d.dataset, "val"), [d.old]))
    new, started = trained_model(settings, key), time.perf_counter()
    cached = {s: activations_of(settings, name, s) for s in SPLITS}
    x = {s: torch.from_numpy(w.signals[d.new]) for s, w in windows.items()}
    cached = {s: replace(a, new=pooled_layers(new, x[s])) for s, a in cached.items()}
    pair, how = cached["pair"], settings.positions
    passed = time.perf_counter()
    place = select_positions(
        [h.numpy() for h in pair.new],
        [h.numpy() for h in pair.old],
        pair.pseudo_labels,
        subjects=pair.subjects if how.probe == "by_subject" else None,
        cka=how.cka,
        n_folds=how.n_folds,
    )
    chosen = time.perf_counter()
    facts = place.to_json() | {"pass_seconds": passed - started, "choice_seconds": chosen - passed}
    seeds = settings.seeds
    try:
        results = train_seeds(
            new, old, head, cached, place.m, place.l, settings.bridge, seeds,
            compute=settings.compute.each(),
        )  # fmt: skip
    except FloatingPointError as error:
        shape = cached["test"].logits.shape
        return [Outcome.failure(BRIDGE, seed, shape, str(error)) for seed in seeds], facts
    seconds = (time.perf_counter() - chosen) / len(seeds)
    return [
        Outcome(
            BRIDGE, r.seed, r.probabilities, r.model.bridge.n_parameters,
            lr=settings.bridge.lr, seconds=seconds, **vars(r.fit),
        )
        for r in results
    ], facts  # fmt: skip


def distilled(settings: Settings, key: str, windows: Mapping[str, Windows]) -> list[Outcome]:
    """Knowledge distillation into the whole swapped model, with the bridge's number of epochs."""
    name, table3 = settings.table3.direction, settings.table3
    settings = settings.for_direction(name).with_seeds(list(settings.seeds[: table3.kd_seeds]))
    cached = {s: activations_of(settings, name, s) for s in SPLITS}
    for split in ("pair", "val"):
        rows = np.arange(0, len(cached[split]), table3.every)
        cached |= {split: thinned(cached[split], rows)}
        windows = dict(windows) | {split: windows[split].select(rows)}
    return kd_outcomes(partial(trained_model, settings, key), cached, windows, settings)


def thinned(a: Activations, rows: np.ndarray) -> Activations:
    """Some of the windows, with all that distillation reads; no last layers, no tokens."""
    per_window = {
        what: getattr(a, what)[rows]
        for what in ("logits", "labels", "subjects", "recordings", "starts")
    }
    return replace(a, last=a.last[torch.from_numpy(rows)], old=(), new=(), tokens=(), **per_window)


def kd_outcomes(
    pretrained: Callable[[], Backbone],
    cached: Mapping[str, Activations],
    windows: Mapping[str, Windows],
    settings: Settings,
) -> list[Outcome]:
    """Distil with `biox.baselines`: one outcome a seed, failures included.

    The learning rate is given, not searched for, as that of the bridge is.
    """
    from biox.baselines.trials import distil

    settings = settings.override("search", {"lr": [settings.table3.lr]})
    return distil([KD], pretrained, cached, windows, settings, lora_budget=0, n_jobs=1)[0]


# --- all of it ------------------------------------------------------------------------------------


def swap_all(settings: Settings, facts: Mapping[str, dict]) -> None:
    """Bridge and distil every pretrained model; write each one's folder, ``model.json`` last."""
    table3, cached = settings.table3, cached_of(settings)
    data = settings.dataset(settings.direction(table3.direction).dataset)
    models = {key: swapped(settings, key, data.seconds) for key in table3.models}
    specs = {key: model.input_spec for key, model in models.items()}
    made = {spec: windows_for(settings, spec, cached) for spec in set(specs.values())}
    order, tasks = by_cost(settings), {}
    for method, run in ((KD, distilled), (BRIDGE, bridged)):  # the dear ones first
        tasks |= {(method, key): partial(run, settings, key, made[specs[key]]) for key in order}
    done = apart(tasks, settings.compute.at_a_time)
    for key, model in models.items():
        bridges, place = done[BRIDGE, key].value
        students = done[KD, key].value
        folder = folder_of(key)
        (folder / "model.json").unlink(missing_ok=True)
        save_outcomes(folder, [*bridges, *students], cached["test"], table3.direction)
        swap = table3.models[key]
        about = {
            "name": swap.name,
            "size": swap.size,
            "layers": model.n_layers,
            "width": model.token_shape(model.n_layers)[1],
            "tokens": model.token_shape(0)[0],
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_memory": {method: done[method, key].peak_memory for method in (BRIDGE, KD)},
            "windows": {BRIDGE: len(cached["pair"]), KD: -(-len(cached["pair"]) // table3.every)},
        }
        write_json(folder / "model.json", about | dict(place) | dict(facts[key]))


def selections(settings: Settings) -> pd.DataFrame:
    """Chosen places and their scores, from what `swap_all` wrote."""
    rows = {}
    for key in settings.table3.models:
        about = read_json(folder_of(key) / "model.json")
        m, l = about["m"], about["l"]
        probe, cka = about["probe"], about["cka"]
        rows[key] = {
            "m": f"{m} of {len(probe)}",
            "probe at m": f"{probe[m]:.3f}",
            "probe, lowest to highest": f"{min(probe):.3f} to {max(probe):.3f}",
            "l": f"{l} of {len(cka)}",
            "CKA at l": f"{cka[l]:.3f}",
        }
    return pd.DataFrame(rows).T

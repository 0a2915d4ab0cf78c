"""The models that Table 3 puts in the new model's place, pretrained alike on one corpus."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from biox.apart import apart
from biox.backbones import Backbone, build, load, save
from biox.config import Settings
from biox.data.corpus import corpus
from biox.experiment import PATHS, conditioned_corpus
from biox.pretraining import KnownWindows, pretrain


def folder_of(key: str) -> Path:
    """Folder of one swapped model: ``data/table3/hubert-ecg-small``."""
    return PATHS.data / "table3" / key.lower().replace(" ", "-")


def swapped(settings: Settings, key: str, seconds: float) -> Backbone:
    """Build a swapped model, untrained; it reads as many leads as the data have."""
    choice, direction = settings.table3.models[key], settings.direction(settings.table3.direction)
    channels = settings.dataset(direction.dataset).n_channels(direction.new) or 1
    torch.manual_seed(settings.pretrain.seed)
    return build(choice.name, choice.size, n_channels=channels, seconds=seconds)


def corpora(settings: Settings) -> dict[str, KnownWindows]:
    """Simulate one corpus, and condition it for every model; the same for the same recipe."""
    modality = settings.direction(settings.table3.direction).new
    seconds = max(settings.pretrain.seconds[modality])
    n = round(60 * settings.table3.minutes / seconds)
    specs = {k: swapped(settings, k, seconds).input_spec for k in settings.table3.models}
    channels = {spec.channels for spec in specs.values()}.pop()
    raw = corpus(modality, n, seconds, settings.pretrain.seed, channels=channels, n_jobs=-1)
    made = {spec: conditioned_corpus(raw, spec) for spec in set(specs.values())}
    return {key: made[spec] for key, spec in specs.items()}


def pretrained(settings: Settings, known: Mapping[str, KnownWindows]) -> dict[str, dict]:
    """Pretrain every model into its folder; return seconds and variances explained."""
    tasks = {key: partial(_pretrain, settings, key, known[key]) for key in by_cost(settings)}
    return {
        key: {"pretraining_seconds": m.seconds, "variance_explained": m.value}
        for key, m in apart(tasks, settings.compute.at_a_time).items()
    }


def _pretrain(settings: Settings, key: str, known: KnownWindows) -> dict[str, float]:
    table3, how = settings.table3, settings.pretrain
    modality = settings.direction(table3.direction).new
    backbone = swapped(settings, key, max(how.seconds[modality]))
    result = pretrain(
        backbone,
        [known],
        epochs=table3.epochs,
        batch=how.batch,
        lr=table3.models[key].lr,
        mask=how.mask,
        reconstruction=how.reconstruction[modality],
        common=how.common[modality],
        seed=how.seed,
        weights=how.weights[modality],
    )
    save(backbone, folder_of(key) / "pretrained.safetensors")
    return dict(zip(known.names, result.r2.tolist(), strict=True))


def by_cost(settings: Settings) -> list[str]:
    """Models, the dearest first (parameters x tokens), so that no process waits at the end."""

    def cost(key: str) -> int:
        backbone = swapped(settings, key, 10.0)
        tokens = backbone.token_shape(backbone.n_layers)[0]
        return tokens * sum(p.numel() for p in backbone.parameters())

    return sorted(settings.table3.models, key=cost, reverse=True)


def trained_model(settings: Settings, key: str) -> Backbone:
    """Load a swapped model, pretrained, for the direction's windows."""
    d = settings.direction(settings.table3.direction)
    backbone = swapped(settings, key, settings.dataset(d.dataset).seconds)
    load(backbone, folder_of(key) / "pretrained.safetensors")
    return backbone.eval().requires_grad_(False)


def models_here(settings: Settings) -> pd.DataFrame:
    """One row a model: what is built, and how large it is."""
    data = settings.dataset(settings.direction(settings.table3.direction).dataset)
    rows = {}
    for key, choice in settings.table3.models.items():
        backbone = swapped(settings, key, data.seconds)
        spec = backbone.input_spec
        rows[key] = {
            "built": f"{choice.name} {choice.size}",
            "layers": backbone.n_layers,
            "tokens x features, last layer": "{} x {}".format(
                *backbone.token_shape(backbone.n_layers)
            ),
            "parameters": f"{sum(p.numel() for p in backbone.parameters()):,}",
            "reads": f"{spec.channels} lead, {spec.rate:g} Hz, {spec.conditioning}",
            "lr of pretraining": choice.lr,
        }
    return pd.DataFrame(rows).T.rename_axis("stands for")


def summary_of_pretraining(facts: Mapping[str, dict]) -> pd.DataFrame:
    """Share of variance explained on held-out windows, one row a parameter, one column a model."""
    return pd.DataFrame({key: f["variance_explained"] for key, f in facts.items()}).round(2)

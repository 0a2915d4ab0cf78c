"""Tables of the published models: where they come from, what they read, what they cost here."""

import pandas as pd
import torch

from biox.backbones import BACKBONES, Backbone, build
from biox.bench import measure


def published_sizes() -> list[tuple[str, str]]:
    """(name, size) of every size with published weights: not the tiny ones, nor biox's own CNN."""
    return [
        (name, size)
        for name, kind in BACKBONES.items()
        for size in kind.sizes
        if kind.origin.weights and not size.startswith("tiny")
    ]


def origins() -> pd.DataFrame:
    """Repository, licence and place of the weights of each model."""
    rows = {
        name: {
            "repository": kind.origin.repository,
            "licence": kind.origin.licence,
            "weights": kind.origin.weights,
        }
        for name, kind in BACKBONES.items()
        if kind.origin.weights
    }
    return pd.DataFrame(rows).T.rename_axis("model")


def window(backbone: Backbone) -> str:
    """What a backbone reads by default: ``6 EEG channels, 200 Hz, 30 s, uV/100``."""
    spec = backbone.input_spec
    channels = f"{spec.channels} {spec.modality.upper()} channel{'s' * (spec.channels > 1)}"
    return f"{channels}, {spec.rate:g} Hz, {spec.seconds:g} s, {spec.unit}"


def without_memory(name: str, size: str) -> Backbone:
    """Build a backbone that has shapes but no values."""
    with torch.device("meta"):
        return build(name, size)


def inputs_and_sizes() -> pd.DataFrame:
    """Input, layers, and parameters counted beside the published number, for each size.

    Counted are the parameters that biox keeps: those that reach the last layer. Published numbers
    include the heads of pretraining.
    """
    rows = {}
    for name, size in published_sizes():
        backbone = without_memory(name, size)
        published, stated_by = backbone.origin.parameters.get(size, ("", "no statement noted"))
        rows[name, size] = {
            "window": window(backbone),
            "layers": backbone.n_layers,
            "parameters kept": f"{sum(p.numel() for p in backbone.parameters()):,}",
            "published": published,
            "stated by": stated_by,
        }
    return pd.DataFrame(rows).T.rename_axis(["model", "size"])


def costs(batch: int) -> pd.DataFrame:
    """Measure one forward pass of each size: seconds, GB at most, seconds per window."""
    rows = {}
    for name, size in published_sizes():
        cost = measure(name, size, batch)
        rows[name, size] = {
            f"seconds, batch of {batch}": f"{cost.seconds:.2f}",
            "windows per second": f"{batch / cost.seconds:.1f}",
            "peak memory (GB)": f"{cost.memory / 1e9:.2f}",
        }
    return pd.DataFrame(rows).T.rename_axis(["model", "size"])


def token_shapes() -> pd.DataFrame:
    """Tokens x features at the input of each layer, with runs of equal shapes put together."""
    rows = {}
    for name, size in published_sizes():
        backbone = without_memory(name, size)
        spec = backbone.input_spec
        empty = torch.zeros(1, spec.channels, spec.samples, device="meta")
        shapes = [tuple(h.shape[1:]) for h in backbone.hidden_states(empty)]
        starts = [l for l, shape in enumerate(shapes) if l == 0 or shape != shapes[l - 1]]
        stops = [*starts[1:], len(shapes)]
        rows[name, size] = ", ".join(
            (f"l={a}: " if b - a == 1 else f"l={a}-{b - 1}: ") + "{} x {}".format(*shapes[a])
            for a, b in zip(starts, stops, strict=True)
        )
    return pd.DataFrame({"tokens x features": rows}).rename_axis(["model", "size"])

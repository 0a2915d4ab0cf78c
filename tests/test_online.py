"""Cached training step by step against the online procedure, which runs both models each time."""

import numpy as np
import pytest
import torch
from torch import nn

from biox.activations import compute_activations, layer_input
from biox.backbones import build
from biox.bridge import BridgedModel
from biox.config import load_settings
from biox.data.windows import Windows
from biox.files import project_root
from biox.losses import Objective
from biox.online import online_step
from biox.stacking import StackedTraining
from biox.training import Pairs, initial_bridge

SETTINGS = load_settings(project_root() / "params.yaml")
N_STEPS, BATCH = 20, 4


def losses_of_both(
    direction, sizes, n=12, seconds=3.0, batch=BATCH, align="last", lr=1e-3, start=0.0
):
    """Losses of twenty steps on the same noise, from the cache and from the signals."""
    torch.manual_seed(0)
    d = SETTINGS.direction(direction)
    new, old = (
        build(SETTINGS.backbones[m].name, sizes[m], seconds=seconds) for m in (d.new, d.old)
    )
    new, old = (model.eval().requires_grad_(False) for model in (new, old))
    x = {
        model.input_spec.modality: torch.randn(
            n, model.input_spec.channels, model.input_spec.samples
        )
        for model in (new, old)
    }
    head = nn.Linear(old.token_shape(old.n_layers)[1], 2)
    cached = compute_activations(windows_of(x, (new, old)), new, old, head)
    m, l = new.n_layers // 2, old.n_layers // 2
    bridge = (cached.new[m].shape[1], old.token_shape(l), 4, 8, 3, cached.tokens[l])
    models = [BridgedModel(new, old, initial_bridge(*bridge), head, m, l) for _ in range(2)]
    with torch.no_grad():
        models[0].bridge.B.normal_().mul_(start)
        models[1].bridge.B.copy_(models[0].bridge.B)
    target = cached.last if align == "last" else layer_input(old, x[d.old], l)
    pairs, objective = Pairs(cached.new[m], target), Objective("cosine", align)
    training = StackedTraining(models[:1], pairs, pairs, lr, batch, [0], objective)
    optimizer = torch.optim.Adam(models[1].bridge.parameters(), lr=lr)
    losses = []
    for _ in range(N_STEPS):
        rows = torch.randperm(n)[:batch]
        online = online_step(models[1], optimizer, x[d.new][rows], x[d.old][rows], objective)
        losses.append((training.step(rows[None]).item(), online.item()))
    return np.array(losses).T


def windows_of(x, models):
    n = len(next(iter(x.values())))
    specs = {model.input_spec.modality: model.input_spec for model in models}
    return Windows(
        signals={name: values.numpy() for name, values in x.items()},
        rates={name: spec.rate for name, spec in specs.items()},
        units={name: spec.unit for name, spec in specs.items()},
        channels={k: tuple(f"c{i}" for i in range(s.channels)) for k, s in specs.items()},
        labels=np.arange(n) % 2,
        subjects=np.array(["a"] * n),
        recordings=np.array(["a"] * n),
        starts=np.arange(n, dtype=float),
        classes=("x", "y"),
        source="noise",
    )


@pytest.mark.parametrize("direction", SETTINGS.directions)
def test_twenty_steps_lose_what_the_online_procedure_loses(direction):
    cached, online = losses_of_both(direction, dict.fromkeys(SETTINGS.backbones, "tiny"))
    assert len(set(online.round(4))) > N_STEPS / 2  # they move
    np.testing.assert_allclose(cached, online, rtol=1e-4)


def test_also_where_the_input_of_layer_l_is_learnt():
    sizes = dict.fromkeys(SETTINGS.backbones, "tiny")
    cached, online = losses_of_both("wesad-ecg2ppg", sizes, align="input")
    np.testing.assert_allclose(cached, online, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["wesad-ecg2ppg", "isruc-eeg2ecg"])
def test_twenty_steps_at_published_size(direction):
    """From small random numbers in B: from zeros, rounding decides the sign of the first steps."""
    sizes = {"ecg": "small", "ppg": "small", "eeg": "base"}
    cached, online = losses_of_both(
        direction, sizes, n=6, seconds=10.0, batch=2, lr=1e-4, start=0.02
    )
    assert online[-1] < 0.95 * online[0]
    np.testing.assert_allclose(cached, online, rtol=1e-4)

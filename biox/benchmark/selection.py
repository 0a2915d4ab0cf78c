"""Features of all layers, for the choice of positions: once a layer, or in one pass."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from biox.backbones import Backbone
from biox.benchmark.plan import Case, Plan, shortest
from biox.benchmark.results import row, rows_of


@torch.no_grad()
def once_a_layer(backbone: Backbone, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Pooled states by a whole pass for each, of which one state is kept, as by a hook.

    State 0 is the stem's output, state i that of layer i - 1.
    """
    features = []
    for wanted in layers:
        h = backbone.stem(x)
        kept = backbone.pool(h)
        for i in range(backbone.n_layers):
            h = backbone.layer(i, h)
            kept = backbone.pool(h) if i + 1 == wanted else kept
        features.append(kept)
    return features


@torch.no_grad()
def one_pass(backbone: Backbone, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Pooled states of one pass, as `biox.activations` collects them."""
    states = backbone.hidden_states(x)
    return [backbone.pool(states[i]) for i in layers]


def measure(plan: Plan) -> pd.DataFrame:
    """Time both for each direction, and count the numbers kept beside those of all tokens."""
    rows: list[dict] = []
    known: dict[tuple, tuple[float, float]] = {}
    numbers = torch.zeros(2)
    for name in plan.directions:
        case = Case.of(name, plan.size)
        times, kept = torch.zeros(2), torch.zeros(2)
        for side in ("new", "old"):
            backbone = getattr(case, side)
            key = (type(backbone), backbone.input_spec)  # a model runs alike as new and as old
            known[key] = known.get(key) or _seconds(case, side, plan)
            times += torch.tensor(known[key])
            kept += torch.tensor(_numbers(backbone, _states(backbone, side)))
        numbers += kept
        rows += [
            row("selection", name, "once a layer", float(times[0]), "s"),
            row("selection", name, "one pass", float(times[1]), "s"),
            row("selection", name, "once a layer / one pass", float(times[0] / times[1]), "x"),
            row("selection", name, "pooled / all tokens", 100 * float(kept[0] / kept[1]), "%"),
        ]
    share = 100 * float(numbers[0] / numbers[1])
    return rows_of([*rows, row("selection", "all", "pooled / all tokens", share, "%")])


def _states(backbone: Backbone, side: str) -> range:
    """States that the choice compares: outputs of new layers, inputs of old ones."""
    return range(1, backbone.n_layers + 1) if side == "new" else range(backbone.n_layers)


def _seconds(case: Case, side: str, plan: Plan) -> tuple[float, float]:
    backbone, x = getattr(case, side), case.windows(side, plan.collected)
    layers = _states(backbone, side)
    one_pass(backbone, x[:1], layers)  # the first pass of a model is slower
    slow = shortest(lambda: once_a_layer(backbone, x, layers), plan.repeats, plan.seconds)
    return slow, shortest(lambda: one_pass(backbone, x, layers), 2 * plan.repeats, plan.seconds)


@torch.no_grad()
def _numbers(backbone: Backbone, layers: Sequence[int]) -> tuple[float, float]:
    """Pooled numbers of a window, and those of all tokens."""
    spec = backbone.input_spec
    states = backbone.hidden_states(torch.zeros(1, spec.channels, spec.samples))
    pooled = sum(states[i].shape[2] for i in layers)
    return float(pooled), float(sum(states[i].numel() for i in layers))

"""Seconds of a training step: online, on the cache, and the least that is possible."""

from collections.abc import Callable, Mapping
from math import exp, log
from statistics import mean
from time import perf_counter

import pandas as pd
import torch

from biox.benchmark.calls import bare_tail, cached_step, online_step
from biox.benchmark.plan import Case, Plan, shortest
from biox.benchmark.results import row, rows_of
from biox.compute import Compute

NEEDED = ("target", "below m", "bridge and tail")  # parts of an online step

SETTINGS = {
    "cached": Compute(),
    "cached, 16 bits": Compute(autocast=True),
    "cached, 16 bits, compiled": Compute(autocast=True, compile=True),
}
"""Of section `compute` in params.yaml; the first is the default, and the one that is exact."""

MEANS = ("online / cached", "online / cached, fastest")


def measure(plan: Plan) -> pd.DataFrame:
    """Time a step of each direction and compare; last rows are means of all directions."""
    rows = []
    for name in plan.directions:
        rows += _direction(Case.of(name, plan.size), plan)
        torch.compiler.reset()  # it gives up on what it has compiled for many models
    table = rows_of(rows)
    means = {of: table.loc[table["measure"] == of, "value"] for of in MEANS}
    return rows_of(
        rows
        + [
            row("step", "geometric mean", of, exp(mean(map(log, x))), "x")
            for of, x in means.items()
        ]
    )


def _direction(case: Case, plan: Plan) -> list[dict]:
    model = case.untrained()
    pair = case.pairs(2 * plan.batch)
    steps = {
        name: cached_step([case.untrained()], pair, plan.batch, compute)
        for name, compute in SETTINGS.items()
        if plan.compile or not compute.compile
    }
    losses = {name: step().item() for name, step in steps.items()}  # compiles
    h = torch.randn(plan.batch, *case.old.token_shape(case.l)).requires_grad_()
    seconds = _in_turns({**steps, "bare tail": lambda: bare_tail(model, h)}, plan)
    cached, fastest = seconds["cached"], min(seconds[name] for name in steps)
    online, frugal = _online(case, plan)
    seconds = {"online": online, "online, frugal": frugal} | seconds
    ratios = {
        "online / cached": online / cached,
        "online / cached, fastest": online / fastest,
        "online, frugal / cached": frugal / cached,
        "cached / bare tail": cached / seconds["bare tail"],
    }
    off = max(abs(loss / losses["cached"] - 1) for loss in losses.values())
    return (
        [row("step", case.name, what, value, "s") for what, value in seconds.items()]
        + [row("step", case.name, what, value, "x") for what, value in ratios.items()]
        + [row("step", case.name, "first loss in 16 bits is off by", off, "")]
    )


def _online(case: Case, plan: Plan) -> tuple[float, float]:
    """Shortest online step, and the shortest of the parts that it needs."""
    model = case.untrained()
    x_new, x_old = (case.windows(side, plan.batch) for side in ("new", "old"))
    steps: list[dict[str, float]] = []
    began = perf_counter()
    while not steps or (len(steps) < plan.repeats and perf_counter() - began < plan.seconds):
        steps.append(online_step(model, x_new, x_old))
    return (
        min(sum(parts.values()) for parts in steps),
        min(sum(parts[part] for part in NEEDED) for parts in steps),
    )


def _in_turns(calls: Mapping[str, Callable[[], object]], plan: Plan) -> dict[str, float]:
    """Shortest time of each call; they take turns, so that all see the same machine."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    began, turns = perf_counter(), 0
    while not turns or (turns < plan.repeats and perf_counter() - began < plan.seconds):
        for name, call in calls.items():
            found[name].append(shortest(call, 5, plan.seconds))
        turns += 1
    return {name: min(times) for name, times in found.items()}

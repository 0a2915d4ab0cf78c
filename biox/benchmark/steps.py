"""Seconds of a training step: online, on the cache, and the least that is possible."""

from time import perf_counter

import pandas as pd
import torch

from biox.benchmark.calls import bare_tail, cached_step, online_step
from biox.benchmark.plan import Case, Plan, shortest
from biox.benchmark.results import row, rows_of

NEEDED = ("target", "below m", "bridge and tail")  # parts of an online step


def measure(plan: Plan) -> pd.DataFrame:
    """Time a step of each direction and compare; the last row is the mean of all directions."""
    rows = []
    for name in plan.directions:
        rows += _direction(Case.of(name, plan.size), plan)
    table = rows_of(rows)
    ratios = table.loc[table["measure"] == "online / cached", "value"]
    mean = float(torch.tensor(ratios.to_numpy()).log().mean().exp())
    return rows_of([*rows, row("step", "geometric mean", "online / cached", mean, "x")])


def _direction(case: Case, plan: Plan) -> list[dict]:
    cached, bare = _cached_and_bare(case, plan)
    model = case.untrained()
    x_new, x_old = (case.windows(side, plan.batch) for side in ("new", "old"))
    online, frugal = float("inf"), float("inf")
    taken = 0.0
    for i in range(plan.repeats):
        if i and taken > plan.seconds:
            break
        parts = online_step(model, x_new, x_old)
        taken += sum(parts.values())
        online = min(online, sum(parts.values()))
        frugal = min(frugal, sum(parts[part] for part in NEEDED))
    seconds = {"online": online, "online, frugal": frugal, "cached": cached, "bare tail": bare}
    ratios = {
        "online / cached": online / cached,
        "online, frugal / cached": frugal / cached,
        "cached / bare tail": cached / bare,
    }
    return [row("step", case.name, what, value, "s") for what, value in seconds.items()] + [
        row("step", case.name, what, value, "x") for what, value in ratios.items()
    ]


def _cached_and_bare(case: Case, plan: Plan) -> tuple[float, float]:
    """Shortest cached step and bare tail, taken in turns so that both see the same machine."""
    model = case.untrained()
    step = cached_step([model], case.pairs(2 * plan.batch), plan.batch)
    h = torch.randn(plan.batch, *case.old.token_shape(case.l)).requires_grad_()
    cached, bare = [], []
    began = perf_counter()
    while not bare or (len(bare) < plan.repeats and perf_counter() - began < plan.seconds):
        cached.append(shortest(step, 5, plan.seconds))
        bare.append(shortest(lambda: bare_tail(model, h), 5, plan.seconds))
    return min(cached), min(bare)

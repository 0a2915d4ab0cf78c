"""Many bridges trained together, in one pass over the tail, against one after another."""

import pandas as pd

from biox.benchmark.calls import cached_step
from biox.benchmark.plan import Case, Plan, shortest
from biox.benchmark.results import row, rows_of


def measure(plan: Plan) -> pd.DataFrame:
    """Time a step of the same bridges both ways, for a deep tail and for a short one."""
    rows = []
    for tail in ("deep", "short"):
        case = Case.of(getattr(plan, tail), plan.size)
        pair = case.pairs(2 * plan.batch)
        models = [case.untrained(seed) for seed in range(plan.bridges)]
        singles = [cached_step([model], pair, plan.batch) for model in models]
        together = cached_step(models, pair, plan.batch)
        one, all_ = [], []
        while not one or (len(one) < plan.repeats and sum(one) + sum(all_) < plan.seconds):
            one.append(shortest(lambda: [step() for step in singles], 2, plan.seconds))  # noqa: B023
            all_.append(shortest(together, 2, plan.seconds))
        layers = case.old.n_layers - case.l
        named = f"{case.name}, tail of {layers} layer{'s' * (layers > 1)}"
        n = plan.bridges
        rows += [
            row("together", named, f"step of {n} bridges, one after another", min(one), "s"),
            row("together", named, f"step of {n} bridges, together", min(all_), "s"),
            row("together", tail, "together / one after another", min(all_) / min(one), "x"),
        ]
    return rows_of(rows)

"""Many bridges trained together, in one pass over the tail, against one after another."""

import pandas as pd
import torch

from biox.benchmark.calls import cached_step
from biox.benchmark.costs import multiply_adds
from biox.benchmark.plan import Case, Plan, shortest
from biox.benchmark.results import row, rows_of


def measure(plan: Plan) -> pd.DataFrame:
    """Time a step of the same bridges both ways, for a deep tail and for a short one."""
    rows, product = [], product_speed()
    rows.append(row("together", "all", "speed of a matrix product", product / 1e9, "GFLOP/s"))
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
        busy = 2 * n * multiply_adds(singles[0]) / min(one) / product
        rows += [
            row("together", named, f"step of {n} bridges, one after another", min(one), "s"),
            row("together", named, f"step of {n} bridges, together", min(all_), "s"),
            row("together", tail, "together / one after another", min(all_) / min(one), "x"),
            row("together", tail, "the same at the speed of a matrix product", busy, "x"),
        ]
    return rows_of(rows)


def product_speed(size: int = 2048) -> float:
    """Operations a second of a product of square matrices: no tail can be much faster."""
    x = torch.randn(size, size)
    return 2 * size**3 / shortest(lambda: x @ x, 20, 5.0)

"""Command line: ``python -m biox.benchmark`` prints what it measures, with targets."""

import argparse
from time import perf_counter

import pandas as pd
import torch

from biox.benchmark import growth, results, selection, steps, together
from biox.benchmark.plan import PLANS, SIX, plan_of

PARTS = {"step": steps, "selection": selection, "growth": growth, "together": together}


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts that are asked for, print them, and save the table if told where."""
    parser = argparse.ArgumentParser(prog="python -m biox.benchmark", description=__doc__)
    parser.add_argument("--size", choices=sorted(PLANS), default="published")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--directions", nargs="+", choices=SIX, default=list(SIX))
    parser.add_argument("--repeats", type=int, help="times are taken so often; the shortest counts")
    parser.add_argument("--out", help="table to write, for example benchmark.csv")
    told = parser.parse_args(arguments)
    changes = {"repeats": told.repeats} if told.repeats else {}
    plan = plan_of(told.size, directions=tuple(told.directions), **changes)
    note = f"models: {plan.size}, random weights; {torch.get_num_threads()} threads; CPU"
    print(note)
    measured = []
    for part in told.parts:
        start = perf_counter()
        measured.append(results.judged(PARTS[part].measure(plan), plan.size))
        print(f"\n{part}, {perf_counter() - start:.0f} s")
        print(measured[-1].drop(columns="part").to_string(index=False, float_format="%.4g"))
    if told.out:
        results.save(pd.concat(measured), told.out, note)


if __name__ == "__main__":
    main()

"""Memory and time of a training on the cache as windows grow in number."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
import torch

from biox.apart import new_processes
from biox.bench import _memory
from biox.benchmark.calls import Pairs, epoch, store, stored
from biox.benchmark.plan import Case, Plan
from biox.benchmark.results import row, rows_of


def measure(plan: Plan) -> pd.DataFrame:
    """Train one epoch on x1, x2, ... windows, each in a process of its own, twice.

    The last layers lie in a file, of which a step reads its rows. The lower peak counts: how much
    the allocator keeps of what has been freed differs by some per cent from run to run.
    """
    numbers = [factor * plan.windows for factor in plan.factors]
    with TemporaryDirectory() as folder:
        twice = [
            [_in_own_process(plan, Path(folder) / f"last-{n}.npy", n) for n in numbers]
            for _ in range(2)
        ]
    peaks, seconds, stored_mb = np.min(twice, axis=0).T
    rows = []
    for n, peak, time, size in zip(numbers, peaks, seconds, stored_mb, strict=True):
        rows += [
            row("growth", plan.growth, f"epoch of {n} windows", time, "s"),
            row("growth", plan.growth, f"peak memory, {n} windows", peak / 1e6, "MB"),
            row("growth", plan.growth, f"last layers on disk, {n} windows", size / 1e6, "MB"),
        ]
    more = 100 * (peaks[-1] / peaks[0] - 1)
    power = np.polyfit(np.log(numbers), np.log(seconds), 1)[0] if len(numbers) > 1 else np.nan
    return rows_of(
        [
            *rows,
            row("growth", plan.growth, "more memory, most / fewest windows", more, "%"),
            row("growth", plan.growth, "time grows with windows to the power", float(power), ""),
        ]
    )


def _in_own_process(plan: Plan, path: Path, n: int) -> tuple[int, float, int]:
    """Bytes at most, seconds of an epoch, bytes on the disk."""
    old = Case.of(plan.growth, plan.size).old
    shape = (n, *old.token_shape(old.n_layers))
    store(path, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    size = path.stat().st_size
    with new_processes(load="biox.benchmark.growth") as pool:
        threads = torch.get_num_threads()
        peak, seconds = pool.submit(_train, plan, path, shape, threads).result()
    path.unlink()
    return peak, seconds, size


def _train(plan: Plan, path: Path, shape: tuple[int, ...], threads: int) -> tuple[int, float]:
    torch.set_num_threads(threads)
    case = Case.of(plan.growth, plan.size)
    model, val = case.untrained(), case.pairs(1)
    pooled = torch.randn(shape[0], case.new.token_shape(case.m + 1)[1])
    pair = Pairs(pooled, stored(path, shape))
    epoch(model, val, val, plan.batch)  # libraries are loaded now
    start = perf_counter()
    epoch(model, pair, val, plan.batch)
    return _memory("VmHWM"), perf_counter() - start

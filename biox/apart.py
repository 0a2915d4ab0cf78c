"""Trainings in processes of their own, so that time and memory of each are its own."""

import resource
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch


@dataclass(frozen=True)
class Measured:
    """What a task gave, and what it took."""

    value: object
    seconds: float
    peak_memory: int  # bytes beyond what the process held before


def measured(task: Callable[[], object]) -> Measured:
    """Run a task on one thread; time and memory are this process's."""
    torch.set_num_threads(1)
    before, started = _most_memory(), time.perf_counter()
    value = task()
    return Measured(value, time.perf_counter() - started, _most_memory() - before)


def _most_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def apart(
    tasks: Mapping[Hashable, Callable[[], object]],
    processes: int = 2,
    preload: Sequence[str] = ("transformers.models.hubert.modeling_hubert", "biox.experiment"),
) -> dict[Hashable, Measured]:
    """Run tasks, so many at a time, in the given order, each in a new process.

    Parameters
    ----------
    tasks : mapping
        Functions of modules, with their arguments (`functools.partial`), by any name.
    processes : int
    preload : sequence of str
        Modules loaded once, before the first process starts.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {key: pool.submit(measured, task) for key, task in tasks.items()}
        return {key: future.result() for key, future in futures.items()}

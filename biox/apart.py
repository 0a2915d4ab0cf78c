"""Trainings in processes of their own, so that time and memory of each are its own."""

import resource
import time
from collections.abc import Callable, Hashable, Mapping
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


def new_processes(at_a_time: int = 1, load: str = "biox.experiment") -> ProcessPoolExecutor:
    """Open processes that run one task each; all start with a module loaded and nothing computed.

    What is loaded on the way counts as no task's time or memory.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.hubert.modeling_hubert", load])
    return ProcessPoolExecutor(at_a_time, mp_context=context, max_tasks_per_child=1)


def apart(
    tasks: Mapping[Hashable, Callable[[], object]], at_a_time: int
) -> dict[Hashable, Measured]:
    """Run tasks, so many at a time, in the given order, each in a new process.

    Parameters
    ----------
    tasks : mapping
        Functions of modules, with their arguments (`functools.partial`), by any name.
    at_a_time : int
    """
    with new_processes(at_a_time) as pool:
        futures = {key: pool.submit(measured, task) for key, task in tasks.items()}
        return {key: future.result() for key, future in futures.items()}

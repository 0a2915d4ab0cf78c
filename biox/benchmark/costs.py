"""Trained parameters, multiply-adds, time and memory of a training step, method by method."""

import ctypes
import gc
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from biox.apart import new_processes
from biox.bench import _memory
from biox.benchmark.methods import METHODS, Plan


@dataclass(frozen=True)
class Cost:
    """Costs of one method.

    Attributes
    ----------
    n_parameters : int
        Trained ones.
    multiply_adds : int
        Of a step, forward and backward.
    step, epoch : float
        Seconds: the median step, and so many of them as an epoch has.
    memory : int
        Bytes that models, optimizer and steps took at most.
    """

    n_parameters: int
    multiply_adds: int
    step: float
    epoch: float
    memory: int


def measure_all(
    plan: Plan, batch: int, steps: int, methods: Sequence[str] = tuple(METHODS)
) -> pd.DataFrame:
    """Measure each method in a process of its own, one after another: one row a method.

    A method whose library is not installed has NaN, and the column ``not measured`` says why.

    Raises
    ------
    ValueError
        Unknown method, or fewer than one step.
    """
    unknown = sorted(set(methods) - set(METHODS))
    if unknown or steps < 1:
        raise ValueError(
            f"costs: expected methods out of {sorted(METHODS)} and at least one step, "
            f"found {unknown} and {steps} steps"
        )
    rows = []
    for method in methods:
        row = {"method": method, "batch": batch, "not measured": ""}
        try:
            row |= asdict(measure(method, plan, batch, steps))
        except ModuleNotFoundError as error:
            row["not measured"] = f"{error.name} is not installed"
        rows.append(row)
    columns = ["method", "batch", *Cost.__dataclass_fields__, "not measured"]
    return pd.DataFrame(rows).reindex(columns=columns)


def measure(method: str, plan: Plan, batch: int, steps: int) -> Cost:
    """Measure one method in a fresh process, so that no other's memory counts."""
    with new_processes(load="biox.benchmark.costs") as pool:
        threads = torch.get_num_threads()
        return pool.submit(_measure, method, plan, batch, steps, threads).result()


def _measure(method: str, plan: Plan, batch: int, steps: int, threads: int) -> Cost:
    torch.set_num_threads(threads)
    _load_libraries(method, plan)
    before = _start_of_peak()
    training = METHODS[method](plan, batch)
    training.step()  # the first one is slower
    seconds = []
    for _ in range(steps):
        start = perf_counter()
        training.step()
        seconds.append(perf_counter() - start)
    memory = _memory("VmHWM") - before
    step = median(seconds)
    return Cost(
        training.n_parameters,
        multiply_adds(training.step),
        step,
        step * -(-(training.rows or plan.windows) // batch),
        memory,
    )


def multiply_adds(call: Callable[[], object]) -> int:
    """Count multiply-adds of matrix products, convolutions and attention in a call.

    torch counts a multiplication and an addition apiece, so half of its number. It does not know
    the fused attention of the CPU, which would count as nothing: attention is written out here.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def machine() -> str:
    """Say what computes, without naming the machine."""
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores), {threads} threads, 32 bit"


def _load_libraries(method: str, plan: Plan) -> None:
    """Take a step with tiny models: what is loaded on demand is no method's memory."""
    METHODS[method](plan.tiny(), 2).step()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; else freed memory is kept,
    if trim is not None:  # and the models to be measured would take theirs from it unseen
        trim(0)


def _start_of_peak() -> int:
    """Forget the highest memory so far (Linux, proc(5)); return the memory now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not allowed here: the peak then includes the loading of libraries
    return _memory("VmRSS")

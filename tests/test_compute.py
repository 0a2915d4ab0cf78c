"""Trainings side by side: their share of the threads, and threads that are fixed for a page."""

import os
import subprocess
import sys
import time

import pytest
import torch

from biox.compute import Compute


def test_each_has_its_threads_or_its_share_of_the_cores():
    assert Compute(threads=3, workers=2).each() == Compute(threads=3, workers=1)
    cores = torch.get_num_threads()
    assert Compute(workers=2).each() == Compute(threads=max(1, cores // 2), workers=1)
    assert Compute(workers=10 * cores).each().threads == 1


def test_as_many_side_by_side_as_there_are_cores_or_fewer(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert Compute(workers=None).at_a_time == 1
    assert Compute(workers=3).at_a_time == 3


def test_tasks_run_side_by_side_in_order_and_leave_the_threads_alone():
    before, running, most = torch.get_num_threads(), 0, 0

    def task(i):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.2)
        running -= 1
        return i, torch.get_num_threads()

    compute = Compute(threads=1, workers=2)
    tasks = [lambda i=i: task(i) for i in range(4)]
    assert compute.side_by_side(tasks) == [(i, 1) for i in range(4)] and most == 2
    assert torch.get_num_threads() == before
    most = 0
    assert [i for i, _ in compute.side_by_side(tasks, "cuda")] == [0, 1, 2, 3] and most == 1


@pytest.mark.parametrize("first", ["torch", "biox.notebook"])
def test_threads_are_fixed_whatever_the_environment_says(first):
    """Also where torch is loaded already, and where it is loaded later."""
    code = f"import {first}; from biox.notebook import _fix_threads; _fix_threads(2)"
    code += "; import torch; print(torch.get_num_threads())"
    told = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2"


@pytest.mark.parametrize("name", ["threads", "workers", "at_most"])
def test_numbers_are_above_zero(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number above 0, found 0"):
        Compute(**{name: 0})

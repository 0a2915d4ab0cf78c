"""Stages of the pipeline side by side; `dvc repro` runs them one after another.

DVC allows it: `dvc repro --single-item STAGE` gives up its lock while the stage computes. What may
run, and when, follows from `dvc dag`, from `dvc status`, and from what dvc.yaml says of stages in
``meta``: ``minutes`` (roughly, on one core; long ways to the end start first) and ``alone`` (it
measures time, so nothing runs beside it).
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import joblib
import yaml

DVC = (sys.executable, "-m", "dvc")
TOLD = 60
"""Last lines of a failed stage that are shown."""


@dataclass(frozen=True)
class Pipeline:
    """What the stages need, and what they ask for.

    Attributes
    ----------
    needs : dict
        Stage -> the stages whose outputs it reads.
    minutes : dict
        Stage -> how long it takes, roughly.
    alone : frozenset
        Stages beside which nothing may run.
    """

    needs: Mapping[str, frozenset[str]]
    minutes: Mapping[str, float]
    alone: frozenset[str]

    @classmethod
    def of(cls, dag: str, dvc_yaml: str) -> "Pipeline":
        """Read what ``dvc dag --dot`` prints and the ``meta`` of dvc.yaml's stages."""
        needs: dict[str, set[str]] = {
            name: set() for name in re.findall(r'^"([^"]+)";$', dag, re.M)
        }
        for before, after in re.findall(r'^"([^"]+)" -> "([^"]+)";$', dag, re.M):
            needs[after].add(before)
        stages = yaml.safe_load(dvc_yaml)["stages"]
        declared = {name: stages[name.split("@")[0]] for name in needs}
        meta = {name: stage.get("do", stage).get("meta", {}) for name, stage in declared.items()}
        return cls(
            {name: frozenset(before) for name, before in needs.items()},
            {name: meta[name].get("minutes", 0.2) for name in needs},
            frozenset(name for name in needs if meta[name].get("alone", False)),
        )

    def after(self, changed: Sequence[str]) -> set[str]:
        """Stages that may have to run: the changed ones and all that depend on them."""
        found = set(changed) & set(self.needs)
        while more := {s for s, before in self.needs.items() if before & found} - found:
            found |= more
        return found

    def up_to(self, targets: Sequence[str]) -> set[str]:
        """Targets (``teacher`` names all stages ``teacher@...``), and all that they depend on.

        Raises
        ------
        ValueError
            There is no such stage.
        """
        found: set[str] = set()
        for target in targets:
            named = {s for s in self.needs if target in (s, s.split("@")[0])}
            if not named:
                raise ValueError(f"repro: expected a stage of dvc.yaml, found {target!r}")
            found |= named
        while more := {b for s in found for b in self.needs[s]} - found:
            found |= more
        return found

    def minutes_to_end(self) -> dict[str, float]:
        """Time from a stage's start to the end of the longest chain of stages behind it."""

        @cache
        def longest(name: str) -> float:
            behind = (longest(s) for s, before in self.needs.items() if name in before)
            return self.minutes[name] + max(behind, default=0.0)

        return {name: longest(name) for name in self.needs}


def in_order(
    pipeline: Pipeline,
    stages: set[str],
    jobs: int,
    start: Callable[[str], None],
    wait: Callable[[], tuple[str, bool]],
) -> str | None:
    """Start each stage when what it needs is done, at most `jobs` at a time.

    Parameters
    ----------
    stages : set of str
        What is to run; all others count as done.
    start : callable
        Starts a stage and returns at once.
    wait : callable
        Waits until a stage ends; its name, and whether it went well.

    Returns
    -------
    str or None
        A stage that failed: nothing was started after it, and what ran was waited for.
    """
    left, running, failed = set(stages), set(), None
    urgent = pipeline.minutes_to_end()
    while running or (left and failed is None):
        unfinished = left | running
        ready = [s for s in left if not pipeline.needs[s] & unfinished]
        ready.sort(key=lambda s: (s in pipeline.alone, -urgent[s], s))
        for stage in ready if failed is None else []:
            company = len(running) if stage not in pipeline.alone else jobs * len(running)
            if company >= jobs or running & pipeline.alone:
                break
            start(stage)
            running.add(stage)
            left.remove(stage)
        stage, well = wait()
        running.remove(stage)
        failed = failed or (None if well else stage)
    return failed


class Processes:
    """Stages as processes of DVC, each with `share` of the cores; says when they start and end."""

    def __init__(self, root: Path, share: int, total: int):
        self.root, self.share, self.total, self.begun = root, share, total, 0
        self.running: dict[str, tuple[subprocess.Popen, IO[str], float]] = {}

    def start(self, stage: str) -> None:
        """Start a stage; what it prints is kept for the case that it fails."""
        said = TemporaryFile("w+")
        command = (*DVC, "--wait-for-lock", "repro", "--single-item", stage)
        # joblib, and so all in biox that counts cores, goes by this number.
        env = os.environ | {"LOKY_MAX_CPU_COUNT": str(self.share)}
        process = subprocess.Popen(
            command, cwd=self.root, stdout=said, stderr=subprocess.STDOUT, env=env
        )
        self.running[stage] = (process, said, time.perf_counter())
        self.begun += 1
        print(f"[{self.begun:3d}/{self.total}] {stage}", flush=True)

    def wait(self) -> tuple[str, bool]:
        """Wait for the first stage to end."""
        while True:
            for stage, (process, said, started) in self.running.items():
                if process.poll() is not None:
                    del self.running[stage]
                    self._tell(stage, process.returncode, said, time.perf_counter() - started)
                    return stage, process.returncode == 0
            time.sleep(0.05)

    def _tell(self, stage: str, status: int, said: IO[str], seconds: float) -> None:
        with said:
            if status == 0:
                print(f"          {stage}: {seconds:.0f} s", flush=True)
                return
            said.seek(0)
            print("".join(said.readlines()[-TOLD:]), file=sys.stderr)
        print(f"{stage}: expected exit status 0, found {status}", file=sys.stderr, flush=True)


def repro(root: Path, jobs: int, targets: Sequence[str] = ()) -> str | None:
    """Run the stages that may be out of date, `jobs` at a time; the one that failed, or None.

    Parameters
    ----------
    root : Path
        The project.
    jobs : int
    targets : sequence of str
        Stages to run, with what they depend on; none: all.

    Raises
    ------
    ValueError
        There is no such stage.
    RuntimeError
        DVC cannot say what the stages are or which have changed.
    """
    changed = list(json.loads(_dvc(root, "status", "--json")))
    if not changed:
        return None
    pipeline = Pipeline.of(_dvc(root, "dag", "--dot"), (root / "dvc.yaml").read_text())
    stages = pipeline.after(changed) & pipeline.up_to(targets or list(pipeline.needs))
    processes = Processes(root, max(1, joblib.cpu_count() // jobs), len(stages))
    try:
        return in_order(pipeline, stages, jobs, processes.start, processes.wait)
    finally:  # interrupted: what runs has been interrupted as well
        for process, *_ in processes.running.values():
            process.wait()


def _dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run((*DVC, *arguments), cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(arguments)}: expected an answer, found {done.stderr}")
    return done.stdout

"""How training uses the machine: section `compute` of params.yaml."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")

AT_MOST = {"cpu": 250_000, "cuda": 50_000_000}
"""Numbers. On a CPU, sixteen bridges before tiny models gained from company up to here, and lost
beyond."""


@dataclass(frozen=True)
class Compute:
    """What changes the time and memory of training bridges, and their results by rounding alone.

    Attributes
    ----------
    autocast : bool
        Run the tail in bfloat16 where torch deems that safe; bridge, loss and Adam stay in 32 bit.
    compile : bool
        Run the tail through ``torch.compile``. Needs a C++ compiler; pays off in long trainings.
    threads : int, optional
        Of the CPU, of each training; None: the cores, divided by `workers`. Their number changes
        the order in which numbers are added up, and so, in a long training, results: a fixed one
        makes a seed decide them whatever the machine's number of cores.
    workers : int, optional
        Trainings side by side on a CPU; None: one a core, of those that joblib counts
        (``LOKY_MAX_CPU_COUNT`` sets fewer). Where threads are fixed, no number depends on it.
    at_most : int, optional
        So many numbers bridges that train together may write before the tail in a step (4 bytes
        each; a tail keeps tens of times as much for its way back). None: what measured fastest, on
        a CPU what its caches hold, on a GPU far more. 1: each bridge trains by itself.
    """

    autocast: bool = False
    compile: bool = False
    threads: int | None = None
    workers: int | None = 1
    at_most: int | None = None

    def __post_init__(self):
        for name in ("threads", "workers", "at_most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a number above 0, found {value}")

    def together(self, numbers: int, device_type: str) -> int:
        """How many bridges train together, if a step of each writes so many numbers."""
        return max(1, (self.at_most or AT_MOST[device_type]) // numbers)

    @property
    def at_a_time(self) -> int:
        """How many trainings run side by side on a CPU."""
        if self.workers is not None:
            return self.workers
        from joblib import cpu_count

        return cpu_count()

    def each(self) -> "Compute":
        """What one of the trainings side by side has of this."""
        threads = self.threads or max(1, _threads() // self.at_a_time)
        return replace(self, threads=threads, workers=1)

    def side_by_side(self, tasks: Iterable[Callable[[], T]], device: str = "cpu") -> list[T]:
        """Run trainings, `at_a_time` of them, each with its threads; on a GPU in turn.

        They share memory, and so may share frozen models. Each has its threads as `each` says, and
        is not to change them.
        """
        from joblib import Parallel, delayed

        if device.startswith("cuda"):
            return [task() for task in tasks]
        with self.each().cpu_threads():
            share = _threads()
            jobs = (delayed(_on_threads)(share, task) for task in tasks)
            return Parallel(n_jobs=self.at_a_time, backend="threading")(jobs)

    @contextmanager
    def cpu_threads(self) -> Iterator[None]:
        """Within it, torch computes with `threads` threads."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def precision(self, device_type: str) -> AbstractContextManager:
        """Within it, the tail computes in bfloat16, if `autocast` says so."""
        import torch

        return torch.autocast(device_type, torch.bfloat16, enabled=self.autocast)

    def prepared(self, tail: Callable) -> Callable:
        """Compile a tail, if `compile` says so."""
        import torch

        return torch.compile(tail) if self.compile else tail


def _threads() -> int:
    import torch  # not at the top: reading settings needs no torch

    return torch.get_num_threads()


def _on_threads(n: int, task: Callable[[], T]) -> T:
    import torch

    torch.set_num_threads(n)  # holds for the thread that calls
    return task()


AS_IT_COMES = Compute()
"""The defaults: 32 bit, nothing compiled, torch's own choice of threads."""

"""All students of a direction: every method, the search of its learning rate, then every seed.

Trainings are independent, so processes share them: on a CPU each runs on one thread, and results do
not depend on how many processes there are.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import Parallel, delayed

from biox.activations import Activations
from biox.backbones.base import Backbone
from biox.baselines.distillation import METHODS, Lessons, lessons_of
from biox.baselines.outcome import Outcome
from biox.baselines.settings import Baselines
from biox.baselines.student_training import predict, train_student
from biox.baselines.students import Student
from biox.compute import Compute
from biox.config import Bridge, Settings
from biox.data.windows import Windows
from biox.search import Search, choose
from biox.training import initial_bridge


def bridge_size(pair: Activations, old: Backbone, m: int, l: int, settings: Bridge) -> int:
    """Trained parameters of the bridge between new layer m and old layer l (equation 6)."""
    shapes = (pair.new[m].shape[1], old.token_shape(l))
    return initial_bridge(*shapes, settings.rank, settings.n_prototypes, seed=0).n_parameters


@dataclass(frozen=True)
class Course:
    """What all students of a direction share; see `distil`."""

    pretrained: Callable[[], Backbone]
    lessons: Mapping[str, Lessons]
    settings: Baselines
    epochs: int
    batch: int
    lora_budget: int
    device: str

    def student(self, method: str, seed: int) -> Student:
        """Make an untrained student."""
        how, pair = METHODS[method], self.lessons["pair"]
        features = pair.embedding.shape[1] if how.contrast else None
        budget = self.lora_budget if how.lora else None
        return Student.of(self.pretrained(), pair.logits.shape[1], features, budget, seed=seed)


def train_one(course: Course, method: str, seed: int, lr: float) -> Outcome:
    """Train one student and ask it about *test*; a failure is an outcome too."""
    started, n_parameters = time.perf_counter(), 0
    lessons = course.lessons
    try:
        with Compute(threads=1).cpu_threads():
            student = course.student(method, seed).to(course.device)
            n_parameters = student.n_parameters
            how = (course.settings, lr, course.epochs, course.batch, seed)
            fit = train_student(student, lessons["pair"], lessons["val"], *how)
            seconds = time.perf_counter() - started
            probabilities = predict(student, lessons["test"].x)
    except (FloatingPointError, ValueError) as error:
        shape, about = lessons["test"].logits.shape, dict(n_parameters=n_parameters, lr=lr)
        return Outcome.failure(method, seed, shape, f"{method}: {error}", **about)
    about = dict(n_parameters=n_parameters, lr=lr, seconds=seconds)
    return Outcome(method, seed, probabilities, **about, **vars(fit))


def distil(
    methods: Sequence[str],
    pretrained: Callable[[], Backbone],
    cached: Mapping[str, Activations],
    windows: Mapping[str, Windows],
    settings: Settings,
    lora_budget: int,
    device: str = "cpu",
    n_jobs: int = -1,
) -> tuple[list[Outcome], dict[str, Search]]:
    """Distil the teacher into students on *pair*, choose on *val*, ask about *test*.

    Parameters
    ----------
    methods : sequence of str
        Keys of `biox.baselines.distillation.METHODS`.
    pretrained : callable
        Makes the new modality's pretrained backbone, the same each time. It goes to other
        processes, so it must pickle; models such as HuBERT themselves do not.
    cached, windows : mapping
        Activations and windows of ``pair``, ``val`` and ``test``. Labels are not read.
    settings : Settings
        The sections `baselines`, `search` and `bridge` (epochs and batch), and the seeds.
    lora_budget : int
        Trained parameters that LoRA-KD may have: those of the bridge.
    n_jobs : int
        Processes; -1: one a core. On a GPU trainings run one after another.

    Returns
    -------
    list of Outcome
        By method, then seed.
    dict of Search
        By method.
    """
    of_bridge = (settings.bridge.epochs, settings.bridge.batch)
    lessons = lessons_of(pretrained(), cached, windows)
    course = Course(pretrained, lessons, settings.baselines, *of_bridge, lora_budget, device)
    first, *others = settings.seeds
    lrs = settings.search.lr
    # Copy on write: torch warns of arrays that it may not change.
    run = Parallel(n_jobs=n_jobs if device == "cpu" else 1, mmap_mode="c")
    tried = run(delayed(train_one)(course, m, first, lr) for m in methods for lr in lrs)
    by_method = {m: tried[i * len(lrs) : (i + 1) * len(lrs)] for i, m in enumerate(methods)}
    searches = {
        m: choose(lrs, [None if o.failed else o for o in runs]) for m, runs in by_method.items()
    }
    going = [m for m in methods if searches[m].index is not None]
    rest = iter(
        run(delayed(train_one)(course, m, s, searches[m].lr) for m in going for s in others)
    )
    outcomes = []
    for method in methods:
        found, runs = searches[method], by_method[method]
        if found.index is None:
            why = f"{runs[0].failed}; nor did it train at any other of {list(lrs)}"
            outcomes += [replace(runs[0], seed=s, lr=np.nan, failed=why) for s in settings.seeds]
        else:
            outcomes += [runs[found.index], *(next(rest) for _ in others)]
    return outcomes, searches

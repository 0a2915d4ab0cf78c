"""What is kept of a training, chosen on *val* and without a label: what agrees with the teacher.

The loss alone does not tell. Where most of the old model's last layer is common to all windows, one
answer for all of them comes close to every target, and the loss hardly sees what tells classes
apart. So epochs and learning rates of every trained method are chosen by how well their answers
agree with the teacher's on val, each of its classes with the same weight; of equals, by the loss.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import recall_score
from torch import Tensor


def agreement(answers: Tensor | np.ndarray, teacher: Tensor | np.ndarray) -> float:
    """Share of windows answered like the teacher, averaged over the classes that it names.

    Parameters
    ----------
    answers, teacher : [n]
        Classes by number.

    Returns
    -------
    float
        1 / k for one and the same answer to all, if the teacher names k classes.
    """
    answers, teacher = (np.asarray(a) for a in (answers, teacher))
    named = np.unique(teacher)
    return float(recall_score(teacher, answers, labels=named, average="macro", zero_division=0))


def best(agreements: Sequence[float], losses: Sequence[float]) -> int:
    """Which has the highest agreement; of equals the lowest loss, then the first."""
    return min(range(len(losses)), key=lambda i: (-agreements[i], losses[i]))


def best_epoch(agreements: Sequence[float], losses: Sequence[float]) -> int:
    """Return the best trained epoch; entry 0, before training, does not compete."""
    return 1 + best(agreements[1:], losses[1:])

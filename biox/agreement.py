"""What is kept of a training, chosen on *val* and without a label: what agrees with the teacher.

The loss alone does not tell. Where most of the old model's last layer is common to all windows, one
answer for all of them comes close to every target, and the loss hardly sees what tells classes
apart. So epochs and learning rates of every trained method are chosen by how much probability they
give to the teacher's answers on val, each of its classes with the same weight; of equals, by the
loss. Probabilities, not answers: where val has two people, counts of answers change with a handful
of windows near the border.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def agreement(probabilities: Tensor | np.ndarray, teacher: Tensor | np.ndarray) -> float:
    """Probability given to the teacher's answers: mean by class, averaged over those it names.

    Of answers that leave no doubt, the balanced accuracy against the teacher.

    Parameters
    ----------
    probabilities : [n, classes]
    teacher : [n]
        Classes by number.

    Returns
    -------
    float
        At most 1 / k if all windows get the same, and the teacher names k classes.
    """
    probabilities, teacher = (np.asarray(a) for a in (probabilities, teacher))
    given = probabilities[np.arange(len(teacher)), teacher]
    return float(np.mean([given[teacher == c].mean() for c in np.unique(teacher)]))


def best(agreements: Sequence[float], losses: Sequence[float]) -> int:
    """Which has the highest agreement; of equals the lowest loss, then the first."""
    return min(range(len(losses)), key=lambda i: (-agreements[i], losses[i]))


def best_epoch(agreements: Sequence[float], losses: Sequence[float]) -> int:
    """Return the best trained epoch; entry 0, before training, does not compete."""
    return 1 + best(agreements[1:], losses[1:])

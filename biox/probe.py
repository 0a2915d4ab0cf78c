"""Linear probes of the new model's layers against the teacher's pseudo-labels (equation 4)."""

from collections.abc import Sequence

import numpy as np
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm import tqdm


def probe_scores(
    layers: Sequence[np.ndarray],
    pseudo_labels: np.ndarray,
    subjects: np.ndarray | None = None,
    n_folds: int = 5,
    n_jobs: int = 1,
) -> list[float]:
    """`probe_score` of every layer, the same numbers to the bit for every `n_jobs`.

    Parameters
    ----------
    layers : sequence of arrays, [n, d_m]
    n_jobs : int
        Processes that share the layers; -1: one a core. They take seconds to start, so that more
        than one pays only where probing lasts longer than that. Measured on a busy machine of two
        cores: 0.3 s for 6 layers of 1000 windows and 128 features, 1 s for 8 layers of 2000 and
        768; two processes took 0.4 s and 1.4 s, after 4 s to start.

    Notes
    -----
    Each probe runs on one thread, whatever `n_jobs`. Threads within a matrix product add in another
    order, and compete with the processes for the same cores.
    """
    jobs = (
        delayed(_score_on_one_thread)(features, pseudo_labels, subjects, n_folds)
        for features in tqdm(layers, desc="probing new layers", disable=None)
    )
    return Parallel(n_jobs=n_jobs)(jobs)


def _score_on_one_thread(*arguments) -> float:
    with threadpool_limits(limits=1):
        return probe_score(*arguments)


def probe_score(
    features: np.ndarray,
    pseudo_labels: np.ndarray,
    subjects: np.ndarray | None = None,
    n_folds: int = 5,
) -> float:
    """Cross-validated macro-F1 of a logistic regression from pooled features to pseudo-labels.

    Parameters
    ----------
    features : ndarray, [n, d_m]
        Pooled output of one new-model layer.
    pseudo_labels : ndarray of int, [n]
        ``argmax g_old(f_old(x_old))`` on the paired windows.
    subjects : ndarray of str, [n], optional
        Given: features are standardised and no subject is in two folds. Absent: as published,
        unscaled features in stratified, unshuffled folds of windows, which overlap in time.
    n_folds : int
        At most; never more than there are subjects.

    Raises
    ------
    ValueError
        The pseudo-labels hold a single class, or some class has too few windows to fold.
    """
    classes, counts = np.unique(pseudo_labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"probe: expected pseudo-labels of at least two classes on the paired windows, found "
            f"only class {classes.tolist()}: the teacher answers the same for every window"
        )
    regression = LogisticRegression(max_iter=1000)
    if subjects is None:
        folds = StratifiedKFold(n_folds)
        if counts.min() < n_folds:
            raise ValueError(
                f"probe: expected at least {n_folds} windows of each pseudo-class, "
                f"found {dict(zip(classes.tolist(), counts.tolist(), strict=True))}"
            )
        scores = cross_val_score(
            regression, features, pseudo_labels, cv=folds, scoring="f1_macro", error_score="raise"
        )
        return float(scores.mean())
    if len(np.unique(subjects)) < 2:
        raise ValueError(
            f"probe: expected at least two subjects on the paired windows, so that folds can keep "
            f"them apart, found {np.unique(subjects).tolist()}; probe: as_published needs one"
        )
    folds = StratifiedGroupKFold(min(n_folds, len(np.unique(subjects))))
    model = make_pipeline(StandardScaler(), regression)
    scores = []
    for train, test in folds.split(features, pseudo_labels, subjects):
        if len(np.unique(pseudo_labels[train])) < 2:
            continue  # everything of one pseudo-class sits in the held-out subjects
        predicted = model.fit(features[train], pseudo_labels[train]).predict(features[test])
        scores.append(_macro_f1(pseudo_labels[test], predicted, classes))
    if not scores:
        raise ValueError(
            "probe: expected pseudo-labels of two classes in some training fold, "
            f"found one class a fold for subjects {np.unique(subjects).tolist()}"
        )
    return float(np.mean(scores))


def _macro_f1(truth: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> float:
    """Macro-F1 over the classes a fold's truth or predictions hold."""
    from sklearn.metrics import f1_score

    present = np.intersect1d(classes, np.union1d(truth, predicted))
    return f1_score(truth, predicted, labels=present, average="macro")

"""Choices without labels: the bridge's positions, offsets of its predictions.

Two-stage selection of positions (section 3.3): ``m = argmax_i probe_i`` (equation 4) and
``l = argmax_j CKA(new output m, old input j)`` (equation 5), where the probe predicts the teacher's
pseudo-labels. Offsets of subjects are learnt from predictions on paired subjects that the bridge
was not fitted to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import helmert
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from biox.activations import FrozenDirection, compute_activations, frozen_backbone, window_key
from biox.cka import linear_cka, varies
from biox.config import Settings
from biox.data.windows import Windows
from biox.teacher import Labelled, teach

log = logging.getLogger(__name__)

OVERLAP = 0.5
"""Independent windows that each counts for in `remove_offsets`, because windows overlap in time."""


class Selection(NamedTuple):
    """Scores of every layer and the chosen pair.

    Attributes
    ----------
    m : int
        New layer (0-based) whose output feeds the bridge.
    l : int
        Old layer (0-based) whose input the bridge writes.
    probe : list of M float
        Macro-F1 on pseudo-labels, for the output of every new layer (equation 4), NaN where dead.
    cka, cka_biased : list of L float
        Debiased and biased CKA between the output of new layer m and the input of every old
        layer (equation 5). NaN where it is not defined.
    """

    m: int
    l: int
    probe: list[float]
    cka: list[float]
    cka_biased: list[float]


def probe_folds(
    features: np.ndarray,
    pseudo_labels: np.ndarray,
    subjects: np.ndarray | None = None,
    n_folds: int = 5,
) -> list[float]:
    """Macro-F1 in each fold of a logistic regression from pooled features to pseudo-labels.

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
        The pseudo-labels have a single class, a class has too few windows for the folds, or there
        is a single subject.
    """
    features = np.asarray(features, dtype=np.float64)
    classes, counts = np.unique(pseudo_labels, return_counts=True)
    if len(classes) < 2:
        expected = "pseudo-labels of at least two classes on the paired windows"
        found = f"only class {classes.tolist()}: the teacher predicts the same for every window"
        raise ValueError(f"probe: expected {expected}, found {found}")
    regression = LogisticRegression(max_iter=1000)
    if subjects is None:
        if counts.min() < n_folds:
            expected = f"at least {n_folds} windows of each pseudo-class"
            found = dict(zip(classes.tolist(), counts.tolist(), strict=True))
            raise ValueError(f"probe: expected {expected}, found {found}")
        folds = StratifiedKFold(n_folds)
        scores = cross_val_score(regression, features, pseudo_labels, cv=folds, scoring="f1_macro")
        return scores.tolist()
    present = np.unique(subjects).tolist()
    if len(present) < 2:
        expected = "at least two subjects on the paired windows, for folds by subject"
        found = f"{present}; probe: as_published needs one"
        raise ValueError(f"probe: expected {expected}, found {found}")
    folds, scores = StratifiedGroupKFold(min(n_folds, len(present))), []
    model = make_pipeline(StandardScaler(), regression)
    for train, test in folds.split(features, pseudo_labels, subjects):
        if len(np.unique(pseudo_labels[train])) < 2:
            continue  # everything of one pseudo-class is in the held-out subjects
        predicted = model.fit(features[train], pseudo_labels[train]).predict(features[test])
        # over the classes that the fold's truth or predictions hold
        scores.append(float(f1_score(pseudo_labels[test], predicted, average="macro")))
    if not scores:
        expected = "pseudo-labels of two classes in some training fold"
        found = f"one class a fold for subjects {present}"
        raise ValueError(f"probe: expected {expected}, found {found}")
    return scores


def select_positions(
    new_outputs: Sequence[np.ndarray],
    old_inputs: Sequence[np.ndarray],
    pseudo_labels: np.ndarray,
    subjects: np.ndarray | None = None,
    *,
    cka: str = "debiased",
    n_folds: int = 5,
    m: int | None = None,
    l: int | None = None,
    flattened: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
) -> Selection:
    """Choose m and l from pooled activations of the paired windows.

    Parameters
    ----------
    new_outputs : sequence of M arrays, [n, d_m]
        Pooled output of every new layer.
    old_inputs : sequence of L arrays, [n, d_l]
        Pooled input of every old layer.
    pseudo_labels : ndarray of int, [n]
    subjects : ndarray of str, [n], optional
    n_folds : int
        See `probe_folds`.
    cka : {"debiased", "biased"}
        Which estimate decides; both are returned.
    m, l : int, optional
        Positions that are given: they are taken, and the scores are computed all the same.
    flattened : (M arrays, L arrays), optional
        Outputs and inputs with all tokens flattened, on the same or on fewer windows: CKA compares
        these, as the paper's text says. Absent: pooled features, as in the released code.

    Returns
    -------
    Selection

    Notes
    -----
    Ties go to the earlier layer. A dead layer, the same for every window, and one with an undefined
    CKA (NaN) are never chosen; a warning names the dead ones. Everything runs on one thread, so
    that no digit depends on the number of cores.

    Raises
    ------
    ValueError
        A position that is no layer or a dead one, no layer left, or activations that `probe_folds`
        or `linear_cka` object to.
    """
    assert cka in ("debiased", "biased"), cka
    for name, given, layers in (("m", m, new_outputs), ("l", l, old_inputs)):
        if given is not None and not 0 <= given < len(layers):
            raise ValueError(
                f"select_positions: expected {name} in 0..{len(layers) - 1}, found {given}"
            )
    outputs, inputs = flattened or (new_outputs, old_inputs)
    alive = [_alive("output of new", outputs, m), _alive("input of old", inputs, l)]
    with threadpool_limits(1):
        probe = [
            float(np.mean(probe_folds(x, pseudo_labels, subjects, n_folds))) if lives else np.nan
            for x, lives in zip(new_outputs, alive[0], strict=True)
        ]
        m = int(np.nanargmax(probe)) if m is None else m
        sides = list(zip(inputs, alive[1], strict=True))
        debiased, biased = (
            [linear_cka(outputs[m], x, debiased=kind) if lives else np.nan for x, lives in sides]
            for kind in (True, False)
        )
    deciding = np.array(debiased if cka == "debiased" else biased)
    if np.isnan(deciding).all():
        raise ValueError(
            f"select_positions: expected a defined CKA for some old layer, found none: "
            f"{len(pseudo_labels)} windows are too few for features this wide"
        )
    return Selection(m, int(np.nanargmax(deciding)) if l is None else l, probe, debiased, biased)


def freeze_direction(
    settings: Settings,
    name: str,
    parts: Mapping[str, Windows],
    checkpoints: Mapping[str, Path] | None = None,
) -> FrozenDirection:
    """Go from windows to a teacher, activations, m and l, all in memory.

    The stages `teacher` and `positions` do the same for the splits and models of the settings.

    Parameters
    ----------
    settings : Settings
        Of this direction: ``settings.for_direction(name)``.
    name : str
    parts : mapping
        Windows of train, val, pair and test.
    checkpoints : mapping, optional
        Key of `backbones` -> weights in the place of those that the settings name.
    """
    d, weights, pair = settings.direction(name), checkpoints or {}, parts["pair"]
    new, old = (
        frozen_backbone(settings, key, pair, weights.get(key)) for key in (d.new_key, d.old_key)
    )
    new_key, old_key = (window_key(settings, d.dataset, key) for key in (d.new_key, d.old_key))
    labelled = [
        Labelled(torch.from_numpy(w.signals[old_key]), w.labels, w.subjects)
        for w in (parts["train"], parts["val"])
    ]
    head, _ = teach(old, *labelled, len(pair.classes), settings.teacher)
    keys = {"new_key": new_key, "old_key": old_key}
    cached = {
        split: compute_activations(parts[split], new, old, head, **keys)
        for split in ("pair", "val", "test")
    }
    pair, own = cached["pair"], settings.positions
    options = {"cka": own.cka, "n_folds": own.n_folds, "m": d.m, "l": d.l}
    chosen = select_positions(pair.new, pair.old, pair.pseudo_labels, pair.subjects, **options)
    return FrozenDirection(settings, name, d, new, old, head, chosen.m, chosen.l, cached)


def _alive(which: str, layers: Sequence[np.ndarray], given: int | None) -> list[bool]:
    """Whether each layer's activations differ between windows; name those that do not."""
    alive = [varies(h) for h in layers]
    dead = [i for i, lives in enumerate(alive) if not lives]
    if given in dead or len(dead) == len(alive):
        raise ValueError(
            f"select_positions: expected activations that differ between windows at the {which} "
            f"layer {given}, found all the same there and in {dead}"
        )
    if dead:
        log.warning("%s layers %s: the same for every window, never chosen", which, dead)
    return alive


# --- threshold ------------------------------------------------------------------------------------


def remove_offsets(
    probabilities: np.ndarray,
    subjects: np.ndarray,
    held_out: np.ndarray,
    pseudo_labels: np.ndarray,
    held_out_subjects: np.ndarray,
) -> np.ndarray:
    """Estimate each subject's offset of the log-probabilities and take it out (empirical Bayes).

    Log-ratios of predictions are ``mean of the class + offset of the subject + noise``, offsets and
    noise normal. Means and covariances are fitted by EM to held-out predictions with the teacher's
    pseudo-labels. Of a new subject neither offset nor share of the classes is known: where its
    predictions fall into groups as far apart as the class means, the groups tell the offset; where
    they do not, it stays near zero, and the subject may have a single class. No label is read, but
    all windows of a subject are (transductive). Predictions stay as they are where held-out classes
    are on average no more probable in the windows for which the teacher predicts them.

    Parameters
    ----------
    probabilities : ndarray, [n, classes]
    subjects : ndarray, [n]
    held_out : ndarray, [k, classes]
        Of windows that the method was not fitted on.
    pseudo_labels, held_out_subjects : ndarray, [k]
        The teacher's predictions on these windows, and their subjects.

    Returns
    -------
    ndarray, [n, classes]
        In these, classes count as equally likely.
    """
    fitted = _fit_offsets(held_out, pseudo_labels, held_out_subjects)
    if fitted is None:
        return probabilities
    known, means, precision, prior = fitted
    t, out = _log_ratios(probabilities), np.zeros(probabilities.shape)

    def densities(x: np.ndarray, offset: np.ndarray) -> np.ndarray:
        left = x[:, None] - means - offset
        return -0.5 * np.einsum("nci,ij,ncj->nc", left, precision, left)

    for subject in np.unique(subjects):
        x, found = t[subjects == subject], []
        n = OVERLAP * len(x)
        for offset in (0 * means[0], x.mean(0) - means.mean(0), *(x.mean(0) - means)):
            share = np.full(len(known), 1 / len(known))
            for _ in range(25):
                joint = densities(x, offset) + np.log(share)
                weights = softmax(joint, axis=1)
                share = (n * weights.mean(0) + 1 / len(known)) / (n + 1)
                pull = precision @ (x - weights @ means).mean(0) * n
                offset = np.linalg.solve(n * precision + prior, pull)
            likelihood = OVERLAP * logsumexp(joint, axis=1).sum() - 0.5 * offset @ prior @ offset
            found.append((likelihood, offset))
        best = max(found, key=lambda pair: pair[0])[1]
        out[np.ix_(subjects == subject, known)] = softmax(densities(x, best), axis=1)
    return out


def _log_ratios(probabilities: np.ndarray) -> np.ndarray:
    """Log-probabilities [n, classes] without what softmax ignores: [n, classes - 1]."""
    log_p = np.log(np.maximum(probabilities, 1e-6))
    return log_p @ helmert(log_p.shape[1]).T


def _fit_offsets(probabilities, labels, subjects) -> tuple[np.ndarray, ...] | None:
    """Classes that occur, their means, inverse covariances of noise and offsets."""
    t, known = _log_ratios(probabilities), np.unique(labels)
    of_class = (labels[:, None] == known).astype(float)
    of_subject = (subjects[:, None] == np.unique(subjects)).astype(float)
    n = OVERLAP * of_subject.sum(0)[:, None, None]
    within = between = np.eye(t.shape[1]) * (t.var(0).mean() + 1e-6)
    offsets = np.zeros((len(n), t.shape[1]))
    for _ in range(30):
        means = of_class.T @ (t - of_subject @ offsets) / of_class.sum(0)[:, None]
        left = t - of_class @ means
        variance = np.linalg.inv(np.linalg.inv(between) + n * np.linalg.inv(within))
        pull = OVERLAP * np.linalg.solve(within, (of_subject.T @ left)[:, :, None])
        offsets = (variance @ pull)[:, :, 0]
        offsets -= offsets.mean(0)
        noise = left - of_subject @ offsets
        within = noise.T @ noise / len(t) + 1e-6 * np.eye(t.shape[1])
        between = offsets.T @ offsets / len(offsets) + variance.mean(0)
    log_p = (means @ helmert(probabilities.shape[1]))[:, known]  # of class (row) in its windows
    if np.trace(log_p - log_p.mean(0)) <= 0:
        return None
    return known, means, np.linalg.inv(within), np.linalg.inv(between)

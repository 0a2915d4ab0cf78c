"""Probe transfer: a linear head on the frozen new model, trained on the teacher's decisions."""

import time
from collections.abc import Mapping

import numpy as np
import torch

from biox.activations import Activations
from biox.baselines.outcome import Outcome
from biox.teacher import choose_penalty, fit_head

NAME = "Probe transfer"


def probe_transfer(cached: Mapping[str, Activations], seed: int = 0) -> Outcome:
    """Fit a head on pooled last-layer features of *pair* to pseudo-labels; ask it about *test*.

    The head is the teacher's kind (`biox.teacher.fit_head`): class-weighted logistic regression on
    standardised features, its penalty chosen on left-out subjects of pair. Nothing in it is
    random, so that one fit stands for all seeds.

    Parameters
    ----------
    cached : mapping
        Activations of ``pair`` and ``test``. Labels are not read.
    seed : int
        Written down with the outcome; decides nothing.

    Returns
    -------
    Outcome
        Failed if the teacher never decides for some class on pair.
    """
    started = time.perf_counter()
    pair, test = cached["pair"], cached["test"]
    n_classes, features = pair.logits.shape[1], pair.new[-1]
    try:
        counts = np.bincount(pair.pseudo_labels, minlength=n_classes)
        if not counts.all():
            raise ValueError(
                f"expected pseudo-labels of every class, found none of "
                f"{[pair.classes[i] for i in np.flatnonzero(counts == 0)]}"
            )
        penalty = choose_penalty(features, pair.pseudo_labels, pair.subjects)
        head = fit_head(features, pair.pseudo_labels, n_classes, penalty)
    except ValueError as error:
        return Outcome.failure(NAME, seed, (len(test), n_classes), f"{NAME}: {error}")
    seconds = time.perf_counter() - started
    with torch.no_grad():
        probabilities = head(test.new[-1]).softmax(dim=1).numpy()
    n_parameters = sum(p.numel() for p in head.parameters())
    return Outcome(NAME, seed, probabilities, n_parameters, seconds=seconds)

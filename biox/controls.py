"""Negative controls: what a bridge reaches once something that it needs has been taken away.

Every control is a bridge with the same settings whose *input* is changed: pooled features of the
new model in another order, from an untrained model, or from another layer. Targets, teacher and
training stay what they are, and no label is read.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from biox.activations import Activations
from biox.backbones.base import Backbone
from biox.backbones.labram import LaBraM
from biox.baselines.outcome import Outcome
from biox.bridge import BridgedModel
from biox.compute import AS_IT_COMES, Compute
from biox.config import Bridge, Positions, Settings
from biox.control_settings import Controls
from biox.data.windows import Windows
from biox.experiment import frozen_backbone
from biox.losses import Objective
from biox.pairs import Pairs
from biox.positions import Selection, select_positions
from biox.training import fit_bridges, initial_bridge, predict

PAIRS_SHUFFLED = "pairs shuffled"
UNTRAINED = "new model untrained"
PROBE_PERMUTED = "probe transfer, pseudo-labels permuted"
REFERENCE = "pairs as they are"
RANDOM_POSITION = "random position"
PERMUTED_POSITION = "position by permuted pseudo-labels"


@dataclass(frozen=True)
class Trial:
    """One bridge to train as a control.

    Attributes
    ----------
    method : str
        As predictions name it.
    seed : int
    m, l : int
        Positions.
    epochs : int
    pooled : mapping
        What the bridge reads of ``pair``, ``val`` and ``test`` [n, d_m].
    """

    method: str
    seed: int
    m: int
    l: int
    epochs: int
    pooled: Mapping[str, Tensor]


def shuffled(cached: Mapping[str, Activations], m: int, seed: int) -> dict[str, Tensor]:
    """Pooled features of new layer m: windows of ``pair`` and ``val`` stand at those of others.

    ``val``, which chooses the epoch, is shuffled too; ``test`` is not, since it is asked, not
    learnt. The best that is left to learn is one and the same answer for all. A bridge has no bias
    and can only give it through what all windows have in common in layer m; features around zero
    would turn an excess of one class into answers that differ.

    Every window may meet every other, one of its own person too. Were these left out, what a
    person's windows meet would be the mean of all others, which lies below the overall mean where
    the person lies above it: with k people, -1 / (k - 1) of what tells people apart would be
    learnt, and where test has windows of the same people (FOG), scores would fall below chance.
    """
    pooled = {split: a.new[m] for split, a in cached.items()}
    for i, split in enumerate(("pair", "val")):
        order = np.random.default_rng([seed, i]).permutation(len(pooled[split]))
        pooled[split] = pooled[split][torch.from_numpy(order)]
    return pooled


@torch.no_grad()
def untrained(
    settings: Settings,
    windows: Mapping[str, Windows],
    modality: str,
    m: int,
    seed: int,
    batch: int = 32,
) -> dict[str, Tensor]:
    """Pooled output of layer m of the modality's model with random weights: [n, d_m] by split.

    Parameters
    ----------
    windows : mapping
        Of ``pair``, ``val`` and ``test``; only their signals are read.
    seed : int
        Draws the weights.
    """
    choice = replace(settings.backbones[modality], checkpoint=None)
    settings = replace(settings, backbones={**settings.backbones, modality: choice})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = frozen_backbone(settings, next(iter(windows.values())), modality)
    pooled = {}
    for split, part in windows.items():
        x = torch.from_numpy(part.signals[modality])
        states = (model.run(model.stem(some), 0, m + 1) for some in x.split(batch))
        pooled[split] = torch.cat([model.pool(h) for h in states])
    return pooled


def random_places(
    n_new: int, n_old: int, selected: tuple[int, int], n: int, seed: int
) -> list[tuple[int, int]]:
    """Draw n different pairs (m, l) uniformly from all but the selected one.

    Raises
    ------
    ValueError
        There are not as many.
    """
    every = [(m, l) for m in range(n_new) for l in range(n_old) if (m, l) != selected]
    if n > len(every):
        raise ValueError(f"random_places: expected at most {len(every)} positions, found {n}")
    rows = np.random.default_rng(seed).choice(len(every), n, replace=False)
    return [every[i] for i in rows]


def permuted_selections(
    pair: Activations,
    settings: Positions,
    n: int,
    flattened: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
) -> list[Selection]:
    """Select positions n times as `settings` say, but with pseudo-labels dealt out at random."""
    outputs, inputs = ([h.numpy() for h in part] for part in (pair.new, pair.old))
    subjects = pair.subjects if settings.probe == "by_subject" else None
    found = []
    for seed in range(n):
        labels = np.random.default_rng(seed).permutation(pair.pseudo_labels)
        how = dict(cka=settings.cka, n_folds=settings.n_folds, flattened=flattened)
        found.append(select_positions(outputs, inputs, labels, subjects, **how))
    return found


def permuted_probe_transfer(cached: Mapping[str, Activations], m: int, seed: int) -> Outcome:
    """Fit a linear head on new layer m to permuted pseudo-labels of *pair*; ask it about *test*.

    Classes are weighted, so that it does not simply answer the most frequent one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pair, test, begun = cached["pair"], cached["test"], time.perf_counter()
    labels = np.random.default_rng(seed).permutation(pair.pseudo_labels)
    probabilities = np.zeros((len(test), len(test.classes)))
    classes = np.unique(labels)
    if len(classes) == 1:  # the teacher has collapsed, and so does whoever learns from it
        probabilities[:, classes] = 1
        return Outcome(PROBE_PERMUTED, seed, probabilities, 0)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    model.fit(pair.new[m].numpy(), labels)
    probabilities[:, classes] = model.predict_proba(test.new[m].numpy())
    size, seconds = model[-1].coef_.size + model[-1].intercept_.size, time.perf_counter() - begun
    return Outcome(PROBE_PERMUTED, seed, probabilities, size, seconds=seconds)


def other_places(
    cached: Mapping[str, Activations],
    selected: tuple[int, int],
    permuted: Selection,
    settings: Controls,
) -> dict[str, tuple[int, int]]:
    """Name and place of bridges elsewhere: random ones, then what permuted labels selected."""
    layers = len(cached["pair"].new), len(cached["pair"].tokens)
    drawn = random_places(*layers, selected, settings.random_positions, seed=0)
    named = {f"{RANDOM_POSITION} (m {m}, l {l})": (m, l) for m, l in drawn}
    return named | {PERMUTED_POSITION: (permuted.m, permuted.l)}


def plan(
    cached: Mapping[str, Activations],
    weightless: Mapping[int, Mapping[str, Tensor]],
    selected: tuple[int, int],
    others: Mapping[str, tuple[int, int]],
    epochs: int,
    reference: bool,
    shuffles: int = 1,
) -> list[Trial]:
    """List the bridges to train as controls of one direction.

    Parameters
    ----------
    weightless : mapping
        By seed, what `untrained` gives; its keys are the seeds of all controls but shuffled pairs.
    selected : (int, int)
        m and l.
    others : mapping
        By name: other places to train a bridge at.
    epochs : int
    reference : bool
        Whether to train one at the selected place on inputs as they are.
    shuffles : int
        How often pairs are shuffled.
    """
    places, trials = ({REFERENCE: selected} if reference else {}) | dict(others), []
    for seed in range(shuffles):
        mixed = shuffled(cached, selected[0], seed)
        trials.append(Trial(PAIRS_SHUFFLED, seed, *selected, epochs, mixed))
    for seed, pooled in weightless.items():
        trials.append(Trial(UNTRAINED, seed, *selected, epochs, pooled))
        for method, (m, l) in places.items():
            plain = {split: a.new[m] for split, a in cached.items()}
            trials.append(Trial(method, seed, m, l, epochs, plain))
    return trials


def facts(
    trials: Sequence[Trial], selections: Sequence[Selection], cached: Mapping[str, Activations]
) -> dict:
    """Where and how long each control trained, and what permuted pseudo-labels selected."""
    return {
        "source": cached["test"].source,
        "places": {t.method: [t.m, t.l] for t in trials},
        "epochs": {t.method: t.epochs for t in trials},
        "permuted": [s.to_json() for s in selections],
    }


def train(
    trials: Sequence[Trial],
    new: Backbone,
    old: Backbone,
    head: nn.Linear,
    cached: Mapping[str, Activations],
    settings: Bridge,
    compute: Compute = AS_IT_COMES,
    targets: Callable[[int], Mapping[str, Tensor]] | None = None,
) -> list[Outcome]:
    """Train one bridge a trial with the settings of `bridge`, side by side as `compute` says.

    Parameters
    ----------
    cached : mapping
        Activations of ``pair``, ``val`` and ``test``; labels are not read.
    targets : callable, optional
        Needed with ``align: input``: from l to the input of old layer l on ``pair`` and ``val``.

    Returns
    -------
    list of Outcome
        One a trial; a training whose loss stops being finite is marked as failed.

    Raises
    ------
    ValueError
        The settings say ``align: input`` and there are no targets.
    """
    if settings.align == "input" and targets is None:
        raise ValueError("controls: expected targets of pair and val for align: input, found none")
    made = []
    for trial in trials:
        tokens = cached["pair"].tokens[trial.l] if settings.prototypes == "tokens" else None
        bridge = initial_bridge(
            trial.pooled["pair"].shape[1], old.token_shape(trial.l), settings.rank,
            settings.n_prototypes, trial.seed, tokens,
            settings.layout == "released" and isinstance(old, LaBraM),
        )  # fmt: skip
        made.append(BridgedModel(new, old, bridge, head, trial.m, trial.l))
    aligned = {t.l: targets(t.l) if settings.align == "input" else {} for t in trials}
    alone = compute.each()
    return compute.side_by_side(
        partial(_trained, trial, model, cached, aligned[trial.l], settings, alone)
        for trial, model in zip(trials, made, strict=True)
    )


def _trained(
    trial: Trial,
    model: BridgedModel,
    cached: Mapping[str, Activations],
    targets: Mapping[str, Tensor],
    settings: Bridge,
    compute: Compute,
) -> Outcome:
    pair, val = (
        Pairs(trial.pooled[split], targets.get(split, cached[split].last))
        for split in ("pair", "val")
    )
    begun, how = time.perf_counter(), (settings.lr, trial.epochs, settings.batch, [trial.seed])
    about = dict(n_parameters=model.bridge.n_parameters, lr=settings.lr)
    try:
        fit = fit_bridges([model], pair, val, *how, Objective.of(settings), compute=compute)[0]
    except FloatingPointError as error:
        shape = (len(cached["test"]), model.head.out_features)
        return Outcome.failure(trial.method, trial.seed, shape, str(error), **about)
    about["seconds"] = time.perf_counter() - begun
    probabilities = predict(model, trial.pooled["test"]).numpy()
    return Outcome(trial.method, trial.seed, probabilities, **about, **vars(fit))

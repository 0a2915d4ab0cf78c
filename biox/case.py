"""All that bridges of one direction are made from, as pages that train many of them want it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from biox.activations import Activations
from biox.backbones import Backbone, LaBraM
from biox.bridge import BridgedModel
from biox.config import Bridge, Settings
from biox.data.windows import Windows
from biox.experiment import (
    PATHS,
    activations_of,
    frozen_backbone,
    targets_at,
    teacher_of,
    with_found_lr,
)
from biox.files import read_json
from biox.pairs import Pairs
from biox.training import SeedResult, initial_bridge, train_seeds


@dataclass(frozen=True)
class Case:
    """All that a bridge of one direction is made from."""

    settings: Settings
    name: str
    cached: dict[str, Activations]
    new: Backbone
    old: Backbone
    head: nn.Linear
    m: int
    l: int

    @classmethod
    def load(cls, settings: Settings, name: str) -> "Case":
        """Read what the pipeline left for a direction."""
        settings = with_found_lr(settings, name)
        d, place = settings.direction(name), read_json(PATHS.positions(name))
        splits = ("pair", "val", "test")
        cached = {split: activations_of(settings, name, split) for split in splits}
        windows = Windows.load(PATHS.windows(d.dataset, "val"), [d.old, d.new])
        new = frozen_backbone(settings, windows, d.new)
        old, head = teacher_of(settings, name, windows)
        return cls(settings, name, cached, new, old, head, place["m"], place["l"])

    def untrained(self, settings: Bridge, seed: int = 0) -> tuple[BridgedModel, dict[str, Pairs]]:
        """Make a bridge before its first step, and its pairs by split."""
        tokens = self.cached["pair"].tokens[self.l] if settings.prototypes == "tokens" else None
        shape, sizes = self.old.token_shape(self.l), (settings.rank, settings.n_prototypes)
        width = self.cached["pair"].new[self.m].shape[1]
        reshaped = settings.layout == "released" and isinstance(self.old, LaBraM)
        bridge = initial_bridge(width, shape, *sizes, seed, tokens, reshaped)
        model = BridgedModel(self.new, self.old, bridge, self.head, self.m, self.l)
        return model, {s: Pairs(a.new[self.m], a.last) for s, a in self.cached.items()}

    def score(self, probabilities: np.ndarray | Tensor) -> float:
        """Balanced accuracy on test, in per cent."""
        answers = np.asarray(probabilities).argmax(axis=1)
        return 100 * balanced_accuracy_score(self.cached["test"].labels, answers)

    def targets(self) -> dict[str, Tensor]:
        """Input of old layer l on *pair* and *val*: what bridges learn with ``align: input``."""
        return targets_at(self.settings, self.name, self.l)

    def trained(self, seeds: Sequence[int], **changes: object) -> list[SeedResult]:
        """Train a bridge a seed, with changed settings."""
        settings = replace(self.settings.bridge, **changes)
        targets = self.targets() if settings.align == "input" else None
        args = (self.new, self.old, self.head, self.cached, self.m, self.l, settings)
        compute = self.settings.compute
        how = dict(targets=targets, compute=compute.each())
        tasks = [partial(train_seeds, *args, [seed], **how) for seed in seeds]
        return [result for (result,) in compute.side_by_side(tasks)]

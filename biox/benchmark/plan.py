"""What is measured: sizes of a run, and the six bridges of the released scripts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from time import perf_counter

import torch
import yaml
from torch import Tensor, nn

from biox.backbones import Backbone, build
from biox.bridge import BridgedModel
from biox.training import Pairs, initial_bridge

SIX = (
    "isruc-eeg2ecg",
    "isruc-ecg2eeg",
    "fog-eeg2emg",
    "fog-emg2eeg",
    "wesad-ecg2ppg",
    "wesad-ppg2ecg",
)


@cache
def _released() -> dict[str, dict]:
    text = files("biox.report").joinpath("deviations.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["released_bridges"]


@dataclass(frozen=True)
class Plan:
    """Sizes of one run of the benchmark.

    Attributes
    ----------
    size : {"published", "tiny"}
        Of the models.
    directions : tuple of str
        Names in ``released_bridges`` of ``biox/report/deviations.yaml``.
    batch : int
        Windows in a training step.
    repeats : int
        How often a time is taken at most; the shortest counts.
    seconds : float
        After so many, a time is not taken again. Slow models are timed once.
    collected : int
        Windows whose layer features are collected for the choice of positions.
    windows : int
        Windows of the smallest training whose memory is measured.
    factors : tuple of int
        How many times as many windows the others have.
    growth : str
        Their direction.
    bridges : int
        Bridges that are trained together.
    deep, short : str
        Their directions: one with many old layers behind the bridge, one with few.
    compile : bool
        Also time a step with a compiled tail.
    """

    size: str = "published"
    directions: tuple[str, ...] = SIX
    batch: int = 16
    repeats: int = 3
    seconds: float = 10.0
    collected: int = 2
    windows: int = 64
    factors: tuple[int, ...] = (1, 2, 4, 8)
    growth: str = "isruc-eeg2ecg"
    bridges: int = 16
    deep: str = "isruc-ecg2eeg"
    short: str = "fog-eeg2emg"
    compile: bool = True

    def __post_init__(self):
        known = set(_released())
        for name in (*self.directions, self.growth, self.deep, self.short):
            if name not in known:
                raise ValueError(f"direction: expected one of {sorted(known)}, found {name!r}")
        if min(self.batch, self.repeats, self.collected, self.windows, self.bridges) < 1:
            raise ValueError(f"plan: expected numbers of at least 1, found {self}")


PLANS = {
    "published": Plan(),
    "tiny": Plan(
        "tiny", batch=4, repeats=2, seconds=0.2, windows=8, factors=(1, 4), bridges=3, compile=False
    ),
}
"""By size of the models. `tiny` shows in seconds that all of it works; its ratios mean little."""


def plan_of(size: str, **changes: object) -> Plan:
    """Take the plan of a size, with some of its numbers changed."""
    if size not in PLANS:
        raise ValueError(f"size: expected one of {sorted(PLANS)}, found {size!r}")
    return replace(PLANS[size], **changes)


@dataclass(frozen=True)
class Case:
    """One direction's models and its bridge's place and sizes."""

    name: str
    new: Backbone
    old: Backbone
    m: int
    l: int
    rank: int
    n_prototypes: int

    @classmethod
    def of(cls, name: str, size: str = "published") -> "Case":
        """Build a direction of the released scripts; tiny: with tiny models and a small bridge."""
        told = _released()[name]
        sides = {side: told[side] for side in ("new", "old")}
        if size == "tiny":
            sides = {side: (model, "tiny") for side, (model, _) in sides.items()}
        models = {side: _frozen(*sides[side], told["seconds"]) for side in sides}
        m, l = (min(told[p], models[s].n_layers - 1) for p, s in (("m", "new"), ("l", "old")))
        sizes = (told["rank"], told["n_prototypes"]) if size == "published" else (4, 10)
        return cls(name, models["new"], models["old"], m, l, *sizes)

    def untrained(self, seed: int = 0) -> BridgedModel:
        """Put a new bridge between the models, with noise in B.

        With B at zero and biases at zero, as random models have them, the last layer is zero as
        well, and a cosine has no gradient there.
        """
        d_m, shape = self.new.token_shape(self.m + 1)[1], self.old.token_shape(self.l)
        bridge = initial_bridge(d_m, shape, self.rank, self.n_prototypes, seed)
        noise = 0.02 * torch.randn(bridge.B.shape, generator=_seeded(seed))
        bridge.B.data.copy_(noise)
        head = nn.Linear(self.old.token_shape(self.old.n_layers)[1], 2)
        return BridgedModel(self.new, self.old, bridge, head, self.m, self.l)

    def windows(self, side: str, n: int) -> Tensor:
        """Noise as windows of the ``new`` or ``old`` modality [n, channels, samples]."""
        spec = getattr(self, side).input_spec
        return torch.randn(n, spec.channels, spec.samples, generator=_seeded())

    def pairs(self, n: int) -> Pairs:
        """Noise in place of cached activations of n windows."""
        pooled = torch.randn(n, self.new.token_shape(self.m + 1)[1], generator=_seeded())
        target = torch.randn(n, *self.old.token_shape(self.old.n_layers), generator=_seeded())
        return Pairs(pooled, target)


def shortest(call: Callable[[], object], repeats: int, seconds: float) -> float:
    """Shortest time of a call, taken `repeats` times or for about so many seconds."""
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) < seconds):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


def _frozen(name: str, size: str, seconds: float) -> Backbone:
    torch.manual_seed(0)
    return build(name, size, seconds=seconds).eval().requires_grad_(False)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

"""A training step of each transfer method, set up to be measured by `biox.benchmark.costs`.

What is frozen is computed before training for every method alike: the teacher's answers and
embeddings, the new model's features, the old model's last layers. Models have random weights and
windows are noise, as nothing measured here depends on the numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biox.backbones import Backbone, build
from biox.baselines import cardiogan_training
from biox.baselines.cardiogan_networks import n_parameters
from biox.baselines.cardiogan_settings import PUBLISHED, CardioGAN
from biox.baselines.cardiogan_training import Segments
from biox.baselines.distillation import distillation_loss
from biox.baselines.settings import Baselines
from biox.baselines.students import Student, ready
from biox.benchmark.calls import LR, cached_step
from biox.benchmark.plan import Case, _released
from biox.bridge import PrototypeBridge

if TYPE_CHECKING:
    from biox.config import Settings


@dataclass(frozen=True)
class Plan:
    """The models of a direction and its bridge, in words, so that a fresh process can build them.

    Attributes
    ----------
    new, old : dict
        Arguments of `biox.backbones.build`.
    m, l, rank, n_prototypes : int
        The bridge.
    n_classes : int
    windows : int
        Paired windows: what an epoch passes through.
    gan : CardioGAN
        Width of its networks, length and number of its segments.
    """

    direction: str
    new: dict
    old: dict
    m: int
    l: int
    rank: int
    n_prototypes: int
    n_classes: int
    windows: int
    gan: CardioGAN

    def case(self) -> Case:
        """Build both models, frozen."""
        new, old = (self.model(side).eval().requires_grad_(False) for side in ("new", "old"))
        return Case(self.direction, new, old, self.m, self.l, self.rank, self.n_prototypes)

    def model(self, side: str) -> Backbone:
        """Build the ``new`` or the ``old`` model."""
        torch.manual_seed(0)
        return build(**getattr(self, side))

    def last_width(self, side: str) -> int:
        """Features of a model's last layer, found without taking memory for its weights."""
        with torch.device("meta"):
            model = self.model(side)
            return model.token_shape(model.n_layers)[1]

    def n_bridge(self) -> int:
        """Parameters of the bridge, found in the same way."""
        with torch.device("meta"):
            case = self.case()
            (n_l, d_l), d_m = case.old.token_shape(case.l), case.new.token_shape(case.m + 1)[1]
        return PrototypeBridge(d_m, d_l, n_l, case.rank, case.n_prototypes).n_parameters

    def tiny(self) -> "Plan":
        """The same with tiny models, whose first layers a bridge joins."""
        sides = {side: getattr(self, side) | {"size": "tiny"} for side in ("new", "old")}
        gan = replace(self.gan, width=CardioGAN.width)
        return replace(self, **sides, m=0, l=0, rank=2, n_prototypes=2, gan=gan)


def plan_of(settings: "Settings", direction: str) -> Plan:
    """Take models, positions and bridge as params.yaml and the earlier stages say."""
    from biox.activations import Activations  # here: measuring processes start without them
    from biox.experiment import PATHS
    from biox.files import read_json

    d, place = settings.direction(direction), read_json(PATHS.positions(direction))
    data, bridge = settings.dataset(d.dataset), settings.for_direction(direction).bridge
    pair = Activations.load(PATHS.activations(direction, "pair"))
    sides = {
        side: {
            "name": settings.backbones[modality].name,
            "size": settings.backbones[modality].size,
            "n_channels": data.n_channels(modality),
            "seconds": data.seconds,
        }
        for side, modality in (("new", d.new), ("old", d.old))
    }
    return Plan(
        direction,
        **sides,
        m=place["m"],
        l=place["l"],
        rank=bridge.rank,
        n_prototypes=bridge.n_prototypes,
        n_classes=len(pair.classes),
        windows=len(pair),
        gan=settings.cardiogan,
    )


def published_plan(direction: str, windows: int, n_classes: int = 2) -> Plan:
    """Take the published models and the bridge of the released scripts.

    Raises
    ------
    ValueError
        There is no released script for this direction.
    """
    if direction not in _released():
        raise ValueError(f"direction: expected one of {sorted(_released())}, found {direction!r}")
    told = _released()[direction]
    sides = {
        side: dict(zip(("name", "size"), told[side], strict=True)) | {"seconds": told["seconds"]}
        for side in ("new", "old")
    }
    place = {key: told[key] for key in ("m", "l", "rank", "n_prototypes")}
    return Plan(direction, **sides, **place, n_classes=n_classes, windows=windows, gan=PUBLISHED)


@dataclass(frozen=True)
class Training:
    """A method in training.

    Attributes
    ----------
    step : callable
        Takes one step.
    n_parameters : int
        That learn.
    rows : int, optional
        What an epoch passes through; None: the paired windows.
    """

    step: Callable[[], object]
    n_parameters: int
    rows: int | None = None


def bridge(plan: Plan, batch: int) -> Training:
    """BioX-Bridge on the cache: rows, bridge and tail forward and backward, Adam."""
    case = plan.case()
    model = case.untrained()
    step = cached_step([model], case.pairs(2 * batch), batch)
    return Training(step, model.bridge.n_parameters)


def kd(plan: Plan, batch: int) -> Training:
    """Distillation: the new model and a head imitate cached, softened logits of the teacher."""
    return _distilling(plan, batch)


def kd_contrast(plan: Plan, batch: int) -> Training:
    """Distillation of logits, and InfoNCE between the student's and the teacher's embeddings."""
    return _distilling(plan, batch, teacher_features=plan.last_width("old"))


def lora_kd(plan: Plan, batch: int) -> Training:
    """Distillation into low-rank adapters, at the bridge's parameter budget.

    Raises
    ------
    ModuleNotFoundError
        peft is not installed.
    """
    return _distilling(plan, batch, lora_budget=plan.n_bridge())


def probe(plan: Plan, batch: int) -> Training:
    """Probe transfer: a linear layer on cached features of the frozen new model."""
    head = nn.Linear(plan.last_width("new"), plan.n_classes)
    features, labels = torch.randn(batch, head.in_features), torch.arange(batch) % plan.n_classes
    return _training(head, lambda: F.cross_entropy(head(features), labels))


def cardiogan(plan: Plan, batch: int) -> Training:
    """CardioGAN: two generators, then four discriminators, on a batch of segments, not windows."""
    size = round(plan.gan.seconds * plan.gan.rate)
    x = np.random.default_rng(0).uniform(-1, 1, (batch, size)).astype(np.float32)
    training = cardiogan_training.Training(Segments(x, x), plan.gan, seed=0, device="cpu")
    segments = round(plan.windows * plan.new["seconds"] / plan.gan.seconds)
    old = new = torch.from_numpy(x)
    return Training(
        lambda: training.step(old, new),
        n_parameters(training.networks),
        min(segments, plan.gan.segments or segments),
    )


METHODS: dict[str, Callable[[Plan, int], Training]] = {
    "KD": kd,
    "KD-Contrast": kd_contrast,
    "LoRA-KD": lora_kd,
    "Probe transfer": probe,
    "CardioGAN": cardiogan,
    "BioX-Bridge": bridge,
}
"""How each method is set up; students and their loss are those of `biox.baselines`."""


def _distilling(plan: Plan, batch: int, **more: int) -> Training:
    """Set a student up on windows of noise, made ready as `biox.baselines` makes them."""
    backbone = plan.model("new")
    spec, how = backbone.input_spec, Baselines()
    x = ready(backbone, torch.randn(batch, spec.channels, spec.samples))
    student = Student.of(
        backbone, plan.n_classes, more.get("teacher_features"), more.get("lora_budget"), seed=0
    ).train()
    logits, embedding = torch.randn(batch, plan.n_classes), torch.randn(batch, 1)
    if student.projection is not None:
        embedding = torch.randn(batch, student.projection.out_features)
    return _training(student, lambda: distillation_loss(student(x), logits, embedding, how))


def _training(learns: nn.Module, loss: Callable[[], Tensor]) -> Training:
    """Adam on the parameters that require a gradient."""
    trained = [p for p in learns.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR, fused=True)

    def step() -> Tensor:
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return Training(step, sum(p.numel() for p in trained))

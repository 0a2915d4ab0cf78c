"""A student: the new modality's pretrained backbone with a linear head of its own."""

import torch
from torch import Tensor, nn

from biox.backbones.base import Backbone
from biox.backbones.normwear import NormWear
from biox.baselines.lora import add_adapters, plan_lora


class Student(nn.Module):
    """Backbone, head on the mean-pooled last layer, and for InfoNCE a projection beside it.

    Parameters
    ----------
    backbone : Backbone
        Changed in place.
    n_classes : int
    teacher_features : int, optional
        d_L of the teacher, which embeddings are projected to; None: no projection.
    lora_budget : int, optional
        Freeze the backbone and train LoRA adapters and the head, together within so many
        parameters; None: train everything.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        teacher_features: int | None = None,
        lora_budget: int | None = None,
    ):
        super().__init__()
        features = backbone.token_shape(backbone.n_layers)[1]
        self.backbone = backbone.requires_grad_(lora_budget is None)
        self.head = nn.Linear(features, n_classes)
        self.projection = nn.Linear(features, teacher_features) if teacher_features else None
        self.plan = None
        if lora_budget is not None:
            head = sum(p.numel() for p in self.head.parameters())
            self.plan = plan_lora(backbone, lora_budget - head)
            add_adapters(backbone, self.plan)

    @classmethod
    def of(cls, backbone: Backbone, *sizes: int | None, seed: int) -> "Student":
        """Make a student, in place; the seed alone decides what is new in it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(backbone, *sizes)

    @property
    def n_parameters(self) -> int:
        """Trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> "Student":
        """Change mode; a frozen backbone stays in evaluation mode, with its batch statistics."""
        super().train(mode)
        if self.plan is not None:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Windows -> logits [batch, classes] and, with a projection, embeddings [batch, d_L]."""
        pooled = self.backbone.pool(self.backbone(x))
        return self.head(pooled), None if self.projection is None else self.projection(pooled)


@torch.no_grad()
def ready(backbone: Backbone, x: Tensor, batch: int = 64) -> Tensor:
    """What of a backbone's input no training changes, computed once.

    Of NormWear, whose stem takes them, the scalograms [n, channels, 3, samples - 2, 65]; they take
    half the time of a small model's step. Of all others the windows as they are.
    """
    if not isinstance(backbone, NormWear):
        return x
    return torch.cat([backbone.scalogram(part) for part in x.split(batch)])

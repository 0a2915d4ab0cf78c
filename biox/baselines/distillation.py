"""Knowledge distillation across modalities: what a student on the new modality learns from.

The teacher's answers on the old modality are cached; the student sees the new modality of the same
windows. No label is read anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from biox.activations import Activations
from biox.backbones.base import Backbone
from biox.baselines.settings import Baselines
from biox.baselines.students import ready
from biox.data.windows import Windows
from biox.losses import infonce_loss


@dataclass(frozen=True)
class Method:
    """How a distillation differs from plain KD.

    Attributes
    ----------
    contrast : bool
        Embeddings are compared as well, by InfoNCE.
    lora : bool
        The backbone stays frozen and gets adapters at the bridge's parameter budget.
    """

    contrast: bool = False
    lora: bool = False


METHODS: dict[str, Method] = {
    "KD": Method(),
    "KD-Contrast": Method(contrast=True),
    "LoRA-KD": Method(lora=True),
}


@dataclass(frozen=True)
class Lessons:
    """One split as a student sees it; row i is window i. Arrays, so that processes share them.

    Attributes
    ----------
    x : ndarray, [n, channels, samples]
        The new modality, or what `biox.baselines.students.ready` made of it.
    logits : ndarray, [n, classes]
        The teacher's, on the old modality.
    embedding : ndarray, [n, d_L]
        The teacher's pooled last layer, each feature standardised as on *pair*: pooled features
        have a large common part, beside which the cosine of any two windows is near 1.
    """

    x: np.ndarray
    logits: np.ndarray
    embedding: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, rows: Tensor, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Some windows, on a device: x, logits, embedding."""
        return tuple(
            torch.from_numpy(array[rows.numpy()]).to(device)
            for array in (self.x, self.logits, self.embedding)
        )


def lessons_of(
    new: Backbone, cached: Mapping[str, Activations], windows: Mapping[str, Windows]
) -> dict[str, Lessons]:
    """Put the new modality's windows and the teacher's cached answers together, by split.

    Raises
    ------
    ValueError
        Windows and activations of a split are not of the same stretches of time.
    """
    for split, activations in cached.items():
        for name in ("recordings", "starts"):
            if not np.array_equal(getattr(windows[split], name), getattr(activations, name)):
                raise ValueError(
                    f"distillation: expected {split} windows in the order of their activations, "
                    f"found other {name}"
                )
    modality = new.input_spec.modality
    pooled = cached["pair"].pooled_last
    mean, sd = pooled.mean(0), pooled.std(0, correction=0).clamp_min(1e-6)
    return {
        split: Lessons(
            ready(new, torch.from_numpy(windows[split].signals[modality])).numpy(),
            activations.logits.numpy(),
            ((activations.pooled_last - mean) / sd).numpy(),
        )
        for split, activations in cached.items()
    }


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, times T squared (Hinton et al. 2015).

    ``T^2 sum_c p_c (log p_c - log q_c)`` with p, q the softmax of the teacher's and the student's
    logits [batch, classes] over T; mean over the batch. Without the squared T, gradients would
    shrink as T grows. The loss on true labels, which the original adds, has no place here.
    """
    p, q = ((logits / temperature).log_softmax(dim=1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def contrast_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """InfoNCE between embeddings [batch, d], half of it in each direction.

    As Abbaspourazad et al. 2024 distil one biosignal's encoder into another's: a window's two
    embeddings are to find each other among the batch's, by cosine over a temperature.
    """
    student, teacher = student.unsqueeze(-2), teacher.unsqueeze(-2)
    there = infonce_loss(student, teacher, temperature)
    return (there + infonce_loss(teacher, student, temperature)) / 2


def distillation_loss(
    answer: tuple[Tensor, Tensor | None],
    logits: Tensor,
    embedding: Tensor,
    settings: Baselines,
) -> Tensor:
    """Loss of a batch: of logits, and of embeddings where the student projects its own.

    Parameters
    ----------
    answer : (Tensor, Tensor or None)
        The student's logits and embedding.
    logits, embedding : Tensor
        The teacher's.
    """
    own_logits, own_embedding = answer
    loss = kd_loss(own_logits, logits, settings.temperature)
    if own_embedding is None:
        return loss
    contrast = contrast_loss(own_embedding, embedding, settings.contrast_temperature)
    return loss + settings.contrast_weight * contrast

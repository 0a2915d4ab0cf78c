"""The training of one student: Adam, and the epoch with the lowest loss on val is kept."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from biox.baselines.distillation import Lessons, distillation_loss
from biox.baselines.settings import Baselines
from biox.baselines.students import Student


@dataclass(frozen=True)
class Curves:
    """A finished training.

    Attributes
    ----------
    train_loss, val_loss : tuple of float
        By epoch; the first entry is before training, where pair is not measured (NaN).
        `train_loss` is the mean over an epoch's steps, `val_loss` is measured after the epoch.
    best_epoch : int
        The epoch kept.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    best_epoch: int


def train_student(
    student: Student,
    pair: Lessons,
    val: Lessons,
    settings: Baselines,
    lr: float,
    epochs: int,
    batch: int,
    seed: int,
) -> Curves:
    """Train in place; keep the trained epoch with the lowest loss on val, as bridges do.

    The untrained epoch 0 does not compete. A last batch of one window is left out: batch norm and
    InfoNCE cannot learn from it.

    Parameters
    ----------
    seed : int
        Decides the order of the windows.

    Raises
    ------
    FloatingPointError
        A loss or a layer stops being finite; the message names the epoch and the learning rate.
    """
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    train_loss, val_loss = [float("nan")], [mean_loss(student, val, settings, batch)]
    best, kept = 0, {}
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(pair), generator=generator)
        try:
            train_loss.append(_epoch(student, optimizer, pair, settings, order.split(batch)))
            val_loss.append(mean_loss(student, val, settings, batch))
        except FloatingPointError as error:
            where = f"in epoch {epoch} at learning rate {lr:g}"
            raise FloatingPointError(f"student: {error}, {where}") from error
        if not best or val_loss[-1] < val_loss[best]:
            best = epoch
            kept = {k: v.detach().clone() for k, v in student.state_dict().items()}
        if settings.patience is not None and epoch - best >= settings.patience:
            break
    student.load_state_dict(kept)
    student.eval()
    return Curves(tuple(train_loss), tuple(val_loss), best)


def _epoch(
    student: Student,
    optimizer: torch.optim.Optimizer,
    pair: Lessons,
    settings: Baselines,
    batches: tuple[Tensor, ...],
) -> float:
    """One pass of steps over the paired windows; the mean of their losses."""
    student.train()
    device, total, n = student.head.weight.device, 0.0, 0
    for rows in batches:
        if len(rows) < 2:
            continue
        x, logits, embedding = pair.rows(rows, device)
        loss = distillation_loss(student(x), logits, embedding, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total, n = total + _finite(loss, "pair") * len(rows), n + len(rows)
    return total / n


@torch.no_grad()
def mean_loss(student: Student, lessons: Lessons, settings: Baselines, batch: int) -> float:
    """Mean loss in evaluation mode.

    InfoNCE depends on the company in a batch: always the same shuffled batches, of the size that
    training uses, so that epochs, learning rates and seeds compare.
    """
    student.eval()
    device, total = student.head.weight.device, 0.0
    order = torch.randperm(len(lessons), generator=torch.Generator().manual_seed(0))
    for rows in order.split(batch):
        x, logits, embedding = lessons.rows(rows, device)
        loss = distillation_loss(student(x), logits, embedding, settings)
        total += _finite(loss, "val") * len(rows)
    return total / len(lessons)


def _finite(loss: Tensor, split: str) -> float:
    value = loss.item()
    if not np.isfinite(value):
        raise FloatingPointError(f"expected a finite loss, found {value} on {split}")
    return value


@torch.no_grad()
def predict(student: Student, x: np.ndarray, batch: int = 64) -> np.ndarray:
    """Class probabilities [n, classes] from the new modality's windows alone."""
    student.eval()
    device = student.head.weight.device
    parts = (torch.from_numpy(x[i : i + batch]).to(device) for i in range(0, len(x), batch))
    return torch.cat([student(part)[0].softmax(dim=1).cpu() for part in parts]).numpy()

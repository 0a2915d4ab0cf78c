"""The training of one student: Adam, and the epoch that agrees best with the teacher is kept."""

import numpy as np
import torch
from torch import Tensor

from biox.agreement import agreement, best_epoch
from biox.baselines.distillation import Lessons, distillation_loss
from biox.baselines.settings import Baselines
from biox.baselines.students import Student
from biox.training import Fit


def train_student(
    student: Student,
    pair: Lessons,
    val: Lessons,
    settings: Baselines,
    lr: float,
    epochs: int,
    batch: int,
    seed: int,
) -> Fit:
    """Train in place; keep the trained epoch that agrees best with the teacher on val.

    The untrained epoch 0 does not compete, and pair is not measured there: its `train_loss` is NaN.
    A last batch of one window is left out: batch norm and InfoNCE cannot learn from it.

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
    train_loss, on_val = [float("nan")], [examine(student, val, settings, batch)]
    best, last, kept = 0, 0, {}  # last: epoch in which anything became better
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(pair), generator=generator)
        try:
            train_loss.append(_epoch(student, optimizer, pair, settings, order.split(batch)))
            on_val.append(examine(student, val, settings, batch))
        except FloatingPointError as error:
            where = f"in epoch {epoch} at learning rate {lr:g}"
            raise FloatingPointError(f"student: {error}, {where}") from error
        losses, agreements = zip(*on_val, strict=True)
        if best_epoch(agreements, losses) == epoch:
            best = last = epoch
            kept = {k: v.detach().clone() for k, v in student.state_dict().items()}
        if losses[-1] <= min(losses[1:]):
            last = epoch
        if settings.patience is not None and epoch - last >= settings.patience:
            break
    student.load_state_dict(kept)
    student.eval()
    return Fit(tuple(train_loss), losses, agreements, best)


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
def examine(
    student: Student, lessons: Lessons, settings: Baselines, batch: int
) -> tuple[float, float]:
    """Mean loss and agreement with the teacher, in evaluation mode.

    InfoNCE depends on the company in a batch: always the same shuffled batches, of the size that
    training uses, so that epochs, learning rates and seeds compare.
    """
    student.eval()
    device, total = student.head.weight.device, 0.0
    order = torch.randperm(len(lessons), generator=torch.Generator().manual_seed(0))
    said, wanted = [], []
    for rows in order.split(batch):
        x, logits, embedding = lessons.rows(rows, device)
        answer = student(x)
        loss = distillation_loss(answer, logits, embedding, settings)
        total += _finite(loss, "val") * len(rows)
        said.append(answer[0].softmax(dim=1).cpu())
        wanted.append(logits.argmax(dim=1).cpu())
    return total / len(lessons), agreement(torch.cat(said), torch.cat(wanted))


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

"""The teacher: a backbone of the old modality with one linear head (section 4 of the paper).

The head reads the mean over tokens of the last layer. In the released code only the head learns for
LaBraM and HuBERT-ECG, and everything for PaPaGei and NormWear; here ``teacher.train`` says which.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor, nn
from tqdm import tqdm, trange

from biox.backbones import Backbone
from biox.backbones import save as save_backbone
from biox.config import Teacher

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths C of the head's L2 penalty to choose from."""


class Labelled(NamedTuple):
    """Windows x [n, channels, samples] of one modality, labels y [n], subjects [n]."""

    x: Tensor
    y: np.ndarray
    subjects: np.ndarray


@torch.no_grad()
def pooled_last(backbone: Backbone, x: Tensor, batch_size: int = 32) -> Tensor:
    """Mean over tokens of the last layer: [n, channels, samples] -> [n, d_L]."""
    backbone.eval()
    device = next(backbone.parameters()).device
    parts = tqdm(x.split(batch_size), desc="pooled last layer", disable=None)
    return torch.cat([backbone.pool(backbone(part.to(device))).cpu() for part in parts])


@torch.no_grad()
def teacher_probabilities(backbone: Backbone, head: nn.Linear, x: Tensor) -> np.ndarray:
    """Class probabilities [n, classes] of windows [n, channels, samples]."""
    return head(pooled_last(backbone, x)).softmax(dim=1).numpy()


def fit_head(features: Tensor, y: np.ndarray, n_classes: int, penalty: float = 1.0) -> nn.Linear:
    """Fit a linear head [classes, d_L] by class-weighted logistic regression.

    Features [n, d_L] are standardised for the fit, and the scaling is folded into the head's
    weights, so that the result is one linear layer. `penalty` is scikit-learn's C.

    Raises
    ------
    ValueError
        A class has no training window.
    """
    missing = sorted(set(range(n_classes)) - set(y.tolist()))
    if missing:
        raise ValueError(
            f"teacher: expected windows of every class in train, found none of {missing}"
        )
    mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
    regression.fit(((features - mean) / std).numpy(), y)
    weight = torch.from_numpy(regression.coef_).float()
    bias = torch.from_numpy(regression.intercept_).float()
    if n_classes == 2:  # scikit-learn keeps one row; class 0 is its mirror image
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = nn.Linear(len(mean), n_classes)
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - head.weight @ mean)
    return head


def choose_penalty(features: Tensor, y: np.ndarray, subjects: np.ndarray) -> float:
    """Choose the head's C by log loss on left-out subjects; ties go to the stronger penalty.

    A few validation subjects are too few to choose by, so every subject of train and val is left
    out once (in at most eight groups). Of a single subject, or where the others would be of one
    class, fifths of each class are left out.
    Classes weigh equally. The loss judges probabilities, which distillation and calibration read;
    accuracy on a handful of subjects changes by whole subjects.
    """
    n_subjects = len(np.unique(subjects))
    folds, groups = StratifiedKFold(5), None
    if n_subjects > 1:
        by_subject = GroupKFold(min(8, n_subjects))
        if all(len(set(y[rows])) > 1 for rows, _ in by_subject.split(y, groups=subjects)):
            folds, groups = by_subject, subjects
    losses, weights = [], compute_sample_weight("balanced", y)
    for penalty in PENALTIES:
        regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
        model = make_pipeline(StandardScaler(), regression)
        probabilities = cross_val_predict(
            model, features.numpy(), y, groups=groups, cv=folds, method="predict_proba"
        )
        losses.append(log_loss(y, probabilities, sample_weight=weights))
    return PENALTIES[int(np.argmin(losses))]


def teach(
    backbone: Backbone,
    train: Labelled,
    val: Labelled,
    n_classes: int,
    settings: Teacher,
    device: str = "cpu",
) -> tuple[nn.Linear, list[float]]:
    """Fit the head and, if the settings say so for this modality, fine-tune everything.

    The head alone has nothing left to select once its penalty is chosen, so it learns from train
    and val. Fine-tuning learns from train, and val picks the epoch.

    Returns
    -------
    nn.Linear
        The head; `backbone` is trained in place.
    list of float
        Of fine-tuning: balanced accuracy on val before it and after each epoch; else empty.
    """
    parts = [pooled_last(backbone.to(device), data.x) for data in (train, val)]
    features, y = torch.cat(parts), np.concatenate([train.y, val.y])
    penalty = choose_penalty(features, y, np.concatenate([train.subjects, val.subjects]))
    if settings.train[backbone.input_spec.modality] == "all":
        head = fit_head(parts[0], train.y, n_classes, penalty)
        return head, fine_tune(backbone, head, train, val, settings, device)
    backbone.to("cpu")
    return fit_head(features, y, n_classes, penalty), []


def fine_tune(
    backbone: Backbone,
    head: nn.Linear,
    train: Labelled,
    val: Labelled,
    settings: Teacher,
    device: str = "cpu",
) -> list[float]:
    """Train all weights in place by class-weighted cross-entropy; keep the best epoch on val.

    Epoch 0, the head alone, competes too. Balanced accuracy decides, the loss breaks ties.

    Returns
    -------
    list of float
        Balanced accuracy on val after each epoch, starting with epoch 0.
    """
    torch.manual_seed(settings.seed)
    model = nn.ModuleDict({"backbone": backbone.requires_grad_(True), "head": head}).to(device)
    counts = torch.bincount(torch.from_numpy(train.y), minlength=head.out_features)
    weights = (len(train.y) / (len(counts) * counts.clamp_min(1))).float().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    y = torch.from_numpy(train.y).to(device)
    curve = [_score(backbone, head, val)]
    best = copy.deepcopy(model.state_dict())
    for _ in trange(settings.epochs, desc="fine-tuning the teacher", disable=None):
        model.train()
        for rows in torch.randperm(len(y)).split(settings.batch):
            if len(rows) < 2:  # batch norm cannot train on one window
                continue
            logits = head(backbone.pool(backbone(train.x[rows].to(device))))
            loss = F.cross_entropy(logits, y[rows], weight=weights)
            if not torch.isfinite(loss):
                found = f"{loss.item()} at learning rate {settings.lr}"
                raise FloatingPointError(f"teacher: expected a finite loss, found {found}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        curve.append(_score(backbone, head, val))
        if curve[-1] > max(curve[:-1]):
            best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    model.eval().requires_grad_(False).to("cpu")
    return [score for score, _ in curve]


@torch.no_grad()
def _score(backbone: Backbone, head: nn.Linear, data: Labelled) -> tuple[float, float]:
    """Balanced accuracy and negative loss: higher is better in both."""
    logits = head(pooled_last(backbone, data.x).to(head.weight.device)).cpu()
    loss = F.cross_entropy(logits, torch.from_numpy(data.y)).item()
    return balanced_accuracy_score(data.y, logits.argmax(1).numpy()), -loss


def save_teacher(folder: Path | str, head: nn.Linear, backbone: Backbone | None = None) -> None:
    """Write ``head.safetensors`` and, if it was fine-tuned, ``backbone.safetensors``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if backbone is not None:
        save_backbone(backbone, folder / "backbone.safetensors")
    weights = {name: x.detach().contiguous() for name, x in head.state_dict().items()}
    save_file(weights, folder / "head.safetensors")


def load_head(folder: Path | str) -> nn.Linear:
    """Read a teacher's head.

    Raises
    ------
    FileNotFoundError
        The teacher has not been trained.
    ValueError
        The file is no head, or is cut short.
    """
    path = Path(folder) / "head.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a teacher's head, found nothing")
    try:
        weights = load_file(path)
        classes, features = weights["weight"].shape
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path}: expected a teacher's head, found a foreign or truncated file ({error})"
        ) from None
    head = nn.Linear(features, classes)
    head.load_state_dict(weights)
    return head.requires_grad_(False).eval()

"""Distillation of the teacher into a student on the new modality, and probe transfer (Table 1).

The teacher's logits and embeddings on the old modality are computed once; a student reads the new
modality of the same windows. No label is read. Three students:

- **KD**: all of the new model and a linear head match the softened logits (Hinton et al. 2015);
- **KD-Contrast**: the student's embedding also has to find the teacher's within the batch, by
  InfoNCE (as Abbaspourazad et al. 2024 distil one biosignal's encoder into another's);
- **LoRA-KD**: KD with a frozen new model and low-rank adapters (Hu et al. 2022), head and adapters
  together within the bridge's number of parameters. The paper does not have it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from biox.activations import FrozenDirection
from biox.backbones import Backbone
from biox.bridge import seeded
from biox.config import Baselines, device_of
from biox.metrics import Result
from biox.teacher import choose_penalty, fit_head
from biox.training import agreement, best_epoch, infonce_loss, located, run_seeds

# --- losses ---------------------------------------------------------------------------------------


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened predictions, times T squared (Hinton et al. 2015).

    ``T^2 sum_c p_c (log p_c - log q_c)`` with p, q the softmax of the teacher's and the student's
    logits [batch, classes] over T; mean over the batch. The original adds a loss on true labels.
    """
    p, q = ((logits / temperature).log_softmax(dim=1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def contrast_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """InfoNCE between embeddings [batch, d], mean of both directions."""
    student, teacher = student.unsqueeze(1), teacher.unsqueeze(1)
    forward = infonce_loss(student, teacher, temperature)
    return (forward + infonce_loss(teacher, student, temperature)) / 2


class DistillationData(NamedTuple):
    """One split as a student sees it; row i is window i.

    Attributes
    ----------
    x : Tensor, [n, ...]
        See `Student.inputs`.
    logits : Tensor, [n, classes]
        The teacher's, on the old modality.
    embedding : Tensor, [n, d_L]
        The teacher's pooled last layer, each feature standardised as on *pair*: pooled features
        have a large common part, beside which the cosine of any two windows is near 1.
    """

    x: Tensor
    logits: Tensor
    embedding: Tensor

    def batch(self, rows: Tensor, device: torch.device | str) -> DistillationData:
        """Copy some rows to a device."""
        return DistillationData(*(values[rows].to(device) for values in self))


def distillation_data(frozen: FrozenDirection, x: Mapping[str, Tensor]):
    """Put windows of the new modality, teacher's logits and embeddings together, by split.

    ``baselines.every`` keeps every n-th window of pair.
    """
    every, data = frozen.settings.baselines.every, {}
    for split, activations in frozen.activations.items():
        assert len(x[split]) == len(activations), split
        rows = slice(None, None, every if split == "pair" else 1)
        columns = (x[split], activations.logits, activations.pooled_last)
        data[split] = DistillationData(*(values[rows] for values in columns))
    pooled = data["pair"].embedding
    mean, sd = pooled.mean(0), pooled.std(0, correction=0).clamp_min(1e-6)
    return {k: part._replace(embedding=(part.embedding - mean) / sd) for k, part in data.items()}


# --- students -------------------------------------------------------------------------------------


class Student(nn.Module):
    """A backbone with a linear head on its pooled last layer.

    Parameters
    ----------
    backbone : Backbone
        Pretrained, of the new modality; changed in place.
    n_classes : int
    teacher_features : int, optional
        d_L of the teacher, to which a projection maps the embedding for InfoNCE; None: none.
    lora_budget : int, optional
        Freeze the backbone and train LoRA adapters and the head, together at most so many
        parameters; None: train everything.

    Attributes
    ----------
    first : int or None
        The first layer with adapters.
    reads_tokens : bool
        Whether `forward` takes that layer's input instead of windows: all before it is frozen and
        computed once, where that takes no more memory.
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
        self.first, self.reads_tokens = None, False
        if lora_budget is not None:
            from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

            n_head = sum(p.numel() for p in self.head.parameters())
            self.first, names, rank = lora_plan(backbone, lora_budget - n_head)
            # lora_alpha = r: what is added to a weight is B A, without a further factor.
            config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
            inject_adapter_in_model(config, backbone)
            spec = backbone.input_spec
            window = backbone.precompute(torch.zeros(1, spec.channels, spec.samples)).numel()
            self.reads_tokens = math.prod(backbone.token_shape(self.first)) <= window

    @property
    def n_parameters(self) -> int:
        """Trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> Student:
        """Change mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.first is not None:
            self.backbone.eval()
        return self

    @torch.no_grad()
    def inputs(self, x: Tensor, batch_size: int = 64) -> Tensor:
        """Compute once what no training changes: windows [n, channels, samples] to [n, ...]."""
        parts, backbone = x.split(batch_size), self.backbone
        if self.reads_tokens:
            return torch.cat([backbone.run(backbone.stem(p), 0, self.first) for p in parts])
        return torch.cat([backbone.precompute(p) for p in parts])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map `inputs` to logits [batch, classes] and embeddings [batch, d_L] or None."""
        f = self.backbone
        pooled = f.pool(f.run(x, self.first, f.n_layers) if self.reads_tokens else f(x))
        return self.head(pooled), None if self.projection is None else self.projection(pooled)


@torch.no_grad()
def adaptable(backbone: Backbone) -> list[list[str]]:
    """Name the linear maps and ungrouped convolutions of every layer, in the order of their use.

    They are found by a pass over an empty window. The stem stays as it is.
    """
    names = {module: name for name, module in backbone.named_modules()}
    used: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: used.append(names[module]))
        for module in backbone.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
        if getattr(module, "groups", 1) == 1 and not is_parametrized(module)
    ]
    spec, layers = backbone.input_spec, []
    h = backbone.eval().stem(torch.zeros(1, spec.channels, spec.samples))
    for i in range(backbone.n_layers):
        used.clear()
        h = backbone.layer(i, h)
        layers.append(list(dict.fromkeys(used)))
    for hook in hooks:
        hook.remove()
    return layers


def lora_plan(backbone: Backbone, budget: int) -> tuple[int, list[str], int]:
    """Find the first adapted layer, the adapted modules and the highest rank within a budget.

    A weight of [out, ...] trains r times (out + the size of one output's weights); r is the same
    everywhere. Where rank 1 on all layers is too much, as many of the last layers are adapted as
    fit. No rank exceeds the largest full rank of an adapted weight: it would add nothing.

    Raises
    ------
    ValueError
        Not even the last layer fits at rank 1.
    """

    def sizes(name: str) -> tuple[int, int]:
        weight = backbone.get_submodule(name).weight
        return len(weight), weight[0].numel()

    layers = adaptable(backbone)
    costs = [sum(sum(sizes(name)) for name in layer) for layer in layers]
    first = next((i for i in range(len(layers)) if 0 < sum(costs[i:]) <= budget), None)
    if first is None:
        raise ValueError(
            f"LoRA-KD: expected a budget of at least {costs[-1]} parameters, rank 1 on the last "
            f"layer, found {budget}; leave it out of baselines.methods or train a larger bridge"
        )
    names = [name for layer in layers[first:] for name in layer]
    full = max(min(sizes(name)) for name in names)
    return first, names, min(budget // sum(costs[first:]), full)


# --- training -------------------------------------------------------------------------------------


def distillation_loss(
    output: tuple[Tensor, Tensor | None], teacher: DistillationData, settings: Baselines
) -> Tensor:
    """Loss of a batch: KD, and InfoNCE where the student projects its embedding."""
    logits, embedding = output
    loss = kd_loss(logits, teacher.logits, settings.temperature)
    if embedding is None:
        return loss
    contrast = contrast_loss(embedding, teacher.embedding, settings.contrast_temperature)
    return loss + settings.contrast_weight * contrast


def train_student(
    student: Student,
    pair: DistillationData,
    val: DistillationData,
    settings: Baselines,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int,
) -> pd.DataFrame:
    """Train in place with Adam; keep the epoch that agrees best with the teacher on val.

    The seed decides the order of the windows. A last batch of one window is left out: neither batch
    norm nor InfoNCE can learn from it. Training ends after ``settings.patience`` epochs in which
    neither agreement nor loss on val was better than before.

    Returns
    -------
    DataFrame
        ``epoch train val agreement``, one row an epoch; row 0 is before training.

    Raises
    ------
    FloatingPointError
        The loss is not finite; the message names epoch and learning rate.
    """
    device = student.head.weight.device
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    start = (0, math.nan, *evaluate(student, val, settings, batch_size))
    history = pd.DataFrame([start], columns=["epoch", "train", "val", "agreement"])
    improved = 0  # the last epoch with a better agreement or loss
    for epoch in range(1, epochs + 1):
        total, n = 0.0, 0
        student.train()
        order = torch.randperm(len(pair.x), generator=generator)
        with located("student: ", epoch, lr):
            for rows in (rows for rows in order.split(batch_size) if len(rows) > 1):
                batch = pair.batch(rows, device)
                loss = distillation_loss(student(batch.x), batch, settings)
                if not loss.isfinite():
                    raise FloatingPointError(f"expected a finite loss, found {loss.item()}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total, n = total + loss.item() * len(rows), n + len(rows)
            history.loc[epoch] = (epoch, total / n, *evaluate(student, val, settings, batch_size))
        if best_epoch(history) == epoch:
            improved, best = epoch, copy.deepcopy(student.state_dict())
        if history["val"].iloc[-1] <= history["val"].iloc[1:].min():
            improved = epoch
        if settings.patience is not None and epoch - improved >= settings.patience:
            break
    student.load_state_dict(best)
    return history.astype({"epoch": int})


@torch.no_grad()
def evaluate(
    student: Student, data: DistillationData, settings: Baselines, batch_size: int
) -> tuple[float, float]:
    """Mean loss and agreement with the teacher's pseudo-labels.

    InfoNCE depends on the batch: always the same shuffled ones, of the size that training uses.
    """
    student.eval()
    total, probabilities, pseudo_labels = 0.0, [], []
    generator = torch.Generator().manual_seed(0)
    for rows in torch.randperm(len(data.x), generator=generator).split(batch_size):
        batch = data.batch(rows, student.head.weight.device)
        output = student(batch.x)
        total += distillation_loss(output, batch, settings).item() * len(rows)
        probabilities.append(output[0].softmax(dim=1).cpu())
        pseudo_labels.append(batch.logits.argmax(dim=1).cpu())
    if not math.isfinite(total):
        raise FloatingPointError(f"expected a finite loss on val, found {total}")
    return total / len(data.x), agreement(torch.cat(probabilities), torch.cat(pseudo_labels))


@torch.no_grad()
def predict(student: Student, x: Tensor, batch_size: int = 64) -> np.ndarray:
    """Class probabilities [n, classes] from `Student.inputs` [n, ...] alone."""
    device = student.eval().head.weight.device
    parts = [student(part.to(device))[0].softmax(dim=1).cpu() for part in x.split(batch_size)]
    return torch.cat(parts).numpy()


# --- all students of a direction ------------------------------------------------------------------


def distil(
    frozen: FrozenDirection, x: Mapping[str, Tensor], n_jobs: int = -1
) -> tuple[list[Result], pd.DataFrame]:
    """Distil the teacher into students on *pair*, choose on *val*, predict *test*.

    Methods are those of the section `baselines`; seeds, epochs and batch size those of the bridge;
    learning rates those of ``search.students`` unless ``baselines.lr`` is set. Labels are not read.

    Parameters
    ----------
    frozen : FrozenDirection
        With activations of pair, val and test.
    x : mapping
        Split -> windows of the new modality [n, channels, samples].
    n_jobs : int
        Trainings side by side; -1: one a core. On a GPU they run one after another.

    Returns
    -------
    list of Result, DataFrame
        By method, then seed; and the search, see `biox.training.run_seeds`.
    """
    settings, data = frozen.settings, distillation_data(frozen, x)
    runs, inputs = {}, {}
    for method in settings.baselines.methods:
        budget = frozen.bridge(seed=0).bridge.n_parameters if method == "LoRA-KD" else None
        student = initial_student(frozen, method, budget, seed=0)
        key = student.reads_tokens
        if key not in inputs:  # students that read the same share it
            inputs[key] = {s: part._replace(x=student.inputs(part.x)) for s, part in data.items()}
        runs[method] = partial(_run, frozen, method, inputs[key], budget)
    lrs = settings.search.students if settings.baselines.lr is None else [settings.baselines.lr]
    n_jobs = n_jobs if device_of(settings) == "cpu" else 1
    shape = tuple(data["test"].logits.shape)
    return run_seeds(runs, lrs, settings.seeds, shape=shape, n_jobs=n_jobs)


def initial_student(frozen: FrozenDirection, method: str, lora_budget: int | None, seed: int):
    """Make an untrained student; the seed alone decides head, projection and adapters."""
    activations, backbone = frozen.activations["pair"], copy.deepcopy(frozen.new)
    features = activations.last.shape[2] if method == "KD-Contrast" else None
    with seeded(seed):
        return Student(backbone, activations.logits.shape[1], features, lora_budget)


def _run(frozen: FrozenDirection, method: str, data, lora_budget, seed: int, lr: float) -> Result:
    """Train one student and predict test and val windows."""
    settings, epochs = frozen.settings, frozen.settings.bridge.epochs
    student = initial_student(frozen, method, lora_budget, seed).to(device_of(settings))
    sizes = {"lr": lr, "epochs": epochs, "batch_size": settings.bridge.batch, "seed": seed}
    history = train_student(student, data["pair"], data["val"], settings.baselines, **sizes)
    test, val = (predict(student, data[split].x) for split in ("test", "val"))
    about = (seed, test, student.n_parameters, lr, history, best_epoch(history))
    return Result(method, *about, val=val)


def probe_transfer(frozen: FrozenDirection) -> list[Result]:
    """Train a linear head on the frozen new model's pooled last layer and the pseudo-labels.

    The head is of the teacher's kind (`biox.teacher.fit_head`), its penalty chosen on left-out
    subjects of *pair*. Nothing in it is random: one fit is the result of every seed. It has failed
    if the teacher never predicts some class on pair.
    """
    pair, val, test = (frozen.activations[split] for split in ("pair", "val", "test"))
    shape, pseudo_labels = tuple(test.logits.shape), pair.pseudo_labels
    absent = sorted(set(range(shape[1])) - set(pseudo_labels.tolist()))
    if absent:
        failed = f"no window of pair has pseudo-labels {[pair.classes[i] for i in absent]}"
        probabilities, on_val, n_parameters = np.full(shape, np.nan), None, math.nan
    else:
        penalty = choose_penalty(pair.new[-1], pseudo_labels, pair.subjects)
        head, failed = fit_head(pair.new[-1], pseudo_labels, shape[1], penalty), ""
        with torch.no_grad():
            probabilities, on_val = (head(a.new[-1]).softmax(dim=1).numpy() for a in (test, val))
        n_parameters = sum(p.numel() for p in head.parameters())
    return [
        Result("Probe transfer", seed, probabilities, n_parameters, failed=failed, val=on_val)
        for seed in frozen.settings.seeds
    ]

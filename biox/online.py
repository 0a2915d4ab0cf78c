"""The procedure as published: both foundation models run in every step (algorithm 1).

Nothing in the pipeline uses it. It is what cached training is tested against and compared with.
"""

import torch
from torch import Tensor

from biox.bridge import BridgedModel
from biox.losses import EQUATION_7, Objective


def online_loss(
    model: BridgedModel, x_new: Tensor, x_old: Tensor, objective: Objective = EQUATION_7
) -> Tensor:
    """Loss of a batch of paired windows, from the signals themselves.

    Parameters
    ----------
    model : BridgedModel
    x_new, x_old : Tensor, [batch, channels, samples]
        The same windows in the new and in the old modality.
    objective : Objective
    """
    stop = model.old.n_layers if objective.align == "last" else model.l
    with torch.no_grad():
        target = model.old.run(model.old.stem(x_old), 0, stop)
    return objective(model, model.pooled(x_new), target)


def online_step(
    model: BridgedModel,
    optimizer: torch.optim.Optimizer,
    x_new: Tensor,
    x_old: Tensor,
    objective: Objective = EQUATION_7,
) -> Tensor:
    """One step of training, from the signals themselves; returns the loss before it."""
    loss = online_loss(model, x_new, x_old, objective)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()

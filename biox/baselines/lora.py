"""LoRA on any backbone, through peft, at a given budget of trained parameters.

Hu et al. 2022 (arXiv 2106.09685): a frozen weight W gets a trained addition B A of rank r, and B
starts at zero. A weight of [out, ...] then trains r times (out + the size of one output's weights).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from biox.backbones.base import Backbone

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Kinds of modules that get adapters, if they are not grouped and own their weight."""


@dataclass(frozen=True)
class LoraPlan:
    """Which modules are adapted, and at which rank.

    Attributes
    ----------
    modules : tuple of str
        Names within the backbone, in the order of the forward pass.
    rank : int
    n_parameters : int
        Of all adapters.
    n_layers : int
        Layers with adapters; fewer than the backbone has where the budget is small.
    """

    modules: tuple[str, ...]
    rank: int
    n_parameters: int
    n_layers: int


@torch.no_grad()
def adaptable(backbone: Backbone) -> list[list[str]]:
    """Names of the modules that can be adapted, by layer, in the order in which they run.

    Found by a pass over an empty window, so that no model needs a table of names. The stem, which
    turns a signal into tokens, stays as it is.
    """
    names = {module: name for name, module in backbone.named_modules()}
    used: list[list[str]] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: used[-1].append(names[module]))
        for module in backbone.modules()
        if isinstance(module, ADAPTED) and module.__dict__.get("groups", 1) == 1
        if not is_parametrized(module)
    ]
    training, spec = backbone.training, backbone.input_spec
    weight = next(backbone.parameters())
    try:
        used.append([])  # of the stem
        backbone.eval()
        h = backbone.stem(torch.zeros(1, spec.channels, spec.samples, device=weight.device))
        for i in range(backbone.n_layers):
            used.append([])
            h = backbone.layer(i, h)
    finally:
        for hook in hooks:
            hook.remove()
        backbone.train(training)
    return [list(dict.fromkeys(layer)) for layer in used[1:]]


def plan_lora(backbone: Backbone, budget: int) -> LoraPlan:
    """Choose the highest rank, the same everywhere, whose adapters are within a budget.

    Where rank 1 on all layers is too much, only so many layers as fit are adapted, the last ones.
    No rank goes beyond the largest full rank of an adapted weight: it would add nothing.

    Parameters
    ----------
    budget : int
        Trained parameters that the adapters may have.

    Raises
    ------
    ValueError
        The backbone has nothing to adapt, or not even its last layer fits at rank 1.
    """
    layers = [layer for layer in adaptable(backbone) if layer]
    if not layers:
        raise ValueError(f"LoRA: expected layers with linear maps, found none in {backbone}")
    costs = [sum(sum(_sizes(backbone, name)) for name in layer) for layer in layers]
    n = max((n for n in range(1, len(layers) + 1) if sum(costs[-n:]) <= budget), default=0)
    if n == 0:
        raise ValueError(
            f"LoRA: expected a budget of at least {costs[-1]} parameters, rank 1 on the last "
            f"layer, found {budget}"
        )
    modules = [name for layer in layers[-n:] for name in layer]
    full = max(min(_sizes(backbone, name)) for name in modules)
    rank = min(budget // sum(costs[-n:]), full)
    return LoraPlan(tuple(modules), rank, rank * sum(costs[-n:]), n)


def _sizes(backbone: nn.Module, name: str) -> tuple[int, int]:
    """Outputs of a module, and the size of one output's weights: a rank costs their sum."""
    weight = backbone.get_submodule(name).weight
    return len(weight), math.prod(weight.shape[1:])


def add_adapters(backbone: Backbone, plan: LoraPlan) -> list[nn.Parameter]:
    """Freeze a backbone in place and add its adapters; its answers do not change yet.

    Returns
    -------
    list of Parameter
        What trains.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    # lora_alpha = r: the addition is B A, without a further factor.
    config = LoraConfig(
        r=plan.rank, lora_alpha=plan.rank, lora_dropout=0.0, target_modules=list(plan.modules)
    )
    backbone.requires_grad_(False)
    inject_adapter_in_model(config, backbone)
    _keep_constants(backbone, plan.modules)
    return [p for p in backbone.parameters() if p.requires_grad]


def _keep_constants(backbone: Backbone, names: Sequence[str]) -> None:
    """Let wrapped modules still say what a model may ask of them, such as their stride."""
    for name in names:
        wrapper = backbone.get_submodule(name)
        base = wrapper.base_layer
        for constant in base.__constants__:
            if not hasattr(wrapper, constant):
                setattr(wrapper, constant, getattr(base, constant))

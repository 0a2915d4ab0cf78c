"""Running the frozen models over windows, a batch at a time, and what arrays that gives."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from biox.backbones.base import Backbone
from biox.data.windows import Windows

N_TOKENS_KEPT = 1024
"""Tokens of each old layer kept for prototypes to be drawn from."""

_DRAWN_TOGETHER = 32
"""Windows whose tokens are drawn at a time: part of the seed, whatever the batch."""


@torch.no_grad()
def state_shapes(backbone: Backbone) -> list[tuple[int, int]]:
    """(tokens, features) of every hidden state, measured by one pass over an empty window."""
    weight, spec = next(backbone.parameters()), backbone.input_spec
    x = torch.zeros(1, spec.channels, spec.samples, device=weight.device, dtype=weight.dtype)
    return [tuple(h.shape[1:]) for h in backbone.eval().hidden_states(x)]


def array_shapes(new: Backbone, old: Backbone, n_classes: int, n: int) -> dict[str, tuple]:
    """Shape of every array of n windows by its name; ``last`` comes last."""
    states = state_shapes(old)
    shapes = {f"new.{i}": (n, d) for i, (_, d) in enumerate(state_shapes(new)[1:])}
    shapes |= {f"old.{i}": (n, d) for i, (_, d) in enumerate(states[:-1])}
    shapes |= {f"tokens.{i}": (N_TOKENS_KEPT, d) for i, (_, d) in enumerate(states[:-1])}
    return shapes | {"logits": (n, n_classes), "last": (n, *states[-1])}


@torch.no_grad()
def frozen_blocks(
    windows: Windows,
    new: Backbone,
    old: Backbone,
    head: nn.Linear,
    batch: int = 32,
    device: str = "cpu",
    start: int = 0,
) -> Iterator[tuple[int, dict[str, tuple[int, Tensor]]]]:
    """Run both frozen models over the windows from `start` on, a batch at a time.

    Yields
    ------
    stop : int
        Windows done.
    block : dict
        Name of an array (`array_shapes`) -> first row and these rows, on the CPU.

    Raises
    ------
    ValueError
        The windows are not of the length or channels that a model was built for.
    FloatingPointError
        A layer gives values that are not finite; the message names it.
    """
    x_new, x_old = (_signals(windows, model) for model in (new, old))
    new, old, head = (model.eval().to(device) for model in (new, old, head))
    draws = _token_draws(len(windows), [n_tokens for n_tokens, _ in state_shapes(old)[:-1]])
    progress = tqdm(total=len(windows), initial=start, desc="frozen activations", disable=None)
    for a in range(start, len(windows), batch):
        b = min(a + batch, len(windows))
        states = new.hidden_states(x_new[a:b].to(device))[1:]
        block = {f"new.{i}": (a, new.pool(h).cpu()) for i, h in enumerate(states)}
        states = old.hidden_states(x_old[a:b].to(device))
        block |= {f"old.{i}": (a, old.pool(h).cpu()) for i, h in enumerate(states[:-1])}
        for i, (window, token) in enumerate(draws):
            first, end = torch.searchsorted(window, torch.tensor([a, b])).tolist()
            picked = states[i].cpu()[window[first:end] - a, token[first:end]]
            block[f"tokens.{i}"] = (first, picked)
        block["logits"] = (a, head(old.pool(states[-1])).cpu())
        yield b, block | {"last": (a, states[-1].cpu())}
        progress.update(b - a)
    progress.close()


def _token_draws(n: int, n_tokens: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Which tokens are kept of each layer: (window, token) in the order of the windows.

    Drawn before anything runs, so that neither batches nor interruptions change the sample.
    """
    generator, per_window = torch.Generator().manual_seed(0), -(-N_TOKENS_KEPT // n)
    drawn: list[list[Tensor]] = [[] for _ in n_tokens]
    for rows in torch.arange(n).split(_DRAWN_TOGETHER):
        for layer, count in zip(drawn, n_tokens, strict=True):
            layer.append(torch.randint(count, (len(rows), per_window), generator=generator))
    draws = []
    for layer in drawn:
        kept = torch.randperm(n * per_window, generator=generator)[:N_TOKENS_KEPT].sort().values
        draws.append((kept // per_window, torch.cat(layer).flatten()[kept]))
    return draws


def _signals(windows: Windows, backbone: Backbone) -> Tensor:
    spec = backbone.input_spec
    x = torch.from_numpy(windows.signals[spec.modality])
    if tuple(x.shape[1:]) != (spec.channels, spec.samples):
        raise ValueError(
            f"{type(backbone).__name__}: expected windows of {spec.channels} channels and "
            f"{spec.samples} samples, found {x.shape[1]} and {x.shape[2]}"
        )
    return x

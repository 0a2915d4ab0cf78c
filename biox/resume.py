"""Training that was killed goes on after its last saved epoch, to the same bits.

The state of a training lies in one safetensors file outside the pipeline's outputs (DVC removes a
stage's outputs before it runs it again), and is removed when the training is over.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from biox.files import written_whole
from biox.pairs import Pairs
from biox.stacking import StackedTraining

VERSION = 2
"""Of what a training computes: raised when a change of the code makes other bits of its state."""

SAMPLED = 32
"""Rows of the targets that tell one cache from another; any change of the old model moves all."""

ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam remembers of each parameter."""

LISTS = ("train_losses", "val_losses", "val_agreements", "best_epochs")
"""What the header holds of each stack, beside the tensors."""


class Resume:
    """Where a training saves its state, and how often.

    Parameters
    ----------
    path : Path or str
        A file, as ``data/resume/<direction>.safetensors``.
    seconds : float
        At least so long passes between two savings, which are between epochs.
    """

    def __init__(self, path: Path | str, seconds: float = 30.0):
        self.path, self.seconds = Path(path), seconds
        self._key, self._saved = "", monotonic()

    def told_by(self, *facts: object) -> "Resume":
        """Put these facts into the file's name: trainings side by side need a file each."""
        name = "-".join([self.path.stem, *(str(fact) for fact in facts)])
        return Resume(self.path.with_name(name + self.path.suffix), self.seconds)

    def restore(self, stacks: Sequence[StackedTraining], epochs: int) -> int:
        """Put a saved state of this very training into it, if there is one.

        A state of other settings, data or versions is not used, nor is a foreign file, and a
        warning says so; the next saving replaces it.

        Returns
        -------
        int
            The epoch to go on with; 0 if there is nothing to go on from.
        """
        self._key, self._saved = fingerprint(stacks, epochs), monotonic()
        if not self.path.is_file():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                header = json.loads((file.metadata() or {})["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if header["key"] != self._key:
                warnings.warn(
                    f"{self.path}: expected a training of these settings and activations, found "
                    f"one of others, which is not used",
                    stacklevel=2,
                )
                return 0
            _put(stacks, tensors, header["stacks"])
        except (SafetensorError, KeyError, ValueError) as error:
            warnings.warn(
                f"{self.path}: expected the state of a training, found a foreign or truncated "
                f"file, which is not used ({error})",
                stacklevel=2,
            )
            return 0
        done = len(stacks[0].val_losses)
        print(f"{self.path}: training goes on after epoch {done - 1}")
        return done

    def save(self, stacks: Sequence[StackedTraining]) -> None:
        """Write the state after an epoch, whole or not at all, unless it is too soon."""
        if monotonic() - self._saved < self.seconds:
            return
        header = {"key": self._key, "stacks": [{n: getattr(s, n) for n in LISTS} for s in stacks]}
        tensors = {}
        for i, stack in enumerate(stacks):
            tensors |= {f"{i}.{n}": x.cpu().contiguous() for n, x in _state(stack).items()}
        with written_whole(self.path) as part:
            save_file(tensors, part, metadata={"training": json.dumps(header)})
        self._saved = monotonic()

    def done(self) -> None:
        """Remove the file: the training is over."""
        self.path.unlink(missing_ok=True)


def fingerprint(stacks: Sequence[StackedTraining], epochs: int) -> str:
    """SHA-256 of all that decides a training: settings, untrained bridges, activations, versions.

    The number of CPU threads is not among it: a training may go on with another one, though then
    the last bits may differ.
    """
    first = stacks[0]
    settings = {
        "versions": [VERSION, torch.__version__],
        "device": first.device.type,
        "objective": asdict(first.objective),
        "compute": asdict(first.compute) | {"threads": None, "workers": None},
        "lr": first.optimizer.defaults["lr"],
        "batch": first.batch,
        "epochs": epochs,
        "seeds": [stack.seeds for stack in stacks],
        "l": first.l,
        "reshaped": first.bridges.reshaped,
    }
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    untrained = [p for stack in stacks for p in stack.bridges.parameters()]
    for x in [*untrained, *_samples(first.pair), *_samples(first.val)]:
        sha.update(f"{tuple(x.shape)} {x.dtype}".encode())
        sha.update(x.detach().cpu().contiguous().numpy())
    return sha.hexdigest()


def _samples(pairs: Pairs) -> list[Tensor]:
    """All pooled features, and evenly spread rows of the targets."""
    n = len(pairs.pooled)
    rows = torch.linspace(0, n - 1, min(n, SAMPLED)).round().long()
    return [torch.tensor(pairs.target.shape), pairs.pooled, pairs.target[rows]]


def _state(stack: StackedTraining) -> dict[str, Tensor]:
    """Every tensor that the next epoch depends on."""
    state = {}
    for name, whole in stack.bridges.named_parameters():
        adam = stack.optimizer.state[whole]
        state |= {f"now.{name}": whole.detach(), f"best.{name}": stack.best[name]}
        state |= {f"{key}.{name}": adam[key] for key in ADAM}
    return state


def _put(stacks: Sequence[StackedTraining], tensors: dict[str, Tensor], lists: list[dict]) -> None:
    """Undo `_state`. The file fits, as its key says; that nothing is missing is checked first."""
    states = []
    for i, stack in enumerate(stacks):
        state = {}
        for name, whole in stack.bridges.named_parameters():
            for key in ("now", "best", *ADAM):
                state[f"{key}.{name}"] = x = tensors[f"{i}.{key}.{name}"]
                if x.shape != whole.shape and key != "step":
                    raise ValueError(f"{key}.{name} has another shape")
        states.append((state, {name: list(lists[i][name]) for name in LISTS}))
    for stack, (state, own) in zip(stacks, states, strict=True):
        adam = {}
        for i, (name, whole) in enumerate(stack.bridges.named_parameters()):
            whole.data.copy_(state[f"now.{name}"])
            stack.best[name].copy_(state[f"best.{name}"])
            adam[i] = {key: state[f"{key}.{name}"] for key in ADAM}
        groups = stack.optimizer.state_dict()["param_groups"]
        stack.optimizer.load_state_dict({"state": adam, "param_groups": groups})
        stack.__dict__.update(own)
        for _ in range(len(stack.val_losses) - 1):  # the orders that epochs so far have drawn
            stack.orders()

"""What activations are made from, as digests: a cache is reused if all agree, and only then."""

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, is_dataclass
from importlib.resources import files

import torch
from torch import Tensor, nn

from biox.backbones.base import Backbone
from biox.config import Storage
from biox.data.windows import Windows
from biox.rows import SignalRows

FORMAT = "2"
"""Version of the files and of what stands in them: raise it when either changes its meaning."""


def made_of(
    windows: Windows, new: Backbone, old: Backbone, head: nn.Linear, settings: Storage
) -> dict[str, str]:
    """Digests of all that activations follow from, by name.

    The batch and the device are left out: they change the last digit at most. The versions of the
    libraries and the source of the models are in, so that a correction never meets old numbers.
    """
    libraries = ("torch", "transformers")
    return {
        "format": FORMAT,
        "code": _code_digest(),
        "libraries": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries),
        "new model": model_digest(new),
        "old model": model_digest(old),
        "head": model_digest(head),
        "new windows": signal_digest(torch.from_numpy(windows.signals[new.input_spec.modality])),
        "old windows": signal_digest(torch.from_numpy(windows.signals[old.input_spec.modality])),
        "labels and names": _names_digest(windows),
        "last layer": settings.dtype if settings.last == "stored" else settings.last,
    }


def model_digest(model: nn.Module) -> str:
    """Digest of a model's classes, plain attributes, parameters and buffers."""
    state = hashlib.sha256()
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if k != "training" and _is_plain(v)}
        state.update(repr((name, type(module).__qualname__, sorted(plain.items()))).encode())
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        state.update(repr((name, str(x.dtype), tuple(x.shape))).encode())
        state.update(memoryview(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return state.hexdigest()


def signal_digest(x: Tensor | SignalRows) -> str:
    """Digest of windows [n, channels, samples], read by the batch."""
    state = hashlib.sha256(repr(tuple(x.shape)).encode())
    for rows in torch.arange(len(x)).split(256):
        state.update(memoryview(x[rows].float().contiguous().numpy()).cast("B"))
    return state.hexdigest()


def _names_digest(windows: Windows) -> str:
    names = [windows.subjects.tolist(), windows.recordings.tolist(), list(windows.classes)]
    numbers = [windows.labels.tolist(), windows.starts.tolist()]
    return hashlib.sha256(json.dumps([names, numbers, windows.source]).encode()).hexdigest()


def _code_digest() -> str:
    """Digest of the source of the models and of the pass itself."""
    package, state = files("biox"), hashlib.sha256()
    sources = [
        package / f"{name}.py" for name in ("activations", "frozen", "identity", "one_pass", "rows")
    ]
    sources += (package / "backbones").iterdir()
    for source in sorted(sources, key=lambda source: source.name):
        if source.name.endswith(".py"):
            state.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return state.hexdigest()


def _is_plain(value: object) -> bool:
    if is_dataclass(value) and not isinstance(value, type):
        return _is_plain(asdict(value))
    if isinstance(value, dict):
        return all(_is_plain(v) for pair in value.items() for v in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)

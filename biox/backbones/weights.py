"""Weights of a backbone: saved in one safetensors file, loaded strictly from ours or the authors'.

What a published file looks like is written down at each backbone (`Backbone.wrappers` and the lines
below it). No code in a file is run: torch builds tensors and plain containers alone
(``weights_only``), and an object of any other class becomes an inert stand-in.
"""

import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from biox.backbones.base import Backbone, finite

CAST = (torch.float16, torch.bfloat16, torch.float64)
"""What becomes float32."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
"""Entries of a saved dict in which training scripts keep weights, beside the authors' own."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and Lightning put before every key."""
ALIASES = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)
"""Endings of the same key before and after torch 2.1 (weight normalisation)."""

STANDARD = sys.stdlib_module_names | {"__builtin__", "copy_reg", "commands", "nt", "torch"}
"""Packages that can run something without any other one being there."""
KINDS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath".split()
HARMLESS = {
    "argparse": ["Namespace"],
    "builtins": "bool bytes dict float frozenset int list object slice str tuple".split(),
    "collections": ["defaultdict"],
    "datetime": "date datetime time timedelta timezone".split(),
    "pathlib": KINDS,
    "pathlib._local": KINDS,  # Python 3.13
    "types": ["SimpleNamespace"],
    "typing": "Any Dict List Optional Tuple Union".split(),
}
"""Names of theirs that options of a training run hold: they get stand-ins, all others of these
packages are refused. Objects of torch.nn and torch.optim get stand-ins, too."""


class StandIn:
    """An object of a class that a file names: does nothing, keeps what the object held."""

    held: object = None

    def __new__(cls, *arguments: object) -> "StandIn":
        """Ignore what the object was made of."""
        return super().__new__(cls)

    def __init__(self, *arguments: object):
        self.held = arguments

    def __setstate__(self, state: object) -> None:
        """Keep what the object held, for `setting`."""
        self.held = state


def save(backbone: Backbone, path: Path | str, dtype: torch.dtype = torch.float32) -> None:
    """Write all parameters and buffers of a backbone to one safetensors file, or nothing.

    An older file is replaced only by a whole new one. `dtype` is that of floating-point numbers:
    float16 halves the file, and `load` casts it to float32.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for key, value in backbone.state_dict().items()
    }
    try:
        part.write_bytes(serialise(state))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(backbone: Backbone, path: Path | str) -> None:
    """Read a file of weights into a backbone that fits it; change nothing on failure.

    The file is one of ours (`save`) or as the model's authors publish it. Every key must be there
    with its shape; further keys only where the backbone lists them as unused. Half and double
    precision become float32. Common wrappers and prefixes are taken off. A setting in the file that
    contradicts the backbone (`Backbone.switches`) is an error; see also `Backbone.ambiguous`.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        The file is no checkpoint, is damaged or wants something run; or a key is missing, unknown
        or of another shape or number type, or not finite.
    """
    path, own = Path(path), backbone.state_dict()
    content = read(path)
    state = _weights_in(content, backbone, own)
    found, problems = _renamed(state, backbone, own)
    problems += _contradictions(path, content, backbone, own)
    for key in sorted(own.keys() | found.keys(), key=lambda key: (key not in own, key)):
        if key not in own or key not in found or not _fits(backbone, key, own[key], found[key]):
            expected, present = (
                _described(side[key]) if key in side else "no such key" for side in (own, found)
            )
            problems.append((key, expected, present))
    if problems:
        (key, expected, present), more = problems[0], ""
        if len(problems) > 1:
            more = f" (the first of {len(problems)} differences)" + _looks_like(content, found, own)
        raise ValueError(_line(f"{path}: {key}: expected {expected}, found {present}{more}"))
    values = {key: v.float() if v.dtype in CAST else v for key, v in found.items()}
    for key, value in values.items():
        if value.is_floating_point() and not finite(value):
            raise ValueError(f"{path}: {key}: expected finite weights, found NaN or infinity")
    for key in backbone.resizable:
        if values[key].shape != own[key].shape:
            values[key] = backbone.resized(key, values[key])
    backbone.load_state_dict(values)


def read(path: Path) -> object:
    """Content of a safetensors or torch file: containers, tensors on the CPU, and stand-ins."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found nothing")
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: expected a checkpoint, found a git-lfs pointer to one")
    try:
        if head[8:9] == b"{":
            return load_file(path)
        zipped = head.startswith(b"PK")  # an older file, before torch 1.6, gets no stand-ins
        if zipped and (broken := zipfile.ZipFile(path).testzip()):
            raise ValueError(f"wrong checksum of {broken}")
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        with torch.serialization.safe_globals(stand_ins(names)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may fail in any way
        *_, reason = re.split(r"WeightsUnpickler error:|trusted source\.", str(error))
        reason = (reason.strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ValueError(
            _line(f"{path}: expected a whole checkpoint (safetensors or torch), found a damaged or "
                  f"foreign file; nothing of it was run ({reason})")
        ) from None  # fmt: skip


def stand_ins(names: Iterable[str]) -> list[tuple[type, str]]:
    """Make an inert class for each ``package.Class`` that a file names; refuse those that can run.

    No name is imported.
    """
    made = []
    for full in names:
        module, _, name = full.rpartition(".")
        refused = module.split(".")[0] in STANDARD and name not in HARMLESS.get(module, ())
        if refused and not f"{module}.".startswith(("torch.nn.", "torch.optim.")):
            raise ValueError(f"it uses {full}")
        made.append((type(name, (StandIn,), {"__module__": module}), full))
    return made


def setting(content: object, *keys: str) -> object:
    """Find a setting in dicts, objects such as Namespace, and omegaconf's; None if absent."""
    for key in keys:
        content = _opened(content)
        content = content.get(key) if isinstance(content, dict) else None
    return _opened(content)


def _opened(value: object) -> object:
    """What a stand-in held: attributes, or the content of an omegaconf container or node."""
    for _ in range(8):  # a file may hold an object that holds itself
        if isinstance(value, StandIn):
            value = value.held
            if isinstance(value, tuple) and value:  # a number of numpy has its bytes last
                last = value[-1]
                value = int.from_bytes(last[:8], "little") if isinstance(last, bytes) else value[0]
            if isinstance(value, dict):
                value = value.get("_content", value.get("_val", value))
    return value


def _contradictions(
    path: Path, content: object, backbone: Backbone, own: dict[str, Tensor]
) -> list[tuple[str, str, str]]:
    """What a file states about its model that is not so here; warn if it leaves that open."""
    ours = path.suffix == ".safetensors" and set(own) == set(content)  # as `save` writes it
    stated = {keys: setting(content, *keys) for keys in backbone.switches}
    stated = {k: v for k, v in stated.items() if isinstance(v, bool | int | str | np.generic)}
    if backbone.ambiguous and not stated and not ours:
        keys, expected = next(iter(backbone.switches.items()))
        unstated = f"the file does not state {keys[-1]}, which no weight shows"
        warnings.warn(f"{path}: {unstated}; {expected} is assumed", stacklevel=3)
    words = {"1": "true", "0": "false"}
    return [
        (".".join(keys), str(backbone.switches[keys]), str(found))
        for keys, found in stated.items()
        if words.get(text := str(found).lower(), text) != str(backbone.switches[keys]).lower()
    ]


def _weights_in(content: object, backbone: Backbone, own: dict[str, Tensor]) -> dict[str, object]:
    """Find the dict of weights in what was saved, and take the prefixes off its keys."""
    content = content if isinstance(content, dict) else {}
    for _ in range(2):
        inside = (content.get(name) for name in (*backbone.wrappers, *WRAPPERS))
        content = next((inner for inner in inside if isinstance(inner, dict)), content)
    state = {k if isinstance(k, str) else f"({type(k).__name__})": v for k, v in content.items()}
    for prefix in PREFIXES * 2:
        if not own.keys() & state.keys() and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for prefix in backbone.key_prefixes:
        if any(key.startswith(prefix) for key in state):
            state = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix) or not backbone.others_unused
            }
    if not own.keys() & state.keys() and len(prefixes := _owners(state, own)) == 1:
        state = {key.removeprefix(prefixes[0]): value for key, value in state.items()}
    return state


def _owners(state: dict[str, object], own: dict[str, Tensor]) -> list[str]:
    """Prefixes under which the file has this model, such as ``encoder.`` of a Lightning module."""
    longest = max((key for key in own if "parametrizations" not in key), key=len)
    return sorted({k.removesuffix(longest) for k in state if k.endswith(f".{longest}")})


OTHERS = {
    "an adapter of PEFT, not the model": r"lora_[AB]|base_model\.model\.",
    "a model of Hugging Face transformers": r"attention\.(self|attention|query|q_proj)\b",
    "a model of timm": r"attn\.qkv\.|patch_embed\.proj\.",
    "a Transformer of torch.nn": r"self_attn\.in_proj_",
}
"""What keys of other libraries look like."""


def _looks_like(content: object, found: dict[str, object], own: dict[str, Tensor]) -> str:
    """Say what a file is rather than this model, as far as its keys tell."""
    entries = [content, *(content.values() if isinstance(content, dict) else ())]
    objects = [type(value) for value in entries if isinstance(value, StandIn)]
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    missing, surplus = own.keys() - found.keys(), sorted(found.keys() - own.keys())
    text = ""
    if not tensors and objects:
        text = f"an object of {objects[0].__module__}.{objects[0].__name__}, not its state_dict()"
    elif not tensors:
        text = "no weights at all"
    elif surplus and not missing:
        text = f"this model, fine-tuned: it has a head of its own ({', '.join(surplus[:3])})"
    elif not missing and any(own[key].shape != x.shape for key, x in tensors.items()):
        text = "another size of this model"
    elif len(prefixes := _owners(tensors, own)) > 1:
        text = f"several models, under {', '.join(prefixes[:3])}"
    elif len(missing) > 0.5 * len(own):
        names = [what for what, key in OTHERS.items() if any(re.search(key, k) for k in tensors)]
        text = (*names, "another model or library")[0] + f", with keys such as {min(tensors)}"
    return f"; it looks like {text}" if text else ""


def _renamed(
    state: dict[str, object], backbone: Backbone, own: dict[str, Tensor]
) -> tuple[dict[str, object], list[tuple[str, str, str]]]:
    """Leave out unused keys, translate those of another torch; name two that become one."""
    found, problems = {}, []
    for key, value in state.items():
        if key.startswith(backbone.unused_prefixes):
            continue
        for pair in ALIASES:
            for theirs, ours in (pair, pair[::-1]):
                translated = key.removesuffix(theirs) + ours
                if key.endswith(theirs) and key not in own and translated in own:
                    key = translated
        if key in found:
            problems.append((key, "one tensor of that name", "two"))
        found[key] = value
    return found, problems


def _fits(backbone: Backbone, key: str, own: Tensor, found: object) -> bool:
    """Whether a file's entry is a tensor of the right shape and number type."""
    if not isinstance(found, Tensor) or found.is_meta or found.layout is not torch.strided:
        return False
    shape, wanted = list(found.shape), list(own.shape)
    if key in backbone.resizable and len(shape) == 3 and shape[1]:
        wanted[1] = shape[1]
    cast = own.dtype == torch.float32 and found.dtype in CAST
    return (found.dtype == own.dtype or cast) and shape == wanted


def _described(value: object) -> str:
    """Name what stands at a key of a file or model, never its content."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    kind = type(value)
    return f"an object of {kind.__module__}.{kind.__name__}".replace("builtins.", "type ")


def _line(text: str) -> str:
    """Put a text that may quote a file on one printable line."""
    text = " ".join(text.split())
    return (text if text.isprintable() else ascii(text)[1:-1])[:600]

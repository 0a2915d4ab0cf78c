"""Weights of a backbone: saved in one safetensors file, loaded strictly from ours or the authors'.

What a published file looks like is written down as data at each backbone (`Backbone.wrappers` and
the lines below it); here is how these are used.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from biox.backbones.base import Backbone
from biox.backbones.inert import Record
from biox.backbones.torch_names import StoredTensor
from biox.backbones.weight_files import SafeTensor, WeightFile, read_weights
from biox.files import sha256, written_whole

HALF = (torch.float16, torch.bfloat16)
ALIASES = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)
"""Endings of the same key before and after torch 2.1 (weight normalisation)."""


@dataclass
class Match:
    """How a file's weights fit a backbone.

    Attributes
    ----------
    wrapper : str or None
        Entry of the file that holds the weights; None if they lie bare.
    prefix : str
        What was taken off the keys.
    tensors : dict
        The model's keys and their tensors, not read yet.
    left_over : dict
        How many keys are documented as unused, by their beginning.
    problems : list of (key, expected, found)
        Empty if the file fits.
    """

    wrapper: str | None
    prefix: str
    tensors: dict[str, StoredTensor | SafeTensor] = field(default_factory=dict)
    left_over: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)

    def dtypes(self) -> list[str]:
        """Number types of the floating-point weights."""
        kinds = {t.dtype for t in self.tensors.values() if t.dtype.is_floating_point}
        return sorted(str(dtype).removeprefix("torch.") for dtype in kinds)


def _described(value: object) -> str:
    """Name what stands at a key of a file or model."""
    if isinstance(value, Record):
        return f"an object of {_as_text(str(value.name))}"
    if isinstance(value, Tensor | StoredTensor | SafeTensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"a {type(value).__name__}"  # not its content: it may be of any size


def _as_text(key: object) -> str:
    """Show what stands as a key in a file, which may be anything."""
    if not isinstance(key, str):
        return f"(a {type(key).__name__} as key)"
    return key if key.isprintable() and len(key) < 200 else ascii(key)[:200]


def _unwrapped(content: object, backbone: Backbone) -> tuple[str | None, dict]:
    """Find the dict of weights in what was saved."""
    content = content if isinstance(content, dict) else {}
    for wrapper in backbone.wrappers:
        if isinstance(content.get(wrapper), dict):
            return wrapper, content[wrapper]
    return None, content


def _without_prefix(state: dict, backbone: Backbone, match: Match) -> dict:
    """Take the prefixes off the keys; count those that lack them as left over, where allowed."""
    for prefix in backbone.key_prefixes:
        if not any(key.startswith(prefix) for key in state):
            continue
        match.prefix += prefix
        if backbone.others_unused:
            lacking = [key for key in state if not key.startswith(prefix)]
            for key in lacking:
                _count(match, f"{key.split('.')[0]} (beside {prefix})")
            state = {key: value for key, value in state.items() if key not in lacking}
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _count(match: Match, beginning: str) -> None:
    match.left_over[beginning] = match.left_over.get(beginning, 0) + 1


def _own_name(key: str, own: dict) -> str:
    """Translate a key of another version of torch, if only that version's name is unknown."""
    for pair in ALIASES:
        for theirs, ours in (pair, pair[::-1]):
            translated = key.removesuffix(theirs) + ours
            if key.endswith(theirs) and key not in own and translated in own:
                return translated
    return key


def _fits(backbone: Backbone, key: str, own: Tensor, found: object) -> bool:
    if not isinstance(found, StoredTensor | SafeTensor):
        return False
    halved = own.dtype == torch.float32 and found.dtype in HALF
    shape, wanted = list(found.shape), list(own.shape)
    if key in backbone.resizable and len(shape) == 3 and shape[1]:
        wanted[1] = shape[1]
    return (found.dtype == own.dtype or halved) and shape == wanted


def match_weights(file: WeightFile, backbone: Backbone) -> Match:
    """Compare the keys, shapes and number types of a file with those of a backbone.

    Nothing is read but names, so that the backbone may as well lie on torch's meta device.
    """
    own = backbone.state_dict()
    wrapper, state = _unwrapped(file.content, backbone)
    match = Match(wrapper, "")
    state = {_as_text(key): value for key, value in state.items()}
    found: dict[str, object] = {}
    for key, value in _without_prefix(state, backbone, match).items():
        beginning = next((p for p in backbone.unused_prefixes if key.startswith(p)), None)
        if beginning is not None:
            _count(match, beginning)
            continue
        key = _own_name(key, own)
        if key in found:
            match.problems.append((key, "one tensor of that name", "two"))
        found[key] = value
    numbers = {key for key, value in found.items() if isinstance(value, StoredTensor | SafeTensor)}
    for key in sorted(own.keys() | found.keys(), key=lambda k: (k not in own.keys() | numbers, k)):
        if key in own and key in found and _fits(backbone, key, own[key], found[key]):
            match.tensors[key] = found[key]
        else:
            expected, present = (
                _described(side[key]) if key in side else "no such key" for side in (own, found)
            )
            match.problems.append((key, expected, present))
    match.problems += backbone.contradictions(file.content)
    return match


def recognise(file: WeightFile) -> list[tuple[str, str, Match]]:
    """Names and sizes of all backbones that a file fits, at their default windows."""
    from biox.backbones import BACKBONES  # not above: the registry imports this module

    fitting = []
    for name, kind in BACKBONES.items():
        for size in kind.sizes:
            with torch.device("meta"):  # shapes without memory
                match = match_weights(file, kind(size))
            if not match.problems:
                fitting.append((name, size, match))
    return fitting


def _misfit(file: WeightFile, match: Match) -> str:
    """One sentence: the first difference, how many there are, and which model would fit."""
    key, expected, found = match.problems[0]
    sentence = f"{file.path}: {key}: expected {expected}, found {found}"
    if len(match.problems) > 1:
        sentence += f" (the first of {len(match.problems)} differences)"
    others = [f"build({name!r}, {size!r})" for name, size, _ in recognise(file)]
    return sentence + (f"; the file fits {' or '.join(others)}" if others else "")


def _values(file: WeightFile, match: Match) -> dict[str, Tensor]:
    """Read the weights; half precision becomes single precision, which is said."""
    if set(match.dtypes()) - {"float32"}:
        warnings.warn(
            f"{file.path}: weights of {' and '.join(match.dtypes())} are read as float32",
            stacklevel=3,
        )
    values = {key: file.read(tensor) for key, tensor in match.tensors.items()}
    return {key: v.float() if v.dtype in HALF else v for key, v in values.items()}


def save(backbone: Backbone, path: Path | str) -> None:
    """Write all parameters and buffers of a backbone to one safetensors file."""
    tensors = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    with written_whole(path) as part:
        save_file(tensors, part)


def load(backbone: Backbone, path: Path | str) -> Match:
    """Read a file of weights into a backbone that fits it; change nothing on failure.

    The file is one of ours (`save`, `convert`) or as the model's authors publish it. No code in it
    is run: tensors and plain containers are read, objects of unknown classes (a pickled
    configuration, say) are left alone. Weights in half precision become single precision, with a
    warning. A `resizable` table of other length is adapted by the backbone's `resized`.

    Returns
    -------
    Match
        What was found where, and which keys were left over.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        The file is no checkpoint, is damaged or wants something run; or a key is missing, unknown
        or of another shape or number type, or not finite. Names the model that would fit, if one
        does.
    """
    file = read_weights(path)
    match = match_weights(file, backbone)
    if match.problems:
        raise ValueError(_misfit(file, match))
    own, values = backbone.state_dict(), _values(file, match)
    for key, value in values.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{file.path}: {key}: expected finite weights, found NaN or infinity")
    for key in backbone.resizable:
        if values[key].shape != own[key].shape:
            values[key] = backbone.resized(key, values[key])
    backbone.load_state_dict(values)
    return match


def convert(source: Path | str, target: Path | str) -> tuple[str, str]:
    """Write the weights of a published file, and nothing else of it, as a safetensors file of ours.

    Tables keep the length they have in the file. The header says which model this is and the
    SHA-256 of the source.

    Returns
    -------
    tuple
        Name and size for `biox.backbones.build`.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        As `load`, or no backbone fits, or the target is not to be written.
    """
    target = Path(target)
    if target.suffix != ".safetensors" or target.resolve() == Path(source).resolve():
        raise ValueError(f"{target}: expected another file to write, named *.safetensors")
    file = read_weights(source)
    fitting = recognise(file)
    if not fitting:
        raise ValueError(f"{file.path}: expected the weights of a backbone, found none that fits")
    name, size, _ = fitting[0]
    # Sizes that differ in what they leave out may fit the same file: lose nothing.
    match = max((fit for _, _, fit in fitting), key=lambda fit: len(fit.tensors))
    metadata = {"format": "pt", "name": name, "size": size, "source_sha256": sha256(source)}
    with written_whole(target) as part:
        save_file(_values(file, match), part, metadata)
    return name, size

"""Any file of weights as nested dicts with tensors at the leaves, whoever wrote it."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from biox.backbones.torch_files import read_legacy, read_zip
from biox.backbones.torch_names import StoredTensor

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FOREIGN = {
    b"": "an empty file",
    b"version https://git-lfs": "a git-lfs pointer instead of the file it stands for",
    b"<!doctype html": "a web page, as a failed download leaves it",
    b"<html": "a web page, as a failed download leaves it",
    b"<?xml": "an XML document, as a failed download leaves it",
    b"\x89hdf": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"{": "a JSON document",
}
"""What files that are no checkpoints begin with, in small letters."""


@dataclass(frozen=True, eq=False)
class SafeTensor:
    """A tensor of a safetensors file, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class WeightFile:
    """Content of a file of weights.

    Attributes
    ----------
    path : Path
    format : str
        ``safetensors``, ``torch zip`` or ``torch before 1.6``.
    content : object
        What was saved: usually a dict with tensors (`StoredTensor` or `SafeTensor`) somewhere in
        it. Objects of unknown classes are `biox.backbones.inert.Record`.
    records : tuple of str
        Names of those unknown classes.
    metadata : dict
        Text in the header of a safetensors file.
    """

    path: Path
    format: str
    content: object
    records: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    def read(self, tensor: StoredTensor | SafeTensor) -> Tensor:
        """Fetch one of its tensors.

        Raises
        ------
        ValueError
            This part of the file is damaged.
        """
        try:
            return tensor.read()
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{self.path}: expected a whole checkpoint, {error}") from None


def _read_safetensors(path: Path) -> WeightFile:
    try:
        file = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, found a foreign or truncated one ({error})"
        ) from None
    tensors = {}
    for key in sorted(file.keys()):
        part = file.get_slice(key)
        if part.get_dtype() not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: {key}: expected one of {sorted(SAFETENSORS_DTYPES)}, "
                f"found {part.get_dtype()}"
            )
        dtype = SAFETENSORS_DTYPES[part.get_dtype()]
        tensors[key] = SafeTensor(
            tuple(part.get_shape()), dtype, lambda key=key: file.get_tensor(key)
        )
    return WeightFile(path, "safetensors", tensors, metadata=file.metadata() or {})


def _foreign(head: bytes) -> str:
    """Say what a file that is no checkpoint is, from its first bytes."""
    small = head.lstrip().lower()
    for begin, what in FOREIGN.items():
        if small.startswith(begin) if begin else not head:
            return what
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return f"one that begins with {head[:4].hex(' ')}"
    return "text"


def read_weights(path: Path | str) -> WeightFile:
    """Open a file of weights without running anything of it.

    Parameters
    ----------
    path : path
        A safetensors file or a checkpoint of torch; recognised by its first bytes.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        The file is no checkpoint, is damaged, or asks for something to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found nothing")
    with open(path, "rb") as file:
        head = file.read(64)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    readers = {b"PK": ("torch zip", read_zip), b"\x80": ("torch before 1.6", read_legacy)}
    for begin, (name, reader) in readers.items():
        if head.startswith(begin):
            try:
                content, records = reader(path)
            except ValueError as error:
                what = " ".join(str(error).split())[:300]  # may quote the file
                raise ValueError(
                    f"{path}: expected a checkpoint of weights, {what}; nothing of it was run"
                ) from None
            return WeightFile(path, name, content, tuple(sorted(records)))
    raise ValueError(
        f"{path}: expected a checkpoint (safetensors or torch), found {_foreign(head)}"
    )

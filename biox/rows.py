"""A layer's tokens, window by window, left where they are until asked for.

The old model's last layer is the one thing that grows with windows x tokens x features. It lies in
a raw NumPy file of which only the rows of a batch are read (`StoredRows`), or nowhere, and then the
old model computes these rows again (`RecomputedRows`).
"""

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from biox.backbones.base import Backbone

DTYPES = {
    "float32": (torch.float32, "<f4"),
    "float16": (torch.float16, "<f2"),
    "bfloat16": (torch.bfloat16, "<i2"),  # NumPy has no such type: the bits, as whole numbers
}
"""By name in params.yaml: PyTorch's type, and what the file's header says."""

KEY_BYTES = 64
"""Behind the numbers of a file stands the key of what it was made from, in hexadecimal."""


class Rows(ABC):
    """Read-only [n, tokens, features]: ``rows[index]`` is a float32 Tensor of just these windows.

    Attributes
    ----------
    shape : (int, int, int)
        n, tokens, features.
    device : str or torch.device
        Where what is read goes to.
    """

    shape: tuple[int, int, int]
    device: torch.device | str

    @abstractmethod
    def read(self, index: np.ndarray) -> Tensor:
        """Rows of these whole numbers in 0..n-1, as float32 on the CPU or `device`."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | list | np.ndarray | Tensor) -> Tensor:
        """Read rows by number, slice, list or mask, as a Tensor would be indexed."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        chosen = np.arange(len(self))[index]  # NumPy's rules and errors for every kind of index
        return (
            self.read(np.atleast_1d(chosen))
            .to(self.device)
            .reshape(*np.shape(chosen), *self.shape[1:])
        )

    def split(self, batch: int) -> Iterator[Tensor]:
        """All rows in order, `batch` at a time; like `Tensor.split`, but read one by one."""
        for start in range(0, len(self), batch):
            yield self[start : start + batch]

    def to(self, device: torch.device | str) -> "Tensor | Rows":
        """Copy to a GPU with room for it; else leave the rows in place and read for `device`."""
        moved = replace(self, device=device)
        if torch.device(device).type != "cuda":
            return moved
        free, _ = torch.cuda.mem_get_info(device)
        if 4 * int(np.prod(self.shape)) > free / 2:  # half of it is for training
            return moved
        return torch.cat(list(moved.split(256)))


@dataclass(frozen=True)
class StoredRows(Rows):
    """Rows of a raw NumPy file (``np.load(path, mmap_mode="r")`` opens it, too).

    Each read maps the file anew and lets go of it: pages that stay mapped count as this process's
    memory, which would grow with the number of windows.
    """

    path: Path
    dtype: str
    shape: tuple[int, int, int]
    device: torch.device | str = "cpu"

    @classmethod
    def open(cls, path: Path, dtype: str, shape: tuple[int, int, int], key: str) -> "StoredRows":
        """Check that the file is whole, of these sizes and made from what `key` stands for.

        Raises
        ------
        FileNotFoundError
            It is absent.
        ValueError
            It is not what was expected.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected the old model's last layer, found nothing")
        head, n_bytes = array_header(dtype, shape), array_bytes(dtype, shape)
        found, expected = path.stat().st_size, len(head) + n_bytes + KEY_BYTES
        if found != expected:
            raise ValueError(
                f"{path}: expected {expected} bytes of last layers, "
                f"found a foreign or truncated file of {found}"
            )
        with open(path, "rb") as file:
            same_head = file.read(len(head)) == head
            file.seek(-KEY_BYTES, io.SEEK_END)
            same_key = file.read() == key.encode()
        if not (same_head and same_key):
            raise ValueError(
                f"{path}: expected {dtype} last layers {list(shape)} of the same pass as the file "
                f"beside it, found another pass's"
            )
        return cls(path, dtype, tuple(shape))

    def read(self, index: np.ndarray) -> Tensor:
        """Rows of these whole numbers, read in the order in which they lie on the disk."""
        kind, descr = DTYPES[self.dtype]
        offset = len(array_header(self.dtype, self.shape))
        order = np.argsort(index, kind="stable")
        rows = np.empty((len(index), *self.shape[1:]), descr)
        rows[order] = np.memmap(self.path, descr, "r", offset, self.shape)[index[order]]
        return torch.from_numpy(rows).view(kind).float()


@dataclass(frozen=True)
class RecomputedRows(Rows):
    """Rows that the old model computes whenever they are asked for: no disk, but time.

    Attributes
    ----------
    old : Backbone
    x : Tensor or SignalRows, [n, channels, samples]
        Windows of the old modality.
    """

    old: Backbone
    x: "Tensor | SignalRows"
    shape: tuple[int, int, int]
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def read(self, index: np.ndarray) -> Tensor:
        """Run the old model on these windows."""
        where = next(self.old.parameters()).device  # it moves with the model that is trained
        return self.old.eval()(self.x[torch.from_numpy(index)].to(where)).float()


@dataclass(frozen=True)
class AbsentRows(Rows):
    """Rows that are not stored (``activations.last: recomputed``) and have no model yet."""

    path: Path
    shape: tuple[int, int, int]
    device: torch.device | str = "cpu"

    def read(self, index: np.ndarray) -> Tensor:
        """Refuse.

        Raises
        ------
        ValueError
            Always; it says what gives the rows.
        """
        raise ValueError(
            f"{self.path}: expected stored last layers, found none (activations.last: recomputed); "
            f"biox.experiment.activations_of recomputes them"
        )


@dataclass(frozen=True)
class SignalRows:
    """One modality of a file of windows [n, channels, samples], read by the batch."""

    path: Path
    modality: str
    shape: tuple[int, int, int] = field(init=False)

    def __post_init__(self):
        with safe_open(self.path, "pt") as file:
            shape = file.get_slice(f"signal.{self.modality}").get_shape()
        object.__setattr__(self, "shape", tuple(shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        with safe_open(self.path, "pt") as file:  # maps the file; copies only these rows
            return file.get_tensor(f"signal.{self.modality}")[index]


def array_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Beginning of a NumPy file of format 1.0 (numpy.lib.format)."""
    head = io.BytesIO()
    content = {"descr": DTYPES[dtype][1], "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(head, content)
    return head.getvalue()


def array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array's numbers."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(DTYPES[dtype][1]).itemsize


def encoded(x: Tensor, dtype: str) -> np.ndarray:
    """Bytes of a tensor in one of the `DTYPES`.

    Raises
    ------
    ValueError
        A value is too large for float16.
    """
    small = x.detach().cpu().to(DTYPES[dtype][0]).contiguous()
    if not small.isfinite().all() and x.isfinite().all():
        raise ValueError(
            f"activations.dtype: expected values that {dtype} can hold, "
            f"found {x.abs().max().item():.3g}; choose bfloat16 or float32"
        )
    return small.view(-1).view(torch.uint8).numpy()


def write_rows(path: Path, rows: Tensor | Rows, dtype: str, key: str) -> None:
    """Write a whole file for `StoredRows` (to a temporary name: see `biox.files.written_whole`)."""
    with open(path, "wb") as file:
        file.write(array_header(dtype, tuple(rows.shape)))
        for part in rows.split(256):
            file.write(encoded(part, dtype))
        file.write(key.encode())


def key_of(made_of: dict[str, str]) -> str:
    """One key (64 hexadecimal digits) for all that activations are made from."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

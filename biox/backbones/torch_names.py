"""What the names in torch's checkpoints mean: tensors on the disk, number types, nothing that runs.

Names, argument orders and the persistent ids are those of ``torch/_utils.py`` and
``torch/serialization.py``.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from biox.backbones.inert import Builder, Name, Refused

NUMPY = {
    torch.float64: "f8",
    torch.float32: "f4",
    torch.float16: "f2",
    torch.bfloat16: "u2",  # numpy has none: the bits only
    torch.int64: "i8",
    torch.int32: "i4",
    torch.int16: "i2",
    torch.int8: "i1",
    torch.uint8: "u1",
    torch.bool: "?",
    torch.complex64: "c8",
    torch.complex128: "c16",
}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_TYPES = (
    "bool bytearray bytes complex dict float frozenset int list object set slice str tuple".split()
)
PLAIN = {
    "builtins": _TYPES,
    "__builtin__": _TYPES,  # how protocol 2 spells it
    "_codecs": ["encode"],  # how protocol 2 writes bytes
    "argparse": ["Namespace"],
    "collections": ["Counter", "deque"],
    "datetime": ["date", "datetime", "time", "timedelta", "timezone"],
    "pathlib": ["Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"],
    "types": ["SimpleNamespace"],
    "typing": ["Any", "Dict", "List", "Optional", "Tuple", "Union"],
    "numpy": ["dtype", "ndarray"],
    "numpy.core.multiarray": ["_reconstruct", "scalar"],
    "numpy._core.multiarray": ["_reconstruct", "scalar"],  # numpy 2
    "torch": ["Size", "Tensor", "device"],
    "torch.nn.parameter": ["Parameter"],
    "torch.serialization": ["_get_layout"],
}
"""Harmless names of Python, numpy and torch, by module: options of a training run, kinds of
tensors. They become records like those of other packages, but nobody needs to hear of them."""

TORCH_OBJECTS = ("torch.nn", "torch.optim", "torch.amp", "torch.cuda.amp")
"""Modules of torch whose objects some people save whole; they become records."""

PYTHON = sys.stdlib_module_names | {"__builtin__", "copy_reg", "commands", "torch"}
"""Modules that can run something without any further package; no name of theirs is let in."""


@dataclass(eq=False)
class Storage:
    """A row of numbers in the file; `read` fetches its bytes."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytes | memoryview] | None = None  # the older format says where at its end

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor on the disk: a view of a storage, checked to lie inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    byteorder: str

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the elements."""
        return self.storage.dtype

    def read(self) -> Tensor:
        """Fetch the numbers: a contiguous tensor [shape] that shares memory with nothing."""
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        kind = np.dtype(self.byteorder + NUMPY[self.dtype])
        values = np.frombuffer(self.storage.read(), dtype=kind)[self.offset :]
        strides = [step * kind.itemsize for step in self.stride]
        view = np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False)
        own = np.array(view, dtype=kind.newbyteorder("="), order="C")
        return torch.from_numpy(own).view(self.dtype)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _tensor(
    storage: object, offset: object, shape: object, stride: object, order: str
) -> StoredTensor:
    """Check that a view lies inside its storage and is not larger than it."""
    if not (
        isinstance(storage, Storage)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= 32  # numpy's limit
        and all(map(_is_count, (offset, *shape, *stride)))
    ):
        raise Refused("found a tensor without a storage, shape and strides")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if prod(shape) and (last >= storage.numel or prod(shape) > storage.numel):
        raise Refused(
            f"found a tensor of shape {list(shape)} and strides {list(stride)} that does not lie "
            f"inside its storage of {storage.numel} numbers"
        )
    return StoredTensor(storage, offset, shape, stride, order)


class TorchNames:
    """What the names in a checkpoint mean; `found` collects those that became records."""

    def __init__(self, byteorder: str):
        self.found: set[str] = set()
        self.known: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): Builder(lambda: {}),
            ("collections", "defaultdict"): Builder(lambda kind=None: {}),
            ("torch._utils", "_rebuild_tensor"): Builder(lambda *a: _tensor(*a, byteorder)),
            ("torch._utils", "_rebuild_tensor_v2"): Builder(
                lambda s, offset, shape, stride, *rest: _tensor(s, offset, shape, stride, byteorder)
            ),
            ("torch._utils", "_rebuild_parameter"): Builder(lambda tensor, *rest: tensor),
            **{("torch", name): dtype for name, dtype in STORAGES.items()},
            **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in NUMPY},
        }

    def resolve(self, module: str, name: str) -> object:
        """Known names as they are, objects of packages as `Name`, all else refused."""
        if (module, name) in self.known:
            return self.known[module, name]
        if name not in PLAIN.get(module, ()):
            kept = any(module == m or module.startswith(f"{m}.") for m in TORCH_OBJECTS)
            if module.split(".")[0] in PYTHON and not kept:
                raise Refused(f"found a use of {module}.{name}")
            self.found.add(f"{module}.{name}")
        return Name(module, name)


def storage_request(identity: object) -> tuple[torch.dtype, str, int]:
    """Take apart torch's persistent id ("storage", type, key, place, numel[, view])."""
    match identity:
        case ("storage", torch.dtype() as dtype, str() as key, str(), numel, *view):
            if _is_count(numel) and view in ([], [None]):
                return dtype, key, numel
    raise Refused("found a persistent name that is no storage of torch")

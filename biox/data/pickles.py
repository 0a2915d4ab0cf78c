"""Numbers out of a pickle without running anything that is in it.

A pickle is a small program: loading one may call any importable function. This reader knows the
few names that rebuild numpy arrays and refuses all others before they are even imported.
"""

import _codecs
import pickle
from pathlib import Path

import numpy as np

try:  # numpy 2 renamed the module; files carry the old name
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:
    from numpy.core.multiarray import _reconstruct, scalar

ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("_codecs", "encode"): _codecs.encode,
    ("__builtin__", "bytes"): bytes,  # how Python 3 writes empty bytes for Python 2
}
"""The names a pickle of plain containers and numpy arrays refers to."""


class _Refused(Exception):
    """A pickle asks for a name outside `ALLOWED`."""


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def read_pickle(path: Path | str) -> object:
    """Read dicts, lists, strings, numbers and numpy arrays from a pickle of Python 2 or 3.

    Strings of Python 2 are read as latin1, which keeps the bytes of its arrays.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        The file is no pickle, is cut short, or refers to anything but numpy's array building.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a pickle, found nothing")
    try:
        with open(path, "rb") as file:
            return _NumbersOnly(file, encoding="latin1").load()
    except _Refused as error:
        raise ValueError(
            f"{path}: expected a pickle of numpy arrays only, "
            f"found a reference to {error}; nothing of it was run"
        ) from None
    except Exception as error:  # a damaged pickle program may fail in any way
        kind = type(error).__name__
        raise ValueError(
            f"{path}: expected a whole pickle, found a truncated or foreign file ({kind}: {error})"
        ) from None

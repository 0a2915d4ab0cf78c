"""Checkpoints of torch, in today's zip format and the older one, without torch's own reader.

Layout as ``torch/serialization.py`` writes it. A zip archive holds ``data.pkl`` (a pickle of the
saved object, in which each tensor names a storage), ``data/<key>`` (the raw numbers of a storage)
and ``byteorder``. The older format is a row of pickles (magic number, version, system, object,
storage keys) followed by the storages, each behind its length. Tensors stay on the disk until they
are asked for: optimiser states and pretraining heads cost nothing.
"""

import mmap
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO

from biox.backbones.inert import Refused, read_inert
from biox.backbones.torch_names import Storage, TorchNames, storage_request

MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of the older format."""

BYTE_ORDERS = {"little": "<", "big": ">"}


def _read(file: IO[bytes], names: TorchNames, persistent: Callable) -> object:
    """Read one pickle; say what is wrong in one clause."""
    try:
        return read_inert(file, names.resolve, persistent)
    except Refused:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise ValueError(f"found a damaged one ({type(error).__name__}: {error})") from None


def _no_storage(identity: object) -> object:
    raise Refused("found a persistent name outside the saved object")


ZIP_FAULTS = (zipfile.BadZipFile, struct.error, OSError, EOFError, RuntimeError, ValueError)
"""What `zipfile` raises for a damaged archive: not always its own error."""


class _Archive:
    """Members of a zip archive as torch lays it out: stored as they are, under one folder."""

    def __init__(self, path: Path):
        self.bytes = path.stat().st_size
        try:
            self.file = zipfile.ZipFile(path)
        except ZIP_FAULTS as error:
            raise ValueError(f"found a truncated or damaged zip archive ({error})") from None
        members = self.file.infolist()
        self.members = {info.filename: info for info in members}
        roots = [n.removesuffix("data.pkl") for n in self.members if n.endswith("/data.pkl")]
        if len(roots) != 1 or len(members) != len(self.members):
            raise ValueError("found a zip archive of other things (no single data.pkl)")
        self.root = roots[0]
        if "constants.pkl" in self:
            raise ValueError("found a TorchScript program")

    def __contains__(self, name: str) -> bool:
        return self.root + name in self.members

    def size(self, name: str) -> int:
        """Bytes of a member; refuses what is absent or compressed (a few bytes may mean many)."""
        if name not in self:
            raise ValueError(f"found no member {self.root}{name} in it")
        info = self.members[self.root + name]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise Refused(f"found a compressed member {self.root}{name}, which torch never writes")
        if info.file_size > self.bytes:
            raise ValueError(f"found a member {self.root}{name} larger than the file")
        return info.file_size

    def read(self, name: str) -> bytes:
        """Content of a member, checked against its checksum."""
        self.size(name)
        try:
            return self.file.read(self.root + name)
        except ZIP_FAULTS as error:
            raise ValueError(f"found a damaged member {self.root}{name} ({error})") from None


def read_zip(path: Path) -> tuple[object, set[str]]:
    """Read today's format; return the saved object and the names of its records.

    Raises
    ------
    Refused, ValueError
        In one clause, "found ...", without the file's name.
    """
    archive = _Archive(path)
    order = archive.read("byteorder").decode("latin1") if "byteorder" in archive else "little"
    if order not in BYTE_ORDERS:
        raise ValueError(f"found the byte order {order[:20]!r}")
    fetch = lru_cache(maxsize=1)(archive.read)  # tensors often share a storage
    storages: dict[str, Storage] = {}

    def storage(identity: object) -> Storage:
        dtype, key, numel = storage_request(identity)
        member = f"data/{key}"
        found = storages.setdefault(key, Storage(dtype, numel, lambda: fetch(member)))
        if (found.dtype, found.numel) != (dtype, numel):
            raise Refused(f"found a storage {key} of two kinds")
        if archive.size(member) != found.nbytes:
            raise Refused(
                f"found a storage {key} that claims {numel} numbers of {dtype} "
                f"and has {archive.size(member)} bytes"
            )
        return found

    names = TorchNames(BYTE_ORDERS[order])
    return _read(BytesIO(archive.read("data.pkl")), names, storage), names.found


def read_legacy(path: Path) -> tuple[object, set[str]]:
    """Read the format before torch 1.6; return the saved object and the names of its records.

    Raises
    ------
    Refused, ValueError
        In one clause, "found ...", without the file's name.
    """
    with open(path, "rb") as handle:
        file = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    plain = TorchNames("<")
    if _read(file, plain, _no_storage) != MAGIC:
        raise ValueError("found a pickle of something else")
    _read(file, plain, _no_storage)  # version of the format, 1001 ever since
    system = _read(file, plain, _no_storage)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("found one of a big-endian machine")
    storages: dict[str, Storage] = {}

    def storage(identity: object) -> Storage:
        dtype, key, numel = storage_request(identity)
        found = storages.setdefault(key, Storage(dtype, numel))
        if (found.dtype, found.numel) != (dtype, numel):
            raise Refused(f"found a storage {key} of two kinds")
        return found

    names = TorchNames("<")
    content = _read(file, names, storage)
    keys = _read(file, plain, _no_storage)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("found a list of storages that is not that of its tensors")
    stop = file.tell()
    for key in keys:
        start = stop + 8  # behind the number of elements
        stop = start + storages[key].nbytes
        if int.from_bytes(file[start - 8 : start], "little") != storages[key].numel:
            raise ValueError(f"found storage {key} cut short or of another length")
        storages[key].read = lambda start=start, stop=stop: memoryview(file)[start:stop]
    if stop > len(file):
        raise ValueError("found storages cut short")
    return content, names.found

"""The one pass of the frozen models: sized beforehand, resumable, and reused only for the same.

While it runs, finished blocks lie in hidden files beside the result, named by the key of what they
are made from; a file of a few bytes says how many windows are done. It is written after the blocks
have reached the disk, so a kill at any moment loses the current block and nothing else.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from biox.activations import Activations, last_path
from biox.backbones.base import Backbone
from biox.config import Storage
from biox.data.windows import Windows
from biox.files import written_whole
from biox.frozen import array_shapes, frozen_blocks
from biox.identity import made_of
from biox.rows import KEY_BYTES, AbsentRows, array_bytes, array_header, encoded, key_of
from biox.sizes import DiskEstimate, disk_estimate


def cache_activations(
    path: Path | str,
    windows: Windows,
    new: Backbone,
    old: Backbone,
    head: nn.Linear,
    settings: Storage | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Activations:
    """Run both frozen models once over the windows, into files, or find that this was done.

    Parameters
    ----------
    path : path
        File of the activations; the last layer lies beside it (`biox.activations.last_path`).
    windows : Windows
    new, old : Backbone
    head : nn.Linear
        The teacher's.
    settings : Storage, optional
        Section ``activations`` of params.yaml.
    device : str
    say : callable
        Told what will be written, and after the first block how long it will take.

    Raises
    ------
    OSError
        The disk has not enough room; nothing was computed.
    ValueError
        A value does not fit into float16.
    FloatingPointError
        A layer gives values that are not finite; the message names it.
    """
    path, settings = Path(path), settings or Storage()
    made = made_of(windows, new, old, head, settings)
    shapes = array_shapes(new, old, head.out_features, len(windows))
    pass_ = _Pass(path, key_of(made), shapes, settings)
    try:
        found = Activations.load(path, made)
    except (FileNotFoundError, ValueError):  # absent, damaged, or of something else: made anew
        pass_.discard_others()
    else:
        say(f"{path}: made from the same models, windows and settings before; kept")
        pass_.discard()
        return found
    estimate = disk_estimate(
        new, old, len(windows), settings.dtype, settings.last, head.out_features
    )
    say(f"{path}: {len(windows)} windows, {estimate}")
    pass_.check_room(estimate)
    done = pass_.open()
    if done:
        say(f"{path}: {done} windows were done before an interruption")
    started, first = time.perf_counter(), done
    for stop, block in frozen_blocks(windows, new, old, head, settings.batch, device, done):
        pass_.write(block, stop)
        if done == first and stop < len(windows):
            seconds = (time.perf_counter() - started) * (len(windows) - stop) / (stop - first)
            say(f"{path}: about {seconds:.0f} s more")
        done = stop
    return pass_.finish(windows, made)


_PARTS = ("small", "last", "done")


class _Pass:
    """Files of an unfinished pass, and their way to the finished ones."""

    def __init__(self, path: Path, key: str, shapes: Mapping[str, tuple], settings: Storage):
        self.path, self.key, self.settings = path, key, settings
        self.shapes = dict(shapes)
        self.last_shape = self.shapes.pop("last")
        starts = np.cumsum([0, *(array_bytes("float32", s) for s in self.shapes.values())]).tolist()
        self.offsets = dict(zip(self.shapes, starts, strict=False))
        self.small_size = starts[-1]
        self.head = b""
        self.stored = settings.last == "stored"
        if self.stored:
            self.head = array_header(settings.dtype, self.last_shape)
        self.small, self.last, self.done = (
            path.with_name(f".{path.stem}.{key[:16]}.{name}.part") for name in _PARTS
        )

    def _last_size(self) -> int:
        return len(self.head) + array_bytes(self.settings.dtype, self.last_shape) + KEY_BYTES

    def discard_others(self) -> None:
        """Throw away unfinished passes over other windows, by other models or settings."""
        stem, folder = escape(self.path.stem), self.path.parent
        for pattern in (f".{stem}.*.part", f"..{stem}.*.part"):  # the latter: of `done` itself
            for other in sorted(folder.glob(pattern)):
                if other not in (self.small, self.last, self.done):
                    other.unlink(missing_ok=True)

    def discard(self) -> None:
        """Throw away all unfinished passes."""
        self.discard_others()
        for part in (self.done, self.small, self.last):
            part.unlink(missing_ok=True)

    def check_room(self, estimate: DiskEstimate) -> None:
        """Refuse if the disk cannot hold what is still to be written.

        The small arrays count twice: they are copied when the file is put together.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        there = sum(p.stat().st_blocks * 512 for p in (self.small, self.last) if p.is_file())
        needed = estimate.total + estimate.pooled + estimate.tokens - there
        free = shutil.disk_usage(self.path.parent).free
        if needed <= free:
            return
        ways, short = [], needed - free
        if self.stored and self.settings.dtype == "float32" and estimate.last / 2 >= short:
            ways.append("activations.dtype: float16 or bfloat16")
        if self.stored and estimate.last >= short:
            ways.append("activations.last: recomputed")
        advice = f"; {' or '.join(ways)} in params.yaml would fit" if ways else ""
        raise OSError(
            f"{self.path}: expected {needed:,} free bytes for the activations, "
            f"found {free:,}{advice}"
        )

    def open(self) -> int:
        """Make the files, or find them; the number of windows that they hold."""
        if (done := self._done_before()) is not None:
            return done
        self.discard()
        sizes = {self.small: self.small_size}
        if self.stored:
            sizes[self.last] = self._last_size()
        for part, size in sizes.items():
            with open(part, "wb") as file:
                file.truncate(size)
        return 0

    def _done_before(self) -> int | None:
        try:
            progress = json.loads(self.done.read_text())
            whole = self.small.stat().st_size == self.small_size
            if self.stored and self.last.is_file():
                whole &= self.last.stat().st_size == self._last_size()
            elif self.stored:  # a pass that was killed when it only had to remove its parts
                whole = False
            return progress["done"] if whole and progress["key"] == self.key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, block: Mapping[str, tuple[int, Tensor]], stop: int) -> None:
        """Put a block where it belongs, and then that it is there."""
        with open(self.small, "rb+") as file:
            for name, offset in self.offsets.items():
                row, values = block[name]
                width = array_bytes("float32", self.shapes[name][1:])
                file.seek(offset + row * width)
                file.write(encoded(values, "float32"))
            _reach_disk(file)
        if self.stored:
            row, values = block["last"]
            with open(self.last, "rb+") as file:
                width = array_bytes(self.settings.dtype, self.last_shape[1:])
                file.seek(len(self.head) + row * width)
                file.write(encoded(values, self.settings.dtype))
                _reach_disk(file)
        with written_whole(self.done) as part, open(part, "w") as file:
            json.dump({"key": self.key, "done": stop}, file)
            _reach_disk(file)

    def finish(self, windows: Windows, made: Mapping[str, str]) -> Activations:
        """Put the finished files in place; killed in between, the same call does the rest."""
        dtype = self.settings.dtype if self.stored else None
        last = {"dtype": dtype, "shape": list(self.last_shape)}
        if not self.stored:
            last_path(self.path).unlink(missing_ok=True)
        arrays = {name: torch.from_numpy(self._read(name)) for name in self.shapes}
        rows = AbsentRows(self.path, self.last_shape)
        Activations.of(arrays, rows, windows, made_of=made).save_small(self.path, self.key, last)
        if self.stored:
            with open(self.last, "rb+") as file:
                file.write(self.head)
                file.seek(-KEY_BYTES, os.SEEK_END)
                file.write(self.key.encode())
                _reach_disk(file)
            os.replace(self.last, last_path(self.path))
        self.discard()
        return Activations.load(self.path, made)

    def _read(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        values = np.fromfile(self.small, "<f4", int(np.prod(shape)), offset=self.offsets[name])
        return values.reshape(shape)


def _reach_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())

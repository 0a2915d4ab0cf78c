"""Who goes where: splits that share no subject, and the published one that shares windows.

`make_splits` is the room's front door: from a folder of raw files to one `Windows` per split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from biox.data.cutting import concatenate, cut
from biox.data.windows import SPLITS, Windows

if TYPE_CHECKING:
    from biox.backbones.base import InputSpec

UNLABELLED_SPLIT = "pair"
"""The split whose labels nobody uses; only it keeps windows without one."""


def check_disjoint(parts: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError if a subject is in two splits, or twice in one."""
    where: dict[str, str] = {}
    for split, names in parts.items():
        for name in names:
            if name in where:
                raise ValueError(
                    f"splits: expected each subject in one split, "
                    f"found {name} in {where[name]} and {split}"
                )
            where[name] = split


def check_classes(parts: Mapping[str, Windows]) -> None:
    """Raise ValueError if a labelled split (train, val, test) lacks a class."""
    for split, windows in parts.items():
        if split == UNLABELLED_SPLIT:
            continue
        for i, name in enumerate(windows.classes):
            if not np.any(windows.labels == i):
                counts = [int((windows.labels == j).sum()) for j in range(len(windows.classes))]
                raise ValueError(
                    f"{split}: expected windows of every class, found none of {name!r} "
                    f"({dict(zip(windows.classes, counts, strict=True))})"
                )


def read_windows(
    reader: ModuleType,
    folder: Path | str,
    subjects: Sequence[str],
    specs: Mapping[str, InputSpec],
    seconds: float,
    step: float,
    per_window: bool = False,
    keep_unlabelled: bool = True,
    resampling: str = "linear",
    **options,
) -> Windows:
    """Read subjects one after the other and cut them; only windows stay in memory.

    `options` go to the reader's `read`: ``source``, and for `biox.data.recordings` also
    ``channels`` and ``classes``. The other parameters are those of `biox.data.cutting.cut`.

    Raises
    ------
    FileNotFoundError
        A subject is not in the folder.
    ValueError
        What the reader or `cut` objects to, or no subject at all.
    """
    from tqdm.auto import tqdm

    classes = options.get("classes", reader.CLASSES)
    known = set(reader.subjects(folder))
    absent = [name for name in subjects if name not in known]
    if absent:
        raise FileNotFoundError(
            f"{folder}: expected the subjects {absent}, found {len(known)} others"
        )
    parts = []
    for subject in tqdm(list(subjects), unit="subject", leave=False, disable=None):
        for recording in reader.read(folder, subject, **options):
            parts.append(
                cut(
                    recording,
                    specs,
                    seconds,
                    step,
                    classes,
                    per_window=per_window,
                    keep_unlabelled=keep_unlabelled,
                    resampling=resampling,
                )
            )
    return concatenate(parts)


def make_splits(
    reader: ModuleType,
    folder: Path | str,
    specs: Mapping[str, InputSpec],
    seconds: float,
    step: float,
    splits: Mapping[str, Sequence[str]],
    per_window: bool = False,
    resampling: str = "linear",
    **options,
) -> dict[str, Windows]:
    """Windows of each split, by subject.

    Parameters
    ----------
    reader : module
        One of `biox.data.READERS`.
    folder : path
        The raw files.
    specs : mapping of str to InputSpec
        By modality, what its backbone expects.
    seconds, step : float
        Length of the windows and distance of their starts.
    splits : mapping of str to sequence of str
        Subjects of ``train``, ``val``, ``pair`` and ``test``.
    per_window, resampling
        See `biox.data.cutting.cut`.
    **options
        For the reader, such as ``source="simulated"``.

    Returns
    -------
    dict of str to Windows
        Windows without a label only in ``pair``.

    Raises
    ------
    FileNotFoundError, ValueError
        As in `read_windows`; also a subject in two splits, or a class missing from a split.
    """
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise ValueError(f"splits: expected names out of {SPLITS}, found {unknown}")
    check_disjoint(splits)
    parts = {
        split: read_windows(
            reader,
            folder,
            subjects,
            specs,
            seconds,
            step,
            per_window=per_window,
            keep_unlabelled=split == UNLABELLED_SPLIT,
            resampling=resampling,
            **options,
        )
        for split, subjects in splits.items()
    }
    check_classes(parts)
    return parts


def shuffle_split(
    windows: Windows, fractions: Mapping[str, float], seed: int
) -> dict[str, Windows]:
    """Deal out shuffled windows in proportion to `fractions`: FOG's published protocol.

    Overlapping windows end up on both sides (deviation 13): measure with `overlap`, compare with
    `blocked_split`. The result does not depend on the order of `windows`.
    """
    order = _time_order(windows)
    shuffled = order[np.random.default_rng(seed).permutation(len(order))]
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    pieces = np.split(shuffled, _bounds(fractions, len(order)))
    return {
        split: windows.select(piece[np.argsort(rank[piece])])
        for split, piece in zip(fractions, pieces, strict=True)
    }


def blocked_split(
    windows: Windows, fractions: Mapping[str, float], seed: int, n_blocks: int = 40
) -> dict[str, Windows]:
    """Deal out contiguous stretches of time instead of single windows.

    The windows in order of recording and time are cut into `n_blocks` runs, which are shuffled and
    dealt out in proportion to `fractions`. At each border between splits the windows of the
    earlier run that reach into the later one are dropped, so that `overlap` is zero.

    Raises
    ------
    ValueError
        Fewer windows than blocks.
    """
    if len(windows) < n_blocks:
        raise ValueError(
            f"blocked_split: expected at least {n_blocks} windows, found {len(windows)}"
        )
    order = _time_order(windows)
    block = np.arange(len(order)) * n_blocks // len(order)
    dealt = np.split(
        np.random.default_rng(seed).permutation(n_blocks), _bounds(fractions, n_blocks)
    )
    owner = np.empty(n_blocks, dtype=int)
    for i, blocks in enumerate(dealt):
        owner[blocks] = i
    split_of = owner[block]
    recordings, starts = windows.recordings[order], windows.starts[order]
    keep = np.ones(len(order), dtype=bool)
    reach = _seconds(windows) - 1e-9
    for border in np.flatnonzero(np.diff(split_of)) + 1:
        into = starts[:border] > starts[border] - reach
        into &= (recordings[:border] == recordings[border]) & (
            split_of[:border] != split_of[border]
        )
        keep[:border] &= ~into
    return {
        split: windows.select(order[keep & (split_of == i)]) for i, split in enumerate(fractions)
    }


def overlap(test: Windows, train: Windows) -> float:
    """Share of test windows that overlap in time a train window of the same recording."""
    if not len(test):
        raise ValueError("overlap: expected test windows, found none")
    reach = max(_seconds(test), _seconds(train)) - 1e-9
    hit = np.zeros(len(test), dtype=bool)
    for name in np.unique(test.recordings):
        mine = test.recordings == name
        others = np.sort(train.starts[train.recordings == name])
        after = np.searchsorted(others, test.starts[mine] - reach, side="right")
        before = np.searchsorted(others, test.starts[mine] + reach, side="left")
        hit[mine] = before > after
    return float(hit.mean())


def _time_order(windows: Windows) -> np.ndarray:
    return np.lexsort((windows.starts, windows.recordings))


def _seconds(windows: Windows) -> float:
    return max(windows.seconds(modality) for modality in windows.signals)


def _bounds(fractions: Mapping[str, float], n: int) -> np.ndarray:
    """Where to split n items in proportion to the fractions."""
    shares = np.cumsum(list(fractions.values()), dtype=float)
    return np.round(shares[:-1] / shares[-1] * n).astype(int)

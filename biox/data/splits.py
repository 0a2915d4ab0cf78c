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

    `options` go to the reader's `read`: ``source``, for `biox.data.recordings` also ``channels``
    and ``classes``, for `biox.data.dreamer` ``channels`` and ``target``. The other
    parameters are those of `biox.data.cutting.cut`.

    Raises
    ------
    FileNotFoundError
        A subject is not in the folder.
    ValueError
        What the reader or `cut` objects to, or no subject at all.
    """
    from tqdm import tqdm

    classes = options.get("classes", reader.CLASSES)
    _check_present(reader, folder, subjects)
    parts = []
    for subject in tqdm(list(subjects), unit="subject", disable=None):
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


def _check_present(reader: ModuleType, folder: Path | str, subjects: Sequence[str]) -> None:
    known = reader.subjects(folder)
    absent = [name for name in subjects if name not in known]
    if not absent:
        return
    others = [name for name in known if name not in subjects]
    found = f"subjects {', '.join(others[:5])}" if others else "no other subjects"
    about = reader.ABOUT
    raise FileNotFoundError(
        f"{folder}: expected files of subject{'s' * (len(absent) > 1)} {', '.join(absent)} of "
        f"'{about.title}' ({about.database}), licence {about.licence}; "
        f"found {found}{', ...' * (len(others) > 5)}"
    )


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

    Overlapping windows end up on both sides (deviation 13): measure with `overlap`. The result
    does not depend on the order of `windows`.
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
    windows: Windows, fractions: Mapping[str, float], seed: int, n_blocks: int = 10
) -> dict[str, Windows]:
    """Deal out contiguous stretches of every recording instead of single windows.

    Each recording is cut into `n_blocks` stretches, which are shuffled and dealt out in proportion
    to `fractions`. Where two splits meet, the windows of the earlier stretch that reach into the
    later one are dropped, so that `overlap` is zero.

    Raises
    ------
    ValueError
        A recording has fewer windows than blocks.
    """
    rng, owner = np.random.default_rng(seed), np.full(len(windows), -1)
    order = _time_order(windows)
    for name in np.unique(windows.recordings):
        rows = order[windows.recordings[order] == name]
        if len(rows) < n_blocks:
            raise ValueError(
                f"blocked_split: expected at least {n_blocks} windows in {name}, found {len(rows)}"
            )
        dealt = np.split(rng.permutation(n_blocks), _bounds(fractions, n_blocks))
        of_block = np.empty(n_blocks, dtype=int)
        for i, blocks in enumerate(dealt):
            of_block[blocks] = i
        split_of = of_block[np.arange(len(rows)) * n_blocks // len(rows)]
        starts = windows.starts[rows]
        for border in np.flatnonzero(np.diff(split_of)) + 1:
            reaching = starts[:border] > starts[border] - _seconds(windows) + 1e-9
            split_of[:border][reaching & (split_of[:border] != split_of[border])] = -1
        owner[rows] = split_of
    return {split: windows.select(order[owner[order] == i]) for i, split in enumerate(fractions)}


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

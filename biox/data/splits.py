"""Who goes where: splits that share no subject, and the published one that shares windows.

`cut_dataset` goes from the settings of a data set to one `Windows` per split.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from biox.data.readers import expect, reader_named
from biox.data.windows import Recording, Windows, concatenate, cut

if TYPE_CHECKING:
    from biox.backbones.base import InputSpec

log = logging.getLogger(__name__)

Digests = dict[tuple[str, str, float], bytes]
"""Digest of a window's raw samples, by subject, recording and start."""

UNLABELLED_SPLIT = "pair"
"""The split whose labels nobody uses; only it keeps windows without one."""

PUBLISHED_FRACTIONS = {"train": 33, "val": 11, "pair": 33, "test": 22}
"""FOG's split of shuffled windows (make_FOG.py of the released code)."""


def source_of(name: str, dataset) -> str:
    """Which recordings these are, in the words that tables and figures repeat.

    `dataset` is the entry `name` of ``datasets`` in params.yaml (`biox.config.Dataset`).
    """
    if dataset.source == "simulated":
        return "simulated"
    if dataset.classes:  # own recordings have own classes
        return f"original {name}"
    return f"original {reader_named(dataset.reader or name).ABOUT.title}"


def cut_dataset(
    name: str, dataset, specs: Mapping[str, InputSpec], folder: Path | str | None = None
) -> dict[str, Windows]:
    """Read, condition, cut and split one data set as its settings say.

    Parameters
    ----------
    name, dataset : str and biox.config.Dataset
        Key of the data set in params.yaml, and its entry there.
    specs : mapping of str to InputSpec
        See `biox.data.windows.cut`.
    folder : path, optional
        The raw files, where they are not in ``dataset.folder``.

    Returns
    -------
    dict of str to Windows
        By split: ``train``, ``val``, ``pair``, ``test``. Windows without a label only in ``pair``.

    Raises
    ------
    FileNotFoundError
        A subject is not in the folder.
    ValueError
        What the reader or `cut` objects to, a subject named twice, a class missing from a split,
        the same samples in two splits.
    """
    by_subject, by_stretch = dataset.protocol == "by_subject", dataset.condition_per == "stretch"
    digests: Digests = {}
    parts = {}
    for part, subjects in dataset.splits.items():
        plain = [_plain(subject) for subject in subjects]
        twice = sorted({name for name in plain if plain.count(name) > 1})
        expect(not twice, "splits", "each subject once", f"{', '.join(twice)} again")
        parts[part] = read_windows(
            reader_named(dataset.reader or name),
            folder or dataset.folder,
            subjects,
            specs,
            dataset.seconds,
            dataset.step,
            per_window=dataset.condition_per == "window",
            keep_unlabelled=part == UNLABELLED_SPLIT,
            resampling=dataset.resampling,
            z_scored=by_subject or not by_stretch,  # by subject, a recording is in one split
            digests=digests,
            source=source_of(name, dataset),
            **dataset.reader_options(),
        )
    if not by_subject:
        split = shuffle_split if dataset.protocol == "shuffled_windows" else blocked_split
        parts = split(parts["all"], PUBLISHED_FRACTIONS, seed=0)
    for part, windows in parts.items():
        counts = {name: int((windows.labels == i).sum()) for i, name in enumerate(windows.classes)}
        sound = part == UNLABELLED_SPLIT or all(counts.values())
        expect(sound, part, "windows of every class", counts)
    _check_samples(parts, digests)
    return standardise_stretches(parts) if by_stretch and not by_subject else parts


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
    z_scored: bool = True,
    digests: Digests | None = None,
    **options,
) -> Windows:
    """Read subjects one after the other and cut them; only windows stay in memory.

    `reader` is a module of `biox.data.readers`; `options` go to its ``read``: ``source``, and what
    it takes beyond. `digests`, if given, gets a digest of each window's raw samples. The other
    parameters are those of `biox.data.windows.cut`. Blanks around subjects' names do not count, nor
    does case. FileNotFoundError if a subject is not in the folder.
    """
    known = reader.subjects(folder)
    found = {_plain(name): name for name in known}
    absent = [name for name in subjects if _plain(name) not in found]
    if absent:
        about, more = reader.ABOUT, ", ..." if len(known) > 5 else ""
        raise FileNotFoundError(
            f"{folder}: expected files of {', '.join(absent)} of '{about.title}' "
            f"({about.database}), licence {about.licence}; found {', '.join(known[:5])}{more}"
        )
    classes = options.get("classes", reader.CLASSES)
    parts = []
    for subject in tqdm([found[_plain(name)] for name in subjects], unit="subject", disable=None):
        for recording in reader.read(folder, subject, **options):
            part = cut(
                recording, specs, seconds, step, classes, per_window=per_window,
                keep_unlabelled=keep_unlabelled, resampling=resampling, z_scored=z_scored,
            )  # fmt: skip
            parts.append(part)
            if digests is not None:
                digests.update(_digests(recording, part, seconds))
    return concatenate(parts)


def _plain(subject: str) -> str:
    return subject.strip().casefold()


def _digests(recording: Recording, windows: Windows, seconds: float) -> Digests:
    """Digest each window's raw samples: every eighth, of all modalities."""
    found = {}
    for start in windows.starts.tolist():
        digest = blake2b(digest_size=16)
        for signal in recording.signals.values():
            first = round(start * signal.rate)
            part = signal.values[:, first : first + round(seconds * signal.rate) : 8]
            digest.update(np.ascontiguousarray(part))
        found[recording.subject, recording.name, start] = digest.digest()
    return found


def _check_samples(parts: Mapping[str, Windows], digests: Digests) -> None:
    """Refuse two splits with the same samples; warn of two recordings with the same."""
    seen: dict[bytes, tuple[str, str]] = {}
    reported = set()
    for split, windows in parts.items():
        columns = (windows.subjects, windows.recordings, windows.starts)
        for key in zip(*(column.tolist() for column in columns), strict=True):
            where = f"{key[1]} of {key[0]}"
            other, first = seen.setdefault(digests[key], (split, where))
            found = f"the same in {where} and {first}: one recording under two names?"
            expect(other == split, "splits", f"other samples in {split} than in {other}", found)
            if first != where and (first, where) not in reported:
                reported.add((first, where))
                log.warning("%s: %s and %s hold the same samples", split, first, where)


def shuffle_split(
    windows: Windows, fractions: Mapping[str, float], seed: int
) -> dict[str, Windows]:
    """Split shuffled windows in proportion to `fractions`: FOG's published protocol.

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
    """Split contiguous stretches of every recording instead of single windows.

    Each recording is cut into `n_blocks` stretches, which are shuffled and split in proportion
    to `fractions`. Where two splits meet, the windows of the earlier stretch that reach into the
    later one are dropped, so that `overlap` is zero. ValueError where a recording has fewer windows
    than blocks.
    """
    rng, owner = np.random.default_rng(seed), np.full(len(windows), -1)
    order = _time_order(windows)
    for name in np.unique(windows.recordings):
        rows = order[windows.recordings[order] == name]
        expected = f"at least {n_blocks} windows in {name}"
        expect(len(rows) >= n_blocks, "blocked_split", expected, len(rows))
        of_block = np.empty(n_blocks, dtype=int)
        pieces = np.split(rng.permutation(n_blocks), _bounds(fractions, n_blocks))
        for i, blocks in enumerate(pieces):
            of_block[blocks] = i
        split_of = of_block[np.arange(len(rows)) * n_blocks // len(rows)]
        starts = windows.starts[rows]
        for border in np.flatnonzero(np.diff(split_of)) + 1:
            reaching = starts[:border] > starts[border] - _seconds(windows) + 1e-9
            split_of[:border][reaching & (split_of[:border] != split_of[border])] = -1
        owner[rows] = split_of
    return {split: windows.select(order[owner[order] == i]) for i, split in enumerate(fractions)}


def standardise_stretches(parts: Mapping[str, Windows]) -> dict[str, Windows]:
    """Z-score signals by stretch: consecutive windows of one recording that are in one split.

    So no sample of another split has a part in a window, as it has where a whole recording is
    z-scored before the split (FOG in the released code). `parts` come from ``z_scored=False``.
    """
    names, whole = list(parts), concatenate(list(parts.values()))
    signals = {key: x.copy() for key, x in whole.signals.items() if whole.units[key] == "z-score"}
    owner = np.repeat(np.arange(len(names)), [len(part) for part in parts.values()])
    order = _time_order(whole)
    recordings = whole.recordings[order]
    changes = (np.diff(owner[order]) != 0) | (recordings[1:] != recordings[:-1])
    for rows in np.split(order, np.flatnonzero(changes) + 1):
        for key, values in signals.items():
            x, starts = values[rows].astype(np.float64), whole.starts[rows] * whole.rates[key]
            # each sample once, however many windows share it
            places = np.round(starts).astype(int)[:, None] + np.arange(x.shape[2])
            once = np.unique(places, return_index=True)[1]
            joined = x.swapaxes(1, 2).reshape(-1, x.shape[1])[once].T
            mean, spread = joined.mean(axis=1, keepdims=True), joined.std(axis=1, keepdims=True)
            values[rows] = (x - mean) / np.where(spread > 0, spread, 1.0)
    whole = replace(whole, signals={**whole.signals, **signals})
    return {name: whole.select(np.flatnonzero(owner == i)) for i, name in enumerate(names)}


def overlap(test: Windows, train: Windows) -> float:
    """Share of test windows that overlap in time a train window of the same recording."""
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
    return max(windows.seconds(key) for key in windows.signals)


def _bounds(fractions: Mapping[str, float], n: int) -> np.ndarray:
    """Where to split n items in proportion to the fractions."""
    shares = np.cumsum(list(fractions.values()), dtype=float)
    return np.round(shares[:-1] / shares[-1] * n).astype(int)

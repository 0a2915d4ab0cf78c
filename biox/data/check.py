"""What is there of a data set, and is it sound: to know before anything runs for hours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from biox.data.cutting import aligned
from biox.data.origin import natural
from biox.data.quality import bad_windows
from biox.data.windows import UNLABELLED, Recording

PIECE = 10.0
"""Length in seconds of the pieces that are judged sound or not."""

OK, MISSING, DAMAGED = "ok", "missing", "damaged"


@dataclass(frozen=True)
class SubjectReport:
    """What was found of one subject.

    Attributes
    ----------
    subject, status : str
        `status` is ``ok``, ``missing`` or ``damaged``.
    sentence : str
        What is missing or damaged.
    minutes : float
        Of signal that all modalities cover.
    rates : mapping of str to set of float
        Sampling rates in Hz by modality.
    labels : mapping of str to float
        Minutes by class; what has no label is not counted.
    unusable : mapping of str to float
        Minutes that windows will not be cut from, by reason.
    """

    subject: str
    status: str
    sentence: str = ""
    minutes: float = 0.0
    rates: Mapping[str, set[float]] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)
    unusable: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What was found of a data set.

    Attributes
    ----------
    folder : str
    problem : str
        Why not even the list of subjects could be read; empty if it could.
    expected : tuple of str
        Subjects that ought to be there.
    subjects : tuple of SubjectReport
        Those expected and those found.
    n_bytes : int
        Size of all files in the folder.
    """

    folder: str
    problem: str
    expected: tuple[str, ...]
    subjects: tuple[SubjectReport, ...]
    n_bytes: int

    @property
    def usable(self) -> list[str]:
        """Subjects that are there and sound."""
        return [found.subject for found in self.subjects if found.status == OK]

    @property
    def fine(self) -> bool:
        """Whether every expected subject is usable, and there is one."""
        return not self.problem and bool(self.usable) and set(self.expected) <= set(self.usable)

    @property
    def hours(self) -> float:
        """Hours of signal of the usable subjects."""
        return sum(found.minutes for found in self.subjects) / 60


def check(
    reader: ModuleType,
    folder: Path | str,
    expected: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Read every subject as a run would, and tell what is there. Nothing is written.

    Parameters
    ----------
    reader : module
        One of `biox.data.READERS`.
    folder : path
    expected : sequence of str
        Subjects that ought to be there; those the data set is known to have if not given, else
        those found.
    options : mapping, optional
        For the reader's `read`, such as ``channels`` and ``classes`` of `biox.data.recordings`.
    """
    from tqdm import tqdm

    options, problem, present = dict(options or {}), "", []
    try:
        present = reader.subjects(folder)
    except (OSError, ValueError) as error:
        problem = str(error)
    expected = tuple(expected or reader.PUBLISHED or present)
    names = sorted({*expected, *present}, key=natural)
    reports = []
    for name in tqdm(names if present else [], unit="subject", disable=None):
        here = name in present
        reports.append(
            _subject(reader, folder, name, options)
            if here
            else SubjectReport(name, MISSING, "no files of this subject")
        )
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    n_bytes = sum(path.stat().st_size for path in files)
    return Report(str(folder), problem, expected, tuple(reports), n_bytes)


def _subject(
    reader: ModuleType, folder: Path | str, subject: str, options: Mapping[str, Any]
) -> SubjectReport:
    classes = options.get("classes", reader.CLASSES)
    minutes, rates, labels, unusable = 0.0, {}, Counter(), Counter()
    try:
        for recording in reader.read(folder, subject, **options):
            minutes += recording.seconds / 60
            for modality, signal in recording.signals.items():
                rates.setdefault(modality, set()).add(signal.rate)
            labels.update(_labels(recording, classes))
            unusable.update(_unusable(recording))
    except FileNotFoundError as error:
        return SubjectReport(subject, MISSING, str(error))
    except Exception as error:  # a check must survive whatever a damaged file does
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return SubjectReport(subject, DAMAGED, kind + " ".join(str(error).split()))
    by_class = {name: labels[name] for name in classes if labels[name]}
    return SubjectReport(subject, OK, "", minutes, rates, by_class, unusable)


def _labels(recording: Recording, classes: Sequence[str]) -> Counter:
    """Minutes by class, second by second."""
    found = [recording.label(t, t + 1.0) for t in np.arange(int(recording.seconds))]
    return Counter({classes[k]: n / 60 for k, n in Counter(found).items() if k != UNLABELLED})


def _unusable(recording: Recording) -> Counter:
    """Minutes by reason; raises ValueError where nothing would be left, or lengths differ."""
    signals = aligned(recording, recording.signals)
    piece = min(PIECE, recording.seconds)
    starts = np.arange(int(recording.seconds / piece)) * piece
    reasons = Counter(reason for reason in bad_windows(signals, starts, piece) if reason)
    if sum(reasons.values()) == len(starts):
        why = ", ".join(reason for reason, _ in reasons.most_common(3))
        raise ValueError(f"{recording.name}: expected sound signals, found none ({why})")
    return Counter({reason: n * piece / 60 for reason, n in reasons.items()})

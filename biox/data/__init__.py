"""Raw recordings to windows: readers, conditioning, cutting, splits."""

from types import ModuleType

from biox.data import bidmc, dreamer, eegmat, fog, isruc, recordings, wesad
from biox.data.origin import Origin

READERS: dict[str, ModuleType] = {
    "wesad": wesad,
    "fog": fog,
    "isruc": isruc,
    "dreamer": dreamer,
    "bidmc": bidmc,
    "eegmat": eegmat,
    "recordings": recordings,
}
"""By data set: a module with ``CLASSES``, ``ABOUT``, ``PUBLISHED`` (its subjects, if known),
``subjects(folder)`` and ``read(folder, subject, source=...)``."""


def reader_named(name: str) -> ModuleType:
    """Return the reader of that name.

    Raises
    ------
    ValueError
        There is no such reader.
    """
    if name not in READERS:
        known = ", ".join(sorted(READERS))
        raise ValueError(f"reader: expected one of {known}, found {name!r}")
    return READERS[name]


__all__ = ["READERS", "Origin", "reader_named"]

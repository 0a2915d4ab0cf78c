"""Readers of raw recordings: one file a data set, found by its name.

A reader is a module with ``CLASSES`` (names of the classes, in the order of their indices),
``ABOUT`` (an `Origin`), ``subjects(folder) -> list of str`` and
``read(folder, subject, source=...) -> list of Recording``. To add a data set, add a file here; the
entry of the data set in params.yaml names it.

``read`` raises FileNotFoundError where a file is absent, and ValueError, in one sentence that names
the file, what was expected and what was found, where one is damaged, foreign, or contradicts itself
or its data set: channels, rates, units, lengths, labels.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

READERS = sorted({module.name for module in iter_modules(__path__)} - {"files", "labels"})
"""Names of all readers; the other modules here are what they share."""


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from: what to download, under which licence, and whom to cite.

    Attributes
    ----------
    title, files : str
        The published names of the data set and of the files a reader needs.
    licence, citation : str
        As known to us; the source's own page decides.
    database, url : str
        Where it is offered.
    subjects : tuple of str
        The subjects that the data set has, where they are known.
    """

    title: str
    database: str
    files: str
    licence: str
    citation: str
    url: str = ""
    subjects: tuple[str, ...] = ()

    def missing(self, folder: Path | str) -> FileNotFoundError:
        """The error of a reader whose files are not in `folder`."""
        folder = Path(folder)
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"
        return FileNotFoundError(
            f"{folder}: expected {self.files} of '{self.title}' ({self.database} {self.url}), "
            f"licence {self.licence}; found {found}"
        )

    def present(self, folder: Path | str, files: str, name: str) -> list[str]:
        """Subjects found in `folder`, S2 before S10; the error of `missing` if there are none.

        `files` is a glob; the first group of the expression `name` is the subject in their paths.
        """
        paths = [path.relative_to(folder).as_posix() for path in Path(folder).glob(files)]
        found = {match[1] for match in (re.fullmatch(name, path) for path in paths) if match}
        if not found:
            raise self.missing(folder)
        return sorted(found, key=natural)

    def file(self, path: Path) -> Path:
        """The path of a file that is there; else the error of `missing`."""
        if not path.is_file():
            raise self.missing(path.parent)
        return path


def reader_named(name: str) -> ModuleType:
    """Return the reader of that name; ValueError if there is none."""
    expect(name in READERS, "reader", f"one of {', '.join(READERS)}", repr(name))
    return import_module(f"{__name__}.{name}")


def expect(sound: bool, where: Path | str, expected: str, found: object) -> None:
    """Raise ValueError, in one sentence, where something read from `where` is not sound."""
    if not sound:
        raise ValueError(f"{where}: expected {expected}, found {found}")


@contextmanager
def whole(path: Path, kind: str) -> Iterator[None]:
    """Whatever fails inside (a damaged file may fail in any way) becomes one sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{path}: expected a whole {kind}, found a truncated or foreign one ({reason})"
        ) from None


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts S2 before S10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def inside(folder: Path | str, name: str) -> Path:
    """``folder/name`` where the published archive has that level, else `folder` itself."""
    folder = Path(folder)
    return folder / name if (folder / name).is_dir() else folder

"""Where a data set comes from: what to download, under which licence, and whom to cite."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Origin:
    """Facts about a published data set.

    Attributes
    ----------
    title : str
        Its name as published.
    database : str
        Where it is offered.
    files : str
        The files a reader needs, by their published names.
    licence, citation : str
        As known to us; the source's own page decides.
    url : str
        Where to download it.
    """

    title: str
    database: str
    files: str
    licence: str
    citation: str
    url: str = ""

    def missing(self, folder: Path | str) -> FileNotFoundError:
        """The error of a reader whose files are not in `folder`: a sentence that tells what is."""
        folder = Path(folder)
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"
        return FileNotFoundError(
            f"{folder}: expected {self.files} of '{self.title}' ({self.database}), "
            f"licence {self.licence}; found {found}"
        )


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts S2 before S10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def inside(folder: Path | str, name: str) -> Path:
    """``folder/name`` where the published archive has that level, else `folder` itself."""
    folder = Path(folder)
    return folder / name if (folder / name).is_dir() else folder

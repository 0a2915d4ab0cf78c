"""Files that are either whole or absent, digests, and the project's root folder.

The one utility every room of the package may import; it imports none of them.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def project_root(start: Path | None = None) -> Path:
    """Find the folder that holds ``params.yaml`` and ``dvc.yaml``, upwards from here.

    Jupyter starts a notebook in its own folder, papermill in the shell's; both find the same root.

    Parameters
    ----------
    start : Path, optional
        Where to begin looking; the working directory by default.

    Raises
    ------
    FileNotFoundError
        No folder above holds both files.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"{start}: expected params.yaml and dvc.yaml here or in a folder above, found neither"
    )


@contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Give a temporary name to write to; rename it to `path` only if the block succeeds.

    A failure inside the block (a full disk, an interrupt) removes the temporary file and leaves
    what stood at `path` before as it was.

    Raises
    ------
    OSError
        The file cannot be written; names `path` and the reason.

    Examples
    --------
    >>> with written_whole("scores.json") as part:
    ...     _ = part.write_text("{}")
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = str(error).replace(str(part), str(path))
        raise OSError(f"{path}: could not be written ({reason})") from None


def write_json(path: Path | str, content: object) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path | str) -> dict:
    """Read a JSON object.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        The file is not valid JSON, for example cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a JSON file, found nothing")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path}: expected JSON, found text that does not parse ({error})"
        ) from None


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path | str) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a file's bytes."""
    return sha256(path)[:12]

"""The fixed part of an EDF or BDF header: channel names, units, and the size the file must have.

MNE reads the samples; it does not keep the units where a reader could see them, and it reads a
file that was cut short without complaint.
"""

from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 256
LABEL, TRANSDUCER, DIMENSION, LIMITS, PREFILTER = 16, 80, 8, 8, 80
"""Widths of the per-signal text fields (EDF specification, Kemp et al. 1992)."""


@dataclass(frozen=True)
class EdfHeader:
    """Names and units of the signals of an EDF file."""

    channels: tuple[str, ...]
    units: tuple[str, ...]


def read_header(path: Path | str) -> EdfHeader:
    """Read names and units, and check that the file is as long as its header says.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        The file is no EDF or BDF file, or is shorter than its header says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an EDF file, found nothing")
    size = path.stat().st_size
    with open(path, "rb") as file:
        fixed = file.read(HEADER_BYTES)
        try:
            n_bytes, n_records = int(fixed[184:192]), int(fixed[236:244])
            n = int(fixed[252:256])
            fields = file.read(n_bytes - HEADER_BYTES).decode("latin1")
            at = n * (LABEL + TRANSDUCER + DIMENSION + 4 * LIMITS + PREFILTER)
            per_record = sum(int(text) for text in _texts(fields[at:], 8, n))
        except ValueError:
            raise ValueError(f"{path}: expected an EDF file, found a foreign or cut one") from None
    width = 3 if fixed[:1] == b"\xff" else 2  # BDF has 24-bit samples
    expected = n_bytes + n_records * per_record * width
    if n_records >= 0 and size < expected:
        raise ValueError(f"{path}: expected {expected} bytes by its header, found {size}")
    names = _texts(fields, LABEL, n)
    units = _texts(fields[n * (LABEL + TRANSDUCER) :], DIMENSION, n)
    return EdfHeader(tuple(names), tuple(units))


def _texts(fields: str, width: int, n: int) -> list[str]:
    return [fields[i * width : (i + 1) * width].strip() for i in range(n)]

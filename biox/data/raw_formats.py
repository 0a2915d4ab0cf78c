"""Writers of raw file formats: Python-2 pickle, MATLAB v5, headerless numeric text.

The simulator writes through these, so that the readers meet what the original downloads hold.
Equal content gives equal bytes.
"""

import io
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

from biox.files import written_whole

MAT_HEADER = b"MATLAB 5.0 MAT-file, Platform: simulated, Created by: biox"


def _string(text: bytes) -> bytes:
    """Opcodes of a Python-2 `str`, which has no opcode in Python 3's own pickler."""
    if len(text) < 256:
        return pickle.SHORT_BINSTRING + bytes([len(text)]) + text
    return pickle.BINSTRING + struct.pack("<i", len(text)) + text


def _integer(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def _array(array: np.ndarray) -> bytes:
    """Opcodes that numpy 1.x under Python 2 wrote for an array of numbers."""
    array = np.ascontiguousarray(array)
    dtype = (
        b"cnumpy\ndtype\n" + _string(array.dtype.str[1:].encode())
        + _integer(0) + _integer(1) + pickle.TUPLE3 + pickle.REDUCE
        + pickle.MARK + _integer(3) + _string(b"<") + 3 * pickle.NONE
        + _integer(-1) + _integer(-1) + _integer(0) + pickle.TUPLE + pickle.BUILD
    )  # fmt: skip
    shape = pickle.MARK + b"".join(map(_integer, array.shape)) + pickle.TUPLE
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + _integer(0) + pickle.TUPLE1 + _string(b"b") + pickle.TUPLE3 + pickle.REDUCE
        + pickle.MARK + _integer(1) + shape + dtype + pickle.NEWFALSE + _string(array.tobytes())
        + pickle.TUPLE + pickle.BUILD
    )  # fmt: skip


def python2_pickle(content: Mapping | np.ndarray | str) -> bytes:
    """Pickle nested dicts of arrays and strings as Python 2 did, protocol 2 (WESAD's form).

    Python 3 would write text and ``_codecs.encode`` calls where Python 2 wrote byte strings; such
    a file is larger and is not what readers of the original meet (``encoding="latin1"``).

    Raises
    ------
    ValueError
        `content` holds something other than dict, str and little-endian numeric arrays.
    """

    def opcodes(item) -> bytes:
        if isinstance(item, Mapping):
            pairs = b"".join(_string(key.encode()) + opcodes(value) for key, value in item.items())
            return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS
        if isinstance(item, str):
            return _string(item.encode())
        if isinstance(item, np.ndarray) and item.dtype.str[:2] in ("<f", "<i"):
            return _array(item)
        raise ValueError(
            f"python2_pickle: expected dict, str or little-endian array, found {type(item)}"
        )

    return pickle.PROTO + b"\x02" + opcodes(content) + pickle.STOP


def mat_v5(variables: Mapping[str, np.ndarray | Mapping]) -> bytes:
    """A compressed MATLAB v5 file without the time stamp that scipy puts into its header."""
    buffer = io.BytesIO()
    savemat(buffer, dict(variables), do_compression=True)
    buffer.seek(0)
    buffer.write(MAT_HEADER.ljust(116))  # the first 116 bytes are free text
    return buffer.getvalue()


def mat_cell(items: Sequence, row: bool = False) -> np.ndarray:
    """A MATLAB cell array for `mat_v5`: a column, or a row; the items may be structs (mappings)."""
    cell = np.empty(len(items), dtype=object)
    cell[:] = [dict(item) if isinstance(item, Mapping) else item for item in items]
    return cell[None] if row else cell[:, None]


def dreamer_mat(
    people: Sequence[Mapping], electrodes: Sequence[str], eeg_rate: float, ecg_rate: float
) -> bytes:
    """``DREAMER.mat`` as its authors nest it.

    Parameters
    ----------
    people : sequence of mapping
        ``EEG`` and ``ECG``, each a mapping of ``baseline`` and ``stimuli`` to one array
        [samples, channels] for each clip; any further key (``ScoreValence``: one number a clip)
        is written as it is.
    electrodes : sequence of str
    eeg_rate, ecg_rate : float
        Hz.
    """
    nested = [
        {
            key: {part: mat_cell(clips) for part, clips in value.items()}
            if isinstance(value, Mapping)
            else value
            for key, value in person.items()
        }
        for person in people
    ]
    content = {
        "Data": mat_cell(nested, row=True),
        "EEG_SamplingRate": eeg_rate,
        "ECG_SamplingRate": ecg_rate,
        "EEG_Electrodes": mat_cell(electrodes, row=True),
        "noOfSubjects": len(people),
        "noOfVideoSequences": len(people[0]["EEG"]["stimuli"]) if people else 0,
    }
    return mat_v5({"DREAMER": content})


def number_table(values: np.ndarray, decimals: np.ndarray) -> bytes:
    """Comma-separated text of numbers, a line for each row; fast, because it knows no formatting.

    Every number is laid out in a row of digit cells at once; cells that a number does not need
    (leading zeros, the sign, the decimal point) are dropped at the end.

    Parameters
    ----------
    values : ndarray, [rows, columns]
    decimals : ndarray of int, [columns]
        Digits after the decimal point, 0 to 4.
    """
    decimals = np.asarray(decimals)
    scaled = np.rint(np.abs(values) * 10.0**decimals).astype(np.int64)
    width = max(len(str(scaled.max())), int(decimals.max()) + 1)
    # Cells of a number: sign, then digits with the point before the last `decimals`, then comma.
    cells = np.zeros((*values.shape, width + 3), np.uint8)
    cells[..., 0] = np.where((values < 0) & (scaled > 0), ord("-"), 0)
    for column, places in enumerate(decimals):
        number = scaled[:, column]
        point = width - places + 1
        for digit in range(width):
            power = 10 ** (width - 1 - digit)
            needed = (number >= power) | (digit >= width - 1 - places)
            cell = 1 + digit + (digit + 1 >= point)
            cells[:, column, cell] = np.where(needed, ord("0") + number // power % 10, 0)
        if places:
            cells[:, column, point] = ord(".")
    cells[..., -1] = ord(",")
    cells[:, -1, -1] = ord("\n")
    return cells[cells > 0].tobytes()


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content`, whole or not at all."""
    with written_whole(path) as part:
        part.write_bytes(content)

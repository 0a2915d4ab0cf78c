"""One file of signals: a WFDB record, EDF or BDF, or anything else that MNE reads.

A header is checked against its file before it is believed. Samples stand where the file's own clock
puts them: a pause is filled with NaN. So is what the file marks as bad. What MNE or wfdb warn of is
logged with the file's name.
"""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from biox.data.conditioning import VOLTS
from biox.data.windows import Marked, Signal

log = logging.getLogger(__name__)

SHOWN = {"ecg": "mV"}
"""Unit of voltages by modality; uV where a modality is not named."""

SLACK = 0.01
"""Seconds by which the onset of an EDF+ record may differ from the end of the one before."""

MAX_DRIFT = 0.05
"""Seconds by which onsets that small may add up, over the whole file."""

MAX_PAUSE = 24 * 3600.0
"""Longest pauses, in seconds and all together, that are filled; more is a case for several files.
"""


class Content(NamedTuple):
    """What `read_file` finds.

    Attributes
    ----------
    signals : dict of str to Signal
        By modality. Time 0 is the first sample; NaN where there is none, or a bad one.
    marked : list of (start, stop, reason)
        Pauses, and stretches that the file marks as bad, in seconds.
    begins : float
        What the file's own clock says at time 0, in seconds; 0 for most files.
    """

    signals: dict[str, Signal]
    marked: list[Marked]
    begins: float


class _Rows(NamedTuple):
    """Channels in the order of the picks, and what holds for the whole file."""

    values: list[np.ndarray]
    rates: list[float]
    units: list[str]
    marked: list[Marked]
    begins: float = 0.0


def read_signals(path: Path, channels: Mapping[str, Sequence[str | int]]) -> dict[str, Signal]:
    """Return the signals of `read_file` alone."""
    return read_file(path, channels).signals


def read_file(path: Path, channels: Mapping[str, Sequence[str | int]]) -> Content:
    """Read one file: a WFDB record (``.hea``) or anything that MNE reads.

    `channels` names the channels of each modality as the file does; a number counts the file's
    channels from 1, where a name does not tell two apart. Voltages come in mV (ECG) or uV (other
    modalities), other quantities in the unit the file states. Each signal has its own rate.

    Raises
    ------
    FileNotFoundError
        The file is absent.
    ValueError
        It is damaged or foreign, contradicts itself, lacks a channel, or marks it as bad.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a recording, found nothing")
    known = {
        ".hea": (_wfdb, "a WFDB record"),
        ".edf": (_edf, "an EDF file"),
        ".bdf": (_edf, "a BDF file"),
    }
    reader, kind = known.get(path.suffix.lower(), (_mne, "a file MNE reads"))
    picks = list(dict.fromkeys(name for names in channels.values() for name in names))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rows = reader(path, picks)
        except Exception as error:  # a damaged file may fail in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not reason.startswith(str(path)):
                reason = f"{path}: expected {kind}, found a foreign or damaged one ({reason})"
            raise ValueError(reason) from None
    said = [w.message for w in caught if not issubclass(w.category, DeprecationWarning)]
    for text in dict.fromkeys(" ".join(str(message).split()) for message in said):
        log.warning("%s: %s", path, text)
    lost: dict[str, float] = {}
    for start, stop, why in rows.marked:
        lost[why] = lost.get(why, 0.0) + stop - start
        for values, rate in zip(rows.values, rows.rates, strict=True):
            values[max(0, round(start * rate)) : max(0, round(stop * rate))] = np.nan
    for why, seconds in lost.items():
        log.warning("%s: no window touches %s (%.2f s)", path, why, seconds)
    signals = {}
    for modality, names in channels.items():
        chosen = [picks.index(name) for name in names]
        signals[modality] = _signal(path, modality, rows, chosen, tuple(map(str, names)))
    return Content(signals, rows.marked, rows.begins)


def _signal(
    path: Path, modality: str, rows: _Rows, chosen: list[int], names: tuple[str, ...]
) -> Signal:
    """Put channels of one modality together, voltages in one unit."""
    rates = {rows.rates[i] for i in chosen}
    if len(rates) > 1:
        raise ValueError(f"{path}: expected {modality} of one rate, found {sorted(rates)} Hz")
    x, units = np.stack([rows.values[i] for i in chosen]), [rows.units[i] for i in chosen]
    shown = SHOWN.get(modality, "uV")
    if set(units) <= set(VOLTS):
        x, units = x * (np.array([[VOLTS[unit]] for unit in units]) / VOLTS[shown]), [shown]
    unit = units[0] if len(set(units)) == 1 and units[0] else "a.u."
    return Signal(x, rates.pop(), unit, names)


def _places(
    path: Path, picks: Sequence[str | int], names: Sequence[str], unique: Sequence[str] = ()
) -> list[int]:
    """Places of the picked channels among those of the file, from 0.

    `unique` are the names that MNE gives where the file's own are not.
    """
    places, missing = [], []
    for pick in picks:
        text = str(pick).strip()
        where = [i for i, name in enumerate(names) if name == text]
        where = where or [i for i, name in enumerate(unique) if name == text]
        number = re.fullmatch(r"#?(\d+)", text)
        if not where and number and 1 <= int(number[1]) <= len(names):
            where = [int(number[1]) - 1]
        if len(where) > 1:
            numbers = " and ".join(str(i + 1) for i in where)
            raise ValueError(
                f"{path}: expected one channel named {text!r}, found {len(where)}: numbers "
                f"{numbers} of the file; pick by number, such as {where[0] + 1}"
            )
        places += where
        missing += [] if where else [pick]
    if missing:
        raise ValueError(f"{path}: expected the channels {missing}, found {list(names)}")
    return places


# --- WFDB -----------------------------------------------------------------------------------------


def _wfdb(path: Path, picks: list[str | int]) -> _Rows:
    """A record of one or several segments. Segments without signal come as NaN."""
    import wfdb

    base = str(path.with_suffix(""))
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    lines = [line.split() for line in lines if not line.startswith("#")]
    if lines and len(lines[0]) == 2:
        raise ValueError(f"{path}: expected a sampling rate in the first line, found none")
    header = wfdb.rdheader(base, rd_segments=True)
    parts = [part for part in getattr(header, "segments", [header]) if part is not None]
    _check_segments(path, header, parts)
    per_frame = [n for part in parts for n in part.samps_per_frame or []]
    record = wfdb.rdrecord(base, smooth_frames=set(per_frame) <= {1})
    places = _places(path, picks, record.sig_name)
    units = [record.units[i] or "" for i in places]
    if parts[0] is header:
        # a gain of 0, or none, says that nobody calibrated the signal; wfdb makes it 200 per mV
        gains = [
            float((re.match(r"[\d.e+-]+", f"{line[2:3]}"[2:]) or "0")[0]) for line in lines[1:]
        ]
        raw = [i for i in places if not gains[i]]
        units = ["a.u." if i in raw else unit for i, unit in zip(places, units, strict=True)]
        if raw:
            names = ", ".join(record.sig_name[i] for i in raw)
            warnings.warn(f"no gain in the header, so no unit for {names}", stacklevel=1)
    if record.p_signal is not None:
        values = [np.ascontiguousarray(record.p_signal[:, i]) for i in places]
    else:
        values = [np.asarray(record.e_p_signal[i]) for i in places]
    rates = [float(record.fs) * (record.samps_per_frame[i] or 1) for i in places]
    return _Rows(values, rates, units, _pauses(header))


def _check_segments(path: Path, header, parts: list) -> None:
    """Refuse segments that differ in what wfdb takes from the first one, or cannot join."""
    units: dict[str, str] = {}
    for part in parts:
        alike = header is part or header.layout == "variable" or part.sig_name == parts[0].sig_name
        for name, unit in zip(part.sig_name or [], part.units or [], strict=True):
            alike &= part.sig_len == 0 or units.setdefault(name, unit) == unit or header is part
        if part.fs != header.fs or not alike:
            raise ValueError(
                f"{path}: expected segments alike, at {header.fs:g} Hz, found {part.record_name} "
                f"at {part.fs:g} Hz with {part.sig_name} in {part.units}"
            )


def _pauses(header) -> list[Marked]:
    """Segments of a record that hold no signal."""
    if not hasattr(header, "seg_name"):
        return []
    edges = np.cumsum([0, *header.seg_len]) / header.fs
    stretches = zip(header.seg_name, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [(start, stop, "a pause") for name, start, stop in stretches if name == "~"]


# --- EDF, BDF and what else MNE reads -------------------------------------------------------------


class _Header(NamedTuple):
    """What an EDF or BDF header says, annotation channels included."""

    kind: str
    start: int  # where the records begin, in bytes
    records: int
    seconds: float  # of a record
    width: int  # bytes of a sample
    names: list[str]
    units: list[str]
    samples: list[int]  # in a record


def _edf(path: Path, picks: list[str | int]) -> _Rows:
    header = edf_header(path)
    notes = [i for i, name in enumerate(header.names) if re.match("(EDF|BDF) Annotations", name)]
    own = [i for i in range(len(header.names)) if i not in notes]
    names = [header.names[i] for i in own]
    # as MNE calls them
    unique = [f"{x}-{names[:i].count(x)}" if names.count(x) > 1 else x for i, x in enumerate(names)]
    places = _places(path, picks, names, unique)
    _check_limits(path, [own[i] for i in places], header.names)
    onsets = _onsets(path, header, notes)
    rates = [header.samples[own[i]] / header.seconds for i in places]
    samples = {header.samples[i] for i in own}
    values: list[np.ndarray] = [np.empty(0)] * len(places)
    marked: list[Marked] = []
    begins, pauses = float(onsets[0]), np.diff(onsets) - header.seconds
    pauses[pauses <= SLACK] = 0
    late = np.concatenate([[0.0], np.cumsum(pauses)])
    for n in dict.fromkeys(header.samples[own[i]] for i in places):
        rows = [k for k, i in enumerate(places) if header.samples[own[i]] == n]
        wanted = [unique[places[k]] for k in rows]
        # MNE brings channels of one file to one rate, unless it reads those of each rate alone
        alone = {} if len(samples) == 1 else {"include": [names[places[k]] for k in rows]}
        found = _mne(path, wanted, whole_clock=late[-1] > 0, **alone)
        marked += [mark for mark in found.marked if mark not in marked]
        for k, x, rate in zip(rows, found.values, found.rates, strict=True):
            if not np.isclose(rate, rates[k], rtol=1e-9):
                raise ValueError(f"{path}: expected {rates[k]:g} Hz, found {rate:g} Hz by MNE")
            values[k] = _placed(x.reshape(-1, n), np.round(late * rate).astype(int))
    stops = onsets[1:] - begins
    for i in np.flatnonzero(pauses):
        marked.append((float(stops[i] - pauses[i]), float(stops[i]), "a pause"))
    units = [header.units[own[i]] for i in places]
    units = ["V" if unit in ("uV", "µV", "mV", "\x83\xcaV") else unit for unit in units]
    return _Rows(values, rates, units, marked, begins if begins >= 1 else 0.0)


def _mne(path: Path, picks: list[str | int], whole_clock: bool = False, **options) -> _Rows:
    """Whatever MNE reads; it has made volts of all voltages.

    With `whole_clock`, annotations are read anew: MNE drops those after as many seconds as it has
    samples, where pauses lie in between.
    """
    import mne
    from mne.io.constants import FIFF

    raw = mne.io.read_raw(path, verbose="WARNING", **options)
    places = _places(path, picks, raw.ch_names)
    names = [raw.ch_names[i] for i in places]
    bad = [name for name in names if name in raw.info["bads"]]
    if bad:
        raise ValueError(
            f"{path}: expected sound channels, found {bad} marked as bad (info['bads'] of MNE): "
            "leave them out of the picks, or take the mark away"
        )
    notes = mne.read_annotations(path) if whole_clock else raw.annotations
    volts = [raw.info["chs"][i]["unit"] == FIFF.FIFF_UNIT_V for i in places]
    rate, units = float(raw.info["sfreq"]), ["V" if volt else "" for volt in volts]
    once = sorted(set(places))
    data = raw.get_data(picks=once, verbose="WARNING")
    values = [data[once.index(i)] for i in places]
    marked = _marked(notes, names, raw.first_time)
    return _Rows(values, [rate] * len(places), units, marked, float(raw.first_time))


def _marked(notes, names: list[str], begins: float) -> list[Marked]:
    """Stretches that MNE's annotations call bad, and instants at which a recording was joined."""
    marked = []
    for note in notes:
        start, text = float(note["onset"] - begins), note["description"]
        joined = re.match("boundary|new segment|edge", text, re.IGNORECASE)
        of_others = note.get("ch_names") and not set(note["ch_names"]) & set(names)
        stop = start if joined else start + float(note["duration"])
        if (joined or text.lower().startswith("bad")) and not of_others and stop > 0:
            marked.append((start, stop, f"marked {text}"))
    return list(dict.fromkeys(marked))


FIELDS = {"name": 16, "transducer": 80, "unit": 8, "low": 8, "high": 8, "digital low": 8}
FIELDS |= {"digital high": 8, "filter": 80, "samples": 8, "reserved": 32}
"""Widths of a channel's fields in the header (EDF specification, Kemp et al. 1992)."""


def _channel_fields(path: Path, n: int) -> dict[str, list[str]]:
    found = {}
    with open(path, "rb") as file:
        file.seek(256)
        for name, width in FIELDS.items():
            text = file.read(n * width).decode("latin1").ljust(n * width)
            found[name] = [text[i * width : (i + 1) * width].strip("\x00 ") for i in range(n)]
    return found


def edf_header(path: Path) -> _Header:
    """Header of an EDF or BDF file, refused where it contradicts itself or the file's size.

    MNE reads a file that was cut short, or a record that lasts 0 s, with a warning at most.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        fixed = file.read(256).decode("latin1")
    try:
        start, records = int(fixed[184:192]), int(fixed[236:244])
        seconds, n = float(fixed[244:252].replace(",", ".")), int(fixed[252:256])
        fields = _channel_fields(path, n)
        samples = list(map(int, fields["samples"]))
    except ValueError:
        raise ValueError(f"{path}: expected an EDF file, found a foreign or cut one") from None
    if start != 256 * (n + 1) or n < 1 or min(samples) < 0 or not sum(samples):
        raise ValueError(
            f"{path}: expected an EDF header of {256 * (n + 1)} bytes for {n} channels with "
            f"samples, found {start} bytes and {samples} samples in a record"
        )
    if not 0 < seconds < np.inf:
        raise ValueError(
            f"{path}: expected records that last some time, found {seconds:g} s in the header: "
            "no rate can be told"
        )
    width = 3 if fixed[0] == "\xff" else 2  # BDF has 24-bit samples
    record = sum(samples) * width
    if records == -1:  # the recorder was not stopped properly
        records = (size - start) // record
        log.warning("%s: no number of records in the header, %d by the file's size", path, records)
    expected = start + records * record
    if size < expected or size >= expected + record or records < 1:
        raise ValueError(f"{path}: expected {expected} bytes by its header, found {size}")
    return _Header(
        fixed[192:236].strip(), start, records, seconds, width, fields["name"], fields["unit"],
        samples,
    )  # fmt: skip


def _check_limits(path: Path, places: list[int], names: list[str]) -> None:
    """Refuse picked channels whose limits give no scale."""
    fields = _channel_fields(path, len(names))
    for i in places:
        texts = [fields[key][i] for key in ("low", "high", "digital low", "digital high")]
        try:
            low, high, first, last = (float(text.replace(",", ".")) for text in texts)
        except ValueError:
            low = high = first = last = np.nan
        if not (low != high and first < last and np.isfinite([low, high]).all()):
            raise ValueError(
                f"{path}: expected limits that give {names[i]} a scale, found physical "
                f"{texts[0]} to {texts[1]} {fields['unit'][i]} for digital {texts[2]} to {texts[3]}"
            )


def _onsets(path: Path, header: _Header, notes: list[int]) -> np.ndarray:
    """When each record begins, in seconds of the file's clock.

    EDF+ writes it into the first annotation channel of each record; plain EDF has no pauses.
    """
    even = np.arange(header.records) * header.seconds
    kind = header.kind[:5]
    if not notes:
        if kind in ("EDF+D", "BDF+D"):
            raise ValueError(f"{path}: expected onsets of the records of {kind}, found none")
        return even
    before = header.width * sum(header.samples[: notes[0]])
    length = header.width * header.samples[notes[0]]
    record = header.width * sum(header.samples)
    content = np.memmap(path, np.uint8, "r", header.start, (header.records, record))
    onsets = np.empty(header.records)
    for i, note in enumerate(content[:, before : before + length]):
        found = re.match(rb"[+-]\d+(\.\d*)?(?=[\x14\x15])", note.tobytes())
        if not found:
            raise ValueError(f"{path}: expected an onset in each record, found none in {i + 1}")
        onsets[i] = float(found[0])
    wrong = np.diff(onsets) - header.seconds
    back, pauses = np.flatnonzero(wrong < -SLACK), wrong > SLACK
    if len(back):
        i = back[0] + 1
        raise ValueError(
            f"{path}: expected records of {header.seconds:g} s one after the other, found record "
            f"{i + 1} at {onsets[i]:g} s, after that at {onsets[i - 1]:g} s"
        )
    if pauses.any() and kind not in ("EDF+D", "BDF+D"):
        i = np.flatnonzero(pauses)[0] + 1
        raise ValueError(
            f"{path}: expected no pause, as {kind or 'its header'} says, found record {i + 1} at "
            f"{onsets[i]:g} s, after that at {onsets[i - 1]:g} s"
        )
    drift, paused = wrong[~pauses].sum(), wrong[pauses].sum()
    if abs(drift) > MAX_DRIFT or paused > MAX_PAUSE:
        raise ValueError(
            f"{path}: expected records of {header.seconds:g} s and pauses of a day at most, found "
            f"onsets that drift by {drift:.3f} s and pause for {paused:.0f} s"
        )
    return onsets


def _placed(records: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Join records [records, samples], each so many samples late; NaN in between."""
    if not late[-1]:
        return records.reshape(-1)
    n = records.shape[1]
    out = np.full(records.size + late[-1], np.nan)
    for i, record in enumerate(records):
        out[i * n + late[i] : (i + 1) * n + late[i]] = record
    return out

"""One file of signals: a WFDB record, EDF or BDF, csv, or anything else that MNE reads.

A header is checked against its file before it is believed. Samples stand where the file's own clock
puts them; pauses, and what the file marks as bad, are NaN. Warnings of MNE and wfdb are logged.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from biox.data.conditioning import VOLTS, interpolated
from biox.data.readers import expect
from biox.data.windows import Marked, Signal

log = logging.getLogger(__name__)

SHOWN = {"ecg": "mV"}
"""Unit of voltages by modality; uV where a modality is not named."""

SLACK, MAX_DRIFT, MAX_PAUSE = 0.01, 0.05, 24 * 3600.0
"""Seconds: between the onset of an EDF+ record and the end of the one before; such differences, and
pauses, over the whole file."""

KINDS = {
    "ecg": r"\b(ecg|ekg)|^(i|ii|iii|avr|avl|avf|v[1-6]|mlii?|chest)$",
    "ppg": r"pleth|ppg|bvp",
    "emg": r"\bemg",
    "eeg": r"\beeg|^(fp|af|f|fc|ft|c|cp|t|tp|p|po|o)(\d{1,2}|z)(-.*)?$",
}
"""What channels of a modality are called."""


class Rows(NamedTuple):
    """The picked channels of a file, in order, and what holds for all of it."""

    values: list[np.ndarray]
    rates: list[float]
    units: list[str]
    marked: list[Marked] = []
    begins: float = 0.0


def read_modality(
    path: Path, modality: str, names: Sequence[str], channels: Sequence[str | int] | None = None
) -> tuple[Signal, list[Marked]]:
    """Read one modality, with what is marked: `channels` of the file, by name or number from 1.

    Without them those called `names`, else those whose names or types tell the modality, if they
    are as many. Raises what `read_file` does.
    """
    try:
        signals, marked, _ = read_file(path, {modality: list(channels or names)})
    except ValueError:
        known: list[str | int] = []
        with suppress(Exception):  # a damaged file may fail in any way; the first error says how
            known = [] if channels else known_channels(path)[modality]
        if len(known) != len(names):
            raise
        signals, marked, _ = read_file(path, {modality: known})
    return signals[modality], marked


def read_file(
    path: Path, channels: Mapping[str, Sequence[str | int]]
) -> tuple[dict[str, Signal], list[Marked], float]:
    """Read one file: a WFDB record (``.hea``), a csv or anything that MNE reads.

    A csv has a column ``time`` in seconds, evenly spaced, then one a channel: ``ECG (mV)``.

    `channels` are those of each modality, as the file names them or by their numbers in it, from 1.
    A file that is damaged or foreign, contradicts itself, lacks a channel or marks it as bad gives
    a ValueError.

    Returns
    -------
    signals : dict of str to Signal
        By modality, from the first sample on. Voltages come in mV (ECG) or uV, others as stated.
    marked : list of Marked
        Pauses, and stretches that the file marks as bad.
    begins : float
        Seconds on the file's own clock at the first sample; 0 for most files.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a recording, found nothing")
    known = {".hea": (_wfdb, "a WFDB record"), ".bdf": (_edf, "a BDF file")}
    known |= {".edf": (_edf, "an EDF file"), ".csv": (_csv, "a csv of times and channels")}
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
    messages = [str(w.message) for w in caught if not issubclass(w.category, DeprecationWarning)]
    lost: dict[str, float] = {}
    for start, stop, why in rows.marked:
        lost[why] = lost.get(why, 0.0) + stop - start
        for values, rate in zip(rows.values, rows.rates, strict=True):
            values[max(0, round(start * rate)) : max(0, round(stop * rate))] = np.nan
    messages += [f"no window touches {why} ({seconds:.2f} s)" for why, seconds in lost.items()]
    for text in dict.fromkeys(messages):
        log.warning("%s: %s", path, " ".join(text.split()))
    signals = {}
    for modality, names in channels.items():
        chosen = [picks.index(name) for name in names]
        rates, units = [rows.rates[i] for i in chosen], [rows.units[i] for i in chosen]
        rate, shown, parts = max(rates), SHOWN.get(modality, "uV"), [rows.values[i] for i in chosen]
        if min(rates) < rate:
            log.warning("%s: %s of %s Hz brought to one rate", path, modality, sorted(set(rates)))
            parts = [interpolated(x[None], r, rate)[0] for x, r in zip(parts, rates, strict=True)]
        x = np.stack([part[: min(map(len, parts))] for part in parts])
        if set(units) <= set(VOLTS):
            x *= np.array([[VOLTS[unit]] for unit in units]) / VOLTS[shown]
            units = [shown]
        unit = units[0] if len(set(units)) == 1 and units[0] else "a.u."
        signals[modality] = Signal(x, rate, unit, tuple(map(str, names)))
    return signals, rows.marked, rows.begins


def known_channels(path: Path) -> dict[str, list[str | int]]:
    """Sound channels whose names or MNE's types tell their modality, at one rate each."""
    if path.suffix.lower() == ".hea":
        part = _headers(path)[:2][-1]  # the first segment, if there are any
        names, rates, telling = part.sig_name, part.samps_per_frame, part.sig_name
    elif path.suffix.lower() in (".edf", ".bdf"):
        fields = edf_header(path)["fields"]
        names, rates, telling = fields["name"], fields["samples"], fields["name"]
    elif path.suffix.lower() == ".csv":
        names = telling = list(_table(path, rows=0)[1])
        rates = [1] * len(names)
    else:
        import mne

        raw = mne.io.read_raw(path, verbose="ERROR")
        names, rates, types = raw.ch_names, [1] * len(raw.ch_names), raw.get_channel_types()
        telling = [kind if kind in KINDS else x for kind, x in zip(types, names, strict=True)]
        for i in map(names.index, _bads(path, names, raw.info["bads"])):
            log.warning("%s: %s left out, it is marked as bad", path, names[i])
            telling[i] = ""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(telling):
        kind = next((k for k, what in KINDS.items() if re.search(what, name.lower())), None)
        if kind and rates[i] == rates[found.setdefault(kind, [i])[0]]:
            found[kind] = sorted({*found[kind], i})
    expect(len(found) > 0, path, "channels with telling names", list(names))
    alone = {name for name in names if names.count(name) == 1}
    return {k: [names[i] if names[i] in alone else i + 1 for i in x] for k, x in found.items()}


def _places(
    path: Path, picks: Sequence[str | int], names: Sequence[str], unique: Sequence[str] = ()
) -> list[int]:
    """Places of the picked channels in the file; `unique` are their names as MNE numbers them."""
    places, missing = [], []
    for pick in picks:
        text = str(pick).strip()
        where = [i for i, name in enumerate(names) if name == text]
        where = where or [i for i, name in enumerate(unique) if name == text]
        number = re.fullmatch(r"#?(\d+)", text)
        if not where and number and 1 <= int(number[1]) <= len(names):
            where = [int(number[1]) - 1]
        numbers = " or ".join(str(i + 1) for i in where)
        found = f"{len(where)}: pick one by its number in the file, {numbers}"
        expect(len(where) < 2, path, f"one channel named {text!r}", found)
        places += where
        missing += [] if where else [pick]
    expect(not missing, path, f"the channels {missing}", list(names))
    return places


# --- WFDB -----------------------------------------------------------------------------------------


def _headers(path: Path) -> list:
    """Header of a record, and of those of its segments that hold signals."""
    import wfdb

    header = wfdb.rdheader(str(path.with_suffix("")), rd_segments=True)
    return [header, *(part for part in getattr(header, "segments", []) if part is not None)]


def _wfdb(path: Path, picks: list[str | int]) -> Rows:
    """A record of one or several segments; wfdb leaves NaN where a segment lacks a signal."""
    import wfdb

    lines = [line.split() for line in path.read_text(errors="replace").splitlines()]
    first, *lines = [line for line in lines if line and not line[0].startswith("#")] or [[]]
    expect(len(first) != 2, path, "a sampling rate in the first line", "none")
    joined, marked, units = "/" in f"{first[:1]}", [], {}
    frames = any(re.match(r"\d+x", line[1]) for line in lines if len(line) > 1)
    if joined:
        header, *parts = _headers(path)
        frames = any(n > 1 for part in parts for n in part.samps_per_frame)
        for part in parts:  # wfdb takes names and units of the first for all
            same = header.layout == "variable" or part.sig_name == parts[0].sig_name
            for name, unit in zip(part.sig_name, part.units, strict=True) if part.sig_len else ():
                same &= units.setdefault(name, unit) == unit
            what = f"{part.record_name} at {part.fs:g} Hz with {part.sig_name} in {part.units}"
            expect(same and part.fs == header.fs, path, "segments alike", what)
        edges = (np.cumsum([0, *header.seg_len]) / header.fs).tolist()
        stretches = zip(header.seg_name, edges, edges[1:], strict=False)
        marked = [(start, stop, "a pause") for name, start, stop in stretches if name == "~"]
    # integers first where there is one segment: the header has checksums of them
    record = wfdb.rdrecord(str(path.with_suffix("")), smooth_frames=not frames, physical=joined)
    places = _places(path, picks, record.sig_name)
    if not joined:
        for i in places:
            x = record.e_d_signal[i] if frames else record.d_signal[:, i]
            name, stated, actual = record.sig_name[i], record.checksum[i], int(x.sum()) % 65536
            if stated and stated % 65536 != actual:
                found = f"found {actual}: the file was changed or damaged"
                expected = f"expected the checksum {stated % 65536} of the header"
                warnings.warn(f"{name}: {expected}, {found}", stacklevel=1)
            # no gain or one of 0: not calibrated; wfdb makes that 200 per mV
            if not float(re.match(r"[\d.]*", (*lines[i], "", "")[2])[0] or 0):
                record.units[i] = "a.u."
                warnings.warn(f"{name} has no gain, and so no unit", stacklevel=1)
        record.dac(expanded=frames, inplace=True)
    values = record.e_p_signal if frames else record.p_signal.T
    rates = [float(record.fs) * record.samps_per_frame[i] for i in places]
    units = [record.units[i] or "" for i in places]
    return Rows([np.array(values[i]) for i in places], rates, units, marked)


# --- csv ------------------------------------------------------------------------------------------


def _table(path: Path, rows: int | None = None) -> tuple[np.ndarray, dict[str, str], np.ndarray]:
    """Times [n], unit by channel, values [n, channels]."""
    import pandas as pd

    table = pd.read_csv(path, skipinitialspace=True, nrows=rows)
    heads = [re.fullmatch(r"\s*(.*?)\s*(?:[\[(](.*)[\])])?\s*", str(head)) for head in table]
    (first, _), *units = [(head[1], head[2] or "") for head in heads]
    if first.lower() not in ("time", "time_s", "t", "seconds"):
        raise ValueError(f"the first column is not time but {first}")
    return table.iloc[:, 0].to_numpy(float), dict(units), table.iloc[:, 1:].to_numpy(float)


def _csv(path: Path, picks: list[str | int]) -> Rows:
    times, units, values = _table(path)
    places = _places(path, picks, list(units))
    step = np.ptp(times) / (len(times) - 1)
    expected, slack = np.arange(len(times)), max(np.median(np.diff(times)), 0.01) + 1e-9
    for rate in (float(np.round(1 / step)), 1 / step):  # times are often rounded
        if np.abs(times - times[0] - expected / rate).max() <= slack:
            break
    else:
        raise ValueError("times are not evenly spaced")
    rates, found = [rate] * len(places), [list(units.values())[i] for i in places]
    begins = float(times[0]) if times[0] >= 1 else 0.0
    return Rows([values[:, i].copy() for i in places], rates, found, [], begins)


# --- EDF, BDF and what else MNE reads -------------------------------------------------------------


def _edf(path: Path, picks: list[str | int]) -> Rows:
    """Samples as they stand in the records, each channel at its own rate."""
    header = edf_header(path)
    fields, seconds, width = header["fields"], header["seconds"], header["width"]
    own = [i for i, name in enumerate(fields["name"]) if not NOTES.match(name)]
    names = [fields["name"][i] for i in own]
    unique = [f"{x}-{names[:i].count(x)}" if names.count(x) > 1 else x for i, x in enumerate(names)]
    places = _places(path, picks, names, unique)  # the second as MNE calls them
    _check_marked(path, [names[place] for place in places])
    channels = zip(fields["name"], header["content"], strict=True)
    notes = [[row.tobytes() for row in np.array(x)] for name, x in channels if NOTES.match(name)]
    onsets = _onsets(path, header, notes)
    pauses, stops = np.diff(onsets) - seconds, onsets[1:] - onsets[0]
    late = np.append(0, np.cumsum(np.where(pauses > SLACK, pauses, 0)))
    pairs = zip(pauses.tolist(), stops.tolist(), strict=True)
    marked = [(stop - pause, stop, "a pause") for pause, stop in pairs if pause > SLACK]
    marked += _marked(_annotations(notes, unique), [unique[i] for i in places], onsets[0])
    found = []
    for i in (own[place] for place in places):
        name, unit, n = (fields[key][i] for key in ("name", "unit", "samples"))
        expect(n > 0, path, f"samples of {name}", "none")
        low, high, first, last = (fields[key][i] for key in LIMITS)
        sound = low != high and first < last and np.isfinite([low, high]).all()
        limits = f"physical {low:g} to {high:g} {unit} for digital {first:g} to {last:g}"
        expect(sound, path, f"limits that give {name} a scale", limits)
        block = np.zeros((len(onsets), n, 4), np.uint8)  # integers of 32 bits, low bytes first
        block[:, :, 4 - width :] = header["content"][i].reshape(-1, n, width)
        scale = (high - low) / (last - first)
        x = block.view("<i4")[:, :, 0] * (scale / 256 ** (4 - width)) + (low - first * scale)
        starts = np.arange(len(x)) * n + np.round(late * n / seconds).astype(int)
        values = np.full(starts[-1] + n, np.nan)
        values[starts[:, None] + np.arange(n)] = x
        found.append((values, n / seconds, unit.replace("\x83\xca", "u")))  # mu in Shift JIS
    begins = float(onsets[0]) if onsets[0] >= 1 else 0.0  # below: the start's part of a second
    return Rows(*map(list, zip(*found, strict=True)), marked, begins)


def _mne(path: Path, picks: list[str | int]) -> Rows:
    """Whatever MNE reads; it has made volts of all voltages."""
    import mne
    from mne.io.constants import FIFF

    raw = mne.io.read_raw(path, verbose="WARNING")
    places = _places(path, picks, raw.ch_names)
    names = [raw.ch_names[i] for i in places]
    _check_marked(path, names, raw.info["bads"])
    rate, begins = float(raw.info["sfreq"]), float(raw.first_time)
    units = ["V" if raw.info["chs"][i]["unit"] == FIFF.FIFF_UNIT_V else "" for i in places]
    once = sorted(set(places))
    data = raw.get_data(picks=once, verbose="WARNING")
    values = [data[once.index(i)] for i in places]
    marked = _marked(raw.annotations, names, begins)
    return Rows(values, [rate] * len(places), units, marked, begins)


def _marked(notes: Iterable[Mapping], names: Sequence[str], begins: float) -> list[Marked]:
    """Stretches that annotations mark as bad, for one of these channels, and joins of files."""
    marked = {}
    for note in notes:
        start, text = float(note["onset"] - begins), note["description"]
        joined = re.match("boundary|new segment|edge", text, re.IGNORECASE)
        of_others = note.get("ch_names") and not set(note["ch_names"]) & set(names)
        stop = start if joined else start + float(note["duration"])
        if (joined or text.lower().startswith("bad")) and not of_others and stop > 0:
            marked[start, stop, f"marked {text}"] = True
    return list(marked)


def _check_marked(path: Path, picked: Sequence[str], bads: Sequence[str] = ()) -> None:
    bad = _bads(path, picked, bads)
    expect(not bad, path, "sound channels", f"{bad} marked as bad")


def _bads(path: Path, names: Sequence[str], bads: Sequence[str] = ()) -> list[str]:
    """Channels marked as bad by the file (MNE's info['bads']) or by the BIDS table beside it."""
    table = path.with_name(path.stem.rpartition("_")[0] + "_channels.tsv")
    if table.is_file():
        import pandas as pd

        marks = pd.read_csv(table, sep="\t", dtype=str)
        if {"name", "status"} <= set(marks):
            bad = marks["status"].str.strip().str.lower() == "bad"
            bads = [*bads, *marks["name"][bad]]
    return [name for name in names if name in bads]


def _number(text: str) -> float:
    return float(text.replace(",", ".") or "nan")


NOTES = re.compile("(EDF|BDF) Annotations")
TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+\.?\d*))?\x14([^\x00]*)")
"""Onset, duration and texts in a channel of annotations (EDF+ specification, Kemp 2003)."""

LIMITS = ("low", "high", "digital low", "digital high")
FIELDS = {"name": (16, str), "transducer": (80, str), "unit": (8, str)}
FIELDS |= dict.fromkeys(LIMITS, (8, _number))
FIELDS |= {"filter": (80, str), "samples": (8, int), "reserved": (32, str)}
"""Width and type of a channel's fields in the header (EDF specification, Kemp et al. 1992)."""


def edf_header(path: Path) -> dict:
    """Header of an EDF or BDF file, refused where it contradicts itself or the file's size.

    ``fields`` are those of `FIELDS`, ``content`` the bytes [records, bytes], of each channel. MNE
    reads a file that was cut short, or whose records last 0 s, with a warning at most.
    """
    size, fields = path.stat().st_size, {}
    with open(path, "rb") as file:
        fixed = file.read(256).decode("latin1")
        try:
            start, records, n = int(fixed[184:192]), int(fixed[236:244]), int(fixed[252:256])
            seconds = _number(fixed[244:252].strip())
            for name, (width, kind) in FIELDS.items():
                texts = [file.read(width).decode("latin1").strip("\x00 ") for _ in range(n)]
                fields[name] = list(map(kind, texts))
        except ValueError:
            raise ValueError(f"{path}: expected an EDF file, found a foreign or cut one") from None
    samples, width = fields["samples"], 3 if fixed[:1] == "\xff" else 2  # BDF has 24-bit samples
    expect(start == 256 * (n + 1), path, f"{256 * (n + 1)} bytes of header", start)
    timed = min(samples, default=-1) >= 0 and 0 < seconds < np.inf
    found = f"{seconds:g} s with {samples} samples: no rate"
    expect(timed, path, "records that last some time", found)
    ends = np.cumsum(samples) * width
    if records == -1:  # the recorder was not stopped properly
        records = (size - start) // int(ends[-1])
        warnings.warn(f"no number of records in the header, {records} by its size", stacklevel=1)
    expected = start + records * ends[-1]
    whole = records > 0 and expected <= size < expected + ends[-1]
    expect(whole, path, f"{expected} bytes by its header", size)
    content = np.memmap(path, np.uint8, "r", start, (records, ends[-1]))
    return {"kind": fixed[192:197].strip(), "width": width, "seconds": seconds, "fields": fields,
            "content": np.split(content, ends[:-1], axis=1)}  # fmt: skip


def _annotations(notes: list[list[bytes]], names: Sequence[str]) -> Iterator[dict]:
    """Annotations of EDF+, as MNE has them: ``text@@name`` is about one channel."""
    for tal in (tal for channel in notes for record in channel for tal in TAL.finditer(record)):
        for text in tal[3].decode(errors="replace").split("\x14"):
            text, _, name = text.partition("@@")
            yield {"onset": float(tal[1]), "duration": float(tal[2] or 0), "description": text,
                   "ch_names": [name] if name in names else []}  # fmt: skip


def _onsets(path: Path, header: dict, notes: list[list[bytes]]) -> np.ndarray:
    """When each record begins, in seconds of the file's clock.

    EDF+ says so in the first annotation channel of each record; plain EDF has no pauses.
    """
    seconds, n, paused = header["seconds"], len(header["content"][0]), header["kind"][-2:] == "+D"
    if not notes and not paused:
        return np.arange(n) * seconds
    tals = [TAL.match(record) for record in (notes or [[b""] * n])[0]]
    onsets = np.array([float(tal[1]) if tal else np.nan for tal in tals])
    wrong = np.diff(onsets) - seconds
    drift, pause = wrong[np.abs(wrong) <= SLACK].sum(), wrong[wrong > SLACK].sum()
    bad = ~(wrong >= -SLACK) | ((wrong > SLACK) & (not paused))
    i = int(np.argmax(bad)) + 1 if bad.any() else n - 1
    sound = not bad.any() and np.isfinite(onsets).all()
    expect(
        sound and abs(drift) <= MAX_DRIFT and pause <= MAX_PAUSE,
        path,
        f"records of {seconds:g} s one after the other, "
        + ("or pauses of a day at most" if paused else "as the header says"),
        f"record {i} at {onsets[i - 1]:g} s, the next at {onsets[i]:g} s, {n} records until "
        f"{onsets[-1] + seconds:g} s",
    )
    return onsets

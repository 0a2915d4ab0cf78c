"""Odd files as people really have them, written small: EDF, BDF, WFDB, FIF, and tables of labels.

After threads of mne-python, wfdb-python, pyedflib, EEGLAB, moabb, PyHealth and others; the files,
their signals and their words are our own.
"""

import numpy as np
from raw_files import write_fog

EEG_LIMIT, ECG_LIMIT = 3276.8, 3.2768


def brain(seconds, rate, seed=0):
    """EEG in uV: 10 Hz and noise, 20 uV strong."""
    rng, t = np.random.default_rng(seed), clock(seconds, rate)
    return 20 * np.sin(2 * np.pi * 10 * t + seed) + 10 * rng.standard_normal(len(t))


def clock(seconds, rate):
    return np.arange(round(seconds * rate)) / rate


def labels(folder, *rows):
    text = "\n".join(["file,subject,start_s,stop_s,label", *rows]) + "\n"
    (folder / "labels.csv").write_text(text, newline="")


def edf(path, channels, onsets=None, notes=(), kind="", **header):
    """An EDF or BDF file; `channels`: name, unit, values, rate, and fields of theirs to replace.

    With `onsets` it is EDF+, with a record at each; `notes` are (onset, duration, text). `header`
    replaces what the file says of ``duration``, ``records``, ``size`` (of the header).
    """
    bdf = path.suffix == ".bdf"
    width, top = (3, 2**23) if bdf else (2, 2**15)
    plain = {"name": "EDF Annotations", "transducer": "", "unit": "", "low": -1, "high": 1}
    plain |= {"digital low": -top, "digital high": top - 1, "filter": "", "samples": 60}
    plain |= {"reserved": ""}
    widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    n = min(round(len(x) / rate) for _, _, x, rate, *_ in channels)
    rows, fields = [], []
    for name, unit, x, rate, *changed in channels:
        limit = {"uV": EEG_LIMIT, "mV": ECG_LIMIT}.get(unit, 10.0) * (100 if bdf else 1)
        own = {"name": name, "unit": unit, "low": -limit, "high": limit, "samples": round(rate)}
        fields.append(plain | own | dict(*changed))
        low, high = fields[-1].pop("scale", (-limit, limit))
        digital = np.round((np.asarray(x) - low) / (high - low) * (2 * top - 1) - top)
        digital = np.clip(digital, -top, top - 1).astype("<i4").reshape(-1, 1).view("u1")[:, :width]
        rows.append(digital[: n * own["samples"]].reshape(n, -1))
    if onsets is not None:
        fields.append(plain)
        kind, tals = kind or "EDF+D", b""
        for i, onset in enumerate(onsets):
            text = f"+{onset:g}\x14\x14\x00"
            for at, lasts, what in notes if i == 0 else ():
                text += f"+{at:g}\x15{lasts:g}\x14{what}\x14\x00"
            tals += text.encode().ljust(120, b"\x00")
        rows.append(np.frombuffer(tals, "u1").reshape(n, -1))
    head = "\xffBIOSEMI" if bdf else "0".ljust(8)
    head += "X X X X".ljust(80) + "Startdate 01-JAN-2020 X X X".ljust(80) + "01.01.2010.00.00"
    head += str(header.get("size", 256 * (len(fields) + 1))).ljust(8) + kind.ljust(44)
    head += str(header.get("records", n)).ljust(8) + str(header.get("duration", 1)).ljust(8)
    head += str(len(fields)).ljust(4)
    for key, wide in zip(plain, widths, strict=True):
        head += "".join(str(field[key])[:wide].ljust(wide) for field in fields)
    path.write_bytes(head.encode("latin1") + np.concatenate(rows, axis=1).tobytes())
    return path


def wfdb(folder, name, signals, rate, units, names=("II", "PLETH"), gain=1000.0, frames=None):
    """A WFDB record of [samples] arrays, or of as many `frames` each as stated."""
    import wfdb as library

    n, x = len(signals), {"e_p_signal": signals, "samps_per_frame": frames}
    if not frames:
        x = {"p_signal": np.stack(signals, axis=1)}
    folder.mkdir(parents=True, exist_ok=True)
    library.wrsamp(
        name, rate, units, list(names[:n]), write_dir=str(folder),
        fmt=["16"] * n, adc_gain=[gain] * n, baseline=[0] * n, **x,
    )  # fmt: skip
    return folder / f"{name}.hea"


def fif(path, channels, rate, bads=(), notes=(), first=0):
    """A FIF file; `channels`: name, type, values in volts; `notes`: (onset, duration, text)."""
    import mne

    names, kinds, values = zip(*channels, strict=True)
    info = mne.create_info(list(names), rate, list(kinds))
    info["bads"] = list(bads)
    raw = mne.io.RawArray(np.stack(values), info, first_samp=first, verbose="ERROR")
    if notes:
        raw.set_annotations(mne.Annotations(*map(list, zip(*notes, strict=True))))
    raw.save(path, overwrite=True, verbose="ERROR")
    return path


def fog(folder, step=1 / 500, lost=None):
    """20 s of FOG with a clock in the second column; `lost` seconds are missing."""
    t = clock(20, 500)
    table = np.random.default_rng(0).normal(scale=20, size=(len(t), 61))
    table[:, 0], table[:, 1], table[:, 60] = np.arange(len(t)), np.arange(len(t)) * step, t >= 0.5
    table[t.searchsorted(10.0) : t.searchsorted(10.01), 4] = 500  # a mark at 10 s
    if lost:
        table = table[(t < lost[0]) | (t >= lost[1])]
    return write_fog(folder, table=table)

"""Odd files as people really have them, written small: EDF, BDF, WFDB, FIF, and tables of labels.

After threads of mne-python, wfdb-python, pyedflib, EEGLAB, moabb, PyHealth and others; the files,
their signals and their words are our own.
"""

import numpy as np

EEG_LIMIT, ECG_LIMIT = 3276.8, 3.2768


def beats(t, bpm=72.0):
    """ECG in mV: a narrow wave every 60 / bpm seconds, and noise."""
    phase = (np.asarray(t) * bpm / 60) % 1.0 - 0.5
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(t))
    return np.exp(-((phase * 60 / bpm / 0.015) ** 2)) + noise


def brain(t, seed=0):
    """EEG in uV: 10 Hz and noise, 20 uV strong."""
    rng = np.random.default_rng(seed)
    return 20 * np.sin(2 * np.pi * 10 * t + seed) + 10 * rng.standard_normal(len(t))


def clock(seconds, rate):
    return np.arange(round(seconds * rate)) / rate


def labels(folder, *rows, header="file,subject,start_s,stop_s,label", mark="\n"):
    text = mark.join([header, *rows]) + mark
    (folder / "labels.csv").write_text(text, newline="")


def edf(path, channels, seconds=1.0, onsets=None, notes=(), bdf=False, kind=None, **header):
    """An EDF or BDF file; `channels`: name, unit, values, rate, and fields of theirs to replace.

    With `onsets` it is EDF+, with a record at each; `notes` are (onset, duration, text). `header`
    replaces what the file says of ``duration``, ``records``, ``size`` (of the header).
    """
    width, top = (3, 2**23) if bdf else (2, 2**15)
    n = min(round(len(x) / rate / seconds) for _, _, x, rate, *_ in channels)
    rows, per_record = [], []
    for _, unit, x, rate, *changed in channels:
        limit = {"uV": EEG_LIMIT, "mV": ECG_LIMIT}.get(unit, 10.0) * (100 if bdf else 1)
        low, high = (changed[0] if changed else {}).get("scale", (-limit, limit))
        digital = np.round((np.asarray(x) - low) / (high - low) * (2 * top - 1) - top)
        digital = np.clip(digital, -top, top - 1).astype("<i4").reshape(-1, 1).view("u1")[:, :width]
        per_record.append(round(rate * seconds))
        rows.append(digital[: n * per_record[-1]].reshape(n, -1))
    said = {"transducer": "", "filter": "", "reserved": "", "digital low": -top}
    said |= {"digital high": top - 1}
    fields = []
    for (name, unit, _, _, *changed), samples in zip(channels, per_record, strict=True):
        limit = {"uV": EEG_LIMIT, "mV": ECG_LIMIT}.get(unit, 10.0) * (100 if bdf else 1)
        own = {"name": name, "unit": unit, "low": -limit, "high": limit, "samples": samples}
        fields.append(said | own | (changed[0] if changed else {}))
    if onsets is not None:
        tals = []
        for i, onset in enumerate(onsets):
            text = f"+{onset:g}\x14\x14\x00"
            for at, lasts, what in notes if i == 0 else ():
                text += f"+{at:g}\x15{lasts:g}\x14{what}\x14\x00"
            tals.append(text.encode().ljust(120 // width * width, b"\x00"))
        rows.append(np.frombuffer(b"".join(tals), "u1").reshape(n, -1))
        own = {"name": f"{'BDF' if bdf else 'EDF'} Annotations", "unit": "", "low": -1, "high": 1}
        fields.append(said | own | {"samples": 120 // width})
        kind = kind or ("BDF+D" if bdf else "EDF+D")
    widths = {"name": 16, "transducer": 80, "unit": 8, "low": 8, "high": 8, "digital low": 8}
    widths |= {"digital high": 8, "filter": 80, "samples": 8, "reserved": 32}
    count = len(fields)
    head = "\xffBIOSEMI" if bdf else "0".ljust(8)
    head += "X X X X".ljust(80) + "Startdate 01-JAN-2020 X X X".ljust(80) + "01.01.2010.00.00"
    head += str(header.get("size", 256 * (count + 1))).ljust(8) + (kind or "").ljust(44)
    head += str(header.get("records", n)).ljust(8) + str(header.get("duration", seconds)).ljust(8)
    head += str(count).ljust(4)
    head += "".join(str(f[key])[:w].ljust(w) for key, w in widths.items() for f in fields)
    path.write_bytes(head.encode("latin1") + np.concatenate(rows, axis=1).tobytes())
    return path


def wfdb(folder, name, signals, rate, units, **options):
    """A WFDB record of [samples] arrays, or of frames where `samps_per_frame` says so."""
    import wfdb as library

    many = "samps_per_frame" in options
    x = {"e_p_signal": signals} if many else {"p_signal": np.stack(signals, axis=1)}
    n = len(signals)
    library.wrsamp(
        name, rate, units, options.pop("names", ["II", "PLETH"][:n]), write_dir=str(folder),
        fmt=["16"] * n, adc_gain=[1000.0] * n, baseline=[0] * n, **x, **options,
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


def fog(path, seconds=20, step=1 / 500, lost=None, label=0.5):
    """A task of FOG with a clock in the second column; `lost` seconds are missing."""
    t = clock(seconds, 500)
    table = np.random.default_rng(0).normal(scale=20, size=(len(t), 61))
    table[:, 0], table[:, 1], table[:, 60] = np.arange(len(t)), np.arange(len(t)) * step, t >= label
    table[t.searchsorted(10.0) : t.searchsorted(10.01), 4] = 500  # a mark at 10 s
    if lost:
        table = table[(t < lost[0]) | (t >= lost[1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, table, delimiter=",", fmt="%.7g")
    return path


def bidmc(folder, number, patient, rates, seconds=60, drop=None):
    """A record of BIDMC's CSV form with the monitor's heart rate each second."""
    import pandas as pd

    t = np.round(clock(seconds, 125), 3)
    table = pd.DataFrame({"Time [s]": t, " PLETH": np.sin(10 * t), " II": beats(t, 100)})
    table = table if drop is None else table[(t < drop[0]) | (t >= drop[1])]
    table.to_csv(folder / f"bidmc_{number:02d}_Signals.csv", index=False)
    monitor = pd.DataFrame({"Time [s]": np.arange(seconds), " HR": np.resize(rates, seconds)})
    monitor.to_csv(folder / f"bidmc_{number:02d}_Numerics.csv", index=False)
    (folder / f"bidmc_{number:02d}_Fix.txt").write_text(f"MIMIC II matched wdb ID: {patient}\n")

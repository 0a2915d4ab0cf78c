"""Command line: ``python -m biox data check | sweep | pack | predict | export``."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from types import ModuleType

import numpy as np

from biox import sweep

PIECE = 10.0
"""Length in seconds of the pieces that are judged sound or not."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m biox")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="look at recordings before anything runs on them")
    tasks = data.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("check", help="read all recordings; say what is missing or damaged")
    task.add_argument("reader", help="a reader, or a data set of params.yaml", metavar="READER")
    task.add_argument("folder", help="where the files are", metavar="FOLDER")
    task = commands.add_parser("pack", help="put a trained bridge into a folder of its own")
    task.add_argument("direction", help="of params.yaml", metavar="DIRECTION")
    task.add_argument("folder", help="to write", metavar="FOLDER")
    task.add_argument("--seed", type=int, default=0)
    task = commands.add_parser("predict", help="class probabilities along recordings")
    task.add_argument("recording", nargs="+", help="EDF, BDF, FIF, WFDB or csv", metavar="FILE")
    task.add_argument("--bridge", required=True, help="folder of `pack`", metavar="FOLDER")
    task.add_argument("--out", default=".", help="where to write (default: here)", metavar="FOLDER")
    task.add_argument("--channels", nargs="+", help="by name or number", metavar="NAME")
    task.add_argument("--step", type=float, help="seconds between windows", metavar="SECONDS")
    task.add_argument("--per-window", action="store_true", help="condition each window by itself")
    task = commands.add_parser("export", help="write a bridge as one ONNX graph")
    task.add_argument("bridge", help="folder of `pack`", metavar="FOLDER")
    task.add_argument("file", help="to write", metavar="FILE.onnx")
    add = commands.add_parser("sweep", help="run a notebook for a grid of settings").add_argument
    of_grid = "rank=4,8,16, seed=0..4, direction=all (or wesad-*), or a YAML file"
    add("notebook", help="a template, such as notebooks/06_bridge.ipynb")
    add("--grid", nargs="+", required=True, metavar="NAME=VALUES", help=of_grid)
    add("--name", help="folder in data/sweep/cells; default: the notebook's name")
    add("--retry", action="store_true", help="also run the cells that failed")
    add("--cluster", choices=["local", "slurm"], help="side by side, by submitit")
    add("--workers", type=int, default=1, help="jobs at the same time (local)")
    add("--max-parallel", type=int, default=20, dest="array_parallelism", help="... (SLURM)")
    add("--bundle", type=int, help="cells of one job")
    add("--threads", type=int, default=1, help="of one job")
    add("--gpus", type=int, default=0, help="of one job; with 0, local jobs see none")
    add("--timeout-min", type=int, default=1440, help="of one job")
    add("--partition", help="of SLURM")
    add("--options", nargs="+", default=[], metavar="account=NAME", help="of sbatch")
    parsed = parser.parse_args(arguments)
    if parsed.command == "sweep":
        return sweep.command(parsed)
    if parsed.command in ("pack", "predict", "export"):
        from biox import predict

        return predict.main(parsed)
    return check(parsed.reader, parsed.folder)


def check(name: str, folder: str) -> int:
    """Read every subject as a run would, and print a row for each recording. Nothing is written.

    `name` is a data set of params.yaml, which may name its reader, channels and classes; or a
    reader: ``recordings`` alone takes the channels whose names or types say what they are.
    Returned is 0 if every expected subject is there and sound, else 1. Those are expected that the
    data set is known to have or else, that the splits in params.yaml name.
    """
    import pandas as pd
    from tqdm import tqdm

    from biox.config import load_settings
    from biox.data.readers import natural, reader_named
    from biox.notebook import project_root

    try:
        dataset = load_settings(project_root() / "params.yaml").datasets.get(name)
    except FileNotFoundError:  # no settings here
        dataset = None
    try:
        reader = reader_named((dataset and dataset.reader) or name)
        options = dataset.reader_options() if dataset else {}
        present = reader.subjects(folder)
        if not (reader.CLASSES or options):
            options = {"channels": None, "classes": reader.labels(folder)}
    except (OSError, ValueError) as error:
        print(error)
        return 1
    splits = dataset.splits if dataset else {}
    expected = reader.ABOUT.subjects or sum(map(list, splits.values()), []) or present
    alike = {name.strip().casefold(): name for name in present}  # as splits find subjects
    expected = [alike.get(name.strip().casefold(), name) for name in expected]
    rows: list[dict] = []
    seen: dict[bytes, str] = {}
    for subject in tqdm(sorted({*expected, *present}, key=natural), disable=None):
        if subject in present:
            rows += _look(reader, folder, subject, options, seen)
        else:
            rows.append({"subject": subject, "verdict": "missing", "note": "no files"})
    print(pd.DataFrame(rows).fillna("").to_string(index=False))
    doubtful = {row["subject"] for row in rows if row["verdict"] != "ok"}
    sound = {row["subject"] for row in rows} - doubtful
    hours = sum(row.get("minutes", 0) for row in rows if row["verdict"] != "damaged") / 60
    print(f"{len(sound)} of {len(sound | doubtful)} subjects sound, {hours:.1f} hours of signal")
    if set(expected) <= sound:
        return 0
    about = reader.ABOUT
    print(f"Needed: {about.files} of '{about.title}' ({about.database} {about.url})")
    print(f"Licence: {about.licence}. Cite: {about.citation}")
    return 1


def _look(
    reader: ModuleType, folder: str, subject: str, options: Mapping, seen: dict[bytes, str]
) -> list[dict]:
    """Rows of the table: one for each recording of a subject, or why it cannot be read."""
    rows = []
    try:
        for recording in reader.read(folder, subject, **options):
            row = {"subject": subject} | _row(recording, options.get("classes", reader.CLASSES))
            rows.append(row)
            copies = _copies(recording, seen)
            if copies and row["verdict"] == "ok":
                row |= {"verdict": "copy", "note": f"same samples as {', '.join(copies)}"}
    except Exception as error:  # a check must survive whatever a damaged file does
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        verdict = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        note = kind + " ".join(str(error).split())
        rows.append({"subject": subject, "verdict": verdict, "note": note})
    return rows


def _row(recording, classes) -> dict:
    """What a recording is and holds, and whether a run should use it.

    ``implausible``: refused where a model reads volts; ``doubtful``: used, with a warning.
    """
    from biox.data.quality import amplitude, bad_windows, beats_per_minute, checked, implausible

    verdict, notes = "ok", []
    signals = recording.aligned(recording.signals)
    sizes, beats = [], []
    for name, signal in signals.items():
        size = amplitude(signal)[0]
        ends = dict.fromkeys(f"{x:.3g}" for x in (size.min(), size.max()))
        sizes.append(f"{name} {' to '.join(ends)} {signal.unit}")
        if name in ("ecg", "ppg"):
            beats.append(f"{name} {beats_per_minute(signal, name):.0f}")
        try:
            if checked(signal, name, recording.name, absolute=name == "eeg") is not signal:
                level = np.abs(amplitude(signal)[2]).max()
                notes.append(f"{name} has a level of up to {level:.4g} {signal.unit}, taken off")
        except ValueError as error:
            verdict, notes = "implausible", [*notes, str(error)]
        else:
            if text := implausible(signal, name):
                verdict, notes = ("doubtful" if verdict == "ok" else verdict), [*notes, text]
    piece = min(PIECE, recording.seconds)
    starts = np.arange(int(recording.seconds / piece)) * piece
    reasons = Counter(bad_windows(signals, starts, piece, recording.marked))
    if not reasons.pop("", 0):
        notes.insert(0, f"{recording.name}: expected sound signals, found none ({list(reasons)})")
        verdict = "damaged"
    found = Counter(recording.label(t, t + 1.0) for t in np.arange(int(recording.seconds)))
    notes += [f"{n * piece / 60:.1f} min {reason}" for reason, n in reasons.most_common(3)]
    pauses = [b - a for a, b, why in recording.marked if why in ("a pause", "lost rows")]
    marked = sum(b - a for a, b, _ in recording.marked) - sum(pauses)
    return {
        "verdict": verdict,
        "minutes": round(recording.seconds / 60, 1),
        "rates": ", ".join(f"{name} {signal.rate:g} Hz" for name, signal in signals.items()),
        "minutes of a class": ", ".join(
            f"{name} {found[i] / 60:.1f}" for i, name in enumerate(classes) if found[i]
        ),
        "recording": recording.name,
        "gaps": f"{len(pauses)}, {sum(pauses):.1f} s" if pauses else "",
        "marked": f"{marked:.1f} s" if recording.marked and marked else "",
        "amplitude": ", ".join(sizes),
        "beats/min": ", ".join(beats),
        "note": ", ".join(notes),
    }


def _copies(recording, seen: dict[bytes, str]) -> list[str]:
    """Other recordings seen before that hold a piece of the same samples."""
    where, found = f"{recording.name} of {recording.subject}", set()
    signal = next(iter(recording.signals.values()))
    n = round(PIECE * signal.rate)
    for first in range(0, signal.values.shape[1] - n + 1, n):
        piece = np.ascontiguousarray(signal.values[:, first : first + n])
        if np.isfinite(piece).all() and (piece.std(axis=1) > 0).all():
            other = seen.setdefault(blake2b(piece, digest_size=16).digest(), where)
            found |= {other} - {where}
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())

"""Command line: ``python -m biox data check READER FOLDER``."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from types import ModuleType

import numpy as np

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
    parsed = parser.parse_args(arguments)
    return check(parsed.reader, parsed.folder)


def check(name: str, folder: str) -> int:
    """Read every subject as a run would, and print what is there. Nothing is written.

    Parameters
    ----------
    name : str
        A data set of params.yaml, which may name its reader, channels and classes; or a reader.
    folder : str

    Returns
    -------
    int
        0 if every expected subject is there and sound, else 1. Those are expected that the data set
        is known to have or else, that the splits in params.yaml name.
    """
    import pandas as pd
    from tqdm import tqdm

    from biox.data.readers import natural, reader_named

    dataset = _dataset(name)
    try:
        reader = reader_named((dataset and dataset.reader) or name)
        options = dataset.reader_options() if dataset else {}
        if not (reader.CLASSES or options):
            raise ValueError(f"{name}: expected a data set of params.yaml with picks and classes")
        present = reader.subjects(folder)
    except (OSError, ValueError) as error:
        print(error)
        return 1
    splits = dataset.splits if dataset else {}
    expected = reader.ABOUT.subjects or sum(map(list, splits.values()), []) or present
    rows = [
        {"subject": subject} | _look(reader, folder, subject, options)
        if subject in present
        else {"subject": subject, "status": "missing", "note": "no files"}
        for subject in tqdm(sorted({*expected, *present}, key=natural), disable=None)
    ]
    print(pd.DataFrame(rows).fillna("").to_string(index=False))
    sound = {row["subject"] for row in rows if row["status"] == "ok"}
    hours = sum(row.get("minutes", 0) for row in rows) / 60
    print(f"{len(sound)} of {len(rows)} subjects sound, {hours:.1f} hours of signal")
    if set(expected) <= sound:
        return 0
    about = reader.ABOUT
    print(f"Needed: {about.files} of '{about.title}' ({about.database} {about.url})")
    print(f"Licence: {about.licence}. Cite: {about.citation}")
    return 1


def _dataset(name: str):
    """A data set of params.yaml, if there are settings here and it is among them."""
    from biox.config import load_settings
    from biox.notebook import project_root

    try:
        return load_settings(project_root() / "params.yaml").datasets.get(name)
    except FileNotFoundError:
        return None


def _look(reader: ModuleType, folder: str, subject: str, options: Mapping) -> dict:
    """One row of the table: status, minutes, rates, minutes of each class, and what is wrong."""
    minutes, rates, labels, unusable = 0.0, {}, Counter(), Counter()
    classes = options.get("classes", reader.CLASSES)
    try:
        for recording in reader.read(folder, subject, **options):
            minutes += recording.seconds / 60
            rates |= {name: f"{name} {x.rate:g} Hz" for name, x in recording.signals.items()}
            found = Counter(recording.label(t, t + 1.0) for t in np.arange(int(recording.seconds)))
            labels.update({name: found[i] / 60 for i, name in enumerate(classes) if found[i]})
            unusable.update(_unusable(recording))
    except Exception as error:  # a check must survive whatever a damaged file does
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        status = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        return {"status": status, "note": kind + " ".join(str(error).split())}
    note = ", ".join(f"{n:.1f} min {reason}" for reason, n in unusable.most_common(3))
    return {
        "status": "ok",
        "minutes": round(minutes, 1),
        "rates": ", ".join(rates.values()),
        "minutes of a class": ", ".join(f"{name} {n:.1f}" for name, n in labels.items()),
        "note": note,
    }


def _unusable(recording) -> dict[str, float]:
    """Minutes by reason; raises ValueError where nothing would be left, or lengths differ."""
    from biox.data.windows import bad_windows

    signals = recording.aligned(recording.signals)
    piece = min(PIECE, recording.seconds)
    starts = np.arange(int(recording.seconds / piece)) * piece
    reasons = Counter(reason for reason in bad_windows(signals, starts, piece) if reason)
    if sum(reasons.values()) == len(starts):
        raise ValueError(f"{recording.name}: expected sound signals, found none ({list(reasons)})")
    return {reason: n * piece / 60 for reason, n in reasons.items()}


if __name__ == "__main__":
    sys.exit(main())

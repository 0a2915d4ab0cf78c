"""``python -m biox data check DATASET DIR``: what is there, what is missing, what is damaged."""

import argparse
import json
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from biox.config import Dataset
    from biox.data.check import Report, SubjectReport


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``data check`` to the command line; the parsed arguments' ``run`` does it."""
    data = subparsers.add_parser("data", help="look at recordings before anything runs on them")
    tasks = data.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("check", help="read a whole data set and tell what is wrong with it")
    task.add_argument(
        "dataset",
        metavar="DATASET",
        help="wesad, fog, isruc, dreamer, bidmc, eegmat, or a dataset of params.yaml",
    )
    task.add_argument("folder", metavar="DIR", help="where its files are")
    task.set_defaults(run=lambda arguments: run_check(arguments.dataset, arguments.folder))


def run_check(dataset: str, folder: str) -> int:
    """Check a data set and print what was found.

    Returns
    -------
    int
        0 if every expected subject is there and sound, else 1.
    """
    from biox.data import reader_named
    from biox.data.check import check

    try:
        choice = _choice(dataset)
        name = choice.reader or dataset if choice else dataset
        reader = reader_named(name)
        if not choice and not reader.CLASSES:
            raise ValueError(
                f"{dataset}: expected the name of a dataset of params.yaml with reader: {name}, "
                "picks and classes, found none"
            )
    except ValueError as error:
        print(error)
        return 1
    known = [subject for names in choice.splits.values() for subject in names] if choice else []
    options = choice.reader_options() if choice else {}
    print(f"Reading {reader.ABOUT.title} in {folder}", flush=True)
    report = check(reader, folder, reader.PUBLISHED or known, options)
    print("\n".join(lines(report, reader)))
    fragment = paper_settings(name, folder)
    if fragment:
        print("\n".join(_paper(report, name, fragment)))
    return 0 if report.fine else 1


def lines(report: "Report", reader: ModuleType) -> list[str]:
    """Lay out a report: a line for each subject, a summary, where to download what is missing."""
    if report.problem:
        said = [report.problem]
    else:
        width = max(len(found.subject) for found in report.subjects)
        said = [f"  {found.subject:{width}}  {_line(found)}" for found in report.subjects]
    total = len({*report.expected, *(found.subject for found in report.subjects)})
    said.append(
        f"{len(report.usable)} of {total} subjects usable, {report.hours:.1f} hours of signal, "
        f"{report.n_bytes / 1e9:.2f} GB on disk"
    )
    if not report.fine:
        about = reader.ABOUT
        where = f"{about.database}, {about.url}" if about.url else about.database
        said.append(f"Needed: {about.files} of '{about.title}' ({where})")
        said.append(f"Licence: {about.licence}. Cite: {about.citation}")
    return said


def _line(found: "SubjectReport") -> str:
    if found.sentence:
        return f"{found.status}: {found.sentence}"
    rates = ", ".join(
        f"{modality} {'/'.join(f'{rate:g}' for rate in sorted(rates))} Hz"
        for modality, rates in found.rates.items()
    )
    labels = ", ".join(f"{name} {minutes:.1f}" for name, minutes in found.labels.items())
    said = f"{found.status}  {found.minutes:.1f} min  {rates}  {labels or 'no label'}"
    bad = sum(found.unusable.values())
    if bad:
        worst = max(found.unusable, key=found.unusable.get)
        said += f"  ({100 * bad / found.minutes:.0f} % unusable, mostly {worst})"
    return said


def _choice(dataset: str) -> "Dataset | None":
    """A dataset of params.yaml, if there are settings here and it is among them."""
    from biox.config import load_settings
    from biox.files import project_root

    try:
        settings = load_settings(project_root() / "params.yaml")
    except FileNotFoundError:
        return None
    return (settings.datasets | settings.real_datasets).get(dataset)


def paper_settings(name: str, folder: Path | str | None = None) -> str | None:
    """Return the values of params.yaml that the paper used for a data set, as YAML text.

    Parameters
    ----------
    name : str
    folder : path, optional
        Put in as the folder of the recordings.

    Returns
    -------
    str or None
        None where the paper did not use the data set.
    """
    source = files("biox.data").joinpath("paper_settings", f"{name}.yaml")
    if not source.is_file():
        return None
    text = source.read_text(encoding="utf-8")
    if folder is not None:
        text = text.replace(f"folder: recordings/{name}", f"folder: {json.dumps(str(folder))}")
    return text


def _paper(report: "Report", name: str, fragment: str) -> list[str]:
    splits = yaml.safe_load(fragment)["datasets"][name]["splits"]
    needed = [subject for names in splits.values() for subject in names]
    lacking = [subject for subject in needed if subject not in report.usable]
    verdict = f"not usable {', '.join(lacking)}" if lacking else "all usable"
    return [
        f"Subjects of the paper's setting ({len(needed)}): {verdict}. Its values of params.yaml:",
        "",
        fragment.rstrip(),
    ]

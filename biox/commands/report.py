"""``python -m biox report``: executed notebooks as linked HTML pages."""

import argparse
import sys


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``report [--executed DIR] [--out DIR]``."""
    report = subparsers.add_parser("report", help="executed notebooks as linked HTML pages")
    report.add_argument("--executed", metavar="DIR", help="default: notebooks/executed")
    report.add_argument("--out", metavar="DIR", help="default: site")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from biox.files import project_root
    from biox.report.site import build

    try:
        root = None if arguments.executed and arguments.out else project_root()
        executed = arguments.executed or root / "notebooks" / "executed"
        out = arguments.out or root / "site"
        paths = build(executed, out)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(paths) - 1} pages; open {Path(paths[0])}")
    return 0

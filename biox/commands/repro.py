"""``python -m biox repro``: `dvc repro` with stages side by side."""

import argparse
import subprocess
import sys


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``repro [--jobs N] [STAGE ...]``."""
    repro = subparsers.add_parser("repro", help="dvc repro, with stages side by side")
    how_many = "stages at a time; default: one more than cores, as stages wait at times"
    repro.add_argument("--jobs", metavar="N", type=int, help=how_many)
    repro.add_argument(
        "targets", metavar="STAGE", nargs="*", help="with what it needs; default: all"
    )
    repro.set_defaults(run=_repro)


def _repro(arguments: argparse.Namespace) -> int:
    import joblib

    from biox.files import project_root
    from biox.side_by_side import DVC, repro

    jobs = joblib.cpu_count() + 1 if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        print(f"--jobs: expected a number above 0, found {jobs}", file=sys.stderr)
        return 1
    root = project_root()
    try:
        failed = repro(root, jobs, arguments.targets) if jobs > 1 else None
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    # DVC has the last word: where all went well, it finds nothing to do.
    last = (*DVC, "repro", *arguments.targets)
    return 1 if failed else subprocess.run(last, cwd=root, check=False).returncode

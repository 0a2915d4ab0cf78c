"""``python -m biox real``: the real directions of params.yaml."""

import argparse


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``real --recordings DIR``."""
    real = subparsers.add_parser("real", help="run the real directions of params.yaml")
    real.add_argument(
        "--recordings",
        required=True,
        metavar="DIR",
        help="folder with a sub-folder for each dataset, such as bidmc and eegmat",
    )
    real.set_defaults(run=_real)


def _real(arguments: argparse.Namespace) -> int:
    from biox.real import run_real

    return run_real(arguments.recordings)

"""Command line: ``python -m biox real --recordings DIR``, ``data check DATASET DIR``."""

import argparse
import sys

from biox import check


def main() -> int:
    """Parse the command line and run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m biox")
    commands = parser.add_subparsers(dest="command", required=True)
    real = commands.add_parser("real", help="run the real directions of params.yaml")
    real.add_argument(
        "--recordings",
        required=True,
        metavar="DIR",
        help="folder with a sub-folder for each dataset, such as bidmc and eegmat",
    )
    check.register(commands)
    arguments = parser.parse_args()
    if "run" in arguments:
        return arguments.run(arguments)

    from biox.real import run_real

    return run_real(arguments.recordings)


if __name__ == "__main__":
    sys.exit(main())

"""Command line: ``python -m biox COMMAND``; the commands are in `biox.commands`."""

import argparse
import sys

from biox.commands import checkpoints, data, real, report, repro

COMMANDS = (checkpoints, data, real, report, repro)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m biox")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.register(subparsers)
    parsed = parser.parse_args(arguments)
    return parsed.run(parsed)


if __name__ == "__main__":
    sys.exit(main())

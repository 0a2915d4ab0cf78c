"""``python -m biox checkpoints``: look at files of weights, and make them ours."""

import argparse
import sys
import warnings
from collections.abc import Callable
from math import prod
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add ``checkpoints inspect FILE`` and ``checkpoints convert IN OUT``."""
    checkpoints = subparsers.add_parser("checkpoints", help="look at and convert weights")
    commands = checkpoints.add_subparsers(dest="what", required=True)
    look = commands.add_parser("inspect", help="say what a file of weights is")
    look.add_argument("file", metavar="FILE")
    look.set_defaults(run=_in_one_sentence(_inspect))
    change = commands.add_parser("convert", help="write a published file as safetensors")
    change.add_argument("source", metavar="IN")
    change.add_argument("target", metavar="OUT.safetensors")
    change.set_defaults(run=_in_one_sentence(_convert))


def _in_one_sentence(command: Callable) -> Callable:
    """Turn errors of input and output into a sentence and status 1, and warnings into notes."""

    def run(arguments: argparse.Namespace) -> int:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", UserWarning)
            try:
                command(arguments)
            except (OSError, ValueError) as error:
                print(error, file=sys.stderr)
                return 1
        for note in notes:
            print(f"note: {note.message}", file=sys.stderr)
        return 0

    return run


def _convert(arguments: argparse.Namespace) -> None:
    from biox.backbones.checkpoints import convert

    name, size = convert(arguments.source, arguments.target)
    print(f"{arguments.target}: {_call(name, size, arguments.target)}")


def _call(name: str, size: str, path: Path | str) -> str:
    return f'build("{name}", "{size}", checkpoint="{path}")'


def _inspect(arguments: argparse.Namespace) -> None:
    for label, value in describe(arguments.file).items():
        print(f"{label + ':':<12} {value}")


def describe(path: Path | str) -> dict[str, str]:
    """Say what a file of weights is, label by label, without running anything of it.

    Raises
    ------
    FileNotFoundError, ValueError
        As `biox.backbones.weight_files.read_weights`.
    """
    from biox.backbones.checkpoints import recognise
    from biox.backbones.weight_files import read_weights
    from biox.files import sha256

    file = read_weights(path)
    lines = {
        "file": str(path),
        "format": file.format,
        "bytes": f"{file.path.stat().st_size:,}",
        "sha256": sha256(path),
    }
    lines |= {f"header {key}": value for key, value in sorted(file.metadata.items())}
    fitting = recognise(file)
    lines["fits"] = "no backbone of biox"
    for _, _, match in fitting[:1]:
        numbers = sum(prod(tensor.shape) for tensor in match.tensors.values())
        lines["fits"] = " or ".join(_call(name, size, path) for name, size, _ in fitting)
        lines["wrapper"] = match.wrapper or "none: the weights lie bare"
        lines["prefix"] = match.prefix or "none"
        lines["weights"] = f"{numbers:,} numbers in {len(match.tensors)} tensors"
        lines["dtype"] = ", ".join(match.dtypes())
        left = [f"{count} x {beginning}" for beginning, count in sorted(match.left_over.items())]
        lines["left over"] = ", ".join(left) or "nothing"
    if not fitting and isinstance(file.content, dict):
        lines["entries"] = ", ".join(sorted(map(str, file.content))[:10])
    lines["objects"] = f"{', '.join(file.records)} (not built)" if file.records else "none"
    return lines

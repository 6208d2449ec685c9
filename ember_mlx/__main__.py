"""python -m ember_mlx: print the facts for a bug report; with --check, compile every kernel, compare it with NumPy and time it."""

import argparse
import sys
from pathlib import Path

from . import __version__
from .about import about, where_to
from .check import LIMIT


def main() -> int:
    """Run the command line; with --check, the exit status is 1 if something fails, 2 without a GPU, and 130 after Ctrl-C."""
    given = _parser().parse_args()
    print("\n".join(about()), flush=True)
    if not given.check:
        print("\n".join(where_to()))
        return 0
    try:
        from .check.command import Options, check
    except ImportError as error:
        print(f"python -m ember_mlx: error: --check needs MLX and NumPy: {error}", file=sys.stderr)
        return 2
    cells = tuple(cell.lower() for cell in given.only)
    try:
        return check(Options(given.json, given.budget, given.quick, cells, given.limit, given.device))
    except ValueError as error:
        print(f"python -m ember_mlx: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ember_mlx", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--check", action="store_true", help="compile, check and time every kernel, each in a separate process")
    parser.add_argument("--quick", action="store_true", help="check and time only the main layers")
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="cells to check, such as cfc or lstm (default: all)")
    parser.add_argument("--budget", type=_positive, metavar="SECONDS", help="stop after this time; the most important jobs run first")
    parser.add_argument("--json", type=Path, metavar="PATH", help="append each result to this file, and resume from the results in it")
    parser.add_argument(
        "--limit", type=_positive, default=LIMIT, metavar="SECONDS", help="time limit of each job; its process is then ended (%(default)g)"
    )
    parser.add_argument("--device", help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())

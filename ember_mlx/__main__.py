"""python -m ember_mlx: what this machine has; with --check, every kernel compiled, compared with NumPy and timed on it."""

import argparse
import sys
from pathlib import Path

import mlx.core as mx

from .backend import current_backend
from .check.command import LIMIT, Options, check
from .check.worker import kernels_here, machine
from .kernels.loader import source_folder
from .kernels.tiles import current_family


def main() -> int:
    """Print what is here; with --check, the exit status is 1 where something fails, 2 where there is no GPU, and 130 after Ctrl-C."""
    given = _parser().parse_args()
    kind = kernels_here() if given.device is None else None
    print("\n".join(_machine(kind)), flush=True)
    if not given.check:
        return 0
    cells = tuple(cell.lower() for cell in given.only)
    try:
        return check(Options(given.json, given.budget, given.quick, cells, given.limit, given.device))
    except ValueError as error:
        print(f"python -m ember_mlx: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ember_mlx", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compile, check and time every kernel here, each in a process that may die")
    parser.add_argument("--quick", action="store_true", help="errors and times of the main layers alone")
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="cells, as cfc or lstm; all of them unless named")
    parser.add_argument("--budget", type=_positive, metavar="SECONDS", help="stop after so long; what matters most comes first")
    parser.add_argument("--json", type=Path, metavar="PATH", help="append results to this file as they come, and go on from those in it")
    parser.add_argument(
        "--limit", type=_positive, default=LIMIT, metavar="SECONDS", help="of each job, then its process ends (%(default)g)"
    )
    parser.add_argument("--device", help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _machine(kind: str | None) -> list[str]:
    told = machine(kind)
    info = {name: value for name, value in mx.device_info().items() if name in ("device_name", "architecture", "memory_size")}
    return [
        f"ember_mlx {told['ember_mlx']}, mlx {told['mlx']}, numpy {told['numpy']}, python {told['python']}",
        f"system    {told['system']}",
        f"device    {mx.default_device()}, {', '.join(f'{name} {value}' for name, value in info.items())}",
        f"backend   {current_backend()}; kernels: {kind or 'none, the CPU runs NumPy scans'}",
        f"tiles     {current_family()}" if kind else f"text      {source_folder().name}/",
    ]


if __name__ == "__main__":
    sys.exit(main())

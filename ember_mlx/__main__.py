"""python -m ember_mlx: what this machine has; with --check, every kernel compiled, compared with NumPy and timed on it."""

import argparse
import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from . import __version__
from .backend import current_backend, gpu_kind
from .kernels.first_use import check, in_half, works, worst
from .kernels.loader import is_available, source_folder
from .kernels.tiles import current_family, forced_tile
from .scans.registry import RECURRENCES

SMALL, TIMED = (7, 3, 31), (100, 32, 64)  # T, B, H
REPETITIONS = 10


def main() -> int:
    """Print the report; the exit status is 1 where a kernel fails, 2 where there is no GPU to check one on."""
    parser = argparse.ArgumentParser(prog="python -m ember_mlx", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compile, check and time every kernel here")
    arguments = parser.parse_args()
    kind = gpu_kind()
    kind = kind if kind is not None and is_available(kind) else None
    print("\n".join(_machine(kind)))
    if not arguments.check:
        return 0
    if kind is None:
        print("\nno GPU is MLX's default device here: no kernel was checked")
        return 2
    return _check_all(kind)


def _machine(kind: str | None) -> list[str]:
    info = {name: value for name, value in mx.device_info().items() if name in ("device_name", "architecture", "memory_size")}
    return [
        f"ember_mlx {__version__}, mlx {importlib.metadata.version('mlx')}, numpy {np.__version__}, python {platform.python_version()}",
        f"system    {platform.platform()}",
        f"device    {mx.default_device()}, {', '.join(f'{name} {value}' for name, value in info.items())}",
        f"backend   {current_backend()}; kernels: {kind or 'none, the CPU runs NumPy scans'}",
        f"tiles     {current_family()}" if kind else f"text      {source_folder().name}/",
    ]


def _check_all(kind: str) -> int:
    failures = 0
    print(f"\n{'kernel':<32}{'error':>10}{'gradients':>11}{'forward':>12}{'+ backward':>12}   state")
    for name, variant in _served(kind):
        line, ok = _check_one(kind, name, variant)
        print(line, flush=True)
        line, wrong = _check_layouts(kind, name, variant) if ok else ("", 0)
        print(line, end="", flush=True)
        failures += wrong + (not ok)
    print(f"\n{failures} of the kernels failed" if failures else "\nevery kernel works here")
    return 1 if failures else 0


def _check_layouts(kind: str, name: str, variant: str) -> tuple[str, int]:
    """Every layout that the table can choose on this GPU: lines of the table, the failures one by one; and how many fail."""
    recurrence, lines = RECURRENCES[name], []
    spec, arrays = _problem(recurrence, variant, True)
    tiles = recurrence.fused.layouts(current_family(), spec)
    for tile in tiles:
        like = in_half(arrays, mx.bfloat16) if tile.half else None
        token = forced_tile.set(tile)
        try:
            errors = check(kind, recurrence, spec, arrays, like)
            state = "" if works(errors, like) else f"WRONG: {errors[0]:.1e} (outputs), {errors[1]:.1e} (gradients)"
        except (RuntimeError, ValueError) as error:
            state = f"FAILED: {error}"
        finally:
            forced_tile.reset(token)
        if state:
            lines.append(f"  {tile}   {state}\n")
    works_in = f"{'':<32}{'':>45}   works in all its {len(tiles)} layouts\n" if tiles and not lines else ""
    return "".join(lines) or works_in, len(lines)


def _served(kind: str) -> Iterator[tuple[str, str]]:
    for name, recurrence in RECURRENCES.items():
        for variant in recurrence.variants:
            spec, arrays = recurrence.problem(variant, *SMALL, dtype=np.float32)
            if recurrence.fused.refusal(kind, spec, tree_map(mx.array, arrays)) is None:
                yield name, variant


def _check_one(kind: str, name: str, variant: str) -> tuple[str, bool]:
    """A line of the table, and whether the kernel works."""
    recurrence, label = RECURRENCES[name], f"{name} {variant}"
    try:
        forward, gradients = map(
            worst, zip(*(check(kind, recurrence, *_problem(recurrence, variant, n)) for n in (False, True)), strict=True)
        )
        times = _timed(kind, recurrence, variant)
    except (RuntimeError, ValueError) as error:
        return f"{label:<32}{'':>45}   FAILED: {error}", False
    ok = works((forward, gradients))
    milliseconds = "".join(f"{t:>9.2f} ms" for t in times)
    return f"{label:<32}{forward:>10.1e}{gradients:>11.1e}{milliseconds}   {'works' if ok else 'WRONG'}", ok


def _problem(recurrence: Any, variant: str, lengths: bool) -> tuple[Any, Any]:
    return recurrence.problem(variant, *SMALL, lengths=lengths, dtype=np.float32)


def _timed(kind: str, recurrence: Any, variant: str) -> tuple[float, float]:
    """Milliseconds of a forward scan, and of both, at T = 100, B = 32, 64 units."""
    spec, arrays = recurrence.problem(variant, *TIMED, dtype=np.float32)
    arrays = tree_map(mx.array, arrays)
    dy = [mx.ones_like(a) for a in recurrence.fused.forward(kind, spec, arrays)]
    mx.eval(arrays, dy)
    times = []
    for backward in (False, True):
        best = float("inf")
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            outputs = recurrence.fused.forward(kind, spec, arrays)
            mx.eval(recurrence.fused.backward(kind, spec, arrays, outputs, dy) if backward else outputs)
            best = min(best, time.perf_counter() - start)
        times.append(best * 1e3)
    return times[0], times[1]


if __name__ == "__main__":
    sys.exit(main())

"""Running a job in a worker."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from ..kernels.first_use import check, in_half, works
from ..kernels.launches import launches_planned
from ..kernels.tiles import Tile, forced_tile
from ..scans.registry import RECURRENCES
from .peers import own, runs_of
from .rows import ROWS, Row

SECONDS, LEAST_RUNS = 1.0, 3  # duration and minimum number of runs per measurement
Result = dict[str, Any]


def run(kind: str, stage: str, given: Result) -> Result:
    """Run a job; returns {"state": ...} with the measurements; an exception is a failure."""
    tile = Tile(*given["tile"]) if "tile" in given else None
    token = forced_tile.set(tile)
    try:
        if "recurrence" in given:
            return _errors(kind, **{name: value for name, value in given.items() if name not in ("tile", "tool")})
        row = ROWS[given["row"]]
        if "peer" in given:
            return _peer(row, given["peer"])
        return _memory(kind, row) if stage == "memory" else _times(kind, row)
    finally:
        forced_tile.reset(token)


def _errors(kind: str, recurrence: str, variant: str, size: tuple[int, int, int], half: bool = False) -> Result:
    """A variant's relative errors against float64."""
    chosen = RECURRENCES[recurrence]
    spec, arrays = chosen.problem(variant, *size, lengths=True, dtype=np.float32)
    like = in_half(arrays, mx.bfloat16) if half else None
    errors = check(kind, chosen, spec, arrays, like)
    return {"state": "works" if works(errors, like) else "WRONG", "outputs": errors[0], "gradients": errors[1]}


def _times(kind: str, row: Row) -> Result:
    """Milliseconds of the row's layer, and the cost model's estimates for its kernels."""
    runs, result = own(row, kind), Result()
    for name, one in zip(("forward", "both"), runs, strict=True):
        result |= _timed(name, one)
        with launches_planned() as planned:
            one()
        result[f"{name}_estimate"] = sum(launch.ms for launch in planned)
        result[f"{name}_launches"] = len(planned)
    return {"state": "works", **result}


def _peer(row: Row, peer: str) -> Result:
    """Milliseconds of a peer's runs."""
    runs = runs_of(row, peer)
    if runs is None:
        return {"state": "absent"}
    return {"state": "works", **_timed("forward", runs[0]), **_timed("both", runs[1])}


def _memory(kind: str, row: Row) -> Result:
    """Peak memory of a training step without parameters, x and time deltas, in bytes and in arrays of (B, T, H)."""
    both = own(row, kind)[1]
    both()
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    both()
    mx.synchronize()
    peak = mx.get_peak_memory() - before
    return {"state": "works", "peak": peak, "arrays": peak / (4 * row.B * row.T * row.units)}


def _timed(name: str, one: Callable[[], None]) -> Result:
    """The median, minimum and maximum of the runs within a second, at least three, without the first, which compiles."""
    start, times = time.perf_counter(), list[float]()
    one()
    first = time.perf_counter() - start
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        before = time.perf_counter()
        one()
        times.append((time.perf_counter() - before) * 1e3)
    found = {"": statistics.median(times), "_least": min(times), "_largest": max(times), "_first": first * 1e3}
    return {f"{name}{end}": value for end, value in found.items()} | {f"{name}_runs": len(times)}

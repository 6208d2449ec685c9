"""Kernel launches: their estimated duration (with the figures in tiles.py), splitting them into pieces, and merging several into one.

macOS kills a process whose launch keeps the GPU from the display for too long. So on Metal no launch exceeds `launch_budget` (budget.py): a
scan's launch is split by time steps, with the state carried from piece to piece, and if a single step takes too long, by sequences as well.
Each piece computes exactly what the whole launch would for its steps and sequences, so results are bit-identical.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..coroutines import run_batched
from .budget import launch_budget
from .loader import SMALLEST, KernelText, compiled
from .tiles import Family, Tile, Work, current_family, microseconds

MOST_TOGETHER = 2**30  # array elements above which launches are not merged: offsets are ints
Named = dict[str, mx.array]


class Launch(NamedTuple):
    """A kernel launch, which may be split into pieces.

    Args:
        text: the kernel.
        inputs: its input arrays by name, without `dims`; `lengths` holds the valid steps of each sequence.
        template: its template arguments.
        shapes: shapes of the outputs, in order.
        threads: threads per threadgroup.
        T: number of steps, or of rows in a kernel that is parallel over rows.
        B: sequences.
        groups: (T, B) -> threadgroups.
        dims: (T, B) -> the array `dims`.
        work: work of a threadgroup, per step in a scan, else in total.
        rows: sequences per threadgroup; 0: the launch is not split by sequences.
        unit: steps, or rows, that must stay in one piece.
        is_scan: whether a threadgroup processes the units sequentially.
        is_backward: whether it does so from the last to the first.
    """

    text: KernelText
    inputs: Named
    template: list[tuple[str, Any]]
    shapes: Sequence[tuple[int, ...]]
    threads: int
    T: int
    B: int
    groups: Callable[[int, int], int]
    dims: Callable[[int, int], mx.array]
    work: Work
    rows: int = 0
    unit: int = 1
    is_scan: bool = True
    is_backward: bool = False

    @property
    def arrays(self) -> list[mx.array]:
        """The kernel's inputs in order."""
        made = {"dims": self.dims(self.T, self.B)}
        return [made[name] if name in made else self.inputs[name] for name in self.text.inputs]

    @property
    def moved(self) -> int:
        """Bytes of the arrays with a time axis, each read or written once."""
        given = sum(a.nbytes for name, a in self.inputs.items() if self.text.axis(name, "t", a.ndim) is not None)
        made = (math.prod(s) for n, s in zip(self.text.outputs, self.shapes, strict=True) if self.text.axis(n, "t", len(s)) is not None)
        return given + 4 * sum(made)


Launches = Generator[Launch, list[mx.array], Any]  # yields launches, gets their outputs, and returns its result


class Planned(NamedTuple):
    """The sizes of a launch that was planned but not made."""

    kernel: str
    ms: float
    steps: int
    sequences: int


_planned: ContextVar[list[Planned] | None] = ContextVar("planned", default=None)


@contextmanager
def launches_planned() -> Iterator[list[Planned]]:
    """Inside this block launches are not made but recorded in the list; their results are zeros."""
    planned: list[Planned] = []
    token = _planned.set(planned)
    try:
        yield planned
    finally:
        _planned.reset(token)


def estimated_ms(kind: str, recurrence: Any, spec: Hashable, arrays: Any, backward: bool = True) -> dict[str, float]:
    """Estimated total milliseconds of each kernel in a forward scan and its backward pass, with the figures in tiles.py.

    Args:
        kind: "metal" or "cuda".
        recurrence: the recurrence.
        spec: its static part.
        arrays: a tree of MLX arrays; their values are not used.
        backward: whether to include the backward pass.
    """
    with launches_planned() as planned:
        outputs = recurrence.fused.forward(kind, spec, arrays)
        if backward:
            recurrence.fused.backward(kind, spec, arrays, outputs, outputs)
    times: dict[str, float] = {}
    for one in planned:
        times[one.kernel] = times.get(one.kernel, 0) + one.ms
    return times


def scan_launch(
    text: KernelText,
    inputs: Sequence[mx.array],
    template: list[tuple[str, Any]],
    shapes: Sequence[tuple[int, ...]],
    tile: Tile,
    T: int,
    B: int,
    dims: Callable[[int, int], mx.array],
    work: Work,
    directions: int = 1,
    is_backward: bool = False,
) -> Launch:
    """The launch of a scan over T steps of B sequences; `inputs` in the kernel's order, without the last, `dims`."""
    named = dict(zip(text.inputs, inputs, strict=False))

    def groups(T: int, B: int) -> int:
        return directions * -(-B // tile.rows)

    return Launch(text, named, template, shapes, tile.threads, T, B, groups, dims, work, tile.rows, is_backward=is_backward)


def run_launches(kind: str, launches: Launches) -> Any:
    """Run a generator of launches, one launch at a time."""
    return run_together(kind, [launches])[0]


def run_together(kind: str, computations: Sequence[Launches]) -> list[Any]:
    """Run several generators of launches in lockstep; launches that differ only in their arrays are merged into one."""
    return run_batched(computations, _alike, lambda launches: _in_pieces(kind, launches))


def launch(kind: str, one: Launch) -> list[mx.array]:
    """Make a launch; returns its outputs."""
    return _in_pieces(kind, [one])[0]


def pieces_of(kind: str, one: Launch, scans: int = 1) -> tuple[int, int]:
    """Steps and sequences per piece of a launch that merges `scans` scans, so that no piece exceeds the budget.

    A piece has at least one unit of steps and one threadgroup of sequences.
    """
    budget, family = 1e3 * launch_budget.get(), current_family()
    if kind != "metal" or budget == 0 or _time(family, one, one.T, one.B, scans) <= budget:
        return one.T, one.B
    rows, units = one.rows or one.B, -(-one.T // one.unit)
    groups = -(-one.B // rows)
    B = rows * _evenly(groups, bisect_right(range(1, groups + 1), budget, key=lambda n: _time(family, one, one.unit, n * rows, scans)))
    T = one.unit * _evenly(units, bisect_right(range(1, units + 1), budget, key=lambda n: _time(family, one, n * one.unit, B, scans)))
    return T, B


def groups_within(kind: str, work: Work, most: int) -> int:
    """The number of threadgroups, from 1 to `most`, whose step stays within the budget."""
    budget, family = 1e3 * launch_budget.get(), current_family()
    if kind != "metal" or budget == 0:
        return most
    return max(1, bisect_right(range(1, most + 1), budget, key=lambda groups: microseconds(family, work, groups)))


def _evenly(count: int, most: int) -> int:
    """The size of nearly equal parts of `count` items, each of at most `most` items, or 1."""
    return -(-count // -(-count // max(1, most)))


def _time(family: Family, one: Launch, T: int, B: int, scans: int) -> float:
    """Microseconds of T steps and B sequences of a launch; computation overlaps with memory traffic."""
    part = T / max(1, one.T) * (B / one.B if one.rows else 1)
    work = microseconds(family, one.work, scans * one.groups(T, B)) * (-(-T // one.unit) if one.is_scan else 1)
    return max(work, scans * part * one.moved / family.memory_rate)


def _in_pieces(kind: str, launches: list[Launch]) -> list[list[mx.array]]:
    """The outputs of launches that differ only in their arrays."""
    steps, sequences = pieces_of(kind, max(launches, key=lambda one: one.T), len(launches))
    B = launches[0].B
    if sequences >= B:
        return _in_turn(kind, launches, steps)
    parts = [_in_turn(kind, [_part(one, "b", start, sequences) for one in launches], steps) for start in range(0, B, sequences)]
    return [_joined(one.text, "b", list(outputs)) for one, *outputs in zip(launches, *parts, strict=True)]


def _in_turn(kind: str, launches: list[Launch], steps: int) -> list[list[mx.array]]:
    """The outputs of launches that are made `steps` steps at a time."""
    T = max(one.T for one in launches)
    if steps >= T:
        return _make(kind, launches)
    done: list[list[list[mx.array]]] = [[] for _ in launches]
    carried: list[Named] = [{} for _ in launches]
    starts = range(0, T, steps)
    for start in reversed(starts) if launches[0].is_backward else starts:
        here = [k for k, one in enumerate(launches) if start < max(1, one.T)]
        pieces = [_part(launches[k]._replace(inputs=launches[k].inputs | carried[k]), "t", start, steps) for k in here]
        for k, piece, outputs in zip(here, pieces, _make(kind, pieces), strict=True):
            done[k].append(outputs)
            carried[k] = _carried(piece, dict(zip(piece.text.outputs, outputs, strict=True)))
    return [_joined(one.text, "t", pieces, one.is_backward) for one, pieces in zip(launches, done, strict=True)]


def _part(one: Launch, axis: str, start: int, count: int) -> Launch:
    """The part of a launch for `count` steps ("t") or sequences ("b") from `start` on."""
    stop = min(start + count, one.T if axis == "t" else one.B)

    def cut(name: str, shape: Sequence[int]) -> tuple[slice, ...]:
        place, units = one.text.axis(name, axis, len(shape)), None if axis == "b" else one.text.axis(name, "u", len(shape))
        if place is not None:
            return (*[slice(None)] * place, slice(start, stop))
        return () if units is None else (*[slice(None)] * units, slice(start // one.unit, -(-stop // one.unit)))

    inputs = {name: a[index] if (index := cut(name, a.shape)) else a for name, a in one.inputs.items()}
    if axis == "t" and "lengths" in inputs:
        inputs["lengths"] = mx.clip(inputs["lengths"] - start // one.unit, 0, -(-(stop - start) // one.unit))
    shapes = []
    for name, shape in zip(one.text.outputs, one.shapes, strict=True):
        index = cut(name, shape)
        shapes.append(tuple(len(range(*index[k].indices(n))) if k < len(index) else n for k, n in enumerate(shape)))
    one = one._replace(inputs=inputs, shapes=shapes)
    return one._replace(T=stop - start) if axis == "t" else one._replace(B=stop - start)


def _joined(text: KernelText, axis: str, parts: list[list[mx.array]], is_backward: bool = False) -> list[mx.array]:
    """The joined outputs of pieces, in launch order: concatenated along an axis, or without that axis those of the last piece."""
    together = []
    for name, *pieces in zip(text.outputs, *parts, strict=True):
        places = [text.axis(name, kind, pieces[0].ndim) for kind in (axis, *("u" if axis == "t" else ""))]
        place = next((place for place in places if place is not None), None)
        in_order = pieces[::-1] if is_backward else pieces
        together.append(pieces[-1] if place is None else mx.concatenate(in_order, axis=place))
    return together


def _carried(one: Launch, outputs: Named) -> Named:
    """The inputs of the next piece that are outputs of this one."""
    given = {}
    for name, of in one.text.carried:
        place = one.text.axis(of, "t", outputs[of].ndim)
        if place is not None:
            given[name] = outputs[of][(*[slice(None)] * place, -1)]
        elif one.text.axis(of, "b", outputs[of].ndim) is not None:
            given[name] = outputs[of]
    return given


def _alike(one: Launch) -> Hashable:
    """A key that is equal for launches that can be merged."""
    return (one.text, *map(tuple, one.template), one.B, one.rows, one.threads, *(a.dtype for a in one.arrays))


def _make(kind: str, launches: list[Launch]) -> list[list[mx.array]]:
    """Make launches that differ only in their arrays as one launch."""
    planned, first = _planned.get(), launches[0]
    if planned is not None:
        longest = max(launches, key=lambda one: one.T)
        time = _time(current_family(), longest, longest.T, longest.B, len(launches))
        planned.append(Planned(first.text.name, time / 1e3, longest.T, longest.B))
        return [[mx.zeros(shape) for shape in one.shapes] for one in launches]
    if len(launches) == 1 or sum(max(a.size for a in one.arrays) for one in launches) >= MOST_TOGETHER:
        return [_launch_alone(kind, one) for one in launches]
    return _launch_together(kind, launches)


def _launch_alone(kind: str, one: Launch) -> list[mx.array]:
    kernel = compiled(kind, one.text)
    return kernel(
        inputs=[a if a.size >= SMALLEST else _padded(a, SMALLEST) for a in one.arrays],
        template=one.template,
        grid=(one.groups(one.T, one.B) * one.threads, 1, 1),
        threadgroup=(one.threads, 1, 1),
        output_shapes=one.shapes,
        output_dtypes=[mx.float32] * len(one.shapes),
    )


def _launch_together(kind: str, launches: list[Launch]) -> list[list[mx.array]]:
    """Concatenate the arrays of all launches; a threadgroup finds its own arrays by the offsets of its launch."""
    first, given, shapes = launches[0], [one.arrays for one in launches], [one.shapes for one in launches]
    groups = first.groups(first.T, first.B)
    sizes = [[_even(a.size) for a in arrays] + [math.prod(shape) for shape in own] for arrays, own in zip(given, shapes, strict=True)]
    starts = np.cumsum([[0] * len(sizes[0]), *sizes], axis=0)
    arrays = [mx.concatenate([_padded(own[k], sizes[s][k]) for s, own in enumerate(given)]) for k in range(len(given[0]))]
    arrays.append(mx.array(np.resize(starts[:-1].reshape(-1), _even(starts[:-1].size)).astype(np.int32)))
    kernel = compiled(kind, first.text, together=True)
    flat = kernel(
        inputs=arrays,
        template=[*first.template, ("SET_GROUPS", groups)],
        grid=(len(launches) * groups * first.threads, 1, 1),
        threadgroup=(first.threads, 1, 1),
        output_shapes=[(int(total),) for total in starts[-1, len(given[0]) :]],
        output_dtypes=[mx.float32] * len(first.shapes),
    )
    begins = starts[:, len(given[0]) :].tolist()
    return [
        [flat[k][begins[s][k] : begins[s][k] + math.prod(shape)].reshape(shape) for k, shape in enumerate(own)]
        for s, own in enumerate(shapes)
    ]


def _even(size: int) -> int:
    """The next multiple of SMALLEST, which keeps float4s aligned."""
    return -(-size // SMALLEST) * SMALLEST


def _padded(a: mx.array, size: int) -> mx.array:
    """The array flattened and zero-padded to `size` elements."""
    a = a.reshape(-1)
    return a if a.size == size else mx.concatenate([a, mx.zeros((size - a.size,), a.dtype)])

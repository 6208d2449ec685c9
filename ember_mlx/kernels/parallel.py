"""Launches of kernels with one thread per result, used next to the sequential scans."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .launches import Launch, launch
from .loader import KernelText
from .tiles import FUNCTION, Work

PARALLEL_THREADS = 256  # per threadgroup


def launch_step(
    kind: str, text: KernelText, template: list[tuple[str, Any]], inputs: list[mx.array], count: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    """Launch one thread for each of `count` values of one step; float32 results. Never split: a matrix product of the step takes longer."""
    return launch_parallel(kind, text, template, inputs[:-1], 1, lambda _: count, lambda _: inputs[-1], shapes, FUNCTION)


def launch_parallel(
    kind: str,
    text: KernelText,
    template: list[tuple[str, Any]],
    inputs: Sequence[mx.array],
    rows: int,
    threads: Callable[[int], int],
    dims: Callable[[int], mx.array],
    shapes: Sequence[tuple[int, ...]],
    work: Work,
    unit: int = 1,
) -> list[mx.array]:
    """Launch one thread for each value of `rows` rows, float32 results; in pieces of rows if the launch would take too long.

    Args:
        kind: "metal" or "cuda".
        text: the kernel.
        template: its template arguments.
        inputs: its input arrays in order, without the last, `dims`.
        rows: size of the arrays' axis "t".
        threads: rows -> threads.
        dims: rows -> the array `dims`.
        shapes: shapes of the outputs.
        work: work per thread.
        unit: rows that must stay in one piece.
    """
    named = dict(zip(text.inputs, inputs, strict=False))
    template = [*template, ("THREADS", PARALLEL_THREADS), ("SCRATCH", 1)]
    return launch(
        kind,
        Launch(
            text,
            named,
            template,
            shapes,
            PARALLEL_THREADS,
            rows,
            1,
            lambda R, _: -(-threads(R) // PARALLEL_THREADS),
            lambda R, _: dims(R),
            work * PARALLEL_THREADS,
            unit=unit,
            is_scan=False,
        ),
    )

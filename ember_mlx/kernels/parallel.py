"""Launches of kernels that have one thread for each result, beside the sequential scans."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .loader import KernelText, launch

PARALLEL_THREADS = 256  # of a group


def launch_parallel(
    kind: str, text: KernelText, template: list[tuple[str, Any]], inputs: list[mx.array], count: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    """One thread for each of `count` values; float32 results."""
    template = [*template, ("THREADS", PARALLEL_THREADS), ("SCRATCH", 1)]
    return launch(kind, text, inputs, template, -(-count // PARALLEL_THREADS), PARALLEL_THREADS, shapes, [mx.float32] * len(shapes))

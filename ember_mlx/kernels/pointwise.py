"""Launches with one thread for each value, and the small arrays of numbers that kernels take."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .loader import SMALLEST, KernelText, launch

POINTWISE_THREADS = 256


def launch_pointwise(
    kind: str, text: KernelText, template: list[tuple[str, Any]], inputs: list[mx.array], count: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    """One thread for each of `count` values."""
    template = [*template, ("THREADS", POINTWISE_THREADS), ("SCRATCH", 1)]
    return launch(kind, text, inputs, template, -(-count // POINTWISE_THREADS), POINTWISE_THREADS, shapes, [mx.float32] * len(shapes))


def dims(*numbers: int) -> mx.array:
    """Numbers for a kernel, as many as an array must have."""
    return mx.array([*numbers, *[0] * (SMALLEST - len(numbers))])

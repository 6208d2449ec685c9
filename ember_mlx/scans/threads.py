"""Threads for the NumPy forms: sequences do not depend on each other, and NumPy lets other threads run while it computes.

That pays where a step's pointwise work is much larger than what Python needs to ask for it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")
MOST_THREADS = 8
FEWEST_VALUES = 2**14  # that a thread should have to compute in one call of NumPy: with fewer, threads wait for each other


def parts_of(batch: int, lengths: NDArray[np.integer] | None, values: int) -> list[NDArray[np.intp]]:
    """The sequences of each thread, about the same number of steps each.

    Args:
        batch: B.
        lengths: (B,), or None where all sequences have the same.
        values: how many values one call of NumPy computes for each sequence.

    Example:
        >>> from ember_mlx.scans.threads import parts_of
        >>> [part.tolist() for part in parts_of(3, None, values=1)]
        [[0, 1, 2]]
    """
    count = max(1, min(_cores(), MOST_THREADS, batch, batch * values // FEWEST_VALUES))
    order = np.arange(batch) if lengths is None else np.argsort(-lengths.astype(np.int64), kind="stable")
    return [np.sort(order[k::count]) for k in range(count)]


def run_parts(function: Callable[..., Result], *parts: Sequence[Any]) -> list[Result]:
    """As map(function, *parts), each call in a thread of its own."""
    return list(map(function, *parts)) if len(parts[0]) == 1 else list(_pool().map(function, *parts))


@lru_cache(maxsize=1)  # always the same: a backward must part its sequences as the forward did, which kept something for each part
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="ember_mlx")

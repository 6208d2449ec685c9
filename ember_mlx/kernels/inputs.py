"""Small arrays that kernels take, and arrays that they cannot take."""

from typing import Any

import mlx.core as mx

from .loader import SMALLEST

INT_COUNTS = 2**31  # numbers of an array: the kernels' text indexes by int


def dims(*numbers: int) -> mx.array:
    """Numbers for a kernel, as many as an array must have."""
    return mx.array([*numbers, *[0] * (SMALLEST - len(numbers))])


def nothing(dtype: mx.Dtype = mx.float32) -> mx.array:
    """In the place of an array that a kernel variant does not read."""
    return mx.zeros((SMALLEST,), dtype)


def lengths_of(arrays: dict[str, Any], T: int, B: int) -> mx.array:
    """(B,) int32: how many of T steps each sequence has; all where a scan's arrays do not say."""
    return arrays["lengths"] if "lengths" in arrays else mx.full((B,), T, mx.int32)


def too_many(*sizes: int) -> str | None:
    """Why no kernel takes arrays of so many numbers, or None; kernels that read ahead make indices of one step more than there are."""
    numbers = max(sizes)
    return f"an array of {numbers} numbers has more than an int counts" if numbers >= INT_COUNTS else None

"""Small input arrays of the kernels, and the limit on array sizes."""

from typing import Any

import mlx.core as mx

from .loader import SMALLEST

INT_COUNTS = 2**31  # array elements: the kernels index with int


def dims(*numbers: int) -> mx.array:
    """An int32 array of sizes for a kernel, padded to the minimum length of an array."""
    return mx.array([*numbers, *[0] * (SMALLEST - len(numbers))])


def nothing(dtype: mx.Dtype = mx.float32) -> mx.array:
    """A placeholder for an array that a kernel variant does not read."""
    return mx.zeros((SMALLEST,), dtype)


def lengths_of(arrays: dict[str, Any], T: int, B: int) -> mx.array:
    """(B,) int32: the valid steps of each sequence, T if the scan's arrays have no `lengths`."""
    return arrays["lengths"] if "lengths" in arrays else mx.full((B,), T, mx.int32)


def too_many(*sizes: int) -> str | None:
    """A message if an array of these sizes is too large for the kernels, else None; kernels that read ahead index one step past the end."""
    numbers = max(sizes)
    return f"an array of {numbers} elements is too large for int indices" if numbers >= INT_COUNTS else None

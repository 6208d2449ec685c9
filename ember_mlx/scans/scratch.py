"""Buffers of the NumPy forms that are used again from step to step, or from a forward scan to its backward."""

import math
from typing import Any

import numpy as np

from .pointwise import Array

KEPT_BYTES = 2**26  # most bytes that a forward scan stores for the backward pass; above that the backward pass recomputes


class Scratch:
    """Buffers of one call, by name: reused from one block of steps to the next, or passed from a forward scan to its backward pass.

    They are never shared between calls, so an interrupted call whose threads still write cannot affect another one.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.scans.scratch import Scratch
        >>> Scratch(np.dtype(np.float32))("dh", 2, 3).shape
        (2, 3)
    """

    def __init__(self, dtype: np.dtype[Any]):
        self.dtype = dtype
        self.memory: dict[str, Array] = {}
        self.last: dict[str, Array] = {}
        self.parts: dict[str, Scratch] = {}

    def __call__(self, name: str, *shape: int) -> Array:
        """An array of this shape; the next call with the same name overwrites it."""
        last = self.last.get(name)
        if last is not None and last.shape == shape:
            return last
        size, memory = math.prod(shape), self.memory.get(name)
        if memory is None or memory.size < size:
            self.memory[name] = memory = np.empty(size, self.dtype)
        self.last[name] = array = memory[:size].reshape(shape)
        return array

    @property
    def nbytes(self) -> int:
        """The bytes of these buffers and of all parts."""
        return sum(a.nbytes for a in self.memory.values()) + sum(part.nbytes for part in self.parts.values())

    def copy(self, name: str, a: Array) -> Array:
        """A copy of the array in a buffer of this name."""
        result = self(name, *a.shape)
        result[...] = a
        return result

    def part(self, name: str) -> "Scratch":
        """A part with a separate namespace."""
        if name not in self.parts:
            self.parts[name] = Scratch(self.dtype)
        return self.parts[name]


def split_kept(kept: Scratch | None, count: int) -> list[Scratch | None]:
    """The stored buffers of `count` scans that run as one; None for each if nothing is stored."""
    return [None if kept is None else kept.part(str(k)) for k in range(count)]

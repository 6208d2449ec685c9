"""Conversion of arrays from MLX to the kernel and back: NumPy views, bfloat16 by its bits."""

import ctypes
import math
from dataclasses import dataclass

import ml_dtypes
import mlx.core as mx
import numpy as np

METAL_TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.float32: "float",
    mx.bfloat16: "bfloat16_t",
    mx.complex64: "complex64_t",
}
ALIGNMENT = 256
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMPY_TYPES = {dtype: np.dtype(str(dtype).removeprefix("mlx.core.").rstrip("_")) for dtype in METAL_TYPES if dtype != mx.bfloat16}
NUMPY_TYPES[mx.bfloat16] = BFLOAT16


@dataclass(frozen=True)
class HostArray:
    """An input: its memory as NumPy sees it, and its MLX type."""

    data: np.ndarray
    dtype: mx.Dtype

    @property
    def metal_type(self) -> str:
        """The type's name in Metal text."""
        return METAL_TYPES[self.dtype]

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.data.ndim


def to_numpy(array: mx.array) -> np.ndarray:
    """A view of the array's memory with its strides; bfloat16 as ml_dtypes' type."""
    if array.dtype == mx.bfloat16:
        return np.asarray(array.view(mx.uint16)).view(BFLOAT16)
    return np.asarray(array)


def to_mlx(array: np.ndarray) -> mx.array:
    """A copy as an MLX array."""
    if array.dtype == BFLOAT16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)


def aligned_memory(size: int) -> np.ndarray:
    """Bytes with the alignment of Metal's buffers, which vector loads need."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size]


def byte_range(array: np.ndarray) -> tuple[int, int]:
    """The addresses that the array's elements span; with negative strides they begin below the first element."""
    low = high = array.ctypes.data
    if not array.size:
        return low, high
    reach = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    return low + sum(min(r, 0) for r in reach), high + sum(max(r, 0) for r in reach) + array.itemsize


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A copy with the same strides; the kernel never sees MLX's own memory."""
    low, high = byte_range(array)
    memory = aligned_memory(high - low)
    if high > low:
        ctypes.memmove(memory.ctypes.data, low, high - low)
    return np.ndarray(array.shape, array.dtype, memory.data, array.ctypes.data - low, array.strides)


def as_input(value, row_contiguous: bool) -> HostArray:
    """An argument as the kernel gets it: scalars become 0-d arrays, as in MLX."""
    array = value if isinstance(value, mx.array) else mx.array(value)
    data = to_numpy(array)
    if row_contiguous and not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    return HostArray(aligned_copy(data), array.dtype)


def new_output(shape, dtype: mx.Dtype, init_value) -> np.ndarray:
    """An output's memory: filled with `init_value`, else with NaN (integers: all bits set), so that unwritten elements are visible."""
    kind = NUMPY_TYPES[dtype]
    memory = aligned_memory(math.prod(shape) * kind.itemsize)
    array = np.ndarray(tuple(shape), kind, memory.data)
    if init_value is not None:
        array[...] = init_value
    elif kind == np.bool_:
        array[...] = True
    else:
        memory[...] = 0xFF
    return array


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise: are the bits the same?"""
    unsigned = np.dtype(f"V{a.dtype.itemsize}")
    return a.reshape(-1).view(unsigned) == b.reshape(-1).view(unsigned)

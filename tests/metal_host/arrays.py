"""Arrays on their way from MLX to the kernel and back: NumPy views, bfloat16 through its bits."""

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


def as_input(value, row_contiguous: bool) -> HostArray:
    """An argument as the kernel gets it: scalars become 0-d arrays, as in MLX."""
    array = value if isinstance(value, mx.array) else mx.array(value)
    data = to_numpy(array)
    if row_contiguous and not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    return HostArray(data, array.dtype)


def new_output(shape, dtype: mx.Dtype, init_value) -> np.ndarray:
    """An output's memory: filled with `init_value`, else with NaN (integers: all bits set), so that gaps show."""
    array = np.empty(tuple(shape), NUMPY_TYPES[dtype])
    if init_value is not None:
        array[...] = init_value
    elif array.dtype == np.bool_:
        array[...] = True
    else:
        array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise: are the bits the same?"""
    unsigned = np.dtype(f"V{a.dtype.itemsize}")
    return a.reshape(-1).view(unsigned) == b.reshape(-1).view(unsigned)

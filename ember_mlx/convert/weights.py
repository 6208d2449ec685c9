"""Values of torch tensors and MLX arrays as NumPy arrays; torch is not imported."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

DTYPES = {"torch.float16": mx.float16, "torch.bfloat16": mx.bfloat16, "torch.float32": mx.float32, "torch.float64": mx.float64}


def array_of(tensor: Any) -> NDArray[Any]:
    """A torch tensor's values; float32 for bfloat16, which NumPy lacks."""
    tensor = tensor.detach().cpu()
    values = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    return np.asarray(values.numpy())


def numpy_of(array: mx.array) -> NDArray[Any]:
    """A copy of an MLX array's values; float32 for bfloat16, which NumPy lacks."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)

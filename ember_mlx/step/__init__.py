"""The functions of which a cell's ``step`` is made: pointwise, of NumPy arrays, of MLX arrays, and of a step's symbols.

Example:
    >>> import mlx.core as mx
    >>> import numpy as np
    >>> from ember_mlx.step import sigmoid
    >>> float(sigmoid(np.zeros(())))
    0.5
    >>> sigmoid(mx.array(0.0)).item()
    0.5
"""

from .functions import Value, abs, cos, erf, exp, expm1, log1p, maximum, minimum, relu, sigmoid, sin, softplus, sqrt, tanh, where

__all__ = [
    "Value",
    "abs",
    "cos",
    "erf",
    "exp",
    "expm1",
    "log1p",
    "maximum",
    "minimum",
    "relu",
    "sigmoid",
    "sin",
    "softplus",
    "sqrt",
    "tanh",
    "where",
]

"""The functions of which a cell's step is made: of NumPy arrays, of MLX arrays, and of the nodes of a graph.

Each takes arrays of one kind or numbers and works pointwise, so that one definition of a step can be run, differentiated and made a kernel.
"""

import math
import sys
from typing import Any

import numpy as np

from .graph import Node

Value = Any
"""A value of a step: an array of NumPy or MLX, or a step's symbol."""

FLAT = 20.0  # from here on tanh is 1 or -1 in any precision
_erf64 = np.frompyfunc(math.erf, 1, 1)


def _np_erf(a: Any) -> Any:
    return np.asarray(_erf64(a), dtype=np.result_type(a))


def _np_sigmoid(a: Any) -> Any:
    with np.errstate(over="ignore"):  # 1 / inf is right
        return 1 / (1 + np.exp(-a))


_NUMPY: dict[str, Any] = {
    "negate": np.negative,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "abs": np.abs,
    "erf": _np_erf,
    "sigmoid": _np_sigmoid,
    "softplus": lambda a: np.logaddexp(0, a),
    **{name: getattr(np, name) for name in ("exp", "expm1", "log1p", "tanh", "sin", "cos", "sqrt", "maximum", "minimum", "where")},
    **{name: getattr(np, name) for name in ("less", "less_equal", "greater", "greater_equal")},
}


def _mlx_function(name: str) -> Any:
    import mlx.core as mx

    if name == "tanh":  # the second derivative of mx.tanh is NaN where cosh overflows (MLX 0.32.4)
        return lambda a: mx.tanh(mx.minimum(mx.maximum(a, -FLAT), FLAT))
    if name == "softplus":
        return lambda a: mx.logaddexp(a, mx.zeros_like(a))
    return getattr(mx, {"negate": "negative"}.get(name, name))


def apply(name: str, *operands: Any) -> Any:
    """A function by its name.

    Example:
        >>> from ember_mlx.step.functions import apply
        >>> float(apply("tanh", 0.0))
        0.0
    """
    for a in operands:
        if isinstance(a, Node):
            return a.graph.apply(name, *operands)
    mlx = sys.modules.get("mlx.core")
    if mlx is not None and any(isinstance(a, mlx.array) for a in operands):
        return _mlx_function(name)(*operands)
    return _NUMPY[name](*operands)


def abs(a: Any) -> Any:
    """The absolute value; its slope at 0 is 0."""
    return apply("abs", a)


def exp(a: Any) -> Any:
    """The exponential function."""
    return apply("exp", a)


def expm1(a: Any) -> Any:
    """exp(a) - 1, which keeps the digits of small values."""
    return apply("expm1", a)


def log1p(a: Any) -> Any:
    """log(1 + a), which keeps the digits of small values."""
    return apply("log1p", a)


def tanh(a: Any) -> Any:
    """The hyperbolic tangent."""
    return apply("tanh", a)


def sigmoid(a: Any) -> Any:
    """The logistic function, 1 / (1 + exp(-a))."""
    return apply("sigmoid", a)


def softplus(a: Any) -> Any:
    """log(1 + exp(a))."""
    return apply("softplus", a)


def sin(a: Any) -> Any:
    """The sine, of radians."""
    return apply("sin", a)


def cos(a: Any) -> Any:
    """The cosine, of radians."""
    return apply("cos", a)


def sqrt(a: Any) -> Any:
    """The square root."""
    return apply("sqrt", a)


def erf(a: Any) -> Any:
    """The error function; to 1.5e-7 in float32."""
    return apply("erf", a)


def maximum(a: Any, b: Any) -> Any:
    """The larger value; where they are equal, the gradient goes to b."""
    return apply("maximum", a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller value; where they are equal, the gradient goes to b."""
    return apply("minimum", a, b)


def relu(a: Any) -> Any:
    """maximum(a, 0)."""
    return apply("maximum", a, 0)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, as in ``where(v > 1, v - 1, v)``, else `b`."""
    return apply("where", condition, a, b)

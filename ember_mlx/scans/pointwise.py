"""Pointwise functions of the NumPy forms, with their slopes for the backward pass.

The logistic function uses NumPy's exp, which is vectorised and keeps the digits of values near 0, which tanh would lose. The sign of its
argument is folded into the weights before it, if there are any. Functions work in place where possible: allocating every intermediate
result costs more than the arithmetic.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

LECUN_OUTER, LECUN_INNER = 1.7159, 0.666
INV_SQRT_2, INV_SQRT_2PI = 1 / math.sqrt(2), 1 / math.sqrt(2 * math.pi)
# arrays, whose dtype NumPy determines twice as fast as that of a Python number
ONE: dict[np.dtype[Any], Array] = {np.dtype(dtype): np.array(1, dtype) for dtype in (np.float16, np.float32, np.float64)}
_erf64 = np.frompyfunc(math.erf, 1, 1)
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error below 1.5e-7, float32's own accuracy.
_ERF_P = 0.3275911
_ERF_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def sigmoid(a: Array) -> Array:
    """The logistic function, in place; see `sigmoid_of_negative`."""
    return sigmoid_of_negative(np.negative(a, out=a))


def sigmoid_of_negative(a: Array) -> Array:
    """From -a to the logistic function of a, 1 / (1 + exp(-a)), in place: with AVX2 NumPy's exp takes half as long as its tanh.

    Overflow gives the right value, 0; suppress the warning with np.errstate(over="ignore").
    """
    np.exp(a, out=a)
    a += ONE[a.dtype]
    return np.reciprocal(a, out=a)


def erf(a: Array) -> Array:
    """The error function: exact in float64, to 1.5e-7 in float32."""
    if a.dtype == np.float64:
        return np.asarray(_erf64(a), dtype=np.float64)
    magnitude = np.abs(a)
    t = 1 / (1 + _ERF_P * magnitude)
    series = np.zeros_like(a)
    for coefficient in _ERF_COEFFICIENTS:
        series = (series + coefficient) * t
    return np.copysign(1 - series * np.exp(-magnitude * magnitude), a)


def _tanh(a: Array, out: Array) -> Array:
    return np.tanh(a, out=out)


def _tanh_slope(z: Array, out: Array) -> Array:
    return np.subtract(1, np.multiply(z, z, out=out), out=out)


def _relu(a: Array, out: Array) -> Array:
    return np.maximum(a, 0, out=out)


def _relu_slope(z: Array, out: Array) -> Array:
    return np.greater(z, 0, out=out, casting="unsafe")


def _silu(a: Array, out: Array) -> Array:
    sigmoid_of_negative(np.negative(a, out=out))
    return np.multiply(a, out, out=out)


def _silu_slope(a: Array, out: Array) -> Array:
    s = sigmoid(a.copy())
    return np.multiply(s, 1 + a * (1 - s), out=out)


def _cumulative(a: Array) -> Array:
    """The cumulative distribution function of the standard normal distribution."""
    return 0.5 * (1 + erf(a * a.dtype.type(INV_SQRT_2)))


def _gelu(a: Array, out: Array) -> Array:
    return np.multiply(a, _cumulative(a), out=out)


def _gelu_slope(a: Array, out: Array) -> Array:
    return np.add(_cumulative(a), a * (INV_SQRT_2PI * np.exp(-0.5 * a * a)), out=out)


class Activation(NamedTuple):
    """z = outer * value(inner * a); the two constants can be folded into the weights before and after it.

    With `in_place` the slope is computed from the value, which may overwrite the argument; otherwise from the argument.
    """

    value: Callable[[Array, Array], Array]  # (argument, out)
    slope: Callable[[Array, Array], Array]  # (value or argument, out)
    in_place: bool
    inner: float = 1
    outer: float = 1


ACTIVATIONS = {
    "lecun_tanh": Activation(_tanh, _tanh_slope, True, LECUN_INNER, LECUN_OUTER),
    "tanh": Activation(_tanh, _tanh_slope, True),
    "relu": Activation(_relu, _relu_slope, True),
    "silu": Activation(_silu, _silu_slope, False),
    "gelu": Activation(_gelu, _gelu_slope, False),
}

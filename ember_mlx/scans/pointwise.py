"""Pointwise functions of the NumPy forms, with the slopes that their backwards need.

NumPy's tanh is vectorised and faster than its exp, so the logistic function is written through it. They work in place where they can:
fresh memory for every intermediate result costs more than the arithmetic.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

LECUN_OUTER, LECUN_INNER = 1.7159, 0.666
INV_SQRT_2, INV_SQRT_2PI = 1 / math.sqrt(2), 1 / math.sqrt(2 * math.pi)
_erf64 = np.frompyfunc(math.erf, 1, 1)
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error below 1.5e-7, float32's own accuracy.
_ERF_P = 0.3275911
_ERF_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def sigmoid(a: Array) -> Array:
    """The logistic function, 1 / (1 + exp(-a)), in place."""
    half = a.dtype.type(0.5)
    a *= half
    np.tanh(a, out=a)
    a *= half
    a += half
    return a


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


def _tanh(a: Array, slope: Array | None) -> Array:
    z = np.tanh(a, out=a)
    if slope is not None:
        np.multiply(z, z, out=slope)
        np.subtract(1, slope, out=slope)
    return z


def _lecun_tanh(a: Array, slope: Array | None) -> Array:
    number = a.dtype.type
    a *= number(LECUN_INNER)
    z = np.tanh(a, out=a)
    if slope is not None:
        np.multiply(z, z, out=slope)
        slope *= number(-LECUN_OUTER * LECUN_INNER)
        slope += number(LECUN_OUTER * LECUN_INNER)
    z *= number(LECUN_OUTER)
    return z


def _relu(a: Array, slope: Array | None) -> Array:
    if slope is not None:
        np.greater(a, 0, out=slope, casting="unsafe")
    return np.maximum(a, 0, out=a)


def _silu(a: Array, slope: Array | None) -> Array:
    s = sigmoid(a.copy())
    if slope is not None:
        np.multiply(s, 1 + a * (1 - s), out=slope)
    a *= s
    return a


def _gelu(a: Array, slope: Array | None) -> Array:
    cumulative = 0.5 * (1 + erf(a * a.dtype.type(INV_SQRT_2)))
    if slope is not None:
        np.add(cumulative, a * (INV_SQRT_2PI * np.exp(-0.5 * a * a)), out=slope)
    a *= cumulative
    return a


ACTIVATIONS: dict[str, Callable[[Array, Array | None], Array]] = {
    "lecun_tanh": _lecun_tanh,
    "tanh": _tanh,
    "relu": _relu,
    "silu": _silu,
    "gelu": _gelu,
}
"""name -> function of (a, slope) that turns a into its activation, in place, and fills `slope`, if given, with the derivative at a."""

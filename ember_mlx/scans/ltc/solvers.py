"""One unfold of each solver in the NumPy form, and its gradient.

The solvers use r = delta / cm, which makes dv/dt = (num - den v) / cm dimensionless; the semi-implicit solver avoids dividing by cm, with
r = delta / (cm + delta) and share = cm / (cm + delta). `evaluate` takes v (..., H, n) and returns r num and r den, (..., H, 2, n), or for
the semi-implicit solver r num and share + r den; its result may be overwritten.

The backward functions map the gradient of v after an unfold to that before it. `den` (E, H, n) is the second result of `evaluate`. A solver
writes the gradient of r num at evaluation e to h[e], (H, n); that of r den is -value h[e], where value is the factor of den in the
equation. pull(e) then returns the part of v's gradient through the synapses. Its result and the gradient `dv` may be overwritten.
"""

from collections.abc import Callable

import numpy as np

from ..pointwise import Array

Evaluate = Callable[[Array], Array]
Pull = Callable[[int], Array]


def _semi_implicit(evaluate: Evaluate, share: Array, v: Array, out: Array) -> None:
    """(cm v + delta num) / (cm + delta den), both over cm + delta."""
    sums = evaluate(v)
    num, den = sums[..., 0, :], sums[..., 1, :]
    num += np.multiply(share, v, out=out)
    np.divide(num, den, out=out)  # (5)


def _semi_implicit_back(pull: Pull, e: int, share: Array, den: Array, h: Array, dv: Array) -> Array:
    np.divide(dv, den[e], out=h[e])
    np.multiply(share, h[e], out=dv)
    result = pull(e)
    result += dv
    return result


def _explicit(evaluate: Evaluate, share: Array, v: Array, out: Array) -> None:
    np.add(v, _change(evaluate, v), out=out)


def _explicit_back(pull: Pull, e: int, share: Array, den: Array, h: Array, dv: Array) -> Array:
    h[e] = dv
    result = pull(e)
    result += dv - den[e] * dv
    return result


def _rk4(evaluate: Evaluate, share: Array, v: Array, out: Array) -> None:
    first = _change(evaluate, v)
    second = _change(evaluate, v + first / 2)
    third = _change(evaluate, v + second / 2)
    fourth = _change(evaluate, v + third)
    np.add(v, (first + 2 * second + 2 * third + fourth) / 6, out=out)


def _rk4_back(pull: Pull, e: int, share: Array, den: Array, h: Array, dv: Array) -> Array:
    result, arriving = dv.copy(), np.zeros_like(dv)
    for stage, weight, reach in ((e + 3, 6, 0), (e + 2, 3, 1), (e + 1, 3, 0.5), (e, 6, 0.5)):
        np.add(dv / weight, reach * arriving, out=h[stage])
        arriving = pull(stage)
        arriving -= den[stage] * h[stage]
        result += arriving
    return result


def _change(evaluate: Evaluate, v: Array) -> Array:
    """delta dv/dt."""
    sums = evaluate(v)
    return sums[..., 0, :] - sums[..., 1, :] * v


STEPS = {"semi_implicit": (_semi_implicit, _semi_implicit_back), "explicit": (_explicit, _explicit_back), "rk4": (_rk4, _rk4_back)}

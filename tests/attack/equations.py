"""Functions shared by the float64 loops, which are written from the equations alone: no module named here or below imports the package.

Every array has a leading axis of members, (N, ...): one pass of a loop runs a problem, the same one with rounded inputs, and what gives
their derivatives. A loop knows one sequence: x is (T, N, I), dt (T, N, 1), a state (N, features).

Numbers may be complex: the derivative of f in the direction d is the imaginary part of f(a + 1e-30 i d) / 1e-30, without a difference that
cancels (Squire and Trapp, SIAM Review 40, 110-112, 1998). So what is not analytic, as |a|, is written for that here.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Draw = Callable  # a sequence of choices -> one of them


class NeuronData(NamedTuple):
    """A neuron map as numbers; matrices are indexed [source, target] and hold -1, 0, 1; `layers` are neuron ids in the order of a step."""

    units: int
    outputs: int
    recurrent: np.ndarray
    sensory: np.ndarray
    layers: list | None


def dot(W, x):
    """(N, O, I), (N, I) -> (N, O)."""
    return (W @ x[..., None])[..., 0]


def sigma(a):
    """The logistic function, accurate where it is small."""
    e = np.exp(-absolute(a))
    return np.where(a.real < 0, e, 1) / (1 + e)


def softplus(a):
    return positive(a) + np.log1p(np.exp(-absolute(a)))


def absolute(a):
    return np.where(a.real < 0, -a, a)


def positive(a):
    return np.where(a.real > 0, a, 0)


def split(a, parts):
    """(N, parts * H) -> parts times (N, H)."""
    return np.split(a, parts, axis=-1)


def part(p, prefix):
    """The parameters below a path."""
    return {name.removeprefix(prefix): a for name, a in p.items() if name.startswith(prefix)}


def memory_step(p, x, h, c):
    """The LSTM of a mixed memory, with 1 added to the forget gate's argument."""
    a, i, f, o = split(dot(p["Wx"], x) + dot(p["Wh"], h) + p["bias"], 4)
    c = c * sigma(f + 1) + np.tanh(a) * sigma(i)
    return np.tanh(c) * sigma(o), c


def over_time(step, read_out, x, dt, state):
    """Take a step for each of x: outputs, the last of them, and the state."""
    outputs = []
    for x_t, dt_t in zip(x, dt, strict=True):
        state = step(x_t, dt_t, state)
        outputs.append(read_out(state))
    return outputs, outputs[-1], state

"""The mixed memory of the NumPy forms: an LSTM step before each step of another recurrence, which starts from its h.

    a, i, f, o = W x + R h + b;  c' = c sigma(f + 1) + tanh(a) sigma(i);  h' = tanh(c') sigma(o)

Source: Lechner and Hasani, Learning long-term dependencies in irregularly-sampled time series, 2020, https://arxiv.org/abs/2006.04418.
"""

from typing import Any, NamedTuple

import numpy as np

from .linear import StateProduct, Sums
from .pointwise import Array, sigmoid_of_negative
from .scratch import Scratch

Tree = dict[str, Any]


class MixedMemory(StateProduct):
    """The LSTM step on (h, c).

    Args:
        tree: w_x (4H, I), w_h (4H, H), b (4H,).
        rows: maximum rows of a step.
        scratch: buffers for the results.
    """

    def __init__(self, tree: Tree, rows: int, scratch: Scratch):
        H = tree["w_h"].shape[1]
        # sigma(a) = 1 / (1 + exp(-a)): the weights of i, f and o include the sign
        self.factors = np.repeat([1, -1, -1, -1], H).astype(tree["w_h"].dtype)
        b = tree["b"] + np.repeat([0, 0, 1, 0], H).astype(tree["w_h"].dtype)
        by_row = self.factors[:, None]
        super().__init__({"w_x": tree["w_x"] * by_row, "w_h": tree["w_h"] * by_row, "b": b * self.factors}, 4, rows, scratch)
        self.scratch, self.sums = scratch, Sums(scratch.part("sums"))

    def trace_shape(self, n: int) -> tuple[int, ...]:
        """The shape of the gates of n rows, the trace of `step` and `linearise`."""
        return self.of_state.shape(n)

    def gates(self, projected: Array, h: Array, trace: Array) -> Array:
        """tanh(a), sigma(i), sigma(f + 1), sigma(o): (4, n, H), written to `trace`."""
        self.with_state(projected, h, out=trace)
        np.tanh(trace[0], out=trace[0])
        sigmoid_of_negative(trace[1:])
        return trace

    def step(self, projected: Array, h: Array, c: Array, trace: Array, out: Array) -> tuple[Array, Array]:
        """(h, c), (n, H) each -> the same after the LSTM step, with c written to `out`."""
        a, i, f, o = self.gates(projected, h, trace)
        rest = np.multiply(a, i, out=self.scratch("temporary", *a.shape))
        c = np.multiply(f, c, out=out)
        c += rest
        np.tanh(c, out=rest)
        rest *= o
        return rest, c

    def linearise(self, x: Array, h: Array, c: Array, c_next: Array, trace: Array, traced: bool) -> "MemoryPoint":
        """For a block of steps at once: everything that `pull` needs and that does not depend on the gradients."""
        a, i, f, o = trace if traced else self.gates(self.project(x), h, trace)
        slopes, tanh_c = self.scratch("slopes", 4, *c.shape), np.tanh(c_next, out=self.scratch("tanh_c", *c.shape))
        by_a, by_i, by_f, by_o = slopes
        for of, gate, weight in ((by_i, i, a), (by_f, f, c), (by_o, o, tanh_c)):
            np.subtract(gate, 1, out=of)  # minus the slope, since the products are minus the argument of sigma
            of *= gate
            of *= weight
        np.multiply(a, a, out=by_a)
        np.subtract(1, by_a, out=by_a)
        by_a *= i
        h_inner = np.multiply(o, tanh_c, out=self.scratch("h_inner", *c.shape))
        tanh_c *= h_inner
        slope_c = np.subtract(o, tanh_c, out=tanh_c)  # o (1 - tanh(c)^2)
        d_gates = self.scratch("d_gates", len(h), len(self.w_h))
        return MemoryPoint(x, h, h_inner, f, slope_c, slopes[:3].swapaxes(0, 1), by_o, d_gates, d_gates.reshape(len(h), 4, h.shape[1]))

    def pull(self, point: "MemoryPoint", local: slice, dh: Array, dc: Array) -> None:
        """Gradients of the LSTM's h and c (n, H) -> those of the previous h and c, in place."""
        dc += dh * point.slope_c[local]
        d = point.d_by_gate[local]
        np.multiply(point.slope_aif[local], dc[:, None], out=d[:, :3])
        np.multiply(point.slope_o[local], dh, out=d[:, 3])
        self.to_state(point.d_gates[local], out=dh)
        dc *= point.f[local]

    def accumulate(self, point: "MemoryPoint") -> None:
        """Add a block's part of the weights' gradients."""
        self.sums.add_state_product(point.d_gates, point.x, point.h)

    def gradients(self) -> Tree:
        """The gradients in the structure of the tree."""
        totals = self.sums.totals
        return {name: totals[name] * (self.factors if name == "b" else self.factors[:, None]) for name in ("w_x", "w_h", "b")}


class MemoryPoint(NamedTuple):
    """The LSTM linearised at the states of a block of N steps."""

    x: Array  # (N, I)
    h: Array  # (N, H): before the LSTM
    h_inner: Array  # (N, H): after it
    f: Array  # (N, H)
    slope_c: Array  # (N, H): of h_inner, by c
    slope_aif: Array  # (N, 3, H): of c, by the gates' products
    slope_o: Array  # (N, H): of h_inner, by o's
    d_gates: Array  # (N, 4 H): gradients of the gates' products
    d_by_gate: Array  # (N, 4, H): a view of d_gates

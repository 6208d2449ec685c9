"""The mixed memory of the NumPy forms: an LSTM step that comes before another recurrence's step, which then works on its h.

    a, i, f, o = W x + R h + b;  c' = c sigma(f + 1) + tanh(a) sigma(i);  h' = tanh(c') sigma(o)

Source: Lechner and Hasani, Learning long-term dependencies in irregularly-sampled time series, 2020, https://arxiv.org/abs/2006.04418.
"""

from typing import Any, NamedTuple

import numpy as np

from .dense import Scratch, StateProduct, Sums
from .pointwise import Array, sigmoid_of_tanh
from .products import multiply

Tree = dict[str, Any]


class MixedMemory(StateProduct):
    """The LSTM step on (h, c)."""

    def __init__(self, tree: Tree, scratch: Scratch):
        H = tree["w_h"].shape[1]
        # sigma(a) = (1 + tanh(a / 2)) / 2: the half is in the weights of i, f and o
        self.factors = np.repeat([1, 0.5, 0.5, 0.5], H).astype(tree["w_h"].dtype)
        b = tree["b"] + np.repeat([0, 0, 1, 0], H).astype(tree["w_h"].dtype)
        by_row = self.factors[:, None]
        super().__init__({"w_x": tree["w_x"] * by_row, "w_h": tree["w_h"] * by_row, "b": b * self.factors}, 4, scratch)
        self.scratch, self.sums = scratch, Sums(scratch.part("sums"))

    def gates(self, projected: Array, h: Array) -> Array:
        """tanh(a), sigma(i), sigma(f + 1), sigma(o): (4, n, H)."""
        gates = self.with_state(projected, h)
        np.tanh(gates, out=gates)
        sigmoid_of_tanh(gates[1:])
        return gates

    def step(self, projected: Array, h: Array, c: Array, out: Array) -> tuple[Array, Array]:
        """(h, c) (n, H) each -> the same after the LSTM step, c in `out`."""
        a, i, f, o = self.gates(projected, h)
        f *= c
        a *= i
        c = np.add(f, a, out=out)
        o *= np.tanh(c, out=a)
        return o, c

    def linearise(self, x: Array, h: Array, c: Array, c_next: Array) -> "MemoryPoint":
        """For a block of steps at once: everything that the pull needs and that does not depend on it."""
        a, i, f, o = self.gates(self.project(x), h)
        slopes, tanh_c = self.scratch("slopes", 4, *c.shape), np.tanh(c_next, out=self.scratch("tanh_c", *c.shape))
        by_a, by_i, by_f, by_o = slopes
        for of, gate, weight in ((by_i, i, a), (by_f, f, c), (by_o, o, tanh_c)):
            np.subtract(1, gate, out=of)
            of *= gate
            of *= weight
        slopes[1:] *= 2  # by half the argument of sigma
        by_a[...] = i
        a *= a
        by_a -= np.multiply(a, i, out=a)
        h_inner = np.multiply(o, tanh_c, out=i)
        tanh_c *= h_inner
        o -= tanh_c  # o (1 - tanh(c)^2)
        d_gates = self.scratch("d_gates", len(h), len(self.w_h))
        return MemoryPoint(x, h, h_inner, f, o, slopes[:3].swapaxes(0, 1), by_o, d_gates, d_gates.reshape(len(h), 4, -1))

    def pull(self, point: "MemoryPoint", local: slice, dh: Array, dc: Array) -> None:
        """Gradients of the LSTM's h and c (n, H) -> those of the h and c before it, in place."""
        dc += dh * point.slope_c[local]
        d = point.d_by_gate[local]
        np.multiply(point.slope_aif[local], dc[:, None], out=d[:, :3])
        np.multiply(point.slope_o[local], dh, out=d[:, 3])
        multiply(point.d_gates[local], self.w_h, out=dh)
        dc *= point.f[local]

    def accumulate(self, point: "MemoryPoint") -> None:
        """Add a block's part of the weights' gradient."""
        self.sums.add_products(("w_x", "w_h"), "b", point.d_gates, (point.x, point.h))

    def gradients(self) -> Tree:
        """The gradients in the structure of the tree."""
        totals = self.sums.totals
        return {name: totals[name] * (self.factors if name == "b" else self.factors[:, None]) for name in ("w_x", "w_h", "b")}


class MemoryPoint(NamedTuple):
    """The LSTM at the states of a block of N steps."""

    x: Array  # (N, I)
    h: Array  # (N, H): before the LSTM
    h_inner: Array  # (N, H): after it
    f: Array  # (N, H)
    slope_c: Array  # (N, H): of h_inner, by c
    slope_aif: Array  # (N, 3, H): of c, by the gates' products
    slope_o: Array  # (N, H): of h_inner, by o's
    d_gates: Array  # (N, 4 H): gradients of the gates' products
    d_by_gate: Array  # (N, 4, H): a view of d_gates

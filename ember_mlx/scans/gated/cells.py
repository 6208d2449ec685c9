"""RNN, LSTM and GRU as cells: the one definition of their steps, from which the NumPy form and the MLX-ops form are made.

Gates are in the order of torch.nn::

    (1) q = W_h h,  a = W_x x + b + q       GRU: n's part of q is added in (2)
    (2) RNN:  a = tanh(a) or relu(a)
        LSTM: i, f, o = sigma(a_i, a_f, a_o);  g = tanh(a_g)
        GRU:  r, z = sigma(a_r, a_z);  n = tanh(W_xn x + b_n + r (q_n + b_hn))
    (3) RNN:  h' = a
        LSTM: c' = f c + i g;  h' = o tanh(c'), times W_hr if there is one
        GRU:  h' = n + z (h - n)
"""

from typing import Any

from ...step import maximum, sigmoid, tanh
from ...step.cell import Cell
from ...step.definition import Definition
from .spec import GatedSpec

Value = Any


class TanhRNN(Cell):
    """An RNN with tanh."""

    h_products = {"w_h": 1}

    def step(self, x: Value, h: Value, w_h: Value) -> Value:
        return tanh(x + w_h(h))  # (1), (2), (3)


class ReluRNN(Cell):
    """An RNN with relu."""

    h_products = {"w_h": 1}

    def step(self, x: Value, h: Value, w_h: Value) -> Value:
        return maximum(x + w_h(h), 0)  # (1), (2), (3)


class LSTM(Cell):
    """An LSTM."""

    states = ("h", "c")
    x_products = 4
    h_products = {"w_h": 4}

    def step(self, x: Value, h: Value, c: Value, w_h: Value) -> Value:
        c, m = lstm(x, c, w_h(h))
        return m, c


class ProjectedLSTM(Cell):
    """An LSTM whose h is projected to P features."""

    states = ("h", "c")
    x_products = 4
    h_products = {"w_h": 4, "w_hr": 1}
    sizes = {"h": "P", "w_hr": "P"}

    def step(self, x: Value, h: Value, c: Value, w_h: Value, w_hr: Value) -> Value:
        c, m = lstm(x, c, w_h(h))
        return w_hr(m), c


def lstm(x: Value, c: Value, q: Value) -> Value:
    """c' and o tanh(c') of an LSTM."""
    i, f, g, o = (a + b for a, b in zip(x, q, strict=True))  # (1)
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)  # (2)
    c = f * c + i * g  # (3)
    return c, o * tanh(c)


class GRU(Cell):
    """A GRU whose reset gate acts after the product."""

    x_products = 3
    h_products = {"w_h": 3}
    parameters = {"b_hn": 0.0}

    def step(self, x: Value, h: Value, w_h: Value, b_hn: Value) -> Value:
        q = w_h(h)  # (1)
        r, z = sigmoid(x[0] + q[0]), sigmoid(x[1] + q[1])  # (2)
        n = tanh(x[2] + r * (q[2] + b_hn))
        return n + z * (h - n)  # (3)


CELLS = {"tanh": TanhRNN(), "relu": ReluRNN(), "lstm": LSTM(), "projected": ProjectedLSTM(), "gru": GRU()}
Tree = dict[str, Any]
PLACES = {
    "h0": ("initial", "h"),
    "c0": ("initial", "c"),
    "w_h": ("weights", "w_h"),
    "w_hr": ("weights", "w_hr"),
    "b_hn": ("parameters", "b_hn"),
}
"""Array of a gated scan -> where it lies in the tree of a cell's scan."""


def definition_of(spec: GatedSpec, arrays: Tree) -> Definition:
    """The definition of the cell that a gated scan runs."""
    definition: Definition = CELLS["projected" if "w_hr" in arrays else spec.cell].definition
    return definition


def cell_tree(arrays: Tree) -> Tree:
    """The arrays of a gated scan as the tree of a cell's scan."""
    tree: Tree = {"initial": {}, "weights": {}, "parameters": {}}
    for name, a in arrays.items():
        if name in PLACES:
            part, key = PLACES[name]
            tree[part][key] = a
        else:
            tree[name] = a
    return tree


def gated_tree(tree: Tree) -> Tree:
    """The other way round."""
    own = {name: tree[part][key] for name, (part, key) in PLACES.items() if key in tree[part]}
    return own | {name: a for name, a in tree.items() if name not in ("initial", "weights", "parameters")}

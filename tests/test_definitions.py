"""The hand-written recurrences beside definitions of their steps as cells: values and all gradients in float64.

CfC and the quantum layers keep forms of their own, which are faster than those made from a graph. These definitions are what they must
equal.
"""

import math

import numpy as np
import pytest

from ember_mlx import Cell
from ember_mlx.scans.cell.reference import cell_backward, cell_forward
from ember_mlx.scans.cfc.random_cases import random_arrays as cfc_arrays
from ember_mlx.scans.cfc.reference import cfc_backward, cfc_forward
from ember_mlx.scans.cfc.spec import CfCSpec
from ember_mlx.scans.quantum.random_cases import quantum_problem
from ember_mlx.scans.quantum.reference import quantum_backward, quantum_forward
from ember_mlx.step import abs, cos, erf, exp, expm1, maximum, relu, sigmoid, sin, tanh

T, B, H = 6, 3, 5
ACTIVATIONS = {
    "lecun_tanh": lambda a: 1.7159 * tanh(0.666 * a),
    "tanh": tanh,
    "relu": relu,
    "silu": lambda a: a * sigmoid(a),
    "gelu": lambda a: a * (0.5 * (1 + erf(a / math.sqrt(2)))),
}


def next_of_heads(mode, heads, dt, w_tau=None, A=None):
    """The CfC's next state."""
    if mode == "pure":
        rate = maximum(-w_tau, w_tau) + abs(heads)
        return A - A * exp(-dt * rate) * heads
    f, g, t_a, t_b = heads
    f, g, t = tanh(f), tanh(g), sigmoid(t_a * dt + t_b)
    return f + g * t if mode == "no_gate" else f * (1 - t) + g * t


class HeadsOnly(Cell):
    """A CfC without backbone."""

    x_products = 4
    h_products = {"w_h": 4}

    def __init__(self, mode):
        self.mode = mode

    def step(self, x, h, dt, w_h):
        return next_of_heads(self.mode, [a + b for a, b in zip(x, w_h(h), strict=True)], dt)


class PureHeadsOnly(Cell):
    """A CfC in pure mode without backbone."""

    h_products = {"w_h": 1}
    parameters = {"w_tau": 0.0, "A": 1.0}

    def step(self, x, h, dt, w_h, w_tau, A):
        return next_of_heads("pure", x + w_h(h), dt, w_tau, A)


class Backbone(Cell):
    """A CfC with one backbone layer, of as many units."""

    h_products = {"w_h": 1, "w": 4}
    parameters = dict.fromkeys(("b0", "b1", "b2", "b3"), 0.0)

    def __init__(self, mode, activation):
        self.mode, self.activation = mode, activation

    def step(self, x, h, dt, w_h, w, b0, b1, b2, b3):
        z = ACTIVATIONS[self.activation](x + w_h(h))
        return next_of_heads(self.mode, [a + b for a, b in zip(w(z), (b0, b1, b2, b3), strict=True)], dt)


class MixedMemory(Cell):
    """A CfC without backbone whose step an LSTM precedes."""

    states = ("h", "c")
    x_products = 8
    h_products = {"lstm": 4, "w_h": 4}

    def step(self, x, h, c, dt, lstm, w_h):
        a, i, f, o = (p + q for p, q in zip(x[:4], lstm(h), strict=True))
        c = c * sigmoid(f + 1) + tanh(a) * sigmoid(i)
        h = tanh(c) * sigmoid(o)
        return next_of_heads("default", [p + q for p, q in zip(x[4:], w_h(h), strict=True)], dt), c


def cell_of(spec, arrays, depth):
    """The cell, its tree of arrays, and pairs of gradients: path in the CfC's tree, path in the cell's."""
    (stage,) = arrays["stages"]
    tree = {"x": arrays["x"][None], "dt": arrays["dt"][None], "w_x": stage["w_x"][None], "b": stage["b"][None], "parameters": {}}
    tree |= {"initial": {"h": arrays["h0"][None]}, "weights": {"w_h": stage["w_h"][None]}}
    tree |= {"lengths": arrays["lengths"]} if "lengths" in arrays else {}
    if spec.mixed_memory:
        lstm = arrays["lstm"]
        tree["initial"]["c"], tree["weights"]["lstm"] = arrays["c0"][None], lstm["w_h"][None]
        tree["w_x"], tree["b"] = (np.concatenate([lstm[name], stage[name]])[None] for name in ("w_x", "b"))
        return MixedMemory(), tree
    if depth:
        dense = stage["dense"][0]
        tree["weights"]["w"], tree["parameters"] = dense["w"][None], {f"b{k}": b[None] for k, b in enumerate(dense["b"].reshape(4, H))}
        return Backbone(spec.mode, spec.activation), tree
    if spec.mode == "pure":
        return PureHeadsOnly(), tree | {"parameters": {"w_tau": stage["w_tau"][None], "A": stage["A"][None]}}
    return HeadsOnly(spec.mode), tree


def gradients_as_cell(spec, d, depth):
    """A CfC's gradients in the form of the cell's."""
    (stage,) = d["stages"]
    result = {"x": d["x"], "dt": d["dt"], "h": d["h0"], "w_h": stage["w_h"], "w_x": stage["w_x"], "b": stage["b"]}
    if spec.mixed_memory:
        result |= {"c": d["c0"], "lstm": d["lstm"]["w_h"]}
        result |= {name: np.concatenate([d["lstm"][name], stage[name]]) for name in ("w_x", "b")}
    if depth:
        dense = stage["dense"][0]
        result |= {"w": dense["w"]} | {f"b{k}": b for k, b in enumerate(dense["b"].reshape(4, H))}
    return result | {name: stage[name] for name in ("w_tau", "A") if name in stage}


def flat(gradients):
    parts = ("initial", "weights", "parameters")
    own = {name: a[0] for name, a in gradients.items() if name not in parts}
    return own | {name: a[0] for part in parts for name, a in gradients[part].items()}


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(
    ("mode", "activation", "depth", "mixed_memory"),
    [
        *((mode, "lecun_tanh", 0, False) for mode in ("default", "no_gate", "pure")),
        *(("default", activation, 1, False) for activation in ACTIVATIONS),
        ("no_gate", "silu", 1, False),
        ("default", "lecun_tanh", 0, True),
    ],
)
def test_cfc(mode, activation, depth, mixed_memory, lengths):
    spec = CfCSpec(((0, H),), mode, activation, mixed_memory)
    arrays = cfc_arrays(spec, T, B, H, depth, lengths=lengths, dropout=False)
    cell, tree = cell_of(spec, arrays, depth)
    outputs = cfc_forward(spec, arrays)
    expected = cell_forward(cell.definition, tree)
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a, b[0], rtol=0, atol=1e-13)
    dy = tuple(np.random.default_rng(1).standard_normal(a.shape) for a in outputs)
    ours = gradients_as_cell(spec, cfc_backward(spec, arrays, outputs, dy), depth)
    theirs = flat(cell_backward(cell.definition, tree, expected, tuple(a[None] for a in dy)))
    assert ours.keys() == theirs.keys()
    for name, a in ours.items():
        np.testing.assert_allclose(a, theirs[name], rtol=0, atol=1e-12, err_msg=name)


class Quantum(Cell):
    """LQNet; "mean" is a product with 1 / H everywhere."""

    states = ("h_c", "h_s")
    h_products = {"omega": 1, "mean": 1, "w_h": 1}
    parameters = {"tau": 1.0}

    def __init__(self, nu_0, beta):
        self.nu_0, self.beta = nu_0, beta

    def step(self, x, h_c, h_s, dt, omega, mean, w_h, tau):
        theta = dt * omega(h_c * h_c + h_s * h_s)
        h_c, h_s = h_c * cos(theta) - h_s * sin(theta), h_c * sin(theta) + h_s * cos(theta)
        nu = self.nu_0 * exp(-self.beta * mean(h_c * h_c + h_s * h_s))
        kappa = -expm1(-nu * dt / tau)
        return h_c + kappa * (tanh(w_h(h_c) + x) - h_c), h_s + kappa * (tanh(w_h(h_s)) - h_s)


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
def test_lqnet(lengths):
    spec, arrays = quantum_problem("lqnet", T, B, H, lengths=lengths)
    given = {name: arrays[name][None] for name in ("x", "dt", "w_x", "b")} | {"parameters": {"tau": arrays["tau"][None]}}
    given |= {"initial": {"h_c": arrays["h_c0"][None], "h_s": arrays["h_s0"][None]}}
    given |= {"weights": {"omega": arrays["omega"][None], "mean": np.full((1, H, H), 1 / H), "w_h": arrays["w_h"][None]}}
    given |= {"lengths": arrays["lengths"]} if lengths else {}
    definition = Quantum(spec.nu_0, spec.beta).definition
    outputs, expected = quantum_forward(spec, arrays), cell_forward(definition, given)
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a, b[0], rtol=0, atol=1e-13)
    dy = tuple(np.random.default_rng(1).standard_normal(a.shape) for a in outputs)
    ours = quantum_backward(spec, arrays, outputs, dy)
    theirs = flat(cell_backward(definition, given, expected, tuple(a[None] for a in dy)))
    for name, a in theirs.items():
        if name != "mean":
            np.testing.assert_allclose(ours[{"h_c": "h_c0", "h_s": "h_s0"}.get(name, name)], a, rtol=0, atol=1e-12, err_msg=name)

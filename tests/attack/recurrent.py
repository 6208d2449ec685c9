"""Recurrent with the cells of ember_mlx.cells: what is drawn, and the float64 loops from their papers' equations."""

import numpy as np

from . import gated
from .equations import dot, positive, sigma, split

TIMED = ("CTRNN", "GRUD", "LEM", "ODELSTM")
CELLS = ("CTRNN", "CoRNN", "GRUD", "IndRNN", "LEM", "MinGRU", "MinLSTM", "ODELSTM", "SRU", "UGRNN")


def options(draw, name):
    given = {"cell": draw(CELLS), "hidden_size": draw([1, 2, 3, 5, 8]), "num_layers": draw([1, 1, 2])}
    given |= {"bias": draw([True, True, False]), "bidirectional": draw([False, True])}
    given["settings"] = {}
    if given["cell"] == "CTRNN":
        given["settings"] = {"unfolds": draw([1, 3])}
    if given["cell"] == "CoRNN":
        given["settings"] = {"step_size": draw([0.05, 0.3]), "gamma": draw([1.0, 2.5]), "epsilon": draw([0.0, 4.0])}
    return given


def step(cell, settings, p, x, dt, state):
    """The next states from the products x with the inputs, dt (N, 1) and the states (N, H)."""
    h, *others = state
    if cell == "MinGRU":
        z = sigma(x[0])
        return [(1 - z) * h + z * x[1]]
    if cell == "MinLSTM":
        f, i = sigma(x[0]), sigma(x[1])
        return [(f * h + i * x[2]) / (f + i)]
    if cell == "IndRNN":
        return [positive(x[0] + p["u"] * h)]
    if cell == "SRU":
        f, r = sigma(x[0] + p["v_f"] * others[0]), sigma(x[1] + p["v_r"] * others[0])
        c = f * others[0] + (1 - f) * x[2]
        return [r * c + (1 - r) * x[3], c]
    if cell == "CoRNN":
        size, gamma, epsilon = settings["step_size"], settings["gamma"], settings["epsilon"]
        z = others[0] + size * (np.tanh(x[0] + dot(p["W"], h) + dot(p["W_z"], others[0])) - gamma * h - epsilon * others[0])
        return [h + size * z, z]
    if cell == "LEM":
        a, b, c = split(dot(p["W_y"], h), 3)
        slow, fast = dt * sigma(x[0] + a), dt * sigma(x[1] + b)
        z = (1 - slow) * others[0] + slow * np.tanh(x[2] + c)
        return [(1 - fast) * h + fast * np.tanh(x[3] + dot(p["W_z"], z)), z]
    if cell == "UGRNN":
        c, g = split(dot(p["R"], h), 2)
        g = sigma(x[1] + g)
        return [g * h + (1 - g) * np.tanh(x[0] + c)]
    return [timed_step(cell, settings, p, x, dt, h)]


def timed_step(cell, settings, p, x, dt, h):
    """The next state of the cells that have one state and time."""
    if cell == "CTRNN":
        for _ in range(settings["unfolds"]):
            h = h - np.expm1(-dt / settings["unfolds"] * np.exp(p["rate"])) * (np.tanh(x[0] + dot(p["R"], h)) - h)
        return h
    if cell == "ODELSTM":
        for _ in range(2):
            h = h + dt / 2 * np.tanh(dot(p["F"], h))
        r, z, n = split(dot(p["R"], h), 3)
        z = sigma(x[1] + z)
        return (1 - z) * np.tanh(x[2] + sigma(x[0] + r) * n) + z * h
    if cell != "GRUD":
        raise ValueError(f"no loop for {cell}")
    h = np.exp(-positive(p["w"] * dt + p["b"])) * h
    r, z = split(dot(p["R"], h), 2)
    r, z = sigma(x[0] + r), sigma(x[1] + z)
    return (1 - z) * h + z * np.tanh(x[2] + dot(p["R_n"], r * h))


PRODUCTS = {"CTRNN": 1, "CoRNN": 1, "GRUD": 3, "IndRNN": 1, "LEM": 4, "MinGRU": 2, "MinLSTM": 3, "ODELSTM": 3, "SRU": 4, "UGRNN": 2}


def one_direction(name, given, p, x, dt, state):
    """(T, N, I) -> outputs [(N, O)] and the state [(N, H)]."""
    outputs = []
    for x_t, dt_t in zip(x, dt, strict=True):
        products = split(dot(p["Wx"], x_t) + p.get("bias", 0), PRODUCTS[given["cell"]])
        state = step(given["cell"], given["settings"], p, products, dt_t, state)
        outputs.append(state[0])
    return outputs, state


def run(name, given, neurons, p, x, dt, state, xi=None):
    """A state is (N, layers * directions, H)."""
    return gated.in_layers(one_direction, name, given, p, x, dt, state)


read_out = gated.read_out

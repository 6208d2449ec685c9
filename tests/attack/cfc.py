"""CfC: random configurations, and the float64 loop."""

from functools import partial
from math import erf

import numpy as np

from .equations import absolute, dot, memory_step, over_time, part, positive, sigma, split

TIMED = True


def complex_erf(a):
    """For a small imaginary part."""
    return np.vectorize(erf, otypes=[float])(a.real) + 2j / np.sqrt(np.pi) * np.exp(-(a.real**2)) * a.imag


ACTIVATIONS = {
    "lecun_tanh": lambda a: 1.7159 * np.tanh(0.666 * a),
    "tanh": np.tanh,
    "relu": positive,
    "silu": lambda a: a * sigma(a),
    "gelu": lambda a: a * (1 + complex_erf(a / np.sqrt(2))) / 2,
}


def options(draw, name, full):
    """With a backbone only where the map is full."""
    given = {
        "mode": draw(["default", "default", "no_gate", "pure"]),
        "mixed_memory": draw([False, True]),
        "time_scale_factor": draw([None, 0.5, 3.0]),
        "mask_time_heads": draw([True, False]),
        "proj_size": draw([None, None, 2]),
        "output": draw(["units", "motor"]),
    }
    if full:
        given["backbone_layers"] = draw([0, 1, 1, 2, 3])
        given["backbone_units"] = draw([1, 4, 7, 33]) if given["backbone_layers"] else None
        given["activation"] = draw(list(ACTIVATIONS)) if given["backbone_layers"] else "lecun_tanh"
    return given


def one_layer(given, p, mask, u, h, dt):
    """One CfC step; `mask` (H, inputs + H) is of what comes from outside and from its own units."""
    z = np.concatenate([u, h], axis=-1)
    for k in range(given.get("backbone_layers", 0)):
        b = part(p, f"backbone.{k}.")
        z = ACTIVATIONS[given["activation"]](dot(b["weight"], z) + b["bias"])  # (1)
    W, bias, A = p["heads.weight"], p["heads.bias"], p.get("A")
    if given["mode"] == "pure":
        f = dot(W if mask is None else W * mask, z) + bias  # (2)
        return A - A * np.exp(-dt * (absolute(p["w_tau"]) + absolute(f))) * f  # (3)
    if mask is not None:
        times = mask if given["mask_time_heads"] else np.ones_like(mask)
        W = W * np.concatenate([mask, mask, times, times])
    f, g, t_a, t_b = split(dot(W, z) + bias, 4)  # (2)
    t_interp = sigma(t_a * dt + t_b)  # (3)
    if given["mode"] == "no_gate":
        return np.tanh(f) + np.tanh(g) * t_interp
    return np.tanh(f) * (1 - t_interp) + np.tanh(g) * t_interp


def step(given, neurons, p, x, dt, state):
    """A state is [h, t], or [h, c, t]."""
    h, *c, t = state
    dt = dt * (given["time_scale_factor"] or 1)
    if c:
        h, *c = memory_step(part(p, "lstm."), x, h, c[0])
    recurrent, sensory = np.abs(neurons.recurrent), np.abs(neurons.sensory)
    after, u, source = np.zeros_like(h, complex), x, sensory
    for k, ids in enumerate(neurons.layers or [range(neurons.units)]):
        ids = list(ids)
        own = np.ones((len(ids), len(ids))) if neurons.layers else recurrent
        mask = np.concatenate([source[:, ids], own]).T
        u = after[:, ids] = one_layer(given, part(p, f"stages.{k}."), None if mask.all() else mask, u, h[:, ids], dt)
        source = recurrent[ids]
    return [after, *c, t + dt]


def read_out(name, given, neurons, p, state):
    y = state[0][:, : neurons.outputs] if given["output"] == "motor" else state[0]
    return dot(p["proj.weight"], y) + p["proj.bias"] if given["proj_size"] else y


def run(name, given, neurons, p, x, dt, state, xi=None):
    return over_time(partial(step, given, neurons, p), partial(read_out, name, given, neurons, p), x, dt, state)

"""LTC: random configurations, and the float64 loop."""

from functools import partial

import numpy as np

from .equations import dot, memory_step, over_time, part, sigma, softplus

TIMED = True


def options(draw, name, full):
    return {
        "input_mapping": draw(["affine", "linear", None]),
        "output_mapping": draw(["affine", "linear", None]),
        "ode_unfolds": draw([1, 2, 3, 6]),
        "epsilon": draw([1e-8, 0.0, 1e-3]),
        "solver": draw(["semi_implicit", "semi_implicit", "explicit", "rk4"]),
        "implicit_param_constraints": draw([True, False]),
        "mixed_memory": draw([False, False, True]),
    }


def synapse_sums(p, matrix, v):
    """sum_i s_ij erev_ij and sum_i s_ij over the map's synapses, which are ordered by target, then by source."""
    targets, sources = np.nonzero(matrix.T)
    s = p["w"] * sigma(p["sigma"] * (v[:, sources] - p["mu"]))  # (2)
    reached = (targets == np.arange(matrix.shape[1])[:, None]).astype(float)  # (H, S)
    return dot(reached, s * p["erev"]), dot(reached, s)


def step(given, neurons, p, x, dt, state):
    """A state is [v], or [v, c]."""
    v, *c = state
    if given["implicit_param_constraints"]:
        p = {**p, **{name: softplus(p[name]) for name in ("w", "sensory_w", "cm", "gleak")}}
    if c:
        v, *c = memory_step(part(p, "lstm."), x, v, c[0])
    u = x * p.get("input_w", 1) + p.get("input_b", 0)
    num_s, den_s = synapse_sums(part(p, "sensory_"), neurons.sensory, u)  # (1)
    cm, delta = p["cm"], dt / given["ode_unfolds"]

    def sums(v):
        num, den = synapse_sums(p, neurons.recurrent, v)
        return p["gleak"] * p["vleak"] + num + num_s, p["gleak"] + den + den_s  # (3), (4)

    def rate(v):
        num, den = sums(v)
        return (num - den * v) / cm

    for _ in range(given["ode_unfolds"]):
        if given["solver"] == "semi_implicit":
            num, den = sums(v)
            v = (cm * v + delta * num) / (cm + delta * (den + given["epsilon"]))  # (5)
        elif given["solver"] == "explicit":
            v = v + delta * rate(v)
        else:
            k1 = rate(v)
            k2 = rate(v + delta / 2 * k1)
            k3 = rate(v + delta / 2 * k2)
            v = v + delta / 6 * (k1 + 2 * k2 + 2 * k3 + rate(v + delta * k3))
    return [v, *c]


def read_out(name, given, neurons, p, state):
    return state[0][:, : neurons.outputs] * p.get("output_w", 1) + p.get("output_b", 0)


def run(name, given, neurons, p, x, dt, state, xi=None):
    return over_time(partial(step, given, neurons, p), partial(read_out, name, given, neurons, p), x, dt, state)

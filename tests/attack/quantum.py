"""LQNet and CTRQNet: random configurations, and the float64 loop."""

import numpy as np

from .equations import dot, softplus

TIMED = True


def options(draw, name, full):
    given = {"nu_0": draw([1.0, 0.0, 0.3]), "beta": draw([0.1, 0.0, 2.0]), "noise_scale": draw([0.1, 0.0])}
    if name == "CTRQNet":
        given |= {"time_scale_factor": draw([None, 0.5, 4.0]), "use_harmonic_embedding": draw([True, False])}
    return given


def drive(given, neurons, p, x, t):
    a = p["drive.weight"] * np.abs(neurons.sensory).T
    if given.get("use_harmonic_embedding"):
        a = a * np.sin(2 * np.pi * 0.01 * p["drive.frequency"] * t[..., None] + p["drive.phase"])  # the parameter is 100 f
    return dot(a, x) + p["drive.bias"]  # (1)


def step(given, neurons, p, x, dt, state, xi):
    """A state is [h_c, h_s, t], t (N, 1); `xi` (2 H,) is the noise, or None."""
    h_c, h_s, t = state
    synapses = np.abs(neurons.recurrent)
    R = np.swapaxes(p["R"] * synapses, -1, -2)
    Omega = (p["Omega"] + np.swapaxes(p["Omega"], -1, -2)) / 2 * np.maximum(synapses, synapses.T)
    t = t + dt
    u = drive(given, neurons, p, x, t)
    theta = dt * dot(Omega, h_c**2 + h_s**2)  # (2)
    h_c, h_s = h_c * np.cos(theta) - h_s * np.sin(theta), h_c * np.sin(theta) + h_s * np.cos(theta)
    if xi is not None:
        B = np.swapaxes(p["B_noise"], -1, -2)
        n_c, n_s = (given["noise_scale"] * np.sqrt(dt) * (B @ part) for part in np.split(xi, 2))
        h_c, h_s = h_c + n_c, h_s + n_s  # (3)
    nu = given["nu_0"] * np.exp(-given["beta"] * (h_c**2 + h_s**2).mean(axis=-1, keepdims=True))  # (4)
    tau = (given.get("time_scale_factor") or 1) * softplus(p["time_scale"]) if "time_scale" in p else 1
    kappa = -np.expm1(-nu * dt / tau)  # (5)
    return [(1 - kappa) * h_c + kappa * np.tanh(dot(R, h_c) + u), (1 - kappa) * h_s + kappa * np.tanh(dot(R, h_s)), t]


def read_out(name, given, neurons, p, state):
    return state[0] + state[1]


def run(name, given, neurons, p, x, dt, state, xi=None):
    """`xi` (T, 2 H), or None."""
    outputs = []
    for k, (x_t, dt_t) in enumerate(zip(x, dt, strict=True)):
        state = step(given, neurons, p, x_t, dt_t, state, None if xi is None else xi[k])
        outputs.append(read_out(name, given, neurons, p, state))
    return outputs, outputs[-1], state

"""A whole call in float64: each sequence separately, backwards, in both directions, and at several strides."""

import numpy as np

from . import cfc, gated, ltc, quantum, recurrent
from .equations import part

CELLS = {"RNN": gated, "LSTM": gated, "GRU": gated, "Recurrent": recurrent, "CfC": cfc, "LTC": ltc, "LQNet": quantum, "CTRQNet": quantum}


def call(config, neurons, leaves, xi=None):
    """The outputs by name, y and "state 0", ...; `leaves` by name as `problems.leaves_of` makes them, `xi` the noise (T, B, 2 H)."""
    x = leaves["x"]
    if not config["batched"]:
        x = x[:, None]
    elif not config["batch_first"]:
        x = x.swapaxes(1, 2)
    N, B, T, _ = x.shape
    dt = times(config, leaves, N, B, T)
    states = [a for name, a in leaves.items() if name.startswith("state ")]
    lengths = config["lengths"] or [T] * B
    parameters = part(leaves, "p.")
    results = []
    for b, n in enumerate(lengths):
        own = [a.take(b, axis=-2) if config["batched"] else a for a in states]
        noise = None if xi is None else xi[:, b]
        outputs, last, state = wrapped(config, neurons, parameters, x[:, b, :n].swapaxes(0, 1), dt[:, b, :n].T[..., None], own, noise)
        outputs = np.stack(outputs + [np.zeros_like(outputs[0])] * (T - n), axis=1)
        results.append([outputs if config["return_sequences"] else last, *state])
    y, *final = zip(*results, strict=True)
    y = np.stack(y, axis=1) if config["batched"] else y[0]
    if config["batched"] and config["return_sequences"] and not config["batch_first"]:
        y = y.swapaxes(1, 2)
    return {"y": y} | {f"state {k}": np.stack(a, axis=-2) if config["batched"] else a[0] for k, a in enumerate(final)}


def times(config, leaves, N, B, T):
    """(N, B, T): the time that elapses before each step."""
    if config["times"] is None:
        return np.ones((N, B, T))
    dt = leaves["dt"]
    if dt.ndim == 1:
        return np.broadcast_to(dt[:, None, None], (N, B, T))
    dt = dt[..., 0] if config["times_last_axis"] else dt
    if not config["batched"]:
        return dt[:, None]
    return dt if config["batch_first"] else dt.swapaxes(1, 2)


def wrapped(config, neurons, p, x, dt, state, xi):
    """(outputs, the last one, state) of a sequence x (T, N, I)."""
    if config["both"]:
        half = len(state) // 2
        forward = one(config, neurons, part(p, "forward_layer."), x, dt, state[:half], None)
        back = one(config, neurons, part(p, "backward_layer."), x[::-1], dt[::-1], state[half:], None)
        outputs = [np.concatenate(pair, axis=-1) for pair in zip(forward[0], back[0][::-1], strict=True)]
        return outputs, np.concatenate([forward[1], back[1]], axis=-1), [*forward[2], *back[2]]
    if config["go_backwards"]:
        x, dt = x[::-1], dt[::-1]
    if config["strides"]:
        return at_strides(config, neurons, p, x, dt, state)
    return one(config, neurons, p, x, dt, state, xi)


def one(config, neurons, p, x, dt, state, xi):
    return CELLS[config["cell"]].run(config["cell"], config["options"], neurons, p, x, dt, state, xi)


def at_strides(config, neurons, p, x, dt, state):
    """The layer of stride s takes the steps that it divides, with the time since its own last one; between them its output is held."""
    *states, steps, elapsed = state
    cell, before = CELLS[config["cell"]], int(steps.ravel()[0].real)
    count, outputs, final, since = len(states) // len(config["strides"]), [], [], []
    for k, stride in enumerate(config["strides"]):
        own, waited = states[k * count : (k + 1) * count], elapsed[:, k : k + 1]
        own_p = part(p, f"layers.{k}.")
        y, held = cell.read_out(config["cell"], config["options"], neurons, own_p, own), []
        for t in range(len(x)):
            waited = waited + dt[t]
            if (before + t) % stride == 0:
                _, y, own = one(config, neurons, own_p, x[t : t + 1], waited[None], own, None)
                waited = np.zeros_like(waited)
            held.append(y)
        outputs.append(held)
        final += own
        since.append(waited)
    outputs = [np.concatenate(parts, axis=-1) for parts in zip(*outputs, strict=True)]
    return outputs, outputs[-1], [*final, steps + len(x), np.concatenate(since, axis=-1)]

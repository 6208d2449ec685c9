"""RNN, LSTM and GRU, as torch.nn defines them: random configurations, and the float64 loop."""

import numpy as np

from .equations import dot, part, positive, sigma, split

TIMED = False


def options(draw, name):
    H = draw([1, 2, 3, 5, 8])
    given = {"hidden_size": H, "num_layers": draw([1, 1, 2, 3]), "bias": draw([True, True, False]), "bidirectional": draw([False, True])}
    if name == "RNN":
        given["activation"] = draw(["tanh", "relu"])
    if name == "LSTM":
        given["proj_size"] = draw([None, 1, H - 1]) if H > 1 else None
    return given


def rnn(p, x, h, relu):
    a = dot(p["Wx"], x) + dot(p["Wh"], h) + p.get("bias", 0)
    return positive(a) if relu else np.tanh(a)


def lstm(p, x, h, c):
    i, f, g, o = split(dot(p["Wx"], x) + dot(p["Wh"], h) + p.get("bias", 0), 4)
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    h = sigma(o) * np.tanh(c)
    return (dot(p["Wr"], h) if "Wr" in p else h), c


def gru(p, x, h):
    (xr, xz, xn), (hr, hz, hn) = split(dot(p["Wx"], x) + p.get("bias", 0), 3), split(dot(p["Wh"], h), 3)
    r, z = sigma(xr + hr), sigma(xz + hz)
    n = np.tanh(xn + r * (hn + p.get("bhn", 0)))
    return (1 - z) * n + z * h


def one_direction(name, given, p, x, dt, state):
    """(T, N, I) -> outputs [(N, O)] and the state [(N, F)]."""
    outputs = []
    for x_t in x:
        if name == "RNN":
            state = [rnn(p, x_t, *state, given["activation"] == "relu")]
        else:
            state = list(lstm(p, x_t, *state)) if name == "LSTM" else [gru(p, x_t, *state)]
        outputs.append(state[0])
    return outputs, state


def run(name, given, neurons, p, x, dt, state, xi=None):
    """A state is (N, layers * directions, F)."""
    return in_layers(one_direction, name, given, p, x, dt, state)


def in_layers(one_direction, name, given, p, x, dt, state):
    """Layers one above the other, each in one direction or in both."""
    directions = ["forward", "backward"] if given["bidirectional"] else ["forward"]
    final = []
    for k in range(given["num_layers"]):
        both, last = [], []
        for direction in directions:
            own = [a[:, k * len(directions) + len(both)] for a in state]
            back = direction == "backward"
            way = (x[::-1], dt[::-1]) if back else (x, dt)
            outputs, end = one_direction(name, given, part(p, f"layers.{k}.{direction}."), *way, own)
            last.append(outputs[-1])
            both.append(outputs[::-1] if back else outputs)
            final.append(end)
        x = [np.concatenate(steps, axis=-1) for steps in zip(*both, strict=True)]
    return x, np.concatenate(last, axis=-1), [np.stack(parts, axis=1) for parts in zip(*final, strict=True)]


def read_out(name, given, neurons, p, state):
    """The output that goes with a state; in one direction only."""
    return state[0][:, -1]

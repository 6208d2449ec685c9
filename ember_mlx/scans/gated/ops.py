"""The MLX-ops form of the gated scan: slower than the others, but differentiable to any order and inside any transformation.

The arrays are those of the NumPy form (reference.py); gradients are MLX's.
"""

from typing import Any

import mlx.core as mx

from ..ops import tanh
from .spec import GatedSpec

Tree = dict[str, Any]


def gated_ops(spec: GatedSpec, arrays: Tree) -> list[mx.array]:
    """Run an RNN, LSTM or GRU: [h] (D, T, B, H), for an LSTM [h, c]; zero past each length."""
    state = [arrays[name] for name in ("h0", "c0") if name in arrays]
    lengths, T = arrays.get("lengths"), arrays["x"].shape[1]
    projected = [part.squeeze(1) for part in mx.split(project_inputs(arrays), T, axis=1)]  # a[t]'s gradient, a scatter, has no jvp
    steps = []
    for t in range(T):
        after = step(spec, arrays, projected[t], state)
        if lengths is None:
            state = after
            steps.append(state)
            continue
        valid = (t < lengths)[:, None]
        state = [mx.where(valid, new, old) for new, old in zip(after, state, strict=True)]
        steps.append([mx.where(valid, a, 0) for a in state])
    return [mx.stack(list(kept), axis=1) for kept in zip(*steps, strict=True)]


def project_inputs(arrays: Tree) -> mx.array:
    """(D, T, B, I) -> (D, T, B, G H): W_x x + b, one product for all steps."""
    x, w_x, b = arrays["x"], arrays["w_x"], arrays["b"]
    D, T, B, I = x.shape
    return (x.reshape(D, T * B, I) @ w_x.swapaxes(1, 2) + b[:, None]).reshape(D, T, B, -1)


def step(spec: GatedSpec, arrays: Tree, projected: mx.array, state: list[mx.array]) -> list[mx.array]:
    """[h] or [h, c], (D, B, H) each -> the same after a step, from W_x x + b (D, B, G H)."""
    h = state[0]
    q = h @ arrays["w_h"].swapaxes(1, 2)
    if spec.cell == "gru":
        b_hn = arrays["b_hn"][:, None]
        _, z, n, _ = gru_gates(projected, q, b_hn)
        return [n + z * (h - n)]  # (3)
    a = projected + q  # (1)
    if spec.cell == "lstm":
        i, f, g, o = lstm_gates(a)
        c = f * state[1] + i * g  # (3)
        h = o * tanh(c)
        return [h @ arrays["w_hr"].swapaxes(1, 2) if "w_hr" in arrays else h, c]
    return [tanh(a) if spec.cell == "tanh" else mx.maximum(a, 0)]  # (2)


def lstm_gates(a: mx.array) -> list[mx.array]:
    """i, f, g, o of an LSTM, from their pre-activations (..., 4 H)."""
    i, f, g, o = mx.split(a, 4, axis=-1)
    return [mx.sigmoid(i), mx.sigmoid(f), tanh(g), mx.sigmoid(o)]  # (2)


def gru_gates(projected: mx.array, q: mx.array, b_hn: mx.array) -> list[mx.array]:
    """r, z, n of a GRU and q_n + b_hn, from W_x x + b and q = W_h h (..., 3 H)."""
    x_r, x_z, x_n = mx.split(projected, 3, axis=-1)
    q_r, q_z, q_n = mx.split(q, 3, axis=-1)
    r, z, q_n = mx.sigmoid(x_r + q_r), mx.sigmoid(x_z + q_z), q_n + b_hn  # (2)
    return [r, z, tanh(x_n + r * q_n), q_n]

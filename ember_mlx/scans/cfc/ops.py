"""The MLX-ops form of the CfC scan: slower than the others, but differentiable to any order and inside any transformation.

The arrays are those of the NumPy form (reference.py); gradients are MLX's.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..ops import by_step, lstm_step, project, tanh
from ..pointwise import LECUN_INNER, LECUN_OUTER
from .spec import CfCSpec

Tree = dict[str, Any]

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    # a Python number would be rounded to float32 even with a float64 array
    "lecun_tanh": lambda a: mx.array(LECUN_OUTER, a.dtype) * tanh(mx.array(LECUN_INNER, a.dtype) * a),
    "tanh": tanh,
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu": nn.gelu,
}


def cfc_ops(spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    """Run a CfC scan: [h] (T, B, H), with mixed memory [h, c]; zero past each length."""
    h, c, lengths = arrays["h0"], arrays.get("c0"), arrays.get("lengths")
    arrays, T = _by_step(arrays), arrays["dt"].shape[0]
    steps = []
    for t in range(T):
        next_h, next_c = _step(spec, arrays, h, c, t)
        if lengths is None:
            h, c = next_h, next_c
            steps.append((h, c))
            continue
        valid = (t < lengths)[:, None]
        h = mx.where(valid, next_h, h)
        c = None if c is None or next_c is None else mx.where(valid, next_c, c)
        steps.append((mx.where(valid, h, 0), None if c is None else mx.where(valid, c, 0)))
    return [mx.stack(list(kept)) for kept in zip(*steps, strict=True) if kept[0] is not None]


def _by_step(arrays: Tree) -> Tree:
    """The tree with projected inputs and every (T, ...) array as a list of its steps."""

    def projected(part: Tree) -> Tree:
        return {**part, "projected": by_step(project(arrays["x"], part["w_x"], part["b"]))}

    first, *others = arrays["stages"]
    result = {**arrays, "dt": by_step(arrays["dt"]), "stages": [projected(first), *others]}
    result["dropout"] = [by_step(mask) for mask in arrays.get("dropout", [])]
    return result | ({"lstm": projected(arrays["lstm"])} if "lstm" in arrays else {})


def _step(spec: CfCSpec, arrays: Tree, h: mx.array, c: mx.array | None, t: int) -> tuple[mx.array, mx.array | None]:
    """(h, c) (B, H) each -> the same after step t."""
    if spec.mixed_memory and c is not None:
        h, c = lstm_step(arrays["lstm"], h, c, t)
    dt = arrays["dt"][t][:, None]  # (B, 1)
    below: mx.array | None = None
    after: dict[int, mx.array] = {}
    for (start, stop), stage in zip(spec.stages, arrays["stages"], strict=True):
        below = _stage(spec, stage, h[:, start:stop], below, dt, t, arrays["dropout"])
        after[start] = below
    return mx.concatenate([after[start] for start in sorted(after)], axis=1), c


def _stage(spec: CfCSpec, p: Tree, h: mx.array, below: mx.array | None, dt: mx.array, t: int, dropout: list[mx.array]) -> mx.array:
    """One CfC layer: (B, H_s) -> (B, H_s)."""
    a = h @ p["w_h"].T + (p["projected"][t] if below is None else below @ p["w_x"].T + p["b"])
    for k, layer in enumerate(p.get("dense", [])):
        z = ACTIVATIONS[spec.activation](a)  # (1)
        if dropout:
            z = z * dropout[k][t]
        a = z @ layer["w"].T + layer["b"]  # (2)
    q = a
    if spec.mode == "pure":
        f, A = q, p["A"]  # (2)
        # not mx.abs, whose slope 0 at 0 would keep w_tau at its initial 0; for equal arguments maximum has the slope of the second
        rate = mx.maximum(-p["w_tau"], p["w_tau"]) + mx.abs(f)
        decay = mx.exp(-dt * rate)  # (3)
        return A - A * decay * f
    f, g, t_a, t_b = mx.split(q, 4, axis=1)
    f, g = tanh(f), tanh(g)  # (2)
    t_interp = mx.sigmoid(t_a * dt + t_b)  # (3)
    return f + g * t_interp if spec.mode == "no_gate" else f * (1 - t_interp) + g * t_interp

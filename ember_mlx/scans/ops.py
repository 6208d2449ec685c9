"""Pieces of the MLX-ops forms, and of what surrounds the kernels."""

from typing import Any

import mlx.core as mx

Tree = dict[str, Any]
FLAT = 20.0  # from here on tanh is 1 or -1 in any precision


def by_step(a: mx.array) -> list[mx.array]:
    """(T, ...) as the list of its steps: a[t]'s gradient, a scatter, has no jvp.

    The axis in front keeps mx.compile of MLX 0.32.4 from failing where a pointwise result is split, and the same result once more. Its
    squeeze of two axes at once has a wrong gradient under mx.vmap.
    """
    return [part.squeeze(0).squeeze(0) for part in mx.split(mx.expand_dims(a, 0), a.shape[0], axis=1)]


def tanh(a: mx.array) -> mx.array:
    """mx.tanh with derivatives of any order: in MLX 0.32.4 the second one is NaN where cosh overflows. From 20 on it is 1 to rounding."""
    return mx.tanh(mx.minimum(mx.maximum(a, -FLAT), FLAT))


def project(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """(T, B, I) -> (T, B, O): x W^T + b, one product for all steps."""
    T, B, _ = x.shape
    return mx.addmm(bias, x.reshape(T * B, -1), weight.T).reshape(T, B, -1)


def outer(d: mx.array, x: mx.array) -> mx.array:
    """sum over steps, sequences and whatever else comes before the last axis of d x^T: (..., J), (..., K) -> (J, K)."""
    return d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def lstm_step(p: Tree, h: mx.array, c: mx.array, t: int) -> tuple[mx.array, mx.array]:
    """Step t of a mixed memory, from its `projected` inputs; see memory.py. (B, H) each."""
    a, i, f, o = mx.split(p["projected"][t] + h @ p["w_h"].T, 4, axis=1)
    c = c * mx.sigmoid(f + 1) + tanh(a) * mx.sigmoid(i)
    return tanh(c) * mx.sigmoid(o), c

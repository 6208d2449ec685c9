"""Functions shared by the MLX-ops forms and the MLX code around the kernels."""

from typing import Any

import mlx.core as mx

Tree = dict[str, Any]
FLAT = 20.0  # tanh is 1 or -1 beyond this in any precision


def by_step(a: mx.array) -> list[mx.array]:
    """(T, ...) as a list of its steps; not by a[t], whose gradient, a scatter, has no jvp.

    The extra leading axis avoids a failure of mx.compile in MLX 0.32.4 when a pointwise result is split more than once. It is squeezed
    separately, since squeezing two axes at once has a wrong gradient under mx.vmap.
    """
    return [part.squeeze(0).squeeze(0) for part in mx.split(mx.expand_dims(a, 0), a.shape[0], axis=1)]


def tanh(a: mx.array) -> mx.array:
    """mx.tanh with derivatives of any order: in MLX 0.32.4 the second one is NaN where cosh overflows. Constant beyond 20."""
    return mx.tanh(mx.minimum(mx.maximum(a, -FLAT), FLAT))


def project(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """(T, B, I) -> (T, B, O): x W^T + b, one product for all steps."""
    T, B, _ = x.shape
    return mx.addmm(bias, x.reshape(T * B, -1), weight.T).reshape(T, B, -1)


def outer(d: mx.array, x: mx.array) -> mx.array:
    """The sum of d x^T over all axes but the last: (..., J), (..., K) -> (J, K)."""
    return d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def lstm_step(p: Tree, h: mx.array, c: mx.array, t: int) -> tuple[mx.array, mx.array]:
    """Step t of a mixed memory, from its `projected` inputs; see memory.py. h and c are (B, H)."""
    a, i, f, o = mx.split(p["projected"][t] + h @ p["w_h"].T, 4, axis=1)
    c = c * mx.sigmoid(f + 1) + tanh(a) * mx.sigmoid(i)
    return tanh(c) * mx.sigmoid(o), c

"""The slopes of a mixed memory (memory.py) for the kernels' backward pass, for all steps at once, by a kernel of metal/memory.metal."""

from typing import Any

import mlx.core as mx

from ..kernels.inputs import dims
from ..kernels.loader import KernelText, axes
from ..kernels.parallel import launch_parallel
from ..kernels.tiles import FUNCTION
from .ops import project

Tree = dict[str, Any]
GATE_SLOPES = KernelText(
    "memory_gate_slopes",
    "H, THREADS",
    ("pointwise.metal", "product.metal", "sequences.metal", "memory.metal"),
    ("q", "c", "dims"),
    ("h_inner", "slopes"),
    axes(th="q c h_inner", tsh="slopes"),
)


def memory_slopes(kind: str, lstm: Tree, x: mx.array, h: mx.array, c: mx.array) -> list[mx.array]:
    """The LSTM's h at the states (T, B, H) before each step, and its slopes.

    Returns:
        h (T, B, H); slopes (T, B, 6, H): of c by a, i, f; of h by o and by c; sigma(f + 1).
    """
    T, B, H = h.shape
    q = (project(x, lstm["w_x"], lstm["b"]) + h @ lstm["w_h"].T).astype(mx.float32)
    inputs, shapes = [q.reshape(T * B, 4 * H), c.reshape(T * B, H)], [(T * B, H), (T * B, 6, H)]
    h_inner, slopes = launch_parallel(kind, GATE_SLOPES, [("H", H)], inputs, T * B, lambda R: R * H, dims, shapes, FUNCTION * 5)
    return [h_inner.reshape(T, B, H), slopes.reshape(T, B, 6, H)]

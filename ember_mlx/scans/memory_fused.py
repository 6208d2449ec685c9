"""What the kernels' backward needs of a mixed memory (memory.py), for all steps at once: the part of metal/memory.metal before the scan."""

from typing import Any

import mlx.core as mx

from ..kernels.inputs import dims
from ..kernels.loader import KernelText
from ..kernels.parallel import launch_parallel
from .ops import project

Tree = dict[str, Any]
GATE_SLOPES = KernelText(
    "memory_gate_slopes",
    "H, THREADS",
    ("pointwise.metal", "product.metal", "sequences.metal", "memory.metal"),
    ("q", "c", "dims"),
    ("h_inner", "slopes"),
)


def memory_slopes(kind: str, lstm: Tree, x: mx.array, h: mx.array, c: mx.array) -> list[mx.array]:
    """The LSTM's h at the states (T, B, H) before each step, and its slopes.

    Returns:
        h (T, B, H); slopes (T, B, 6, H): of c by a, i, f; of h by o and by c; sigma(f + 1).
    """
    T, B, H = h.shape
    q = (project(x, lstm["w_x"], lstm["b"]) + h @ lstm["w_h"].T).astype(mx.float32)
    return launch_parallel(kind, GATE_SLOPES, [("H", H)], [q, c, dims(T * B)], T * B * H, [h.shape, (T, B, 6, H)])

"""The gated scan step by step: matrix products with a small kernel between them, for sizes at which a single launch does not pay."""

from typing import Any

import mlx.core as mx

from ...kernels.inputs import dims, nothing
from ...kernels.loader import SMALLEST, KernelText
from ...kernels.parallel import launch_step
from .ops import project_inputs
from .spec import GatedSpec
from .variant import pointwise_template

Tree = dict[str, Any]
FILES = ("pointwise.metal", "gated_pointwise.metal")
NEXT = KernelText("gated_next", "CELL, H, THREADS", FILES, ("q", "x_proj", "b_hn", "before", "dims"), ("h_next", "c_next"))
PREVIOUS = KernelText(
    "gated_previous",
    "CELL, H, PROJECTED, THREADS",
    FILES,
    ("arriving", "dy", "slopes", "dy_c", "kept", "lengths", "dims"),
    ("d", "kept_next"),
)


def forward_by_step(kind: str, spec: GatedSpec, arrays: Tree) -> list[mx.array]:
    """[h] (D, T, B, P), for an LSTM [h, c]; each step is a product W_h h for all directions, a small kernel, and the projection if any."""
    D, T, B, _ = arrays["x"].shape
    H, none = arrays["b"].shape[1] // spec.gates, nothing()
    x_proj, w_h = project_inputs(arrays), arrays["w_h"].swapaxes(1, 2)
    w_hr = arrays["w_hr"].swapaxes(1, 2) if "w_hr" in arrays else None
    b_hn, template = arrays.get("b_hn", none), pointwise_template(spec, H)
    shapes = [(D, B, H), (D, B, H) if spec.has_cell_state else (1,)]
    h, c, steps = arrays["h0"], arrays.get("c0", none), []
    for t in range(T):
        inputs = [h @ w_h, x_proj, b_hn, c if spec.has_cell_state else h, dims(D, T, B, t)]
        h, c = launch_step(kind, NEXT, template, inputs, D * B * H, shapes)
        h = h if w_hr is None else h @ w_hr
        steps.append((h, c))
    outputs = [mx.stack(list(kept), axis=1) for kept in list(zip(*steps, strict=True))[: 1 + spec.has_cell_state]]
    if "lengths" not in arrays:
        return outputs
    valid = _valid(arrays["lengths"], T)
    return [mx.where(valid, a, 0) for a in outputs]


def back_by_step(
    kind: str, spec: GatedSpec, arrays: Tree, slopes: mx.array, dy: list[mx.array], carry: list[mx.array], lengths: mx.array
) -> tuple[mx.array, mx.array, list[mx.array]]:
    """dh -> d -> dh over a block of steps, with matrix products at every step; same arguments and results as the scan kernel.

    Returns:
        The gradients d (D, T, B, blocks, H) of the products, dh (D, T, B, P) of a projected h, and those of the states before the block.
    """
    D, T, B, _, H = slopes.shape
    none, w_h, w_hr, gru = nothing(), arrays["w_h"], arrays.get("w_hr"), spec.cell == "gru"
    dh, kept = carry[0], carry[1] if spec.has_cell_state else mx.zeros((D, B, H))
    # contiguous and large enough, otherwise each step's launch would copy them
    dy_h, dy_c = mx.contiguous(dy[0]), mx.contiguous(dy[1]) if spec.has_cell_state else none
    padded, projected = mx.pad(lengths, (0, SMALLEST)), w_hr is not None
    if projected:
        dy_h = mx.where(_valid(lengths, T), dy_h, 0)
        dh = dh + dy_h[:, T - 1]
    template = [*pointwise_template(spec, H), ("PROJECTED", projected)]
    shapes = [(D, B, spec.blocks, H), (D, B, H) if spec.gates > 1 else (1,)]
    steps: list[tuple[mx.array, mx.array]] = []
    for t in reversed(range(T)):
        inputs = [dh if w_hr is None else dh @ w_hr, dy_h, slopes, dy_c, kept, padded, dims(D, T, B, t)]
        d, kept_next = launch_step(kind, PREVIOUS, template, inputs, D * B * H, shapes)
        kept = kept_next if spec.gates > 1 else kept
        steps.append((d, dh))
        of_h = d.reshape(D, B, -1)[..., : spec.gates * H]
        past = kept if gru else dy_h[:, t - 1] if projected and t else None
        dh = of_h @ w_h if past is None else mx.addmm(past, of_h, w_h)
    every_d, every_dh = (mx.stack(list(kept), axis=1) for kept in zip(*reversed(steps), strict=True))
    return every_d, every_dh, [dh, kept] if spec.has_cell_state else [dh]


def _valid(lengths: mx.array, T: int) -> mx.array:
    """(T, B, 1): which steps lie within their sequence."""
    return mx.expand_dims(mx.arange(T)[:, None] < lengths, 2)

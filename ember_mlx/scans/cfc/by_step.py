"""The CfC scan step by step: matrix products with small kernels between them, for sizes at which one launch for all steps does not pay."""

from typing import Any

import mlx.core as mx

from ...kernels.inputs import dims
from ...kernels.loader import KernelText
from ...kernels.parallel import launch_step
from .kernel_layout import Weights, by_unit
from .slopes import FILES, Point, activate, floats, projected
from .spec import MODES, CfCSpec

Tree = dict[str, Any]
NEXT = KernelText("cfc_next", "MODE, H, THREADS", FILES, ("q", "dt", "pure", "h", "lengths", "dims"), ("h_next", "y"))
MEMORY_NEXT = KernelText("cfc_memory_next", "H, THREADS", FILES, ("q", "c", "lengths", "dims"), ("h_inner", "c_next", "c_out"))


def forward_by_step(kind: str, spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    """[h] (T, B, H), with mixed memory [h, c], by matrix products and small kernels at every step."""
    T, B = arrays["dt"].shape
    lengths = arrays["lengths"] if "lengths" in arrays else mx.full((B,), T, mx.int32)
    stages, pure = [_transposed(stage) for stage in arrays["stages"]], floats(Weights.of(spec, arrays["stages"]).pure)
    x_proj, x_gates = projected(arrays, arrays["stages"][0]), mx.zeros((T,))
    h, c, w_gates = arrays["h0"], mx.zeros((B,)), mx.zeros((1,))
    if spec.mixed_memory:
        c, x_gates, w_gates = arrays["c0"], projected(arrays, arrays["lstm"]), floats(arrays["lstm"]["w_h"].T)
    steps: list[tuple[mx.array, mx.array]] = []
    for t in range(T):
        inner, c_out = h, c
        if spec.mixed_memory:
            inputs = [floats(mx.addmm(x_gates[t], h, w_gates)), c, lengths, dims(B, t)]
            inner, c, c_out = launch_step(kind, MEMORY_NEXT, [("H", spec.units)], inputs, h.size, [h.shape] * 3)
        added, dropout = x_proj[t], [mask[t] for mask in arrays.get("dropout", [])]
        results: list[list[mx.array]] = []
        for stage, (start, stop) in zip(stages, spec.stages, strict=True):
            if results:
                added = mx.addmm(stage["b"], results[-1][0], stage["w_x"])
            q = _heads(kind, spec, stage, mx.addmm(added, inner[:, start:stop], stage["w_h"]), dropout)
            inputs = [q, arrays["dt"][t], pure[:, start:stop] if spec.mode == "pure" else pure, h[:, start:stop], lengths, dims(B, t)]
            template = [("MODE", MODES.index(spec.mode)), ("H", stop - start)]
            results.append(launch_step(kind, NEXT, template, inputs, B * (stop - start), [(B, stop - start)] * 2))
        h, y = (by_unit(spec, list(parts), 1) for parts in zip(*results, strict=True))
        steps.append((y, c_out))
    return [mx.stack([step[k] for step in steps]) for k in range(1 + spec.mixed_memory)]


def _heads(kind: str, spec: CfCSpec, stage: Tree, a: mx.array, dropout: list[mx.array]) -> mx.array:
    """From the first product (B, P) to the heads (B, heads * H_s)."""
    for k, layer in enumerate(stage["dense"]):
        z, _ = activate(kind, spec, a, dropout[k] if dropout else None)
        a = mx.addmm(layer["b"], z, layer["w"])
    return floats(a)


def _transposed(stage: Tree) -> Tree:
    """A stage's weights in float32, transposed for use as right-hand sides of products."""
    dense = [{"w": floats(layer["w"].T), "b": floats(layer["b"])} for layer in stage.get("dense", [])]
    return {"w_x": floats(stage["w_x"].T), "w_h": floats(stage["w_h"].T), "b": floats(stage["b"]), "dense": dense}


def back_by_step(
    spec: CfCSpec, arrays: Tree, point: Point, dy: list[mx.array], carry: list[mx.array], lengths: mx.array
) -> tuple[mx.array, mx.array, mx.array, list[mx.array]]:
    """dh -> dq -> dz -> dh over a block of steps, with matrix products at every step; same arguments and results as the scan kernel."""
    T, B, _ = dy[0].shape
    valid = (mx.arange(T)[:, None] < lengths)[..., None]
    dy = [mx.where(valid, a, 0) for a in dy]
    stages, (dh, *dc) = arrays["stages"], carry
    w_h = [floats(stage["w_h"]) for stage in stages]
    w_x = [floats(stage["w_x"]) for stage in stages]
    dense = [floats(layer["w"]) for layer in stages[0].get("dense", [])]
    w_gates = floats(arrays["lstm"]["w_h"]) if spec.mixed_memory else mx.zeros((1,))
    steps: list[tuple[mx.array, list[mx.array], mx.array]] = []
    for t in reversed(range(T)):
        dh = dh + dy[0][t]
        parts: list[mx.array] = []
        inner: list[mx.array] = []
        dz: list[mx.array] = []
        d_gates = d = dh
        for k in reversed(range(len(stages))):
            units = slice(*spec.stages[k])
            part = dh[:, units] if k + 1 == len(stages) else dh[:, units] + d @ w_x[k + 1]
            d = (mx.expand_dims(part, 1) * point.slope_q[t][:, :, units]).reshape(B, -1)
            for n in reversed(range(len(dense))):
                d = (d @ dense[n]) * point.slopes[n][t]
                dz.insert(0, d)
            parts.insert(0, part)
            inner.insert(0, d @ w_h[k])
        whole, dh = by_unit(spec, parts, 1), by_unit(spec, inner, 1)
        if spec.mixed_memory:
            d_gates, dc[0] = _gates_back(dh, dc[0] + dy[1][t], point.slopes_gates[t])
            dh = d_gates.reshape(B, -1) @ w_gates
        steps.append((whole, dz, d_gates))
    steps.reverse()
    none = mx.zeros((1,))
    dz_all = mx.stack([mx.stack([dz[n] for _, dz, _ in steps]) for n in range(len(dense))]) if dense else none
    gates = mx.stack([d for _, _, d in steps]) if spec.mixed_memory else none
    return mx.stack([part for part, _, _ in steps]), dz_all, gates, [dh, *dc]


def _gates_back(dh_inner: mx.array, dc: mx.array, slopes: mx.array) -> tuple[mx.array, mx.array]:
    """From the gradients of the LSTM's h and c (B, H) to those of its gates' products (B, 4, H) and of the previous c."""
    dc = dc + dh_inner * slopes[:, 4]
    d = mx.concatenate([mx.expand_dims(dc, 1) * slopes[:, :3], mx.expand_dims(dh_inner * slopes[:, 3], 1)], axis=1)
    return d, dc * slopes[:, 5]

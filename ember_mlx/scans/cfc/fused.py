"""The CfC scan as fused kernels (metal/cfc.metal): the launches of the two sequential scans, and the parallel computations around them.

The arrays are those of the NumPy form (reference.py). Before the backward scan the gates' slopes are recomputed from the stored states, and
after it the weights' gradients are computed, for all steps in parallel. Inputs and weights may be float16 or bfloat16; states, sums and
slopes are float32.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ...kernels.first_use import STEPS, SmallProblem, few_lengths, few_sequences, few_units, part_within
from ...kernels.inputs import dims, lengths_of, nothing, too_many
from ...kernels.launches import Launch, Launches, run_launches, scan_launch
from ...kernels.loader import KernelText, axes
from ...kernels.tiles import Family, Tile, checked_variant, current_family, forced_tile, rows_for, steps_apart
from ..ops import outer
from .by_step import back_by_step, forward_by_step
from .kernel_layout import (
    Variant,
    Weights,
    heads_inside,
    of_stage,
    slot_table,
    unit_rows,
    weights_from_above,
    window_weights,
    window_weights_back,
)
from .random_cases import random_arrays
from .slopes import Point, floats, linearise, projected
from .spec import CfCSpec

Tree = dict[str, Any]
BLOCK_BYTES = 2**28  # bytes of slopes per block of steps: few launches, bounded memory
FILES = ("pointwise.metal", "product.metal", "sequences.metal", "memory.metal", "cfc_pointwise.metal", "cfc.metal")
SIZES = "CfC<H, Z, DEPTH, MODE, ACTIVATION, MEMORY, STAGES, SLOTS, WINDOW, FIRST, THREADS, ROWS, SPLIT, RESIDENT, GATES_RESIDENT, WEIGHT>"
FORWARD = KernelText(
    "cfc_forward",
    SIZES,
    FILES,
    (
        *("x_proj", "w_first", "w_middle", "b_middle", "w_heads", "b_heads", "pure", "dropout", "dt", "h0"),
        *("x_gates", "w_gates", "c0", "slots", "lengths", "dims"),
    ),
    ("y", "c_out"),
    axes(tbz="x_proj x_gates y c_out", ltbz="dropout", tb="dt", bh="h0 c0", b="lengths"),
    (("h0", "y"), ("c0", "c_out")),
)
BACKWARD = KernelText(
    "cfc_backward",
    SIZES,
    FILES,
    (
        *("dy", "carry", "carry_q", "slope_q", "slopes", "w_heads", "w_middle", "w_first"),
        *("dy_c", "carry_c", "slopes_gates", "w_gates", "w_above", "slots", "lengths", "dims"),
    ),
    ("dh", "dz", "dh0", "dq0", "d_gates", "dc0"),
    axes(
        **{"tbh": "dy dy_c dh", "tbqh": "slope_q slopes_gates d_gates", "ltbz": "slopes dz", "bh": "carry carry_c dh0 dc0"},
        **{"bqh": "carry_q dq0", "b": "lengths"},
    ),
    (("carry", "dh0"), ("carry_q", "dq0"), ("carry_c", "dc0")),
)


def choose_tile(family: Family, spec: CfCSpec, Z: int, depth: int, batch: int, half: bool) -> Tile:
    """Weights in registers if they fit, in half precision if necessary; otherwise read at every step, for several sequences.

    An LSTM's weights are the first to be left out of registers. If one launch for all steps does not pay, the layout has 0 rows.
    """
    split = _split(spec)
    one = Variant(spec, Z, depth, Tile(family.threads, 1, split, True))
    step, gates, most = one.step_weights, one.gate_weights, family.register_floats
    in_half = half and step + gates > most
    most = 2 * most if in_half else most
    resident, gates_resident = step <= most, step + gates <= most
    rows = rows_for(family, batch, one.threadgroup_bytes, resident)
    streamed = (2 if in_half else 4) * one.streamed_weights(resident, gates_resident)
    if steps_apart(family, batch, rows, streamed, 2 * len(spec.stages) * (1 + depth) + 2 * spec.mixed_memory):
        return Tile(family.threads, 0, split, False)
    return Tile(family.threads, rows, split, resident, in_half, gates_resident if resident else True)


def _split(spec: CfCSpec) -> int:
    """Fewer lanes (fewer blocks, longer sums) if a lane has few weights, or if the LSTM adds a sequential product."""
    return 4 if spec.mode == "pure" or (spec.mixed_memory and len(spec.stages) == 1) else 8


def layouts(family: Family, spec: CfCSpec) -> list[Tile]:
    """Every layout that `choose_tile` can return on a GPU family, for any size."""
    threads, split = family.threads, _split(spec)
    gates = (True, False) if spec.mixed_memory else (True,)
    tiles = [
        Tile(threads, rows, split, True, half, gates_resident)
        for half in (False, True)
        for gates_resident in gates
        for rows in range(1, family.resident_rows + 1)
    ]
    tiles += [Tile(threads, rows, split, False, half) for half in (False, True) for rows in range(1, family.streamed_rows + 1)]
    return [*tiles, Tile(threads, 0, split, False)]


def variant_of(kind: str, spec: CfCSpec, arrays: Tree) -> Variant:
    """The kernel variant for these arrays."""
    first, B = arrays["stages"][0], arrays["dt"].shape[1]
    depth, weight = len(first.get("dense", [])), first["w_h"].dtype
    Z, half = (first["w_h"].shape[0] if depth else spec.units), weight != mx.float32
    checked = checked_variant.get()
    if checked is not None:
        return checked._replace(spec=spec, Z=Z, depth=depth)
    tile = forced_tile.get() or choose_tile(current_family(), spec, Z, depth, B, half)
    io = mx.result_type(*(a.dtype for a in (arrays["x"], first["w_x"], first["b"])))
    return Variant(spec, Z, depth, tile, io, weight if tile.half else mx.float32)


def refusal(kind: str, spec: CfCSpec, arrays: Tree) -> str | None:
    """The reason why no kernel supports these arrays, or None."""
    if arrays["dt"].dtype != mx.float32:
        return "kernels compute in float32"
    (T, B), first, H = arrays["dt"].shape, arrays["stages"][0], spec.units
    width = max(len(first["w_h"]) * max(1, len(first.get("dense", []))), 4 * H if spec.mixed_memory else H)
    return too_many((T + 1) * B * width, B * (6 * H if spec.mixed_memory else spec.heads * H))


def small_problem(kind: str, spec: CfCSpec, arrays: Tree) -> SmallProblem:
    """A problem with the same units, or a fraction of each stage's and the backbone's if there are many."""
    variant = variant_of(kind, spec, arrays)
    H, Z, depth = spec.units, variant.Z, variant.depth
    weights = (1 + spec.heads) * H * Z + (depth - 1) * Z**2 if depth else spec.heads * sum(size**2 for size in variant.sizes)
    part = part_within(weights + (4 * H**2 if spec.mixed_memory else 0))
    small, B = _part_of(spec, part), few_sequences(variant.tile.rows)
    few = random_arrays(small, STEPS, B, few_units(Z, part), depth, lengths=False, dropout=False, dtype=np.float32)
    return SmallProblem(small, few | {"lengths": few_lengths(B)}, variant)


def _part_of(spec: CfCSpec, part: float) -> CfCSpec:
    """The spec with a fraction of each stage's units."""
    stages, begin = {}, 0
    for start, stop in sorted(spec.stages):
        stages[start] = (begin, begin + few_units(stop - start, part))
        begin = stages[start][1]
    return replace(spec, stages=tuple(stages[start] for start, _ in spec.stages))


def cfc_fused_forward(kind: str, spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    """[h] (T, B, H), with mixed memory [h, c], in one launch, or step by step if that is faster."""
    return run_launches(kind, forward_launches(kind, spec, arrays))


def forward_launches(kind: str, spec: CfCSpec, arrays: Tree) -> Launches:
    """`cfc_fused_forward` as a generator of its launch."""
    variant, w = variant_of(kind, spec, arrays), Weights.of(spec, arrays["stages"])
    if variant.tile.rows == 0:
        return forward_by_step(kind, spec, arrays)
    T, B = arrays["dt"].shape
    none, packed_none = nothing(), nothing(variant.weight)
    dropout = arrays.get("dropout")
    heads = window_weights(variant, w.heads)
    inputs = [
        projected(arrays, arrays["stages"][0]).astype(variant.io),
        packed_none if w.first is None else variant.pack(w.first, variant.first),  # (1)
        mx.concatenate([variant.pack(layer["w"], variant.middle) for layer in w.middle]) if w.middle else packed_none,
        floats(mx.stack([layer["b"] for layer in w.middle])) if w.middle else none,
        variant.pack(heads, variant.heads),  # (2)
        floats(w.b_heads),
        floats(w.pure),
        floats(mx.stack(dropout)) if dropout else none,
        arrays["dt"],  # (3)
        arrays["h0"],
        *_memory_inputs(variant, arrays),
        _slots(variant, False),
        lengths_of(arrays, T, B),
    ]
    shapes = [(T, B, variant.H), (T, B, variant.H) if spec.mixed_memory else (1,)]
    y, c = yield _launch(FORWARD, variant, inputs, T, B, shapes, has_dropout=int(bool(dropout)))
    return [y, c] if spec.mixed_memory else [y]


def _slots(variant: Variant, backward: bool) -> mx.array:
    return slot_table(variant, backward) if len(variant.sizes) > 1 else nothing(mx.int32)


def _memory_inputs(variant: Variant, arrays: Tree) -> list[mx.array]:
    if not variant.spec.mixed_memory:
        return [nothing(variant.io), nothing(variant.weight), nothing()]
    w_gates = variant.pack(unit_rows(variant, arrays["lstm"]["w_h"], 4), variant.gates)
    return [projected(arrays, arrays["lstm"]).astype(variant.io), w_gates, arrays["c0"]]


def cfc_fused_backward(kind: str, spec: CfCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as returned by the NumPy form's backward."""
    return run_launches(kind, backward_launches(kind, spec, arrays, outputs, cotangents))


def backward_launches(kind: str, spec: CfCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Launches:
    """`cfc_fused_backward` as a generator of its scans' launches."""
    variant = variant_of(kind, spec, arrays)
    T, B, H = outputs[0].shape
    before = [mx.concatenate([mx.expand_dims(a, 0), kept[:-1]]) for a, kept in zip(_initial(spec, arrays), outputs, strict=True)]
    lengths = lengths_of(arrays, T, B)
    carry, parts = [mx.zeros((B, H)) for _ in outputs], []
    carry_q = mx.zeros((B, spec.heads, H)) if variant.is_pipelined else nothing()
    packed = _packed_back(variant, Weights.of(spec, arrays["stages"]), arrays) if variant.tile.rows else []
    steps = block_steps(variant, B)
    for start in reversed(range(0, T, steps)):
        block = slice(start, min(start + steps, T))
        part, states, dy = _steps(arrays, block), [a[block] for a in before], [a[block] for a in cotangents]
        point = linearise(kind, spec, part, states, outputs[0][block])
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        if variant.tile.rows == 0:
            dh, dz, d_gates, carry = back_by_step(spec, part, point, dy, carry, here)
        else:
            dh, dz, d_gates, carry, carry_q = yield from _scan_back(variant, packed, point, dy, carry, carry_q, here)
        parts.append(_gradients(spec, part, states[0], point, dh, dz, d_gates))
    return _joined(parts[::-1]) | dict(zip(("h0", "c0"), carry, strict=False))


def block_steps(variant: Variant, batch: int) -> int:
    """Steps per block; the slopes and gradients of one block are in memory at a time."""
    heads = (variant.spec.heads + 1) * variant.H + variant.depth * variant.Z
    gates = 6 * variant.H if variant.spec.mixed_memory else 0
    return max(1, BLOCK_BYTES // (4 * batch * (2 * heads + 2 * gates)))


def _initial(spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    return [arrays["h0"], arrays["c0"]] if spec.mixed_memory else [arrays["h0"]]


def _packed_back(variant: Variant, w: Weights, arrays: Tree) -> list[mx.array]:
    """The transposed weights for the backward scan: heads, middle layers, first product, gates, the stage above."""
    none = nothing(variant.weight)
    gates = above = middle = heads = none
    if variant.spec.mixed_memory:
        gates = variant.pack(unit_rows(variant, arrays["lstm"]["w_h"].T, 1), variant.gates_back)
        if len(variant.sizes) > 1:
            above = variant.pack(weights_from_above(variant, w.heads), variant.first_back)
    if w.first is None:
        return [none, none, variant.pack(window_weights_back(variant, w.heads), variant.first_back), gates, above]
    heads = variant.pack(heads_inside(w.heads[0]["w_h"], variant.spec.heads), variant.heads_back)
    if w.middle:
        middle = mx.concatenate([variant.pack(layer["w"].T, variant.middle) for layer in w.middle])
    return [heads, middle, variant.pack(w.first.T, variant.first_back), gates, above]


def _scan_back(
    variant: Variant,
    packed: list[mx.array],
    point: Point,
    dy: list[mx.array],
    carry: list[mx.array],
    carry_q: mx.array,
    lengths: mx.array,
) -> Launches:
    """The backward scan over a block of steps.

    Returns:
        The gradients dh (T, B, H) of each state, dz (depth, T, B, Z) of the backbone's products, d_gates (T, B, 4, H) of the LSTM's
        products, (B, H) of the states before the block, and (B, heads, H) of its first step's heads, from which a pipeline continues.
    """
    T, B, H = dy[0].shape
    none, memory = nothing(), variant.spec.mixed_memory
    slopes = mx.stack(point.slopes) if point.slopes else none
    of_memory = [dy[1], carry[1], point.slopes_gates] if memory else [none] * 3
    w_heads, w_middle, w_first, w_gates, w_above = packed
    inputs = [dy[0], carry[0], carry_q, point.slope_q, slopes, w_heads, w_middle, w_first, *of_memory, w_gates, w_above]
    inputs += [_slots(variant, True), lengths]
    shapes = [(T, B, H), (variant.depth, T, B, variant.Z) if variant.depth else (1,), (B, H)]
    shapes += [(B, variant.spec.heads, H) if variant.is_pipelined else (1,), *([(T, B, 4, H), (B, H)] if memory else [(1,), (1,)])]
    dh, dz, dh0, dq0, d_gates, dc0 = yield _launch(BACKWARD, variant, inputs, T, B, shapes)
    return dh, dz, d_gates, [dh0, dc0] if memory else [dh0], dq0


def _gradients(spec: CfCSpec, arrays: Tree, h_prev: mx.array, point: Point, dh: mx.array, dz: mx.array, d_gates: mx.array) -> Tree:
    """All gradients of a block of steps, from those of its states and products."""
    dq = (mx.expand_dims(dh, 2) * point.slope_q).reshape(*dh.shape[:2], -1)
    by_pure = {name: (dh * slope).sum(axis=(0, 1)) for name, slope in point.pure.items()}
    firsts = [dz[0]] if point.z else [of_stage(dq, spec.heads, units) for units in spec.stages]
    stages = [
        _product_gradients(d, u, point.h_inner[..., units[0] : units[1]]) | {name: of_stage(a, 1, units) for name, a in by_pure.items()}
        for d, u, units in zip(firsts, point.inputs, spec.stages, strict=True)
    ]
    if point.z:
        products = [*(dz[k] for k in range(1, len(point.z))), dq]
        stages[0]["dense"] = [{"w": outer(d, z), "b": d.sum(axis=(0, 1))} for d, z in zip(products, point.z, strict=True)]
    result: Tree = {"x": firsts[0] @ arrays["stages"][0]["w_x"], "dt": (dh * point.slope_dt).sum(axis=-1), "stages": stages}
    if spec.mixed_memory:
        d_gates = d_gates.reshape(*dh.shape[:2], -1)
        result["lstm"] = _product_gradients(d_gates, arrays["x"], h_prev)
        result["x"] = result["x"] + d_gates @ arrays["lstm"]["w_x"]
    return result


def _product_gradients(d: mx.array, x: mx.array, h: mx.array) -> Tree:
    """The gradients of w_x, w_h and b in a product W_x x + W_h h + b, from that of its results."""
    return {"w_x": outer(d, x), "w_h": outer(d, h), "b": d.sum(axis=(0, 1))}


def _joined(parts: list[Tree]) -> Tree:
    """Join the gradients of consecutive blocks of steps: arrays with a time axis are concatenated, the others added."""
    if len(parts) == 1:
        return parts[0]
    by_path = [dict(tree_flatten(part)) for part in parts]
    over_time = ("x", "dt")
    joined = {
        path: mx.concatenate([part[path] for part in by_path]) if path in over_time else sum(part[path] for part in by_path)
        for path in by_path[0]
    }
    return tree_unflatten(list(joined.items()))


def _steps(arrays: Tree, block: slice) -> Tree:
    """The arrays of a block of steps."""
    part = {**arrays, "x": arrays["x"][block], "dt": arrays["dt"][block]}
    return part | ({"dropout": [mask[block] for mask in arrays["dropout"]]} if "dropout" in arrays else {})


def _launch(
    text: KernelText, variant: Variant, inputs: list[mx.array], T: int, B: int, shapes: Sequence[tuple[int, ...]], has_dropout: int = 0
) -> Launch:
    backward = text is BACKWARD
    template, tile, work = variant.template(backward), variant.tile, variant.work
    return scan_launch(text, inputs, template, shapes, tile, T, B, lambda T, B: dims(T, B, has_dropout), work, is_backward=backward)

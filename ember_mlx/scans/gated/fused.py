"""The gated scan (RNN, LSTM, GRU) as fused kernels (metal/gated.metal): the scans' launches, and the parallel computations around them.

The arrays are those of the NumPy form (reference.py). For all steps in parallel, W_x x + b is computed before the forward scan, the gates'
slopes before the backward scan, from the stored states, and the weights' gradients after it.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.first_use import STEPS, SmallProblem, few_lengths, few_sequences, few_units, part_within
from ...kernels.inputs import dims, lengths_of, nothing, too_many
from ...kernels.launches import launch, scan_launch
from ...kernels.loader import KernelText, axes
from ...kernels.packing import ProductShape, pack
from ...kernels.parallel import launch_parallel
from ...kernels.tiles import (
    FUNCTION,
    Family,
    Tile,
    checked_variant,
    current_family,
    forced_tile,
    layouts_for,
    rows_for,
    split_for,
    steps_apart,
)
from .by_step import FILES as POINTWISE_FILES
from .by_step import back_by_step, forward_by_step
from .ops import project_inputs
from .problems import random_arrays
from .spec import GatedSpec
from .variant import Backward, Forward, Variant, pointwise_template

Tree = dict[str, Any]
BLOCK_STEPS = 256  # most steps per block, whose slopes are in memory at a time
BLOCK_BYTES = 2**28  # bytes of a block's slopes and gradients
SPLITS = (8, 4)  # lanes per unit
FILES = ("pointwise.metal", "product.metal", "sequences.metal", "gated_pointwise.metal", "gated.metal")
SIZES = "Gated<CELL, H, P, THREADS, ROWS, SPLIT, RESIDENT>"
FORWARD = KernelText(
    "gated_forward",
    SIZES,
    FILES,
    ("x_proj", "w_h", "w_hr", "b_hn", "h0", "c0", "lengths", "dims"),
    ("y", "c_out"),
    axes(dtbh="x_proj y c_out", dbh="h0 c0", b="lengths"),
    (("h0", "y"), ("c0", "c_out")),
)
BACKWARD = KernelText(
    "gated_backward",
    SIZES,
    FILES,
    ("dy", "carry", "slopes", "w_h", "w_hr", "dy_c", "carry_c", "lengths", "dims"),
    ("d", "dh", "dh0", "dc0"),
    axes(dtbh="dy dy_c dh", dtbsh="slopes d", dbh="carry carry_c dh0 dc0", b="lengths"),
    (("carry", "dh0"), ("carry_c", "dc0")),
)
SLOPES = KernelText(
    "gated_slopes",
    "CELL, H, PROJECTED, THREADS",
    POINTWISE_FILES,
    ("q", "x_proj", "b_hn", "before", "dims"),
    ("slopes", "m"),
    axes(dth="q x_proj before m", dtsh="slopes"),
)


def choose_tile(family: Family, layout: type[Forward] | type[Backward], spec: GatedSpec, H: int, P: int, sequences: int) -> Tile:
    """Weights in registers if they fit, otherwise read at every step; 0 rows if one launch for all steps does not pay."""
    preferred = split_for(SPLITS, family.threads, H)
    tiles = [Tile(family.threads, 1, split, True) for split in (preferred, *SPLITS)]
    tiles = [tile for tile in tiles if layout(spec, H, P, tile).weights <= family.register_floats]
    one = layout(spec, H, P, tiles[0] if tiles else Tile(family.threads, 1, SPLITS[0], False))
    resident = one.tile.resident
    rows = rows_for(family, sequences, 16 * one.scratch, resident)
    streamed = 0 if resident else 4 * family.threads * one.weights
    if steps_apart(family, sequences, rows, streamed, 3 if P else 2):
        return Tile(family.threads, 0, SPLITS[-1], False)
    return one.tile._replace(rows=rows)


def layouts(family: Family, spec: GatedSpec) -> list[Tile]:
    """Every layout that `choose_tile` can return on a GPU family, for any size."""
    return [*layouts_for(family, SPLITS), Tile(family.threads, 0, SPLITS[-1], False)]


def variant_of(kind: str, spec: GatedSpec, arrays: Tree) -> Variant:
    """The kernel variant for these arrays."""
    (D, B, P), H, forced = arrays["h0"].shape, arrays["b"].shape[1] // spec.gates, forced_tile.get()
    P, checked = P if "w_hr" in arrays else 0, checked_variant.get()
    if checked is not None:
        return checked._replace(H=H, P=P)
    if forced is not None:
        return Variant(spec, H, P, forced, forced)
    family = current_family()
    return Variant(spec, H, P, *(choose_tile(family, layout, spec, H, P, D * B) for layout in (Forward, Backward)))


def variant_key(kind: str, spec: GatedSpec, arrays: Tree) -> Variant:
    """The key under which the result of a first-use check is stored."""
    return variant_of(kind, spec, arrays)


def refusal(kind: str, spec: GatedSpec, arrays: Tree) -> str | None:
    """The reason why no kernel supports these arrays, or None."""
    if arrays["h0"].dtype != mx.float32:
        return "kernels compute in float32"
    (D, T, B, _), rows, P = arrays["x"].shape, arrays["b"].shape[1], arrays["h0"].shape[2]
    return too_many(D * (T + 1) * B * max(rows, P), D * B * (rows + 2 * rows // spec.gates))


def small_problem(kind: str, spec: GatedSpec, arrays: Tree) -> SmallProblem:
    """A problem with the same units and directions, or a fraction of the units if there are many."""
    variant, D = variant_of(kind, spec, arrays), arrays["h0"].shape[0]
    H, P = variant.H, variant.P
    part = part_within(D * (spec.gates * H * (P or H) + P * H))
    B = few_sequences(variant.forward.rows, variant.backward.rows)
    small = random_arrays(spec, D, STEPS, B, few_units(H, part), few_units(P, part) if P else None, lengths=False, dtype=np.float32)
    return SmallProblem(spec, small | {"lengths": few_lengths(B)}, variant)


def gated_fused_forward(kind: str, spec: GatedSpec, arrays: Tree) -> list[mx.array]:
    """[h] (D, T, B, P), for an LSTM [h, c], in one launch, or step by step if that is faster."""
    variant, none = variant_of(kind, spec, arrays), nothing()
    if variant.forward.rows == 0:
        return forward_by_step(kind, spec, arrays)
    (D, T, B, _), layout = arrays["x"].shape, variant.scan(False)
    inputs = [
        project_inputs(arrays),
        _packed(arrays["w_h"], layout.of_h),  # (1)
        _packed(arrays["w_hr"], layout.project) if variant.P else none,  # (3)
        arrays.get("b_hn", none),  # (2)
        arrays["h0"],
        arrays.get("c0", none),
        lengths_of(arrays, T, B),
    ]
    shapes = [(D, T, B, layout.features), (D, T, B, variant.H) if spec.has_cell_state else (1,)]
    y, c = _launch(kind, FORWARD, variant, inputs, D, T, B, shapes)
    return [y, c] if spec.has_cell_state else [y]


def gated_fused_backward(kind: str, spec: GatedSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as returned by the NumPy form's backward."""
    variant = variant_of(kind, spec, arrays)
    D, T, B, _ = outputs[0].shape
    names = ("h0", "c0") if spec.has_cell_state else ("h0",)
    before = [mx.concatenate([mx.expand_dims(arrays[name], 1), a[:, :-1]], axis=1) for name, a in zip(names, outputs, strict=True)]
    lengths, packed = lengths_of(arrays, T, B), _packed_back(variant, arrays) if variant.backward.rows else []
    carry, parts, steps = [mx.zeros_like(arrays[name]) for name in names], [], block_steps(variant, D * B)
    for start in reversed(range(0, T, steps)):
        block = slice(start, min(start + steps, T))
        part, states, dy = {**arrays, "x": arrays["x"][:, block]}, [a[:, block] for a in before], [a[:, block] for a in cotangents]
        by_state, m = slopes(kind, spec, part, states)
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        if variant.backward.rows == 0:
            d, dh, carry = back_by_step(kind, spec, part, by_state, dy, carry, here)
        else:
            d, dh, carry = _scan_back(kind, variant, packed, by_state, dy, carry, here)
        parts.append(_gradients(spec, part, states[0], m, d, dh))
    over_time = {"x": mx.concatenate([part.pop("x") for part in reversed(parts)], axis=1)}
    return over_time | {name: sum(part[name] for part in parts) for name in parts[0]} | dict(zip(names, carry, strict=True))


def block_steps(variant: Variant, sequences: int) -> int:
    """Steps per block; the slopes and gradients of one block are in memory at a time."""
    return max(1, min(BLOCK_STEPS, BLOCK_BYTES // (4 * sequences * (3 * variant.spec.gates + 6) * variant.H)))


def slopes(kind: str, spec: GatedSpec, arrays: Tree, states: list[mx.array]) -> tuple[mx.array, mx.array]:
    """The slopes (D, T, B, SLOPES, H) of a block of steps, from the states before them; and m = o tanh(c), (D, T, B, H), of a projected
    LSTM.

    See gated_pointwise.metal for the order of the slopes.
    """
    (D, T, B, P), none = states[0].shape, nothing()
    q = states[0].reshape(D, T * B, P) @ arrays["w_h"].swapaxes(1, 2)
    H, projected = q.shape[2] // spec.gates, "w_hr" in arrays
    template = [*pointwise_template(spec, H), ("PROJECTED", projected)]
    before = states[-1].reshape(D, T * B, H) if not projected or spec.has_cell_state else none
    inputs = [q, project_inputs(arrays).reshape(q.shape), arrays.get("b_hn", none), before]
    count = {"lstm": 6, "gru": 5}.get(spec.cell, 1)
    shapes = [(D, T * B, count, H), (D, T * B, H) if projected else (1,)]
    by_state, m = launch_parallel(
        kind, SLOPES, template, inputs, T * B, lambda R: D * R * H, lambda R: dims(D * R, R), shapes, FUNCTION * (spec.gates + 1)
    )
    return by_state.reshape(D, T, B, count, H), m.reshape(D, T, B, H) if projected else m


def _packed_back(variant: Variant, arrays: Tree) -> list[mx.array]:
    """The transposed weights for the backward scan."""
    layout = variant.scan(True)
    w_h = _packed(arrays["w_h"].swapaxes(1, 2), layout.project_back if variant.P else layout.back)
    return [w_h, _packed(arrays["w_hr"].swapaxes(1, 2), layout.back) if variant.P else nothing()]


def _scan_back(
    kind: str,
    variant: Variant,
    packed: list[mx.array],
    by_state: mx.array,
    dy: list[mx.array],
    carry: list[mx.array],
    lengths: mx.array,
) -> tuple[mx.array, mx.array, list[mx.array]]:
    """The backward scan over a block of steps; see `back_by_step`."""
    D, T, B, P = dy[0].shape
    none, memory, H = nothing(), variant.spec.has_cell_state, variant.H
    inputs = [dy[0], carry[0], by_state, *packed, *([dy[1], carry[1]] if memory else [none] * 2), lengths]
    shapes = [(D, T, B, variant.spec.blocks, H), (D, T, B, P) if variant.P else (1,), (D, B, P), (D, B, H) if memory else (1,)]
    d, dh, dh0, dc0 = _launch(kind, BACKWARD, variant, inputs, D, T, B, shapes)
    return d, dh, [dh0, dc0] if memory else [dh0]


def _gradients(spec: GatedSpec, arrays: Tree, h: mx.array, m: mx.array, d: mx.array, dh: mx.array) -> Tree:
    """All gradients of a block of steps, from those of its products and of a projected h."""
    D, T, B, blocks, H = d.shape
    if spec.cell == "gru":
        r, z, q_n, n = mx.split(d.reshape(D, T * B, 4 * H), 4, axis=2)
        of_x, of_h = mx.concatenate([r, z, n], axis=2), mx.concatenate([r, z, q_n], axis=2)
    else:
        of_x = of_h = d.reshape(D, T * B, blocks * H)
    x = arrays["x"].reshape(D, T * B, -1)
    result = {"w_x": of_x.swapaxes(1, 2) @ x, "w_h": of_h.swapaxes(1, 2) @ h.reshape(D, T * B, -1), "b": of_x.sum(axis=1)}
    result["x"] = (of_x @ arrays["w_x"]).reshape(D, T, B, -1)
    if spec.cell == "gru":
        result["b_hn"] = q_n.sum(axis=1)
    if "w_hr" in arrays:
        result["w_hr"] = dh.reshape(D, T * B, -1).swapaxes(1, 2) @ m.reshape(D, T * B, H)
    return result


def _packed(weights: mx.array, shape: ProductShape) -> mx.array:
    """(D, results, inputs), packed separately for each direction."""
    return mx.concatenate([pack(weight, shape) for weight in weights])


def _launch(
    kind: str, text: KernelText, variant: Variant, inputs: list[mx.array], D: int, T: int, B: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    backward = text is BACKWARD
    tile, template, work = variant.scan(backward).tile, variant.template(backward), variant.work(backward)
    return launch(kind, scan_launch(text, inputs, template, shapes, tile, T, B, dims, work, D, backward))

"""The CfC scan as fused kernels (metal/cfc.metal): what surrounds the two sequential scans, and their launches.

The arrays are those of the NumPy form (reference.py). What is parallel over T lies around the scans: before the backward one the gates'
slopes, recomputed from the stored states by matrix products and pointwise kernels; after it the weights' gradients. Inputs and weights may be
float16 or bfloat16; states, sums and slopes are float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ...kernels.loader import KernelText, launch
from ...kernels.tiles import THREADGROUP_BYTES, Family, Tile, current_family, forced_tile, rows_for
from ..pointwise import ACTIVATIONS
from .ops import project
from .problems import random_arrays
from .spec import MODES, CfCSpec
from .variant import Variant, Weights, by_unit, heads_inside, of_stage, slot_table, unit_rows, weights_from_above, window_weights, window_weights_back

Tree = dict[str, Any]
BLOCK_STEPS = 256  # steps whose slopes are in memory at a time
POINTWISE_THREADS = 256
FILES = ("pointwise.metal", "product.metal", "cfc.metal")
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
)
BACKWARD = KernelText(
    "cfc_backward",
    SIZES,
    FILES,
    (
        *("dy", "carry", "slope_q", "slopes", "w_heads", "w_middle", "w_first"),
        *("dy_c", "carry_c", "slopes_gates", "w_gates", "w_above", "slots", "lengths", "dims"),
    ),
    ("dh", "dz", "dh0", "d_gates", "dc0"),
)
ACTIVATE = KernelText("cfc_activate", "ACTIVATION, THREADS", FILES, ("a", "dropout", "dims"), ("z", "slope"))
SLOPES = KernelText("cfc_slopes", "MODE, H, THREADS", FILES, ("q", "dt", "pure", "dims"), ("by_q", "by_dt", "by_w_tau", "by_A"))
GATE_SLOPES = KernelText("cfc_gate_slopes", "H, THREADS", FILES, ("q", "c", "dims"), ("h_inner", "slopes"))


def choose_tile(family: Family, spec: CfCSpec, Z: int, depth: int, batch: int, half: bool) -> Tile:
    """Weights in registers if they fit there, in half precision if only then; else read at every step, for several sequences.

    In float32 an LSTM's weights are the first that are left out.
    """
    split = 8 if spec.mode != "pure" else 4
    one = Variant(spec, Z, depth, Tile(family.threads, 1, split, True))
    step, gates, most = one.step_weights, one.gate_weights, family.register_floats
    in_half = half and step + gates > most
    most = 2 * most if in_half else most
    resident = step <= most
    rows = rows_for(family, batch, one.threadgroup_bytes, resident)
    return Tile(family.threads, rows, split, resident, in_half, step + gates <= most)


def variant_of(kind: str, spec: CfCSpec, arrays: Tree) -> Variant:
    """The kernel variant that serves some arrays."""
    first, B = arrays["stages"][0], arrays["dt"].shape[1]
    depth, weight = len(first.get("dense", [])), first["w_h"].dtype
    Z, half = (first["w_h"].shape[0] if depth else spec.units), weight != mx.float32
    tile = forced_tile.get() or choose_tile(current_family(), spec, Z, depth, B, half)
    return Variant(spec, Z, depth, tile, mx.result_type(arrays["x"].dtype, weight), weight if tile.half else mx.float32)


def refusal(kind: str, spec: CfCSpec, arrays: Tree) -> str | None:
    """Why no kernel serves such arrays, or None."""
    if arrays["dt"].dtype != mx.float32:
        return "kernels compute in float32"
    if variant_of(kind, spec, arrays).tile.rows == 0:
        return f"{spec.units} units need more than {THREADGROUP_BYTES} bytes of threadgroup memory"
    return None


def small_problem(spec: CfCSpec, arrays: Tree) -> Tree:
    """Three steps of as many sequences, of different lengths, in the same variant."""
    first = arrays["stages"][0]
    depth = len(first.get("dense", []))
    return random_arrays(spec, 3, arrays["dt"].shape[1], len(first["w_h"]) if depth else 0, depth, lengths=True, dropout=False)


def cfc_fused_forward(kind: str, spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    """[h] (T, B, H), with mixed memory [h, c], in one launch."""
    variant, w = variant_of(kind, spec, arrays), Weights.of(spec, arrays["stages"])
    T, B = arrays["dt"].shape
    none, packed_none = mx.zeros((8,)), mx.zeros((8,), variant.weight)
    dropout = arrays.get("dropout")
    heads = window_weights(variant, w.heads)
    inputs = [
        _projected(arrays, arrays["stages"][0]),
        packed_none if w.first is None else variant.pack(w.first, variant.first),
        mx.concatenate([variant.pack(layer["w"], variant.middle) for layer in w.middle]) if w.middle else packed_none,
        _floats(mx.stack([layer["b"] for layer in w.middle])) if w.middle else none,
        variant.pack(heads, variant.heads),
        _floats(w.b_heads),
        _floats(w.pure),
        _floats(mx.stack(dropout)) if dropout else none,
        arrays["dt"],
        arrays["h0"],
        *_memory_inputs(variant, arrays),
        _slots(variant, False),
        _lengths(arrays, T, B),
        _dims(T, B, int(bool(dropout))),
    ]
    y, c = _launch(kind, FORWARD, variant, inputs, B, [(T, B, variant.H), (T, B, variant.H) if spec.mixed_memory else (1,)])
    return [y, c] if spec.mixed_memory else [y]


def _floats(a: mx.array) -> mx.array:
    return a.astype(mx.float32)


def _dims(*numbers: int) -> mx.array:
    return mx.array([*numbers, *[0] * (8 - len(numbers))])


def _slots(variant: Variant, backward: bool) -> mx.array:
    return slot_table(variant, backward) if len(variant.sizes) > 1 else mx.zeros((8,), mx.int32)


def _projected(arrays: Tree, part: Tree) -> mx.array:
    return project(arrays["x"], part["w_x"], part["b"])


def _memory_inputs(variant: Variant, arrays: Tree) -> list[mx.array]:
    if not variant.spec.mixed_memory:
        return [mx.zeros((8,), variant.io), mx.zeros((8,), variant.weight), mx.zeros((8,))]
    w_gates = variant.pack(unit_rows(variant, arrays["lstm"]["w_h"], 4), variant.gates)
    return [_projected(arrays, arrays["lstm"]), w_gates, arrays["c0"]]


def cfc_fused_backward(kind: str, spec: CfCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as the NumPy form's backward gives them."""
    variant = variant_of(kind, spec, arrays)
    T, B, H = outputs[0].shape
    before = [mx.concatenate([mx.expand_dims(a, 0), kept[:-1]]) for a, kept in zip(_initial(spec, arrays), outputs, strict=True)]
    lengths = _lengths(arrays, T, B)
    carry, parts = [mx.zeros((B, H)) for _ in outputs], []
    packed = _packed_back(variant, Weights.of(spec, arrays["stages"]), arrays)
    for start in reversed(range(0, T, BLOCK_STEPS)):
        block = slice(start, min(start + BLOCK_STEPS, T))
        part, states, dy = _steps(arrays, block), [a[block] for a in before], [a[block] for a in cotangents]
        point = linearise(kind, spec, part, states, outputs[0][block])
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        dh, dz, d_gates, carry = _scan_back(kind, variant, packed, point, dy, carry, here)
        parts.append(_gradients(spec, part, states[0], point, dh, dz, d_gates))
    return _joined(parts[::-1]) | dict(zip(("h0", "c0"), carry, strict=False))


def _initial(spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    return [arrays["h0"], arrays["c0"]] if spec.mixed_memory else [arrays["h0"]]


class Point(NamedTuple):
    """The slopes of a block of steps, at the stored states."""

    inputs: list[mx.array]  # of each stage: (T, B, its inputs)
    h_inner: mx.array  # (T, B, H): what the CfC step works on: the state before it, or the LSTM's h
    z: list[mx.array]  # (T, B, Z) each: what enters each dense layer
    slopes: list[mx.array]  # (T, B, Z) each: of the activations
    slopes_gates: mx.array  # (T, B, 6, H): of c by a, i, f; of the LSTM's h by o and by c; sigma(f + 1)
    slope_q: mx.array  # (T, B, heads, H)
    slope_dt: mx.array  # (T, B, H)
    pure: dict[str, mx.array]  # (T, B, H) each


def linearise(kind: str, spec: CfCSpec, arrays: Tree, states: list[mx.array], h_next: mx.array) -> Point:
    """Recompute a block of steps at once from the states before and after them."""
    stages = arrays["stages"]
    h, slopes_gates = _memory_slopes(kind, arrays, *states) if spec.mixed_memory else (states[0], mx.zeros((8,)))
    inputs = [arrays["x"], *(h_next[..., start:stop] for start, stop in spec.stages[:-1])]
    products = [
        project(u, stage["w_x"], stage["b"]) + h[..., start:stop] @ stage["w_h"].T
        for u, stage, (start, stop) in zip(inputs, stages, spec.stages, strict=True)
    ]
    z, slopes = [], []
    for k, layer in enumerate(stages[0].get("dense", [])):
        value, slope = _activate(kind, spec, products[0], arrays["dropout"][k] if "dropout" in arrays else None)
        z.append(value)
        slopes.append(slope)
        products = [project(value, layer["w"], layer["b"])]
    q = by_unit(spec, products, spec.heads)
    return Point(inputs, h, z, slopes, slopes_gates, *_head_slopes(kind, spec, q, arrays["dt"], Weights.of(spec, stages).pure))


def _activate(kind: str, spec: CfCSpec, a: mx.array, dropout: mx.array | None) -> list[mx.array]:
    """z, and its slope."""
    template = [("ACTIVATION", list(ACTIVATIONS).index(spec.activation))]  # (1)
    inputs = [_floats(a), mx.zeros((8,)) if dropout is None else _floats(dropout), _dims(a.size, int(dropout is not None))]
    return _launch_pointwise(kind, ACTIVATE, template, inputs, a.size, [a.shape] * 2)


def _head_slopes(
    kind: str, spec: CfCSpec, q: mx.array, dt: mx.array, pure: mx.array
) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
    """Point's slope_q, slope_dt and pure."""
    T, B = dt.shape
    shape = (T, B, spec.units)
    by_pure = shape if spec.mode == "pure" else (1,)
    template = [("MODE", MODES.index(spec.mode)), ("H", spec.units)]
    # (2)
    # (3)
    by_q, by_dt, by_w_tau, by_A = _launch_pointwise(
        kind,
        SLOPES,
        template,
        [_floats(q), dt, _floats(pure), _dims(T * B)],
        T * B * spec.units,
        [(T, B, spec.heads, spec.units), shape, by_pure, by_pure],
    )
    return by_q, by_dt, {"w_tau": by_w_tau, "A": by_A} if spec.mode == "pure" else {}


def _memory_slopes(kind: str, arrays: Tree, h: mx.array, c: mx.array) -> list[mx.array]:
    """The LSTM's h, and Point's slopes_gates."""
    T, B, H = h.shape
    q = _floats(_projected(arrays, arrays["lstm"]) + h @ arrays["lstm"]["w_h"].T)
    return _launch_pointwise(kind, GATE_SLOPES, [("H", H)], [q, c, _dims(T * B)], T * B * H, [h.shape, (T, B, 6, H)])


def _packed_back(variant: Variant, w: Weights, arrays: Tree) -> list[mx.array]:
    """The transposed weights as the backward scan reads them: of the heads, the middle layers, the first product, the gates, the stage above."""
    none = mx.zeros((8,), variant.weight)
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
    kind: str,
    variant: Variant,
    packed: list[mx.array],
    point: Point,
    dy: list[mx.array],
    carry: list[mx.array],
    lengths: mx.array,
) -> tuple[mx.array, mx.array, mx.array, list[mx.array]]:
    """The backward scan over a block of steps.

    Returns:
        dh (T, B, H) of each state, dz (depth, T, B, Z) of the backbone's products, d_gates (T, B, 4, H) of the LSTM's, and the gradients
        (B, H) of the states before the block.
    """
    T, B, H = dy[0].shape
    none, memory = mx.zeros((8,)), variant.spec.mixed_memory
    slopes = mx.stack(point.slopes) if point.slopes else none
    of_memory = [dy[1], carry[1], point.slopes_gates] if memory else [none] * 3
    w_heads, w_middle, w_first, w_gates, w_above = packed
    inputs = [dy[0], carry[0], point.slope_q, slopes, w_heads, w_middle, w_first, *of_memory, w_gates, w_above]
    inputs += [_slots(variant, True), lengths, _dims(T, B)]
    shapes = [(T, B, H), (variant.depth, T, B, variant.Z) if variant.depth else (1,), (B, H)]
    shapes += [(T, B, 4, H), (B, H)] if memory else [(1,), (1,)]
    dh, dz, dh0, d_gates, dc0 = _launch(kind, BACKWARD, variant, inputs, B, shapes)
    return dh, dz, d_gates, [dh0, dc0] if memory else [dh0]


def _gradients(spec: CfCSpec, arrays: Tree, h_prev: mx.array, point: Point, dh: mx.array, dz: mx.array, d_gates: mx.array) -> Tree:
    """All gradients of a block of steps from those of its states and products."""
    dq = (mx.expand_dims(dh, 2) * point.slope_q).reshape(*dh.shape[:2], -1)
    by_pure = {name: (dh * slope).sum(axis=(0, 1)) for name, slope in point.pure.items()}
    firsts = [dz[0]] if point.z else [of_stage(dq, spec.heads, units) for units in spec.stages]
    stages = [
        _product_gradients(d, u, point.h_inner[..., units[0] : units[1]]) | {name: of_stage(a, 1, units) for name, a in by_pure.items()}
        for d, u, units in zip(firsts, point.inputs, spec.stages, strict=True)
    ]
    if point.z:
        products = [*(dz[k] for k in range(1, len(point.z))), dq]
        stages[0]["dense"] = [{"w": _outer(d, z), "b": d.sum(axis=(0, 1))} for d, z in zip(products, point.z, strict=True)]
    result: Tree = {"x": firsts[0] @ arrays["stages"][0]["w_x"], "dt": (dh * point.slope_dt).sum(axis=-1), "stages": stages}
    if spec.mixed_memory:
        d_gates = d_gates.reshape(*dh.shape[:2], -1)
        result["lstm"] = _product_gradients(d_gates, arrays["x"], h_prev)
        result["x"] = result["x"] + d_gates @ arrays["lstm"]["w_x"]
    return result


def _product_gradients(d: mx.array, x: mx.array, h: mx.array) -> Tree:
    """The gradients of w_x, w_h and b of a product W_x x + W_h h + b, from that of its results."""
    return {"w_x": _outer(d, x), "w_h": _outer(d, h), "b": d.sum(axis=(0, 1))}


def _joined(parts: list[Tree]) -> Tree:
    """Gradients of consecutive blocks of steps together: those with a time axis in a row, the others added up."""
    by_path = [dict(tree_flatten(part)) for part in parts]
    over_time = ("x", "dt")
    joined = {
        path: mx.concatenate([part[path] for part in by_path]) if path in over_time else sum(part[path] for part in by_path)
        for path in by_path[0]
    }
    return tree_unflatten(list(joined.items()))


def _outer(d: mx.array, x: mx.array) -> mx.array:
    """sum over steps and sequences of d x^T: (T, B, J), (T, B, K) -> (J, K)."""
    return d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def _steps(arrays: Tree, block: slice) -> Tree:
    """The arrays of a block of steps."""
    part = {**arrays, "x": arrays["x"][block], "dt": arrays["dt"][block]}
    return part | ({"dropout": [mask[block] for mask in arrays["dropout"]]} if "dropout" in arrays else {})


def _lengths(arrays: Tree, T: int, B: int) -> mx.array:
    return arrays["lengths"] if "lengths" in arrays else mx.full((B,), T, mx.int32)


def _launch(
    kind: str, text: KernelText, variant: Variant, inputs: list[mx.array], B: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    tile = variant.tile
    groups = -(-B // tile.rows)
    return launch(kind, text, inputs, variant.template(text is BACKWARD), groups, tile.threads, shapes, [mx.float32] * len(shapes))


def _launch_pointwise(
    kind: str, text: KernelText, template: list[tuple[str, Any]], inputs: list[mx.array], count: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    """One thread for each of `count` values."""
    template = [*template, ("THREADS", POINTWISE_THREADS), ("SCRATCH", 1)]
    return launch(kind, text, inputs, template, -(-count // POINTWISE_THREADS), POINTWISE_THREADS, shapes, [mx.float32] * len(shapes))

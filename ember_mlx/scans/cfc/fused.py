"""The CfC scan as fused kernels (metal/cfc.metal): what surrounds the two sequential scans, and their launches.

The arrays are those of the NumPy form (reference.py). What is parallel over T is made of MLX operations: before the backward scan the
gates' slopes, recomputed from the stored states; after it the weights' gradients.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ...kernels.loader import KernelText, launch
from ...kernels.packing import ProductShape, pack
from ...kernels.tiles import THREADGROUP_BYTES, Family, Tile, current_family, forced_tile, rows_for
from ..ops import project
from .ops import ACTIVATIONS
from .problems import random_arrays
from .spec import MODES, CfCSpec

Tree = dict[str, Any]
BLOCK_STEPS = 256  # steps whose slopes are in memory at a time
FILES = ("pointwise.metal", "product.metal", "rows.metal", "cfc.metal")
SIZES = "CfC<H, Z, DEPTH, MODE, ACTIVATION, MEMORY, THREADS, ROWS, SPLIT, RESIDENT>"
FORWARD = KernelText(
    "cfc_forward",
    SIZES,
    FILES,
    (
        *("x_proj", "w_first", "w_middle", "b_middle", "w_heads", "b_heads", "pure", "dropout", "dt", "h0"),
        *("x_gates", "w_gates", "c0", "lengths", "dims"),
    ),
    ("y", "c_out"),
)
BACKWARD = KernelText(
    "cfc_backward",
    SIZES,
    FILES,
    (
        *("dy", "carry", "slope_q", "slopes", "w_heads", "w_middle", "w_first"),
        *("dy_c", "carry_c", "slopes_gates", "w_gates", "lengths", "dims"),
    ),
    ("dh", "dz", "dh0", "d_gates", "dc0"),
)


class Variant(NamedTuple):
    """Sizes of one kernel variant, and its products."""

    spec: CfCSpec
    H: int
    Z: int
    depth: int
    tile: Tile

    def _shape(self, results: int, inputs: int, outputs: int, by_unit: bool = False) -> ProductShape:
        return ProductShape(inputs, results, self.tile.split, outputs, self.tile.threads, by_unit)

    @property
    def outputs(self) -> int:
        """Results of a group of lanes in a product of layers."""
        return 4

    @property
    def first(self) -> ProductShape:
        """The first backbone layer, or nothing where there is none."""
        return self._shape(self.Z, self.H, self.outputs)

    @property
    def middle(self) -> ProductShape:
        """A further backbone layer; its transpose has the same shape."""
        return self._shape(self.Z, self.Z, self.outputs)

    @property
    def heads(self) -> ProductShape:
        """The heads."""
        heads = self.spec.heads
        return self._shape(heads * self.H, self.Z if self.depth else self.H, heads, by_unit=True)

    @property
    def heads_back(self) -> ProductShape:
        """From the heads' gradients to the last backbone layer's."""
        return self._shape(self.Z, self.spec.heads * self.H, self.outputs)

    @property
    def first_back(self) -> ProductShape:
        """From the first product's gradient to the state's."""
        return self._shape(self.H, self.Z if self.depth else self.spec.heads * self.H, 1)

    @property
    def gates(self) -> ProductShape:
        """The LSTM's gates."""
        return self._shape(4 * self.H, self.H, 4, by_unit=True)

    @property
    def gates_back(self) -> ProductShape:
        """From the gates' gradients to the state's."""
        return self._shape(self.H, 4 * self.H, 1)

    @property
    def resident_floats(self) -> int:
        """Weights that a lane must keep in registers to keep all of them, in the greedier direction."""
        forward = [self.heads, *([self.first] if self.depth else []), *([self.gates] if self.spec.mixed_memory else [])]
        backward = [self.first_back, *([self.heads_back] if self.depth else []), *([self.gates_back] if self.spec.mixed_memory else [])]
        return max(sum(product.floats for product in products) for products in (forward, backward))

    @property
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory of a group."""
        return 16 * max(self.scratch(False), self.scratch(True))

    def scratch(self, backward: bool) -> int:
        """float4s of threadgroup memory: the states' buffers, the layers', and the memory's."""
        memory = self.spec.mixed_memory
        into_h = self.heads_back if self.depth else self.first_back
        into_z = self.first if self.depth else self.heads
        state, layer = (into_h, self.first_back) if backward else (into_z, self.heads)
        row4 = (1 if self.depth or memory else 2) * state.row4 + min(self.depth, 2) * layer.row4
        if memory:
            row4 += self.gates_back.row4 + self.H if backward else state.row4 + -(-self.H // 4)
        return self.tile.rows * row4

    def template(self, backward: bool) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        sizes = {"H": self.H, "Z": self.Z if self.depth else self.H, "DEPTH": self.depth}
        kinds = {"MODE": MODES.index(self.spec.mode), "ACTIVATION": list(ACTIVATIONS).index(self.spec.activation)}
        kinds["MEMORY"] = self.spec.mixed_memory
        tile = {"THREADS": self.tile.threads, "ROWS": self.tile.rows, "SPLIT": self.tile.split, "RESIDENT": self.tile.resident}
        return [*sizes.items(), *kinds.items(), *tile.items(), ("SCRATCH", self.scratch(backward))]


def choose_tile(family: Family, spec: CfCSpec, H: int, Z: int, depth: int, batch: int) -> Tile:
    """Weights in registers if they fit there, one sequence a group; else weights read at every step, for several sequences."""
    split = 8 if spec.mode != "pure" else 4
    alone = Variant(spec, H, Z, depth, Tile(family.threads, 1, split, True))
    if alone.resident_floats <= family.register_floats and alone.threadgroup_bytes <= THREADGROUP_BYTES:
        return alone.tile
    return alone.tile._replace(resident=False, rows=rows_for(family, batch, alone.threadgroup_bytes))


class Weights(NamedTuple):
    """A stage's arrays by their place in the step: backbone layers first to last, and the heads."""

    first: mx.array
    middle: list[Tree]
    heads: mx.array
    b_heads: mx.array
    pure: mx.array

    @classmethod
    def of(cls, spec: CfCSpec, stage: Tree) -> "Weights":
        """The weights of a stage's tree."""
        dense = stage.get("dense", [])
        none = mx.zeros((8,))
        pure = mx.stack([stage["w_tau"], stage["A"]]) if spec.mode == "pure" else none
        if not dense:
            return cls(none, [], stage["w_h"], none, pure)
        return cls(stage["w_h"], dense[:-1], dense[-1]["w"], dense[-1]["b"], pure)


def variant_of(kind: str, spec: CfCSpec, arrays: Tree) -> Variant:
    """The kernel variant that serves some arrays."""
    (stage,) = arrays["stages"]
    depth, (Z, H) = len(stage.get("dense", [])), stage["w_h"].shape
    Z = Z if depth else H
    tile = forced_tile.get() or choose_tile(current_family(kind), spec, H, Z, depth, arrays["dt"].shape[1])
    return Variant(spec, H, Z, depth, tile)


def variant_key(kind: str, spec: CfCSpec, arrays: Tree) -> Variant:
    """What a first use is remembered by."""
    return variant_of(kind, spec, arrays)


def refusal(kind: str, spec: CfCSpec, arrays: Tree) -> str | None:
    """Why no kernel serves such arrays, or None."""
    if len(spec.stages) > 1:
        return "there is no kernel for the memory of a layered map yet"
    if arrays["dt"].dtype != mx.float32:
        return "kernels compute in float32"
    if variant_of(kind, spec, arrays).tile.rows == 0:
        return f"{spec.units} units need more than {THREADGROUP_BYTES} bytes of threadgroup memory"
    return None


def small_problem(spec: CfCSpec, arrays: Tree) -> Tree:
    """Three steps of as many sequences, of different lengths, in the same variant."""
    (stage,) = arrays["stages"]
    return random_arrays(spec, 3, arrays["dt"].shape[1], len(stage["w_h"]), len(stage.get("dense", [])), lengths=True, dropout=False)


def cfc_fused_forward(kind: str, spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    """[h] (T, B, H), in one launch."""
    variant, w = variant_of(kind, spec, arrays), Weights.of(spec, arrays["stages"][0])
    T, B = arrays["dt"].shape
    dropout = arrays.get("dropout")
    middle = [pack(layer["w"], variant.middle) for layer in w.middle]
    inputs = [
        _projected(arrays, arrays["stages"][0]),
        pack(w.first, variant.first) if variant.depth else w.first,
        mx.concatenate(middle) if middle else mx.zeros((8,)),
        mx.stack([layer["b"] for layer in w.middle]) if middle else mx.zeros((8,)),
        pack(w.heads, variant.heads),
        w.b_heads,
        w.pure,
        mx.stack(dropout) if dropout else mx.zeros((8,)),
        arrays["dt"],
        arrays["h0"],
        *_memory_inputs(variant, arrays),
        _lengths(arrays, T, B),
        mx.array([T, B, int(bool(dropout)), 0, 0, 0, 0, 0]),
    ]
    y, c = _launch(kind, FORWARD, variant, inputs, B, [(T, B, variant.H), (T, B, variant.H) if spec.mixed_memory else (1,)])
    return [y, c] if spec.mixed_memory else [y]


def _projected(arrays: Tree, part: Tree) -> mx.array:
    return project(arrays["x"], part["w_x"], part["b"])


def _memory_inputs(variant: Variant, arrays: Tree) -> list[mx.array]:
    if not variant.spec.mixed_memory:
        return [mx.zeros((8,))] * 3
    return [_projected(arrays, arrays["lstm"]), pack(arrays["lstm"]["w_h"], variant.gates), arrays["c0"]]


def cfc_fused_backward(kind: str, spec: CfCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as the NumPy form's backward gives them."""
    variant = variant_of(kind, spec, arrays)
    T, B, H = outputs[0].shape
    before = [mx.concatenate([mx.expand_dims(a, 0), kept[:-1]]) for a, kept in zip(_initial(spec, arrays), outputs, strict=True)]
    lengths = _lengths(arrays, T, B)
    carry, parts = [mx.zeros((B, H)) for _ in outputs], []
    packed = _packed_back(variant, Weights.of(spec, arrays["stages"][0]), arrays)
    for start in reversed(range(0, T, BLOCK_STEPS)):
        block = slice(start, min(start + BLOCK_STEPS, T))
        part, states, dy = _steps(arrays, block), [a[block] for a in before], [a[block] for a in cotangents]
        point = linearise(spec, part, states)
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        dh, dz, d_gates, carry = _scan_back(kind, variant, packed, point, dy, carry, here)
        parts.append(_gradients(spec, part, states[0], point, dh, dz, d_gates))
    return _joined(parts[::-1]) | dict(zip(("h0", "c0"), carry, strict=False))


def _initial(spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    return [arrays["h0"], arrays["c0"]] if spec.mixed_memory else [arrays["h0"]]


class Point(NamedTuple):
    """The slopes of a block of steps, at the stored states."""

    h_inner: mx.array  # (T, B, H): what the CfC step works on: the state before it, or the LSTM's h
    z: list[mx.array]  # (T, B, Z) each: what enters each dense layer
    slopes: list[mx.array]  # (T, B, Z) each: of the activations
    slopes_gates: mx.array  # (T, B, 6, H): of c by a, i, f; of the LSTM's h by o and by c; sigma(f + 1)
    slope_q: mx.array  # (T, B, heads, H)
    slope_dt: mx.array  # (T, B, H)
    pure: dict[str, mx.array]  # (T, B, H) each


def linearise(spec: CfCSpec, arrays: Tree, states: list[mx.array]) -> Point:
    """Recompute a block of steps at once from the states before them."""
    (stage,) = arrays["stages"]
    dt = mx.expand_dims(arrays["dt"], 2)
    h, slopes_gates = (
        _memory_slopes(_projected(arrays, arrays["lstm"]), arrays["lstm"]["w_h"], *states)
        if spec.mixed_memory
        else (states[0], mx.zeros((8,)))
    )
    a = _projected(arrays, stage) + h @ stage["w_h"].T
    z, slopes = [], []
    for k, layer in enumerate(stage.get("dense", [])):
        (value,), (slope,) = mx.jvp(ACTIVATIONS[spec.activation], [a], [mx.ones_like(a)])  # (1)
        if "dropout" in arrays:
            value, slope = value * arrays["dropout"][k], slope * arrays["dropout"][k]
        z.append(value)
        slopes.append(slope)
        a = value @ layer["w"].T + layer["b"]  # (2)
    by_mode = _pure_slopes(a, dt, stage) if spec.mode == "pure" else _gated_slopes(a, dt, spec.mode == "no_gate")
    return Point(h, z, slopes, slopes_gates, *by_mode)


def _memory_slopes(projected: mx.array, w_h: mx.array, h: mx.array, c: mx.array) -> tuple[mx.array, mx.array]:
    """The LSTM's h, and Point's slopes_gates."""
    a, i, f, o = mx.split(projected + h @ w_h.T, 4, axis=-1)
    a, i, f, o = mx.tanh(a), mx.sigmoid(i), mx.sigmoid(f + 1), mx.sigmoid(o)
    tanh_c = mx.tanh(c * f + a * i)
    of_c = [(1 - a * a) * i, a * i * (1 - i), c * f * (1 - f)]
    return tanh_c * o, mx.stack([*of_c, tanh_c * o * (1 - o), o * (1 - tanh_c * tanh_c), f], axis=2)


def _gated_slopes(q: mx.array, dt: mx.array, no_gate: bool) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
    f, g, t_a, t_b = mx.split(q, 4, axis=-1)
    f, g = mx.tanh(f), mx.tanh(g)  # (2)
    t_interp = mx.sigmoid(t_a * dt + t_b)  # (3)
    slope = (g if no_gate else g - f) * t_interp * (1 - t_interp)
    by_f = (1 - f * f) * (1 if no_gate else 1 - t_interp)
    return mx.stack([by_f, (1 - g * g) * t_interp, slope * dt, slope], axis=2), slope * t_a, {}


def _pure_slopes(q: mx.array, dt: mx.array, stage: Tree) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
    f, A, w_tau = q, stage["A"], stage["w_tau"]  # (2)
    rate = mx.abs(w_tau) + mx.abs(f)
    decay = mx.exp(-dt * rate)  # (3)
    by_f = -A * decay * (1 - dt * mx.abs(f))
    by_w_tau = A * decay * f * dt * mx.where(w_tau < 0, -1, 1)
    return mx.expand_dims(by_f, 2), A * decay * f * rate, {"w_tau": by_w_tau, "A": 1 - decay * f}


def _packed_back(variant: Variant, w: Weights, arrays: Tree) -> tuple[list[mx.array], mx.array]:
    """The transposed weights as the backward scan reads them: of the heads, the middle layers and the first product; of the gates."""
    none = mx.zeros((8,))
    gates = pack(arrays["lstm"]["w_h"].T, variant.gates_back) if variant.spec.mixed_memory else none
    if not variant.depth:
        return [none, none, pack(w.heads.T, variant.first_back)], gates
    middle = [pack(layer["w"].T, variant.middle) for layer in w.middle]
    first = pack(w.first.T, variant.first_back)
    return [pack(w.heads.T, variant.heads_back), mx.concatenate(middle) if middle else none, first], gates


def _scan_back(
    kind: str,
    variant: Variant,
    packed: tuple[list[mx.array], mx.array],
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
    gates = [dy[1], carry[1], point.slopes_gates, packed[1]] if memory else [none] * 4
    inputs = [dy[0], carry[0], point.slope_q, slopes, *packed[0], *gates, lengths, mx.array([T, B, 0, 0, 0, 0, 0, 0])]
    shapes = [(T, B, H), (variant.depth, T, B, variant.Z) if variant.depth else (1,), (B, H)]
    shapes += [(T, B, 4, H), (B, H)] if memory else [(1,), (1,)]
    dh, dz, dh0, d_gates, dc0 = _launch(kind, BACKWARD, variant, inputs, B, shapes)
    return dh, dz, d_gates, [dh0, dc0] if memory else [dh0]


def _gradients(spec: CfCSpec, arrays: Tree, h_prev: mx.array, point: Point, dh: mx.array, dz: mx.array, d_gates: mx.array) -> Tree:
    """All gradients of a block of steps from those of its states and products."""
    dq = (mx.expand_dims(dh, 2) * point.slope_q).reshape(*dh.shape[:2], -1)
    products = [*(dz[k] for k in range(len(point.z))), dq]
    x, stage = arrays["x"], arrays["stages"][0]
    grad = _product_gradients(products[0], x, point.h_inner)
    grad |= {name: (dh * slope).sum(axis=(0, 1)) for name, slope in point.pure.items()}
    dense = [{"w": _outer(d, z), "b": d.sum(axis=(0, 1))} for d, z in zip(products[1:], point.z, strict=True)]
    if dense:
        grad["dense"] = dense
    result: Tree = {"x": products[0] @ stage["w_x"], "dt": (dh * point.slope_dt).sum(axis=-1), "stages": [grad]}
    if spec.mixed_memory:
        d_gates = d_gates.reshape(*dh.shape[:2], -1)
        result["lstm"] = _product_gradients(d_gates, x, h_prev)
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

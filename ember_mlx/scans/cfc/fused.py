"""The CfC scan as fused kernels (metal/cfc.metal): what surrounds the two sequential scans, and their launches.

The arrays are those of the NumPy form (reference.py). What is parallel over T is made of MLX operations: before the backward scan the
gates' slopes, recomputed from the stored states; after it the weights' gradients.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from ...kernels.library import KernelText, launch
from ...kernels.packing import ProductShape, pack
from ...kernels.tiles import THREADGROUP_BYTES, Family, Tile, current_family, forced_tile, rows_for
from .ops import ACTIVATIONS
from .problems import random_arrays
from .spec import MODES, CfCSpec

Tree = dict[str, Any]
BLOCK_STEPS = 256  # steps whose slopes are in memory at a time
FILES = ("pointwise.metal", "product.metal", "cfc.metal")
SIZES = "CfC<H, Z, DEPTH, MODE, ACTIVATION, THREADS, ROWS, SPLIT, RESIDENT>"
FORWARD = KernelText(
    "cfc_forward",
    SIZES,
    FILES,
    ("x_proj", "w_first", "w_middle", "b_middle", "w_heads", "b_heads", "pure", "dropout", "dt", "h0", "lengths", "dims"),
    ("y",),
)
BACKWARD = KernelText(
    "cfc_backward",
    SIZES,
    FILES,
    ("dy", "carry", "slope_q", "slopes", "w_heads", "w_middle", "w_first", "lengths", "dims"),
    ("dh", "dz", "dh0"),
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
        return min(self.tile.split, 4)

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
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory of a group."""
        return 16 * max(self.scratch(False), self.scratch(True))

    def scratch(self, backward: bool) -> int:
        """float4s of threadgroup memory: the states' buffers and the layers'."""
        into_h = self.heads_back if self.depth else self.first_back
        into_z = self.first if self.depth else self.heads
        state, layer = (into_h, self.first_back) if backward else (into_z, self.heads)
        return self.tile.rows * ((1 if self.depth else 2) * state.row4 + min(self.depth, 2) * layer.row4)

    def template(self, backward: bool) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        sizes = {"H": self.H, "Z": self.Z if self.depth else self.H, "DEPTH": self.depth}
        kinds = {"MODE": MODES.index(self.spec.mode), "ACTIVATION": list(ACTIVATIONS).index(self.spec.activation)}
        tile = {"THREADS": self.tile.threads, "ROWS": self.tile.rows, "SPLIT": self.tile.split, "RESIDENT": self.tile.resident}
        return [*sizes.items(), *kinds.items(), *tile.items(), ("SCRATCH", self.scratch(backward))]


def choose_tile(family: Family, spec: CfCSpec, H: int, Z: int, depth: int, batch: int) -> Tile:
    """Weights in registers if they fit there, one sequence a group; else weights read at every step, for several sequences."""
    split = 8 if spec.mode != "pure" else 4
    alone = Variant(spec, H, Z, depth, Tile(family.threads, 1, split, True))
    forward = alone.heads.floats + (alone.first.floats if depth else 0)
    backward = alone.first_back.floats + (alone.heads_back.floats if depth else 0)
    if max(forward, backward) <= family.register_floats:
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
    if spec.mixed_memory:
        return "there is no kernel for mixed memory yet"
    if arrays["dt"].dtype != mx.float32:
        return "kernels compute in float32"
    if variant_of(kind, spec, arrays).tile.rows == 0:
        return f"{spec.units} units need more than {THREADGROUP_BYTES} bytes of threadgroup memory"
    return None


def small_problem(spec: CfCSpec, arrays: Tree) -> Tree:
    """Three steps of one sequence more than a group takes, in the same variant."""
    (stage,) = arrays["stages"]
    return random_arrays(spec, 3, arrays["dt"].shape[1], len(stage["w_h"]), len(stage.get("dense", [])), lengths=True, dropout=False)


def cfc_fused_forward(kind: str, spec: CfCSpec, arrays: Tree) -> list[mx.array]:
    """[h] (T, B, H), in one launch."""
    variant, w = variant_of(kind, spec, arrays), Weights.of(spec, arrays["stages"][0])
    T, B = arrays["dt"].shape
    dropout = arrays.get("dropout")
    middle = [pack(layer["w"], variant.middle) for layer in w.middle]
    inputs = [
        arrays["stages"][0]["x_proj"],
        pack(w.first, variant.first) if variant.depth else w.first,
        mx.concatenate(middle) if middle else mx.zeros((8,)),
        mx.stack([layer["b"] for layer in w.middle]) if middle else mx.zeros((8,)),
        pack(w.heads, variant.heads),
        w.b_heads,
        w.pure,
        mx.stack(dropout) if dropout else mx.zeros((8,)),
        arrays["dt"],
        arrays["h0"],
        _lengths(arrays, T, B),
        mx.array([T, B, int(bool(dropout)), 0, 0, 0, 0, 0]),
    ]
    return _launch(kind, FORWARD, variant, inputs, B, [(T, B, variant.H)])


def cfc_fused_backward(kind: str, spec: CfCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as the NumPy form's backward gives them."""
    variant = variant_of(kind, spec, arrays)
    (y,), (dy,) = outputs, cotangents
    T, B, H = y.shape
    h_prev = mx.concatenate([arrays["h0"][None], y[:-1]])
    lengths = _lengths(arrays, T, B)
    carry, parts = mx.zeros((B, H)), []
    packed = _packed_back(variant, Weights.of(spec, arrays["stages"][0]))
    for start in reversed(range(0, T, BLOCK_STEPS)):
        block = slice(start, min(start + BLOCK_STEPS, T))
        part = _steps(arrays, block)
        point = linearise(spec, part, h_prev[block])
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        dh, dz, carry = _scan_back(kind, variant, packed, point, dy[block], carry, here)
        parts.append(_gradients(spec, part, h_prev[block], point, dh, dz))
    return _joined(parts[::-1]) | {"h0": carry}


class Point(NamedTuple):
    """The slopes of a block of steps, at the stored states."""

    z: list[mx.array]  # (T, B, Z) each: what enters each dense layer
    slopes: list[mx.array]  # (T, B, Z) each: of the activations
    slope_q: mx.array  # (T, B, heads, H)
    slope_dt: mx.array  # (T, B, H)
    pure: dict[str, mx.array]  # (T, B, H) each


def linearise(spec: CfCSpec, arrays: Tree, h_prev: mx.array) -> Point:
    """Recompute a block of steps at once from the states before them."""
    (stage,) = arrays["stages"]
    dt = arrays["dt"][:, :, None]
    a = stage["x_proj"] + h_prev @ stage["w_h"].T
    z, slopes = [], []
    for k, layer in enumerate(stage.get("dense", [])):
        (value,), (slope,) = mx.jvp(ACTIVATIONS[spec.activation], [a], [mx.ones_like(a)])  # (1)
        if "dropout" in arrays:
            value, slope = value * arrays["dropout"][k], slope * arrays["dropout"][k]
        z.append(value)
        slopes.append(slope)
        a = value @ layer["w"].T + layer["b"]  # (2)
    if spec.mode == "pure":
        return Point(z, slopes, *_pure_slopes(a, dt, stage))
    return Point(z, slopes, *_gated_slopes(a, dt, spec.mode == "no_gate"))


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


def _packed_back(variant: Variant, w: Weights) -> list[mx.array]:
    """The transposed weights as the backward scan reads them: of the heads, the middle layers and the first product."""
    if not variant.depth:
        return [mx.zeros((8,)), mx.zeros((8,)), pack(w.heads.T, variant.first_back)]
    middle = [pack(layer["w"].T, variant.middle) for layer in w.middle]
    first = pack(w.first.T, variant.first_back)
    return [pack(w.heads.T, variant.heads_back), mx.concatenate(middle) if middle else mx.zeros((8,)), first]


def _scan_back(
    kind: str, variant: Variant, packed: list[mx.array], point: Point, dy: mx.array, carry: mx.array, lengths: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The backward scan over a block of steps: dh (T, B, H), dz (depth, T, B, Z), and the gradient of the state before the block."""
    T, B, H = dy.shape
    slopes = mx.stack(point.slopes) if point.slopes else mx.zeros((8,))
    inputs = [dy, carry, point.slope_q, slopes, *packed, lengths, mx.array([T, B, 0, 0, 0, 0, 0, 0])]
    shapes = [(T, B, H), (variant.depth, T, B, variant.Z) if variant.depth else (1,), (B, H)]
    dh, dz, dh0 = _launch(kind, BACKWARD, variant, inputs, B, shapes)
    return dh, dz, dh0


def _gradients(spec: CfCSpec, arrays: Tree, h_prev: mx.array, point: Point, dh: mx.array, dz: mx.array) -> Tree:
    """All gradients of a block of steps from those of its states and backbone products."""
    dq = (dh[:, :, None] * point.slope_q).reshape(*dh.shape[:2], -1)
    products = [*(dz[k] for k in range(len(point.z))), dq]
    grad: Tree = {"x_proj": products[0], "w_h": _outer(products[0], h_prev)}
    grad |= {name: (dh * slope).sum(axis=(0, 1)) for name, slope in point.pure.items()}
    dense = [{"w": _outer(d, z), "b": d.sum(axis=(0, 1))} for d, z in zip(products[1:], point.z, strict=True)]
    if dense:
        grad["dense"] = dense
    return {"dt": (dh * point.slope_dt).sum(axis=-1), "stages": [grad]}


def _joined(parts: list[Tree]) -> Tree:
    """Gradients of consecutive blocks of steps together."""
    if len(parts) == 1:
        return parts[0]
    stages = [part["stages"][0] for part in parts]
    summed = {name: a for name, a in stages[0].items() if name != "x_proj"}
    for stage in stages[1:]:
        summed = tree_map(mx.add, summed, {name: a for name, a in stage.items() if name != "x_proj"})
    summed["x_proj"] = mx.concatenate([stage["x_proj"] for stage in stages])
    return {"dt": mx.concatenate([part["dt"] for part in parts]), "stages": [summed]}


def _outer(d: mx.array, x: mx.array) -> mx.array:
    """sum over steps and sequences of d x^T: (T, B, J), (T, B, K) -> (J, K)."""
    return d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def _steps(arrays: Tree, block: slice) -> Tree:
    """The arrays of a block of steps."""
    (stage,) = arrays["stages"]
    part = {"dt": arrays["dt"][block], "stages": [{**stage, "x_proj": stage["x_proj"][block]}]}
    return part | ({"dropout": [mask[block] for mask in arrays["dropout"]]} if "dropout" in arrays else {})


def _lengths(arrays: Tree, T: int, B: int) -> mx.array:
    return arrays["lengths"] if "lengths" in arrays else mx.full((B,), T, mx.int32)


def _launch(
    kind: str, text: KernelText, variant: Variant, inputs: list[mx.array], B: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    tile = variant.tile
    groups = -(-B // tile.rows)
    return launch(kind, text, inputs, variant.template(text is BACKWARD), groups, tile.threads, shapes, [mx.float32] * len(shapes))

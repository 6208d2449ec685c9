"""The gated scan (RNN, LSTM, GRU) as fused kernels (metal/gated.metal): what surrounds the two sequential scans, and their launches.

The arrays are those of the NumPy form (reference.py). What is parallel over T is made of MLX operations: before the forward scan W_x x + b,
before the backward scan the gates' slopes, recomputed from the stored states, and after it the weights' gradients.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ...kernels.loader import KernelText, launch
from ...kernels.packing import ProductShape, pack
from ...kernels.tiles import THREADGROUP_BYTES, Family, Tile, current_family, forced_tile, layouts_for, rows_for
from .ops import gru_gates, lstm_gates, project_inputs
from .problems import random_arrays
from .spec import GatedSpec

Tree = dict[str, Any]
BLOCK_STEPS = 256  # steps whose slopes are in memory at a time
SPLIT = 8
FILES = ("pointwise.metal", "product.metal", "sequences.metal", "gated.metal")
SIZES = "Gated<CELL, H, THREADS, ROWS, SPLIT, RESIDENT>"
CELLS = ("tanh", "relu", "lstm", "gru")  # numbered as in gated.metal
FORWARD = KernelText("gated_forward", SIZES, FILES, ("x_proj", "w_h", "b_hn", "h0", "c0", "lengths", "dims"), ("y", "c_out"))
BACKWARD = KernelText(
    "gated_backward", SIZES, FILES, ("dy", "carry", "slopes", "w_h", "dy_c", "carry_c", "lengths", "dims"), ("d", "dh0", "dc0")
)


class Variant(NamedTuple):
    """Sizes of one kernel variant; forward and backward are laid out apart."""

    spec: GatedSpec
    H: int
    forward: Tile
    backward: Tile

    @property
    def of_h(self) -> ProductShape:
        """W_h h: the gates of a unit, or four neighbouring units of an RNN."""
        return forward_shape(self.spec, self.H, self.forward)

    @property
    def back(self) -> ProductShape:
        """From the gradients of W_h h to that of h."""
        return backward_shape(self.spec, self.H, self.backward)

    def template(self, backward: bool) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        tile = self.backward if backward else self.forward
        scratch = backward_scratch(self.spec, self.H, tile) if backward else forward_scratch(self.spec, self.H, tile)
        layout = {"THREADS": tile.threads, "ROWS": tile.rows, "SPLIT": tile.split, "RESIDENT": tile.resident, "SCRATCH": scratch}
        return [("CELL", CELLS.index(self.spec.cell)), ("H", self.H), *layout.items()]


def forward_shape(spec: GatedSpec, H: int, tile: Tile) -> ProductShape:
    """The forward product."""
    G = spec.gates
    return ProductShape(H, G * H, tile.split, 4 if G == 1 else G, tile.threads, by_unit=G > 1)


def backward_shape(spec: GatedSpec, H: int, tile: Tile) -> ProductShape:
    """The backward product."""
    return ProductShape(spec.gates * H, H, tile.split, 1, tile.threads)


def forward_scratch(spec: GatedSpec, H: int, tile: Tile) -> int:
    """float4s of threadgroup memory: two buffers of states."""
    return 2 * tile.rows * forward_shape(spec, H, tile).row4


def backward_scratch(spec: GatedSpec, H: int, tile: Tile) -> int:
    """float4s of threadgroup memory: the products' gradients, in two buffers where they fit."""
    one = tile.rows * backward_shape(spec, H, tile).row4
    return 2 * one if 32 * one <= THREADGROUP_BYTES else one


def choose_tile(family: Family, shape: ProductShape, sequences: int, row_bytes: int) -> Tile:
    """Weights in registers if they fit there, else weights read at every step."""
    resident = shape.floats <= family.register_floats
    return Tile(family.threads, rows_for(family, sequences, row_bytes, resident), SPLIT, resident)


def layouts(family: Family, spec: GatedSpec) -> list[Tile]:
    """Every layout that `choose_tile` can give on a family of GPUs, for some size."""
    return layouts_for(family, (SPLIT,))


def variant_of(kind: str, spec: GatedSpec, arrays: Tree) -> Variant:
    """The kernel variant that serves some arrays."""
    D, B, H = arrays["h0"].shape
    forced = forced_tile.get()
    if forced is not None:
        return Variant(spec, H, forced, forced)
    family = current_family()
    alone = Tile(family.threads, 1, SPLIT, True)
    forward, back = forward_shape(spec, H, alone), backward_shape(spec, H, alone)
    # a state is in two buffers, the products' gradients need only be in one
    return Variant(spec, H, choose_tile(family, forward, D * B, 32 * forward.row4), choose_tile(family, back, D * B, 16 * back.row4))


def variant_key(kind: str, spec: GatedSpec, arrays: Tree) -> Variant:
    """What a first use is remembered by."""
    return variant_of(kind, spec, arrays)


def refusal(kind: str, spec: GatedSpec, arrays: Tree) -> str | None:
    """Why no kernel serves such arrays, or None."""
    if "w_hr" in arrays:
        return "there is no kernel for a projected state (proj_size)"
    if arrays["h0"].dtype != mx.float32:
        return "kernels compute in float32"
    variant = variant_of(kind, spec, arrays)
    if 0 in (variant.forward.rows, variant.backward.rows):
        return f"{variant.H} units need more than {THREADGROUP_BYTES} bytes of threadgroup memory"
    return None


def small_problem(spec: GatedSpec, arrays: Tree) -> Tree:
    """Three steps of as many sequences, of different lengths, in the same variant."""
    D, B, H = arrays["h0"].shape
    return random_arrays(spec, D, 3, B, H, None, lengths=True)


def gated_fused_forward(kind: str, spec: GatedSpec, arrays: Tree) -> list[mx.array]:
    """[h] (D, T, B, H), for an LSTM [h, c], in one launch."""
    variant, none = variant_of(kind, spec, arrays), mx.zeros((8,))
    D, T, B, _ = arrays["x"].shape
    inputs = [
        project_inputs(arrays),
        _packed(arrays["w_h"], variant.of_h),
        arrays.get("b_hn", none),
        arrays["h0"],
        arrays.get("c0", none),
        *_sizes(_lengths(arrays, T, B), T, B),
    ]
    shape = (D, T, B, variant.H)
    y, c = _launch(kind, FORWARD, variant, inputs, D, B, [shape, shape if spec.has_cell_state else (1,)])
    return [y, c] if spec.has_cell_state else [y]


def gated_fused_backward(kind: str, spec: GatedSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as the NumPy form's backward gives them."""
    variant = variant_of(kind, spec, arrays)
    D, T, B, H = outputs[0].shape
    names = ("h0", "c0") if spec.has_cell_state else ("h0",)
    before = [mx.concatenate([mx.expand_dims(arrays[name], 1), a[:, :-1]], axis=1) for name, a in zip(names, outputs, strict=True)]
    lengths, packed = _lengths(arrays, T, B), _packed(arrays["w_h"].swapaxes(1, 2), variant.back)
    carry, parts = [mx.zeros((D, B, H)) for _ in names], []
    for start in reversed(range(0, T, BLOCK_STEPS)):
        block = slice(start, min(start + BLOCK_STEPS, T))
        part, states, dy = {**arrays, "x": arrays["x"][:, block]}, [a[:, block] for a in before], [a[:, block] for a in cotangents]
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        d, carry = _scan_back(kind, variant, packed, slopes(spec, part, states), dy, carry, here)
        parts.append(_gradients(spec, part, states[0], d))
    over_time = {"x": mx.concatenate([part.pop("x") for part in reversed(parts)], axis=1)}
    return over_time | {name: sum(part[name] for part in parts) for name in parts[0]} | dict(zip(names, carry, strict=True))


def slopes(spec: GatedSpec, arrays: Tree, states: list[mx.array]) -> mx.array:
    """(D, T, B, SLOPES, H): of a block of steps, from the states before them; gated.metal says which."""
    h = states[0]
    D, T, B, H = h.shape
    projected, q = project_inputs(arrays), (h.reshape(D, T * B, H) @ arrays["w_h"].swapaxes(1, 2)).reshape(D, T, B, -1)
    if spec.cell == "gru":
        r, z, n, q_n = gru_gates(projected, q, arrays["b_hn"][:, None, None])
        by_n = (1 - z) * (1 - n * n)
        return mx.stack([by_n * q_n * r * (1 - r), (h - n) * z * (1 - z), by_n * r, by_n, z], axis=3)
    a = projected + q  # (1)
    if spec.cell == "lstm":
        i, f, g, o = lstm_gates(a)
        tanh_c = mx.tanh(f * states[1] + i * g)  # (3)
        of_c = [g * i * (1 - i), states[1] * f * (1 - f), i * (1 - g * g)]
        return mx.stack([*of_c, tanh_c * o * (1 - o), o * (1 - tanh_c * tanh_c), f], axis=3)
    return mx.expand_dims(1 - mx.square(mx.tanh(a)) if spec.cell == "tanh" else (a > 0).astype(a.dtype), 3)  # (2)


def _scan_back(
    kind: str,
    variant: Variant,
    packed: mx.array,
    slopes: mx.array,
    dy: list[mx.array],
    carry: list[mx.array],
    lengths: mx.array,
) -> tuple[mx.array, list[mx.array]]:
    """The backward scan over a block of steps: the gradients of the products, (D, T, B, blocks, H), and of the states before the block."""
    D, T, B, H = dy[0].shape
    none, memory = mx.zeros((8,)), variant.spec.has_cell_state
    inputs = [dy[0], carry[0], slopes, packed, *([dy[1], carry[1]] if memory else [none] * 2), *_sizes(lengths, T, B)]
    blocks = 4 if variant.spec.gates > 1 else 1
    d, dh0, dc0 = _launch(kind, BACKWARD, variant, inputs, D, B, [(D, T, B, blocks, H), (D, B, H), (D, B, H) if memory else (1,)])
    return d, [dh0, dc0] if memory else [dh0]


def _gradients(spec: GatedSpec, arrays: Tree, h: mx.array, d: mx.array) -> Tree:
    """All gradients of a block of steps from those of its products."""
    D, T, B, blocks, H = d.shape
    if spec.cell == "gru":
        r, z, q_n, n = mx.split(d.reshape(D, T * B, 4 * H), 4, axis=2)
        of_x, of_h = mx.concatenate([r, z, n], axis=2), mx.concatenate([r, z, q_n], axis=2)
    else:
        of_x = of_h = d.reshape(D, T * B, blocks * H)
    x = arrays["x"].reshape(D, T * B, -1)
    result = {"w_x": of_x.swapaxes(1, 2) @ x, "w_h": of_h.swapaxes(1, 2) @ h.reshape(D, T * B, H), "b": of_x.sum(axis=1)}
    result["x"] = (of_x @ arrays["w_x"]).reshape(D, T, B, -1)
    return result | ({"b_hn": q_n.sum(axis=1)} if spec.cell == "gru" else {})


def _packed(weights: mx.array, shape: ProductShape) -> mx.array:
    """(D, results, inputs), each direction's packed."""
    return mx.concatenate([pack(weight, shape) for weight in weights])


def _sizes(lengths: mx.array, T: int, B: int) -> list[mx.array]:
    return [lengths, mx.array([T, B, 0, 0, 0, 0, 0, 0])]


def _lengths(arrays: Tree, T: int, B: int) -> mx.array:
    return arrays["lengths"] if "lengths" in arrays else mx.full((B,), T, mx.int32)


def _launch(
    kind: str, text: KernelText, variant: Variant, inputs: list[mx.array], D: int, B: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    tile = variant.backward if text is BACKWARD else variant.forward
    groups = D * -(-B // tile.rows)
    return launch(kind, text, inputs, variant.template(text is BACKWARD), groups, tile.threads, shapes, [mx.float32] * len(shapes))

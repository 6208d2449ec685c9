"""The layout of a CfC scan on a threadgroup: its products, its threadgroup memory, the order of its units, and its packed weights."""

from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ...kernels.inputs import nothing
from ...kernels.tiles import FUNCTION, SIMD, Tile, Work
from ...kernels.weight_layout import ProductShape, outputs_for, pack
from ..pointwise import ACTIVATIONS
from .spec import MODES, CfCSpec

Tree = dict[str, Any]


class Variant(NamedTuple):
    """Sizes of one kernel variant, and its products.

    Args:
        spec: the recurrence.
        Z: units per backbone layer.
        depth: number of backbone layers.
        tile: the layout.
        io: dtype of the projected inputs x_proj and x_gates.
        weight: dtype of the packed weights.
    """

    spec: CfCSpec
    Z: int
    depth: int
    tile: Tile
    io: mx.Dtype = mx.float32
    weight: mx.Dtype = mx.float32

    @property
    def H(self) -> int:
        """Units."""
        return self.spec.units

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each stage."""
        return tuple(stop - start for start, stop in self.spec.stages)

    @property
    def is_pipelined(self) -> bool:
        """Whether stages work on different steps at the same time."""
        return len(self.sizes) > 1 and not self.spec.mixed_memory

    def window(self, backward: bool) -> int:
        """Number of units whose values a stage reads: its own, and those of the neighbouring stage from which it takes its input."""
        below = (0, *self.sizes[:-1]) if not (backward and self.spec.mixed_memory) else (0,) * len(self.sizes)
        return max(a + b for a, b in zip(self.sizes, below, strict=True))

    @property
    def slots(self) -> int:
        """Number of unit slots in the lane groups: H, or more with several stages; see `unit_order`."""
        return self.H if len(self.sizes) == 1 else len(unit_order(self.spec.stages, self.tile))

    def _shape(self, results: int, inputs: int, outputs: int, by_unit: bool = False) -> ProductShape:
        return ProductShape(inputs, results, self.tile.split, outputs, self.tile.threads, by_unit)

    @property
    def outputs(self) -> int:
        """Results per lane group in a layer, so that no group is idle."""
        return outputs_for(self.Z, self.tile.threads // self.tile.split)

    @property
    def first(self) -> ProductShape:
        """The first backbone layer; an empty product if there is none."""
        return self._shape(self.Z, self.H, self.outputs)

    @property
    def middle(self) -> ProductShape:
        """A further backbone layer; its transpose has the same shape."""
        return self._shape(self.Z, self.Z, self.outputs)

    @property
    def heads(self) -> ProductShape:
        """The heads."""
        heads = self.spec.heads
        return self._shape(heads * self.slots, self.Z if self.depth else self.window(False), heads, by_unit=True)

    @property
    def heads_back(self) -> ProductShape:
        """From the heads' gradients to the last backbone layer's."""
        return self._shape(self.Z, self.spec.heads * self.H, self.outputs)

    @property
    def first_back(self) -> ProductShape:
        """From the first product's gradient, or the heads', to the state's."""
        return self._shape(self.slots, self.Z if self.depth else self.spec.heads * self.window(True), 1)

    @property
    def gates(self) -> ProductShape:
        """The LSTM's gates."""
        return self._shape(4 * self.slots, self.H, 4, by_unit=True)

    @property
    def gates_back(self) -> ProductShape:
        """From the gates' gradients to the state's."""
        return self._shape(self.slots, 4 * self.H, 1)

    @property
    def step_weights(self) -> int:
        """Weights per lane in the products of a CfC step, in the direction that needs more; further backbone layers are always streamed."""
        above = self.first_back.floats if self.spec.mixed_memory and len(self.sizes) > 1 else 0
        dense = (self.first.floats, self.heads_back.floats) if self.depth else (0, 0)
        return max(self.heads.floats + dense[0], self.first_back.floats + above + dense[1])

    @property
    def gate_weights(self) -> int:
        """Weights per lane in the LSTM's product."""
        return max(self.gates.floats, self.gates_back.floats) if self.spec.mixed_memory else 0

    def streamed_weights(self, resident: bool, gates_resident: bool) -> int:
        """Weights that a threadgroup reads per step."""
        streamed = (0 if resident else self.step_weights) + (0 if resident and gates_resident else self.gate_weights)
        return self.tile.threads * (streamed + max(self.depth - 1, 0) * self.middle.floats)

    @property
    def work(self) -> Work:
        """The work of a threadgroup per step, in the direction that needs more."""
        tile, H, memory, stages = self.tile, self.H, self.spec.mixed_memory, len(self.sizes)
        weights = tile.threads * (self.step_weights + self.gate_weights + max(self.depth - 1, 0) * self.middle.floats)
        functions = FUNCTION * (tile.rows * (self.spec.heads * H + self.depth * self.Z + (5 * H if memory else 0)))
        phases = self.depth + 1 + (stages if memory else 0)
        streamed = self.weight.size * self.streamed_weights(tile.resident, tile.gates_resident)
        return functions + Work(tile.rows * weights, streamed=streamed, phases=phases)

    @property
    def threadgroup_bytes(self) -> int:
        """Bytes of threadgroup memory."""
        return 16 * max(self.scratch(False), self.scratch(True))

    def scratch(self, backward: bool) -> int:
        """float4s of threadgroup memory; see metal/cfc.metal for its contents."""
        memory, stages = self.spec.mixed_memory, len(self.sizes)
        window = (self.heads_back if backward else self.first) if self.depth else (self.first_back if backward else self.heads)
        layer = self.first_back if backward else self.heads
        row4 = (1 if self.depth or memory else 2) * stages * window.row4 + min(self.depth, 2) * layer.row4
        if memory and backward:
            row4 += self.gates_back.row4 + self.H + (-(-self.H // 4) if stages > 1 else 0)
        elif memory:
            row4 += self.first.row4 + -(-self.H // 4)
        return self.tile.rows * row4

    def template(self, backward: bool) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        return [
            *{"H": self.H, "Z": self.Z if self.depth else self.H, "DEPTH": self.depth, "MODE": MODES.index(self.spec.mode)}.items(),
            *{"ACTIVATION": list(ACTIVATIONS).index(self.spec.activation), "MEMORY": self.spec.mixed_memory}.items(),
            *{"STAGES": len(self.sizes), "SLOTS": self.slots, "WINDOW": self.window(backward), "FIRST": self.sizes[0]}.items(),
            *{"THREADS": self.tile.threads, "ROWS": self.tile.rows, "SPLIT": self.tile.split, "RESIDENT": self.tile.resident}.items(),
            *{"GATES_RESIDENT": self.tile.resident and self.tile.gates_resident}.items(),
            *{"WEIGHT": self.weight, "IO": self.io, "SCRATCH": self.scratch(backward)}.items(),
        ]

    def pack(self, weight: mx.array, shape: ProductShape) -> mx.array:
        """A product's weights in the order in which its lanes read them."""
        return pack(weight.astype(self.weight), shape)


@lru_cache(maxsize=64)
def unit_order(stages: tuple[tuple[int, int], ...], tile: Tile) -> tuple[int, ...]:
    """The unit in each slot, stage by stage; -1: none. A simdgroup has units of one stage only, so it can skip the other stages' phases."""
    together = SIMD // tile.split
    order: list[int] = []
    for start, stop in stages:
        order += [*range(start, stop), *[-1] * (-(stop - start) % together)]
    return (*order, *[-1] * (-len(order) % (tile.threads // tile.split)))


@lru_cache(maxsize=64)
def slot_table(variant: Variant, backward: bool) -> mx.array:
    """(slots, 4): unit, stage, and position in the window of its own stage and of the stage that also reads it (-1: none)."""
    order, sizes, memory = unit_order(variant.spec.stages, variant.tile), variant.sizes, variant.spec.mixed_memory
    table = np.full((len(order), 4), -1, np.int32)
    table[:, 1] = len(sizes) - 1
    position = 0
    for k, (start, _) in enumerate(variant.spec.stages):
        i, below = np.arange(sizes[k]), sizes[k - 1] if k else 0
        other, own = i, i if backward else below + i  # forward a window is [below, own], backward [own, above]
        if backward:
            other = np.full_like(i, -1) if memory or not k else below + i
        elif k + 1 == len(sizes):
            other = np.full_like(i, -1)
        end = position + sizes[k] + -sizes[k] % (SIMD // variant.tile.split)
        table[position:end, 1] = k
        table[position : position + sizes[k]] = np.stack([start + i, np.full_like(i, k), own, other], axis=1)
        position = end
    return mx.array(table)


class Weights(NamedTuple):
    """A scan's weights in the order of the step: backbone layers first to last, and the heads (HEADS * H, ...), stage by stage."""

    first: mx.array | None
    middle: list[Tree]
    heads: list[Tree]  # for each stage w_h, and w_x after the first
    b_heads: mx.array
    pure: mx.array

    @classmethod
    def of(cls, spec: CfCSpec, stages: list[Tree]) -> "Weights":
        """The weights of the stages' trees."""
        none = nothing()
        pure = mx.stack([by_unit(spec, [stage[name] for stage in stages], 1) for name in ("w_tau", "A")]) if spec.mode == "pure" else none
        dense = stages[0].get("dense", [])
        if dense:
            return cls(stages[0]["w_h"], dense[:-1], [{"w_h": dense[-1]["w"]}], dense[-1]["b"], pure)
        b_heads = by_unit(spec, [stage["b"] for stage in stages], spec.heads) if len(stages) > 1 else none
        return cls(None, [], stages, b_heads, pure)


def by_unit(spec: CfCSpec, parts: list[mx.array], heads: int) -> mx.array:
    """(..., heads * H_s) of each stage -> (..., heads * H), in the order of the units."""
    if len(parts) == 1:
        return parts[0]
    parts = [a.reshape(*a.shape[:-1], heads, -1) for a in parts]
    joined = mx.concatenate([parts[k] for k in np.argsort([start for start, _ in spec.stages])], axis=-1)
    return joined.reshape(*joined.shape[:-2], -1)


def of_stage(a: mx.array, heads: int, units: tuple[int, int]) -> mx.array:
    """(..., heads * H) -> (..., heads * H_s): the values of one stage."""
    if a.shape[-1] == heads * (units[1] - units[0]):
        return a
    a = a.reshape(*a.shape[:-1], heads, -1)[..., units[0] : units[1]]
    return a.reshape(*a.shape[:-2], -1)


def window_weights(variant: Variant, heads: list[Tree]) -> mx.array:
    """(HEADS * slots, WINDOW): each unit's weights on the values of its stage's window, [below, own]."""
    count, rows = variant.spec.heads, []
    if len(heads) == 1:
        return heads[0]["w_h"]
    for k, stage in enumerate(heads):
        row = mx.concatenate([stage["w_x"], stage["w_h"]], axis=1) if k else stage["w_h"]
        rows.append(_padded(row.reshape(count, variant.sizes[k], -1), 2, variant.window(False)))
    return _in_slots(variant, rows, 1).reshape(count * variant.slots, -1)


def window_weights_back(variant: Variant, heads: list[Tree]) -> mx.array:
    """(slots, HEADS * WINDOW): each unit's weights on the heads' gradients in its stage's window, [own, above], heads innermost."""
    rows = []
    for k, stage in enumerate(heads):
        row = heads_inside(stage["w_h"], variant.spec.heads)
        if k + 1 < len(heads) and not variant.spec.mixed_memory:
            row = mx.concatenate([row, heads_inside(heads[k + 1]["w_x"], variant.spec.heads)], axis=1)
        rows.append(_padded(row, 1, variant.spec.heads * variant.window(True)))
    return _in_slots(variant, rows, 0)


def weights_from_above(variant: Variant, heads: list[Tree]) -> mx.array:
    """(slots, HEADS * WINDOW): each unit's weights on the gradients of the heads of the stage above."""
    width = variant.spec.heads * variant.window(True)
    rows = [_padded(heads_inside(stage["w_x"], variant.spec.heads), 1, width) for stage in heads[1:]]
    return _in_slots(variant, [*rows, mx.zeros((variant.sizes[-1], width), rows[0].dtype)], 0)


def unit_rows(variant: Variant, weight: mx.array, blocks: int) -> mx.array:
    """(blocks * H, K) -> (blocks * slots, K): in the order of the slots."""
    if len(variant.sizes) == 1:
        return weight
    parts = weight.reshape(blocks, variant.H, -1)
    return _in_slots(variant, [parts[:, start:stop] for start, stop in variant.spec.stages], 1).reshape(blocks * variant.slots, -1)


def heads_inside(weight: mx.array, heads: int) -> mx.array:
    """(heads * J, K) -> (K, J * heads)."""
    return weight.reshape(heads, -1, weight.shape[1]).transpose(2, 1, 0).reshape(weight.shape[1], -1)


def _in_slots(variant: Variant, stages: list[mx.array], axis: int) -> mx.array:
    """The stages' units concatenated along an axis, with zeros in empty slots."""
    if len(stages) == 1:
        return stages[0]
    together = SIMD // variant.tile.split
    joined = mx.concatenate([_padded(a, axis, a.shape[axis] + -a.shape[axis] % together) for a in stages], axis=axis)
    return _padded(joined, axis, variant.slots)


def _padded(a: mx.array, axis: int, size: int) -> mx.array:
    """The array zero-padded at the end of an axis to `size`."""
    return mx.pad(a, [(0, size - n if k == axis else 0) for k, n in enumerate(a.shape)])

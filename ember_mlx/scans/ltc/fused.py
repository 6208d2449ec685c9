"""The LTC scan as fused kernels (metal/ltc.metal): what surrounds the two sequential scans, and their launches.

The arrays are those of the NumPy form (reference.py). The sensory sums come before the forward scan, for all steps at once. Backward, a
block of steps at a time: the forward kernel recomputes every evaluation of the synapses, each step on its own from the stored state before
it; the backward scan carries dv; then each parameter's gradient is a sum over all steps, sequences and evaluations, in a fixed order.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ...kernels.loader import KernelText, Launch, Launches, launch, run_launches
from ...kernels.tiles import THREADGROUP_BYTES, Family, Tile, current_family, forced_tile, layouts_for, rows_for
from .problems import random_arrays
from .spec import SOLVERS, LTCSpec
from .synapses import Indices, Synapses

Tree = dict[str, Any]
BLOCK_VALUES = 2**19  # evaluations of units that are in memory at a time: with all that comes of them some 20 MB
PARALLEL_THREADS = 256  # of a group of the kernels without a sequence
MOST_PARTS = 64  # into which the rows of a sum are divided
FILES = ("pointwise.metal", "product.metal", "sequences.metal", "ltc.metal")
SPLITS = (32, 16, 8, 4)  # lanes that share the synapses of a unit: as many as leave a group of lanes for each unit
SIZES = "LTC<H, SOLVER, FULL, KEEP, THREADS, ROWS, SPLIT, RESIDENT, COUNT>"
LISTS = ("synapses", "partners", "order", "offsets")
FORWARD = KernelText(
    "ltc_forward",
    SIZES,
    FILES,
    (*LISTS, "num_drive", "den_drive", "cm", "delta", "v0", "lengths", "dims"),
    ("y", "points", "nums", "dens"),
)
BACKWARD = KernelText(
    "ltc_backward",
    SIZES,
    FILES,
    (*LISTS, "points", "dens", "v", "cm", "delta", "dy", "carry", "lengths", "dims"),
    ("h", "dv0"),
)
SUMS = KernelText("ltc_sums", "K, H, THREADS", FILES, ("v", "synapses", "sources", "starts", "dims"), ("nums", "dens"))
PULL = KernelText("ltc_pull", "K, H, THREADS", FILES, ("v", "d_num", "d_den", "synapses", "targets", "starts", "dims"), ("dv",))
GRADIENTS = KernelText(
    "ltc_gradients", "K, H, THREADS", FILES, ("v", "d_num", "d_den", "synapses", "sources", "targets", "dims"), ("sums",)
)


class Lists(NamedTuple):
    """Synapses in the order in which the threads of a group read them, by target or by source: entry after entry of all threads.

    Args:
        ids: for each entry of each thread the number of the synapse, or S for none.
        partners: the unit at the synapse's other end.
        order: the unit of each group of lanes in each block, or -1.
        offsets: where each block's entries begin.
        entries: of a thread, in all blocks.
    """

    ids: mx.array
    partners: mx.array
    order: mx.array
    offsets: mx.array
    entries: int


@lru_cache(maxsize=64)
def lists_of(synapses: Synapses, by_target: bool, tile: Tile) -> Lists:
    """The lists of a tile; units with many synapses come first, so that the lanes of a block have about the same work."""
    H, S, groups = synapses.units, synapses.count, tile.threads // tile.split
    table = synapses.padded(by_target)  # (H, most)
    sizes = (table < S).sum(1)
    blocks = -(-H // groups)
    order = np.full(blocks * groups, -1)
    order[:H] = np.arange(H) if synapses.is_full else np.argsort(-sizes, kind="stable")
    sizes = np.where(order >= 0, sizes[order], 0).reshape(blocks, groups)
    widths = np.maximum(-(-sizes.max(1) // tile.split), 1)
    if tile.resident or synapses.is_full:
        widths[:] = widths.max()
    padded = np.full((blocks * groups, widths.max() * tile.split), S)
    padded[:H, : table.shape[1]] = table[order[:H]]
    entries = [
        padded[k * groups : (k + 1) * groups, : width * tile.split].reshape(groups, width, tile.split).swapaxes(0, 1)
        for k, width in enumerate(widths)
    ]
    index = np.concatenate([a.reshape(-1) for a in entries])
    ends = np.concatenate([synapses.sources if by_target else synapses.targets, [0]])
    offsets = np.concatenate([[0], np.cumsum(widths)])
    return Lists(_ids(index), _ids(ends[index]), _ids(order), _ids(offsets), int(offsets[-1]))


class Variant(NamedTuple):
    """One kernel variant."""

    spec: LTCSpec
    tile: Tile

    @property
    def floats(self) -> int:
        """What a thread must keep in registers to keep all synapses, in the greedier direction."""
        full = self.spec.synapses.is_full
        return max(lists_of(self.spec.synapses, by_target, self.tile).entries for by_target in (True, False)) * (4 if full else 5)

    @property
    def row(self) -> int:
        """Floats of a row of units' values in threadgroup memory."""
        H, split = self.spec.units, self.tile.split
        return -(-H // split) * split if self.spec.synapses.is_full else H

    @property
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory of a group."""
        return 16 * max(self.scratch(False), self.scratch(True))

    def scratch(self, backward: bool) -> int:
        """float4s of threadgroup memory."""
        rk4 = self.spec.solver == "rk4"
        units = (4 if rk4 else 2) if backward else (2 if rk4 else 0)
        return -(-self.tile.rows * ((4 if backward else 2) * self.row + units * self.spec.units) // 4)

    def lists(self, backward: bool) -> Lists:
        """The synapses in the order of one direction."""
        return lists_of(self.spec.synapses, not backward, self.tile)

    def template(self, backward: bool, keep: bool = False) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        kinds = {"H": self.spec.units, "SOLVER": list(SOLVERS).index(self.spec.solver), "FULL": self.spec.synapses.is_full, "KEEP": keep}
        tile = {"THREADS": self.tile.threads, "ROWS": self.tile.rows, "SPLIT": self.tile.split, "RESIDENT": self.tile.resident}
        return [*kinds.items(), *tile.items(), ("COUNT", self.lists(backward).entries), ("SCRATCH", self.scratch(backward))]


def choose_tile(family: Family, spec: LTCSpec, batch: int) -> Tile:
    """Synapses in registers if they fit there, else read at every unfold."""
    split = next((split for split in SPLITS if family.threads // split >= spec.units), SPLITS[-1])
    alone = Variant(spec, Tile(family.threads, 1, split, True))
    resident = alone.floats <= family.register_floats
    return alone.tile._replace(resident=resident, rows=rows_for(family, batch, alone.threadgroup_bytes, resident))


def layouts(family: Family, spec: LTCSpec) -> list[Tile]:
    """Every layout that `choose_tile` can give on a family of GPUs, for some size."""
    return layouts_for(family, SPLITS)


def variant_of(kind: str, spec: LTCSpec, arrays: Tree) -> Variant:
    """The kernel variant that serves some arrays."""
    return Variant(spec, forced_tile.get() or choose_tile(current_family(), spec, arrays["dt"].shape[1]))


def variant_key(kind: str, spec: LTCSpec, arrays: Tree) -> Variant:
    """What a first use is remembered by."""
    return variant_of(kind, spec, arrays)


def refusal(kind: str, spec: LTCSpec, arrays: Tree) -> str | None:
    """Why no kernel serves such arrays, or None."""
    if spec.mixed_memory:
        return "there is no kernel for an LTC with mixed memory yet"
    if arrays["dt"].dtype != mx.float32:
        return "kernels compute in float32"
    if variant_of(kind, spec, arrays).tile.rows == 0:
        return f"{spec.units} units need more than {THREADGROUP_BYTES} bytes of threadgroup memory"
    return None


def small_problem(spec: LTCSpec, arrays: Tree) -> Tree:
    """Three steps of as many sequences, of different lengths, in the same variant."""
    return random_arrays(spec, 3, arrays["dt"].shape[1], lengths=True)


def ltc_fused_forward(kind: str, spec: LTCSpec, arrays: Tree) -> list[mx.array]:
    """[v] (T, B, H), in one launch after the sensory sums."""
    return run_launches(kind, forward_launches(kind, spec, arrays))


def forward_launches(kind: str, spec: LTCSpec, arrays: Tree) -> Launches:
    """`ltc_fused_forward`, asking for the launch of its scan."""
    variant = variant_of(kind, spec, arrays)
    T, B = arrays["dt"].shape
    packed, drive, delta = _packed(variant, arrays, False), _drives(kind, spec, arrays), arrays["dt"] / spec.unfolds
    inputs = [*packed, *drive, arrays["cm"], delta, arrays["v0"], _lengths(arrays, T, B), _dims(T, B, spec.unfolds)]
    shapes = [(T, B, spec.units), *[(1,)] * 3]
    outputs = yield _launch(FORWARD, variant.template(False), variant.tile, inputs, B, shapes)
    return outputs[:1]


def ltc_fused_backward(kind: str, spec: LTCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as the NumPy form's backward gives them."""
    return run_launches(kind, backward_launches(kind, spec, arrays, outputs, cotangents))


def backward_launches(kind: str, spec: LTCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Launches:
    """`ltc_fused_backward`, asking for the launches of its scans."""
    variant, (v,), (dy,) = variant_of(kind, spec, arrays), outputs, cotangents
    T, B, H = v.shape
    before = mx.concatenate([mx.expand_dims(arrays["v0"], 0), v[:-1]])
    lengths, carry, parts = _lengths(arrays, T, B), mx.zeros((B, H)), []
    packed = [_packed(variant, arrays, backward) for backward in (False, True)]
    steps = max(1, BLOCK_VALUES // (spec.evaluations * B * H))
    for start in reversed(range(0, T, steps)):
        block = slice(start, min(start + steps, T))
        part = {**arrays, "u": arrays["u"][block], "dt": arrays["dt"][block]}
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        point = _recompute(kind, variant, packed[0], part, before[block])
        dims = _dims(block.stop - block.start, B, spec.unfolds)
        after = [v[block], arrays["cm"], part["dt"] / spec.unfolds, dy[block], carry, here, dims]
        shapes = [point.v.shape, (B, H)]
        h, carry = yield _launch(BACKWARD, variant.template(True), variant.tile, [*packed[1], point.v, point.den, *after], B, shapes)
        parts.append(_gradients(kind, spec, part, point, v[block], h))
    return _joined(spec, arrays, parts[::-1]) | {"v0": carry}


class Point(NamedTuple):
    """Every evaluation of the synapses in a block of steps, (E, T, B, H) each."""

    v: mx.array
    num: mx.array
    den: mx.array


def _recompute(kind: str, variant: Variant, packed: list[mx.array], arrays: Tree, before: mx.array) -> Point:
    """Each step on its own, from the state before it: as many sequences of one step."""
    spec, (T, B, H) = variant.spec, before.shape
    R, delta = T * B, arrays["dt"] / variant.spec.unfolds
    drive = [a.reshape(1, R, H) for a in _drives(kind, spec, arrays)]
    inputs = [*packed, *drive, arrays["cm"], delta.reshape(1, R), before.reshape(R, H), mx.ones((R,), mx.int32), _dims(1, R, spec.unfolds)]
    shapes = [(1, R, H), *[(spec.evaluations, T, B, H)] * 3]
    return Point(*launch(kind, *_launch(FORWARD, variant.template(False, keep=True), variant.tile, inputs, R, shapes))[1:])


def _gradients(kind: str, spec: LTCSpec, arrays: Tree, point: Point, after: mx.array, h: mx.array) -> Tree:
    """All gradients of a block of steps, but for the synapses' still as sums over their rows."""
    value = point.v
    if spec.solver == "semi_implicit":
        value = mx.concatenate([point.v[1:], mx.expand_dims(after, 0)])  # (5)
    d_num = mx.expand_dims(arrays["dt"] / spec.unfolds, 2) * h
    d_den, rest = -d_num * value, point.num - point.den * value
    by_cm = h * (point.v - value) if spec.solver == "semi_implicit" else -d_num * rest / arrays["cm"]
    result: Tree = {"cm": by_cm.sum(axis=(0, 1, 2)), "dt": (h * rest).sum(axis=(0, 3)) / spec.unfolds}
    result["synapses"] = _synapse_sums(kind, spec.synapses, arrays["synapses"], point.v, d_num, d_den)
    d_num, d_den = d_num.sum(axis=0), d_den.sum(axis=0)
    result["vleak"] = arrays["gleak"] * d_num.sum(axis=(0, 1))
    result["gleak"] = arrays["vleak"] * d_num.sum(axis=(0, 1)) + d_den.sum(axis=(0, 1))
    result["sensory"] = _synapse_sums(kind, spec.sensory, arrays["sensory"], arrays["u"], d_num, d_den)
    return result | {"u": _pull(kind, spec.sensory, arrays["sensory"], arrays["u"], d_num, d_den)}


def _joined(spec: LTCSpec, arrays: Tree, parts: list[Tree]) -> Tree:
    """Gradients of consecutive blocks of steps together: those with a time axis in a row, the others added up."""
    result: Tree = {name: mx.concatenate([part[name] for part in parts]) for name in ("u", "dt")}
    result |= {name: sum(part[name] for part in parts) for name in ("cm", "vleak", "gleak")}
    for kind in ("synapses", "sensory"):
        p, (by_num, by_den, by_argument, by_product) = arrays[kind], sum(part[kind] for part in parts)
        result[kind] = {
            "w": p["erev"] * by_num + by_den,
            "sigma": by_product - p["mu"] * by_argument,
            "mu": -p["sigma"] * by_argument,
            "erev": p["w"] * by_num,
        }
    return result


def _drives(kind: str, spec: LTCSpec, arrays: Tree) -> list[mx.array]:
    """What num and den get beside the synapses among the units, (T, B, H) each: (3) and (4) of the sensory part (1)."""
    sensory, u = spec.sensory, arrays["u"]
    T, B, _ = u.shape
    inputs = [u, _floats(arrays["sensory"]), _ids(sensory.sources), _ids(sensory.target_starts()), _dims(T * B)]
    num, den = _parallel(kind, SUMS, sensory, inputs, T * B * spec.units, [(T, B, spec.units)] * 2)  # (1)
    epsilon = spec.epsilon if spec.solver == "semi_implicit" else 0
    num = num + arrays["gleak"] * arrays["vleak"]  # (3)
    return [num, den + (arrays["gleak"] + epsilon)]  # (4)


def _pull(kind: str, synapses: Synapses, p: Tree, v: mx.array, d_num: mx.array, d_den: mx.array) -> mx.array:
    """The gradient of the sources' values, of the shape of v (..., K)."""
    by_source = synapses.by_source
    if synapses.count == 0:
        return mx.zeros_like(v)
    floats = mx.take(_floats(p), _ids(by_source), axis=0)
    inputs = [v, d_num, d_den, floats, _ids(synapses.targets[by_source]), _ids(synapses.source_starts())]
    (dv,) = _parallel(kind, PULL, synapses, [*inputs, _dims(v.size // synapses.inputs)], v.size, [v.shape])
    return dv


def _synapse_sums(kind: str, synapses: Synapses, p: Tree, v: mx.array, d_num: mx.array, d_den: mx.array) -> mx.array:
    """(4, S): the sums over all rows of v (..., K), d_num and d_den (..., H) that ltc_gradients makes."""
    R, S = v.size // synapses.inputs, synapses.count
    if S == 0:
        return mx.zeros((4, 0))
    parts = max(1, min(MOST_PARTS, 2**18 // S, R))
    parts = -(-R // -(-R // parts))  # none without rows
    inputs = [v, d_num, d_den, _floats(p), _ids(synapses.sources), _ids(synapses.targets), _dims(R, S, parts)]
    (sums,) = _parallel(kind, GRADIENTS, synapses, inputs, S * parts, [(parts, 4, S)])
    return sums.sum(axis=0)


def _floats(p: Tree) -> mx.array:
    """(S, 4): a synapse as the kernels read it, in the terms of (2)."""
    return mx.stack([p["sigma"], p["sigma"] * p["mu"], p["w"] * p["erev"], p["w"]], axis=1)  # (2)


def _packed(variant: Variant, arrays: Tree, backward: bool) -> list[mx.array]:
    """The synapses in the order of one direction, with their lists."""
    lists, p = variant.lists(backward), arrays["synapses"]
    floats = mx.concatenate([_floats(p), mx.zeros((1, 4))])
    return [mx.take(floats, lists.ids, axis=0), lists.partners, lists.order, lists.offsets]


def _lengths(arrays: Tree, T: int, B: int) -> mx.array:
    return arrays["lengths"] if "lengths" in arrays else mx.full((B,), T, mx.int32)


def _dims(*sizes: int) -> mx.array:
    return mx.array([*sizes, *[0] * (8 - len(sizes))])


def _ids(a: Indices) -> mx.array:
    return mx.array(np.asarray(a, np.int32))


def _launch(
    text: KernelText, template: list[tuple[str, Any]], tile: Tile, inputs: list[mx.array], B: int, shapes: Sequence[tuple[int, ...]]
) -> Launch:
    return Launch(text, inputs, template, -(-B // tile.rows), tile.threads, shapes, [mx.float32] * len(shapes))


def _parallel(
    kind: str, text: KernelText, synapses: Synapses, inputs: list[mx.array], threads: int, shapes: Sequence[tuple[int, ...]]
) -> list[mx.array]:
    """Launch a kernel of one thread a result."""
    template = [("K", synapses.inputs), ("H", synapses.units), ("THREADS", PARALLEL_THREADS), ("SCRATCH", 1)]
    return launch(kind, text, inputs, template, -(-threads // PARALLEL_THREADS), PARALLEL_THREADS, shapes, [mx.float32] * len(shapes))

"""The LTC scan as fused kernels (metal/ltc.metal): the launches of the two sequential scans, and the parallel computations around them.

The arrays are those of the NumPy form (reference.py). The sensory sums are computed before the forward scan, for all steps at once. The
backward processes a block of steps at a time: the forward kernel recomputes every evaluation of the synapses, for each step independently,
from the stored state before it (with mixed memory from the LSTM's h); the backward scan carries dv (and dc); then each parameter's gradient
is a sum over all steps, sequences and evaluations, in a fixed order.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ...kernels.first_use import STEPS, SmallProblem, few_lengths, few_sequences, few_units, part_within
from ...kernels.inputs import dims, lengths_of, nothing, too_many
from ...kernels.launches import Launch, Launches, groups_within, launch, run_launches, scan_launch
from ...kernels.loader import KernelText, axes
from ...kernels.parallel import launch_parallel
from ...kernels.tiles import (
    SYNAPSE,
    THREADGROUP_BYTES,
    Family,
    Tile,
    Work,
    checked_variant,
    current_family,
    forced_tile,
    layouts_for,
    rows_for,
    split_for,
)
from ..held import held_by_first
from ..memory_fused import memory_slopes
from ..ops import project
from .kernel_layout import Variant, at_ids, ids_of
from .random_cases import random_arrays
from .spec import LTCSpec
from .synapses import Synapses, parameter_gradients

Tree = dict[str, Any]
BLOCK_VALUES = 2**19  # minimum unit evaluations per block in memory: about 15 MB with all values derived from them
SUM_THREADS = 2**18  # threads of a sum over rows: enough to fill a large GPU
SUMS_ROWS = 4  # rows per thread of ltc_sums
LEAST_ROWS, MOST_EVALUATIONS = 16, 2**27  # minimum rows per thread of such a sum; most evaluations in a single launch
MOST_SYNAPSES = 2**16  # synapses in the first-use check
SPLITS = (32, 16, 8, 4)  # lanes that share the synapses of a unit
LOG2_E = 1.4426950408889634
GROUPS_A_CORE = 8  # threadgroups per core among which the steps to recompute are divided
FILES = ("pointwise.metal", "product.metal", "sequences.metal", "memory.metal", "ltc.metal")
SIZES = "LTC<H, SOLVER, FULL, KEEP, MEMORY, THREADS, ROWS, SPLIT, RESIDENT, GATES_RESIDENT, COUNT, HELD>"
LISTS = ("synapses", "partners", "order", "offsets")
FORWARD = KernelText(
    "ltc_forward",
    SIZES,
    FILES,
    (*LISTS, "num_drive", "den_drive", "cm", "delta", "v0", "x_gates", "w_gates", "c0", "lengths", "dims"),
    ("y", "points", "rates", "dens", "c_out"),
    axes(tbh="num_drive den_drive x_gates y c_out", tb="delta", bh="v0 c0", b="lengths"),
    (("v0", "y"), ("c0", "c_out")),
)
# every step is independent: the rows are (step, sequence) pairs
RECOMPUTE = FORWARD._replace(axes=axes(th="num_drive den_drive v0", t="delta", eth="points rates dens"), carried=())
BACKWARD = KernelText(
    "ltc_backward",
    SIZES,
    FILES,
    (*LISTS, "points", "dens", "v", "cm", "delta", "dy", "carry", "dy_c", "carry_c", "slopes", "w_gates", "lengths", "dims"),
    ("h", "dv0", "d_gates", "dc0"),
    axes(etbh="points dens h", tbh="v dy dy_c", tb="delta", bh="carry carry_c dv0 dc0", tbgh="slopes d_gates", b="lengths"),
    (("carry", "dv0"), ("carry_c", "dc0")),
)
SUMS = KernelText(
    "ltc_sums", "K, H, THREADS", FILES, ("v", "synapses", "sources", "leak", "dims"), ("nums", "dens"), axes(tk="v", th="nums dens")
)
PULL = KernelText(
    "ltc_pull",
    "K, H, THREADS",
    FILES,
    ("v", "d_num", "d_den", "synapses", "targets", "dims"),
    ("dv",),
    axes(tk="v dv", th="d_num d_den"),
)
EVALUATIONS = KernelText(
    "ltc_evaluations",
    "H, SEMI, THREADS",
    FILES,
    ("h", "points", "rates", "v", "delta", "dims"),
    ("d_num", "d_den", "sums"),
    axes(eth="h points rates d_num d_den sums", th="v", t="delta"),
)
GRADIENTS = KernelText(
    "ltc_gradients",
    "K, H, THREADS",
    FILES,
    ("v", "d_num", "d_den", "synapses", "sources", "targets", "dims"),
    ("sums",),
    axes(tk="v", th="d_num d_den", uns="sums"),
)


def choose_tile(family: Family, spec: LTCSpec, batch: int) -> Tile:
    """Synapses in registers if at least half of them fit, and the LSTM's weights if these fit too; the rest is read at each use."""
    alone = Variant(spec, Tile(family.threads, 1, _split(family, spec), True))
    resident = alone.floats <= 2 * family.register_floats
    gates_streamed = resident and spec.mixed_memory and alone.floats + alone.gate_floats > family.register_floats
    rows = rows_for(family, batch, alone.threadgroup_bytes, resident)
    return alone.tile._replace(resident=resident, rows=rows, gates_resident=not gates_streamed)


def _split(family: Family, spec: LTCSpec) -> int:
    """As many lanes per unit as leave a lane group for each unit; if no synapse is missing, at most as many as have four synapses each."""
    H = spec.units
    useful = [split for split in SPLITS if split == SPLITS[-1] or not spec.synapses.is_full or 4 * split < 2 * H]
    return split_for(useful, family.threads, H)


def layouts(family: Family, spec: LTCSpec) -> list[Tile]:
    """Every layout that `choose_tile` can return on a GPU family, for any size."""
    tiles = layouts_for(family, SPLITS)
    return tiles + ([tile._replace(gates_resident=False) for tile in tiles if tile.resident] if spec.mixed_memory else [])


def variant_of(kind: str, spec: LTCSpec, arrays: Tree) -> Variant:
    """The kernel variant for these arrays; each sequence of a threadgroup is owned by one lane."""
    checked, forced, family = checked_variant.get(), forced_tile.get(), current_family()
    if checked is not None:
        return checked._replace(spec=spec)
    tile = forced or choose_tile(family, spec, arrays["dt"].shape[1])
    return Variant(spec, tile._replace(rows=min(tile.rows, tile.split)), None if forced else family.register_floats)


def recomputing(variant: Variant) -> Variant:
    """The variant that recomputes evaluations. Every step is a sequence, with as many per threadgroup as fit if synapses are read."""
    if variant.tile.resident or forced_tile.get():
        return variant
    family, one = current_family(), variant._replace(tile=variant.tile._replace(rows=1))
    rows = min(variant.tile.split, rows_for(family, family.streamed_rows * family.cores, 16 * one.scratch(False)))
    return variant._replace(tile=variant.tile._replace(rows=rows))


def variant_key(kind: str, spec: LTCSpec, arrays: Tree) -> Hashable:
    """The key under which the result of a first-use check is stored: the kernels' template arguments, without the large synapse lists."""
    variant = variant_of(kind, spec, arrays)
    templates = variant.template(False), variant.template(True), recomputing(variant).template(False, keep=True)
    return (spec.sensory.inputs, *(value for template in templates for _, value in template))


def refusal(kind: str, spec: LTCSpec, arrays: Tree) -> str | None:
    """The reason why no kernel supports these arrays, or None."""
    if arrays["dt"].dtype != mx.float32:
        return "kernels compute in float32"
    if variant_of(kind, spec, arrays).tile.rows == 0:
        memory = " with mixed memory" if spec.mixed_memory else ""
        return f"{spec.units} units{memory} need more than {THREADGROUP_BYTES} bytes of threadgroup memory"
    (T, B), H, I, E = arrays["dt"].shape, spec.units, spec.sensory.inputs, spec.evaluations
    block = block_steps(spec, T, B) * B  # (step, sequence) pairs
    rows = ((spec.synapses.count, E * block), (spec.sensory.count, block))
    sums = [4 * S * -(-R // sum_rows(R, S)) for S, R in rows]
    return too_many((T + 1) * B * max(H * (6 if spec.mixed_memory else 1), I), max(E, 3) * block * H, *sums)


def block_steps(spec: LTCSpec, T: int, B: int) -> int:
    """Steps per block; the evaluations of one block are in memory at a time."""
    return max(1, max(BLOCK_VALUES, T * B * spec.units // 4) // max(1, spec.evaluations * B * spec.units))


def sum_rows(R: int, S: int) -> int:
    """The number of rows, of R, that one thread of ltc_gradients sums for one of S synapses."""
    S, R = max(1, S), max(1, R)
    return min(-(-R // max(1, min(SUM_THREADS // S, R // LEAST_ROWS))), max(LEAST_ROWS, MOST_EVALUATIONS // S))


def small_problem(kind: str, spec: LTCSpec, arrays: Tree) -> SmallProblem:
    """A problem with the same synapses and few unfolds, or a fraction of the units if there are many."""
    variant = variant_of(kind, spec, arrays)
    small = replace(spec, unfolds=min(spec.unfolds, 1 if spec.solver == "rk4" else 2))
    of_memory = 4 * spec.units**2 if spec.mixed_memory else 0
    part = min(part_within(max(spec.synapses.count, spec.sensory.count), MOST_SYNAPSES), part_within(2 * of_memory))
    if part < 1:
        small = replace(small, synapses=_part_of(spec.synapses, part), sensory=_part_of(spec.sensory, part))
    B = few_sequences(variant.tile.rows)
    return SmallProblem(small, random_arrays(small, STEPS, B, lengths=False, dtype=np.float32) | {"lengths": few_lengths(B)}, variant)


def _part_of(synapses: Synapses, part: float) -> Synapses:
    """Synapses of the same density, between a fraction of the sources and of the targets."""
    shape = few_units(synapses.inputs, part), few_units(synapses.units, part)
    density = synapses.count / max(1, synapses.inputs * synapses.units)
    return Synapses(np.random.Generator(np.random.PCG64(0)).random(shape) < density)


def ltc_fused_forward(kind: str, spec: LTCSpec, arrays: Tree) -> list[mx.array]:
    """[v] (T, B, H), with mixed memory [v, c], in one launch after the sensory sums."""
    return run_launches(kind, forward_launches(kind, spec, arrays))


def forward_launches(kind: str, spec: LTCSpec, arrays: Tree) -> Launches:
    """`ltc_fused_forward` as a generator of its scan's launch."""
    variant, (T, B), memory = variant_of(kind, spec, arrays), arrays["dt"].shape, spec.mixed_memory
    packed, drive = variant.packed(_floats(arrays["synapses"]), False), _drives(kind, spec, arrays["u"], *_drive_weights(spec, arrays))
    inputs = [*packed, *drive, _capacitance(spec, arrays), arrays["dt"] / spec.unfolds, arrays["v0"]]
    if memory:
        lstm = arrays["lstm"]
        inputs += [project(arrays["x"], lstm["w_x"], lstm["b"]), variant.packed_gates(lstm["w_h"], False), arrays["c0"]]
    else:
        inputs += [nothing()] * 3
    shape = (T, B, spec.units)
    shapes = [shape, *[(1,)] * 3, shape if memory else (1,)]
    inputs.append(lengths_of(arrays, T, B))
    v, *_, c = yield _launch(FORWARD, variant, inputs, T, B, shapes)  # (5)
    return [v, c] if memory else [v]


def ltc_fused_backward(kind: str, spec: LTCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as returned by the NumPy form's backward."""
    return run_launches(kind, backward_launches(kind, spec, arrays, outputs, cotangents))


def backward_launches(kind: str, spec: LTCSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Launches:
    """`ltc_fused_backward` as a generator of its scans' launches."""
    variant, (T, B, H) = variant_of(kind, spec, arrays), outputs[0].shape
    names = ("v0", "c0")[: len(outputs)]
    before = [mx.concatenate([mx.expand_dims(arrays[name], 0), kept[:-1]]) for name, kept in zip(names, outputs, strict=True)]
    lengths, carry, parts = lengths_of(arrays, T, B), [mx.zeros((B, H)) for _ in outputs], []
    arrays, weights = arrays | {"delta": _delta(spec, arrays), "cm": _capacitance(spec, arrays)}, _weights(variant, arrays)
    steps = block_steps(spec, T, B)
    for start in reversed(range(0, T, steps)):
        block = slice(start, min(start + steps, T))
        part = arrays | {name: arrays[name][block] for name in ("u", "delta", "x") if name in arrays}
        states, dy = [a[block] for a in before], [a[block] for a in cotangents]
        here = mx.clip(lengths - start, 0, block.stop - block.start)
        slopes = None
        inner = states[0]
        if spec.mixed_memory:
            inner, slopes = memory_slopes(kind, arrays["lstm"], part["x"], *states)
        point = _recompute(kind, variant, weights, part, inner)
        v = outputs[0][block]
        h, d_gates, carry = yield from _scan_back(variant, weights, part, point, v, dy, carry, slopes, here)
        gradients = _gradients(kind, spec, weights, part, point, v, h)
        parts.append(gradients if slopes is None else _with_memory(gradients, part, states[0], d_gates))
    return _joined(spec, arrays, parts[::-1]) | dict(zip(names, carry, strict=True))


def _capacitance(spec: LTCSpec, arrays: Tree) -> mx.array:
    """cm in the form used by the solver."""
    return arrays["cm"] + spec.least_cm


def _delta(spec: LTCSpec, arrays: Tree) -> mx.array:
    """(T, B): the time per unfold; 0 past a sequence's length, where a solver could overflow and give NaN gradients."""
    delta = arrays["dt"] / spec.unfolds
    if "lengths" not in arrays:
        return delta
    return mx.where(mx.arange(len(delta))[:, None] < arrays["lengths"], delta, 0)


class Weights(NamedTuple):
    """Synapses and the LSTM's weights in the kernels' layout."""

    forward: list[mx.array]  # packed by target, with their lists
    backward: list[mx.array]  # by source
    gates_back: mx.array
    synapses: mx.array  # (S, 4)
    sensory: mx.array
    sensory_packed: mx.array  # (width, H, 4)
    leak: mx.array  # (2, H): its contribution to num and den
    sensory_pull: mx.array


def _weights(variant: Variant, arrays: Tree) -> Weights:
    spec, synapses, none = variant.spec, _floats(arrays["synapses"]), nothing()
    return Weights(
        variant.packed(synapses, False),
        variant.packed(_floats(arrays["synapses"], pull=True), True),
        variant.packed_gates(arrays["lstm"]["w_h"], True) if spec.mixed_memory else none,
        synapses,
        _floats(arrays["sensory"]),
        *_drive_weights(spec, arrays),
        at_ids(_floats(arrays["sensory"], pull=True), parallel_lists(spec.sensory).by_source),
    )


def _scan_back(
    variant: Variant,
    weights: Weights,
    arrays: Tree,
    point: "Point",
    v: mx.array,
    dy: list[mx.array],
    carry: list[mx.array],
    slopes: mx.array | None,
    lengths: mx.array,
) -> Launches:
    """The backward scan over a block of steps.

    Returns:
        h (E, T, B, H) of each evaluation, the LSTM's d_gates (T, B, 4, H), and the gradients (B, H) of the states before the block.
    """
    (T, B, H), none = v.shape, nothing()
    inputs = [*weights.backward, point.v, point.den, v, arrays["cm"], arrays["delta"], dy[0], carry[0]]
    inputs += [none, none, none] if slopes is None else [dy[1], carry[1], slopes]
    inputs += [weights.gates_back, lengths]
    shapes = [point.v.shape, (B, H), *([(1,), (1,)] if slopes is None else [(T, B, 4, H), (B, H)])]
    h, dv0, d_gates, dc0 = yield _launch(BACKWARD, variant, inputs, T, B, shapes)
    return h, d_gates, [dv0] if slopes is None else [dv0, dc0]


class Point(NamedTuple):
    """Every evaluation of the synapses in a block of steps, (E, T, B, H) each."""

    v: mx.array
    rate: mx.array  # (num - den v) over cm, for the semi-implicit solver over cm + delta den
    den: mx.array


def _recompute(kind: str, variant: Variant, weights: Weights, arrays: Tree, before: mx.array) -> Point:
    """Recompute each step independently, from the state before it, with enough threadgroups to fill the GPU."""
    spec, (T, B, H), variant = variant.spec, before.shape, recomputing(variant)
    R, none, tile, work = T * B, nothing(), variant.tile, variant.work(False)
    rows = min(R, groups_within(kind, work, GROUPS_A_CORE * current_family().cores) * tile.rows)
    steps = -(-R // rows)
    lengths = ids_of(np.full(rows, steps) - (np.arange(rows) + (steps - 1) * rows >= R))
    drive = [a.reshape(R, H) for a in _drives(kind, spec, arrays["u"], weights.sensory_packed, weights.leak)]
    inputs = [*weights.forward, *drive, arrays["cm"], arrays["delta"].reshape(R), before.reshape(R, H), none, none, none, lengths]
    one = Launch(
        RECOMPUTE,
        dict(zip(RECOMPUTE.inputs, inputs, strict=False)),
        variant.template(False, keep=True),
        [(1,), *[(spec.evaluations, R, H)] * 3, (1,)],
        tile.threads,
        R,
        rows,
        lambda _, rows: -(-rows // tile.rows),
        lambda R, rows: dims(-(-R // rows), rows, spec.unfolds, R),
        work,
        unit=rows,
    )
    return Point(*(a.reshape(-1, T, B, H) for a in launch(kind, one)[1:4]))


def _gradients(kind: str, spec: LTCSpec, weights: Weights, arrays: Tree, point: Point, after: mx.array, h: mx.array) -> Tree:
    """All gradients of a block of steps; those of the synapses are still sums over rows."""
    (E, T, B, H), delta = h.shape, arrays["delta"]
    template = [("H", H), ("SEMI", spec.solver == "semi_implicit")]
    R = T * B
    inputs = [*(a.reshape(E, R, H) for a in (h, *point[:2])), after.reshape(R, H), delta.reshape(R)]
    shapes = [(E, R, H), (E, R, H), (3, R, H)]
    parts = launch_parallel(kind, EVALUATIONS, template, inputs, R, lambda R: R * H, lambda R: dims(E, R), shapes, Work(9 * E))
    d_num, d_den, sums = (a.reshape(-1, T, B, H) for a in parts)
    by_rate, num_sum, den_sum = sums
    result: Tree = {"cm": -(by_rate * mx.expand_dims(delta, 2)).sum(axis=(0, 1)), "dt": (by_rate * arrays["cm"]).sum(axis=2) / spec.unfolds}
    by_unit = sums[1:].sum(axis=(1, 2))
    result |= {"vleak": arrays["gleak"] * by_unit[0], "gleak": arrays["vleak"] * by_unit[0] + by_unit[1]}
    result["synapses"] = _synapse_sums(kind, spec.synapses, weights.synapses, point.v, d_num, d_den)
    result["sensory"] = _synapse_sums(kind, spec.sensory, weights.sensory, arrays["u"], num_sum, den_sum)
    return result | {"u": _pull(kind, spec.sensory, weights.sensory_pull, arrays["u"], num_sum, den_sum)}


def _with_memory(gradients: Tree, arrays: Tree, v: mx.array, d_gates: mx.array) -> Tree:
    """The gradients of the LSTM and its inputs, from those of its gates' products (T, B, 4, H) at the states v."""
    d = d_gates.reshape(-1, d_gates.shape[2] * d_gates.shape[3])
    lstm = {"w_x": d.T @ arrays["x"].reshape(len(d), -1), "w_h": d.T @ v.reshape(len(d), -1), "b": d.sum(axis=0)}
    return gradients | {"x": (d @ arrays["lstm"]["w_x"]).reshape(arrays["x"].shape), "lstm": lstm}


def _joined(spec: LTCSpec, arrays: Tree, parts: list[Tree]) -> Tree:
    """Join the gradients of consecutive blocks of steps: arrays with a time axis are concatenated, the others added."""
    result: Tree = {name: mx.concatenate([part[name] for part in parts]) for name in ("u", "dt", "x") if name in arrays}
    result |= {name: sum(part[name] for part in parts) for name in ("cm", "vleak", "gleak")}
    if spec.mixed_memory:
        result["lstm"] = {name: sum(part["lstm"][name] for part in parts) for name in arrays["lstm"]}
    for kind in ("synapses", "sensory"):
        result[kind] = parameter_gradients(arrays[kind], *sum(part[kind] for part in parts))
    return result


class ParallelLists(NamedTuple):
    """Synapse indices for the kernels that are parallel over rows, in tables (width, H) or (width, K); S for none."""

    by_target: mx.array
    sources: mx.array  # the sources of these synapses
    by_source: mx.array
    targets: mx.array
    source: mx.array  # (S,)
    target: mx.array


@held_by_first
def parallel_lists(synapses: Synapses) -> ParallelLists:
    """The tables, in which neighbouring threads (of neighbouring units) read neighbouring synapses; widths are even, and at least 2."""

    def table(by_target: bool) -> tuple[mx.array, mx.array]:
        ids = synapses.padded(by_target).T
        width = max(2, len(ids) + len(ids) % 2)
        ids = np.concatenate([ids, np.full((width - len(ids), ids.shape[1]), synapses.count)])
        ends = np.concatenate([synapses.sources if by_target else synapses.targets, [0]])
        return ids_of(ids), ids_of(ends[ids])

    return ParallelLists(*table(True), *table(False), ids_of(synapses.sources), ids_of(synapses.targets))


def _drive_weights(spec: LTCSpec, arrays: Tree) -> tuple[mx.array, mx.array]:
    """The sensory synapses in the layout of `ltc_sums`, and the leak's contribution to num and den (2, H)."""
    epsilon = spec.epsilon if spec.solver == "semi_implicit" else 0
    leak = mx.stack([arrays["gleak"] * arrays["vleak"], arrays["gleak"] + epsilon])
    return at_ids(_floats(arrays["sensory"]), parallel_lists(spec.sensory).by_target), leak


def _drives(kind: str, spec: LTCSpec, u: mx.array, floats: mx.array, leak: mx.array) -> list[mx.array]:
    """The leak's and the sensory synapses' contributions to num and den, (T, B, H) each, equation (1)."""
    (T, B, K), H, lists = u.shape, spec.units, parallel_lists(spec.sensory)
    width = len(lists.by_target)
    sums = launch_parallel(
        kind,
        SUMS,
        [("K", K), ("H", H)],
        [u.reshape(T * B, K), floats, lists.sources, leak],
        T * B,
        lambda R: -(-R // SUMS_ROWS) * H,
        lambda R: dims(R, width),
        [(T * B, H)] * 2,
        SYNAPSE * (SUMS_ROWS * width),
        unit=SUMS_ROWS,
    )  # (1)
    return [a.reshape(T, B, H) for a in sums]


def _pull(kind: str, synapses: Synapses, floats: mx.array, v: mx.array, d_num: mx.array, d_den: mx.array) -> mx.array:
    """The gradient of the sources' values, with the shape of v (..., K)."""
    lists, K, H = parallel_lists(synapses), synapses.inputs, synapses.units
    R, width = v.size // K, len(lists.by_source)
    (dv,) = launch_parallel(
        kind,
        PULL,
        [("K", K), ("H", H)],
        [v.reshape(R, K), d_num.reshape(R, H), d_den.reshape(R, H), floats, lists.targets],
        R,
        lambda R: R * K,
        lambda R: dims(R, width),
        [(R, K)],
        (SYNAPSE + Work(4)) * width,
    )
    return dv.reshape(v.shape)


def _synapse_sums(kind: str, synapses: Synapses, floats: mx.array, v: mx.array, d_num: mx.array, d_den: mx.array) -> mx.array:
    """(4, S): the sums computed by ltc_gradients over all rows of v (..., K), d_num and d_den (..., H)."""
    K, H, S, lists = synapses.inputs, synapses.units, synapses.count, parallel_lists(synapses)
    if S == 0:
        return mx.zeros((4, 0))
    R = v.size // K
    rows = sum_rows(R, S)
    (sums,) = launch_parallel(
        kind,
        GRADIENTS,
        [("K", K), ("H", H)],
        [v.reshape(R, K), d_num.reshape(R, H), d_den.reshape(R, H), floats, lists.source, lists.target],
        R,
        lambda R: S * -(-R // rows),
        lambda R: dims(R, S, -(-R // rows), rows),
        [(-(-R // rows), 4, S)],
        (SYNAPSE + Work(10)) * rows,
        unit=rows,
    )
    return sums.sum(axis=0)


def _floats(p: Tree, pull: bool = False) -> mx.array:
    """(S, 4): synapses in the kernels' layout, in the terms of (2); with `pull` in the layout for gradients from target to source."""
    scale, w_erev, w = -LOG2_E * p["sigma"], p["w"] * p["erev"], p["w"]
    both = [p["sigma"] * w_erev, p["sigma"] * w] if pull else [w_erev, w]
    return mx.stack([scale, scale * p["mu"], *both], axis=1)  # (2)


def _launch(text: KernelText, variant: Variant, inputs: list[mx.array], T: int, B: int, shapes: Sequence[tuple[int, ...]]) -> Launch:
    backward, unfolds = text is BACKWARD, variant.spec.unfolds
    template, work = variant.template(backward), variant.work(backward)
    return scan_launch(text, inputs, template, shapes, variant.tile, T, B, lambda T, B: dims(T, B, unfolds), work, is_backward=backward)

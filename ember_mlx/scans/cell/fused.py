"""The scan of any cell as fused kernels: their text is made from the definition of its step, and stands on metal/cell.metal.

The arrays are those of the NumPy form (reference.py). What is parallel over T lies around the scans: before the forward one W_x x + b,
before the backward one the derivative's coefficients, recomputed from the stored states, and after it the weights' gradients.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.first_use import STEPS, SmallProblem, few_lengths, few_sequences, few_units, part_within
from ...kernels.inputs import dims, lengths_of, too_many
from ...kernels.launches import launch, scan_launch
from ...kernels.tiles import (
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
from ...kernels.weight_layout import pack
from ...step.definition import Definition
from ...step.metal import is_float32
from .backward_text import backward_kernel
from .by_step import Gradients, back_by_step, forward_by_step
from .forward_text import forward_kernel
from .kernel_layout import Backward, Forward, Variant, numbers_of
from .kernel_plan import UNITS, Size, plan_of, size_of
from .ops import project_inputs
from .pointwise_text import back_kernel, next_kernel
from .random_cases import random_arrays
from .stages import coefficients, given_of

Tree = dict[str, Any]
BLOCK_STEPS = 256  # steps whose coefficients are in memory at a time, at most
BLOCK_BYTES = 2**28  # of their coefficients and gradients
SPLITS = (8, 4)  # lanes of a unit
MOST_BUFFERS = 31  # that Metal gives a kernel


def choose_tile(family: Family, layout: type[Forward] | type[Backward], definition: Definition, H: int, sequences: int, P: int = 0) -> Tile:
    """Weights in registers if they fit there, else read at every step; 0 rows where one launch for all steps does not pay."""
    plan = plan_of(definition)
    if not plan.parts:
        return Tile(next(n for n in _threads(family) if n >= min(max(H, P), family.threads)), 1, 1, True)
    preferred = split_for(SPLITS, family.threads, H)
    tiles = [Tile(family.threads, 1, split, True) for split in (preferred, *SPLITS)]
    tiles = [tile for tile in tiles if layout(plan, H, tile, P).weights <= family.register_floats]
    one = layout(plan, H, tiles[0] if tiles else Tile(family.threads, 1, SPLITS[-1], False), P)
    rows = rows_for(family, sequences, 16 * one.scratch, one.tile.resident)
    streamed = 0 if one.tile.resident else 4 * family.threads * one.multiplied
    if steps_apart(family, sequences, rows, streamed, _launches(definition, layout is Backward)):
        return Tile(family.threads, 0, SPLITS[-1], False)
    return one.tile._replace(rows=rows)


def _threads(family: Family) -> list[int]:
    """Of a group whose threads have a unit each."""
    return [n for n in (32, 64, 128, 256, 512, 1024) if n <= family.threads]


def _launches(definition: Definition, backward: bool) -> int:
    """That a step of its own takes."""
    plan, calls = plan_of(definition), definition.pull.results if backward else definition.calls
    kernel, parts = (back_kernel, max(plan.depth_back, 1)) if backward else (next_kernel, definition.depth + 1)
    return len(calls) + sum(kernel(definition, part, size) is not None for part in range(parts) for size in plan.sizes)


def layouts(family: Family, definition: Definition) -> list[Tile]:
    """Every layout that `choose_tile` can give on a family of GPUs, for some size."""
    if not definition.calls:
        return [Tile(threads, 1, 1, True) for threads in _threads(family)]
    return [*layouts_for(family, SPLITS), Tile(family.threads, 0, SPLITS[-1], False)]


def variant_of(kind: str, definition: Definition, arrays: Tree) -> Variant:
    """The kernel variant that serves some arrays."""
    (D, _, B, _), forced, checked = arrays["x"].shape, forced_tile.get(), checked_variant.get()
    H, P = (*numbers_of(definition, arrays).values(), 0)[:2]
    if checked is not None:
        return checked._replace(H=H, P=P)
    if forced is not None:
        return Variant(definition, H, forced, forced, P)
    family = current_family()
    forward, backward = (choose_tile(family, layout, definition, H, D * B, P) for layout in (Forward, Backward))
    return Variant(definition, H, forward, backward, P)


def variant_key(kind: str, definition: Definition, arrays: Tree) -> Variant:
    """What a first use is remembered by."""
    return variant_of(kind, definition, arrays)


def refusal(kind: str, definition: Definition, arrays: Tree) -> str | None:
    """Why no kernel serves such arrays, or None."""
    if any(a.dtype != mx.float32 for a in arrays["initial"].values()):
        return "kernels compute in float32"
    sizes = sorted({size for size in definition.sizes.values() if size != "H"})
    if len(sizes) > 1:
        return f"kernels take values of H units and of one size more, not of {', '.join(sizes)}"
    states, calls, plan = len(definition.states), len(definition.calls), plan_of(definition)
    if 6 + 2 * len(sizes) + 3 * states + calls > MOST_BUFFERS:
        return f"{states} states and {calls} products in a step are more than a kernel has arguments for"
    others = [n for n in definition.forward_nodes if size_of(n) != UNITS]
    if any(a.size is None and a.op != "constant" for n in others for a in n.args):
        return f"kernels take elapsed times, shared parameters and functions of numbers with values of H units alone, not of {sizes[0]}"
    nodes = [*definition.forward_nodes, *plan.coefficients]
    beyond = [n.data for n in nodes if n.op == "constant" and not is_float32(n.data)]
    if beyond:
        return f"the step has the number {beyond[0]:g}, which float32 does not have"
    (D, T, B, _), H = arrays["x"].shape, max(numbers_of(definition, arrays).values())
    columns = max(len(definition.x), len(plan.coefficients), len(plan.all_blocks), *(len(call.results) for call in definition.calls), 1)
    steps = block_steps(definition, H, D * B)
    return too_many(D * T * B * H * len(definition.x), D * min(T, steps) * B * columns * H, D * T * B * H)


def small_problem(kind: str, definition: Definition, arrays: Tree) -> SmallProblem:
    """As many units in as many directions, or a part of the units where there are many."""
    variant, D = variant_of(kind, definition, arrays), arrays["x"].shape[0]
    weights, number = map(plan_of(definition).weight, definition.h_products), variant.scan(False).number
    part = part_within(D * sum(w.blocks * number(w.results) * number(w.inputs) for w in weights))
    B, H, P = few_sequences(variant.forward.rows, variant.backward.rows), few_units(variant.H, part), few_units(variant.P, part)
    small = random_arrays(definition, D, STEPS, B, H, lengths=False, dtype=np.float32, P=P)
    return SmallProblem(definition, small | {"lengths": few_lengths(B)}, variant)


def cell_fused_forward(kind: str, definition: Definition, arrays: Tree) -> list[mx.array]:
    """The states (D, T, B, H): in one launch, or step by step where that is faster."""
    variant = variant_of(kind, definition, arrays)
    if variant.forward.rows == 0:
        return forward_by_step(kind, definition, arrays)
    (D, T, B, _), text = arrays["x"].shape, forward_kernel(definition)
    given = given_of(definition, arrays, project_inputs(arrays)) | {"lengths": lengths_of(arrays, T, B)}
    given |= {f"initial{k}": arrays["initial"][name] for k, name in enumerate(definition.states)}
    if definition.calls:
        given["weights"] = _packed(variant, arrays, False)
    shapes = [(D, T, B, arrays["initial"][name].shape[2]) for name in definition.states]
    return _launch(kind, variant, given, (D, T, B), shapes, False) if text.inputs else []


def cell_fused_backward(kind: str, definition: Definition, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every floating-point array, as the NumPy form's backward gives them."""
    variant = variant_of(kind, definition, arrays)
    D, T, B, _ = outputs[0].shape
    initial = [arrays["initial"][name] for name in definition.states]
    before = [mx.concatenate([a[:, None], after[:, :-1]], axis=1) for a, after in zip(initial, outputs, strict=True)]
    lengths = lengths_of(arrays, T, B)
    given = {"weights": _packed(variant, arrays, True)} if definition.calls and variant.backward.rows else {}
    carry, parts, steps = [mx.zeros_like(a) for a in initial], [], block_steps(definition, max(variant.H, variant.P), D * B)
    for start in reversed(range(0, T, steps)):
        block = slice(start, min(start + steps, T))
        part = arrays | {name: arrays[name][:, block] for name in ("x", "dt") if name in arrays}
        dy, here = [a[:, block] for a in cotangents], mx.clip(lengths - start, 0, block.stop - block.start)
        by, stages = coefficients(kind, definition, part, project_inputs(part), [a[:, block] for a in before])
        if variant.backward.rows == 0:
            d, carry = back_by_step(kind, definition, part, by, dy, carry, here)
        else:
            d, carry = _scan_back(kind, variant, given | by, dy, carry, here)
        parts.append(_gradients(definition, part, _valid(arrays, stages.of(plan_of(definition).arguments), here, block.stop - start), d))
    return _together(parts[::-1]) | {"initial": dict(zip(definition.states, carry, strict=True))}


def block_steps(definition: Definition, H: int, sequences: int) -> int:
    """Steps whose coefficients and gradients are in memory at a time."""
    plan = plan_of(definition)
    results = sum(len(call.results) for call in definition.calls)
    numbers = len(plan.coefficients) + len(plan.all_blocks) + len(plan.arguments) + results + len(definition.x)
    return max(1, min(BLOCK_STEPS, BLOCK_BYTES // (4 * sequences * numbers * H)))


def _scan_back(
    kind: str, variant: Variant, given: dict[str, mx.array], dy: list[mx.array], carry: list[mx.array], lengths: mx.array
) -> tuple[Gradients, list[mx.array]]:
    """The backward scan over a block of steps: d (D, T, B, blocks, H), and the gradients of the states before it."""
    D, T, B, _ = dy[0].shape
    given = given | {f"d_after{k}": a for k, a in enumerate(dy)} | {f"carry{k}": a for k, a in enumerate(carry)} | {"lengths": lengths}
    blocks, number = {size: forms for size, forms in plan_of(variant.spec).blocks.items() if forms}, variant.scan(True).number
    shapes = [(D, T, B, len(forms), number(size)) for size, forms in blocks.items()] + [a.shape for a in carry]
    made = _launch(kind, variant, given, (D, T, B), shapes, True)
    return dict(zip(blocks, made, strict=False)), made[len(blocks) :]


def _valid(arrays: Tree, arguments: list[mx.array], lengths: mx.array, steps: int) -> list[mx.array]:
    """Arguments (D, T * B, H) with zeros past each length, where they may be infinite."""
    if "lengths" not in arrays:
        return arguments
    valid = (mx.arange(steps)[:, None] < lengths).reshape(-1, 1)
    return [mx.where(valid, a, 0) for a in arguments]


def _gradients(definition: Definition, arrays: Tree, arguments: list[mx.array], d: Gradients) -> Tree:
    """All gradients of a block of steps, but for the states', from those of its blocks (D, T, B, blocks, H)."""
    D, T, B, _ = arrays["x"].shape
    plan, flat = plan_of(definition), {size: a.reshape(D, T * B, *a.shape[3:]) for size, a in d.items()}

    def of(kind: str, count: int, size: Size = UNITS) -> mx.array:
        places = plan.places(kind, count)
        in_order = places == list(range(places[0], places[0] + count))
        return flat[size][:, :, places[0] : places[0] + count] if in_order else mx.take(flat[size], mx.array(places), axis=2)

    of_x = of("x", len(definition.x)).reshape(D, T * B, -1)
    x = arrays["x"].reshape(D, T * B, -1)
    result: Tree = {"x": (of_x @ arrays["w_x"]).reshape(D, T, B, -1), "w_x": of_x.swapaxes(1, 2) @ x, "b": of_x.sum(axis=1)}
    weights: Tree = {}
    for c, call in enumerate(definition.calls):
        of_call = of(f"call {c}", len(call.results), size_of(call.results[0])).reshape(D, T * B, -1)
        product = of_call.swapaxes(1, 2) @ arguments[plan.argument_of(call)]
        weights[call.name] = weights[call.name] + product if call.name in weights else product
    result["weights"] = weights
    if definition.parameters:
        sums = of("parameter", len(definition.parameters)).sum(axis=1)
        parameters = {name: sums[:, k] for k, name in enumerate(definition.parameters)}
    else:
        parameters = {}
    shared = definition.shared
    result["parameters"] = {name: a.sum(axis=1, keepdims=True) if name in shared else a for name, a in parameters.items()}
    if definition.is_timed:
        result["dt"] = of("dt", 1).sum(axis=(2, 3)).reshape(D, T, B)
    return result


def _together(parts: list[Tree]) -> Tree:
    """The gradients of blocks of steps as those of all steps."""

    def join(name: str, values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: join(key, [value[key] for value in values]) for key in values[0]}
        return mx.concatenate(values, axis=1) if name in ("x", "dt") else sum(values)

    return {name: join(name, [part[name] for part in parts]) for name in parts[0]}


def _packed(variant: Variant, arrays: Tree, backward: bool) -> mx.array:
    """Each direction's weights, one product after the other."""
    plan, scan = plan_of(variant.spec), variant.scan(backward)
    if backward:
        weights = [arrays["weights"][name].swapaxes(1, 2) for name in variant.spec.h_products]
    else:
        rows = [(part.name, part.first, part.first + part.blocks, scan.number(part.results)) for part in plan.parts]
        weights = [arrays["weights"][name][:, first * H : last * H] for name, first, last, H in rows]
    D = weights[0].shape[0]
    return mx.concatenate([pack(weight[k], shape) for k in range(D) for weight, shape in zip(weights, scan.shapes, strict=True)])


def _launch(
    kind: str,
    variant: Variant,
    given: dict[str, mx.array],
    size: tuple[int, int, int],
    shapes: Sequence[tuple[int, ...]],
    backward: bool,
) -> list[mx.array]:
    text = (backward_kernel if backward else forward_kernel)(variant.spec)
    inputs, (D, T, B) = [given[name] for name in text.inputs[:-1]], size
    tile, template, work = variant.scan(backward).tile, variant.template(backward), variant.work(backward)
    return launch(kind, scan_launch(text, inputs, template, shapes, tile, T, B, dims, work, D, backward))

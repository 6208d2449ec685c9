"""A cell's scan step by step, where one launch for all steps does not pay: matrix products with small kernels between them."""

from typing import Any

import mlx.core as mx

from ...kernels.loader import SMALLEST
from ...step.definition import Definition
from .by_step_plan import blocks_at, calls_at
from .kernel_layout import numbers_of
from .kernel_plan import Size, plan_of
from .ops import project_inputs
from .pointwise_text import back_kernel
from .stages import Rows, given_of, run_stages, transposed

Tree = dict[str, Any]
Gradients = dict[Size, mx.array]  # of the blocks of each size, see kernel_plan.py
Kept = dict[tuple[Size, int], list[mx.array]]  # what the kernels of a level wrote of the blocks of a size, last step first


def forward_by_step(kind: str, definition: Definition, arrays: Tree) -> list[mx.array]:
    """The states (D, T, B, H)."""
    D, T, B, _ = arrays["x"].shape
    state = [arrays["initial"][name] for name in definition.states]
    numbers, weights = numbers_of(definition, arrays), transposed(arrays)
    always, steps = given_of(definition, arrays, project_inputs(arrays)), []
    for t in range(T):
        given = always | {f"before{k}": a for k, a in enumerate(state)}
        state = run_stages(definition, Rows(kind, D, B, numbers, (T, t)), given, weights).of(definition.after)
        steps.append(state)
    outputs = [mx.stack(list(kept), axis=1) for kept in zip(*steps, strict=True)]
    if "lengths" not in arrays:
        return outputs
    valid = (mx.arange(T)[:, None] < arrays["lengths"])[..., None]
    return [mx.where(valid, a, 0) for a in outputs]


def back_by_step(
    kind: str,
    definition: Definition,
    arrays: Tree,
    coefficients: dict[str, mx.array],
    dy: list[mx.array],
    carry: list[mx.array],
    lengths: mx.array,
) -> tuple[Gradients, list[mx.array]]:
    """A block of steps backward; takes and returns what the scan kernel does: d (D, T, B, blocks, H), and the states' gradients.

    These are the gradients of the states between two steps without dy, which each kernel of the step before adds to what it reads.
    """
    D, T, B, _ = dy[0].shape
    plan, numbers, states = plan_of(definition), numbers_of(definition, arrays), range(len(carry))
    kept: Kept = {(size, level): [] for size in plan.sizes for level in range(plan.depth_back + 1)}
    # contiguous and of enough elements: else each step's launch would copy them
    given = {f"d_after{k}": mx.contiguous(a) for k, a in enumerate(dy)} | {"lengths": mx.pad(lengths, (0, SMALLEST))} | coefficients
    given |= {f"returned{c}": mx.zeros((D, B, numbers[plan.variable_size(("call", c))])) for c in definition.pull.results}
    given |= {f"{name}{k}": a for name in ("arriving", "passed") for k, a in enumerate(carry)}
    for t in reversed(range(T + 1)):  # the kernel between step t and the one before, then what else that one has
        given |= _level(definition, Rows(kind, D, B, numbers, (T, t)), 0, given, arrays["weights"], kept)
        given |= {f"arriving{k}": given[f"passed{k}"] for k in states}
        for level in range(1, plan.depth_back if t else 0):
            given |= _level(definition, Rows(kind, D, B, numbers, (T, t - 1)), level, given, arrays["weights"], kept)
    d = {size: _blocks(definition, size, kept, T) for size, forms in plan.blocks.items() if forms}
    return d, [given[f"passed{k}"] for k in states]


def _level(definition: Definition, rows: Rows, level: int, given: dict[str, mx.array], weights: Tree, kept: Kept) -> dict[str, mx.array]:
    """What a level's kernels pass on to the states before, and what its products send back."""
    depth, found = plan_of(definition).depth_back, dict[str, mx.array]()
    for size in plan_of(definition).sizes:
        text, H = back_kernel(definition, level, size), rows.numbers[size]
        if text is None:
            continue
        counts = {"d": len(blocks_at(definition, level, size)), "d_last": len(blocks_at(definition, depth, size))}
        shapes: list[tuple[int, ...]] = [(counts[name],) if name in counts else () for name in text.outputs]
        made = dict(zip(text.outputs, rows.launch(text, given, shapes, [], size), strict=True))
        found |= {name.replace("before", "passed"): a for name, a in made.items() if name not in counts}
        for name, of_level in (("d", level), ("d_last", depth)):
            kept[size, of_level] += [made[name]] if name in made else []
        first = 0
        for c in calls_at(definition, level, size):
            last = first + len(definition.calls[c].results) * H
            found[f"returned{c}"] = made["d"].reshape(rows.D, rows.R, -1)[..., first:last] @ weights[definition.calls[c].name]
            first = last
    return found


def _blocks(definition: Definition, size: Size, kept: Kept, T: int) -> mx.array:
    """All blocks of a size, (D, T, B, blocks, H)."""
    plan, arrays, sources = plan_of(definition), dict[int, mx.array](), dict[int, tuple[int, int]]()
    for level in range(plan.depth_back + 1):
        numbers = blocks_at(definition, level, size)
        if numbers:  # the first launch behind a step's products was of no step, and so was the last one before them
            steps = kept[size, level][1:] if level == plan.depth_back else kept[size, level][:T]
            arrays[level] = mx.stack(steps[::-1], axis=1)
            sources |= {n: (level, i) for i, n in enumerate(numbers)}
            if numbers == tuple(range(len(plan.blocks[size]))):
                return arrays[level]
    return mx.concatenate([arrays[level][:, :, :, i : i + 1] for _, (level, i) in sorted(sources.items())], axis=3)

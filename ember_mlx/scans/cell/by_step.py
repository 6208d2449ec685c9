"""A cell's scan step by step, where one launch for all steps does not pay: matrix products with small kernels between them."""

from typing import Any

import mlx.core as mx

from ...kernels.loader import SMALLEST
from ...step.definition import Definition
from .kernel_layout import numbers_of
from .kernel_plan import Size, plan_of
from .ops import project_inputs
from .pointwise_text import back_kernel, level_results, next_kernel
from .stages import Rows, given_of, run_stages, transposed

Tree = dict[str, Any]
Gradients = dict[Size, mx.array]  # of the blocks of each size, see kernel_plan.py


def forward_by_step(kind: str, definition: Definition, arrays: Tree) -> list[mx.array]:
    """The states (D, T, B, H)."""
    D, T, B, _ = arrays["x"].shape
    state = [arrays["initial"][name] for name in definition.states]
    numbers, weights, plan = numbers_of(definition, arrays), transposed(arrays), plan_of(definition)
    always, steps = given_of(definition, arrays, project_inputs(arrays)), []
    for t in range(T):
        rows = Rows(kind, D, B, numbers, (T, t))
        given = always | {f"before{k}": a for k, a in enumerate(state)}
        stages = run_stages(definition, rows, given, weights)
        given |= {f"results{c}": a for c, a in stages.results.items()}
        after: dict[int, mx.array] = {}
        for size in plan.sizes:
            of_size = plan.states(size)
            if of_size:
                made = rows.launch(next_kernel(definition, size), given, [()] * len(of_size), [], size)
                after |= dict(zip(of_size, made, strict=True))
        state = [after[k] for k in range(len(state))]
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
    """A block of steps backward; takes and returns what the scan kernel does: d (D, T, B, blocks, H), and the states' gradients."""
    D, T, B, _ = dy[0].shape
    plan, numbers = plan_of(definition), numbers_of(definition, arrays)
    # contiguous and of enough elements: else each step's launch would copy them
    always = {f"d_after{k}": mx.contiguous(a) for k, a in enumerate(dy)} | {"lengths": mx.pad(lengths, (0, SMALLEST))}
    always |= coefficients
    steps: list[Gradients] = []
    for t in reversed(range(T)):
        rows = Rows(kind, D, B, numbers, (T, t))
        given = always | {f"arriving{k}": a for k, a in enumerate(carry)}
        for level in range(plan.depth_back):
            given |= _returned(definition, rows, level, given, arrays["weights"])
        d, carry = _previous(definition, rows, given)
        steps.append(d)
    return {size: mx.stack([d[size] for d in reversed(steps)], axis=1) for size in steps[0]}, carry


def _returned(definition: Definition, rows: Rows, level: int, given: dict[str, mx.array], weights: Tree) -> dict[str, mx.array]:
    """What the products of a level send back."""
    found = {}
    for size in plan_of(definition).sizes:
        text, numbers = back_kernel(definition, level, size), level_results(definition, level, size)
        if text is not None:
            made = rows.launch(text, given, [(len(definition.calls[c].results),) for c in numbers], [], size)
            for c, d in zip(numbers, made, strict=True):
                found[f"returned{c}"] = d.reshape(rows.D, rows.R, -1) @ weights[definition.calls[c].name]
    return found


def _previous(definition: Definition, rows: Rows, given: dict[str, mx.array]) -> tuple[Gradients, list[mx.array]]:
    """The gradients of a step's blocks, and of the states before it."""
    plan, d, before = plan_of(definition), Gradients(), dict[int, mx.array]()
    for size, forms in plan.blocks.items():
        text, states = back_kernel(definition, plan.depth_back, size), plan.states(size)
        if text is None:
            continue
        made = rows.launch(text, given, [(len(forms),)] * bool(forms) + [()] * len(states), [], size)
        d |= {size: made.pop(0)} if forms else {}
        before |= dict(zip(states, made, strict=True))
    return d, [before[k] for k in sorted(before)]

"""A cell's scan step by step, where one launch for all steps does not pay: matrix products with small kernels between them."""

from typing import Any

import mlx.core as mx

from ...kernels.loader import SMALLEST
from ...step.definition import Definition
from .kernel_plan import plan_of
from .ops import project_inputs
from .pointwise_text import back_kernel, next_kernel
from .stages import Rows, given_of, run_stages, transposed

Tree = dict[str, Any]


def forward_by_step(kind: str, definition: Definition, arrays: Tree) -> list[mx.array]:
    """The states (D, T, B, H)."""
    D, T, B, _ = arrays["x"].shape
    state = [arrays["initial"][name] for name in definition.states]
    H, weights = state[0].shape[2], transposed(arrays)
    always, text, steps = given_of(definition, arrays, project_inputs(arrays)), next_kernel(definition), []
    for t in range(T):
        rows = Rows(kind, D, B, H, (T, t))
        given = always | {f"before{k}": a for k, a in enumerate(state)}
        stages = run_stages(definition, rows, given, weights)
        given |= {f"results{c}": a for c, a in stages.results.items()}
        state = rows.launch(text, given, [(H,)] * len(state), [])
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
    coefficients: mx.array | None,
    dy: list[mx.array],
    carry: list[mx.array],
    lengths: mx.array,
) -> tuple[mx.array, list[mx.array]]:
    """A block of steps backward; takes and returns what the scan kernel does: d (D, T, B, blocks, H), and the states' gradients."""
    D, T, B, H = dy[0].shape
    plan, calls, count = plan_of(definition), definition.calls, len(dy)
    texts = [back_kernel(definition, level) for level in range(plan.depth_back + 1)]
    # contiguous and of enough elements: else each step's launch would copy them
    always = {f"d_after{k}": mx.contiguous(a) for k, a in enumerate(dy)} | {"lengths": mx.pad(lengths, (0, SMALLEST))}
    always |= {} if coefficients is None else {"coefficients": coefficients}
    steps = []
    for t in reversed(range(T)):
        rows = Rows(kind, D, B, H, (T, t))
        given = always | {f"arriving{k}": a for k, a in enumerate(carry)}
        for level, text in enumerate(texts[:-1]):
            numbers = plan.level_calls(level)
            made = rows.launch(text, given, [(len(calls[c].results), H) for c in numbers], [])
            products = (d.reshape(D, B, -1) @ arrays["weights"][calls[c].name] for c, d in zip(numbers, made, strict=True))
            given |= {f"returned{c}": a for c, a in zip(numbers, products, strict=True)}
        d, *carry = rows.launch(texts[-1], given, [(len(plan.blocks), H)] + [(H,)] * count, [])
        steps.append(d)
    return mx.stack(steps[::-1], axis=1), carry

"""The MLX-ops form of a cell's scan: slower than the others, and differentiable to any order inside any transformation.

The arrays are those of the NumPy form (reference.py); MLX differentiates it.
"""

from functools import lru_cache
from typing import Any

import mlx.core as mx

from ...step.definition import Call, Definition
from ...step.evaluation import evaluate
from ...step.numpy_code import gates_of

Tree = dict[str, Any]


def cell_ops(definition: Definition, arrays: Tree) -> list[mx.array]:
    """Run a cell over T steps: for each state (D, T, B, H), zero past each length."""
    state, lengths, T = [arrays["initial"][name] for name in definition.states], arrays.get("lengths"), arrays["x"].shape[1]
    x = [part.squeeze(1) for part in mx.split(project_inputs(arrays), T, axis=1)]  # a[t]'s gradient, a scatter, has no jvp
    dt = [part.squeeze(1)[..., None] for part in mx.split(arrays["dt"], T, axis=1)] if definition.is_timed else [None] * T
    constant = parameter_values(definition, arrays)
    steps = []
    for t in range(T):
        after = step(definition, arrays, constant, x[t], dt[t], state)
        if lengths is None:
            state = after
            steps.append(state)
            continue
        valid = (t < lengths)[:, None]
        state = [mx.where(valid, new, old) for new, old in zip(after, state, strict=True)]
        steps.append([mx.where(valid, a, 0) for a in state])
    return [mx.stack(list(kept), axis=1) for kept in zip(*steps, strict=True)]


def project_inputs(arrays: Tree) -> mx.array:
    """(D, T, B, I) -> (D, T, B, G H): W_x x + b, one product for all steps."""
    x, w_x, b = arrays["x"], arrays["w_x"], arrays["b"]
    D, T, B, I = x.shape
    return (x.reshape(D, T * B, I) @ w_x.swapaxes(1, 2) + b[:, None]).reshape(D, T, B, -1)


def parameter_values(definition: Definition, arrays: Tree) -> dict[int, mx.array]:
    """Node index -> a parameter, (D, 1, H) or (D, 1, 1)."""
    return {node.index: arrays["parameters"][name][:, None] for name, node in definition.parameters.items()}


def step(
    definition: Definition, arrays: Tree, constant: dict[int, mx.array], x: mx.array, dt: mx.array | None, state: list[mx.array]
) -> list[mx.array]:
    """The states (D, B, H) after a step, from W_x x + b (D, B, G H) and dt (D, B, 1)."""
    sums = _sums(definition)
    values: dict[int, Any] = constant | dict(zip((n.index for n in definition.before), state, strict=True))
    if definition.dt is not None:
        values |= {definition.dt.index: dt}
    if not sums:
        values |= dict(zip((n.index for n in definition.x), mx.split(x, len(definition.x), axis=2), strict=True))

    def product(call: Call, value: mx.array) -> dict[int, mx.array]:
        q = value @ arrays["weights"][call.name].swapaxes(1, 2)
        own = sums.get(call.name)
        nodes, q = ([n.index for n in call.results], q) if own is None else (own, x + q)
        return dict(zip(nodes, mx.split(q, len(nodes), axis=2) if len(nodes) > 1 else [q], strict=True))

    return evaluate(definition, definition.after, values, product)


@lru_cache(maxsize=256)
def _sums(definition: Definition) -> dict[str, list[int]]:
    """The product whose results are all added to the products with x, in their order: its name, and the nodes of the sums.

    They are added before they are split.
    """
    for c, gates in gates_of(definition, []).items():
        call, by_block = definition.calls[c], sorted(gates, key=lambda g: g.block)
        if [g.x for g in by_block] == list(range(len(definition.x))) and len(gates) == len(call.results):
            return {call.name: [g.total.index for g in by_block]}
    return {}

"""Long sequences in parts, of which only the states between them are kept: each part's forward is computed again in its backward."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from .arguments import Steps

Tree = dict[str, Any]
Run = Callable[[nn.Module, Steps, list[mx.array]], tuple[mx.array, list[mx.array]]]


def run_in_parts(
    layer: nn.Module,
    run: Run,
    steps: Steps,
    state: list[mx.array],
    size: int,
    sequences: bool,
    key: mx.array | None = None,
    draws: bool = False,
) -> tuple[mx.array, list[mx.array]]:
    """Run a layer over its steps in parts, each of which keeps nothing but what it takes.

    Args:
        layer: whose parameters are differentiated.
        run: (a layer like it, some steps, the state before them) -> y of every step or of the last valid one, and the state after.
        steps: all of them.
        state: before them.
        size: steps of a part.
        sequences: whether y holds every step.
        key: of random numbers, split among the parts.
        draws: whether there shall be one where the caller has none.

    Returns:
        y (T, B, O), or (B, O) of each sequence's last valid step, and the state after that.
    """
    T, outputs = steps.x.shape[0], []
    starts = range(0, T, size)
    if key is None and draws:  # the same numbers in the backward as in the forward
        key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
    keys = None if key is None else mx.random.split(key, len(starts))
    y: mx.array | None = None
    for k, start in enumerate(starts):
        given = _part(steps, start, size) | {"parameters": layer.parameters(), "state": state}
        given |= {} if keys is None else {"key": keys[k]}

        @mx.checkpoint
        def part(given: Tree) -> tuple[mx.array, list[mx.array]]:
            given = tree_map(lambda a: a if mx.issubdtype(a.dtype, mx.floating) else mx.stop_gradient(a), given)
            here = steps._replace(x=given["x"], dt=given["dt"], lengths=given.get("lengths"), key=given.get("key"))
            return run(with_parameters(layer, given["parameters"]), here, given["state"])

        y_part, after = part(given)
        if steps.lengths is not None:
            begun = (steps.lengths > start)[:, None]
            after = [mx.where(begun, new, old) for new, old in zip(after, state, strict=True)]
            if not sequences and y is not None:
                y_part = mx.where(begun, y_part, y)
        y, state = y_part, after
        outputs += [y] if sequences else []
    return mx.concatenate(outputs) if sequences else y, state  # type: ignore[return-value]


def _part(steps: Steps, start: int, size: int) -> Tree:
    """The steps of a part."""
    part = slice(start, start + size)
    x = steps.x[part]
    given = {"x": x, "dt": steps.dt[part]}
    return given if steps.lengths is None else given | {"lengths": mx.clip(steps.lengths - start, 0, x.shape[0])}


def with_parameters(module: Any, parameters: Any) -> Any:
    """A module that shares everything with another one but the arrays, which are these: nobody else sees them."""
    if parameters is None:
        return module
    if isinstance(module, nn.Module):
        new: Any = dict.__new__(type(module))
        new.__dict__.update(module.__dict__)
        for name, value in module.items():
            dict.__setitem__(new, name, with_parameters(value, parameters.get(name)))
        return new
    if isinstance(module, dict):
        return {name: with_parameters(value, parameters.get(name)) for name, value in module.items()}
    if isinstance(module, (list, tuple)):
        return type(module)(with_parameters(value, one) for value, one in zip(module, parameters, strict=True))
    return parameters

"""Gradient checkpointing over time: only the states between segments are kept, and the backward pass recomputes each segment."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..scans.dispatch import widened
from ..scans.recompute import recomputed
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
    """Run a layer over its steps in segments, each of which keeps only its inputs for the backward pass.

    Args:
        layer: the layer whose parameters are differentiated.
        run: (layer, steps, state before them) -> y of every step or of the last valid one, and the state after them.
        steps: all time steps.
        state: the state before them.
        size: time steps per segment.
        sequences: whether y holds every step.
        key: PRNG key, split among the segments.
        draws: whether to make a key if the caller gave none.

    Returns:
        y (T, B, O), or (B, O) at each sequence's last valid step, and the state after it.
    """
    starts, lengths = range(0, steps.x.shape[0], size), steps.lengths
    if key is None and draws:  # the recomputation in the backward pass must draw the same numbers
        key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
    names, given = zip(*tree_flatten(layer.parameters()), strict=True)
    parameters = widened(given)  # gradients are summed over segments in at least float32
    parts: Tree = {name: mx.split(a, list(starts)[1:]) for name, a in (("x", steps.x), ("dt", steps.dt))}
    parts |= {} if lengths is None else {"lengths": [mx.clip(lengths - t, 0, len(x)) for t, x in zip(starts, parts["x"], strict=True)]}
    parts |= {} if key is None else {"key": list(mx.random.split(key, len(starts)))}

    def run_part(*leaves: mx.array) -> list[mx.array]:
        """One segment: from its steps' arrays, the states and the parameters to y and the states."""
        arrays = dict(zip(parts, leaves, strict=False))
        before, own = leaves[len(arrays) : -len(names)], [a.astype(b.dtype) for a, b in zip(leaves[-len(names) :], given, strict=True)]
        here = steps._replace(x=arrays["x"], dt=arrays["dt"], lengths=arrays.get("lengths"), key=arrays.get("key"))
        y, after = run(with_parameters(layer, tree_unflatten(list(zip(names, own, strict=True)))), here, list(before))
        return [y, *after]

    part = recomputed(run_part, carried=len(names))
    outputs: list[mx.array] = []
    for start, *own in zip(starts, *parts.values(), strict=True):
        y, *after = part(*own, *state, *parameters)
        parameters, after = after[-len(names) :], after[: -len(names)]
        if lengths is not None:
            begun = (lengths > start)[:, None]
            after = [mx.where(begun, new, old) for new, old in zip(after, state, strict=True)]
            y = y if sequences or not outputs else mx.where(begun, y, outputs[-1])
        state, outputs = after, [*outputs, y] if sequences else [y]
    return mx.concatenate(outputs) if sequences else outputs[-1], state


def with_parameters(module: Any, parameters: Any) -> Any:
    """A shallow copy of a module with these arrays as parameters; the original keeps its own."""
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

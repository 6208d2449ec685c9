"""One recurrence in several forms, with one gradient.

`scan` runs a recurrence's NumPy form through mx.custom_function where its arrays can be evaluated, and its ops form where they
cannot (inside mx.compile, vmap and export). Derivatives that the NumPy form does not have (jvp, second and higher ones) come from
the ops form.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..backend import choose_backend

Tree = dict[str, Any]


class Recurrence(NamedTuple):
    """The forms of one recurrence. Each takes its static specification and a tree of arrays.

    Args:
        name: how messages call it.
        forward: NumPy: (spec, arrays) -> tuple of outputs.
        backward: NumPy: (spec, arrays, outputs, cotangents) -> gradients, a tree like the arrays; what it lacks has none.
        ops: MLX: (spec, arrays) -> list of outputs.
        variants: names of small problems of every kind.
        problem: (variant, T, B, H, lengths=, seed=, dtype=) -> (spec, arrays), NumPy arrays of such a problem.
    """

    name: str
    forward: Callable[..., tuple[np.ndarray, ...]]
    backward: Callable[..., Tree]
    ops: Callable[..., list[mx.array]]
    variants: tuple[str, ...]
    problem: Callable[..., tuple[Any, Tree]]


def scan(recurrence: Recurrence, spec: Hashable, arrays: Tree) -> list[mx.array]:
    """Run a recurrence over a tree of arrays in the form that the backend in use names; differentiable."""
    flat = tree_flatten(arrays)
    leaves = [leaf for _, leaf in flat]
    backend = choose_backend(lambda: can_evaluate(leaves), recurrence.name)
    if backend == "ops":
        return recurrence.ops(spec, arrays)
    return _numpy_function(recurrence, spec, tuple(path for path, _ in flat))(*leaves)


def can_evaluate(arrays: list[mx.array]) -> bool:
    """Whether the arrays' values can be had now; False inside mx.compile, mx.vmap and export."""
    try:
        mx.eval(*arrays)
    except (ValueError, RuntimeError) as error:
        if "function transformations" not in str(error):
            raise
        return False
    return True


def as_numpy(array: mx.array) -> np.ndarray:
    """The array's memory as a NumPy array, without a copy; read-only, since MLX arrays never change."""
    view = np.asarray(array)
    view.flags.writeable = False
    return view


def as_mlx(array: np.ndarray) -> mx.array:
    """A copy in the same dtype; mx.array alone would make float32 of float64."""
    return mx.array(array, mx.float64) if array.dtype == np.float64 else mx.array(array)


@lru_cache(maxsize=256)
def _numpy_function(recurrence: Recurrence, spec: Hashable, paths: tuple[str, ...]) -> Callable[..., list[mx.array]]:
    """The recurrence as a function of its leaves, whose gradient is the NumPy backward."""

    def tree(leaves: Any) -> Tree:
        return tree_unflatten(list(zip(paths, leaves, strict=True)))

    def ops(*leaves: mx.array) -> list[mx.array]:
        return recurrence.ops(spec, tree(leaves))

    def ops_backward(leaves: list[mx.array], cotangents: list[mx.array]) -> list[mx.array]:
        return mx.vjp(ops, leaves, cotangents)[1]

    @mx.custom_function
    def forward(*leaves: mx.array) -> list[mx.array]:
        return [as_mlx(a) for a in recurrence.forward(spec, tree(map(as_numpy, leaves)))]

    @mx.custom_function
    def backward(leaves: list[mx.array], outputs: list[mx.array], cotangents: list[mx.array]) -> list[mx.array]:
        mx.eval(leaves, outputs, cotangents)
        kept, dy = (tuple(map(as_numpy, arrays)) for arrays in (outputs, cotangents))
        gradients = dict(tree_flatten(recurrence.backward(spec, tree(map(as_numpy, leaves)), kept, dy)))
        return [as_mlx(gradients[p]) if p in gradients else mx.zeros_like(leaf) for p, leaf in zip(paths, leaves, strict=True)]

    @forward.vjp
    def forward_vjp(leaves: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        return cast(list[mx.array], backward(list(leaves), list(outputs), list(cotangents)))

    @forward.jvp
    def forward_jvp(leaves: Any, tangents: Any) -> list[mx.array]:
        return _jvp(ops, list(leaves), list(tangents))

    @backward.vjp
    def backward_vjp(primals: Any, cotangents: Any, _: Any) -> Any:
        leaves, outputs, dy = primals
        _, gradients = mx.vjp(lambda *a: ops_backward(list(a[: len(leaves)]), list(a[len(leaves) :])), [*leaves, *dy], list(cotangents))
        return gradients[: len(leaves)], [mx.zeros_like(a) for a in outputs], gradients[len(leaves) :]

    @backward.jvp
    def backward_jvp(primals: Any, tangents: Any) -> list[mx.array]:
        leaves, _, dy = primals
        d_leaves, _, d_dy = tangents
        return _jvp(lambda *a: ops_backward(list(a[: len(leaves)]), list(a[len(leaves) :])), [*leaves, *dy], [*d_leaves, *d_dy])

    return cast(Callable[..., list[mx.array]], forward)


def _jvp(function: Callable[..., list[mx.array]], primals: list[mx.array], tangents: list[mx.array | None]) -> list[mx.array]:
    """mx.jvp where a missing tangent is zero."""
    full = [mx.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    return mx.jvp(function, primals, full)[1]

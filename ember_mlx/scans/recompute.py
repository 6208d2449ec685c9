"""Functions whose gradients recompute the function, so that only its inputs are kept until then.

`mx.checkpoint` does that for graphs. With evaluated arrays, as on the CPU, it keeps every scan: inside mx.grad MLX holds all arrays that
depend on a differentiated one, evaluated or not. So here the function runs on copies that are detached from the graph.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..backend import use_backend
from .dispatch import as_mlx, can_evaluate, jvp_of_given

Function = Callable[..., list[mx.array]]


def recomputed(function: Function, carried: int = 0) -> Function:
    """The same function, for arrays that can be evaluated, which keeps only its inputs for its gradients.

    It must not use other differentiated arrays. It has the function's derivatives of any order; integer arrays have none.

    Args:
        function: arrays -> a list of arrays.
        carried: number of last arguments that are returned unchanged after the outputs. If a function is called repeatedly with the arrays
            that it returned so, a single array accumulates the gradients of all calls, instead of one array per call.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx.scans.recompute import recomputed
        >>> square = recomputed(lambda a: [a * a])
        >>> mx.grad(lambda a: square(a)[0])(mx.array(3.0)).item()
        6.0
    """

    def of_reals(leaves: Sequence[mx.array]) -> tuple[list[int], Function]:
        """Which leaves are real, and the real outputs as a function of these."""
        reals = [k for k, a in enumerate(leaves) if _is_real(a)]

        constants = [a if _is_real(a) else _copy(a) for a in leaves]  # MLX would try to differentiate by integers too

        def of(*values: mx.array) -> list[mx.array]:
            full = list(constants)
            for k, value in zip(reals, values, strict=True):
                full[k] = value
            return [a for a in (*function(*full), *full[len(full) - carried :]) if _is_real(a)]

        return reals, of

    def pull(leaves: Sequence[mx.array], cotangents: Sequence[mx.array]) -> list[mx.array]:
        """The gradients of the real leaves, from those of the real outputs."""
        reals, of = of_reals(leaves)
        return mx.vjp(of, [leaves[k] for k in reals], list(cotangents))[1]

    @mx.custom_function
    def forward(*leaves: mx.array) -> list[mx.array]:
        return [*_alone(lambda given: function(*given), leaves), *leaves[len(leaves) - carried :]]

    @mx.custom_function
    def backward(leaves: list[mx.array], cotangents: list[mx.array]) -> list[mx.array]:
        count = len(leaves)
        return _alone(lambda given: pull(given[:count], given[count:]), [*leaves, *cotangents])

    @forward.vjp
    def forward_vjp(leaves: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        leaves = _listed(leaves)
        given = [d for d, a in zip(_listed(cotangents), _listed(outputs), strict=True) if _is_real(a)]
        gradients = iter(_listed(backward(leaves, given)))
        return [next(gradients) if _is_real(a) else mx.zeros_like(a) for a in leaves]

    @forward.jvp
    def forward_jvp(leaves: Any, tangents: Any) -> list[mx.array]:
        leaves, tangents = _listed(leaves), _listed(tangents)
        reals, of = of_reals(leaves)
        with use_backend("ops"):  # other backends evaluate the leaves, which would detach them from the graph here
            pushed = iter(jvp_of_given(of, [leaves[k] for k in reals], [tangents[k] for k in reals]))
            outputs = [*function(*map(mx.stop_gradient, leaves)), *leaves[len(leaves) - carried :]]
        return [next(pushed) if _is_real(a) else mx.zeros_like(a) for a in outputs]

    @backward.vjp
    def backward_vjp(primals: Any, cotangents: Any, _: Any) -> Any:
        leaves, dy = primals
        twice = recomputed(lambda *a: pull(a[: len(leaves)], a[len(leaves) :]))
        _, gradients = mx.vjp(lambda *a: _listed(twice(*a)), [*leaves, *dy], _listed(cotangents))
        return gradients[: len(leaves)], gradients[len(leaves) :]

    @backward.jvp
    def backward_jvp(primals: Any, tangents: Any) -> list[mx.array]:
        leaves, dy = primals
        with use_backend("ops"):
            return jvp_of_given(lambda *a: pull(a[: len(leaves)], a[len(leaves) :]), [*leaves, *dy], [*tangents[0], *tangents[1]])

    return cast(Function, forward)


def _alone(function: Callable[[Sequence[mx.array]], list[mx.array]], arrays: Sequence[mx.array]) -> list[mx.array]:
    """The function's outputs for arrays detached from the graph, evaluated if possible."""
    if not can_evaluate(list(arrays)):
        return function(arrays)
    outputs = function([_copy(a) for a in arrays])
    mx.eval(outputs)
    return [_copy(a) for a in outputs]  # inside mx.grad even evaluated arrays hold references to their inputs


def _copy(a: mx.array) -> mx.array:
    """A copy of the array, detached from the graph."""
    if a.dtype == mx.bfloat16:
        return _copy(a.view(mx.uint16)).view(mx.bfloat16)
    return as_mlx(np.array(a, order="C"))  # MLX does not accept negative strides


def _listed(arrays: Any) -> list[Any]:
    """The arguments or results of a custom function as a list; MLX replaces a list of one array by that array."""
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def _is_real(a: mx.array) -> bool:
    return bool(mx.issubdtype(a.dtype, mx.floating))

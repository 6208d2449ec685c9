"""Functions whose gradients compute the function again, so that nothing but what it took is kept until then.

`mx.checkpoint` does that for graphs. Where arrays have values, as on the CPU, it keeps every scan: inside mx.grad MLX holds all arrays that
depend on a differentiated one, computed or not. So here the function runs on copies that depend on nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..backend import use_backend
from .dispatch import as_mlx, can_evaluate, jvp_of_given

Function = Callable[..., list[mx.array]]


def recomputed(function: Function, carried: int = 0) -> Function:
    """The same function of arrays that have values, keeping nothing for its gradients but the arrays.

    It must not use other arrays that are differentiated. Its derivatives, of any order, are those of the function; integers have none.

    Args:
        function: arrays -> a list of arrays.
        carried: so many of its last arguments follow the outputs as they are. Where a function is called again and again, with what it
            carried, one array gathers the gradients of all calls, in place of an array for each.

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

        constants = [a if _is_real(a) else _copy(a) for a in leaves]  # MLX differentiates by integers too, where it can not

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
        with use_backend("ops"):  # the other forms compute the leaves, which here would part them from what they depend on
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
    """The function's outputs for arrays without what they depend on, computed, where they can be."""
    if not can_evaluate(list(arrays)):
        return function(arrays)
    outputs = function([_copy(a) for a in arrays])
    mx.eval(outputs)
    return [_copy(a) for a in outputs]  # inside mx.grad even computed arrays hold what they were computed from


def _copy(a: mx.array) -> mx.array:
    """The array's numbers alone."""
    if a.dtype == mx.bfloat16:
        return _copy(a.view(mx.uint16)).view(mx.bfloat16)
    return as_mlx(np.array(a, order="C"))  # MLX takes no negative strides


def _listed(arrays: Any) -> list[Any]:
    """What a custom function takes and gives: MLX makes a list of one array that array."""
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def _is_real(a: mx.array) -> bool:
    return bool(mx.issubdtype(a.dtype, mx.floating))

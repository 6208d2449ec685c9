"""A kernel is trusted after it has run once on this device and agreed with the NumPy form."""

import warnings
from collections.abc import Hashable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from .loader import maker_of

# relative, of outputs and gradients, by the coarsest dtype; a wrong kernel is off by far more
ALLOWED = {mx.float32: (1e-4, 1e-3), mx.float16: (1e-2, 5e-2), mx.bfloat16: (5e-2, 2e-1)}
_verdicts: dict[Hashable, str | None] = {}


def complaint(kind: str, recurrence: Any, spec: Hashable, arrays: Any) -> str | None:
    """None if the kernel variant for these arrays works on this device, else what is wrong with it; it is tried once."""
    key = (kind, maker_of(kind), recurrence.name, recurrence.fused.key(kind, spec, arrays))
    if key not in _verdicts:
        _verdicts[key] = _tried(kind, recurrence, spec, arrays)
        if _verdicts[key] is not None:
            message = f"[{recurrence.name}] the {kind} kernel does not work here, slower MLX operations take its place: {_verdicts[key]}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
    return _verdicts[key]


def verdicts() -> dict[Hashable, str | None]:
    """What is known so far: variant -> complaint, or None for a working one."""
    return dict(_verdicts)


def check(kind: str, recurrence: Any, spec: Hashable, arrays: Any, like: Any = None) -> tuple[float, float]:
    """Run a problem forward and backward as kernels and as float64 NumPy.

    Args:
        kind: "metal" or "cuda".
        recurrence: whose kernels.
        spec: its static part.
        arrays: a tree of NumPy arrays.
        like: a tree of MLX arrays whose dtypes the kernels get; float32 if None.

    Returns:
        The relative errors of outputs and gradients.
    """
    dtypes = {} if like is None else {path: a.dtype for path, a in tree_flatten(like)}
    given = {path: _on_device(a, dtypes.get(path, mx.float32)) for path, a in tree_flatten(arrays)}
    exact = tree_unflatten([(path, _as_float64(a)) for path, a in given.items()])
    device_arrays = tree_unflatten(list(given.items()))
    expected = recurrence.forward(spec, exact)
    dy = tuple(np.random.Generator(np.random.PCG64(7)).standard_normal(a.shape) for a in expected)
    expected_gradients = dict(tree_flatten(recurrence.backward(spec, exact, expected, dy)))
    outputs = recurrence.fused.forward(kind, spec, device_arrays)
    cotangents = [mx.array(a.astype(np.float32)) for a in dy]
    gradients = dict(tree_flatten(recurrence.fused.backward(kind, spec, device_arrays, outputs, cotangents)))
    mx.eval(outputs, gradients)
    forward = worst(_error(a, b) for a, b in zip(outputs, expected, strict=True))
    return forward, worst(_error(gradients[path], a) for path, a in expected_gradients.items())


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN where any of them is, which Python's max may pass over."""
    return float(np.max(list(errors)))


def in_half(arrays: Any, dtype: mx.Dtype) -> Any:
    """A problem's arrays with x and the weights in half precision, as a layer in that precision gives them to its scan.

    Weights are the leaves of parts of the tree; times, states and dropout factors stay float32.
    """

    def cast(path: str, a: np.ndarray) -> mx.array:
        half = a.dtype.kind == "f" and (path == "x" or "." in path) and not path.startswith("dropout")
        return mx.array(a.astype(np.float32)).astype(dtype) if half else mx.array(a)

    return tree_unflatten([(path, cast(path, a)) for path, a in tree_flatten(arrays)])


def works(errors: tuple[float, float], like: Any = None) -> bool:
    """Whether errors of `check` are those of rounding."""
    dtypes = [mx.float32] if like is None else [a.dtype for _, a in tree_flatten(like) if a.dtype in ALLOWED]
    allowed = max(ALLOWED[dtype] for dtype in dtypes)
    return all(error <= limit for error, limit in zip(errors, allowed, strict=True))


def _on_device(a: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(a.astype(np.float32)).astype(dtype) if a.dtype.kind == "f" else mx.array(a)


def _as_float64(a: mx.array) -> np.ndarray:
    return np.array(a.astype(mx.float32)).astype(np.float64) if mx.issubdtype(a.dtype, mx.floating) else np.array(a)


def _tried(kind: str, recurrence: Any, spec: Hashable, arrays: Any) -> str | None:
    try:
        errors = check(kind, recurrence, spec, recurrence.fused.small_problem(spec, arrays), arrays)
    except (RuntimeError, ValueError) as error:  # what MLX raises when Metal's compiler or the device refuses
        return str(error)
    if not works(errors, arrays):
        return f"it differs from the NumPy form by {errors[0]:.1e} (outputs) and {errors[1]:.1e} (gradients)"
    return None


def _error(got: mx.array, expected: np.ndarray) -> float:
    return float(np.abs(_as_float64(got) - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))

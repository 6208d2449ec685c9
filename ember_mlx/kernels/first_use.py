"""A kernel is trusted after it has run once on this device and agreed with the NumPy form."""

import warnings
from collections.abc import Hashable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from .loader import maker_of

FORWARD_ERROR, GRADIENT_ERROR = 1e-4, 1e-3  # relative; a wrong kernel is off by far more
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


def check(kind: str, recurrence: Any, spec: Hashable, arrays: Any) -> tuple[float, float]:
    """Run a problem forward and backward as kernels and as float64 NumPy; returns the relative errors of outputs and gradients."""
    exact = tree_map(lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a, arrays)
    expected = recurrence.forward(spec, exact)
    dy = tuple(np.random.Generator(np.random.PCG64(7)).standard_normal(a.shape) for a in expected)
    expected_gradients = dict(tree_flatten(recurrence.backward(spec, exact, expected, dy)))
    device_arrays = tree_map(lambda a: mx.array(a.astype(np.float32) if a.dtype.kind == "f" else a), arrays)
    outputs = recurrence.fused.forward(kind, spec, device_arrays)
    gradients = dict(
        tree_flatten(recurrence.fused.backward(kind, spec, device_arrays, outputs, [mx.array(a.astype(np.float32)) for a in dy]))
    )
    mx.eval(outputs, gradients)
    forward = max(_error(a, b) for a, b in zip(outputs, expected, strict=True))
    return forward, max(_error(gradients[path], a) for path, a in expected_gradients.items())


def _tried(kind: str, recurrence: Any, spec: Hashable, arrays: Any) -> str | None:
    try:
        forward, backward = check(kind, recurrence, spec, recurrence.fused.small_problem(spec, arrays))
    except (RuntimeError, ValueError) as error:  # what MLX raises when Metal's compiler or the device refuses
        return str(error)
    if not (forward <= FORWARD_ERROR and backward <= GRADIENT_ERROR):
        return f"it differs from the NumPy form by {forward:.1e} (outputs) and {backward:.1e} (gradients)"
    return None


def _error(got: mx.array, expected: np.ndarray) -> float:
    return float(np.abs(np.array(got, np.float64) - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))

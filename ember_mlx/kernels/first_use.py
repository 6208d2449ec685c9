"""The check before a kernel's first use: it must run on this device and agree with the NumPy form.

The check runs a small problem with the variant and template arguments of the call: three steps of a few sequences of different lengths,
which fill one threadgroup and part of a second. A layer with more than MOST_WEIGHTS weights (an LTC with more than 65,536 synapses), for
which NumPy would need seconds and gigabytes, is checked in its layout with fewer units.
"""

import warnings
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from .loader import maker_of
from .tiles import checked_variant

# largest relative errors of outputs and gradients, by the coarsest dtype; a wrong kernel has far larger ones
ALLOWED = {mx.float32: (1e-4, 1e-3), mx.float16: (1e-2, 5e-2), mx.bfloat16: (5e-2, 2e-1)}
STEPS = 3
MOST_WEIGHTS = 2**19  # weights of a small problem
_verdicts: dict[Hashable, str | None] = {}


class SmallProblem(NamedTuple):
    """The problem on which a kernel is checked.

    Args:
        spec: the static part.
        arrays: a tree of NumPy arrays.
        variant: the call's kernel variant; the problem uses it with smaller sizes.
    """

    spec: Any
    arrays: Any
    variant: Any


def few_sequences(*rows: int) -> int:
    """The fewest sequences, at least 2, that fill at least one group of each of these row counts and part of a second.

    Example:
        >>> few_sequences(4), few_sequences(2, 3), few_sequences(1), few_sequences(0)
        (5, 5, 2, 2)
    """
    count = max(2, max(rows) + 1)
    while any(n > 1 and count % n == 0 for n in rows):
        count += 1
    return count


def few_lengths(sequences: int) -> np.ndarray:
    """The sequence lengths 1, 2, ... of a small problem; the last sequence has all steps.

    Example:
        >>> few_lengths(5).tolist()
        [1, 2, 3, 1, 3]
    """
    return np.array([*(1 + k % STEPS for k in range(sequences - 1)), STEPS], np.int32)


def part_within(weights: int, most: int = MOST_WEIGHTS) -> float:
    """The fraction of the units, at most 1, that reduces `weights` to at most `most`."""
    return min(1.0, (most / max(1, weights)) ** 0.5)


def few_units(units: int, part: float) -> int:
    """The number of units in a fraction of them, at least 1."""
    return max(1, int(units * part))


def complaint(kind: str, recurrence: Any, spec: Hashable, arrays: Any) -> str | None:
    """None if the kernel variants for these arrays work on this device, else a message; each variant is checked once."""
    found = None
    for part in recurrence.fused.parts(kind, spec, arrays):
        found = _complaint(kind, recurrence, *part) or found
    return found


def _complaint(kind: str, recurrence: Any, spec: Hashable, arrays: Any) -> str | None:
    key = (kind, maker_of(kind), recurrence.name, recurrence.fused.key(kind, spec, arrays))
    if key not in _verdicts:
        _verdicts[key] = _tried(kind, recurrence, spec, arrays)
        if _verdicts[key] is not None:
            message = f"[{recurrence.name}] the {kind} kernel does not work here; slower MLX operations are used instead: {_verdicts[key]}"
            warnings.warn(message, RuntimeWarning, stacklevel=5)
    return _verdicts[key]


def verdicts() -> dict[Hashable, str | None]:
    """The results so far: variant -> complaint, or None for a working variant."""
    return dict(_verdicts)


def check(
    kind: str, recurrence: Any, spec: Hashable, arrays: Any, like: Any = None, judge: type[np.floating[Any]] = np.float64
) -> tuple[float, float]:
    """Run a problem forward and backward, both as kernels and in NumPy, and compare.

    Args:
        kind: "metal" or "cuda".
        recurrence: the recurrence to check.
        spec: its static part.
        arrays: a tree of NumPy arrays.
        like: a tree of MLX arrays with the dtypes to run the kernels in; float32 if None.
        judge: the dtype of the NumPy computation.

    Returns:
        The relative errors of outputs and gradients.
    """
    dtypes = {} if like is None else {path: a.dtype for path, a in tree_flatten(like)}
    given = {path: _on_device(a, dtypes.get(path, mx.float32)) for path, a in tree_flatten(arrays)}
    exact = tree_unflatten([(path, _as_numpy(a, judge)) for path, a in given.items()])
    device_arrays = tree_unflatten(list(given.items()))
    expected = recurrence.forward(spec, exact)
    dy = tuple(np.random.Generator(np.random.PCG64(7)).standard_normal(a.shape).astype(judge) for a in expected)
    expected_gradients = dict(tree_flatten(recurrence.backward(spec, exact, expected, dy)))
    outputs = recurrence.fused.forward(kind, spec, device_arrays)
    cotangents = [mx.array(a.astype(np.float32)) for a in dy]
    gradients = dict(tree_flatten(recurrence.fused.backward(kind, spec, device_arrays, outputs, cotangents)))
    mx.eval(outputs, gradients)
    forward = worst(_error(a, b) for a, b in zip(outputs, expected, strict=True))
    return forward, worst(_error(gradients[path], a) for path, a in expected_gradients.items())


def worst(errors: Iterable[float]) -> float:
    """The largest error, or NaN if any is NaN (which Python's max may ignore)."""
    return float(np.max(list(errors)))


def in_half(arrays: Any, dtype: mx.Dtype) -> Any:
    """A problem's arrays with x and the weights in half precision, as a half-precision layer passes them to its scan.

    Weights are the leaves of subtrees; times, states and dropout factors stay float32.
    """

    def cast(path: str, a: np.ndarray) -> mx.array:
        half = a.dtype.kind == "f" and (path == "x" or "." in path) and not path.startswith("dropout")
        return mx.array(a.astype(np.float32)).astype(dtype) if half else mx.array(a)

    return tree_unflatten([(path, cast(path, a)) for path, a in tree_flatten(arrays)])


def works(errors: tuple[float, float], like: Any = None) -> bool:
    """Whether the errors from `check` are small enough to be rounding errors."""
    dtypes = [mx.float32] if like is None else [a.dtype for _, a in tree_flatten(like) if a.dtype in ALLOWED]
    allowed = max(ALLOWED[dtype] for dtype in dtypes)
    return all(error <= limit for error, limit in zip(errors, allowed, strict=True))


def _on_device(a: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(a.astype(np.float32)).astype(dtype) if a.dtype.kind == "f" else mx.array(a)


def _as_numpy(a: mx.array, dtype: Any) -> np.ndarray:
    return np.array(a.astype(mx.float32)).astype(dtype, copy=False) if mx.issubdtype(a.dtype, mx.floating) else np.array(a)


def _tried(kind: str, recurrence: Any, spec: Hashable, arrays: Any) -> str | None:
    small = recurrence.fused.small_problem(kind, spec, arrays)
    token = checked_variant.set(small.variant)
    try:  # float32 takes half the time and memory of float64; a wrong kernel's errors are 100 times its rounding errors
        errors = check(kind, recurrence, small.spec, small.arrays, arrays, np.float32)
    except (RuntimeError, ValueError) as error:  # raised by MLX when Metal's compiler or the device fails
        return str(error)
    finally:
        checked_variant.reset(token)
    if not works(errors, arrays):
        return f"it differs from the NumPy form by {errors[0]:.1e} (outputs) and {errors[1]:.1e} (gradients)"
    return None


def _error(got: mx.array, expected: np.ndarray) -> float:
    return float(np.abs(_as_numpy(got, expected.dtype) - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))

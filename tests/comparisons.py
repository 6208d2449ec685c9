"""How results are compared."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map


def to_mlx(tree):
    return tree_map(lambda a: mx.array(a.astype(np.float32) if a.dtype == np.float64 else a), tree)


def to_numpy(a):
    return np.array(a.astype(mx.float32)) if isinstance(a, mx.array) and a.dtype == mx.bfloat16 else np.array(a)


def assert_close(got, expected, tolerance, name=""):
    got, expected = to_numpy(got), to_numpy(expected)
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    error = np.abs(got.astype(np.float64) - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0))
    assert error <= tolerance, f"{name}: error {error:.2e}, allowed {tolerance:.0e}"


def assert_trees_close(got, expected, tolerance):
    got, expected = dict(tree_flatten(got)), dict(tree_flatten(expected))
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert_close(got[name], value, tolerance, name)

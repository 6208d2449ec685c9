"""The host runner's fast math: functions as inaccurate as Metal's specification allows, and every cell's kernels in this mode."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import Tile, forced_tile
from ember_mlx.scans.registry import RECURRENCES

from .metal_host import metal_kernel, unsupported_reason
from .test_kernels import CASES, compare

pytestmark = pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason()))


def results(expression, x, fast_math=True):
    kernel = metal_kernel(
        "one", ["x"], ["y"], f"uint i = thread_position_in_grid.x; float a = x[i]; y[i] = {expression};", fast_math=fast_math
    )
    call = dict(inputs=[mx.array(x)], grid=(len(x), 1, 1), threadgroup=(32, 1, 1), output_shapes=[(len(x),)], output_dtypes=[mx.float32])
    return np.array(kernel(**call)[0])


BOUNDS = {
    "fast::exp(a)": (np.exp, lambda x: 3 + np.floor(np.abs(2 * x))),
    "fast::exp2(a)": (np.exp2, lambda x: 3 + np.floor(np.abs(2 * x))),
    "fast::divide(1.0f, a)": (lambda x: 1 / x, lambda x: 2.5),
    "exp(a)": (np.exp, lambda x: 4),
    "precise::exp(a)": (np.exp, lambda x: 4),
    "cos(a)": (np.cos, lambda x: 4),
}


@pytest.mark.parametrize("expression", BOUNDS)
def test_errors_reach_towards_the_stated_bound_and_not_beyond(expression):
    exact, bound = BOUNDS[expression]
    x = np.random.default_rng(0).uniform(-20, 20, 4096).astype(np.float32)
    expected = exact(x.astype(np.float64))
    ulps = np.abs(results(expression, x) - expected) / np.spacing(np.abs(expected).astype(np.float32))
    used = ulps / bound(x.astype(np.float64))
    assert used.max() <= 1.05  # at a power of two an ulp is not the same on both sides
    assert used.max() > 0.6
    assert np.abs(results(expression, x, False) - expected).max() <= np.spacing(np.abs(expected).max().astype(np.float32))


def test_denormals_are_zero_in_functions_and_in_arithmetic():
    x = np.array([-90.0, 1e-20, 1.0] * 4, np.float32)
    assert results("fast::exp(a)", x)[0] == 0 < results("fast::exp(a)", x, False)[0]
    assert results("a * 1e-20f", x)[1] == 0 < results("a * 1e-20f", x, False)[1]
    assert results("fast::divide(1.0f, a * 2e38f)", x)[2] == 0 < results("fast::divide(1.0f, a * 2e38f)", x, False)[2]
    assert np.float32(1e-20) * np.float32(1e-20) > 0  # the process's own arithmetic is as before


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_cell_keeps_its_tolerance_in_fast_math(name, variant):
    recurrence = RECURRENCES[name]
    token = forced_tile.set(Tile(64, 1, 8, False))
    try:
        with kernels_made_by("metal", partial(metal_kernel, fast_math=True)):
            compare("metal", recurrence, *recurrence.problem(variant, 7, 3, 13, lengths=True))
    finally:
        forced_tile.reset(token)

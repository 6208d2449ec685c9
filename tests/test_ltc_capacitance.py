"""A membrane capacitance cm of 0, as from a softplus, or close to 0, with dt of 0 and above, in every form of the LTC."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import ember_mlx
from ember_mlx.scans.dispatch import scan
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import assert_close, to_mlx
from .metal_host import metal_kernel
from .test_kernels import HOST_REASON, kernels_on
from .tolerances import FORWARD, GRADIENT

LTC = RECURRENCES["ltc"]
CAPACITANCES = (0, 1e-45, 1e-39, 1e-36, 1e-22, 1e-15, 1e-7)


def numpy_or_ops(backend, spec, arrays, dy):
    paths, leaves = zip(*tree_flatten(arrays), strict=True)
    with ember_mlx.use_backend(backend):
        outputs, gradients = mx.vjp(lambda *a: scan(LTC, spec, tree_unflatten(list(zip(paths, a, strict=True)))), list(leaves), dy)
    return outputs, dict(zip(paths, gradients, strict=True))


def kernels(spec, arrays, dy):
    with kernels_on("host", maker=metal_kernel) as kind:
        outputs = LTC.fused.forward(kind, spec, arrays)
        return outputs, dict(tree_flatten(LTC.fused.backward(kind, spec, arrays, outputs, dy)))


@pytest.mark.parametrize("cm", CAPACITANCES)
@pytest.mark.parametrize("variant", ["full", "sparse"])
@pytest.mark.parametrize("form", ["numpy", "ops", "kernels"])
def test_capacitance_of_next_to_nothing(form, variant, cm):
    if form == "kernels" and HOST_REASON is not None:
        pytest.skip(str(HOST_REASON))
    spec, arrays = LTC.problem(variant, 4, 2, 5, dtype=np.float32)
    arrays["cm"][:2] = cm
    arrays["dt"][::2] = 0  # the other units' slopes by dt are finite there; of these units they are as large as 1 / cm
    exact = tree_map(lambda a: a.astype(np.float64), arrays)
    (expected,) = LTC.forward(spec, exact)
    dy = [np.ones_like(expected)]
    gradients = dict(tree_flatten(LTC.backward(spec, exact, (expected,), dy)))
    given = to_mlx(arrays), [mx.array(a.astype(np.float32)) for a in dy]
    (v,), got = kernels(spec, *given) if form == "kernels" else numpy_or_ops(form, spec, *given)
    assert np.array_equal(np.array(v[0]), arrays["v0"])  # no time passes, and v stays to the bit
    assert mx.array_equal(v[2], v[1])
    assert_close(v, expected, FORWARD["float32"])
    for name, gradient in got.items():
        assert np.isfinite(np.array(gradient)).all(), name
        if name != "dt":
            assert_close(gradient, gradients[name], GRADIENT["float32"], name)
    assert_close(got["dt"][1::2], gradients["dt"][1::2], GRADIENT["float32"], "dt")

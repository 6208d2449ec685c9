"""Second derivatives with saturated gates are zero, not NaN, for every recurrence."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx

CASES = [(name, variant) for name, recurrence in RECURRENCES.items() for variant in recurrence.variants]


@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{name}-{variant}" for name, variant in CASES])
@pytest.mark.parametrize("size", [100, 1e4])
def test_second_derivatives_by_large_inputs_are_numbers(name, variant, size):
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, 3, 2, 4)
    given = dict(tree_flatten(to_mlx(arrays)))
    path = "u" if "u" in given else "x"

    def loss(x):
        outputs = recurrence.ops(spec, tree_unflatten([*(given | {path: x}).items()]))
        return sum(a.square().sum() for a in outputs)

    x = mx.sign(given[path]) * size
    for derivative in (mx.jvp(mx.grad(loss), [x], [x])[1][0], mx.grad(lambda x: (mx.grad(loss)(x) * x).sum())(x)):
        assert np.isfinite(np.array(derivative)).all()

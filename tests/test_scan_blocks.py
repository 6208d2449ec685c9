"""The NumPy forms work on a block of steps at a time; where the blocks are cut changes nothing."""

from importlib import import_module

import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx.scans.registry import RECURRENCES

T, B, H = 5, 200, 8
CASES = [("cfc", "default"), ("cfc", "dropout"), ("cfc", "layered_mixed_memory"), ("quantum", "lqnet"), ("quantum", "ctrqnet_noise")]


def outputs_and_gradients(monkeypatch, name, rows, spec, arrays):
    recurrence = RECURRENCES[name]
    monkeypatch.setattr(import_module(f"ember_mlx.scans.{name}.reference"), "BLOCK_ROWS", rows)
    outputs = recurrence.forward(spec, arrays)
    gradients = recurrence.backward(spec, arrays, outputs, tuple(np.cos(a) for a in outputs))
    return dict(tree_flatten([list(outputs), gradients]))


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}-{v}" for n, v in CASES])
def test_blocks_of_any_size(monkeypatch, name, variant, lengths):
    spec, arrays = RECURRENCES[name].problem(variant, T, B, H, lengths=lengths)
    whole = outputs_and_gradients(monkeypatch, name, T * B, spec, arrays)
    for rows in (1, B + 1, 2 * B):
        blocks = outputs_and_gradients(monkeypatch, name, rows, spec, arrays)
        for path, expected in whole.items():
            np.testing.assert_allclose(blocks[path], expected, rtol=1e-10, atol=1e-10, err_msg=f"{path}, blocks of {rows} rows")

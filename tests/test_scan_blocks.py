"""The NumPy form works on a block of steps at a time; where the blocks are cut changes nothing."""

import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx.scans.cfc import reference
from ember_mlx.scans.cfc.problems import cfc_problem

T, B, H = 5, 200, 8


def outputs_and_gradients(monkeypatch, rows, spec, arrays):
    monkeypatch.setattr(reference, "BLOCK_ROWS", rows)
    outputs = reference.cfc_forward(spec, arrays)
    gradients = reference.cfc_backward(spec, arrays, outputs, tuple(np.cos(a) for a in outputs))
    return dict(tree_flatten([list(outputs), gradients]))


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("variant", ["default", "dropout", "layered_mixed_memory"])
def test_blocks_of_any_size(monkeypatch, variant, lengths):
    spec, arrays = cfc_problem(variant, T, B, H, lengths=lengths)
    whole = outputs_and_gradients(monkeypatch, T * B, spec, arrays)
    for rows in (1, B + 1, 2 * B):
        blocks = outputs_and_gradients(monkeypatch, rows, spec, arrays)
        for path, expected in whole.items():
            np.testing.assert_allclose(blocks[path], expected, rtol=1e-10, atol=1e-10, err_msg=f"{path}, blocks of {rows} rows")


def test_nothing_is_kept_beyond_the_bound(monkeypatch):
    spec, arrays = cfc_problem("mixed_memory", 9, 4, 6)
    kept = []
    reference.cfc_forward(spec, arrays, keep=lambda a: kept.append(a.copy()))
    assert kept
    monkeypatch.setattr(reference, "KEPT_BYTES", sum(a.nbytes for a in kept) - 1)
    kept.clear()
    reference.cfc_forward(spec, arrays, keep=lambda a: kept.append(a.copy()))
    assert not kept

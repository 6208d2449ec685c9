"""The NumPy form works on a block of steps at a time, and in several threads; where blocks and threads are cut changes nothing."""

import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx.scans.cfc import reference
from ember_mlx.scans.cfc.problems import cfc_problem
from ember_mlx.scans.ltc import reference as ltc_reference
from ember_mlx.scans.ltc.problems import ltc_problem

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


def ltc_outputs_and_gradients(spec, arrays):
    outputs = ltc_reference.ltc_forward(spec, arrays)
    return dict(tree_flatten([list(outputs), ltc_reference.ltc_backward(spec, arrays, outputs, tuple(np.cos(a) for a in outputs))]))


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("variant", ["full", "rk4_sparse", "mixed_memory_sparse"])
def test_blocks_and_threads_of_an_ltc(monkeypatch, variant, lengths):
    spec, arrays = ltc_problem(variant, 5, 7, 8, lengths=lengths)
    monkeypatch.setattr("ember_mlx.scans.threads._cores", lambda: 1)
    whole = ltc_outputs_and_gradients(spec, arrays)
    monkeypatch.setattr("ember_mlx.scans.threads.FEWEST_VALUES", 1)
    for floats, cores in ((1, 1), (500, 1), (2**20, 3), (500, 7)):
        monkeypatch.setattr(ltc_reference, "BLOCK_FLOATS", floats)
        monkeypatch.setattr("ember_mlx.scans.threads._cores", lambda cores=cores: cores)
        for path, expected in ltc_outputs_and_gradients(spec, arrays).items():
            np.testing.assert_allclose(expected, whole[path], rtol=1e-10, atol=1e-10, err_msg=f"{path}, {floats} floats, {cores} threads")

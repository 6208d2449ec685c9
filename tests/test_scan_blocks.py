"""The NumPy forms process blocks of steps, some in several threads; results do not depend on how blocks and threads are divided."""

import inspect

import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx.scans.ltc import reference as ltc_reference
from ember_mlx.scans.ltc.random_cases import ltc_problem
from ember_mlx.scans.packed_sequences import PackedLayout
from ember_mlx.scans.registry import RECURRENCES
from ember_mlx.scans.scratch import Scratch

T, B, H = 5, 200, 8
CASES = [("cfc", "default"), ("cfc", "dropout"), ("cfc", "layered_mixed_memory"), ("rnn", "relu"), ("lstm", "lstm_projected_bidirectional")]
CASES += [("lstm", "lstm"), ("gru", "gru"), ("gru", "gru_bidirectional"), ("quantum", "lqnet"), ("quantum", "ctrqnet_noise")]


def outputs_and_gradients(monkeypatch, rows, recurrence, spec, arrays):
    monkeypatch.setattr(inspect.getmodule(recurrence.forward), "BLOCK_ROWS", rows)
    outputs = recurrence.forward(spec, arrays)
    gradients = recurrence.backward(spec, arrays, outputs, tuple(np.cos(a) for a in outputs))
    return dict(tree_flatten([list(outputs), gradients]))


@pytest.mark.parametrize("lengths", ["full", "lengths", "short"])
@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}-{v}" for n, v in CASES])
def test_blocks_of_any_size(monkeypatch, name, variant, lengths):
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, T, B, H, lengths=lengths != "full")
    if lengths == "short":  # the last block has no rows
        arrays["lengths"] = np.minimum(arrays["lengths"], T - 2)
    whole = outputs_and_gradients(monkeypatch, T * B, recurrence, spec, arrays)
    for rows in (1, B + 1, 2 * B):
        blocks = outputs_and_gradients(monkeypatch, rows, recurrence, spec, arrays)
        for path, expected in whole.items():
            np.testing.assert_allclose(blocks[path], expected, rtol=1e-10, atol=1e-10, err_msg=f"{path}, blocks of {rows} rows")


@pytest.mark.parametrize(("name", "variant"), [("cfc", "mixed_memory"), ("lstm", "lstm"), ("ltc", "sparse")])
def test_nothing_is_kept_beyond_the_bound(monkeypatch, name, variant):
    recurrence, kept = RECURRENCES[name], Scratch(np.dtype(np.float64))
    spec, arrays = recurrence.problem(variant, 9, 4, 6)
    recurrence.forward(spec, arrays, kept)
    assert kept.nbytes > 0
    monkeypatch.setattr(inspect.getmodule(recurrence.forward), "KEPT_BYTES", kept.nbytes - 1)
    kept = Scratch(np.dtype(np.float64))
    outputs = recurrence.forward(spec, arrays, kept)
    assert kept.nbytes == 0
    dy = tuple(np.cos(a) for a in outputs)
    without = dict(tree_flatten(recurrence.backward(spec, arrays, outputs, dy)))
    for path, gradient in tree_flatten(recurrence.backward(spec, arrays, outputs, dy, kept)):
        np.testing.assert_array_equal(gradient, without[path], err_msg=path)


def ltc_outputs_and_gradients(spec, arrays):
    kept = Scratch(np.dtype(np.float64))
    outputs = ltc_reference.ltc_forward(spec, arrays, kept)
    return dict(tree_flatten([list(outputs), ltc_reference.ltc_backward(spec, arrays, outputs, tuple(np.cos(a) for a in outputs), kept)]))


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


def test_steps_after_the_longest_sequence_cost_nothing():
    layout = PackedLayout(9, 3, np.array([2, 4, 1]))
    assert layout.chunks(rows=3) == [(0, 1), (1, 3), (3, 4)]
    assert PackedLayout(9, 2, np.array([0, 0])).chunks(rows=3) == [(0, 1)]
    assert PackedLayout(2, 3).chunks(rows=3) == [(0, 1), (1, 2)]


def test_even_chunks_are_of_steps_with_the_same_rows():
    layout = PackedLayout(7, 3, np.array([2, 6, 5]))  # 3, 3, 2, 2, 2, 1, 0 rows
    assert layout.even_chunks(rows=100) == [(0, 2), (2, 5), (5, 6)]
    assert layout.even_chunks(rows=5) == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]
    assert layout.even_chunks(rows=1) == [(t, t + 1) for t in range(6)]
    assert PackedLayout(9, 2, np.array([0, 0])).even_chunks(rows=3) == [(0, 1)]

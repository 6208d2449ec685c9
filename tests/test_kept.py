"""The buffers that a forward scan stores for its backward: only in training, separate for every scan, and freed when no longer needed."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import GRU, LTC, CfC, NCPMap, StrideAwareCfC
from ember_mlx.scans import dispatch
from ember_mlx.scans.scratch import Scratch

from .comparisons import assert_close
from .tolerances import GRADIENT

LAYERS = {
    "cfc": lambda: CfC(6, 4, mixed_memory=True, return_sequences=True),
    "gru": lambda: GRU(4, 6, num_layers=2, bidirectional=True),
    "ltc": lambda: LTC(NCPMap(3, 2, 2, 4, seed=1)),
    "strides": lambda: StrideAwareCfC(6, [1, 2], 4, return_sequences=True),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


@pytest.fixture(autouse=True)
def numpy_form():
    mx.random.seed(0)
    with ember_mlx.use_backend("numpy"):
        yield


@pytest.fixture
def memories(monkeypatch):
    """The buffers of every scan that stores something."""
    found = []

    def counted(dtype):
        found.append(Scratch(dtype))
        return found[-1]

    monkeypatch.setattr(dispatch, "Scratch", counted)
    return found


def training_step(layer, x):
    return nn.value_and_grad(layer, lambda m: (m(x) ** 2).sum())(layer)


@every_layer
def test_a_layer_keeps_something_only_while_it_trains(make, memories):
    layer, x = make(), mx.random.normal((2, 5, 4))
    loss, gradients = training_step(layer, x)
    assert memories
    assert all(memory.nbytes for memory in memories)
    memories.clear()
    layer.eval()
    same_loss, same = training_step(layer, x)  # the backward computes anew what was not kept
    assert not memories
    assert same_loss.item() == loss.item()
    for (path, a), (_, b) in zip(tree_flatten(gradients), tree_flatten(same), strict=True):
        assert_close(np.array(b), np.array(a), GRADIENT["float32"], path)


def test_scans_that_wait_for_their_backward_keep_apart(memories):
    layer, xs = CfC(6, 4, return_sequences=True), mx.random.normal((3, 2, 5, 4))

    def loss(m):
        return sum(k * (m(x) ** 2).sum() for k, x in enumerate(xs, 1))

    together = nn.value_and_grad(layer, loss)(layer)[1]
    assert len(memories) == len({id(memory) for memory in memories}) == len(xs)
    alone = [nn.value_and_grad(layer, lambda m, k=k, x=x: k * (m(x) ** 2).sum())(layer)[1] for k, x in enumerate(xs, 1)]
    for path, gradient in tree_flatten(together):
        expected = sum(np.array(dict(tree_flatten(one))[path]) for one in alone)
        assert_close(np.array(gradient), expected, GRADIENT["float32"], path)


@every_layer
def test_memory_is_freed_with_the_step(make, memories):
    layer, x = make(), mx.random.normal((2, 5, 4))
    mx.eval(training_step(layer, x))
    found = [weakref.ref(memory) for memory in memories]
    memories.clear()
    gc.collect()
    assert found
    assert not [ref for ref in found if ref() is not None]


def test_threads_that_train_at_once():
    layers, x = [make() for make in LAYERS.values()], mx.random.normal((2, 5, 4))
    mx.eval([layer.parameters() for layer in layers], x)

    def gradients(layer):
        results = [training_step(layer, x) for _ in range(5)]
        mx.eval(results)
        return [dict(tree_flatten(result[1])) for result in results]

    expected = [gradients(layer)[0] for layer in layers]
    with ThreadPoolExecutor(len(layers)) as pool:
        for one, found in zip(expected, pool.map(gradients, layers), strict=True):
            for result in found:
                for path, gradient in result.items():
                    assert_close(np.array(gradient), np.array(one[path]), GRADIENT["float32"], path)

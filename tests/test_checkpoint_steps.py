"""checkpoint_steps: the same outputs and gradients, storing only the states between segments."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from ember_mlx import (
    GRU,
    LSTM,
    LTC,
    RNN,
    Bidirectional,
    CfC,
    CTRQNet,
    LQNet,
    NCPMap,
    Recurrent,
    SequenceModel,
    StrideAware,
    StrideAwareCfC,
    StrideAwareLTC,
    cells,
    use_backend,
)
from ember_mlx.kernels.loader import kernels_made_by

from .metal_host import metal_kernel, unsupported_reason

I, T, B = 3, 8, 4
NCP = NCPMap(4, 3, 2, I, seed=1)
LAYERS = {
    "rnn": partial(RNN, I, 4),
    "gru": partial(GRU, I, 4, num_layers=2),
    "gru-backwards": partial(GRU, I, 4, go_backwards=True, return_sequences=False),
    "gru-bidirectional": partial(GRU, I, 4, num_layers=2, bidirectional=True),
    "lstm": partial(LSTM, I, 4, proj_size=2, return_sequences=False),
    "lstm-bidirectional": partial(LSTM, I, 4, num_layers=2, proj_size=2, bidirectional=True, return_sequences=False, batch_first=False),
    "recurrent": partial(Recurrent, cells.LEM(), I, 4, num_layers=2),
    "recurrent-bidirectional": partial(Recurrent, cells.GRUD(), I, 4, num_layers=2, bidirectional=True, return_sequences=False),
    "cfc": partial(CfC, 4, I, backbone_units=5),
    "cfc-pure-ncp": partial(CfC, NCP, mode="pure", output="motor", proj_size=3, return_sequences=True),
    "cfc-mixed-memory": partial(CfC, NCP, mixed_memory=True),
    "ltc": partial(LTC, NCP, ode_unfolds=2),
    "ltc-mixed-memory": partial(LTC, 4, I, ode_unfolds=2, mixed_memory=True, return_sequences=False),
    "lqnet": partial(LQNet, 4, input_size=I, noise_scale=0.0),
    "ctrqnet": partial(CTRQNet, 4, input_size=I, noise_scale=0.0, return_sequences=False),
    "strides-gru": lambda **more: StrideAware(GRU(I, 4), [1, 3], **more),
    "strides-cfc": partial(StrideAwareCfC, 4, [2, 5], I, return_sequences=True),
    "strides-ltc": partial(StrideAwareLTC, NCP, [1, 3], ode_unfolds=2),
}


def pair(name, size):
    """The same layer without and with segments."""
    mx.random.seed(2)
    whole = LAYERS[name]()
    parts = type(whole).from_config(whole.get_config() | {"checkpoint_steps": size})
    assert parts.checkpoint_steps == size
    parts.update(whole.parameters())
    return whole, parts


def arguments(layer, lengths, state):
    rng = np.random.default_rng(0)
    shape = (B, T) if layer.batch_first else (T, B)
    x = mx.array(rng.standard_normal((*shape, I)), mx.float32)
    options = {"time_deltas": mx.array(rng.uniform(0, 2, shape), mx.float32)} if layer.timed else {}
    options |= {"lengths": mx.array(lengths)} if lengths else {}
    if state:
        _, options["initial_state"] = layer(x[:, :5] if layer.batch_first else x[:5], return_state=True)
    return x, options


def of_parameters_inputs_and_state(layer, x, options):
    """All results of a call, and their gradients by all continuous inputs."""

    def loss(parameters, x, options):
        layer.update(parameters)
        y, state = layer(x, **options, return_state=True)
        return sum(mx.cos(a / 4 + k).sum() for k, (_, a) in enumerate(tree_flatten([y, state])) if mx.issubdtype(a.dtype, mx.floating))

    before = layer.parameters()
    floats = {name: a for name, a in tree_flatten(options) if mx.issubdtype(a.dtype, mx.floating)}

    def of(parameters, x, floats):
        return loss(parameters, x, put(options, floats))

    gradients = mx.grad(of, (0, 1, 2))(before, x, floats)
    layer.update(before)
    return tree_flatten([layer(x, **options, return_state=True)]), tree_flatten([gradients])


def put(options, floats):
    from mlx.utils import tree_map_with_path

    return tree_map_with_path(lambda path, a: floats.get(path, a), options)


def same(a, b, atol):
    for (name, got), (other, expected) in zip(a, b, strict=True):
        assert name == other
        np.testing.assert_allclose(
            np.array(got), np.array(expected), atol=atol * max(1, np.abs(np.array(expected)).max(initial=0)), err_msg=name
        )


@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize("lengths", [None, [8, 3, 1, 6]], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_whole(name, lengths, backend):
    for size, state in ((3, False), (1, True), (4, True)) if backend == "numpy" else ((3, True),):
        whole, parts = pair(name, size)
        x, options = arguments(whole, lengths, state)
        with use_backend(backend):
            expected = of_parameters_inputs_and_state(whole, x, options)
            got = of_parameters_inputs_and_state(parts, x, options)
        same(got[0], expected[0], 1e-6)
        same(got[1], expected[1], 2e-6)


@pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason()))
@pytest.mark.parametrize("name", ["gru-bidirectional", "cfc-mixed-memory", "ltc", "lqnet", "strides-gru"])
def test_with_kernels(name):
    whole, parts = pair(name, 3)
    x, options = arguments(whole, [8, 3, 1, 6], False)
    expected = of_parameters_inputs_and_state(whole, x, options)
    with kernels_made_by("metal", metal_kernel), use_backend("metal"):
        got = of_parameters_inputs_and_state(parts, x, options)
    same(got[0], expected[0], 1e-5)
    same(got[1], expected[1], 1e-4)


def test_inside_other_modules():
    whole, parts = (
        SequenceModel(Bidirectional(CfC(4, I, return_sequences=True, checkpoint_steps=size)), LSTM(8, 3, checkpoint_steps=size), outputs=2)
        for size in (None, 3)
    )
    parts.update(whole.parameters())
    x = mx.random.normal((B, T, I))

    def loss(model, x):
        return (model(x, time_deltas=0.3, lengths=[8, 3, 1, 6]) ** 2).sum()

    (a, of_whole), (b, of_parts) = (nn.value_and_grad(model, loss)(model, x) for model in (whole, parts))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    same(tree_flatten(of_parts), tree_flatten(of_whole), 2e-6)


@pytest.mark.parametrize("name", ["cfc", "gru"])
def test_compiled_and_twice(name):
    whole, parts = pair(name, 3)
    x, options = arguments(whole, None, False)
    results = []
    for layer in (whole, parts):

        def loss(x, layer=layer):
            return (layer(x, **options) ** 2).sum()

        with use_backend("ops"):
            results.append([mx.compile(mx.grad(loss))(x), mx.grad(lambda x: (mx.grad(loss)(x) ** 2).sum())(x)])
    same(tree_flatten(results[1]), tree_flatten(results[0]), 1e-5)


RANDOM = {
    "dropout-of-the-backbone": partial(CfC, 4, I, backbone_units=6, backbone_dropout=0.4),
    "dropout-between-layers": partial(GRU, I, 6, num_layers=2, dropout=0.4),
    "dropout-between-both-ways": partial(GRU, I, 6, num_layers=2, dropout=0.4, bidirectional=True),
    "noise": partial(LQNet, 4, input_size=I, noise_scale=0.3),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_backward_draws_what_the_forward_drew(name):
    layer = RANDOM[name](checkpoint_steps=3)
    x, direction = mx.random.normal((B, T, I)), mx.random.normal((B, T, I))

    def loss(x):
        mx.random.seed(5)
        return mx.sin(layer(x)).sum()

    slope = (mx.grad(loss)(x) * direction).sum().item()
    step = 1e-2
    about = (loss(x + step * direction) - loss(x - step * direction)).item() / (2 * step)
    assert abs(slope - about) < 2e-3 * max(1, abs(slope))
    mx.random.seed(5)
    first, second = layer(x), layer(x)
    assert not mx.array_equal(first, second)


def test_a_key_gives_the_same_noise_each_time():
    layer, x, key = LQNet(4, input_size=I, checkpoint_steps=3), mx.random.normal((B, T, I)), mx.random.key(1)
    assert mx.array_equal(layer(x, key=key), layer(x, key=key))
    assert not mx.array_equal(layer(x, key=key), layer(x, key=mx.random.key(2)))


def test_it_may_be_set_later_and_is_checked():
    layer = GRU(I, 4)
    assert layer.checkpoint_steps is None
    layer.checkpoint_steps = 5
    assert layer.get_config()["checkpoint_steps"] == 5
    for value, kind in ((0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match=r"\[GRU\] checkpoint_steps must be"):
            layer.checkpoint_steps = value
        with pytest.raises(kind, match=r"\[LTC\] checkpoint_steps must be"):
            LTC(4, I, checkpoint_steps=value)
    assert StrideAware(GRU(I, 4, checkpoint_steps=6), [1, 2]).checkpoint_steps == 6


def test_the_layer_is_not_touched():
    """Threads may run one layer at the same time."""
    layer = CfC(4, I, checkpoint_steps=2)
    before = dict(tree_flatten(layer.parameters()))
    mx.grad(lambda x: layer(x).sum())(mx.ones((B, T, I)))
    nn.value_and_grad(layer, lambda layer, x: layer(x).sum())(layer, mx.ones((B, T, I)))
    after = dict(tree_flatten(layer.parameters()))
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    tree_map(lambda a: a + 0, layer.parameters())

"""SequenceModel: the arguments that it passes to each layer, its results, and its errors."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from ember_mlx import GRU, LSTM, LTC, RNN, AutoNCPMap, Bidirectional, CfC, LQNet, SequenceModel, StrideAwareCfC

B, T, I = 4, 6, 3
LENGTHS = mx.array([6, 1, 4, 3])
STACKS = {
    "gated": lambda **o: [GRU(I, 5), LSTM(5, 4, **o)],
    "timed": lambda **o: [CfC(5, I, return_sequences=True), LTC(AutoNCPMap(7, 2, seed=0), 5, ode_unfolds=2, **o)],
    "mixed": lambda **o: [RNN(I, 4), nn.LayerNorm(4), CfC(6, 4, mixed_memory=True, **o)],
    "both ways": lambda **o: [Bidirectional(GRU(I, 3)), CfC(4, 6, **o)],
    "strides": lambda **o: [StrideAwareCfC(4, [1, 2], I, return_sequences=True), LQNet(3, input_size=8, noise_scale=0.0, **o)],
    "mlx.nn": lambda **o: [nn.GRU(I, 5), nn.LSTM(5, 4)],
    "one": lambda **o: [CfC(5, I, **o)],
}


@pytest.fixture
def x():
    return mx.random.normal((B, T, I), key=mx.random.key(1))


@pytest.fixture
def dt():
    return mx.random.uniform(0.1, 2, (B, T), key=mx.random.key(2))


def timed(layers):
    return any(isinstance(layer, (CfC, LTC, LQNet, StrideAwareCfC)) for layer in layers)


def by_hand(layers, x, dt, lengths=None, by_step=True):
    """The same, by calling each layer in sequence."""
    y = x
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            y = layer(y)
        elif isinstance(layer, (nn.GRU, nn.LSTM)):
            y = layer(y)
            y = y[0] if isinstance(y, tuple) else y
        else:
            times = {"time_deltas": dt} if timed([layer]) else {}
            y = layer(y, lengths=lengths, return_sequences=True, **times)
    ends = mx.full((B,), T) if lengths is None else lengths
    last = mx.take_along_axis(y, (ends - 1)[:, None, None], axis=1)[:, 0]
    return y * (mx.arange(T) < ends[:, None])[:, :, None] if by_step else last


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", STACKS)
def test_it_is_a_call_of_each_layer_after_another(x, dt, name, lengths):
    layers = STACKS[name](**({} if name == "mlx.nn" else {"return_sequences": True}))
    model = SequenceModel(*layers, outputs=2)
    times = {"time_deltas": dt} if timed(layers) else {}
    read_out = model.layers[-1]
    y = model(x, lengths=lengths, return_sequences=True, **times)
    valid = (mx.arange(T) < (mx.full((B,), T) if lengths is None else lengths)[:, None])[:, :, None]
    assert mx.allclose(y, read_out(by_hand(layers, x, dt, lengths)) * valid, atol=1e-5)
    last = model(x, lengths=lengths, return_sequences=False, **times)
    assert mx.allclose(last, read_out(by_hand(layers, x, dt, lengths, by_step=False)), atol=1e-5)


@pytest.mark.parametrize("name", STACKS)
def test_the_last_recurrent_layer_says_what_is_returned(x, name):
    if name == "mlx.nn":
        assert SequenceModel(*STACKS[name](), outputs=2)(x).shape == (B, T, 2)
        return
    for by_step, shape in ((True, (B, T, 2)), (False, (B, 2))):
        assert SequenceModel(*STACKS[name](return_sequences=by_step), outputs=2)(x).shape == shape


@pytest.mark.parametrize("name", [name for name in STACKS if name not in ("both ways",)])
def test_states_go_on(x, dt, name):
    model = SequenceModel(*STACKS[name]())
    times = [{"time_deltas": part} if timed(model.layers) else {} for part in (dt, dt[:, :4], dt[:, 4:])]
    whole = model(x, return_sequences=True, **times[0])
    first, states = model(x[:, :4], return_sequences=True, return_state=True, **times[1])
    second, ends = model(x[:, 4:], states, return_sequences=True, return_state=True, **times[2])
    assert mx.allclose(mx.concatenate([first, second], axis=1), whole, atol=1e-5)
    assert len(ends) == sum(not isinstance(layer, nn.LayerNorm) for layer in model.layers)


def test_states_of_mlx_layers_are_those_of_the_last_valid_steps(x):
    model = SequenceModel(nn.LSTM(I, 4), GRU(4, 3))
    _, states = model(x, lengths=LENGTHS, return_state=True)
    for row, n in enumerate(LENGTHS.tolist()):
        _, alone = model(x[row : row + 1, :n], return_state=True)
        pairs = [(a[..., row : row + 1, :], b) for found, own in zip(states, alone, strict=True) for a, b in zip(found, own, strict=True)]
        assert all(mx.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_model_in_a_model(x):
    inner = SequenceModel(GRU(I, 5), outputs=4)
    assert SequenceModel(nn.Linear(I, I), inner, outputs=2).output_size == 2
    assert (SequenceModel(CfC(5, I), outputs=4).input_size, SequenceModel(CfC(5, I), outputs=4).output_size) == (I, 4)


def test_time_first():
    model = SequenceModel(GRU(I, 5, batch_first=False), LSTM(5, 4, batch_first=False), outputs=2)
    x = mx.random.normal((T, B, I))
    y = model(x, lengths=LENGTHS)
    assert y.shape == (T, B, 2)
    assert np.array_equal(np.array(y != 0).any(axis=2).sum(axis=0), LENGTHS)


def test_gradients_reach_every_layer(x, dt):
    model = SequenceModel(CfC(5, I, return_sequences=True), nn.Dropout(0.1), GRU(5, 4, return_sequences=False), outputs=2)
    gradients = nn.value_and_grad(model, lambda m: (m(x, time_deltas=dt, lengths=LENGTHS) ** 2).sum())(model)[1]
    from mlx.utils import tree_flatten

    found = dict(tree_flatten(gradients))
    assert found.keys() == dict(tree_flatten(model.trainable_parameters())).keys()
    assert {name.split(".")[1] for name, g in found.items() if (g != 0).any().item()} == {"0", "2", "3"}


X = mx.zeros((B, T, I))
BAD = {
    "nothing": (lambda: SequenceModel(), ValueError, "[SequenceModel] layers must hold at least one, got none."),
    "a function": (lambda: SequenceModel(GRU(I, 2), nn.relu), TypeError, "[SequenceModel] layers[1] must be an mlx.nn.Module"),
    "sizes": (
        lambda: SequenceModel(GRU(I, 5), nn.LayerNorm(5), LSTM(4, 2)),
        ValueError,
        "[SequenceModel] layers[2] must take 5 features, the output of the layer before it, got 4.",
    ),
    "batch_first": (
        lambda: SequenceModel(GRU(I, 5), GRU(5, 2, batch_first=False)),
        ValueError,
        "[SequenceModel] layers must have",
    ),
    "outputs": (lambda: SequenceModel(GRU(I, 5), outputs=0), ValueError, "[SequenceModel] outputs must be at least 1, got 0."),
    "outputs of what": (lambda: SequenceModel(nn.Embedding(5, 4), outputs=2), ValueError, "[SequenceModel] outputs must be None after"),
    "time deltas of nobody": (lambda: SequenceModel(GRU(I, 5))(X, time_deltas=1.0), ValueError, "[SequenceModel] time_deltas must be None"),
    "states": (lambda: SequenceModel(GRU(I, 5))(X, mx.zeros(3)), TypeError, "[SequenceModel] initial_state must be a list of states"),
    "too few states": (
        lambda: SequenceModel(GRU(I, 5), GRU(5, 2))(X, [None]),
        ValueError,
        "[SequenceModel] initial_state must hold 2",
    ),
    "flags": (lambda: SequenceModel(GRU(I, 5))(X, return_sequences=1), TypeError, "[SequenceModel] return_sequences must be"),
    "lengths": (
        lambda: SequenceModel(nn.GRU(I, 5))(X, lengths=[1, 2, 3, 9]),
        ValueError,
        "[SequenceModel] lengths must lie in 1..T = 1..6",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case):
    action, kind, message = BAD[case]
    with pytest.raises(kind) as caught:
        action()
    assert str(caught.value).startswith(message)

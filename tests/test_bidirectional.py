"""Bidirectional over any layer of the package: two runs, the backward one from each sequence's last valid step."""

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from ember_mlx import GRU, LSTM, LTC, RNN, Bidirectional, CfC, NCPMap, StrideAware, StrideAwareCfC

from .comparisons import assert_close

I, H, T, B = 3, 5, 7, 3
LENGTHS = [4, 7, 1]
KINDS = {
    "rnn": lambda **o: RNN(I, H, **o),
    "lstm-deep": lambda **o: LSTM(I, H, 2, **o),
    "gru": lambda **o: GRU(I, H, **o),
    "cfc": lambda **o: CfC(H, I, **o),
    "cfc-ncp-mixed": lambda **o: CfC(NCPMap(3, 2, 2, I, seed=1), mixed_memory=True, **o),
    "ltc": lambda **o: LTC(H, I, ode_unfolds=2, **o),
    "strides": lambda **o: StrideAware(GRU(I, H), [1, 3], **o),
    "cfc-strides": lambda **o: StrideAwareCfC(H, [2, 3], I, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
with_lengths = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


def inputs(kind):
    x, dt = mx.random.normal((B, T, I)), mx.random.uniform(0.1, 2, (B, T))
    return x, dt if kind.startswith(("cfc", "ltc")) else None


def part(dt, *index):
    return None if dt is None else dt[index]


@every_kind
@with_lengths
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_it_is_two_runs(kind, lengths, sequences):
    layer = Bidirectional(KINDS[kind](return_sequences=sequences))
    x, dt = inputs(kind)
    y, (state, state_back) = layer(x, None, dt, lengths, return_state=True)
    units = layer.forward_layer.units
    back = layer.backward_layer
    back.go_backwards = False
    for b, n in enumerate(lengths or [T] * B):
        here = slice(b, b + 1)
        expected, expected_state = layer.forward_layer(x[here, :n], None, part(dt, here, slice(n)), return_state=True)
        turned = None if dt is None else dt[here, :n][:, ::-1]
        expected_back, expected_state_back = back(x[here, :n][:, ::-1], None, turned, return_state=True)
        if sequences:
            assert_close(y[here, :n, :units], expected, 1e-6)
            assert_close(y[here, :n, units:], expected_back[:, ::-1], 1e-6)
            assert not mx.any(y[b, n:])
        else:
            assert_close(y[here], mx.concatenate([expected, expected_back], axis=1), 1e-6)
        expected_pair = tree_flatten((expected_state, expected_state_back))
        for (_, got), (_, alone) in zip(tree_flatten((state, state_back)), expected_pair, strict=True):
            assert_close(mx.take(got, mx.array([b]), axis=alone.ndim - 2), alone, 1e-6)


@every_kind
def test_states_are_a_pair(kind):
    layer = Bidirectional(KINDS[kind](return_sequences=True, return_state=True))
    x, dt = inputs(kind)
    y, pair = layer(x, None, dt)
    assert_close(layer(x, (None, None), dt)[0], y, 0)
    again, _ = layer(x, pair, dt)
    assert float(mx.abs(again - y).max()) > 1e-4
    forward_alone, _ = layer.forward_layer(x, pair[0], dt)
    assert_close(layer(x, (pair[0], None), dt)[0][..., : layer.forward_layer.units], forward_alone, 0)


def test_gru_in_both_directions_is_the_bidirectional_gru():
    both, wrapped = GRU(I, H, bidirectional=True), Bidirectional(GRU(I, H))
    for name, single in (("forward", wrapped.forward_layer), ("backward", wrapped.backward_layer)):
        single.update({"layers": [{"forward": both.parameters()["layers"][0][name]}]})
    x = mx.random.normal((B, T, I))
    for options in ({}, {"lengths": LENGTHS}, {"lengths": LENGTHS, "return_sequences": False}):
        assert_close(wrapped(x, **options), both(x, **options), 1e-6)


@every_kind
@with_lengths
def test_time_first_and_without_batch(kind, lengths):
    layer = Bidirectional(KINDS[kind](return_sequences=True))
    x, dt = inputs(kind)
    y = layer(x, None, dt, lengths)
    assert_close(layer(x[1], None, part(dt, 1)), y[1], 1e-6)
    layer.forward_layer.batch_first = layer.backward_layer.batch_first = False
    turned = layer(x.swapaxes(0, 1), None, None if dt is None else dt.T, lengths)
    assert_close(turned.swapaxes(0, 1), y, 0)


@every_kind
def test_both_directions_learn_and_configuration_travels(kind, tmp_path):
    layer = Bidirectional(KINDS[kind]())
    x, dt = inputs(kind)
    gradients = nn.value_and_grad(layer, lambda m: (m(x, None, dt, LENGTHS) ** 2).sum())(layer)[1]
    assert sorted(gradients) == ["backward_layer", "forward_layer"]
    other = Bidirectional.from_config(json.loads(json.dumps(layer.get_config())))
    layer.save_weights(str(tmp_path / "w.safetensors"))
    other.load_weights(str(tmp_path / "w.safetensors"), strict=True)
    assert_close(other(x, None, dt), layer(x, None, dt), 0)


def test_a_class_of_ones_own_is_found_again():
    class Renamed(GRU):
        pass

    config = Bidirectional(Renamed(I, H)).get_config()
    assert type(Bidirectional.from_config(config).backward_layer) is Renamed
    config["layer"]["class"] = "Gone"
    with pytest.raises(ValueError, match=r"\[Bidirectional\] config must name a defined layer, one of CTRQNet, CfC, .* got 'Gone'"):
        Bidirectional.from_config(config)


def test_dtype_of_the_wrapped_layer_is_kept():
    layer = GRU(I, H)
    layer.set_dtype(mx.bfloat16)
    assert Bidirectional(layer).backward_layer.dtype == mx.bfloat16


def test_mode_of_the_wrapped_layer_is_kept():
    assert not Bidirectional(GRU(I, H).eval()).backward_layer.training


MESSAGES = {
    "other-module": (
        TypeError,
        lambda: Bidirectional(nn.GRU(3, 4)),
        "[Bidirectional] layer must be a recurrent layer of ember_mlx, got mlx.nn.layers.recurrent.GRU.",
    ),
    "backwards": (
        ValueError,
        lambda: Bidirectional(GRU(3, 4, go_backwards=True)),
        "[Bidirectional] layer must run forwards and support go_backwards, got GRU with go_backwards=True.",
    ),
    "state": (
        TypeError,
        lambda: Bidirectional(GRU(3, 4))(mx.zeros((1, 2, 3)), mx.zeros((2, 1, 4))),
        "[Bidirectional] initial_state must be a pair (forward, backward) of the layer's states or None, got mlx.core.array.",
    ),
    "state-count": (
        ValueError,
        lambda: Bidirectional(GRU(3, 4))(mx.zeros((1, 2, 3)), [None]),
        "[Bidirectional] initial_state must be a pair (forward, backward) of the layer's states or None, got 1 entries.",
    ),
    "time-deltas": (
        ValueError,
        lambda: Bidirectional(GRU(3, 4))(mx.zeros((1, 2, 3)), time_deltas=0.5),
        "[GRU] time_deltas must be None, since this layer does not use elapsed time, got float.",
    ),
}


@pytest.mark.parametrize(("kind", "call", "message"), MESSAGES.values(), ids=MESSAGES)
def test_message(kind, call, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message)

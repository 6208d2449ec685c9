"""StrideAware: each stride's layer on its steps, outputs held between them, and streaming with any split."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import GRU, LSTM, LTC, RNN, FullyConnectedMap, LQNet, NCPMap, StrideAware, StrideAwareCfC, StrideAwareLTC

from .comparisons import assert_close

I, T, B = 3, 11, 3
STRIDES = [1, 3, 2, 3, 20]  # not sorted, one twice, one longer than the sequence
LENGTHS = [4, 11, 1]
KINDS = {
    "cfc": lambda **o: StrideAwareCfC(4, STRIDES, I, backbone_units=5, **o),
    "cfc-ncp-mixed-motor": lambda **o: StrideAwareCfC(NCPMap(3, 2, 2, I, seed=1), STRIDES, mixed_memory=True, output="motor", **o),
    "ltc": lambda **o: StrideAwareLTC(NCPMap(3, 2, 2, I, seed=1), STRIDES, ode_unfolds=2, **o),
    "ltc-mixed": lambda **o: StrideAwareLTC(4, STRIDES, I, ode_unfolds=2, mixed_memory=True, **o),
    "rnn": lambda **o: StrideAware(RNN(I, 4), STRIDES, **o),
    "gru-deep": lambda **o: StrideAware(GRU(I, 4, 2), STRIDES, **o),
    "lstm-projected": lambda **o: StrideAware(LSTM(I, 4, proj_size=2), STRIDES, **o),
    "lqnet": lambda **o: StrideAware(LQNet(4, input_size=I), STRIDES, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
with_lengths = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


def made(kind, **options):
    layer = KINDS[kind](**options)
    layer.eval()
    return layer


def inputs(kind):
    x, dt = mx.random.normal((B, T, I)), mx.random.uniform(0.1, 2, (B, T))
    return x, dt if made(kind).timed else None


@every_kind
@with_lengths
def test_each_stride_is_its_layer_on_its_own_steps(kind, lengths):
    layer = made(kind, return_sequences=True)
    x, dt = inputs(kind)
    y = np.array(layer(x, None, dt, lengths))
    width = y.shape[2] // len(STRIDES)
    for b, n in enumerate(lengths or [T] * B):
        for k, (stride, own) in enumerate(zip(STRIDES, layer.layers, strict=True)):
            places = range(0, n, stride)
            elapsed = None
            if dt is not None:
                values = np.array(dt)[b]
                elapsed = mx.array([[float(values[max(t - stride + 1, 0) : t + 1].sum()) for t in places]])
            expected = np.array(own(x[b : b + 1, :n:stride], None, elapsed, return_sequences=True))[0]
            held = y[b, :, k * width : (k + 1) * width]
            for t in range(n):
                np.testing.assert_allclose(held[t], expected[t // stride], rtol=1e-5, atol=1e-6)
        assert not y[b, n:].any()


@every_kind
@pytest.mark.parametrize("cuts", [[1], [4], [5, 6], [2, 3, 4, 9]], ids=str)
def test_cut_anywhere_is_uncut(kind, cuts):
    layer = made(kind, return_sequences=True, return_state=True)
    x, dt = inputs(kind)
    whole, whole_state = layer(x, None, dt)
    parts, state = [], None
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        y, state = layer(x[:, start:stop], state, None if dt is None else dt[:, start:stop])
        parts.append(y)
    assert_close(mx.concatenate(parts, axis=1), whole, 1e-6)
    for (path, got), (_, expected) in zip(tree_flatten(state), tree_flatten(whole_state), strict=True):
        assert_close(got, expected, 1e-5, path)


@every_kind
def test_sequences_of_different_lengths_go_on_at_their_own_phase(kind):
    layer = made(kind, return_sequences=True, return_state=True)
    x, dt = inputs(kind)
    first, second = [3, 5, 1], [6, 2, 4]

    def some(a, starts, counts):
        return None if a is None else mx.stack([mx.concatenate([a[b, s : s + 6], a[b, :6]])[:6] for b, s in enumerate(starts)])

    _, state = layer(some(x, [0, 0, 0], first), None, some(dt, [0, 0, 0], first), first)
    y, state = layer(some(x, first, second), state, some(dt, first, second), second)
    for b in range(B):
        n = first[b] + second[b]
        alone, alone_state = layer(x[b : b + 1, :n], None, None if dt is None else dt[b : b + 1, :n])
        assert_close(y[b, : second[b]], alone[0, first[b] :], 1e-6)
        assert not mx.any(y[b, second[b] :])
        for (path, got), (_, expected) in zip(tree_flatten(state), tree_flatten(alone_state), strict=True):
            row = got[:, b] if got.ndim == 3 else got[b]
            assert_close(row, expected[:, 0] if got.ndim == 3 else expected[0], 1e-5, path)


@every_kind
@pytest.mark.parametrize("streamed", [False, True], ids=["fresh", "streamed"])
def test_numpy_and_ops_have_the_same_gradient(kind, streamed):
    layer = made(kind, return_sequences=True, return_state=True)
    x, dt = inputs(kind)
    state = layer(x[:, :4], None, None if dt is None else dt[:, :4])[1] if streamed else None

    def loss(parameters, a, d):
        layer.update(parameters)
        return (layer(a, state, d, LENGTHS)[0] ** 2).sum()

    gradients = {}
    for backend in ("numpy", "ops"):
        with ember_mlx.use_backend(backend):
            arguments = (0, 1) if dt is None else (0, 1, 2)
            gradients[backend] = dict(tree_flatten(list(mx.grad(loss, arguments)(layer.trainable_parameters(), x, dt))))
    for path, expected in gradients["ops"].items():
        assert_close(gradients["numpy"][path], expected, 1e-4, path)
    assert any(np.abs(np.array(a)).max() > 0 for path, a in gradients["ops"].items() if path.startswith("1"))


@every_kind
def test_inside_transformations(kind):
    layer = made(kind, return_sequences=True)
    x, dt = inputs(kind)
    expected = layer(x, None, dt)
    assert_close(mx.compile(lambda a: layer(a, None, dt))(x), expected, 1e-5)
    one = mx.vmap(lambda a: layer(a, None, None if dt is None else 1.0))(x)
    assert_close(one, layer(x, None, None if dt is None else 1.0), 1e-5)
    step = nn.value_and_grad(layer, lambda m: m(x, None, dt).sum())
    assert np.isfinite(step(layer)[0].item())


@every_kind
def test_last_step_unbatched_time_first_and_lower_precision(kind):
    layer = made(kind, return_sequences=True)
    x, dt = inputs(kind)
    y = layer(x, None, dt)
    assert_close(layer(x, None, dt, return_sequences=False), y[:, -1], 1e-6)
    assert_close(layer(x[0], None, None if dt is None else dt[0]), y[0], 1e-5)
    y_0, state = layer(x[0, :5], None, None if dt is None else dt[0, :5], return_state=True)
    rest = layer(x[0, 5:], state, None if dt is None else dt[0, 5:])
    assert_close(mx.concatenate([y_0, rest]), y[0], 1e-5)
    turned = made(kind, return_sequences=True, batch_first=False)
    turned.update(layer.parameters())
    assert_close(turned(x.swapaxes(0, 1), None, None if dt is None else dt.T), y.swapaxes(0, 1), 1e-6)
    layer.set_dtype(mx.bfloat16)
    assert layer(x.astype(mx.bfloat16), None, dt).dtype == mx.bfloat16


@every_kind
def test_configuration_and_weights(kind, tmp_path):
    layer = made(kind, return_sequences=True)
    config = json.loads(json.dumps(layer.get_config()))
    twin = type(layer).from_config(config)
    assert twin.get_config() == layer.get_config()
    layer.save_weights(str(tmp_path / "weights.npz"))
    twin.load_weights(str(tmp_path / "weights.npz"))
    twin.eval()
    x, dt = inputs(kind)
    assert_close(twin(x, None, dt), layer(x, None, dt), 1e-6)
    assert str(STRIDES) in repr(layer)


def test_strides_have_weights_of_their_own():
    layer = StrideAwareCfC(4, [2, 2], 3)
    y = layer(mx.random.normal((2, 5, 3)))
    assert mx.abs(y[:, :4] - y[:, 4:]).max().item() > 1e-3


def test_shapes_of_the_specification():
    neuron_map = FullyConnectedMap(units=20, input_dim=10, output_dim=20)
    layer = StrideAwareCfC(neuron_map=neuron_map, stride_lengths=[1, 2, 4])
    x = mx.random.normal((32, 5, 10))
    y, [*states, (steps, elapsed)] = layer(x, return_state=True)
    assert y.shape == (32, 60)
    assert [[a.shape for a in state] for state in states] == [[(32, 20), (32, 20)]] * 3
    assert steps.shape == (32, 1)
    assert elapsed.shape == (32, 3)


def test_no_time_may_pass():
    layer = StrideAwareLTC(4, [1, 2], 3)
    gradient = mx.grad(lambda d: layer(mx.ones((2, 5, 3)), time_deltas=d).sum())(mx.zeros((2, 5)))
    assert np.isfinite(np.array(gradient)).all()


MAP = FullyConnectedMap(4, input_dim=3, output_dim=4)
X = mx.zeros((2, 5, 3))
MESSAGES = {
    "empty": (ValueError, lambda: StrideAwareCfC(MAP, []), "[StrideAwareCfC] stride_lengths must hold at least one stride, got none."),
    "zero": (ValueError, lambda: StrideAwareCfC(MAP, [1, 0]), "[StrideAwareCfC] stride_lengths[1] must be at least 1, got 0."),
    "negative": (ValueError, lambda: StrideAwareLTC(MAP, [-2]), "[StrideAwareLTC] stride_lengths[0] must be at least 1, got -2."),
    "float": (TypeError, lambda: StrideAwareCfC(MAP, [1.5]), "[StrideAwareCfC] stride_lengths[0] must be an integer, got 1.5."),
    "number": (TypeError, lambda: StrideAwareCfC(MAP, 2), "[StrideAwareCfC] stride_lengths must be a sequence of integers, got int."),
    "no-layer": (
        TypeError,
        lambda: StrideAware(nn.GRU(3, 4), [1]),
        "[StrideAware] layer must be a recurrent layer of ember_mlx without strides, got mlx.nn.layers.recurrent.GRU.",
    ),
    "untimed": (
        ValueError,
        lambda: StrideAware(GRU(3, 4), [1])(X, time_deltas=0.5),
        "[StrideAware] time_deltas must be None, since this layer does not use elapsed time, got float.",
    ),
    "state-count": (
        ValueError,
        lambda: StrideAwareCfC(MAP, [1, 2])(X, [None, None]),
        "[StrideAwareCfC] initial_state must be a list of 2 states, one per stride, and the clock [steps, elapsed], got 2 entries.",
    ),
    "clock": (
        TypeError,
        lambda: StrideAwareCfC(MAP, [1])(X, [None, mx.zeros((2, 1))]),
        "[StrideAwareCfC] initial_state clock must be a list [steps, elapsed] of arrays or None, got mlx.core.array.",
    ),
    "steps-dtype": (
        TypeError,
        lambda: StrideAwareCfC(MAP, [1])(X, [None, [mx.zeros((2, 1)), None]]),
        "[StrideAwareCfC] initial_state steps must be an mx.array of integers, got float32.",
    ),
    "steps-value": (
        ValueError,
        lambda: StrideAwareCfC(MAP, [1, 2])(X, [None, None, [mx.array([[3], [-1]]), None]]),
        "[StrideAwareCfC] initial_state steps must be finite and not negative, got -1.",
    ),
    "elapsed-value": (
        ValueError,
        lambda: StrideAwareCfC(MAP, [1, 2])(X, [None, None, [None, mx.array([[0.5, float("inf")], [1, 2]])]]),
        "[StrideAwareCfC] initial_state elapsed must be finite and not negative, got inf.",
    ),
    "too-long": (
        ValueError,
        lambda: StrideAwareCfC(MAP, [1, 2**31]),
        "[StrideAwareCfC] stride_lengths[1] must be at most 2^30 = 1073741824, got 2147483648.",
    ),
    "clock-at-its-end": (
        ValueError,
        lambda: StrideAwareCfC(MAP, [1])(X, [None, [mx.array([[3], [2**31 - 5]], mx.int64), None]]),
        "[StrideAwareCfC] initial_state steps must be at most 2147483642, or the step count overflows; start a new stream, got 2147483643.",
    ),
    "another-stride-later": (
        ValueError,
        lambda: setattr(StrideAwareCfC(MAP, [1]), "stride_lengths", [2]),
        "[StrideAwareCfC] stride_lengths must not change, since the parameters depend on it; make a new layer, got [2].",
    ),
    "elapsed-shape": (
        ValueError,
        lambda: StrideAwareCfC(MAP, [1, 2])(X, [None, None, [None, mx.zeros((2, 1))]]),
        "[StrideAwareCfC] initial_state elapsed must have shape (2, 2), got (2, 1).",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_message(name):
    kind, call, message = MESSAGES[name]
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


def test_a_stream_may_go_on_for_ever():
    layer, x = made("rnn", return_state=True, return_sequences=True), mx.random.normal((1, 7, I))
    _, state = layer(x)
    turn = 2**30 // 60 * 60  # a multiple of all strides
    results = []
    for steps in (60 - 3, turn - 3):
        y, [*_, [after, _]] = layer(x, [*state[:-1], [mx.array([[steps]], mx.int32), state[-1][1]]])
        results.append((y, after.item()))
    assert_close(results[1][0], results[0][0], 0, "y")
    assert [after for _, after in results] == [64, 4]


@pytest.mark.parametrize("dtype", [mx.int8, mx.uint8, mx.uint32, mx.int64, mx.uint64], ids=str)
def test_a_clock_may_be_integers_of_any_kind(dtype):
    layer, x = made("rnn", return_state=True, return_sequences=True), mx.random.normal((2, 7, I))
    _, [*state, [steps, elapsed]] = layer(x)
    expected, [*_, [after, _]] = layer(x, [*state, [steps, elapsed]])
    y, [*_, [found, _]] = layer(x, [*state, [steps.astype(dtype), elapsed]])
    assert_close(y, expected, 0, "y")
    assert found.dtype == after.dtype == mx.int32
    assert found.tolist() == after.tolist()


@every_kind
@pytest.mark.parametrize("streamed", [False, True], ids=["fresh", "streamed"])
def test_a_stride_longer_than_the_sequence_costs_no_more(kind, streamed):
    """Every array of the graph is as large as for a stride of T, forward and backward, and the result the same."""
    results = []
    for stride in (T, 2**30):
        mx.random.seed(1)
        layer = StrideAware(made(kind).layers[0], [1, stride], return_sequences=True, return_state=True)
        layer.eval()
        x, dt = inputs(kind)
        state = layer(x[:, :4], None, None if dt is None else dt[:, :4])[1] if streamed else None
        loss = lambda a, d, layer=layer, state=state: (layer(a, state, d)[0] ** 2).sum()  # noqa: E731
        mx.eval(x, dt, state, layer.parameters())
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.grad(loss, argnums=(0,) if dt is None else (0, 1))(x, dt))
        results.append((mx.get_peak_memory() - before, np.array(layer(x[:, : T - 1 - 4 * streamed], state, None)[0])))
    (peak, y), (long_peak, long_y) = results
    assert long_peak <= 1.1 * peak + 4096
    assert_close(long_y, y, 0, "y")


def test_strides_are_the_layers_own():
    given = [1, 2]
    layer = StrideAwareCfC(4, given, 3)
    given.append(5)
    layer.stride_lengths.append(7)
    assert layer.stride_lengths == layer.get_config()["stride_lengths"] == [1, 2]


def test_strides_without_a_common_multiple_count_on():
    strides = [2**30 - 35, 2**30 - 41, 3]
    layer = StrideAware(RNN(I, 4), strides, return_state=True, return_sequences=True)
    x, steps = mx.random.normal((1, 7, I)), mx.array([[2 * strides[0] - 3]], mx.int32)
    y, [_, _, _, [after, elapsed]] = layer(x, [None, None, None, [steps, mx.zeros((1, 3))]])
    assert after.item() == 2 * strides[0] + 4
    assert [elapsed[0, k].item() for k in (0, 1)] == [3, 7]
    own = layer.layers[0](x[:, 3:4], return_sequences=True)
    assert_close(y[:, 3:, :4], mx.broadcast_to(own, (1, 4, 4)), 1e-6)
    assert not mx.any(y[:, :3, :4])


def test_a_layer_that_runs_backwards_is_refused():
    for layer, why in ((LTC(4, 3, go_backwards=True), "LTC with go_backwards"), (GRU(3, 4, bidirectional=True), "GRU with bidirectional")):
        with pytest.raises(ValueError, match=rf"\[StrideAware\] layer must run forwards, got {why}=True\."):
            StrideAware(layer, [1])
    assert not any(layer.training for layer in StrideAware(GRU(3, 4).eval(), [1, 2]).layers)

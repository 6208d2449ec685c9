"""Properties of every layer of the package."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import ember_mlx
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
    RandomMap,
    Recurrent,
    StrideAware,
    StrideAwareCfC,
    cells,
)

from .comparisons import assert_close, assert_trees_close

B, T, I = 3, 5, 3
LENGTHS = [2, 5, 1]
LAYERS = {
    "rnn": lambda: RNN(I, 4, activation="relu"),
    "lstm": lambda: LSTM(I, 4, 2, proj_size=2, bidirectional=True),
    "gru": lambda: GRU(I, 4),
    "recurrent": lambda: Recurrent(cells.LEM, I, 4, 2),
    "recurrent-untimed": lambda: Recurrent(cells.SRU, I, 4),
    "cfc": lambda: CfC(4, I, backbone_units=5),
    "cfc-mixed": lambda: CfC(NCPMap(4, 3, 2, I, seed=1), mixed_memory=True, output="motor", proj_size=2),
    "ltc": lambda: LTC(4, I, ode_unfolds=2),
    "ltc-mixed": lambda: LTC(RandomMap(5, 3, I, seed=2), ode_unfolds=2, mixed_memory=True),
    "lqnet": lambda: LQNet(RandomMap(5, 3, I, seed=2)),
    "ctrqnet": lambda: CTRQNet(4, input_size=I),
    "strides": lambda: StrideAware(GRU(I, 4), [3, 2]),
    "strides-cfc": lambda: StrideAwareCfC(4, [1, 3], I),
    "both": lambda: Bidirectional(LTC(4, I, ode_unfolds=2)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind):
    mx.random.seed(0)
    return LAYERS[kind]().eval()


@every_layer
def test_sizes_are_those_of_a_call(kind):
    layer = make(kind)
    y = layer(mx.zeros((B, T, layer.input_size)), return_sequences=True)
    assert y.shape == (B, T, layer.output_size)


@every_layer
@pytest.mark.parametrize("backend", ["auto", "ops"])
@pytest.mark.parametrize("padding", [float("nan"), float("inf")])
def test_nothing_past_a_length_reaches_a_result_or_a_gradient(kind, backend, padding):
    layer = make(kind)
    x = mx.random.normal((B, T, I))
    is_padding = mx.arange(T) >= mx.array(LENGTHS)[:, None]

    def run(parameters, x):
        layer.update(parameters)
        y, state = layer(x, lengths=LENGTHS, return_sequences=True, return_state=True)
        return y.square().sum(), state

    with ember_mlx.use_backend(backend):
        expected = mx.value_and_grad(run, argnums=(0, 1))(layer.parameters(), x)
        padded = mx.where(is_padding[:, :, None], padding, x)
        assert_trees_close(mx.value_and_grad(run, argnums=(0, 1))(layer.parameters(), padded), expected, 1e-5)
    assert sum(float(mx.abs(a).max()) > 0 for _, a in tree_flatten(expected[1][0]) if a.size) > 1


@every_layer
def test_a_frozen_layer_trains_with_what_is_around_it(kind):
    model = nn.Sequential(make(kind), lambda y: y.mean(axis=-1, keepdims=True), nn.Linear(1, 1))
    x = mx.random.normal((B, T, I))
    layer, names = model.layers[0], [name for name, _ in tree_flatten(model.layers[0].parameters()) if name != "map_id"]
    for freeze in (layer.freeze, model.freeze):
        freeze()
        model.layers[2].unfreeze()
        gradients = nn.value_and_grad(model, lambda m: m(x).sum())(model)[1]
        assert [name for name, _ in tree_flatten(gradients)] == ["layers.2.weight", "layers.2.bias"]
    layer.unfreeze()
    assert [name for name, _ in tree_flatten(layer.trainable_parameters())] == names


def test_parts_of_a_layer_can_be_frozen():
    layer = CfC(NCPMap(4, 3, 2, I, seed=1), mixed_memory=True).freeze()
    layer.lstm.unfreeze()
    gradients = nn.value_and_grad(layer, lambda m: m(mx.ones((B, T, I))).sum())(layer)[1]
    assert {name for name, _ in tree_flatten(gradients)} == {"lstm.Wx", "lstm.Wh", "lstm.bias"}


@every_layer
def test_lengths_may_be_integers_of_any_kind(kind):
    layer = make(kind)
    x = mx.random.normal((B, T, I))
    expected = layer(x, lengths=LENGTHS, return_sequences=True)
    arrays = [mx.array(LENGTHS, dtype) for dtype in (mx.int8, mx.uint8, mx.uint32, mx.int64, mx.uint64)]
    for lengths in (*arrays, np.array(LENGTHS), np.array(LENGTHS, np.uint64), [np.int64(n) for n in LENGTHS], tuple(LENGTHS)):
        assert_close(layer(x, lengths=lengths, return_sequences=True), expected, 1e-6)


@every_layer
def test_y_is_zero_past_a_length_whatever_the_parameters(kind):
    layer = make(kind)
    layer.update(tree_map(lambda a: a + 0.3, layer.parameters()))
    y = layer(mx.random.normal((B, T, I)), lengths=LENGTHS, return_sequences=True)
    for b, n in enumerate(LENGTHS):
        assert not mx.any(y[b, n:])
        assert mx.all(mx.any(y[b, :n] != 0, axis=-1))


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind not in ("lstm", "both")])  # these look ahead
def test_sequences_cut_at_different_places_go_on(kind):
    layer = make(kind)
    x, more = mx.random.normal((B, T, I)), mx.random.normal((B, 4, I))
    dt, more_dt = mx.random.uniform(0.1, 2, (B, T)), mx.random.uniform(0.1, 2, (B, 4))
    times = (dt, more_dt) if layer.timed else (None, None)
    _, state = layer(x, None, times[0], LENGTHS, return_state=True)
    y = layer(more, state, times[1], return_sequences=True)
    for b, n in enumerate(LENGTHS):
        whole = mx.concatenate([dt[b, :n], more_dt[b]]) if layer.timed else None
        alone = layer(mx.concatenate([x[b, :n], more[b]]), None, whole, return_sequences=True)
        assert_close(y[b], alone[n:], 1e-5)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "both"])  # whose layers have them
def test_settings_are_checked_whenever_they_are_assigned(kind):
    layer = make(kind)
    for name, check in layer.settings.items():
        before = getattr(layer, name)
        setattr(layer, name, before)
        with pytest.raises((TypeError, ValueError), match=rf"^\[{type(layer).__name__}\] {name} must .*, got .*bogus"):
            setattr(layer, name, "bogus")
        assert getattr(layer, name) == check("", name, before)
    layer(mx.zeros((B, T, I)))


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "both"])
def test_what_parameters_were_made_for_stays_as_it_is(kind):
    layer = make(kind)
    fixed = {name for name in layer.get_config() if hasattr(layer, name) and name not in layer.settings}
    assert fixed
    for name in fixed | {"input_size", "units"}:
        with pytest.raises(ValueError, match=rf"^\[{type(layer).__name__}\] {name} must not change"):
            setattr(layer, name, getattr(layer, name))


def wrong_shapes(a):
    """Shapes that NumPy would broadcast, and others."""
    yield (*a.shape, 1)
    yield (1, *a.shape)
    for axis, n in enumerate(a.shape):
        for other in {k for k in (1, n - 1, n + 1, 2 * n) if k > 0} - {n}:
            yield (*a.shape[:axis], other, *a.shape[axis + 1 :])
    yield ()


@every_layer
def test_a_parameter_of_another_shape_or_kind_is_refused(kind):
    layer, x = make(kind), mx.zeros((B, T, I))
    parameters = tree_flatten(layer.parameters())
    for path, a in parameters:
        wrong = [mx.zeros(shape) for shape in wrong_shapes(a)] + ([mx.zeros(a.shape, mx.int32)] if a.size else [])
        for value in wrong:
            layer.update(tree_unflatten([(path, value)]))
            name = "the weights" if path.endswith("map_id") else path.split(".")[-1]
            with pytest.raises((TypeError, ValueError), match=rf"^\[\w+\] ([\w.]+\.)?{name} must"):
                layer(x)
        layer.update(tree_unflatten([(path, a)]))
    layer(x)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind not in ("rnn", "lstm", "gru", "recurrent-untimed", "strides")])
def test_a_time_delta_may_be_a_number_of_any_kind(kind):
    layer, x = make(kind), mx.random.normal((B, T, I))
    expected = layer(x, time_deltas=2.0)
    for dt in (2, np.float32(2), np.float64(2), np.float16(2), np.int64(2), mx.array(2.0), mx.full((B, T, 1), 2.0)):
        assert_close(layer(x, time_deltas=dt), expected, 1e-6)

"""Recurrent: the common contract for cells of one's own, with and without time; parameters, configuration, files, transformations."""

import copy
import inspect
import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Cell,
    Parameter,
    Recurrent,
    SequenceModel,
    StrideAware,
    cells,
    load,
    reference,
    save,
    use_backend,
)
from ember_mlx.layers.stacked import StackedLayer
from ember_mlx.step import exp, sigmoid, softplus, tanh
from ember_mlx.training import Sequences, evaluate, fit

from .comparisons import assert_close, assert_trees_close
from .tolerances import FORWARD

I, H, T, B = 3, 5, 8, 4
LENGTHS = [3, 8, 1, 5]


class Decaying(Cell):
    """A cell of one's own with all there is: two states, time, a weight used twice, parameters, a shared one, a setting."""

    states = ("h", "m")
    x_products = 2
    h_products = {"R": 2, "S": 1}
    parameters = {"rate": (-1.0, 1.0), "gain": Parameter(0.5, shared=True), "start": lambda H: np.linspace(0, 1, H)}

    def __init__(self, power: int = 2, name: str = "decaying"):
        self.power, self.name = power, name

    def step(self, x, h, m, dt, R, S, rate, gain, start):
        h = h * exp(-softplus(rate) * dt)
        z, n = R(h)
        m = m + sigmoid(x[0] + z) * (tanh(x[1] + n) ** self.power - m)
        return h + gain * tanh(S(m) + S(h) + start), m


class Plain(Cell):
    h_products = {"R": 1}

    def step(self, x, h, R):
        return tanh(x + R(h))


KINDS = {
    "own": lambda **o: Recurrent(Decaying, I, H, **o),
    "own-deep": lambda **o: Recurrent(Decaying(power=1), I, H, 2, bias=False, **o),
    "lem": lambda **o: Recurrent(cells.LEM, I, H, 2, **o),
    "untimed": lambda **o: Recurrent(Plain(), I, H, 2, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_backend = pytest.mark.parametrize("backend", ["numpy", "ops"])


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


@pytest.fixture
def x():
    return mx.random.normal((B, T, I))


@pytest.fixture
def dt():
    return mx.random.uniform(0.1, 2, (B, T))


def timed(layer, dt):
    return {"time_deltas": dt} if layer.timed else {}


def test_shapes_and_names_of_parameters():
    layer = Recurrent(Decaying, I, H, 2, bidirectional=True)
    y, (h, m) = layer(mx.zeros((B, T, I)), return_state=True)
    assert (y.shape, h.shape, m.shape) == ((B, T, 2 * H), (4, B, H), (4, B, H))
    assert layer(mx.zeros((T, I))).shape == (T, 2 * H)
    own = {name: a.shape for name, a in layer.layers[1]["backward"].items() if isinstance(a, mx.array)}
    assert own == {"Wx": (2 * H, 2 * H), "bias": (2 * H,), "R": (2 * H, H), "S": (H, H), "rate": (H,), "gain": (1,), "start": (H,)}
    assert len(tree_flatten(layer.trainable_parameters())) == 4 * 7


def test_initial_values_are_the_cells():
    layer = Recurrent(Decaying, I, 40)
    p = layer.layers[0]["forward"]
    assert p.gain.tolist() == [0.5]
    np.testing.assert_allclose(np.array(p.start), np.linspace(0, 1, 40), atol=1e-7)
    assert -1 <= float(p.rate.min()) < -0.5 < 0.5 < float(p.rate.max()) <= 1
    for a in (p.Wx, p.bias, p.R, p.S):
        assert 0.8 / 40**0.5 < float(mx.abs(a).max()) <= 1 / 40**0.5
    mx.random.seed(7)
    once = Recurrent(Decaying, I, H)
    mx.random.seed(7)
    assert_trees_close(Recurrent(Decaying, I, H).parameters(), once.parameters(), 0)


@every_kind
@every_backend
def test_sequence_equals_its_steps_one_by_one(kind, backend, x, dt):
    layer, state, rows = KINDS[kind](), None, []
    with use_backend(backend):
        y = layer(x, **timed(layer, dt))
        for t in range(T):
            out, state = layer(x[:, t : t + 1], state, **timed(layer, dt[:, t : t + 1]), return_state=True)
            rows.append(out)
    assert_close(mx.concatenate(rows, axis=1), y, 1e-6)


@every_kind
@every_backend
def test_lengths_equal_running_each_sequence_alone(kind, backend, x, dt):
    layer = KINDS[kind](return_state=True, bidirectional=True)
    with use_backend(backend):
        y, state = layer(x, **timed(layer, dt), lengths=LENGTHS)
        last = layer(x, **timed(layer, dt), lengths=LENGTHS, return_sequences=False, return_state=False)
        for b, n in enumerate(LENGTHS):
            given = timed(layer, dt[b : b + 1, :n])
            alone, alone_state = layer(x[b : b + 1, :n], **given)
            assert_close(y[b : b + 1, :n], alone, 1e-6)
            assert not mx.any(y[b, n:])
            assert_close(last[b : b + 1], layer(x[b : b + 1, :n], **given, return_sequences=False, return_state=False), 1e-6)
            for a, c in zip(state, alone_state, strict=True):
                assert_close(a[:, b : b + 1], c, 1e-6)


@every_kind
def test_both_directions_are_two_layers_each_with_its_own_times(kind, x, dt):
    layer = Recurrent(KINDS[kind]().cell, I, H, bidirectional=True)
    forward, backward = Recurrent(layer.cell, I, H), Recurrent(layer.cell, I, H, go_backwards=True)
    forward.layers[0]["forward"].update(layer.layers[0]["forward"].parameters())
    backward.layers[0]["forward"].update(layer.layers[0]["backward"].parameters())
    y = layer(x, **timed(layer, dt))
    assert_close(y[..., :H], forward(x, **timed(layer, dt)), 1e-6)
    assert_close(y[..., H:], backward(x, **timed(layer, dt))[:, ::-1], 1e-6)
    turned = {"time_deltas": dt[:, ::-1]} if layer.timed else {}
    backward.go_backwards = False
    assert_close(y[..., H:], backward(x[:, ::-1], **turned)[:, ::-1], 1e-6)


@every_kind
def test_parts_of_a_sequence_give_the_same_outputs_and_gradients(kind, x, dt):
    whole = KINDS[kind](bidirectional=True)
    parts = whole.alike(checkpoint_steps=3)
    parts.update(whole.parameters())
    results = []
    for layer in (whole, parts):
        loss = lambda p, x, dt, layer=layer: (layer.update(p), (layer(x, **timed(layer, dt), lengths=LENGTHS) ** 2).sum())[1]  # noqa: E731
        results.append(mx.value_and_grad(loss, argnums=(0, 1, 2))(layer.parameters(), x, dt))
    assert_trees_close(list(results[0]), list(results[1]), 1e-5)


@every_kind
def test_time_first_is_the_same_with_other_axes(kind, x, dt):
    layer = KINDS[kind]()
    other = layer.alike(batch_first=False)
    other.update(layer.parameters())
    given = {"time_deltas": dt.T[..., None]} if layer.timed else {}
    assert_close(other(x.swapaxes(0, 1), **given).swapaxes(0, 1), layer(x, **timed(layer, dt)), 1e-6)


def test_forms_of_time(x, dt):
    layer = KINDS["own"]()
    assert_close(layer(x), layer(x, time_deltas=1.0), 0)
    assert_close(layer(x, time_deltas=dt), layer(x, time_deltas=dt[..., None]), 0)
    assert_close(layer(x, time_deltas=0.5), layer(x, time_deltas=mx.full((B, T), 0.5)), 0)
    assert float(mx.abs(layer(x, time_deltas=0.5) - layer(x)).max()) > 1e-3
    with pytest.raises(ValueError, match=r"^\[Recurrent\] time_deltas must be finite and not negative, got -1\.0"):
        layer(x, time_deltas=-1.0)
    with pytest.raises(ValueError, match=r"^\[Recurrent\] time_deltas must be None, since .*, got float\.$"):
        KINDS["untimed"]()(x, time_deltas=1.0)


def test_states_given_and_taken(x):
    layer = KINDS["own"](return_state=True)
    y, state = layer(x)
    zeros = [mx.zeros((1, B, H))] * 2
    for given in (zeros, (None, None), [None, zeros[1]]):
        assert_close(layer(x, given)[0], y, 0)
    assert isinstance(state, list)
    for k in range(2):
        given = [None, None]
        given[k] = mx.ones((1, B, H))
        assert float(mx.abs(layer(x, given)[0] - y).max()) > 1e-3
    form = r"be a list \[h, m\] of arrays or None, each \(num_layers \* num_directions, B, H\)"
    with pytest.raises(ValueError, match=rf"^\[Recurrent\] initial_state must {form}, got 1 entries\.$"):
        layer(x, [zeros[0]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every_kind
def test_dtypes(kind, dtype, x, dt):
    layer = KINDS[kind](return_state=True)
    expected, _ = layer(x, **timed(layer, dt))
    layer.set_dtype(getattr(mx, dtype))
    y, state = layer(x.astype(layer.dtype), **timed(layer, dt))
    assert y.dtype == getattr(mx, dtype)
    assert {a.dtype for a in state} == {mx.float64 if dtype == "float64" else mx.float32}
    assert_close(y.astype(mx.float32), expected, 1e-6 if dtype == "float64" else 2 * FORWARD[dtype])


@every_kind
@every_backend
def test_gradients_reach_everything(kind, backend, x, dt):
    layer = KINDS[kind]()
    state = [mx.random.normal(layout.shape(B, True)) for layout in layer.state_layouts]

    def loss(parameters, x, dt, state):
        layer.update(parameters)
        return (layer(x, state, **timed(layer, dt)) ** 2).sum()

    with use_backend(backend):
        gradients = mx.grad(loss, argnums=(0, 1, 2, 3))(layer.parameters(), x, dt, state)
    for path, a in tree_flatten(list(gradients)):
        if layer.timed or not path.startswith("2"):
            assert float(mx.abs(a).max()) > 0, path


def test_inside_transformations(x, dt, tmp_path):
    layer = KINDS["own"]()
    expected = layer(x, time_deltas=dt)
    assert_close(mx.compile(lambda x, dt: layer(x, time_deltas=dt))(x, dt), expected, 1e-5)
    assert_close(mx.vmap(lambda x, dt: layer(x, time_deltas=dt))(x[:, None], dt[:, None])[:, 0], expected, 1e-5)
    mx.export_function(str(tmp_path / "layer.mlxfn"), lambda x, dt: layer(x, time_deltas=dt), x, dt)
    assert_close(mx.import_function(str(tmp_path / "layer.mlxfn"))(x, dt)[0], expected, 1e-5)


@pytest.mark.parametrize("backend", ["auto", "ops"])
@every_kind
def test_a_stepper_takes_the_layers_steps(kind, backend, x, dt):
    layer = KINDS[kind]()
    expected = layer(x, **timed(layer, dt))
    with use_backend(backend):
        stepper = SequenceModel(layer).stepper(batch=B)
        for t in range(T):
            y = stepper.step(x[:, t], **({"dt": dt[:, t]} if layer.timed else {}))
            assert_close(y, expected[:, t], 1e-6)


def test_what_is_around_layers(x, dt):
    layer = KINDS["own"]()
    both = Bidirectional(layer)
    assert both.backward_layer.cell is layer.cell
    assert both(x, time_deltas=dt).shape == (B, T, 2 * H)
    strides = StrideAware(layer, [1, 3], return_sequences=True)
    assert strides.timed
    strides.layers[0].update(layer.parameters())
    assert_close(strides(x, time_deltas=dt)[..., :H], layer(x, time_deltas=dt), 1e-6)


def test_it_trains():
    x, dt = mx.random.normal((48, 6, I)), mx.random.uniform(0.1, 1, (48, 6))
    data = Sequences(x, (x[:, -1, 0] > 0).astype(mx.int32), dt, lengths=[6] * 48)
    model = SequenceModel(Recurrent(Decaying, I, 8, return_sequences=False), outputs=2)
    weights = dict(tree_flatten(model.parameters()))
    fit(model, data, epochs=20, loss="cross_entropy", learning_rate=3e-2, batch_size=8, progress=False)
    assert evaluate(model, data, ["accuracy"])["accuracy"] > 0.8
    assert all(not mx.array_equal(a, weights[path]) for path, a in tree_flatten(model.parameters()))


def test_configuration():
    layer = Recurrent(Decaying(power=3), I, H, 2, dropout=0.25, go_backwards=True)
    config = layer.get_config()
    assert config["cell"] == {"class": "Decaying", "settings": {"power": 3, "name": "decaying"}}
    assert json.loads(json.dumps(config)) == config
    same = Recurrent.from_config(json.loads(json.dumps(config)))
    assert same.get_config() == config
    assert type(same.cell) is Decaying
    assert Recurrent.from_config(config | {"cell": cells.LEM}).cell.definition == cells.LEM().definition
    with pytest.raises(ValueError, match=r"^\[Recurrent\] config must name a cell that is defined, one of .*Decaying.*, got 'Nobody'\.$"):
        Recurrent.from_config(config | {"cell": {"class": "Nobody", "settings": {}}})
    with pytest.raises(ValueError, match=r"^\[Recurrent\] Decaying must hold no other names than power, name, got 'size'\.$"):
        Recurrent.from_config(config | {"cell": {"class": "Decaying", "settings": {"size": 1}}})
    with pytest.raises(ValueError, match=r"^\[Recurrent\] config must hold a cell's class and settings, got \{\}\.$"):
        Recurrent.from_config(config | {"cell": {}})


def test_files(tmp_path, x, dt):
    path = tmp_path / "layer.safetensors"
    model = SequenceModel(Bidirectional(Recurrent(Decaying(power=1), I, H)), StrideAware(Recurrent(Plain, 2 * H, H), [1, 2]), outputs=2)
    save(model, path)
    for classes in ([Decaying, Plain], [Plain, Decaying, nn.Linear]):
        same = load(path, classes=classes)
        assert mx.array_equal(same(x, time_deltas=dt), model(x, time_deltas=dt))
    assert same.layers[0].forward_layer.cell.power == 1
    with pytest.raises(ValueError, match=r"^\[load\] classes must hold Plain, a cell that .* known are .*, got \['Decaying'\]\.$"):
        load(path, classes=[Decaying])
    with pytest.raises(ValueError, match=r"^\[load\] classes must hold Decaying, a cell that the file names"):
        reference.load(path)
    with pytest.raises(TypeError, match=r"^\[load\] classes must hold subclasses of Cell, got <class 'int'>\.$"):
        reference.load(path, classes=[int])
    predict = reference.load(path, classes=[Decaying, Plain])
    np.testing.assert_allclose(predict(np.array(x), time_deltas=np.array(dt)), np.array(model(x, time_deltas=dt)), atol=1e-6)


def test_a_cell_with_the_name_of_one_of_the_package_is_another(tmp_path):
    theirs, path = type("MinGRU", (Plain,), {}), tmp_path / "layer.safetensors"
    save(Recurrent(theirs, I, H), path)
    with pytest.raises(ValueError, match=r"^\[load\] classes must hold MinGRU, a cell that .* known are .*ember_mlx\.cells\.MinGRU"):
        load(path)
    assert type(load(path, classes=[theirs]).cell) is theirs
    save(Recurrent(cells.MinGRU, I, H), path)
    assert type(load(path, classes=[theirs]).cell) is cells.MinGRU


def test_settings_can_be_saved_and_stay():
    class Setting(Cell):
        def __init__(self, value):
            self.value = value

        def step(self, x, h):
            return x + 0.5 * h

    for value in (1, 2.5, "a", None, True, [1, {"a": None}]):
        assert Recurrent(Setting(value), I, H).get_config()["cell"]["settings"] == {"value": value}
    expected = "be a number, a text, True, False, None, or a list or dict of these, since it is saved with the layer"
    for value in (tanh, float("nan"), np.ones(3), {1: 2}):
        with pytest.raises(TypeError) as caught:
            Recurrent(Setting(value), I, H)
        assert str(caught.value) == f"[Setting] value must {expected}, got {value!r}."
    with pytest.raises(TypeError, match=r"^\[Recurrent\] cell must be a cell: Setting is made with arguments, got .*'value'\.$"):
        Recurrent(Setting, I, H)
    layer = Recurrent(Setting(3), I, H)
    with pytest.raises(ValueError, match=r"^\[Setting\] value must not change, since the step was read with it; make a new cell, got 4\.$"):
        layer.cell.value = 4
    with pytest.raises(ValueError, match=r"^\[Recurrent\] cell must not change, since the parameters depend on it; make a new layer, got "):
        layer.cell = Setting(3)


def test_a_setting_is_kept_by_the_constructor():
    class Forgetful(Cell):
        def __init__(self, value=1):
            pass

        def step(self, x, h):
            return x + 0.5 * h

    with pytest.raises(ValueError, match=r"^\[Forgetful\] value must be kept by the constructor as an attribute of that name, got none\.$"):
        Recurrent(Forgetful, I, H)


@pytest.mark.parametrize("bad", [3, "LEM", GRU, tanh])
def test_what_is_no_cell_is_refused(bad):
    with pytest.raises(TypeError, match=r"^\[Recurrent\] cell must be a Cell, or a class of such, got "):
        Recurrent(bad, I, H)


def test_copies():
    layer = KINDS["own"]()
    other = copy.deepcopy(layer)
    assert other.cell is not layer.cell
    assert other.cell.definition == layer.cell.definition
    assert_close(other(mx.ones((B, T, I))), layer(mx.ones((B, T, I))), 0)


def test_texts():
    layer = Recurrent(cells.CTRNN(unfolds=2), I, H, 2)
    assert str(layer).startswith("Recurrent(CTRNN(unfolds=2), 3, 5, num_layers=2\n")
    assert "CellDirection(Wx=(5, 3), R=(5, 5), bias=(5,), rate=(5,))" in str(layer)
    assert "Recurrent(CTRNN(unfolds=2), 3, 5, num_layers=2)" in layer._repr_html_()


@pytest.mark.parametrize("cls", [RNN, LSTM, GRU, Recurrent])
def test_what_layers_of_a_kind_share_is_written_once_and_seen_everywhere(cls):
    common = [name for name, p in inspect.signature(StackedLayer).parameters.items() if p.kind is p.KEYWORD_ONLY]
    named = inspect.signature(cls).parameters
    assert list(named)[-len(common) :] == common
    assert all(p.kind is not p.VAR_KEYWORD for p in named.values())
    for name in named:
        assert f"\n    {name}: " in cls.__doc__
    assert "<" not in cls.__doc__.split("Example:")[0]
    for part in ("\nArgs:\n", "\nCall:\n", "\nReturns:\n", "\nRaises:\n", "\nExample:\n"):
        assert part in cls.__doc__


def test_public_names():
    for name in ("Cell", "Parameter", "Recurrent", "cells", "step", "testing"):
        assert name in ember_mlx.__all__
        assert getattr(ember_mlx, name)

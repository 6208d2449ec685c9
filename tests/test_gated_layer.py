"""RNN, LSTM and GRU: shapes, the common contract, state, precision, configuration, and MLX's transformations."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import GRU, LSTM, RNN
from ember_mlx.kernels import launches

from .comparisons import assert_close, assert_trees_close
from .metal_host import metal_kernel
from .test_kernels import BY_STEP, kernels_on, on_host
from .tolerances import FORWARD, GRADIENT

I, H, T, B = 3, 6, 9, 4
LENGTHS = [3, 9, 1, 5]
KINDS = {
    "rnn": lambda **o: RNN(I, H, **o),
    "rnn-relu": lambda **o: RNN(I, H, activation="relu", **o),
    "lstm": lambda **o: LSTM(I, H, **o),
    "lstm-projected": lambda **o: LSTM(I, H, proj_size=2, **o),
    "gru": lambda **o: GRU(I, H, **o),
    "gru-deep": lambda **o: GRU(I, H, 3, bias=False, **o),
    "lstm-both-ways-deep": lambda **o: LSTM(I, H, 2, bidirectional=True, **o),
    "rnn-both-ways": lambda **o: RNN(I, H, bidirectional=True, **o),
}
ONE_WAY = [name for name in KINDS if "both" not in name]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_one_way = pytest.mark.parametrize("kind", ONE_WAY)
every_backend = pytest.mark.parametrize("backend", ["numpy", "ops"])
with_lengths = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


@pytest.fixture
def x():
    return mx.random.normal((B, T, I))


def same(a, b, tolerance=1e-6):
    assert len(a) == len(b)
    for k, (got, expected) in enumerate(zip(a, b, strict=True)):
        assert_close(got, expected, tolerance, f"state {k}")


@pytest.mark.parametrize("cls", [RNN, LSTM, GRU])
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_shapes_of_the_specification(cls, layers, directions):
    layer = cls(input_size=10, hidden_size=20, num_layers=layers, bidirectional=directions == 2)
    x = mx.random.normal((32, 5, 10))
    y, state = layer(x, return_state=True)
    assert layer(x).shape == y.shape == (32, 5, 20 * directions)
    assert layer(x, return_sequences=False).shape == (32, 20 * directions)
    assert [a.shape for a in state] == [(layers * directions, 32, 20)] * (2 if cls is LSTM else 1)
    assert isinstance(state, tuple if cls is LSTM else list)
    assert layer(x[0]).shape == (5, 20 * directions)


def test_a_projected_state():
    y, (h, c) = LSTM(10, 20, 2, proj_size=7, bidirectional=True)(mx.zeros((4, 5, 10)), return_state=True)
    assert (y.shape, h.shape, c.shape) == ((4, 5, 14), (4, 4, 7), (4, 4, 20))


@every_one_way
@every_backend
def test_sequence_equals_its_steps_one_by_one(kind, backend, x):
    layer, state, rows = KINDS[kind](), None, []
    with ember_mlx.use_backend(backend):
        y = layer(x)
        for t in range(T):
            out, state = layer(x[:, t : t + 1], state, return_state=True)
            rows.append(out)
    assert_close(mx.concatenate(rows, axis=1), y, 1e-6)


@every_one_way
@every_backend
@with_lengths
def test_cut_and_continued_equals_uncut(kind, backend, lengths, x):
    layer = KINDS[kind](return_state=True)
    with ember_mlx.use_backend(backend):
        y, whole = layer(x, lengths=lengths)
        for cut in (1, 4, 8):
            for b, n in enumerate(lengths or [T] * B):
                if n <= cut:
                    continue
                before, state = layer(x[b : b + 1, :cut])
                after, state = layer(x[b : b + 1, cut:n], state)
                assert_close(mx.concatenate([before, after], axis=1)[0], y[b, :n], 1e-6)
                same(state, [a[:, b : b + 1] for a in whole])


@every_kind
@every_backend
def test_lengths_equal_running_each_sequence_alone(kind, backend, x):
    layer = KINDS[kind](return_state=True)
    with ember_mlx.use_backend(backend):
        y, state = layer(x, lengths=mx.array(LENGTHS))
        last = layer(x, lengths=LENGTHS, return_sequences=False, return_state=False)
        for b, n in enumerate(LENGTHS):
            alone, alone_state = layer(x[b : b + 1, :n])
            assert_close(y[b : b + 1, :n], alone, 1e-6)
            assert not mx.any(y[b, n:])
            same([a[:, b : b + 1] for a in state], alone_state)
            assert_close(last[b : b + 1], layer(x[b : b + 1, :n], return_sequences=False, return_state=False), 1e-6)


@every_kind
def test_the_last_step_of_each_direction_is_its_final_state(kind, x):
    layer = KINDS[kind](return_sequences=False, return_state=True)
    y, (h, *_) = layer(x, lengths=LENGTHS)
    directions = layer.num_directions
    assert_close(y, mx.concatenate(list(h[-directions:]), axis=1), 1e-6)


@every_kind
def test_padding_has_no_influence_and_no_gradient(kind, x):
    layer = KINDS[kind]()
    valid = (mx.arange(T)[None, :] < mx.array(LENGTHS)[:, None]).astype(mx.float32)[:, :, None]
    assert_close(layer(mx.where(valid > 0, x, 1e6), lengths=LENGTHS), layer(x, lengths=LENGTHS), 0)
    dx = mx.grad(lambda a: (layer(a, lengths=LENGTHS) ** 2).sum())(x)
    assert not mx.any(dx * (1 - valid))
    assert bool(mx.any(dx))


@every_kind
def test_none_states_are_zeros(kind, x):
    layer = KINDS[kind](return_state=True)
    zeros = [mx.zeros(layout.shape(B, True)) for layout in layer.state_layouts]
    y, state = layer(x)
    for given in ([None] * len(zeros), zeros, (zeros[0], *[None] * (len(zeros) - 1))):
        other, other_state = layer(x, given)
        assert_close(other, y, 0)
        same(other_state, state, 0)


@every_kind
def test_an_initial_state_matters_in_every_layer_and_direction(kind, x):
    layer = KINDS[kind]()
    for k, layout in enumerate(layer.state_layouts):
        states = [mx.zeros(layout.shape(B, True)) for layout in layer.state_layouts]

        def run(a, states=states, k=k):
            return (layer(x, [*states[:k], a, *states[k + 1 :]]) ** 2).sum()

        gradient = mx.grad(run)(mx.full(layout.shape(B, True), 0.1))
        assert bool(mx.all(mx.abs(gradient).max(axis=(1, 2)) > 0))


def test_a_stack_of_single_layers_of_ones_own(x):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [LSTM(input_size=I if k == 0 else H, hidden_size=H) for k in range(3)]

        def __call__(self, x, initial_states=None):
            outputs, final_states = x, []
            for layer, state in zip(self.layers, initial_states or [(None, None)] * 3, strict=True):
                outputs, states = layer(outputs, initial_state=state, return_state=True)
                final_states.append(states)
            return outputs, final_states

    deep, whole = Deep(), LSTM(I, H, 3, return_state=True)
    whole.update({"layers": [layer.parameters()["layers"][0] for layer in deep.layers]})
    y, states = deep(x)
    expected, (h, c) = whole(x)
    assert_close(y, expected, 1e-6)
    same([mx.concatenate(parts) for parts in zip(*states, strict=True)], (h, c))
    assert_close(deep(x[:, 4:], deep(x[:, :4])[1])[0], y[:, 4:], 1e-6)


@every_kind
@with_lengths
def test_time_first_is_batch_first_transposed(kind, lengths, x):
    layer = KINDS[kind](return_state=True)
    y, state = layer(x, lengths=lengths)
    layer.batch_first = False
    y_t, state_t = layer(x.swapaxes(0, 1), lengths=lengths)
    assert_close(y_t.swapaxes(0, 1), y, 0)
    same(state_t, state, 0)


@every_kind
def test_a_sequence_without_batch(kind, x):
    layer = KINDS[kind](return_state=True)
    y, state = layer(x[:1])
    alone, alone_state = layer(x[0])
    assert_close(alone, y[0], 1e-6)
    same(alone_state, [a[:, 0] for a in state])
    assert layer(x[0], alone_state, return_sequences=False)[0].shape == (y.shape[2],)


@every_one_way
@with_lengths
def test_backwards_reads_each_sequence_from_its_end(kind, lengths, x):
    layer = KINDS[kind](return_state=True, go_backwards=True)
    y, state = layer(x, lengths=lengths)
    layer.go_backwards = False
    for b, n in enumerate(lengths or [T] * B):
        turned, turned_state = layer(x[b : b + 1, :n][:, ::-1])
        assert_close(y[b : b + 1, :n], turned, 1e-6)
        same([a[:, b : b + 1] for a in state], turned_state)


@pytest.mark.parametrize("cls", [RNN, LSTM, GRU])
@with_lengths
def test_both_directions_are_two_runs(cls, lengths, x):
    layer = cls(I, H, bidirectional=True)
    y, state = layer(x, lengths=lengths, return_state=True)
    for k, name in enumerate(("forward", "backward")):
        single = cls(I, H, go_backwards=name == "backward", return_state=True)
        single.update({"layers": [{"forward": layer.parameters()["layers"][0][name]}]})
        for b, n in enumerate(lengths or [T] * B):
            alone, alone_state = single(x[b : b + 1, :n])
            expected = alone[:, ::-1] if k else alone
            assert_close(y[b : b + 1, :n, k * H : (k + 1) * H], expected, 1e-6)
            same([a[k : k + 1, b : b + 1] for a in state], alone_state)


@every_kind
@every_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("where", ["x", "parameters", "both"])
def test_half_precision(kind, backend, dtype, where, x):
    layer, low = KINDS[kind](return_state=True), getattr(mx, dtype)
    expected, _ = layer(x)

    def loss(p, a):
        layer.update(p)
        y, state = layer(a)
        return (y.astype(mx.float32) ** 2).sum(), state, y

    x_low = x.astype(low) if where != "parameters" else x
    if where != "x":
        layer.set_dtype(low)
    with ember_mlx.use_backend(backend):
        (_, state, y), (dp, dx) = mx.value_and_grad(loss, argnums=(0, 1))(layer.parameters(), x_low)
    assert y.dtype == (low if where == "both" else mx.float32)
    assert all(a.dtype == mx.float32 for a in state)
    assert dx.dtype == x_low.dtype
    assert {a.dtype for _, a in tree_flatten(dp)} == {mx.float32 if where == "x" else low}
    assert all(mx.all(mx.isfinite(a)) for _, a in tree_flatten([dp, dx]))
    assert_close(y, expected, FORWARD[dtype])


def test_float64_on_the_cpu(x):
    layer = LSTM(I, H)
    layer.set_dtype(mx.float64)
    with mx.stream(mx.cpu), ember_mlx.use_backend("numpy"):
        y = layer(x.astype(mx.float64))
    assert y.dtype == mx.float64
    assert_close(y, LSTM(I, H).update(layer.parameters())(x), FORWARD["float32"])


def test_extreme_arguments_saturate_without_a_warning():
    for cls in (LSTM, GRU):
        layer = cls(1, 2)
        for sign in (1, -1):
            y, dx = mx.value_and_grad(lambda a, layer=layer: layer(a).sum())(mx.full((1, 3, 1), sign * 1e6))
            assert bool(mx.isfinite(y))
            assert bool(mx.all(mx.isfinite(dx)))


def test_initial_values_follow_the_specification():
    for cls, gates in ((RNN, 1), (GRU, 3), (LSTM, 4)):
        layer = cls(10, 64, 2, bidirectional=True)
        assert layer.layers[1]["backward"].Wx.shape == (gates * 64, 128)
        for _, a in tree_flatten(layer.parameters()):
            assert 0.9 / 8 < float(mx.abs(a).max()) <= 1 / 8
    assert sorted(GRU(2, 3).layers[0]["forward"].parameters()) == ["Wh", "Wx", "bhn", "bias"]
    assert sorted(GRU(2, 3, bias=False).layers[0]["forward"].parameters()) == ["Wh", "Wx"]


def test_dropout_drops_this_part_and_keeps_the_mean():
    dropped = GRU(I, H, 2, dropout=0.1)._dropped(mx.ones((100, 10, 10)))
    assert 0.08 < (dropped == 0).mean().item() < 0.12
    assert 0.97 < dropped.mean().item() < 1.03


def test_all_can_be_dropped(x):
    """The second layer then gets zeros."""
    layer, second = GRU(I, H, 2, dropout=1.0), GRU(H, H)
    second.layers[0]["forward"].update(layer.layers[1]["forward"].parameters())
    assert mx.allclose(layer(x), second(mx.zeros((*x.shape[:2], H))), atol=1e-6)


def test_dropout_acts_between_layers_and_in_training_only(x):
    layer = GRU(I, H, 2, dropout=0.5)
    assert not mx.array_equal(layer(x), layer(x))
    below, above = (GRU(I if k == 0 else H, H) for k in range(2))
    for k, single in enumerate((below, above)):
        single.update({"layers": [layer.parameters()["layers"][k]]})
    mx.random.seed(3)
    kept = mx.random.bernoulli(0.5, (T, B, H)).swapaxes(0, 1)
    mx.random.seed(3)
    assert_close(layer(x), above(below(x) * kept * 2), 1e-6)
    layer.eval()
    assert_close(layer(x), above(below(x)), 1e-6)


@every_kind
def test_weights_travel_through_a_file(kind, tmp_path, x):
    layer = KINDS[kind]()
    layer.save_weights(str(tmp_path / "w.safetensors"))
    other = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    assert not mx.array_equal(other(x), layer(x))
    other.load_weights(str(tmp_path / "w.safetensors"), strict=True)
    assert mx.array_equal(other(x), layer(x))
    assert repr(other) == repr(layer)


def test_repr_reads_well():
    assert repr(LSTM(3, 8, 2, proj_size=2, bidirectional=True)).startswith("LSTM(3, 8, num_layers=2, bidirectional=True, proj_size=2")
    assert repr(RNN(3, 8, activation="relu", bias=False)).startswith("RNN(3, 8, bias=False, activation=relu")


def loss_of(layer, lengths):
    def loss(parameters, x):
        layer.update(parameters)
        y, state = layer(x, lengths=lengths, return_state=True)
        return (y * y).sum() + sum((a * mx.arange(a.size).reshape(a.shape) * 0.1).sum() for a in state)

    return loss


def in_ops(function, *arguments):
    with ember_mlx.use_backend("ops"):
        result = function(*arguments)
        mx.eval(result)
    return result


@every_kind
@with_lengths
def test_transformations_give_what_the_ops_form_gives(kind, lengths, x):
    layer = KINDS[kind]()
    loss, p, direction = loss_of(layer, lengths), layer.parameters(), mx.random.normal(x.shape)
    gradient = mx.grad(loss, argnums=(0, 1))
    expected = in_ops(gradient, p, x)
    assert_trees_close(gradient(p, x), expected, GRADIENT["float32"])
    assert_trees_close(mx.compile(gradient)(p, x), expected, GRADIENT["float32"])
    assert_close(mx.grad(mx.checkpoint(lambda a: loss(p, a)))(x), expected[1], GRADIENT["float32"])

    def slope(p, a):
        return (gradient(p, a)[1] * direction).sum()

    assert_trees_close(mx.grad(slope, argnums=(0, 1))(p, x), in_ops(mx.grad(slope, argnums=(0, 1)), p, x), 1e-3)

    def tangent(a):
        return mx.jvp(lambda b: layer(b, lengths=lengths), [a], [direction])[1][0]

    assert_close(tangent(x), in_ops(tangent, x), 1e-5)


@every_kind
def test_vmap_and_export(kind, tmp_path, x):
    layer = KINDS[kind]()
    many = mx.random.normal((2, B, T, I))
    assert_close(mx.vmap(lambda a: layer(a))(many), mx.stack([layer(a) for a in many]), 1e-6)
    path = str(tmp_path / "layer.mlxfn")
    mx.export_function(path, lambda a: layer(a), x)
    assert_close(mx.import_function(path)(x)[0], layer(x), 1e-6)


@on_host
@pytest.mark.parametrize("by_step", [False, True], ids=["one-launch", "by-step"])
@every_kind
@with_lengths
def test_layer_on_kernels(kind, lengths, by_step, x):
    layer = KINDS[kind]()
    gradient = mx.grad(loss_of(layer, lengths), argnums=(0, 1))
    expected = in_ops(gradient, layer.parameters(), x)
    with kernels_on("host", BY_STEP if by_step else None, metal_kernel) as backend, ember_mlx.use_backend(backend):
        assert_trees_close(gradient(layer.parameters(), x), expected, GRADIENT["float32"])


@on_host
@pytest.mark.parametrize("proj_size", [None, 2], ids=["plain", "projected"])
@pytest.mark.parametrize("by_step", [False, True], ids=["one-launch", "by-step"])
def test_both_directions_share_their_launches(by_step, proj_size, x):
    made = []
    for bidirectional in (False, True):
        launches = []

        def counting(launches=launches, **text):
            kernel = metal_kernel(**text)
            return lambda **call: (launches.append(text["name"].rsplit("_")[-1]), kernel(**call))[1]

        layer = LSTM(I, H, proj_size=proj_size, bidirectional=bidirectional)
        with kernels_on("host", BY_STEP if by_step else None, counting) as backend, ember_mlx.use_backend(backend):
            mx.eval(mx.grad(lambda a, layer=layer: layer(a).sum())(x))
        made.append(launches)
    assert made[0] == made[1]
    if by_step:
        names = ("coefficients", "next", "previous", "back")
        assert [made[1].count(name) for name in names] == [1, T, T + 1, T if proj_size else 0]
        assert made[1].count("arguments") == bool(proj_size)  # of all steps at once
    else:
        assert made[1] == ["forward", *["arguments"] * bool(proj_size), "coefficients", "backward"]


BY_ITSELF = {
    "rnn": lambda: RNN(I, 8),
    "gru": lambda: GRU(I, 8, bidirectional=True),
    "lstm": lambda: LSTM(I, 8, 2, bidirectional=True),
    "lstm-projected": lambda: LSTM(I, 8, proj_size=2),
}


@on_host
@pytest.mark.parametrize("kind", BY_ITSELF)
def test_a_step_by_itself_is_one_launch_and_copies_nothing(kind, x, monkeypatch):
    """MLX copies what is not contiguous before a launch: cotangents are views, and of a sum broadcast numbers. Short arrays are padded."""
    copied, now = [], []
    padded = launches._padded

    def noting(**text):
        kernel = metal_kernel(**text)

        def call(**arguments):
            if text["name"].endswith(("_next", "_back", "_previous")):
                mx.eval(arguments["inputs"])
                given = zip(text["input_names"], arguments["inputs"], strict=True)
                copied.extend([*(name for name, a in given if not np.asarray(a).flags.c_contiguous), *now])
            now.clear()
            return kernel(**arguments)

        return call

    monkeypatch.setattr(launches, "_padded", lambda a, size: (now.append(f"{a.shape} padded"), padded(a, size))[1])
    layer = BY_ITSELF[kind]()
    with kernels_on("host", BY_STEP, noting) as backend, ember_mlx.use_backend(backend):
        mx.eval(mx.grad(lambda a: layer(a).sum())(x))
    assert not copied


@on_host
def test_a_step_by_itself_leaves_no_trace_of_padding(x):
    """The small kernels also process padding; it affects nothing, even if it is NaN."""
    layer, lengths = LSTM(I, H, proj_size=2), mx.array([2] * B)
    padded = mx.concatenate([x[:, :2], mx.full((B, T - 2, I), mx.nan)], axis=1)
    with kernels_on("host", BY_STEP, metal_kernel) as backend, ember_mlx.use_backend(backend):
        y, state = layer(padded, lengths=lengths, return_state=True)
        expected, expected_state = layer(x[:, :2], return_state=True)
        assert mx.array_equal(y[:, :2], expected)
        assert not mx.any(y[:, 2:])
        assert all(map(mx.array_equal, state, expected_state))


@every_kind
def test_training_lowers_the_loss(kind, x):
    layer = KINDS[kind]()
    target = 0.5 * mx.random.normal(layer(x).shape)
    optimizer, losses = optim.Adam(learning_rate=2e-2), []
    step = nn.value_and_grad(layer, lambda m: ((m(x) - target) ** 2).mean())
    for _ in range(40):
        value, gradients = step(layer)
        optimizer.update(layer, gradients)
        mx.eval(layer.parameters(), optimizer.state)
        losses.append(value.item())
    assert losses[-1] < 0.8 * losses[0]


X = mx.zeros((4, 5, 3))
STACKED = "(num_layers * num_directions, B, H)"
MESSAGES = {
    "state-without-layers": (
        ValueError,
        lambda: LSTM(3, 6, 2, bidirectional=True)(X, [mx.zeros((4, 6)), None]),
        f"[LSTM] initial_state h must have shape {STACKED} = (4, 4, 6), got (4, 6).",
    ),
    "cell-of-one-direction": (
        ValueError,
        lambda: LSTM(3, 6, bidirectional=True)(X, (None, mx.zeros((1, 4, 6)))),
        f"[LSTM] initial_state c must have shape {STACKED} = (2, 4, 6), got (1, 4, 6).",
    ),
    "state-projected": (
        ValueError,
        lambda: LSTM(3, 6, proj_size=2)(X, (mx.zeros((1, 4, 6)), None)),
        "[LSTM] initial_state h must have shape (num_layers * num_directions, B, proj_size) = (1, 4, 2), got (1, 4, 6).",
    ),
    "state-unbatched": (
        ValueError,
        lambda: GRU(3, 6)(X[0], [mx.zeros((1, 1, 6))]),
        "[GRU] initial_state h must have shape (num_layers * num_directions, H) = (1, 6), got (1, 1, 6).",
    ),
    "state-count": (
        ValueError,
        lambda: GRU(3, 6)(X, [None, None]),
        f"[GRU] initial_state must be a list [h] of arrays or None, each {STACKED}, got 2 entries.",
    ),
    "state-array": (
        TypeError,
        lambda: RNN(3, 6)(X, mx.zeros((1, 4, 6))),
        f"[RNN] initial_state must be a list [h] of arrays or None, each {STACKED}, got mlx.core.array.",
    ),
    "time-deltas": (
        ValueError,
        lambda: GRU(3, 6)(X, time_deltas=1.0),
        "[GRU] time_deltas must be None, since this layer does not use elapsed time, got float.",
    ),
    "features": (ValueError, lambda: RNN(4, 6)(X), "[RNN] x must have I = 4 features on its last axis, got shape (4, 5, 3)."),
    "lengths": (ValueError, lambda: RNN(3, 6)(X, lengths=[1, 2, 3, 6]), "[RNN] lengths must lie in 1..T = 1..5, got 6."),
    "hidden-size": (ValueError, lambda: LSTM(3, 0), "[LSTM] hidden_size must be at least 1, got 0."),
    "input-size": (TypeError, lambda: LSTM(3.0, 2), "[LSTM] input_size must be an integer, got 3.0."),
    "num-layers": (ValueError, lambda: LSTM(3, 2, 0), "[LSTM] num_layers must be at least 1, got 0."),
    "activation": (ValueError, lambda: RNN(3, 2, activation="gelu"), "[RNN] activation must be one of 'tanh', 'relu', got 'gelu'."),
    "proj-size": (ValueError, lambda: LSTM(3, 2, proj_size=2), "[LSTM] proj_size must be less than hidden_size = 2, got 2."),
    "bias": (TypeError, lambda: GRU(3, 2, bias=1), "[GRU] bias must be True or False, got 1."),
    "bidirectional": (TypeError, lambda: GRU(3, 2, bidirectional="yes"), "[GRU] bidirectional must be True or False, got 'yes'."),
    "dropout": (ValueError, lambda: GRU(3, 2, 2, dropout=-0.1), "[GRU] dropout must be in [0, 1], got -0.1."),
    "dropout-one-layer": (
        ValueError,
        lambda: GRU(3, 2, dropout=0.5),
        "[GRU] dropout must be 0 with a single layer, since it acts between layers, got 0.5.",
    ),
}


@pytest.mark.parametrize(("kind", "call", "message"), MESSAGES.values(), ids=MESSAGES)
def test_message(kind, call, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message

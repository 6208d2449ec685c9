"""The LTC layer: equations, shapes, the common contract, solvers, limits in time, parameters, constraints, configuration."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import LTC, AutoNCPMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

from .comparisons import assert_close
from .tolerances import FORWARD

I = 3
KINDS = {
    "full": lambda **o: LTC(6, I, **o),
    "fewer-outputs": lambda **o: LTC(FullyConnectedMap(6, 2), I, output_mapping="linear", **o),
    "explicit-constraints": lambda **o: LTC(6, I, implicit_param_constraints=False, input_mapping=None, output_mapping=None, **o),
    "rk4": lambda **o: LTC(6, I, solver="rk4", ode_unfolds=12, input_mapping="linear", **o),
    "euler": lambda **o: LTC(RandomMap(6, 2, I), solver="explicit", ode_unfolds=12, **o),
    "ncp": lambda **o: LTC(NCPMap(4, 3, 2, I, seed=1), **o),
    "ncp-mixed": lambda **o: LTC(NCPMap(4, 3, 2, I, seed=1), mixed_memory=True, **o),
    "sensory-only": lambda **o: LTC(NeuronMap(3, sensory_adjacency_matrix=[[1, 0, -1], [0, 0, 1], [1, 0, 0]]), **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_backend = pytest.mark.parametrize("backend", ["numpy", "ops"])
with_lengths = pytest.mark.parametrize("lengths", [None, [3, 9, 1, 5]], ids=["full", "lengths"])


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


@pytest.fixture
def batch():
    return mx.random.normal((4, 9, I)), mx.random.uniform(0.1, 2, (4, 9))


def states(state):
    """A layer's state as a list."""
    return state if isinstance(state, list) else [state]


def same(a, b, tolerance=1e-6):
    for got, expected in zip(states(a), states(b), strict=True):
        assert_close(got, expected, tolerance)


def rows(state, b):
    """Sequence b of a state, in the form that the layer takes."""
    cut = [a[b : b + 1] for a in states(state)]
    return cut if isinstance(state, list) else cut[0]


def test_shapes_of_the_specification():
    layer = LTC(neuron_map=FullyConnectedMap(units=20, input_dim=10, output_dim=20))
    x = mx.random.normal((32, 5, 10))
    y, h = layer(x, return_state=True)
    assert (y.shape, h.shape) == ((32, 5, 20), (32, 20))
    assert layer(x, return_sequences=False).shape == (32, 20)
    _, state = LTC(AutoNCPMap(12, 3), 10, mixed_memory=True)(x, return_state=True)
    assert [a.shape for a in state] == [(32, 12), (32, 12)]


@every_backend
@pytest.mark.parametrize("kind", ["full", "ncp"])
def test_a_transcription_of_the_equations(kind, backend, batch):
    """Equations (1) to (5) as they stand, divided by delta, in float64 and over matrices with masks."""
    x, dt = (np.array(a, np.float64) for a in batch)
    layer = KINDS[kind]()
    layer.input_w, layer.input_b = mx.random.normal((I,)), mx.random.normal((I,))
    layer.output_w, layer.output_b = mx.random.normal(layer.output_w.shape), mx.random.normal(layer.output_b.shape)
    p = {name: np.array(a, np.float64) for name, a in tree_flatten(layer.parameters())}
    p |= {name: np.log1p(np.exp(p[name])) for name in ("w", "sensory_w", "cm", "gleak")}
    for prefix, matrix in (("", layer.neuron_map.adjacency_matrix), ("sensory_", layer.neuron_map.sensory_adjacency_matrix)):
        targets, sources = np.nonzero(matrix.T)
        for name in ("w", "sigma", "mu", "erev"):
            full = np.zeros(matrix.shape)
            full[sources, targets] = p[prefix + name]
            p[prefix + name] = full

    def synapses(v, prefix=""):
        s = p[prefix + "w"] / (1 + np.exp(-p[prefix + "sigma"] * (v[:, :, None] - p[prefix + "mu"])))
        return (s * p[prefix + "erev"]).sum(1), s.sum(1)

    v, outputs = np.zeros((4, layer.units)), []
    for t in range(9):
        num_s, den_s = synapses(x[:, t] * p["input_w"] + p["input_b"], "sensory_")
        rate = p["cm"] / (dt[:, t, None] / 6)
        for _ in range(6):
            num, den = synapses(v)
            v = (rate * v + p["gleak"] * p["vleak"] + num + num_s) / (rate + p["gleak"] + den + den_s + 1e-8)
        outputs.append(v[:, : len(p["output_w"])] * p["output_w"] + p["output_b"])
    with ember_mlx.use_backend(backend):
        assert_close(layer(batch[0], time_deltas=batch[1]), np.stack(outputs, 1), FORWARD["float32"])


@every_kind
@every_backend
@with_lengths
def test_cut_and_continued_equals_uncut(kind, backend, lengths, batch):
    x, dt = batch
    layer = KINDS[kind](return_state=True)
    with ember_mlx.use_backend(backend):
        y, whole = layer(x, time_deltas=dt, lengths=lengths)
        for b, n in enumerate(lengths or [9] * 4):
            for cut in {1, 4, 8} & set(range(n)):
                first, state = layer(x[b : b + 1, :cut], time_deltas=dt[b : b + 1, :cut])
                rest, state = layer(x[b : b + 1, cut:n], state, dt[b : b + 1, cut:n])
                assert_close(mx.concatenate([first, rest], axis=1), y[b : b + 1, :n], 1e-6)
                same(state, rows(whole, b))
            assert not mx.any(y[b, n:])


@every_kind
def test_padding_has_no_influence_and_no_gradient(kind, batch):
    x, dt = batch
    layer, lengths = KINDS[kind](), [3, 9, 1, 5]
    valid = (mx.arange(9)[None, :] < mx.array(lengths)[:, None]).astype(mx.float32)
    loud = mx.where(valid[:, :, None] > 0, x, 1e3)
    assert_close(layer(loud, time_deltas=dt, lengths=lengths), layer(x, time_deltas=dt, lengths=lengths), 0)
    last = layer(x, time_deltas=dt, lengths=lengths, return_sequences=False)
    assert_close(last[0], layer(x[:1, :3], time_deltas=dt[:1, :3])[0, -1], 1e-6)
    dx, ddt = mx.grad(lambda a, d: (layer(a, time_deltas=d, lengths=lengths) ** 2).sum(), argnums=(0, 1))(x, dt)
    assert not mx.any(dx * (1 - valid[:, :, None]))
    assert not mx.any(ddt * (1 - valid))


@every_kind
@with_lengths
def test_layouts_are_transposes_of_each_other(kind, lengths, batch):
    x, dt = batch
    layer = KINDS[kind](return_state=True)
    y, state = layer(x, time_deltas=dt, lengths=lengths)
    layer.batch_first = False
    y_t, state_t = layer(x.swapaxes(0, 1), time_deltas=dt.T, lengths=lengths)
    assert_close(y_t.swapaxes(0, 1), y, 0)
    same(state_t, state, 0)
    layer.batch_first = True
    alone, alone_state = layer(x[1], time_deltas=dt[1][:, None])
    assert_close(alone, y[1], 1e-6)
    same([a[None] for a in states(alone_state)], states(rows(state, 1)))


@every_kind
def test_backwards_reads_each_sequence_from_its_end(kind, batch):
    x, dt = batch
    layer = KINDS[kind]()
    layer.go_backwards = True
    y = layer(x, time_deltas=dt, lengths=[3, 9, 1, 5])
    layer.go_backwards = False
    for b, n in enumerate([3, 9, 1, 5]):
        assert_close(y[b : b + 1, :n], layer(x[b : b + 1, :n][:, ::-1], time_deltas=dt[b : b + 1, :n][:, ::-1]), 1e-6)


@every_kind
def test_none_states_are_zeros(kind, batch):
    layer = KINDS[kind]()
    zeros = [mx.zeros((4, layer.units))] * len(layer.state_names)
    assert_close(layer(batch[0], zeros if layer.mixed_memory else zeros[0]), layer(batch[0]), 0)
    if layer.mixed_memory:
        assert_close(layer(batch[0], [None, zeros[1]]), layer(batch[0]), 0)


@every_kind
@every_backend
def test_where_no_time_passes_v_stays_and_gradients_are_finite(kind, backend, batch):
    layer = KINDS[kind]()
    v = mx.random.normal((4, layer.units))
    given = [v, v] if layer.mixed_memory else v

    def loss(p, x, dt):
        layer.update(p)
        return (layer(x, given, dt) ** 2).sum()

    with ember_mlx.use_backend(backend):
        if not layer.mixed_memory:
            _, after = layer(batch[0], v, 0.0, return_state=True)
            assert_close(after, v, 1e-6)
        result = mx.value_and_grad(loss, argnums=(0, 1, 2))(layer.parameters(), batch[0], mx.zeros((4, 9)))
        assert all(mx.all(mx.isfinite(a)) for _, a in tree_flatten(result))
        assert float(mx.abs(result[1][2]).max()) > 0


@every_backend
@pytest.mark.parametrize("kind", ["full", "ncp"])
def test_a_very_long_time_gives_the_steady_state(kind, backend, batch):
    """There dv/dt = 0: v is the steady state, and an implicit step of any length does not change it."""
    layer = KINDS[kind](return_state=True, ode_unfolds=200)
    x = batch[0][:, :1]
    with ember_mlx.use_backend(backend):
        _, v = layer(x, time_deltas=1e9)
        for dt in (1e-2, 1.0, 1e6):
            assert_close(layer(x, v, dt)[1], v, 1e-4)


@pytest.mark.parametrize(("solver", "order"), [("semi_implicit", 1), ("explicit", 1), ("rk4", 4)])
def test_order_of_the_solvers(solver, order):
    """Halving the substeps divides the error by 2 to the power of the solver's order."""
    mx.random.seed(3)
    layer = LTC(FullyConnectedMap(5), 2, solver="rk4", ode_unfolds=256)
    layer.set_dtype(mx.float64)
    with mx.stream(mx.cpu), ember_mlx.use_backend("numpy"):
        x, dt = mx.ones((1, 1, 2), mx.float64), mx.array([[0.4]], mx.float64)
        exact = np.array(layer(x, time_deltas=dt))
        layer.solver, errors = solver, []
        for unfolds in (8, 16) if order > 1 else (64, 128):
            layer.ode_unfolds = unfolds
            errors.append(np.abs(np.array(layer(x, time_deltas=dt)) - exact).max())
    assert 0.8 * 2**order < errors[0] / errors[1] < 1.3 * 2**order
    assert errors[1] > 1e-12  # the comparison is of errors, not of rounding


@every_kind
def test_time_constants(kind, batch):
    x, dt = batch
    layer = KINDS[kind](return_state=True)
    tau = layer.time_constants(x, time_deltas=dt, lengths=[3, 9, 1, 5])
    assert tau.shape == (4, 9, layer.units)
    assert not mx.any(tau[0, 3:])
    assert bool(mx.all(tau[1] > 0))
    _, state = layer(x[:, :4], time_deltas=dt[:, :4])
    assert_close(layer.time_constants(x[:, 4:], state, dt[:, 4:])[1], tau[1, 4:], 1e-6)


@pytest.mark.parametrize("solver", ["semi_implicit", "explicit", "rk4"])
def test_a_time_constant_is_that_of_the_decay(solver):
    """Without recurrent synapses v approaches its steady state by a factor of e per time constant."""
    layer = LTC(NeuronMap(3, sensory_adjacency_matrix=np.ones((2, 3))), solver=solver, ode_unfolds=400, return_state=True)
    x = mx.ones((1, 1, 2))
    tau = layer.time_constants(x)[0, 0]
    _, limit = layer(x, time_deltas=100.0)
    for u in range(3):
        _, v = layer(x, limit + 1, float(tau[u]))
        assert float((v - limit)[0, u]) == pytest.approx(np.exp(-1), rel=5e-3)


def test_time_constants_in_blocks_of_steps(monkeypatch, batch):
    layer = KINDS["ncp"]()
    whole = layer.time_constants(batch[0])
    monkeypatch.setattr("ember_mlx.layers.ltc.BLOCK_VALUES", 200)
    assert_close(layer.time_constants(batch[0]), whole, 0)


def test_parameters_are_those_of_the_synapses_that_exist():
    neuron_map = NCPMap(8, 6, 4, 5, seed=1)
    layer = LTC(neuron_map)
    S, S_s = neuron_map.synapse_count, neuron_map.sensory_synapse_count
    sizes = {name: a.size for name, a in tree_flatten(layer.parameters())}
    assert sizes == {
        **dict.fromkeys(("w", "sigma", "mu", "erev"), S),
        **dict.fromkeys(("sensory_w", "sensory_sigma", "sensory_mu", "sensory_erev"), S_s),
        **{"gleak": 18, "vleak": 18, "cm": 18, "input_w": 5, "input_b": 5, "output_w": 4, "output_b": 4},
        "map_id": 0,
    }
    targets, sources = np.nonzero(neuron_map.adjacency_matrix.T)
    np.testing.assert_array_equal(np.array(layer.erev), neuron_map.adjacency_matrix[sources, targets])


def test_a_missing_synapse_carries_nothing():
    layer = LTC(NeuronMap(2, adjacency_matrix=np.eye(2), sensory_adjacency_matrix=[[1, 0], [0, 1]]))
    dx = mx.grad(lambda a: layer(a)[0, -1, 0])(mx.random.normal((1, 4, 2)))
    assert bool(mx.any(dx[..., 0]))
    assert not mx.any(dx[..., 1])


def test_initial_values_follow_the_specification():
    layer = LTC(40, 20)
    ranges = {"gleak": (0.001, 1), "vleak": (-0.2, 0.2), "cm": (0.4, 0.6), "w": (0.001, 1), "sigma": (3, 8), "mu": (0.3, 0.8)}
    ranges |= {f"sensory_{name}": ranges[name] for name in ("w", "sigma", "mu")}
    for name, (low, high) in ranges.items():
        values = np.array(layer[name])
        assert low <= values.min() < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < values.max() <= high
    assert set(np.array(layer.erev).tolist()) == {-1.0, 1.0}
    assert mx.array_equal(layer.output_w, mx.ones((40,)))


def test_constraints(batch):
    layer = KINDS["explicit-constraints"]()
    before = {name: mx.array(a) for name, a in tree_flatten(layer.parameters())}
    for name in ("w", "sensory_w", "gleak", "cm", "vleak"):
        layer[name] = layer[name] - 0.7
    layer.apply_weight_constraints()
    for name in ("w", "sensory_w", "gleak"):
        assert_close(layer[name], mx.maximum(before[name] - 0.7, 0), 0)
    assert mx.array_equal(layer.cm, mx.full((6,), 1e-6))
    assert mx.array_equal(layer.vleak, before["vleak"] - 0.7)
    assert bool(mx.all(mx.isfinite(layer(batch[0], time_deltas=0.0))))
    implicit = LTC(6, I)
    implicit.w = implicit.w - 5
    implicit.apply_weight_constraints()
    assert float(implicit.w.max()) < 0


@every_kind
@every_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(kind, backend, dtype, batch):
    x, dt = batch
    layer, low = KINDS[kind](return_state=True), getattr(mx, dtype)
    expected, _ = layer(x, time_deltas=dt)
    with ember_mlx.use_backend(backend):
        y, state = layer(x.astype(low), time_deltas=dt)
        assert y.dtype == mx.float32
        layer.set_dtype(low)
        low_y, low_state = layer(x.astype(low), time_deltas=dt.astype(low))
        gradient = mx.grad(lambda p: (layer.update(p), layer(x.astype(low))[0].sum())[1])(layer.parameters())
    assert low_y.dtype == low
    assert {a.dtype for a in [*states(state), *states(low_state)]} == {mx.float32}
    assert {a.dtype for _, a in tree_flatten(gradient)} == {low}
    assert_close(y, expected, FORWARD[dtype])
    assert_close(low_y, expected, 2 * FORWARD[dtype])


@every_kind
def test_weights_travel_through_a_file(kind, tmp_path, batch):
    layer = KINDS[kind]()
    layer.save_weights(str(tmp_path / "w.safetensors"))
    other = LTC.from_config(json.loads(json.dumps(layer.get_config())))
    assert not mx.array_equal(other(batch[0]), layer(batch[0]))
    other.load_weights(str(tmp_path / "w.safetensors"), strict=True)
    assert mx.array_equal(other(batch[0]), layer(batch[0]))
    assert repr(other) == repr(layer)


def test_repr_reads_well():
    text = repr(LTC(6, I, mixed_memory=True))
    assert text.startswith("LTC(FullyConnectedMap(units=6, inputs=3")
    assert "solver=semi_implicit, ode_unfolds=6, mixed_memory" in text


@pytest.mark.parametrize("implicit", [True, False], ids=["softplus", "clipped"])
def test_training_lowers_the_loss(implicit, batch):
    x, dt = batch
    layer, target = LTC(FullyConnectedMap(12, 2), I, implicit_param_constraints=implicit), mx.tanh(x[:, -1, :2])
    optimizer, losses = optim.Adam(learning_rate=5e-2), []
    step = nn.value_and_grad(layer, lambda m: ((m(x, time_deltas=dt)[:, -1] - target) ** 2).mean())
    for _ in range(100):
        value, gradients = step(layer)
        optimizer.update(layer, gradients)
        layer.apply_weight_constraints()
        mx.eval(layer.parameters(), optimizer.state)
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]
    assert implicit or min(float(layer[name].min()) for name in ("w", "sensory_w", "gleak", "cm")) >= 0

"""The CfC layer: shapes, the common contract, state, precision, parameters, configuration."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import AutoNCPMap, CfC, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

from .comparisons import assert_close
from .tolerances import FORWARD

I = 3
KINDS = {
    "dense": lambda **o: CfC(6, I, **o),
    "dense-deep": lambda **o: CfC(6, I, backbone_units=7, backbone_layers=3, activation="silu", **o),
    "dense-heads": lambda **o: CfC(6, I, backbone_layers=0, **o),
    "pure": lambda **o: CfC(6, I, mode="pure", **o),
    "no_gate": lambda **o: CfC(6, I, mode="no_gate", **o),
    "mixed": lambda **o: CfC(6, I, mixed_memory=True, **o),
    "random": lambda **o: CfC(RandomMap(6, 2, I), **o),
    "ncp": lambda **o: CfC(NCPMap(4, 3, 2, I, seed=1), **o),
    "ncp-pure-mixed": lambda **o: CfC(NCPMap(4, 3, 2, I, seed=1), mode="pure", mixed_memory=True, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_backend = pytest.mark.parametrize("backend", ["numpy", "ops"])


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


@pytest.fixture
def batch():
    return mx.random.normal((4, 9, I)), mx.random.uniform(0.1, 2, (4, 9))


def same(a, b, tolerance=1e-6):
    assert len(a) == len(b)
    for k, (got, expected) in enumerate(zip(a, b, strict=True)):
        assert_close(got, expected, tolerance, f"state {k}")


def test_shapes_of_the_specification():
    layer = CfC(neuron_map=NCPMap(inter_neurons=10, command_neurons=5, motor_neurons=5, sensory_neurons=10, seed=42))
    x = mx.random.normal((32, 5, 10))
    assert layer(x).shape == (32, 20)
    y, [h, t] = layer(x, return_state=True)
    assert y.shape == h.shape == t.shape == (32, 20)
    assert mx.array_equal(y, h)
    assert mx.array_equal(t, mx.full((32, 20), 5.0))
    assert layer(x, time_deltas=mx.random.uniform(0.1, 1.0, (32, 5, 1)), return_sequences=True).shape == (32, 5, 20)
    assert layer(x, output="motor").shape == (32, 5)
    assert CfC(FullyConnectedMap(units=20, input_dim=10, output_dim=20))(x).shape == (32, 20)


@every_kind
@every_backend
def test_sequence_equals_its_steps_one_by_one(kind, backend, batch):
    x, dt = batch
    layer = KINDS[kind](return_sequences=True)
    with ember_mlx.use_backend(backend):
        y = layer(x, time_deltas=dt)
        state, rows = None, []
        for t in range(9):
            out, state = layer(x[:, t : t + 1], state, dt[:, t : t + 1], return_state=True)
            rows.append(out)
    assert_close(mx.concatenate(rows, axis=1), y, 1e-6)


@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
def test_dense_cfc_is_its_equations(mode, batch):
    """A transcription of equations (1) to (3) in float64, independent of the package's forms."""
    x, dt = (np.array(a, np.float64) for a in batch)
    layer = CfC(6, I, mode=mode, backbone_units=7, time_scale_factor=0.3, return_sequences=True)
    stage = layer.stages[0]
    p = {name: np.array(a, np.float64) for name, a in tree_flatten(stage.parameters())}
    heads = np.split(p["heads.weight"], 1 if mode == "pure" else 4), np.split(p["heads.bias"], 1 if mode == "pure" else 4)
    h, rows = np.zeros((4, 6)), []
    for t in range(9):
        z = 1.7159 * np.tanh(0.666 * (np.concatenate([x[:, t], h], 1) @ p["backbone.0.weight"].T + p["backbone.0.bias"]))
        q = [z @ w.T + b for w, b in zip(*heads, strict=True)]
        d = 0.3 * dt[:, t, None]
        if mode == "pure":
            h = p["A"] - p["A"] * np.exp(-d * (np.abs(p["w_tau"]) + np.abs(q[0]))) * q[0]
        else:
            f, g, s = np.tanh(q[0]), np.tanh(q[1]), 1 / (1 + np.exp(-(q[2] * d + q[3])))
            h = f * (1 - s) + g * s if mode == "default" else f + g * s
        rows.append(h)
    assert_close(layer(batch[0], time_deltas=batch[1]), np.stack(rows, 1), FORWARD["float32"])


@every_kind
@every_backend
@pytest.mark.parametrize("lengths", [None, [3, 9, 1, 5]], ids=["full", "lengths"])
def test_cut_and_continued_equals_uncut(kind, backend, lengths, batch):
    x, dt = batch
    layer = KINDS[kind](return_state=True)
    with ember_mlx.use_backend(backend):
        y, whole = layer(x, time_deltas=dt, lengths=lengths)
        for cut in (1, 4, 8):
            if lengths is None:
                _, state = layer(x[:, :cut], time_deltas=dt[:, :cut])
                last, state = layer(x[:, cut:], state, dt[:, cut:])
                assert_close(last, y, 1e-6)
                same(state, whole)
                continue
            for b, n in enumerate(lengths):
                if n > cut:
                    _, state = layer(x[b : b + 1, :cut], time_deltas=dt[b : b + 1, :cut])
                    last, state = layer(x[b : b + 1, cut:n], state, dt[b : b + 1, cut:n])
                    same(state, [a[b : b + 1] for a in whole])


@every_kind
@every_backend
def test_lengths_equal_running_each_sequence_alone(kind, backend, batch):
    x, dt = batch
    lengths = [3, 9, 1, 5]
    layer = KINDS[kind](return_sequences=True, return_state=True)
    with ember_mlx.use_backend(backend):
        y, state = layer(x, time_deltas=dt, lengths=mx.array(lengths))
        last = layer(x, time_deltas=dt, lengths=lengths, return_sequences=False, return_state=False)
        for b, n in enumerate(lengths):
            alone, alone_state = layer(x[b : b + 1, :n], time_deltas=dt[b : b + 1, :n])
            assert_close(y[b : b + 1, :n], alone, 1e-6)
            assert_close(last[b], alone[0, -1], 1e-6)
            same([a[b : b + 1] for a in state], alone_state)
            assert not mx.any(y[b, n:])


@every_kind
def test_padding_has_no_influence_and_no_gradient(kind, batch):
    x, dt = batch
    layer, lengths = KINDS[kind](), [3, 9, 1, 5]
    valid = (mx.arange(9)[None, :] < mx.array(lengths)[:, None]).astype(mx.float32)
    loud = mx.where(valid[:, :, None] > 0, x, 1e6)
    assert_close(layer(loud, time_deltas=dt, lengths=lengths), layer(x, time_deltas=dt, lengths=lengths), 0)
    dx, ddt = mx.grad(lambda a, d: (layer(a, time_deltas=d, lengths=lengths) ** 2).sum(), argnums=(0, 1))(x, dt)
    assert not mx.any(dx * (1 - valid[:, :, None]))
    assert not mx.any(ddt * (1 - valid))


@every_kind
def test_none_states_are_zeros(kind, batch):
    x, _ = batch
    layer = KINDS[kind](return_state=True)
    names, zeros = layer.state_names, mx.zeros((4, layer.units))
    y, state = layer(x)
    for given in (None, [None] * len(names), [zeros] * len(names), tuple([zeros, *[None] * (len(names) - 1)])):
        other, other_state = layer(x, given)
        assert_close(other, y, 0)
        same(other_state, state, 0)


@every_kind
def test_time_deltas_in_every_form(kind, batch):
    x, dt = batch
    layer = KINDS[kind]()
    y = layer(x, time_deltas=dt)
    assert_close(layer(x, time_deltas=dt[:, :, None]), y, 0)
    assert_close(layer(x, time_deltas=mx.full((4, 9), 0.5)), layer(x, time_deltas=0.5), 0)
    assert_close(layer(x, time_deltas=mx.array(0.5)), layer(x, time_deltas=0.5), 0)
    assert_close(layer(x), layer(x, time_deltas=1), 0)
    assert float(mx.abs(layer(x, time_deltas=0.1) - layer(x, time_deltas=2.0)).max()) > 1e-3


@every_kind
@pytest.mark.parametrize("lengths", [None, [3, 9, 1, 5]], ids=["full", "lengths"])
def test_time_first_is_batch_first_transposed(kind, lengths, batch):
    x, dt = batch
    layer = KINDS[kind](return_sequences=True, return_state=True)
    y, state = layer(x, time_deltas=dt, lengths=lengths)
    layer.batch_first = False
    for d in (dt.T, dt.T[:, :, None]):
        y_t, state_t = layer(x.swapaxes(0, 1), time_deltas=d, lengths=lengths)
        assert_close(y_t.swapaxes(0, 1), y, 0)
        same(state_t, state, 0)


@every_kind
def test_a_sequence_without_batch(kind, batch):
    x, dt = batch
    layer = KINDS[kind](return_state=True)
    y, state = layer(x[:1], time_deltas=dt[:1])
    alone, alone_state = layer(x[0], time_deltas=dt[0])
    assert alone.shape == (layer.units,)
    assert_close(alone, y[0], 1e-6)
    same(alone_state, [a[0] for a in state])
    sequences, _ = layer(x[0], alone_state, dt[0][:, None], return_sequences=True)
    assert sequences.shape == (9, layer.units)


@every_kind
@pytest.mark.parametrize("lengths", [None, [3, 9, 1, 5]], ids=["full", "lengths"])
def test_backwards_reads_each_sequence_from_its_end(kind, lengths, batch):
    x, dt = batch
    layer = KINDS[kind](return_sequences=True, return_state=True)
    layer.go_backwards = True
    y, state = layer(x, time_deltas=dt, lengths=lengths)
    layer.go_backwards = False
    for b, n in enumerate(lengths or [9] * 4):
        turned, turned_state = layer(x[b : b + 1, :n][:, ::-1], time_deltas=dt[b : b + 1, :n][:, ::-1])
        assert_close(y[b : b + 1, :n], turned, 1e-6)
        same([a[b : b + 1] for a in state], turned_state)


@every_kind
def test_batch_as_large_as_units(kind):
    layer = KINDS[kind](return_state=True)
    n = layer.units
    x, dt = mx.random.normal((n, n, I)), mx.random.uniform(0.1, 2, (n, n))
    y, _ = layer(x, time_deltas=dt)
    alone = mx.concatenate([layer(x[b : b + 1], time_deltas=dt[b : b + 1])[0] for b in range(n)])
    assert_close(y, alone, 1e-6)


@every_kind
@every_backend
def test_zero_time_is_legal(kind, backend, batch):
    x, _ = batch
    layer = KINDS[kind]()

    def loss(p, a, d):
        layer.update(p)
        return (layer(a, time_deltas=d) ** 2).sum()

    with ember_mlx.use_backend(backend):
        result = mx.value_and_grad(loss, argnums=(0, 1, 2))(layer.parameters(), x, mx.zeros((4, 9)))
        assert all(mx.all(mx.isfinite(a)) for _, a in tree_flatten(result))


def test_times_past_a_sequences_length_may_be_anything(batch):
    x, dt = batch
    layer, lengths = CfC(6, I, return_sequences=True), mx.array([9, 4, 1, 9])
    past = mx.arange(9)[None, :] >= lengths[:, None]
    dirty = mx.where(past, mx.nan, dt)
    expected = layer(x, time_deltas=dt, lengths=lengths)
    assert mx.array_equal(layer(x, time_deltas=dirty, lengths=lengths), expected)
    assert mx.array_equal(layer(x, time_deltas=dirty[..., None], lengths=lengths), expected)
    first = CfC(6, I, return_sequences=True, batch_first=False)
    first(x.swapaxes(0, 1), time_deltas=dirty.T, lengths=lengths)
    with pytest.raises(ValueError, match=r"time_deltas must be finite and not negative, got nan at \(1, 4\)"):
        layer(x, time_deltas=dirty, lengths=mx.array([9, 5, 1, 9]))


def test_each_unit_has_a_clock(batch):
    x, dt = batch
    layer = CfC(6, I, time_scale_factor=0.5, return_state=True)
    _, [_, t] = layer(x, time_deltas=dt, lengths=[3, 9, 1, 5])
    expected = [0.5 * float(dt[b, :n].sum()) for b, n in enumerate([3, 9, 1, 5])]
    assert_close(t, np.repeat(np.array(expected)[:, None], 6, 1), 1e-6)
    scaled = CfC(6, I, return_state=True)
    scaled.update(layer.parameters())
    assert_close(scaled(x, time_deltas=0.5 * dt)[0], layer(x, time_deltas=dt)[0], 1e-6)


@every_kind
@every_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("where", ["x", "parameters", "both"])
def test_half_precision(kind, backend, dtype, where, batch):
    x, dt = batch
    layer, low = KINDS[kind](return_state=True, return_sequences=True), getattr(mx, dtype)
    expected, _ = layer(x, time_deltas=dt)

    def loss(p, a):
        layer.update(p)
        y, state = layer(a, time_deltas=dt.astype(a.dtype))
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


def test_float64_on_the_cpu(batch):
    """MLX's exp and sigmoid are only float32-accurate in float64, so the ops form has a larger tolerance than the NumPy form."""
    x, dt = (np.array(a, np.float64) for a in batch)
    layer = CfC(6, I, backbone_layers=0, time_scale_factor=0.3)
    layer.set_dtype(mx.float64)
    p = {name: np.array(a) for name, a in tree_flatten(layer.parameters())}
    h = np.zeros((4, 6))
    for t in range(9):
        f, g, t_a, t_b = np.split(np.concatenate([x[:, t], h], 1) @ p["stages.0.heads.weight"].T + p["stages.0.heads.bias"], 4, axis=1)
        t_interp = 1 / (1 + np.exp(-(t_a * 0.3 * dt[:, t, None] + t_b)))
        h = np.tanh(f) * (1 - t_interp) + np.tanh(g) * t_interp
    with mx.stream(mx.cpu):
        for backend, tolerance in {"numpy": 1e-13, "ops": FORWARD["float32"]}.items():
            with ember_mlx.use_backend(backend):
                y = layer(mx.array(x, mx.float64), time_deltas=mx.array(dt, mx.float64))
                assert y.dtype == mx.float64
                assert_close(y, h, tolerance)


def test_masks_hold_while_training_and_cannot_be_thawed(batch):
    x, _ = batch
    layer = CfC(NCPMap(4, 3, 2, I, seed=1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

    net = Net()
    net.unfreeze()
    names = [name for name, _ in tree_flatten(net.trainable_parameters())]
    assert not any("mask" in name for name in names)
    assert names == [name for name, _ in tree_flatten(net.parameters())]
    gradient = mx.grad(lambda p: (layer.update(p), (layer(x) ** 2).sum())[1])(layer.parameters())
    for stage, g in zip(layer.stages, gradient["stages"], strict=True):
        assert not mx.any(g["heads"]["weight"] * (1 - mx.array(stage.mask)))
        assert 0 < stage.mask.mean() < 1
    net.freeze()
    assert tree_flatten(net.trainable_parameters()) == []


@pytest.mark.parametrize("mask_time_heads", [True, False])
def test_missing_synapses_carry_nothing(mask_time_heads):
    """An input without a path to a motor neuron does not affect it, with all heads masked or only f and g."""
    sensory = np.array([[1, 0], [0, 1]])
    layer = CfC(NeuronMap(2, adjacency_matrix=np.eye(2), sensory_adjacency_matrix=sensory), mask_time_heads=mask_time_heads)
    x = mx.random.normal((1, 4, 2))
    dx = mx.grad(lambda a: layer(a)[0, 0])(x)
    assert bool(mx.any(dx[..., 0]))
    assert bool(mx.any(dx[..., 1])) is not mask_time_heads


def test_initial_values_follow_the_specification():
    layer = CfC(64, 10, mode="pure")
    stage = layer.stages[0]
    assert stage.backbone[0]["weight"].shape == (128, 74)
    bound = (6 / (128 + 74)) ** 0.5
    assert 0.9 * bound < float(mx.abs(stage.backbone[0]["weight"]).max()) <= bound
    bias = mx.abs(stage.backbone[0]["bias"]).max().item()
    assert 0.8 * 74**-0.5 < bias <= 74**-0.5
    assert mx.array_equal(stage.w_tau, mx.zeros((64,)))
    assert mx.array_equal(stage.A, mx.ones((64,)))
    heads = CfC(64, 10).stages[0].heads["weight"]
    assert heads.shape == (256, 128)
    bound = (6 / (64 + 128)) ** 0.5  # of each head by itself
    assert 0.9 * bound < float(mx.abs(heads).max()) <= bound
    assert CfC(AutoNCPMap(20, 4), 10).backbone_layers == CfC(RandomMap(20), 10).backbone_layers == 0


def test_w_tau_leaves_its_initial_zero(batch):
    layer = CfC(6, I, mode="pure")
    gradients = {}
    for backend in ("numpy", "ops"):
        with ember_mlx.use_backend(backend):
            gradients[backend] = mx.grad(lambda p: (layer.update(p), layer(batch[0]).sum())[1])(layer.parameters())["stages"][0]["w_tau"]
            mx.eval(gradients[backend])
    assert float(mx.abs(gradients["numpy"]).min()) > 0
    assert_close(gradients["numpy"], gradients["ops"], 1e-6)


def test_dropout_drops_this_part_and_keeps_the_mean():
    (factors,) = CfC(6, I, backbone_dropout=0.1, backbone_units=10)._dropout(mx.ones((100, 10)), [None])["dropout"]
    assert 0.08 < (factors == 0).mean().item() < 0.12
    assert 0.97 < factors.mean().item() < 1.03


def test_all_can_be_dropped():
    (factors,) = CfC(6, I, backbone_dropout=1.0, backbone_units=10)._dropout(mx.ones((10, 10)), [None])["dropout"]
    assert (factors == 0).all()


def test_dropout_acts_in_training_only(batch):
    layer = CfC(6, I, backbone_dropout=0.5, backbone_layers=2)
    assert not mx.array_equal(layer(batch[0]), layer(batch[0]))
    layer.eval()
    assert mx.array_equal(layer(batch[0]), layer(batch[0]))
    layer.train()
    outputs = []
    for backend in ("numpy", "ops"):
        mx.random.seed(7)
        with ember_mlx.use_backend(backend):
            outputs.append(layer(batch[0]))
            mx.eval(outputs)
    assert_close(*outputs, 1e-6)


@every_kind
def test_weights_travel_through_a_file(kind, tmp_path, batch):
    layer = KINDS[kind]()
    layer.save_weights(str(tmp_path / "w.safetensors"))
    other = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    assert not mx.array_equal(other(batch[0]), layer(batch[0]))
    other.load_weights(str(tmp_path / "w.safetensors"), strict=True)
    assert mx.array_equal(other(batch[0]), layer(batch[0]))
    assert repr(other) == repr(layer)


def test_projection_keeps_padding_zero(batch):
    layer = CfC(NCPMap(4, 3, 2, I, seed=1), output="motor", proj_size=5, return_sequences=True)
    y = layer(batch[0], lengths=[3, 9, 1, 5])
    assert y.shape == (4, 9, 5)
    assert not mx.any(y[0, 3:])
    assert bool(mx.all(y[0, :3] != 0))


def test_layer_keeps_a_copy_of_the_map():
    neuron_map = FullyConnectedMap(6)
    layer = CfC(neuron_map, I)
    assert not neuron_map.is_built()
    assert layer.neuron_map.input_dim == I


def test_repr_reads_well():
    text = repr(CfC(6, I, mixed_memory=True))
    assert text.startswith("CfC(FullyConnectedMap(units=6, inputs=3")
    assert "backbone=1 x 128 lecun_tanh, mixed_memory" in text


def test_training_lowers_the_loss(batch):
    import mlx.optimizers as optim

    x, dt = batch
    layer, target = CfC(NCPMap(8, 6, 2, I, seed=1), output="motor"), mx.random.normal((4, 2))
    optimizer, losses = optim.Adam(learning_rate=2e-2), []
    step = nn.value_and_grad(layer, lambda m: ((m(x, time_deltas=dt) - target) ** 2).mean())
    for _ in range(60):
        value, gradients = step(layer)
        optimizer.update(layer, gradients)
        mx.eval(layer.parameters(), optimizer.state)
        losses.append(value.item())
    assert losses[-1] < 0.2 * losses[0]

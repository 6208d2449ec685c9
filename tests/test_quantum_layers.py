"""LQNet and CTRQNet: the common contract, noise, parameters, configuration, and a transcription of their equations."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import Bidirectional, CTRQNet, EnhancedNCPMap, EnhancedNeuronMap, LQNet, NCPMap, NeuronMap, RandomMap, StrideAware

from .comparisons import assert_close, assert_trees_close
from .tolerances import FORWARD

I = 3
KINDS = {
    "lqnet": lambda **o: LQNet(6, input_size=I, **o),
    "lqnet-ncp": lambda **o: LQNet(NCPMap(4, 3, 2, I, seed=1), nu_0=0.7, beta=0.4, **o),
    "ctrqnet": lambda **o: CTRQNet(6, input_size=I, **o),
    "ctrqnet-linear": lambda **o: CTRQNet(RandomMap(6, 2, I), use_harmonic_embedding=False, time_scale_factor=2.0, **o),
    "ctrqnet-spatial": lambda **o: CTRQNet(EnhancedNeuronMap(7, 2, I), **o),
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


def quiet(kind, **options):
    """A layer in evaluation, without noise."""
    layer = KINDS[kind](**options)
    layer.eval()
    return layer


def same(a, b, tolerance=1e-6):
    assert len(a) == len(b) == 3
    for k, (got, expected) in enumerate(zip(a, b, strict=True)):
        assert_close(got, expected, tolerance, f"state {k}")


@pytest.mark.parametrize("make", [LQNet, CTRQNet])
def test_shapes_of_the_specification(make):
    neuron_map = NCPMap(inter_neurons=32, command_neurons=16, motor_neurons=8, sensory_neurons=10, seed=42)
    layer = make(neuron_map=neuron_map, nu_0=1.0, beta=0.1, noise_scale=0.05, return_sequences=True, return_state=False, batch_first=True)
    x = mx.random.normal((32, 100, 10))
    assert layer(x).shape == (32, 100, 56)
    y, (h_c, h_s, t) = layer(x, return_state=True, return_sequences=False)
    assert y.shape == h_c.shape == h_s.shape == (32, 56)
    assert mx.array_equal(y, h_c + h_s)
    assert mx.array_equal(t, mx.full((32, 1), 100.0))


@every_kind
@with_lengths
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_is_its_equations(kind, lengths, dtype, batch):
    """A transcription of equations (1) to (5) in float64, independent of the package's forms, with given noise."""
    layer = KINDS[kind]()
    layer.set_dtype(getattr(mx, dtype))
    with mx.stream(mx.cpu):
        x, dt = (a.astype(getattr(mx, dtype)) for a in batch)
        y, (h_c, h_s, t) = layer(x, time_deltas=dt, lengths=lengths, return_state=True, key=mx.random.key(3))
        mx.eval(y, h_c, h_s, t)
    assert {a.dtype for a in (y, h_c, h_s, t)} == {getattr(mx, dtype)}
    # MLX's own exp and log, in CTRQNet's softplus, are only float32-accurate in float64
    tolerance = FORWARD["float32" if isinstance(layer, CTRQNet) else dtype]
    x, dt, y, h_c, h_s, t = (np.array(a) for a in (x, dt, y, h_c, h_s, t))
    H, n_map = layer.units, layer.neuron_map
    xi = np.array(mx.random.normal((9, 4, 2 * H), key=mx.random.key(3)), np.float64).transpose(1, 0, 2)
    p = {name: np.array(a, np.float64) for name, a in tree_flatten(layer.parameters())}
    joined = n_map.adjacency_matrix != 0
    w_in, r = p["drive.weight"].T * (n_map.sensory_adjacency_matrix != 0), p["R"] * joined
    omega = (p["Omega"] + p["Omega"].T) / 2 * (joined | joined.T)
    tau = layer.time_scale_factor * np.log1p(np.exp(p["time_scale"])) if isinstance(layer, CTRQNet) else 1.0
    for b, n in enumerate(lengths or [9] * 4):
        c = s = np.zeros(H)
        clock = 0.0
        for k in range(n):
            d, row = float(dt[b, k]), np.array(x[b, k], np.float64)
            clock += d
            u = p["drive.bias"] + row @ w_in
            if getattr(layer, "use_harmonic_embedding", False):
                waves = np.sin(2 * np.pi * 0.01 * p["drive.frequency"] * clock + p["drive.phase"]).T
                u = p["drive.bias"] + row @ (w_in * waves)
            psi = (c + 1j * s) * np.exp(1j * d * ((c**2 + s**2) @ omega))
            noise = layer.noise_scale * np.sqrt(d) * (xi[b, k].reshape(2, H) @ p["B_noise"])
            psi = psi + noise[0] + 1j * noise[1]
            nu = layer.nu_0 * np.exp(-layer.beta * np.mean(np.abs(psi) ** 2))
            kappa = 1 - np.exp(-nu * d / tau)
            c, s = (1 - kappa) * psi.real + kappa * np.tanh(psi.real @ r + u), (1 - kappa) * psi.imag + kappa * np.tanh(psi.imag @ r)
            assert_close(y[b, k], c + s, tolerance)
        same([h_c[b], h_s[b], t[b]], [c, s, np.array([clock])], tolerance)
        assert not y[b, n:].any()


@every_kind
@every_backend
@with_lengths
def test_cut_and_continued_equals_uncut(kind, backend, lengths, batch):
    (x, dt), layer = batch, quiet(kind, return_state=True, return_sequences=False)
    with ember_mlx.use_backend(backend):
        y, whole = layer(x, time_deltas=dt, lengths=lengths)
        for b, n in enumerate(lengths or [9] * 4):
            for cut in range(1, n):
                _, state = layer(x[b : b + 1, :cut], time_deltas=dt[b : b + 1, :cut])
                last, state = layer(x[b : b + 1, cut:n], state, dt[b : b + 1, cut:n])
                assert_close(last, y[b : b + 1], 1e-5)
                same(state, [a[b : b + 1] for a in whole], 1e-5)


@every_kind
def test_none_in_the_initial_state_is_zeros(kind, batch):
    x, layer = batch[0], quiet(kind, return_state=True)
    zeros, one = mx.zeros((4, layer.units)), mx.zeros((4, 1))
    y, state = layer(x)
    for given in (None, [None] * 3, [zeros, zeros, one], (zeros, None, None)):
        other, other_state = layer(x, given)
        assert_close(other, y, 0)
        same(other_state, state, 0)
    assert float(mx.abs(layer(x, [None, zeros + 0.5, None])[0] - y).max()) > 1e-2


@every_kind
def test_time_deltas_in_every_form(kind, batch):
    (x, dt), layer = batch, quiet(kind)
    y = layer(x, time_deltas=dt)
    assert_close(layer(x, time_deltas=dt[:, :, None]), y, 0)
    assert_close(layer(x, time_deltas=mx.full((4, 9), 0.5)), layer(x, time_deltas=0.5), 0)
    assert_close(layer(x), layer(x, time_deltas=1), 0)
    assert float(mx.abs(layer(x, time_deltas=0.1) - y).max()) > 1e-2


@every_kind
@with_lengths
def test_time_first_unbatched_and_backwards(kind, lengths, batch):
    (x, dt), layer = batch, quiet(kind, return_state=True)
    y, state = layer(x, time_deltas=dt, lengths=lengths)
    layer.batch_first = False
    y_t, state_t = layer(x.swapaxes(0, 1), time_deltas=dt.T, lengths=lengths)
    assert_close(y_t.swapaxes(0, 1), y, 0)
    same(state_t, state, 0)
    layer.batch_first = True
    for b, n in enumerate(lengths or [9] * 4):
        alone, alone_state = layer(x[b, :n], time_deltas=dt[b, :n])
        assert_close(alone, y[b, :n], 1e-6)
        same(alone_state, [a[b] for a in state])
    layer.go_backwards = True
    turned, _ = layer(x, time_deltas=dt, lengths=lengths)
    layer.go_backwards = False
    for b, n in enumerate(lengths or [9] * 4):
        assert_close(turned[b, :n], layer(x[b, :n][::-1], time_deltas=dt[b, :n][::-1])[0], 1e-6)


@every_kind
def test_no_time_no_change(kind, batch):
    layer = quiet(kind, return_state=True)
    state = [mx.random.normal((4, layer.units)), mx.random.normal((4, layer.units)), mx.ones((4, 1))]
    _, after = layer(batch[0], state, 0.0)
    same(after, state, 0)


@every_kind
@every_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("where", ["x", "parameters", "both"])
def test_half_precision(kind, backend, dtype, where, batch):
    (x, dt), layer, low = batch, quiet(kind, return_state=True), getattr(mx, dtype)
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
    assert all(mx.all(mx.isfinite(a)) for _, a in tree_flatten([dp, dx]))
    assert_close(y, expected, FORWARD[dtype])


@pytest.mark.parametrize("make", [LQNet, CTRQNet])
def test_noise_is_reproducible_and_of_every_backend(make, batch):
    x, dt = batch
    layer = make(6, input_size=I, noise_scale=0.3)
    by_backend = []
    for backend in ("numpy", "ops"):
        with ember_mlx.use_backend(backend):
            mx.random.seed(5)
            seeded_once, next_one = layer(x, time_deltas=dt), layer(x, time_deltas=dt)
            mx.random.seed(5)
            assert_close(layer(x, time_deltas=dt), seeded_once, 0)
            assert float(mx.abs(next_one - seeded_once).max()) > 1e-2
            keyed = layer(x, time_deltas=dt, key=mx.random.key(8))
            assert_close(layer(x, time_deltas=dt, key=mx.random.key(8)), keyed, 0)
            by_backend.append([seeded_once, keyed])
            mx.eval(by_backend)
    assert_trees_close(*by_backend, 1e-6)
    noisy = by_backend[0][1]
    layer.eval()
    assert_close(layer(x, time_deltas=dt), layer(x, time_deltas=dt, key=mx.random.key(8)), 0)
    assert float(mx.abs(noisy - layer(x, time_deltas=dt)).max()) > 1e-2


def test_noise_grows_with_the_root_of_time():
    """Without viscosity, rotation and drive, the noise alone makes a random walk of variance noise_scale^2 t in each part."""
    layer = LQNet(50, input_size=1, nu_0=0.0, noise_scale=0.3, return_state=True)
    layer.Omega = mx.zeros((50, 50))
    _, (h_c, h_s, _) = layer(mx.zeros((200, 8, 1)), time_deltas=mx.random.uniform(0, 1, (200, 8)))
    _, (_, _, t) = layer(mx.zeros((200, 8, 1)), time_deltas=mx.full((200, 8), 0.5))
    assert t[0, 0].item() == 4.0
    for part in (h_c, h_s):
        assert float((part * part).mean()) == pytest.approx(0.09 * 4, rel=0.05)
    assert abs(float((h_c * h_s).mean())) < 0.02


@every_kind
def test_masks_hold_while_training_and_omega_is_symmetric(kind, batch):
    x, _ = batch
    layer = KINDS[kind]()
    gradient = mx.grad(lambda p: (layer.update(p), (layer(x) ** 2).sum())[1])(layer.parameters())
    n_map = layer.neuron_map
    joined, sensory = np.abs(n_map.adjacency_matrix), np.abs(n_map.sensory_adjacency_matrix)
    for got, mask in ((gradient["drive"]["weight"], sensory.T), (gradient["R"], joined), (gradient["Omega"], joined | joined.T)):
        assert not np.array(got)[mask == 0].any()
        assert np.array(got)[mask != 0].any()
    assert_close(gradient["Omega"], np.array(gradient["Omega"]).T, 0)
    assert mx.array_equal(layer.rotation(), layer.rotation().T)
    names = [name for name, _ in tree_flatten(layer.trainable_parameters())]
    assert not any("mask" in name for name in names)


def test_the_imaginary_part_moves_from_the_second_step_on(batch):
    layer = quiet("lqnet", return_state=True)
    x = batch[0]
    assert not mx.any(layer(x[:, :1])[1][1])
    assert float(mx.abs(layer(x[:, :2])[1][1]).min()) > 0
    layer.Omega = mx.zeros((6, 6))
    assert not mx.any(layer(x)[1][1])
    loner = LQNet(NeuronMap(2, sensory_adjacency_matrix=np.ones((I, 2))), return_state=True)
    loner.eval()
    assert not mx.any(loner(x)[1][1])


@every_kind
def test_weights_and_configuration_travel(kind, tmp_path, batch):
    layer = quiet(kind)
    layer.save_weights(str(tmp_path / "w.safetensors"))
    other = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    other.eval()
    assert not mx.array_equal(other(batch[0]), layer(batch[0]))
    other.load_weights(str(tmp_path / "w.safetensors"), strict=True)
    assert mx.array_equal(other(batch[0]), layer(batch[0]))
    assert repr(other) == repr(layer)


def test_repr_reads_well():
    text = repr(CTRQNet(6, input_size=I, beta=0.25))
    assert text.startswith("CTRQNet(FullyConnectedMap(units=6, inputs=3")
    assert "nu_0=1, beta=0.25, noise_scale=0.1, time_scale_factor=1, harmonic" in text


def test_parameters_of_the_map_are_defaults():
    neuron_map = EnhancedNCPMap(4, 3, 2, I, neuron_params={"time_scale_factor": 2.5})
    assert CTRQNet(neuron_map).time_scale_factor == 2.5
    assert CTRQNet(neuron_map, time_scale_factor=1.0).time_scale_factor == 1.0
    assert ember_mlx.CfC(neuron_map).time_scale_factor == 2.5
    assert ember_mlx.CfC(neuron_map, time_scale_factor=4).time_scale_factor == 4.0
    assert ember_mlx.CfC.from_config(ember_mlx.CfC(neuron_map).get_config()).time_scale_factor == 2.5
    assert CTRQNet(6, input_size=I).time_scale_factor == ember_mlx.CfC(6, I).time_scale_factor == 1.0


def test_time_scale_slows_the_relaxation(batch):
    layer = CTRQNet(6, input_size=I, time_scale_factor=1e6, return_state=True)
    layer.eval()
    h = mx.random.normal((4, 6))
    _, (h_c, h_s, _) = layer(batch[0], [h, None, None])
    assert_close(mx.sqrt(h_c * h_c + h_s * h_s), mx.abs(h), 1e-4)


@every_kind
def test_training_lowers_the_loss(kind):
    """The task: the running sum of irregular samples."""
    layer, x, dt = KINDS[kind](), mx.random.normal((16, 20, I)), mx.random.uniform(0.1, 2, (16, 20))
    readout = nn.Linear(layer.units, 1)
    target = mx.tanh(0.3 * mx.cumsum(x[..., :1] * dt[..., None], axis=1))
    model = nn.Sequential(readout)
    model.layer = layer
    optimizer, losses = optim.Adam(2e-2, bias_correction=True), []
    step = nn.value_and_grad(model, lambda m: ((readout(m.layer(x, time_deltas=dt)) - target) ** 2).mean())
    for _ in range(80):
        value, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(value.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize("wrap", [Bidirectional, lambda layer: StrideAware(layer, [1, 1])], ids=["bidirectional", "strides"])
def test_a_wrapper_draws_noise_of_its_own_for_each_layer(wrap):
    both = wrap(LQNet(6, input_size=I, noise_scale=0.3, return_sequences=False))
    one, other = (both.forward_layer, both.backward_layer) if isinstance(both, Bidirectional) else both.layers
    other.update(one.parameters())
    x, key = mx.random.normal((3, 1, I)), mx.random.key(8)  # one step: its direction makes no difference
    y = both(x, key=key)
    assert_close(both(x, key=key), y, 0)
    assert float(mx.abs(both(x, key=mx.random.key(9)) - y).max()) > 1e-2
    assert float(mx.abs(y[:, :6] - y[:, 6:]).max()) > 1e-2
    with pytest.raises(ValueError, match=r"key must be a key of mx.random.key, got \(3,\) of float32"):
        both(x, key=mx.zeros((3,)))
    both.eval()
    y = both(x, key=key)
    assert_close(y[:, :6], y[:, 6:], 0)


@pytest.mark.parametrize(
    ("cls", "values", "names"),
    [
        (LQNet, (0.5, 0.2, 0.0, False), ("nu_0", "beta", "noise_scale", "return_sequences")),
        (LQNet, (2, 0.25), ("nu_0", "beta")),
        (CTRQNet, (0.5, 0.2, 0.0, 3.0, False), ("nu_0", "beta", "noise_scale", "time_scale_factor", "use_harmonic_embedding")),
    ],
)
def test_the_old_order_of_arguments_still_works_and_warns(cls, values, names):
    with pytest.warns(DeprecationWarning, match="pass nu_0, beta") as caught:
        layer = cls(RandomMap(6, 2, I), *values)
    assert caught[0].filename == __file__
    assert [getattr(layer, name) for name in names] == list(values)
    assert layer.get_config() == cls(RandomMap(6, 2, I), **dict(zip(names, values, strict=True))).get_config()


def test_input_size_comes_second_as_in_all_layers_on_maps():
    assert LQNet(6, I).input_size == CTRQNet(6, I).input_size == I
    with pytest.raises(TypeError, match="nu_0 must be given once"):
        LQNet(6, 0.5, nu_0=1.0, input_size=I)
    with pytest.raises(TypeError, match="positional arguments"):
        LQNet(6, *[0.5] * 9)

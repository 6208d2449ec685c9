"""A layer inside MLX's transformations: every result equals that of the ops form, which MLX differentiates itself."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import ember_mlx
from ember_mlx import LTC, CfC, CTRQNet, NCPMap, RandomMap

from .comparisons import assert_close, assert_trees_close

LAYERS = {
    "dense": lambda: CfC(5, input_size=3, backbone_units=6),
    "layered-mixed": lambda: CfC(NCPMap(4, 3, 2, 3, seed=1), mixed_memory=True),
    "ltc": lambda: LTC(5, input_size=3, ode_unfolds=2, return_sequences=False),
    "ltc-sparse-mixed": lambda: LTC(RandomMap(5, 5, 3, seed=1), ode_unfolds=2, mixed_memory=True, return_sequences=False),
    "quantum": lambda: CTRQNet(NCPMap(4, 3, 2, 3, seed=1), return_sequences=False),
}
LENGTHS = {"full": None, "lengths": [4, 2, 3]}
both = pytest.mark.parametrize("kind", LAYERS)
with_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


def make(kind, seed=0):
    mx.random.seed(seed)
    layer = LAYERS[kind]()
    layer.eval()
    x, dt = mx.random.normal((3, 4, 3)), mx.random.uniform(0.1, 2, (3, 4))
    mx.eval(layer.parameters(), x, dt)
    return layer, x, dt


def loss_of(layer, lengths=None):
    def loss(parameters, x, dt):
        layer.update(parameters)
        y, state = layer(x, time_deltas=dt, lengths=lengths, return_sequences=True, return_state=True)
        return (y * y).sum() + sum((a * mx.arange(a.size).reshape(a.shape) * 0.1).sum() for a in state)

    return loss


def ops_gradient(loss, arguments, argnums=(0, 1, 2)):
    with ember_mlx.use_backend("ops"):
        result = mx.value_and_grad(loss, argnums=argnums)(*arguments)
        mx.eval(result)
    return result


@both
@with_lengths
def test_value_and_grad(kind, lengths):
    layer, x, dt = make(kind)
    arguments = (layer.parameters(), x, dt)
    expected = ops_gradient(loss_of(layer, lengths), arguments)
    assert_trees_close(mx.value_and_grad(loss_of(layer, lengths), argnums=(0, 1, 2))(*arguments), expected, 1e-5)
    without_effect = ("0.B_noise",)  # in evaluation there is no noise
    assert all(float(mx.abs(g).max()) > 0 for name, g in tree_flatten(expected[1]) if g.size and name not in without_effect)


@both
def test_grad_of_one_argument_alone(kind):
    layer, x, dt = make(kind)
    arguments = (layer.parameters(), x, dt)
    for k in range(3):
        expected = ops_gradient(loss_of(layer), arguments, argnums=k)[1]
        assert_trees_close(mx.grad(loss_of(layer), argnums=k)(*arguments), expected, 1e-5)


@both
@with_lengths
@pytest.mark.parametrize("order", ["compile(grad)", "grad(compile)"])
def test_compile(kind, lengths, order):
    layer, x, dt = make(kind)
    arguments = (layer.parameters(), x, dt)
    loss = loss_of(layer, lengths)
    expected = ops_gradient(loss, arguments)[1]
    if order == "compile(grad)":
        got = mx.compile(mx.grad(loss, argnums=(0, 1, 2)))(*arguments)
    else:
        got = mx.grad(mx.compile(loss), argnums=(0, 1, 2))(*arguments)
    assert_trees_close(got, expected, 1e-5)


@both
def test_compiled_training_step_follows_the_plain_one(kind):
    losses = {}
    for compiled in (False, True):
        layer, x, dt = make(kind)
        optimizer = optim.Adam(learning_rate=1e-2)
        optimizer.init(layer.trainable_parameters())
        target = mx.random.normal((3, layer.units))
        mx.eval(target, optimizer.state)

        def loss(layer, x, dt, target=target):
            return ((layer(x, time_deltas=dt) - target) ** 2).mean()

        def step(x, dt, layer=layer, optimizer=optimizer, loss=loss):
            value, gradients = nn.value_and_grad(layer, loss)(layer, x, dt)
            optimizer.update(layer, gradients)
            return value

        state = [layer.state, optimizer.state]
        run = mx.compile(step, inputs=state, outputs=state) if compiled else step
        losses[compiled] = []
        for _ in range(5):
            losses[compiled].append(run(x, dt).item())
            mx.eval(state)
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert losses[True][-1] < losses[True][0]


@both
def test_vmap_is_the_loop(kind):
    layer, _, _ = make(kind)
    x, dt = mx.random.normal((4, 2, 3, 3)), mx.random.uniform(0.1, 2, (4, 2, 3))
    expected = mx.stack([layer(a, time_deltas=b) for a, b in zip(x, dt, strict=True)])
    assert_close(mx.vmap(lambda a, b: layer(a, time_deltas=b))(x, dt), expected, 1e-6)
    gradient = mx.grad(lambda a, b: layer(a, time_deltas=b).sum())
    expected = mx.stack([gradient(a, b) for a, b in zip(x, dt, strict=True)])
    assert_close(mx.vmap(gradient)(x, dt), expected, 1e-6)


def directional(function, x, direction, step=1e-2):
    """The central difference of a function of one array, in float32."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@both
@with_lengths
def test_jvp(kind, lengths):
    layer, x, dt = make(kind)
    dx, ddt = mx.random.normal(x.shape), mx.random.normal(dt.shape)

    def run(a, b):
        return layer(a, time_deltas=b, lengths=lengths, return_sequences=True)

    with ember_mlx.use_backend("ops"):
        _, (expected,) = mx.jvp(run, [x, dt], [dx, ddt])
        mx.eval(expected)
    _, (got,) = mx.jvp(run, [x, dt], [dx, ddt])
    assert_close(got, expected, 1e-5)
    _, (got,) = mx.jvp(lambda a: run(a, dt), [x], [dx])
    assert_close(got, directional(lambda a: run(a, dt), x, dx), 1e-3)
    assert float(mx.abs(got).max()) > 0.1


@both
@with_lengths
def test_second_derivatives(kind, lengths):
    layer, x, dt = make(kind)
    loss = loss_of(layer, lengths)
    parameters, direction = layer.parameters(), mx.random.normal(x.shape)

    def slope(p, a, b):
        return (mx.grad(loss, argnums=1)(p, a, b) * direction).sum()

    with ember_mlx.use_backend("ops"):
        expected = mx.grad(slope, argnums=(0, 1, 2))(parameters, x, dt)
        mx.eval(expected)
    got = mx.grad(slope, argnums=(0, 1, 2))(parameters, x, dt)
    assert_trees_close(got, expected, 1e-4)
    gradient = mx.grad(lambda a: loss(parameters, a, dt))
    assert_close(mx.jvp(gradient, [x], [direction])[1][0], expected[1], 1e-4)
    assert_close(directional(gradient, x, direction), expected[1], 5e-3)
    assert float(mx.abs(expected[1]).max()) > 0.1


def test_third_derivative():
    layer, x, dt = make("dense")

    def third():
        def first(s):
            return layer(s * x, time_deltas=dt).sum()

        return mx.grad(mx.grad(mx.grad(first)))(mx.array(1.0))

    with ember_mlx.use_backend("ops"):
        expected = third()
        mx.eval(expected)
    assert_close(third(), expected, 1e-3)


@both
@with_lengths
def test_jacobian(kind, lengths):
    """mx.vmap of the pull or the push alone: the arrays of the layer itself have values then."""
    layer, x, dt = make(kind)

    def run(a):
        return layer(a, time_deltas=dt, lengths=lengths, return_sequences=True).sum(axis=(0, 2))

    rows, columns = mx.eye(x.shape[1]), mx.eye(x.size).reshape(x.size, *x.shape)
    by_row = mx.vmap(lambda dy: mx.vjp(run, [x], [dy])[1][0])(rows)
    assert_close(by_row, mx.stack([mx.grad(lambda a, t=t: run(a)[t])(x) for t in range(len(rows))]), 1e-5)
    assert_close(mx.compile(lambda dy: mx.vjp(run, [x], [dy])[1][0])(rows[1]), by_row[1], 1e-5)
    by_column = mx.vmap(lambda dx: mx.jvp(run, [x], [dx])[1][0])(columns)
    assert_close(by_column.T.reshape(by_row.shape), by_row, 1e-5)


@both
def test_export_and_import(kind, tmp_path):
    layer, x, dt = make(kind)
    path = str(tmp_path / "layer.mlxfn")
    mx.export_function(path, lambda a, b: layer(a, time_deltas=b, return_sequences=True), x, dt)
    assert_close(mx.import_function(path)(x, dt)[0], layer(x, time_deltas=dt, return_sequences=True), 1e-6)


@both
def test_checkpoint(kind):
    layer, x, dt = make(kind)
    loss = loss_of(layer)
    p = layer.parameters()
    expected = mx.grad(loss, argnums=1)(p, x, dt)
    assert_close(mx.grad(mx.checkpoint(lambda a: loss(p, a, dt)))(x), expected, 1e-6)


def test_state_of_random_numbers_survives_a_compiled_step_with_dropout():
    layer = CfC(5, input_size=3, backbone_units=6, backbone_dropout=0.5)
    x = mx.random.normal((2, 4, 3))
    state = [layer.state, mx.random.state]
    step = mx.compile(lambda a: layer(a), inputs=state, outputs=state)
    first, second = step(x), step(x)
    assert not mx.array_equal(first, second)
    mx.eval(mx.random.normal((2,)), layer.parameters())


def test_arrays_are_evaluated_once_and_not_changed():
    layer, x, dt = make("dense")
    before = tree_map(mx.array, [layer.parameters(), x, dt])
    mx.eval(mx.value_and_grad(loss_of(layer))(layer.parameters(), x, dt))
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(tree_flatten(before), tree_flatten([layer.parameters(), x, dt]), strict=True))


def test_named_numpy_raises_where_it_cannot_run():
    layer, x, _ = make("dense")
    with (
        ember_mlx.use_backend("numpy"),
        pytest.raises(RuntimeError, match=r"\[CfC\] backend 'numpy' cannot run: arrays have no values inside mx.compile"),
    ):
        mx.compile(lambda a: layer(a))(x)


def test_two_layers_on_the_same_scaled_times_compile():
    """mx.compile of MLX 0.32.4 fails at a split of a pointwise result that is there twice."""
    layers = [CfC(4, 3, time_scale_factor=2.0, return_sequences=True) for _ in range(2)]
    x, dt = mx.random.normal((2, 5, 3)), mx.random.uniform(0.1, 2, (2, 5))

    def both(a, d):
        return layers[0](a, time_deltas=d) + layers[1](a, time_deltas=d)

    assert_close(mx.compile(both)(x, dt), both(x, dt), 1e-5)

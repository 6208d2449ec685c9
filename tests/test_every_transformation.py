"""Every layer in every mode inside transformations and nested transformations, compared with a loop, a difference or the plain call."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

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
    StrideAwareLTC,
    cells,
)

from .comparisons import assert_close, assert_trees_close

I, T, B = 3, 3, 2
NCP = NCPMap(4, 3, 2, I, seed=1)
LAYERS = {
    "rnn-relu": lambda: RNN(I, 3, activation="relu"),
    "lstm-projected": lambda: LSTM(I, 3, proj_size=2),
    "gru-deep": lambda: GRU(I, 3, 2, bidirectional=True),
    "recurrent-lem": lambda: Recurrent(cells.LEM, I, 3, 2, bidirectional=True),
    "recurrent-min-lstm": lambda: Recurrent(cells.MinLSTM, I, 3),
    "recurrent-gru-d": lambda: Recurrent(cells.GRUD, I, 3),
    "recurrent-ct-rnn": lambda: Recurrent(cells.CTRNN(unfolds=2), I, 3),
    "cfc": lambda: CfC(4, I, backbone_units=3, backbone_layers=2, activation="gelu"),
    "cfc-no-gate": lambda: CfC(4, I, mode="no_gate", backbone_units=3, activation="silu"),
    "cfc-pure": lambda: CfC(4, I, mode="pure", backbone_units=3, activation="relu"),
    "cfc-pure-ncp": lambda: CfC(NCP, mode="pure"),
    "cfc-mixed": lambda: CfC(NCP, mixed_memory=True),
    "ltc": lambda: LTC(4, I, ode_unfolds=2),
    "ltc-explicit": lambda: LTC(4, I, ode_unfolds=2, solver="explicit"),
    "ltc-rk4-mixed": lambda: LTC(RandomMap(5, 2, I, seed=1), ode_unfolds=1, solver="rk4", mixed_memory=True),
    "ltc-large": lambda: LTC(RandomMap(70, 2, 40, seed=1), ode_unfolds=1),
    "strides-cfc": lambda: StrideAwareCfC(NCP, [1, 2], mode="pure"),
    "strides-ltc": lambda: StrideAwareLTC(4, [2, 1], I, ode_unfolds=1),
    "strides-gru": lambda: StrideAware(GRU(I, 3), [1, 2]),
    "lqnet": lambda: LQNet(NCP),
    "ctrqnet": lambda: CTRQNet(4, input_size=I),
    "bidirectional": lambda: Bidirectional(CfC(4, I, mode="pure", backbone_units=3)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def losses(kind):
    """The loss of the weights, x and time deltas, as arrays; two sets of them."""
    mx.random.seed(4)
    layer = LAYERS[kind]()
    layer.eval()

    def loss(parameters, x, dt):
        layer.update(parameters)
        y, state = layer(x, time_deltas=dt if getattr(layer, "timed", True) else None, return_sequences=True, return_state=True)
        floating = [a for _, a in tree_flatten(state) if mx.issubdtype(a.dtype, mx.floating)]
        return (y * y).sum() + sum((a * a).sum() for a in floating) / 2

    # one set from the other, so that what is the same in both cannot hide
    parameters = tree_map(lambda a: mx.where(a == 0, 0.2, a), layer.parameters())  # |w_tau| bends at its first value, 0
    first = (parameters, mx.random.normal((B, T, layer.input_size)), mx.random.uniform(0.3, 1, (B, T)))
    second = tree_map(lambda a: a * 0.9 + 0.01, first)
    mx.eval(first, second)
    return loss, first, second


def together(first, second):
    return tree_map(lambda a, b: mx.stack([a, b]), first, second)


def gradient_of(loss):
    return lambda *arguments: mx.grad(loss, argnums=(0, 1, 2))(*arguments)


def all_of(trees):
    """The arrays of several trees that have elements, by path."""
    return tree_unflatten([(path, a) for path, a in tree_flatten(trees) if a.size])


@every_layer
def test_vmap_of_gradients_by_everything(kind):
    loss, first, second = losses(kind)
    gradient = gradient_of(loss)
    expected = together(gradient(*first), gradient(*second))
    assert_trees_close(all_of(mx.vmap(gradient)(*together(first, second))), all_of(expected), 1e-5)
    four = together(together(first, second), together(second, first))
    nested = mx.vmap(mx.vmap(gradient))(*four)
    assert_trees_close(all_of(nested), all_of(together(expected, together(gradient(*second), gradient(*first)))), 1e-5)


@every_layer
@pytest.mark.parametrize("which", range(3), ids=["parameters", "x", "time_deltas"])
def test_vmap_of_gradients_by_one(kind, which):
    loss, first, second = losses(kind)

    def gradient(one):
        return mx.grad(loss, argnums=which)(*(one if k == which else a for k, a in enumerate(first)))

    expected = together(gradient(first[which]), gradient(second[which]))
    assert_trees_close(all_of([mx.vmap(gradient)(together(first[which], second[which]))]), all_of([expected]), 1e-5)


@every_layer
def test_derivatives_of_gradients(kind):
    """Forward over reverse, reverse over forward, reverse over reverse, the last also compiled and under vmap, against a difference."""
    loss, first, _ = losses(kind)
    gradient = gradient_of(loss)
    leaves = [a for _, a in tree_flatten(first) if a.size]
    paths = [path for path, a in tree_flatten(first) if a.size]
    empty = [(path, a) for path, a in tree_flatten(first) if not a.size]
    direction = [mx.random.normal(a.shape) for a in leaves]
    mx.eval(direction)

    def arguments(values):
        return tree_unflatten([*zip(paths, values, strict=True), *empty])

    def gradients(*values):
        return [a for _, a in tree_flatten(gradient(*arguments(values))) if a.size]

    def slope(*values):
        return sum((g * d).sum() for g, d in zip(gradients(*values), direction, strict=True))

    def push(*values):
        return mx.jvp(lambda *a: loss(*arguments(a)), list(values), direction)[1][0]

    by_all = tuple(range(len(leaves)))
    expected = mx.jvp(gradients, leaves, direction)[1]
    step = 1e-3
    ahead, behind = (gradients(*(a + sign * step * d for a, d in zip(leaves, direction, strict=True))) for sign in (1, -1))
    scale = max(float(mx.abs(a).max()) for a in expected)
    for path, found, a, b in zip(paths, expected, ahead, behind, strict=True):
        np.testing.assert_allclose(np.array(found), np.array((a - b) / (2 * step)), rtol=0.05, atol=0.02 * scale, err_msg=path)
    named = dict(zip(paths, expected, strict=True))
    reverse = mx.grad(slope, argnums=by_all)
    for way, found in {
        "reverse over reverse": reverse(*leaves),
        "reverse over forward": mx.grad(push, argnums=by_all)(*leaves),
        "compiled": mx.compile(reverse)(*leaves),
        "vmap": [a[1] for a in mx.vmap(reverse)(*(mx.stack([2 * a, a]) for a in leaves))],
        "checkpoint": mx.grad(mx.checkpoint(slope), argnums=by_all)(*leaves),
    }.items():
        for path, a in zip(paths, found, strict=True):
            assert_close(a, named[path], 1e-4 * max(1.0, scale), f"{way}: {path}")


@every_layer
def test_export_of_a_gradient(kind, tmp_path):
    loss, first, _ = losses(kind)
    parameters, x, dt = first

    def by_inputs(x, dt):
        return mx.grad(loss, argnums=(1, 2))(parameters, x, dt)

    mx.export_function(str(tmp_path / "gradient.mlxfn"), by_inputs, x, dt)
    assert_trees_close(mx.import_function(str(tmp_path / "gradient.mlxfn"))(x, dt), list(by_inputs(x, dt)), 1e-5)

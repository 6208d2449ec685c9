"""Random cells: what is made from their graphs against the steps themselves, called on NumPy arrays."""

import numpy as np
import pytest

from ember_mlx import Cell
from ember_mlx.scans.cell.gated import LSTM_CELL
from ember_mlx.scans.cell.numpy_plan import plan_of
from ember_mlx.scans.cell.random_cases import random_arrays
from ember_mlx.scans.cell.reference import CellStep, cell_backward, cell_forward
from ember_mlx.scans.scratch import Scratch
from ember_mlx.step import abs, cos, erf, exp, expm1, log1p, maximum, minimum, sigmoid, sin, softplus, sqrt, tanh, where
from ember_mlx.step.derivative import derive
from ember_mlx.step.graph import Graph

SMOOTH = {
    "tanh": tanh,
    "sigmoid": sigmoid,
    "sin": sin,
    "cos": cos,
    "erf": erf,
    "softplus": softplus,
    "exp": lambda a: exp(-a * a),
    "expm1": lambda a: expm1(0.3 * tanh(a)),
    "log1p": lambda a: log1p(a * a),
    "sqrt": lambda a: sqrt(1 + a * a),
    "divide": lambda a: a / (1.5 + a * a),
    "negate": lambda a: -a,
    "constant": lambda a: 2 - 0.5 * a,
    "abs": lambda a: abs(a + 7),
}
PAIRS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": lambda a, b: maximum(a, b + 9),
    "minimum": lambda a, b: minimum(a, b + 9),
    "where": lambda a, b: where(a < b + 9, a, b),
    "divide": lambda a, b: a / (2 + b * b),
}


class Random(Cell):
    """A cell of random expressions: a value made of two values of the step made before, again and again."""

    x_products = 3
    h_products = {"U": 2, "V": 1, "W": 3}
    parameters = {"p": 0.3, "q": 0.2}
    states = ("h", "c", "k")

    def __init__(self, seed):
        self.seed = seed

    def step(self, x, h, c, k, dt, U, V, W, p, q):
        rng = np.random.Generator(np.random.PCG64(self.seed))
        values = [*x, h, c, k]
        products = [U, V, V, W]
        for n in range(int(rng.integers(8, 25))):
            a, b = (values[int(i)] for i in rng.integers(0, len(values), 2))
            kind = rng.integers(0, 10)
            if kind < 4:
                made = SMOOTH[sorted(SMOOTH)[int(rng.integers(0, len(SMOOTH)))]](a)
            elif kind < 8:
                made = PAIRS[sorted(PAIRS)[int(rng.integers(0, len(PAIRS)))]](tanh(a), b)
            else:
                made = a * [dt, p, exp(-dt * p), p * q + 1][int(rng.integers(0, 4))]
            values.append(made)
            if n % 3 == 2 and products:
                results = products.pop()(tanh(values[int(rng.integers(0, len(values)))]))
                values += results if isinstance(results, tuple) else [results]
        for product in products:
            results = product(tanh(values[int(rng.integers(3, len(values)))]))
            values += results if isinstance(results, tuple) else [results]
        rest = sum((tanh(v) for v in values), 0.1 * sigmoid(x[1] + q * dt + p))
        return tanh(rest + 0.3 * h), tanh(values[-1]) + 0.1 * rest * dt, sigmoid(0.2 * rest - k)


def loop(cell, arrays):
    """The scan by calling the step; no lengths."""
    D, T, _, _ = arrays["x"].shape
    H = arrays["initial"]["h"].shape[2]
    outputs = []
    for d in range(D):
        state, steps = [arrays["initial"][name][d] for name in cell.states], []
        given = {name: a[d] for name, a in arrays["parameters"].items()}
        for name, w in arrays["weights"].items():

            def product(v, w=w[d]):
                results = tuple(np.split(v @ w.T, len(w) // H, axis=1))
                return results if len(results) > 1 else results[0]

            given[name] = product
        for t in range(T):
            x = tuple(np.split(arrays["x"][d, t] @ arrays["w_x"][d].T + arrays["b"][d], len(arrays["b"][d]) // H, axis=1))
            now = given | dict(zip(cell.states, state, strict=True)) | {"x": x, "dt": arrays["dt"][d, t][:, None]}
            state = list(cell.step(**now))
            steps.append(state)
        outputs.append([np.stack(a) for a in zip(*steps, strict=True)])
    return [np.stack(a) for a in zip(*outputs, strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_random_cells_equal_their_steps_and_finite_differences(seed):
    cell = Random(seed)
    arrays = random_arrays(cell.definition, 1 + seed % 2, 3, 2, 3, lengths=False, seed=seed)
    kept = Scratch(np.dtype(np.float64))
    outputs = cell_forward(cell.definition, arrays, kept)
    for a, b in zip(outputs, loop(cell, arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    rng = np.random.default_rng(seed)
    dy = tuple(rng.standard_normal(a.shape) for a in outputs)
    gradients = cell_backward(cell.definition, arrays, outputs, dy)
    same_leaves(gradients, cell_backward(cell.definition, arrays, outputs, dy, kept), 1e-12)
    direction = like(arrays, lambda a: rng.standard_normal(a.shape))
    step = 1e-6
    ends = [cell_forward(cell.definition, plus(arrays, direction, sign * step)) for sign in (1, -1)]
    numeric = sum(((a - b) * d).sum() for a, b, d in zip(*ends, dy, strict=True)) / (2 * step)
    derived = sum((a * b).sum() for a, b in zip(leaves(gradients, direction), leaves(direction, direction), strict=True))
    assert abs(numeric - derived) <= 2e-7 * max(1, abs(derived))


@pytest.mark.parametrize("seed", range(6))
def test_random_cells_with_lengths_equal_each_sequence_alone(seed):
    cell = Random(seed)
    arrays = random_arrays(cell.definition, 2, 6, 4, 3, lengths=True, seed=seed)
    outputs = cell_forward(cell.definition, arrays)
    dy = tuple(np.random.default_rng(seed).standard_normal(a.shape) for a in outputs)
    gradients = cell_backward(cell.definition, arrays, outputs, dy)
    total = np.zeros_like(arrays["w_x"])
    for b, length in enumerate(arrays["lengths"]):
        alone = {**arrays, "x": arrays["x"][:, :length, b : b + 1], "dt": arrays["dt"][:, :length, b : b + 1]}
        alone["initial"] = {name: a[:, b : b + 1] for name, a in arrays["initial"].items()}
        del alone["lengths"]
        y = cell_forward(cell.definition, alone)
        for all_of_it, own in zip(outputs, y, strict=True):
            np.testing.assert_allclose(all_of_it[:, :length, b : b + 1], own, rtol=0, atol=1e-12)
            assert not all_of_it[:, length:, b].any()
        total += cell_backward(cell.definition, alone, y, tuple(d[:, :length, b : b + 1] for d in dy))["w_x"]
    np.testing.assert_allclose(gradients["w_x"], total, rtol=0, atol=1e-10)


def test_single_steps_read_the_arrays_anew():
    cell = Random(3)
    arrays = random_arrays(cell.definition, 1, 5, 2, 3, lengths=False)
    expected = cell_forward(cell.definition, arrays)
    own = {**arrays, "x": arrays["x"][:, :1].copy(), "dt": arrays["dt"][:, :1].copy()}
    own["initial"] = {name: a.copy() for name, a in arrays["initial"].items()}
    step = CellStep(cell.definition, own)
    for t in range(5):
        own["x"][...], own["dt"][...] = arrays["x"][:, t : t + 1], arrays["dt"][:, t : t + 1]
        after = step()
        for name, a, y in zip(cell.states, after, expected, strict=True):
            np.testing.assert_allclose(a, y[:, t], rtol=0, atol=1e-13)
            own["initial"][name][...] = a


def test_statements_of_an_lstm_are_as_few_as_by_hand():
    plan = plan_of(LSTM_CELL.definition)
    step, pull = (f.source.split("\n") for f in (plan.step, plan.pull))
    assert sum("np." in line or "products[" in line or "sigmoid_of" in line for line in step) == 9
    assert sum("np." in line or "back[" in line for line in pull) == 6
    assert plan.slots == 4  # the gates; tanh(c) is computed again


def test_equal_steps_share_a_plan_and_others_do_not():
    assert Random(1).definition == Random(1).definition != Random(2).definition
    assert len({Random(1).definition, Random(1).definition, Random(2).definition}) == 2


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_slopes(name):
    class One(Cell):
        def step(self, x, h):
            return SMOOTH[name](x) + 0.5 * h

    definition = One().definition
    pull = derive(definition)
    assert list(pull.inputs[definition.x[0].index]) == [("state", 0)]
    x = np.linspace(-2, 2, 9).reshape(1, 9, 1, 1)
    arrays = {
        "x": x,
        "w_x": np.ones((1, 1, 1)),
        "b": np.zeros((1, 1)),
        "initial": {"h": np.zeros((1, 1, 1))},
        "weights": {},
        "parameters": {},
    }
    outputs = cell_forward(definition, arrays)
    d = cell_backward(definition, arrays, outputs, (np.eye(9)[4].reshape(1, 9, 1, 1),))["x"]
    slope = (SMOOTH[name](x + 1e-6) - SMOOTH[name](x - 1e-6)) / 2e-6
    np.testing.assert_allclose(d[0, 4], slope[0, 4], atol=1e-8)
    np.testing.assert_allclose(d[0, :4].ravel(), slope[0, :4].ravel() * 0.5 ** np.arange(4, 0, -1), atol=1e-8)


def test_simplification():
    graph = Graph()
    a, b = graph.input("a"), graph.input("b")
    assert all(same is a for same in (a + 0, a * 1, a / 1, -1 * (-a)))
    assert (a + (-b)) is (a - b)
    assert (a * -b) is -(a * b)
    assert (a * 0).data == 0
    assert (b + a) is (a + b)
    assert (graph.constant(2) * 3).data == 6


def leaves(tree, like):
    for name in like:
        if isinstance(like[name], dict):
            yield from leaves(tree[name], like[name])
        elif name != "lengths":
            yield tree[name]


def like(tree, make):
    return {name: like(a, make) if isinstance(a, dict) else make(a) for name, a in tree.items()}


def plus(tree, direction, factor):
    return {name: plus(a, direction[name], factor) if isinstance(a, dict) else a + factor * direction[name] for name, a in tree.items()}


def same_leaves(one, other, atol):
    for a, b in zip(leaves(one, one), leaves(other, one), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)

"""Kernels whose text is made from a cell's step: against the ops form in float64, in every layout, at sizes that the sweeps do not have."""

from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from ember_mlx import step
from ember_mlx.kernels.loader import read_source
from ember_mlx.kernels.tiles import FAMILIES, Tile, family_of
from ember_mlx.scans.cell import fused
from ember_mlx.scans.cell.backward_text import backward_kernel
from ember_mlx.scans.cell.forward_text import Forward, forward_kernel
from ember_mlx.scans.cell.gated import GRU_CELL, LSTM_CELL, RELU_RNN, TANH_RNN
from ember_mlx.scans.cell.kernel_layout import Backward as BackwardLayout
from ember_mlx.scans.cell.kernel_layout import Forward as ForwardLayout
from ember_mlx.scans.cell.kernel_plan import plan_of
from ember_mlx.scans.cell.ops import cell_ops
from ember_mlx.scans.cell.random_cases import VARIANTS as ALL_VARIANTS
from ember_mlx.scans.cell.random_cases import cell_problem, random_arrays
from ember_mlx.step.cell import Cell, Parameter

from .comparisons import assert_close, to_mlx
from .metal_host import metal_kernel
from .metal_host.lint import lint
from .test_kernels import kernels_on, on_host, verified
from .tolerances import FORWARD, GRADIENT, POINTWISE

VARIANTS = ALL_VARIANTS["Recurrent"]
TILES = {
    "streamed": Tile(64, 1, 8, False),
    "resident": Tile(128, 2, 4, True),
    "by-step": Tile(64, 0, 8, False),
    "wide": Tile(256, 3, 8, True),
}
SIZES = {"T1-B2-H1": (1, 2, 1), "T7-B5-H32": (7, 5, 32), "T7-B1-H100": (7, 1, 100), "T1-B4-H31": (1, 4, 31)}


class Functions(Cell):
    """Everything that a step may call."""

    states = ("a", "b")
    x_products = 3
    h_products: ClassVar = {"V": 2}
    parameters: ClassVar = {"p": (0.1, 0.4), "q": Parameter(0.3, shared=True)}

    def step(self, x, a, b, dt, V, p, q):
        u, v = V(step.sin(a) * p)
        u = step.expm1(u * dt / 3) + step.log1p(step.abs(v) * q) + step.erf(x[0])
        w = step.where(x[1] > b, step.softplus(x[1]), step.minimum(b, 0.3) - step.cos(x[2]))
        return step.sqrt(u**2 + 1) - 1 + x[2], step.maximum(step.tanh(w), -step.exp(-u)) / (1.5 + step.sigmoid(v - x[0]))


class Wide(Cell):
    """A weight of six blocks, called twice; some of its gates take an x, others none."""

    x_products = 3
    h_products: ClassVar = {"V": 6}

    def step(self, x, h, V):
        a, b, c, d, e, f = V(h)
        g = step.sigmoid(x[1] + c) * step.tanh(x[0] + a) + step.tanh(b) * d + e * step.sigmoid(x[2] + f)
        a, b, c, d, e, f = V(g)
        return 0.3 * (g + step.tanh(x[0] + a + b * c) - step.sigmoid(x[1] + f) + 0.1 * d - e)


class Flat(Cell):
    """Linear: its derivative has no coefficient but numbers; a state has no gradient, and one product's result none either."""

    states = ("h", "n")
    h_products: ClassVar = {"V": 1, "U": 1}

    def step(self, x, h, n, V, U):
        return 0.5 * h + V(h) - x, n + step.where(U(n) > 0, 1, -1)


class Alone(Cell):
    """A scan without a coefficient and without a product."""

    def step(self, x, h):
        return x - 0.5 * h


OWN = {"functions": Functions(), "wide": Wide(), "flat": Flat(), "alone": Alone()}
PLAIN = {"tanh": TANH_RNN, "relu": RELU_RNN, "lstm": LSTM_CELL, "gru": GRU_CELL}
OTHERS = OWN | PLAIN


def problem(name, T, B, H, lengths=False, D=1):
    if name in VARIANTS:
        return cell_problem(name, T, B, H, lengths=lengths)
    definition = OTHERS[name].definition
    return definition, random_arrays(definition, D, T, B, H, lengths=lengths)


def in_float64(tree):
    return {
        name: in_float64(a) if isinstance(a, dict) else mx.array(a, mx.float64) if a.dtype == np.float64 else mx.array(a)
        for name, a in tree.items()
    }


def by_ops(spec, arrays, dy):
    """Outputs and gradients of the ops form in float64, by path."""
    given = dict(tree_flatten(in_float64(arrays)))
    paths = [path for path in given if path != "lengths"]

    def run(*leaves):
        tree = tree_unflatten(list((given | dict(zip(paths, leaves, strict=True))).items()))
        return cell_ops(spec, {"weights": {}, "parameters": {}} | tree)

    with mx.stream(mx.cpu):
        outputs, gradients = mx.vjp(run, [given[path] for path in paths], [mx.array(a, mx.float64) for a in dy])
        mx.eval(outputs, gradients)
    return outputs, dict(zip(paths, gradients, strict=True))


def compare(kind, spec, arrays):
    """A definition's kernels against the ops form in float64."""
    D, T, B, _ = arrays["x"].shape
    H, rng = arrays["initial"][spec.states[0]].shape[2], np.random.default_rng(1)
    dy = [rng.standard_normal((D, T, B, H)) for _ in spec.states]
    expected, gradients = by_ops(spec, arrays, dy)
    given = to_mlx(arrays)
    assert fused.refusal(kind, spec, given) is None
    got = fused.cell_fused_forward(kind, spec, given)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, FORWARD["float32"])
    pulled = fused.cell_fused_backward(kind, spec, given, got, [mx.array(a.astype(np.float32)) for a in dy])
    pulled = dict(tree_flatten(pulled))
    assert sorted(pulled) == sorted(gradients)
    for path, gradient in gradients.items():
        assert_close(pulled[path], gradient, GRADIENT["float32"], path)


def cases():
    """Every variant in every layout, at one size after the other."""
    number = 0
    for name in [*VARIANTS, *OTHERS]:
        for tile in TILES:
            size = list(SIZES)[number % len(SIZES)]
            number += 1
            yield pytest.param(name, TILES[tile], SIZES[size], id=f"{name}-{tile}-{size}")
        number += 1


@on_host
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(("name", "tile", "size"), list(cases()))
def test_kernels_agree_with_the_ops_form_in_float64(name, tile, size, lengths):
    with kernels_on("host", tile, metal_kernel) as kind:
        compare(kind, *problem(name, *size, lengths=lengths))


@on_host
@pytest.mark.parametrize("tile", list(TILES)[:3])
@pytest.mark.parametrize("name", OTHERS)
def test_text_keeps_the_rules_of_the_subset(name, tile):
    """And has no race, reads nothing that nobody wrote, and gives the same bits in any order of its threads."""
    with kernels_on("host", TILES[tile], verified) as kind:
        compare(kind, *problem(name, 3, 3, 13, lengths=True, D=2))


@on_host
def test_backward_in_blocks_of_steps_is_the_whole(monkeypatch):
    with kernels_on("host", TILES["resident"], metal_kernel) as kind:
        for block in (3, 4, 7):
            monkeypatch.setattr(fused, "block_steps", lambda definition, H, sequences, block=block: block)
            compare(kind, *problem("lem", 7, 5, 6, lengths=True))


@on_host
@pytest.mark.parametrize("name", [*OWN, "lem", "ind_rnn"])
def test_what_lies_past_a_sequence_has_no_effect(name):
    """Not even infinite inputs there."""
    spec, arrays = problem(name, 5, 3, 7)
    arrays = to_mlx(arrays) | {"lengths": mx.array([5, 2, 1])}
    past = (mx.arange(5)[:, None] >= arrays["lengths"])[None]
    changed = arrays | {"x": mx.where(past[..., None], 1e30, arrays["x"])}
    results = []
    with kernels_on("host", TILES["resident"], metal_kernel) as kind:
        for given in (arrays, changed):
            outputs = fused.cell_fused_forward(kind, spec, given)
            gradients = dict(tree_flatten(fused.cell_fused_backward(kind, spec, given, outputs, [mx.ones_like(a) for a in outputs])))
            results.append({path: np.array(a) for path, a in (gradients | dict(enumerate(outputs))).items() if path != "w_x"})
    for path, a in results[0].items():
        np.testing.assert_array_equal(results[1][path], a, err_msg=str(path))


# The text


def test_activations_of_gates_are_made_by_the_lanes_that_own_them():
    made = Forward(plan_of(LSTM_CELL.definition))
    assert [(place, owned.x) for place, owned in made.owned.items()] == [((0, k), k) for k in range(4)]
    assert made.xs == []
    made = Forward(plan_of(GRU_CELL.definition))
    assert [(place, owned.x) for place, owned in made.owned.items()] == [((0, 0), 0), ((0, 1), 1)]
    assert made.xs == [2]
    assert Forward(plan_of(Wide().definition)).xs == [0]  # of a sum of three values


def test_what_hangs_on_parameters_alone_is_computed_once():
    text = forward_kernel(VARIANTS["ct_rnn"][0].definition).text
    before, step = text.split("for (int t = 0")
    assert "exp(p0[block])" in before
    assert "p0[block]" not in step


@pytest.mark.parametrize("name", [*VARIANTS, *OTHERS])
def test_a_kernels_name_is_one_for_its_text_alone(name):
    definition = problem(name, 1, 1, 4)[0]
    for made in (forward_kernel, backward_kernel):
        kernel = made(definition)
        assert kernel.name in kernel.text
        assert kernel is made(definition)
        assert len(kernel.inputs) + len(kernel.outputs) <= fused.MOST_BUFFERS
        assert max(map(len, kernel.text.splitlines())) <= 160
        assert not lint("", read_source(*kernel.files) + kernel.text)
    kernels = [forward_kernel(problem(other, 1, 1, 4)[0]) for other in [*VARIANTS, *OTHERS]]
    assert all((kernel.name == other.name) == (kernel.text == other.text) for kernel in kernels for other in kernels)


# What is not served


def refused(cell, dtype=np.float32, T=3, B=2, H=4):
    definition = cell.definition
    arrays = to_mlx(random_arrays(definition, 1, T, B, H, lengths=False, dtype=dtype))
    return fused.refusal("metal", definition, arrays)


def test_what_no_kernel_serves_is_refused_by_name():
    class Huge(Cell):
        def step(self, x, h):
            return 1e60 * x * 1e-60 + h

    class Many(Cell):
        h_products: ClassVar = {"V": 1}

        def step(self, x, h, V):
            for _ in range(24):
                h = h + V(step.tanh(x + h))
            return h

    assert refused(Huge()) == "the step has the number 1e+60, which float32 does not have"
    assert refused(Many()) == "1 states and 24 products in a step are more than a kernel has arguments for"
    assert refused(Alone()) is None
    definition, arrays = Alone().definition, to_mlx(random_arrays(Alone().definition, 1, 1, 1, 4, lengths=False))
    half = arrays | {"initial": {"h": arrays["initial"]["h"].astype(mx.float16)}}
    assert fused.refusal("metal", definition, half) == "kernels compute in float32"
    large = arrays | {"x": mx.broadcast_to(arrays["x"], (1, 2**20, 2**10, 3))}
    assert "too large for int indices" in fused.refusal("metal", definition, large)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
@pytest.mark.parametrize("name", ["lem", "min_gru", "gru_d", "functions", "wide"])
def test_every_choice_of_the_table_is_among_the_layouts_that_are_checked(family, name):
    definition = problem(name, 1, 1, 4)[0]
    layouts = fused.layouts(family_of(family), definition)
    for H in (1, 3, 64, 200, 300, 700, 3000):
        for sequences in (1, 17, 300):
            for layout in (ForwardLayout, BackwardLayout):
                tile = fused.choose_tile(family_of(family), layout, definition, H, sequences)
                assert tile in layouts
                assert 16 * layout(plan_of(definition), H, tile).scratch <= 32768


# Functions


def host_values(expression, a):
    source = f"uint i = thread_position_in_grid.x; y[i] = {expression};"
    kernel = metal_kernel(
        "one", ["x"], ["y"], source.replace("(a)", "(x[i])"), header=read_source("pointwise.metal", "cell_pointwise.metal")
    )
    call = {"inputs": [mx.array(a)], "grid": (len(a), 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [(len(a),)]}
    return np.array(kernel(**call, output_dtypes=[mx.float32])[0]).astype(np.float64)


FUNCTIONS = {
    "exp_minus_one(a)": np.expm1,
    "log_one_plus(a)": np.log1p,
    "soft_plus(a)": lambda a: np.logaddexp(0, a),
    "erf_of(a)": lambda a: step.erf(a),
}


@on_host
@pytest.mark.parametrize("expression", FUNCTIONS)
def test_functions_keep_the_digits_of_small_numbers(expression):
    sizes = np.concatenate([np.geomspace(1e-30, 1, 3001), np.linspace(0.3, 0.7, 2001), np.linspace(1, 20, 2001)])
    a = np.concatenate([sizes, -sizes]).astype(np.float32)
    a = a[a > -0.999] if expression.startswith("log") else a
    expected = FUNCTIONS[expression](a.astype(np.float64))
    error = np.abs(host_values(expression, a) / expected - 1)
    assert error.max() <= POINTWISE, f"{error.max():.1e} at {a[error.argmax()]:.3g}"

"""Kernels whose text is made from a cell's step: against the ops form in float64, in every layout, at sizes that the sweeps do not have."""

import re
from contextlib import ExitStack
from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from ember_mlx import step
from ember_mlx.kernels.first_use import check, works
from ember_mlx.kernels.loader import read_source
from ember_mlx.kernels.tiles import FAMILIES, Tile, checked_variant, family_of
from ember_mlx.scans.cell import fused
from ember_mlx.scans.cell.backward_text import backward_kernel
from ember_mlx.scans.cell.forward_text import Forward, forward_kernel
from ember_mlx.scans.cell.gated import GRU_CELL, LSTM_CELL, PROJECTED_LSTM, RELU_RNN, TANH_RNN
from ember_mlx.scans.cell.kernel_layout import Backward as BackwardLayout
from ember_mlx.scans.cell.kernel_layout import Forward as ForwardLayout
from ember_mlx.scans.cell.kernel_plan import plan_of
from ember_mlx.scans.cell.ops import cell_ops
from ember_mlx.scans.cell.pointwise_text import next_kernel, turn_kernel
from ember_mlx.scans.cell.random_cases import VARIANTS as ALL_VARIANTS
from ember_mlx.scans.cell.random_cases import cell_problem, random_arrays
from ember_mlx.scans.cell.reference import cell_backward, cell_forward
from ember_mlx.scans.registry import RECURRENCES
from ember_mlx.step.cell import Cell, Parameter

from .comparisons import assert_close, to_mlx
from .metal_host import metal_kernel
from .metal_host.lint import lint
from .test_kernels import kernels_on, on_host, verified
from .test_launches import SMALLEST_MS, assert_same_bits, both_ways, planned_both_ways
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


class Direct(Cell):
    """States that a product gives and that another was before; a product of a product."""

    states = ("a", "b", "c")
    h_products: ClassVar = {"V": 1, "U": 1}

    def step(self, x, a, b, c, V, U):
        v = V(a)
        w = U(v)
        return w, a, step.tanh(x + w * v) - 0.2 * b * c


class Alone(Cell):
    """A scan without a coefficient and without a product."""

    def step(self, x, h):
        return x - 0.5 * h


class Sized(Cell):
    """States of two sizes, and functions of both; products from each size to the other, and to itself."""

    states = ("p", "h", "q")
    x_products = 2
    h_products: ClassVar = {"V": 4, "U": 2, "S": 1}
    parameters: ClassVar = {"k": (0.1, 0.4)}
    sizes: ClassVar = {"p": "P", "q": "P", "U": "P", "S": "P"}

    def step(self, x, p, h, q, V, U, S, dt, k):
        a, b, c, d = V(p)
        m = step.sigmoid(x[0] + a) * h * step.exp(-dt) + step.tanh(x[1] + b) * step.sigmoid(c + k) - 0.1 * d
        u, v = U(m)
        g = step.where(q > 0.1, step.tanh(u + S(p * p)), p * q)
        a, b, c, d = V(g)
        return g - 0.5 * q, step.tanh(m + a * b - c * d), 0.7 * q + step.sigmoid(v) * p


OWN = {"functions": Functions(), "wide": Wide(), "flat": Flat(), "direct": Direct(), "alone": Alone(), "sized": Sized()}
PLAIN = {"tanh": TANH_RNN, "relu": RELU_RNN, "lstm": LSTM_CELL, "projected": PROJECTED_LSTM, "gru": GRU_CELL}
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
    rng = np.random.default_rng(1)
    dy = [rng.standard_normal((D, T, B, arrays["initial"][name].shape[2])) for name in spec.states]
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
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("H", "P"), [(1, 1), (31, 16), (13, 40), (100, 51)])
def test_a_projected_lstm_agrees_with_the_numpy_form_in_float64(tile, D, H, P, lengths):
    """Fewer features than units, and more of them; neither fills a tile."""
    spec = PROJECTED_LSTM.definition
    arrays = random_arrays(spec, D, 4, 5, H, lengths=lengths, P=P)
    expected = cell_forward(spec, arrays)
    dy = [np.random.default_rng(1).standard_normal(a.shape) for a in expected]
    gradients = dict(tree_flatten(cell_backward(spec, arrays, expected, dy)))
    with kernels_on("host", TILES[tile], metal_kernel) as kind:
        given = to_mlx(arrays)
        got = fused.cell_fused_forward(kind, spec, given)
        pulled = fused.cell_fused_backward(kind, spec, given, got, [mx.array(a.astype(np.float32)) for a in dy])
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, FORWARD["float32"])
    pulled = dict(tree_flatten(pulled))
    assert {path: a.shape for path, a in pulled.items()} == {path: a.shape for path, a in gradients.items()}
    for path, gradient in gradients.items():
        assert_close(pulled[path], gradient, GRADIENT["float32"], path)


@on_host
@pytest.mark.parametrize("tile", ["streamed", "resident", "by-step"])
@pytest.mark.parametrize("name", ["projected", "sized", "functions"])
def test_launches_in_pieces_give_the_same_bits(name, tile):
    """Of one step of one group of sequences, and of some steps of all."""
    spec, arrays = problem(name, 5, 5, 13, lengths=True, D=2)
    recurrence, given = RECURRENCES["recurrent"], to_mlx(arrays)
    with kernels_on("host", TILES[tile], metal_kernel):
        expected = both_ways(recurrence, spec, given, 0)
        longest = max(one.ms for part in planned_both_ways(recurrence, spec, given, 0) for one in part)
        for ms in (longest / 2, SMALLEST_MS):
            assert_same_bits(both_ways(recurrence, spec, given, ms), expected)


@on_host
@pytest.mark.parametrize("tile", ["resident", "by-step"])
@pytest.mark.parametrize("name", ["lem", "projected", "sized"])
def test_backward_in_blocks_of_steps_is_the_whole(monkeypatch, name, tile):
    with kernels_on("host", TILES[tile], metal_kernel) as kind:
        for block in (3, 4, 7):
            monkeypatch.setattr(fused, "block_steps", lambda definition, H, sequences, block=block: block)
            compare(kind, *problem(name, 7, 5, 6, lengths=True))


# Kernels and products of a step, forward and backward
BY_STEP = {"tanh": (2, 2), "lstm": (2, 2), "projected": (3, 4), "gru": (2, 2), "lem": (4, 4), "direct": (3, 4), "sized": (8, 8)}


@on_host
@pytest.mark.parametrize("name", BY_STEP)
def test_launches_of_a_step_by_itself(name):
    """As many as the choice of a layout expects; backward each kernel between two steps is launched once more."""
    (spec, arrays), T, names = problem(name, 5, 2, 4), 5, []

    def counting(**text):
        kernel = metal_kernel(**text)
        return lambda **call: (names.append(text["name"].rsplit("_")[-1]), kernel(**call))[1]

    assert (fused._launches(spec, False), fused._launches(spec, True)) == BY_STEP[name]
    with kernels_on("host", TILES["by-step"], counting) as kind:
        outputs = fused.cell_fused_forward(kind, spec, to_mlx(arrays))
        assert len(names) == T * (fused._launches(spec, False) - len(spec.calls))
        names.clear()
        fused.cell_fused_backward(kind, spec, to_mlx(arrays), outputs, outputs)
    between = len({size for size in plan_of(spec).sizes if turn_kernel(spec, size)})
    made = len([name for name in names if name in ("back", "previous")])
    assert made == T * (fused._launches(spec, True) - len(spec.pull.results)) + between


@on_host
def test_the_check_before_the_first_use_knows_both_sizes():
    """A large layer is checked with fewer units and features."""
    spec, arrays = problem("projected", 1, 2, 9)
    large = arrays | random_arrays(spec, 1, 1, 2, 600, lengths=False, P=500)
    with kernels_on("host", Tile(64, 2, 8, False), metal_kernel) as kind, ExitStack() as stack:
        smalls = [fused.small_problem(kind, spec, to_mlx(given)) for given in (arrays, large)]
        for small in smalls:
            stack.callback(checked_variant.reset, checked_variant.set(small.variant))
            assert works(check(kind, RECURRENCES["recurrent"], small.spec, small.arrays))
    shapes = [small.arrays["weights"]["Wr"].shape for small in smalls]
    assert shapes[0] == (1, 5, 9)
    assert shapes[1][2] < 600
    assert shapes[1][1] / shapes[1][2] == pytest.approx(500 / 600, rel=0.01)


@on_host
@pytest.mark.parametrize("name", [*OWN, "lem", "indrnn", "projected"])
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
    text = forward_kernel(VARIANTS["ctrnn"][0].definition).text
    before, step = text.split("for (int t = 0")
    assert "exp(p0[block])" in before
    assert "p0[block]" not in step


def test_lines_have_the_numbers_of_the_equations_in_the_authors_comments():
    class Numbered(Cell):
        h_products: ClassVar = {"V": 2}

        def step(self, x, h, V):
            q, v = V(h)  # of a product there is no line: (7)
            a = step.tanh(x + q)  # (2)
            b = step.exp(-v) / 2  # (10), (1)
            return a * b + step.sin(h)

    text = next_kernel(Numbered().definition, 1).text
    assert [line.split("] = ")[1] for line in text.splitlines() if "after0[" in line] == [
        "(fast_tanh(x0 + q0_0) * (exp(-q0_1) * 0.5f)) + sin(s0);  // (1), (2), (10)"
    ]
    tags = [line.split("  // ")[1] for line in forward_kernel(Numbered().definition).text.splitlines() if "  // (" in line and ";" in line]
    assert [tag for tag in tags if not tag.startswith("(D")] == ["(2)", "(1), (10)"]
    forward = forward_kernel(LSTM_CELL.definition).text
    assert "value = tanh_or_sigmoid(tanh0_0, x0_0[i] + value);  // (1), (2)\n" in forward
    assert "@" not in forward + backward_kernel(LSTM_CELL.definition).text


def test_a_kernel_is_named_by_its_cell():
    class ÄhnlichesGatter(Cell):
        def step(self, x, h):
            return x - 0.25 * h

    assert re.fullmatch(r"flat_[0-9a-f]{12}_forward", forward_kernel(OWN["flat"].definition).name)
    assert re.fullmatch(r"flat_[0-9a-f]{12}_next", next_kernel(OWN["flat"].definition, 1).name)
    assert re.fullmatch(r"hnlichesgatter_[0-9a-f]{12}_backward", backward_kernel(ÄhnlichesGatter().definition).name)


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

    class Third(Cell):
        states = ("h", "p", "q")
        h_products: ClassVar = {"V": 1, "W": 1}
        sizes: ClassVar = {"p": "P", "V": "P", "q": "Q", "W": "Q"}

        def step(self, x, h, p, q, V, W):
            return x - h, V(h) - p, W(h) - q

    class Timed(Cell):
        states = ("h", "p")
        h_products: ClassVar = {"V": 1}
        sizes: ClassVar = {"p": "P", "V": "P"}

        def step(self, x, h, p, V, dt):
            return x - h, V(h) - dt * p

    assert refused(Third()) == "kernels take values of H units and of one size more, not of P, Q"
    assert refused(Timed()) == (
        "kernels take elapsed times, shared parameters and functions of numbers with values of H units alone, not of P"
    )
    assert refused(Alone()) is None
    definition, arrays = Alone().definition, to_mlx(random_arrays(Alone().definition, 1, 1, 1, 4, lengths=False))
    half = arrays | {"initial": {"h": arrays["initial"]["h"].astype(mx.float16)}}
    assert fused.refusal("metal", definition, half) == "kernels compute in float32"
    large = arrays | {"x": mx.broadcast_to(arrays["x"], (1, 2**20, 2**10, 3))}
    assert "too large for int indices" in fused.refusal("metal", definition, large)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
@pytest.mark.parametrize("name", ["lem", "mingru", "grud", "functions", "wide", "projected", "sized"])
def test_every_choice_of_the_table_is_among_the_layouts_that_are_checked(family, name):
    definition = problem(name, 1, 1, 4)[0]
    layouts = fused.layouts(family_of(family), definition)
    for H in (1, 3, 64, 200, 300, 700, 3000):
        for sequences in (1, 17, 300):
            for layout in (ForwardLayout, BackwardLayout):
                P = H // 2 + 1 if name in ("projected", "sized") else 0
                tile = fused.choose_tile(family_of(family), layout, definition, H, sequences, P)
                assert tile in layouts
                assert 16 * layout(plan_of(definition), H, tile, P).scratch <= 32768


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

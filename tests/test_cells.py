"""Cells: those of ember_mlx.cells against loops from their papers' equations, cells that cannot be, and what check_cell finds."""

import math
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import ember_mlx
from ember_mlx import GRU, LSTM, Cell, Parameter, Recurrent, cells, use_backend
from ember_mlx.step import sigmoid, tanh, where
from ember_mlx.testing import check_cell

from .metal_host import metal_kernel
from .test_kernels import kernels_on, on_host

I, H, T, B = 3, 5, 7, 4
ALL = {name: getattr(cells, name)() for name in cells.__all__} | {
    "CTRNN of one step": cells.CTRNN(unfolds=1),
    "CoRNN of large steps": cells.CoRNN(step_size=0.4, gamma=1.0, epsilon=0.5),
}
every_cell = pytest.mark.parametrize("name", ALL)


@every_cell
def test_a_cell_is_its_own_step_in_every_form(name):
    report = check_cell(ALL[name])
    assert report.backends[:2] == ["numpy", "ops"]
    assert report.errors["numpy"][0] < 1e-12
    assert report.points > 50
    assert type(ALL[name]).__name__ in str(report)


@on_host
@pytest.mark.parametrize("name", ["LEM", "GRUD", "SRU", "IndRNN"])
def test_and_as_a_kernel(name):
    with kernels_on("host", maker=metal_kernel):
        report = check_cell(ALL[name], input_size=2, hidden_size=3, backends=["metal"])
    assert report.backends == ["metal"]


def test_sizes_and_seeds_are_the_callers():
    assert check_cell(cells.MinGRU, input_size=1, hidden_size=1, seed=3, backends=["numpy"]).points < check_cell(cells.MinGRU).points
    with pytest.raises(ValueError, match=r"^\[check_cell\] hidden_size must be at least 1, got 0\.$"):
        check_cell(cells.MinGRU, hidden_size=0)
    with pytest.raises(TypeError, match=r"^\[check_cell\] cell must be a Cell, or a class of such, got int\.$"):
        check_cell(3)


def sigma(a):
    return 1 / (1 + np.exp(-a))


# one step from the products with x, the states, dt (B, 1) and the parameters
def min_gru(x, s, dt, p):
    z = sigma(x[0])
    return [(1 - z) * s[0] + z * x[1]]


def min_lstm(x, s, dt, p):
    f, i = sigma(x[0]), sigma(x[1])
    return [f / (f + i) * s[0] + i / (f + i) * x[2]]


def ind_rnn(x, s, dt, p):
    return [np.clip(x[0] + p["u"] * s[0], 0, None)]


def sru(x, s, dt, p):
    f, r = sigma(x[0] + p["v_f"] * s[1]), sigma(x[1] + p["v_r"] * s[1])
    c = f * s[1] + (1 - f) * x[2]
    return [r * c + (1 - r) * x[3], c]


def co_rnn(x, s, dt, p, step=0.05, gamma=2.0, epsilon=4.0):
    y, z = s
    z = z + step * np.tanh(y @ p["W"].T + z @ p["W_z"].T + x[0]) - step * gamma * y - step * epsilon * z
    return [y + step * z, z]


def lem(x, s, dt, p):
    y, z = s
    W_1, W_2, W_z = np.split(p["W_y"], 3)
    dt_1, dt_2 = dt * sigma(y @ W_1.T + x[0]), dt * sigma(y @ W_2.T + x[1])
    z = (1 - dt_1) * z + dt_1 * np.tanh(y @ W_z.T + x[2])
    return [(1 - dt_2) * y + dt_2 * np.tanh(z @ p["W_z"].T + x[3]), z]


def ct_rnn(x, s, dt, p, unfolds=4):
    h, tau = s[0], np.exp(-p["rate"])
    for _ in range(unfolds):
        kept = np.exp(-dt / unfolds / tau)
        h = kept * h + (1 - kept) * np.tanh(x[0] + h @ p["R"].T)
    return [h]


def ode_lstm(x, s, dt, p):
    h = s[0]
    for _ in range(2):
        h = h + dt / 2 * np.tanh(h @ p["F"].T)
    r, z, n = np.split(h @ p["R"].T, 3, axis=1)
    z, n = sigma(x[1] + z), np.tanh(x[2] + sigma(x[0] + r) * n)
    return [(1 - z) * n + z * h]


def gru_d(x, s, dt, p):
    h = np.exp(-np.clip(p["w"] * dt + p["b"], 0, None)) * s[0]
    r, z = np.split(h @ p["R"].T, 2, axis=1)
    r, z = sigma(x[0] + r), sigma(x[1] + z)
    return [(1 - z) * h + z * np.tanh(x[2] + (r * h) @ p["R_n"].T)]


def ugrnn(x, s, dt, p):
    R_c, R_g = np.split(p["R"], 2)
    c, g = np.tanh(x[0] + s[0] @ R_c.T), sigma(x[1] + s[0] @ R_g.T)
    return [g * s[0] + (1 - g) * c]


LOOPS = {
    "MinGRU": min_gru,
    "MinLSTM": min_lstm,
    "IndRNN": ind_rnn,
    "SRU": sru,
    "CoRNN": co_rnn,
    "LEM": lem,
    "CTRNN": ct_rnn,
    "ODELSTM": ode_lstm,
    "GRUD": gru_d,
    "UGRNN": ugrnn,
    "CTRNN of one step": lambda *given: ct_rnn(*given, unfolds=1),
    "CoRNN of large steps": lambda *given: co_rnn(*given, step=0.4, gamma=1.0, epsilon=0.5),
}


def test_every_cell_has_a_loop():
    assert set(ALL) <= set(LOOPS), "write its step as a function (x, states, dt, parameters), and add it to LOOPS"


def in_double(layer):
    layer.update(tree_map(lambda a: a.astype(mx.float64), layer.parameters()))
    return layer


@every_cell
@pytest.mark.parametrize("backend", ["numpy", "ops"])
def test_a_cell_of_the_literature_is_what_its_paper_says(name, backend):
    mx.random.seed(1)
    layer = in_double(Recurrent(ALL[name], I, H))
    p = {key: np.array(a) for key, a in layer.layers[0]["forward"].items() if isinstance(a, mx.array)}
    rng = np.random.default_rng(0)
    x, dt, state = rng.normal(size=(B, T, I)), rng.uniform(0, 2, (B, T)), [rng.normal(size=(B, H)) for _ in layer.state_names]
    given = {"time_deltas": mx.array(dt, mx.float64)} if layer.timed else {}
    with use_backend(backend):
        y, final = layer(mx.array(x, mx.float64), [mx.array(a[None], mx.float64) for a in state], **given, return_state=True)
    rows = []
    for t in range(T):
        products = np.split(x[:, t] @ p["Wx"].T + p["bias"], ALL[name].x_products, axis=1)
        state = LOOPS[name](products, state, dt[:, t : t + 1], p)
        rows.append(state[0])
    tolerance = 1e-12 if backend == "numpy" else 1e-6  # MLX's own exp has float32's digits
    np.testing.assert_allclose(np.array(y), np.stack(rows, axis=1), rtol=0, atol=tolerance)
    for a, b in zip(final, state, strict=True):
        np.testing.assert_allclose(np.array(a)[0], b, rtol=0, atol=tolerance)


class LSTMCell(Cell):
    states = ("h", "c")
    x_products = 4
    h_products = {"Wh": 4}

    def step(self, x, h, c, Wh):
        i, f, g, o = Wh(h)
        c = sigmoid(x[1] + f) * c + sigmoid(x[0] + i) * tanh(x[2] + g)
        return sigmoid(x[3] + o) * tanh(c), c


class GRUCell(Cell):
    x_products = 3
    h_products = {"Wh": 3}
    parameters = {"bhn": 0.0}

    def step(self, x, h, Wh, bhn):
        r, z, n = Wh(h)
        n = tanh(x[2] + sigmoid(x[0] + r) * (n + bhn))
        return n + sigmoid(x[1] + z) * (h - n)


@pytest.mark.parametrize(("cell", "cls"), [(LSTMCell, LSTM), (GRUCell, GRU)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "both-ways"])
def test_a_cell_of_the_packages_own_layers_gives_the_same(cell, cls, options):
    mx.random.seed(2)
    theirs, ours = in_double(cls(I, H, **options)), in_double(Recurrent(cell, I, H, **options))
    ours.update(theirs.parameters())
    x, lengths = mx.random.normal((B, T, I)).astype(mx.float64), [7, 2, 1, 5]

    def loss(layer, parameters, x):
        layer.update(parameters)
        y, state = layer(x, lengths=lengths, return_state=True)
        return (y * y).sum() + sum(mx.sin(a).sum() for a in state), (y, *state)

    with use_backend("numpy"):
        (_, outputs), gradients = mx.value_and_grad(lambda *a: loss(theirs, *a), argnums=(0, 1))(theirs.parameters(), x)
        (_, same), same_gradients = mx.value_and_grad(lambda *a: loss(ours, *a), argnums=(0, 1))(theirs.parameters(), x)
    for a, b in zip(outputs, same, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=0, atol=1e-12)
    for (path, a), (other, b) in zip(*(mx_flat(g) for g in (gradients, same_gradients)), strict=True):
        assert path == other
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=0, atol=1e-11, err_msg=path)


def mx_flat(tree):
    return sorted(tree_flatten(list(tree)))


def cell_of(step, **attributes):
    """A cell of the name Mine."""
    return type("Mine", (Cell,), {"step": step, **attributes})


kept = []


def branch(self, x, h):
    if x > 0:
        return x
    return h + x


def both(self, x, h):
    return where(x > 0 and h > 0, x, h)


def loop(self, x, h):
    while h < 1:
        h = h + x
    return h


def unknown(self, x, h):
    return h + np.tanh(x)


def unknown_of_mlx(self, x, h):
    return h + mx.tanh(x)


def unknown_of_python(self, x, h):
    return h + math.tanh(x)


def number(self, x, h):
    return x * float(h)


def matrix(self, x, h):
    return x @ h


def method(self, x, h):
    return h + x.sum()


def indexed(self, x, h):
    return h + x[0]


def of_a_tuple(self, x, h):
    return h + x


def comparison(self, x, h):
    return (x > 0) * h


def no_condition(self, x, h):
    return where(x, x, h)


def equal(self, x, h):
    return where(x == h, x, h)


def root(self, x, h):
    return h + x**0.5


def power(self, x, h):
    return h + x**h


def nan(self, x, h):
    return x + h * float("nan")


def of_zero(self, x, h):
    return x + h / 0


def array(self, x, h):
    return x + h * np.ones(5)


def product_of_dt(self, x, h, dt, R):
    return x + h + R(dt)


def recursive(self, x, h):
    return self.step(x, h + x)


def keeping(self, x, h):
    kept.append(h)
    return x + kept[0]


def helped(self, x, h):
    return gate(x, h)


def gate(x, h):
    return x if h > 0 else h


TAKES = "a value takes only + - * / and ** by a small integer, comparisons, and the functions of ember_mlx.step"
BRANCH = "Python cannot branch on a value, whose numbers differ from unit to unit; use where(condition, a, b)"
NUMBER = "a value is no Python number; use the functions of ember_mlx.step on it"
PARTS = "a value has no parts; x and products have, where the cell has more than one of them"
OPERAND = "an operand must be a value of the step or a number, got "
R = {"h_products": {"R": 1}}
# of a step that goes wrong: attributes, the kind of error, the text of the line, the complaint
LINES = {
    branch: ({}, ValueError, "if x > 0:", BRANCH),
    both: ({}, ValueError, "return where(x > 0 and h > 0, x, h)", BRANCH),
    loop: ({}, ValueError, "while h < 1:", BRANCH),
    helped: ({}, ValueError, "return x if h > 0 else h", BRANCH),
    unknown: ({}, TypeError, "return h + np.tanh(x)", TAKES),
    unknown_of_mlx: ({}, ValueError, "return h + mx.tanh(x)", TAKES),
    unknown_of_python: ({}, ValueError, "return h + math.tanh(x)", NUMBER),
    number: ({}, ValueError, "return x * float(h)", NUMBER),
    matrix: ({}, TypeError, "return x @ h", TAKES),
    method: ({}, ValueError, "return h + x.sum()", "a value has no 'sum'; use the functions of ember_mlx.step on it"),
    indexed: ({}, ValueError, "return h + x[0]", PARTS),
    of_a_tuple: ({"x_products": 2}, ValueError, "return h + x", OPERAND + "tuple"),
    comparison: (
        {},
        ValueError,
        "return (x > 0) * h",
        "multiply takes numbers, got a comparison; where(condition, a, b) makes numbers of one",
    ),
    no_condition: ({}, ValueError, "return where(x, x, h)", "where takes a comparison first, as where(a > 0, a, b)"),
    equal: (
        {},
        ValueError,
        "return where(x == h, x, h)",
        "values cannot be compared by == or !=; use <, <=, > or >= inside where()",
    ),
    root: ({}, ValueError, "return h + x**0.5", "** takes an exponent of 1 to 4, got 0.5"),
    power: ({}, ValueError, "return h + x**h", "** takes an exponent of 1 to 4, got h"),
    nan: ({}, ValueError, 'return x + h * float("nan")', "a constant must be finite, got nan"),
    of_zero: ({}, ValueError, "return x + h / 0", "division by the number 0"),
    array: ({}, ValueError, "return x + h * np.ones(5)", OPERAND + "numpy.ndarray"),
    product_of_dt: (R, ValueError, "return x + h + R(dt)", "R takes a value of shape (B, H), got (B, 1)"),
    recursive: ({}, ValueError, "return self.step(x, h + x)", "RecursionError: maximum recursion depth exceeded"),
    keeping: ({}, ValueError, "return x + kept[0]", "a value belongs to another step; a step may keep nothing from one call to the next"),
}


@pytest.mark.parametrize("step", LINES, ids=lambda step: step.__name__)
def test_a_step_that_cannot_be_names_its_line(step):
    attributes, kind, line, words = LINES[step]
    if step is keeping:
        kept.clear()
        assert cell_of(step)().definition
    with pytest.raises(kind) as caught:
        Recurrent(cell_of(step, **attributes), I, H)
    number = re.match(r"\[Mine\] step, line (\d+), ", str(caught.value))
    assert number, caught.value
    source = gate if step is helped else step
    assert 0 < int(number[1]) - source.__code__.co_firstlineno < 5
    start = f"[Mine] step, line {number[1]}, `{line}`: {words}"
    assert str(caught.value).startswith(start) if step is recursive else str(caught.value) == start + "."


DEPEND = "got next states that do not depend on it."
# a step, attributes, the error's kind and text after the owner
WHOLE = {
    "shape": (
        lambda self, x, h, g: 0 * x * h + g,
        {"parameters": {"g": 1.0}},
        "state 'h' must be returned as a value of shape (B, H), got (1, H): g.",
    ),
    "dt-alone": (lambda self, x, h, dt: dt, {}, "state 'h' must be returned as a value of shape (B, H), got (B, 1): dt."),
    "condition": (lambda self, x, h: x > h, {}, "state 'h' must be returned as a value of shape (B, H), got a comparison."),
    "nothing": (lambda self, x, h: None, {}, "step must return values of the step, got NoneType."),
    "text": (lambda self, x, h: "h", {}, "step must return values of the step, got str."),
    "count": (lambda self, x, h, c: x + h + c, {"states": ("h", "c")}, "step must return 2 values: h, c, got 1."),
    "unwritten": (
        lambda self, x, h, c: (x + h + c, c),
        {"states": ("h", "c")},
        "state 'c' must be written by the step, got the state before it, unchanged.",
    ),
    "parameter": (lambda self, x, h, g: x + h, {"parameters": {"g": 1.0}}, f"step must use the parameter 'g', {DEPEND}"),
    "parameter-not-named": (lambda self, x, h: x + h, {"parameters": {"g": 1.0}}, "step must use the parameter 'g', got arguments x, h."),
    "product-not-named": (lambda self, x, h: x + h, R, "step must use the product 'R', got arguments x, h."),
    "product-not-called": (lambda self, x, h, R: x + h, R, "step must use the product 'R', got a step that does not call it."),
    "product-not-used": (lambda self, x, h, R: (R(h), x + R(x))[1], R, f"step must use the result of R(h), {DEPEND}"),
    "block-not-used": (lambda self, x, h, R: x + R(h)[0], {"h_products": {"R": 2}}, f"step must use the result of R(h)[1], {DEPEND}"),
    "x": (lambda self, x, h: h / 2, {}, f"step must use x, {DEPEND}"),
    "x-not-named": (lambda self, h: h / 2, {}, "step must use x, got arguments h."),
    "one-x": (lambda self, x, h: h + x[0], {"x_products": 2}, f"step must use x[1], {DEPEND}"),
    "dt": (lambda self, x, h, dt: x + h, {}, f"step must use dt, where it is an argument, {DEPEND}"),
    "args": (lambda self, x, *states: x + states[0], {}, "step must name each of its arguments, got *states."),
    "kwargs": (lambda self, x, h, **more: x + h, {}, "step must name each of its arguments, got **more."),
    "wrong-name": (lambda self, x, h, W: x + h, R, "step must have no other arguments than x, h, R, dt, got 'W'."),
    "state-x": (
        lambda self, x: x,
        {"states": ("x",)},
        "names of states, products and parameters must differ from each other, and from x and dt, got 'x'.",
    ),
    "no-name": (
        lambda self, x, h: x,
        {"h_products": {"my weight": 1}},
        "names of states, products and parameters must be Python names, got 'my weight'.",
    ),
    "reserved": (
        lambda self, x, h, bias: x,
        {"parameters": {"bias": 1.0}},
        "names of products and parameters must not begin with an underscore, nor be Wx or bias, as the layer's own, got 'bias'.",
    ),
    "private": (
        lambda self, x, h, _g: x,
        {"parameters": {"_g": 1.0}},
        "names of products and parameters must not begin with an underscore, nor be Wx or bias, as the layer's own, got '_g'.",
    ),
    "states": (lambda self, x, h: x, {"states": "h"}, "states must be a tuple of names, at least one, got 'h'."),
    "no-x": (lambda self, x, h: x, {"x_products": 0}, "x_products must be at least 1, got 0."),
    "products": (lambda self, x, h, R: x, {"h_products": ["R"]}, "h_products must be a dict, got ['R']."),
    "no-blocks": (lambda self, x, h, R: x, {"h_products": {"R": 0}}, "h_products['R'] must be at least 1, got 0."),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_cell_that_cannot_be_is_told_why(case):
    step, attributes, words = WHOLE[case]
    with pytest.raises((ValueError, TypeError)) as caught:
        Recurrent(cell_of(step, **attributes), I, H)
    assert str(caught.value) == f"[Mine] {words}"


def test_a_step_is_written_at_all():
    with pytest.raises(ValueError, match=r"^\[Mine\] step must be defined, got none\.$"):
        Recurrent(type("Mine", (Cell,), {}), I, H)


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        ("one", "be a number, a pair (low, high), or a function of H, got 'one'."),
        ((1, 2, 3), "be a number, a pair (low, high), or a function of H, got (1, 2, 3)."),
        (True, "be a number, a pair (low, high), or a function of H, got True."),
        (math.nan, "be finite, a pair with low <= high, got nan."),
        ((0, math.inf), "be finite, a pair with low <= high, got (0, inf)."),
        ((1, -1), "be finite, a pair with low <= high, got (1, -1)."),
    ],
)
def test_initial_values_that_cannot_be(initial, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        Parameter(initial)
    assert str(caught.value) == f"[Parameter] initial must {words}"


@pytest.mark.parametrize(
    ("initial", "words"),
    [(lambda H: np.ones(H + 1), "have shape (5,), got (6,)"), (lambda H: [math.inf] * H, "be finite, got NaN or infinity")],
)
def test_functions_of_initial_values_are_checked(initial, words):
    cell = cell_of(lambda self, x, h, g: x + g * h, parameters={"g": initial})
    with pytest.raises(ValueError, match=re.escape(f"[Mine] the initial value of g must {words}.")):
        Recurrent(cell, I, H)


class Impure(Cell):
    """A step that is another at every call."""

    def __init__(self):
        self.calls = []

    def step(self, x, h):
        self.calls.append(1)
        return x + 0.1 * len(self.calls) * h


class Wild(Cell):
    def step(self, x, h):
        return ember_mlx.step.exp(800 + x) * h


class Rooted(Cell):
    def step(self, x, h, dt):
        return h + x * ember_mlx.step.sqrt(dt)


class Kinked(Cell):
    """Its state is at a kink where x has not moved it."""

    parameters = {"g": Parameter(lambda H: np.array([0.0, 1e-9, 1.0, -1.0, 0.5]))}

    def step(self, x, h, g):
        return where(x > 0, 0.5 * h + x, ember_mlx.step.relu(h) * g)


def test_check_cell_finds_a_step_that_is_not_always_the_same():
    with pytest.raises(AssertionError, match=r"^\[Impure\] state h: the step gives other numbers when it is called again$"):
        check_cell(Impure)


def test_check_cell_finds_what_is_not_finite():
    with pytest.raises(AssertionError, match=r"^\[Wild\] the step in float64: (inf|-inf|nan) at "):
        check_cell(Wild)
    with pytest.raises(AssertionError, match=r"^\[Rooted\] a gradient where dt is 0, numpy: (inf|-inf|nan) at "):
        check_cell(Rooted)


def test_check_cell_leaves_out_kinks():
    assert check_cell(Kinked, seed=1).points > 20


@pytest.mark.parametrize("what", ["values", "gradient"])
def test_check_cell_finds_a_wrong_form(monkeypatch, what):
    from ember_mlx import testing
    from ember_mlx.scans.dispatch import Recurrence

    recurrence: Recurrence = testing.RECURRENT
    if what == "values":
        wrong = recurrence._replace(forward=lambda *given: tuple(a + 1e-8 for a in recurrence.forward(*given)))
    else:
        wrong = recurrence._replace(backward=lambda *given: tree_map(lambda a: 1.0001 * a, recurrence.backward(*given)))
    monkeypatch.setattr(testing, "RECURRENT", wrong)
    words = "state y: the numpy form" if what == "values" else "the gradient of .*: the numpy form"
    with pytest.raises(AssertionError, match=rf"^\[LEM\] {words} gives .* at \(.*\), where the step itself gives"):
        check_cell(cells.LEM)

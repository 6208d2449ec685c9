"""Accuracy for small numbers: signals, states and times of any size, in every form, by relative error against the float64 NumPy form."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import ember_mlx
from ember_mlx import LQNet
from ember_mlx.kernels.loader import read_source
from ember_mlx.kernels.tiles import Tile
from ember_mlx.scans.dispatch import scan
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx, to_numpy
from .metal_host import metal_kernel
from .test_kernels import kernels_on, on_host
from .tolerances import POINTWISE, ROUNDING, TIMES_ROUNDING, TIMES_ROUNDING_SATURATED

CASES = [(name, variant) for name, recurrence in RECURRENCES.items() for variant in recurrence.variants]
WITH_TIME = [case for case in CASES if case[0] in ("cfc", "ltc", "quantum")]
SIGNALS = ("x", "u", "b", "b_hn", "h0", "c0", "v0", "h_c0", "h_s0")
# signal, time
SIZES = [(1, 1), (1e-3, 1), (1e-6, 1), (1, 1e-6), (1, 1e-3), (1, 1e3), (1, 1e6), (1e-3, 1e-6), (1e-3, 1e6), (1e-6, 1e-6), (1e-6, 1e6)]
# where a sequence is past what its solver or float32 follows, the exact result of rounded inputs is another one
FOLLOWED = 1e-2


def sized(recurrence, variant, signal, time, size=(5, 3, 8)):
    """A problem with its signals times `signal` and its times times `time`, of float32 numbers in float64 arrays."""
    spec, arrays = recurrence.problem(variant, *size)
    given = dict(tree_flatten(arrays))
    for path in given:
        name = path.split(".")[-1]
        given[path] = given[path] * (signal if name in SIGNALS else time if name == "dt" else 1)
    if "t" in given:
        given["t"] = given["dt"].cumsum(0)
    return spec, tree_unflatten([(path, a.astype(np.float32).astype(np.float64)) for path, a in given.items()])


def cotangents(outputs):
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal(a.shape).astype(np.float32).astype(np.float64) for a in outputs)


def exact(recurrence, spec, arrays):
    """Outputs and gradients in float64, by name."""
    outputs = recurrence.forward(spec, arrays)
    gradients = recurrence.backward(spec, arrays, outputs, cotangents(outputs))
    return {f"output {k}": a for k, a in enumerate(outputs)} | dict(tree_flatten(gradients))


def relative(got, expected):
    return np.abs(to_numpy(got).astype(np.float64) - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny)


def moved_by_rounding(recurrence, spec, arrays, expected):
    """How far rounded inputs move each exact result, relative to its largest value."""
    moved = dict.fromkeys(expected, ROUNDING)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rounded = tree_map(lambda a, rng=rng: a * (1 + ROUNDING * rng.uniform(-1, 1, a.shape)), arrays)
        for name, a in exact(recurrence, spec, rounded).items():
            moved[name] = max(moved[name], relative(a, expected[name]))
    return moved


def followed(expected, moved):
    return all(np.abs(a).max() < 1e30 for a in expected.values()) and max(moved.values()) < FOLLOWED


def on_backend(recurrence, spec, arrays, backend):
    fixed = to_mlx(arrays)
    paths = [path for path, _ in tree_flatten(fixed) if path != "xi" and not path.startswith("dropout")]
    leaves = dict(tree_flatten(fixed))

    def run(*changed):
        return scan(recurrence, spec, tree_unflatten(list((leaves | dict(zip(paths, changed, strict=True))).items())))

    dy = cotangents(recurrence.forward(spec, arrays))
    with ember_mlx.use_backend(backend):
        outputs, gradients = mx.vjp(run, [leaves[path] for path in paths], [mx.array(a.astype(np.float32)) for a in dy])
        mx.eval(outputs, gradients)
    return {f"output {k}": a for k, a in enumerate(outputs)} | dict(zip(paths, gradients, strict=True))


def check(recurrence, spec, arrays, time, forms):
    """Every form against float64; whether float32 can follow this problem at all."""
    with np.errstate(all="ignore"):
        expected = exact(recurrence, spec, arrays)
        moved = moved_by_rounding(recurrence, spec, arrays, expected)
    if not followed(expected, moved):
        return False
    times = TIMES_ROUNDING_SATURATED if time > 1 else TIMES_ROUNDING
    for form, run in forms.items():
        for name, got in run(recurrence, spec, arrays).items():
            error = relative(got, expected[name])
            assert error <= times * moved[name], f"{form}, {name}: {error:.1e}; rounded inputs move it by {moved[name]:.1e}"
    return True


FORMS = {name: lambda *problem, name=name: on_backend(*problem, name) for name in ("numpy", "ops")}


@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}-{v}" for n, v in CASES])
def test_numpy_and_ops_keep_the_digits_of_small_numbers(name, variant):
    recurrence = RECURRENCES[name]
    sizes = SIZES if (name, variant) in WITH_TIME else [size for size in SIZES if size[1] == 1]
    judged = [size for size in sizes if check(recurrence, *sized(recurrence, variant, *size), size[1], FORMS)]
    assert {size for size in sizes if size[1] <= 1} <= set(judged)
    if (name, variant) in [("cfc", "default"), ("cfc", "pure"), ("ltc", "full"), ("quantum", "lqnet")]:
        assert {(1e-3, 1e6), (1e-6, 1e6)} & set(judged)


# recurrence, variant, where its biases are, its blocks of units, which of these are logistic gates
GATES = [
    ("lstm", "lstm", "b", 4, (0, 1, 3)),
    ("gru", "gru", "b", 3, (0, 1)),
    ("cfc", "heads_only", "stages.0.b", 4, (3,)),
    ("cfc", "mixed_memory", "lstm.b", 4, (1, 2, 3)),
    ("ltc", "mixed_memory", "lstm.b", 4, (1, 2, 3)),
]


@pytest.mark.parametrize(("name", "variant", "bias", "blocks", "logistic"), GATES, ids=[f"{n}-{v}" for n, v, *_ in GATES])
def test_gates_near_0_keep_their_digits(name, variant, bias, blocks, logistic):
    recurrence = RECURRENCES[name]
    spec, arrays = sized(recurrence, variant, 1, 1)
    b = dict(tree_flatten(arrays))[bias]
    b.reshape(*b.shape[:-1], blocks, -1)[..., list(logistic), :] -= 14
    arrays = tree_map(lambda a: a.astype(np.float32).astype(np.float64), arrays)
    assert check(recurrence, spec, arrays, 1, FORMS)


KERNELS = [("rnn", "tanh"), ("lstm", "lstm"), ("gru", "gru"), ("quantum", "lqnet"), ("ltc", "full"), ("ltc", "explicit")]
KERNELS += [("cfc", "default"), ("cfc", "pure"), ("cfc", "mixed_memory")]


@on_host
@pytest.mark.parametrize(("name", "variant"), KERNELS, ids=[f"{n}-{v}" for n, v in KERNELS])
def test_kernels_keep_the_digits_of_small_numbers(name, variant):
    recurrence = RECURRENCES[name]
    sizes = [(1e-3, 1), (1e-6, 1), *([(1, 1e-6), (1e-3, 1e6)] if (name, variant) in WITH_TIME else [])]
    with kernels_on("host", Tile(64, 1, 8, False), metal_kernel) as kind:
        forms = {"kernels": lambda *problem: on_backend(*problem, kind)}
        judged = [size for size in sizes if check(recurrence, *sized(recurrence, variant, *size), size[1], forms)]
    assert {size for size in sizes if size[1] <= 1} <= set(judged)


def logistic(a):
    return 1 / (1 + np.exp(-a))


# what it should be, and up to which |a|: beyond, 1 + erf(a) cancels in every float32 form of gelu
FUNCTIONS = {
    "fast_tanh(a)": (np.tanh, 20),
    "tanh_or_sigmoid(true, a)": (np.tanh, 20),
    "tanh_or_sigmoid(false, a)": (logistic, 20),
    "fast_sigmoid(a)": (logistic, 20),
    "one_minus_exp(fabs(a))": (lambda a: -np.expm1(-np.abs(a)), 20),
    "activate<LECUN_TANH>(a)": (lambda a: 1.7159 * np.tanh(0.666 * a), 20),
    "activate<SILU>(a)": (lambda a: a * logistic(a), 20),
    "activate<GELU>(a)": (lambda a: a / 2 * (1 + np.vectorize(math.erf)(a * math.sqrt(0.5))), 0.5),
}


@on_host
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_kernels_own_functions_by_relative_error(function):
    exact_function, largest = FUNCTIONS[function]
    a = np.concatenate([sign * np.geomspace(1e-8, largest, 2000) for sign in (-1, 1)]).astype(np.float32)
    source = f"uint i = thread_position_in_grid.x; float a = x[i]; y[i] = {function};"
    kernel = metal_kernel("pointwise", ["x"], ["y"], source, read_source("pointwise.metal"))
    one = {"grid": (a.size, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [a.shape], "output_dtypes": [mx.float32]}
    (y,) = kernel(inputs=[mx.array(a)], template=None, **one)
    error = np.abs(np.array(y) / exact_function(a.astype(np.float64)) - 1)
    assert error.max() <= POINTWISE, f"{error.max():.1e} at {a[error.argmax()]:.3g}"


def ltc_forms(spec, arrays, backends=("numpy", "ops")):
    return {backend: on_backend(RECURRENCES["ltc"], spec, arrays, backend) for backend in backends}


# an LSTM goes on without time
@pytest.mark.parametrize("variant", [variant for variant in RECURRENCES["ltc"].variants if not variant.startswith("mixed")])
def test_an_ltc_keeps_its_state_when_no_time_passes(variant):
    spec, arrays = sized(RECURRENCES["ltc"], variant, 1, 0)
    v0 = arrays["v0"].astype(np.float32)
    for backend, results in ltc_forms(spec, arrays).items():
        assert (np.array(results["output 0"]) == v0).all(), backend


@on_host
@pytest.mark.parametrize("variant", ["full", "sparse", "explicit", "rk4"])
def test_an_ltcs_kernels_keep_its_state_when_no_time_passes(variant):
    spec, arrays = sized(RECURRENCES["ltc"], variant, 1, 0)
    with kernels_on("host", Tile(64, 1, 8, False), metal_kernel) as kind:
        (results,) = ltc_forms(spec, arrays, [kind]).values()
    assert (np.array(results["output 0"]) == arrays["v0"].astype(np.float32)).all()


@pytest.mark.parametrize("variant", ["pure", "pure_heads_only", "default", "no_gate"])
@pytest.mark.parametrize("backend", ["numpy", "ops"])
def test_times_as_long_as_float32_has_them_give_numbers(variant, backend):
    spec, arrays = sized(RECURRENCES["cfc"], variant, 1, 1)
    arrays["dt"][1::2] = 3e38
    for name, got in on_backend(RECURRENCES["cfc"], spec, arrays, backend).items():
        assert np.isfinite(np.array(got)).all(), name


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_omega_is_made_symmetric_in_the_precision_of_the_states(dtype):
    layer = LQNet(8, input_size=3)
    layer.set_dtype(dtype)
    given = np.array(layer.Omega.astype(mx.float32)).astype(np.float64)
    expected = (given + given.T) / 2
    masked = np.array(layer._weights(mx.float32)["omega"])
    used = np.where(np.array(layer.rotation_mask) != 0, expected, 0) if layer.rotation_mask is not None else expected
    assert np.abs(masked - used).max() <= 2.0**-24 * np.abs(used).max()

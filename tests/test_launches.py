"""The estimated duration of launches, and the bit-identical results of split launches."""

import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import StrideAwareLTC
from ember_mlx.kernels import launches
from ember_mlx.kernels.budget import DEFAULT, VARIABLE, launch_budget, launch_ms
from ember_mlx.kernels.launches import estimated_ms, launches_planned
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import FAMILIES, Tile, family_of, forced_tile
from ember_mlx.scans.cfc.random_cases import random_arrays as cfc_arrays
from ember_mlx.scans.ltc.random_cases import random_arrays as ltc_arrays
from ember_mlx.scans.ltc.spec import LTCSpec
from ember_mlx.scans.ltc.synapses import Synapses
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx
from .metal_host import metal_kernel
from .test_kernel_layouts import STRIDED
from .test_kernels import CASES, PRESENT, compare, counting, kernels_on, on_host

SMALLEST_MS = 1e-9  # a step of a group of sequences takes longer
M1 = "applegpu_g13"


@contextmanager
def budget(ms):
    token = launch_budget.set(ms)
    try:
        yield
    finally:
        launch_budget.reset(token)


@pytest.fixture
def on_family(monkeypatch):
    """Use another GPU family everywhere."""

    def choose(name):
        for module in [launches, *{sys.modules[recurrence.fused.forward.__module__] for recurrence in RECURRENCES.values()}]:
            monkeypatch.setattr(module, "current_family", lambda: family_of(name))

    return choose


def both_ways(recurrence, spec, arrays, ms):
    """Outputs and gradients as NumPy arrays, with launches of limited duration."""
    rng = np.random.default_rng(1)
    with budget(ms):
        outputs = recurrence.fused.forward("metal", spec, arrays)
        dy = [mx.array(rng.standard_normal(a.shape).astype(np.float32)) for a in outputs]
        gradients = recurrence.fused.backward("metal", spec, arrays, outputs, dy)
        mx.eval(outputs, gradients)
    return {path: np.array(a) for path, a in tree_flatten({"outputs": outputs, "gradients": gradients})}


def planned_both_ways(recurrence, spec, arrays, ms, kind="metal"):
    """The launches of a forward scan, and those of its backward."""
    with budget(ms), launches_planned() as planned:
        outputs = recurrence.fused.forward(kind, spec, arrays)
        forward = len(planned)
        recurrence.fused.backward(kind, spec, arrays, outputs, outputs)
    return planned[:forward], planned[forward:]


def assert_same_bits(got, expected):
    assert sorted(got) == sorted(expected)
    for path, a in expected.items():
        np.testing.assert_array_equal(got[path].view(np.int32), a.view(np.int32), err_msg=path)


@pytest.mark.parametrize("device", [device for device in PRESENT if device != "cuda"])
@pytest.mark.parametrize("lengths", [None, [7, 0, 3, 6, 4]], ids=["full", "lengths"])
@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{name}-{variant}" for name, variant in CASES])
def test_launches_in_pieces_give_the_same_bits(device, name, variant, lengths):
    """Of three steps of all sequences, and of one step of one group of them, in every kernel of the scan and its backward."""
    T, B = 7, 5
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, T, B, 31)
    arrays = to_mlx(arrays | ({} if lengths is None else {"lengths": np.array(lengths, np.int32)}))
    with kernels_on(device, Tile(128, 2, 4, True), metal_kernel):
        expected, (forward, backward) = both_ways(recurrence, spec, arrays, 0), planned_both_ways(recurrence, spec, arrays, 0)
        longest = max(one.ms for one in [*forward, *backward])
        counts = [Counter(one.kernel for one in [*forward, *backward])]
        for ms in (3.5 / T * longest, SMALLEST_MS):
            assert_same_bits(both_ways(recurrence, spec, arrays, ms), expected)
            counts.append(Counter(one.kernel for part in planned_both_ways(recurrence, spec, arrays, ms) for one in part))
    whole, steps, least = counts
    for kernel in whole:
        assert kernel == "ltc_gradients" or least[kernel] >= T
        assert not kernel.endswith(("_forward", "_backward")) or whole[kernel] < steps[kernel] < least[kernel]


@on_host
@pytest.mark.parametrize("variant", ["layered", "default"])
def test_groups_without_a_step(variant):
    """They write zeros to their whole outputs: in later pieces all sequences of some groups have ended."""
    spec, arrays = RECURRENCES["cfc"].problem(variant, 4, 5, 9)
    arrays["lengths"] = np.array([0, 0, 4, 1, 0], np.int32)
    with kernels_on("host", Tile(64, 2, 4, True)) as kind, budget(SMALLEST_MS):
        compare(kind, RECURRENCES["cfc"], spec, arrays)


@on_host
@pytest.mark.parametrize("kind", STRIDED)
def test_scans_of_several_layers_in_pieces_give_the_same_bits(kind):
    """Strides have scans of different lengths, whose pieces are made together as long as there are several."""
    mx.random.seed(0)
    layer, results = STRIDED[kind](), []
    x, dt = mx.random.normal((3, 9, 3)), mx.random.uniform(0.1, 2, (3, 9))

    def loss(parameters, a, d):
        layer.update(parameters)
        y = layer(a, None, d, [9, 2, 4])
        return (y * y).sum(), y

    step = mx.value_and_grad(loss, (0, 1, 2))
    with ember_mlx.use_backend("metal"):
        for ms in (0, SMALLEST_MS):
            calls = []
            with budget(ms), kernels_made_by("metal", counting(calls)):
                result = step(layer.trainable_parameters(), x, dt)
                mx.eval(result)
            results.append({path: np.array(a) for path, a in tree_flatten(list(result))})
            scans = [name for name in calls if name.endswith("_forward_together")]
            assert (len(scans) == 1) == (ms == 0)
    assert_same_bits(results[1], results[0])


@on_host
@pytest.mark.parametrize("blocks", [2, 3])
def test_blocks_of_steps_and_pieces_of_launches_are_cut_apart(monkeypatch, blocks):
    """A block's sums over its steps do not depend on the pieces in which its launches are made."""
    recurrence = RECURRENCES["cfc"]
    module = sys.modules[recurrence.fused.forward.__module__]
    monkeypatch.setattr(module, "block_steps", lambda variant, batch: blocks)
    spec, arrays = recurrence.problem("layered", 7, 5, 9, lengths=True)
    arrays = to_mlx(arrays)
    with kernels_on("host", Tile(64, 2, 4, False), metal_kernel):
        assert_same_bits(both_ways(recurrence, spec, arrays, SMALLEST_MS), both_ways(recurrence, spec, arrays, 0))


def stand_in(**text):
    """A cheap kernel whose results depend on its inputs."""

    def call(*, inputs, output_shapes, **_):
        seed = sum(a.reshape(-1)[0] for a in inputs[:4] if a.dtype == mx.float32)
        return [mx.broadcast_to(seed, shape) for shape in output_shapes]

    return call


@pytest.mark.parametrize("name", ["lstm", "cfc"])
def test_a_long_sequence_step_by_step_is_a_graph_that_can_be_evaluated(name):
    """With tens of thousands of sequential operations, forward and backward."""
    T, recurrence = 5000, RECURRENCES[name]
    spec, arrays = recurrence.problem(recurrence.variants[0], T, 1, 4)
    token = forced_tile.set(Tile(64, 0, 8, False))
    try:
        with kernels_made_by("metal", stand_in):
            outputs = recurrence.fused.forward("metal", spec, to_mlx(arrays))
            gradients = recurrence.fused.backward("metal", spec, to_mlx(arrays), outputs, outputs)
            mx.eval(outputs, gradients)
    finally:
        forced_tile.reset(token)
    assert gradients["x"].shape == arrays["x"].shape


# The estimates


def headline(cell, T, B, H, density=1.0):
    """A recurrence, its specification and arrays of zeros, without running any kernel."""
    if cell == "ltc":
        rng = np.random.default_rng(0)
        spec = LTCSpec(Synapses(rng.random((H, H)) < density), Synapses(np.ones((3, H))))
        name, arrays = cell, ltc_arrays(spec, 1, 1, lengths=False)
    else:
        name, variant, size = {"cfc": ("cfc", "default", H), "lstm": ("lstm", "lstm", H), "gru": ("gru", "gru", H)}[cell]
        spec, arrays = RECURRENCES[name].problem(variant, 1, 1, size)
        if cell == "cfc":
            arrays = cfc_arrays(spec, 1, 1, 2 * H, 1, lengths=False, dropout=False)
    first = 0 if cell in ("cfc", "ltc") else 1  # axes before those of steps and sequences
    sizes = {"x": (T, B), "u": (T, B), "dt": (T, B), "h0": (B,), "c0": (B,), "v0": (B,)}

    def stretched(name, a):
        size = sizes.get(name, ())
        return mx.broadcast_to(a, (*a.shape[: first * bool(size)], *size, *a.shape[first * bool(size) + len(size) :]))

    arrays = to_mlx(arrays)
    if "initial" in arrays:
        arrays["initial"] = {name: mx.broadcast_to(a, (a.shape[0], B, a.shape[2])) for name, a in arrays["initial"].items()}
    return RECURRENCES[name], spec, {name: stretched(name, a) if isinstance(a, mx.array) else a for name, a in arrays.items()}


def plan_of(cell, T, B, H, density=1.0, ms=float(DEFAULT), kind="metal"):
    """The launches of a headline layer's forward scan, and those of its backward."""
    return planned_both_ways(*headline(cell, T, B, H, density), ms, kind)


STEPS = [  # microseconds of a forward step on an M1
    ("cfc", 64, 1, {32: 4.0, 256: 32.0}),
    ("lstm", 64, 1, {32: 1.6, 256: 12.8}),
    ("ltc", 64, 1, {32: 9.329, 256: 74.63, 1024: 298.5}),
    ("ltc", 256, 1, {32: 153.6, 256: 1228.8, 1024: 4915.2}),
    ("ltc", 512, 1, {32: 1228.8, 256: 9830.4, 1024: 39321.6}),
    ("ltc", 1024, 0.1, {32: 1344.0, 256: 10752.0}),
]


@pytest.mark.parametrize(("cell", "H", "density", "steps"), STEPS, ids=[f"{cell}{H}" for cell, H, *_ in STEPS])
def test_the_model_of_a_step_by_the_figures_of_an_m1(on_family, cell, H, density, steps):
    on_family(M1)
    for B, expected in steps.items():
        *_, scan = plan_of(cell, 10, B, H, density, ms=0)[0]
        assert scan.kernel.endswith("_forward")
        assert scan.steps == 10
        assert scan.ms * 100 == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
@pytest.mark.parametrize("cell", ["cfc", "lstm", "gru", "ltc"])
def test_estimates_grow_with_steps_and_sequences(on_family, cell, family):
    on_family(family)

    def estimate(T, B):
        recurrence, spec, arrays = headline(cell, T, B, 48)
        return estimated_ms("metal", recurrence, spec, arrays)

    for sizes in ([(T, 20) for T in (1, 2, 10, 100, 5000)], [(50, B) for B in (1, 2, 8, 9, 33, 200)]):
        estimates = [estimate(*size) for size in sizes]
        for before, after in pairwise(estimates):
            assert sorted(before) == sorted(after)
            for kernel, ms in before.items():
                assert 0 < ms <= after[kernel]
        if len({T for T, _ in sizes}) > 1:  # sequences may have room beside one another
            assert all(estimates[-1][kernel] > ms for kernel, ms in estimates[0].items())


def test_an_estimate_is_that_of_all_launches_of_a_kernel(on_family):
    on_family(M1)
    recurrence, spec, arrays = headline("ltc", 2000, 256, 64)
    with budget(float(DEFAULT)):
        times, forward = (estimated_ms("metal", recurrence, spec, arrays, backward) for backward in (True, False))
    assert list(forward) == ["ltc_sums", "ltc_forward"]
    assert forward["ltc_forward"] == pytest.approx(2000 * 0.07463, rel=0.01)
    assert times["ltc_forward"] > forward["ltc_forward"]  # it makes the evaluations again
    assert {"ltc_backward", "ltc_evaluations", "ltc_gradients", "ltc_pull"} < set(times)


LONG = [  # cell, T, B, H, density of synapses, launches of the forward scan
    ("ltc", 13_400, 256, 64, 1, 101),
    ("ltc", 814, 256, 256, 1, 102),
    ("ltc", 814, 32, 512, 1, 102),
    ("ltc", 100, 256, 512, 1, 100),
    ("ltc", 10, 1024, 512, 1, 40),  # 39 ms a step
    ("ltc", 93, 256, 1024, 0.1, 186),
    ("ltc", 100_000, 1, 64, 1, 25),
    ("cfc", 100_000, 1, 64, 1, 40),
    ("lstm", 100_000, 1, 64, 1, 16),
    ("cfc", 31_238, 256, 64, 1, 101),
    ("gru", 5_000, 4096, 64, 1, 50),
]


@pytest.mark.parametrize(("cell", "T", "B", "H", "density", "count"), LONG, ids=[f"{c}{H}-T{T}-B{B}" for c, T, B, H, *_ in LONG])
def test_no_launch_of_a_long_scan_is_longer_than_the_budget(on_family, cell, T, B, H, density, count):
    on_family(M1)
    forward, backward = plan_of(cell, T, B, H, density)
    scans = [one for one in forward if one.kernel.endswith("_forward")]
    assert max(one.ms for one in [*forward, *backward]) <= float(DEFAULT)
    assert len(scans) == count
    assert sum(one.steps * one.sequences for one in scans) == T * B
    assert sum(one.steps * one.sequences for one in backward if one.kernel.endswith("_backward")) == T * B


def test_launches_of_several_scans_take_the_time_of_all(on_family):
    """Two strides' scans in one launch: as many sequences again."""
    on_family(M1)
    layer, x = StrideAwareLTC(64, [1, 2], 3), mx.zeros((256, 1000, 3))
    plans = []
    for ms in (0, float(DEFAULT)):
        with kernels_made_by("metal", stand_in), ember_mlx.use_backend("metal"), budget(ms), launches_planned() as planned:
            mx.grad(lambda a: layer(a).sum())(x)
        plans.append([one for one in planned if one.kernel == "ltc_forward" and one.sequences == 256])
    (whole,), pieces = plans
    assert whole.ms == pytest.approx(2 * 1000 * 0.07463, rel=0.01)
    assert sum(one.steps for one in pieces) == 1000
    assert max(one.ms for one in pieces) <= float(DEFAULT)
    assert len(pieces) == 16  # of 67 steps at most: 2 x 74.63 us each
    assert pieces[-1].ms < 0.6 * pieces[0].ms  # the longer stride's steps are over


def test_a_step_of_one_group_is_never_cut(on_family):
    on_family(M1)
    forward, _ = plan_of("ltc", 2, 3, 512, ms=1e-6)
    assert [(one.steps, one.sequences) for one in forward if one.kernel == "ltc_forward"] == [(1, 1)] * 4 + [(1, 1)] * 2


@pytest.mark.parametrize(("kind", "ms"), [("cuda", float(DEFAULT)), ("metal", 0)])
def test_nothing_is_cut_on_cuda_or_without_a_budget(on_family, kind, ms):
    on_family(M1)
    forward, _ = plan_of("ltc", 2000, 256, 64, ms=ms, kind=kind)
    assert [(one.steps, one.sequences) for one in forward if one.kernel == "ltc_forward"] == [(2000, 256)]


# What the environment says


@pytest.mark.parametrize("text", ["ten", "", "-1", "nan", "inf", "10ms"])
def test_a_budget_that_is_no_number_of_milliseconds_is_refused_by_name(text):
    message = rf"\[ember_mlx\] {VARIABLE} must be a number of milliseconds, 0 for no limit, got {text!r}\."
    with pytest.raises(ValueError, match=message):
        launch_ms(text)


def test_the_environments_budget():
    assert (launch_ms("0"), launch_ms("2.5"), launch_ms(DEFAULT)) == (0, 2.5, 10)
    code = "from ember_mlx import GRU; from ember_mlx.kernels.budget import launch_budget; print(launch_budget.get())"
    for text, expected in (("4", "4.0"), ("ten", "got 'ten'.")):
        ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, VARIABLE: text}, capture_output=True, text=True, check=False)
        assert (ran.stdout + ran.stderr).strip().endswith(expected)

"""Kernels of the cells other than CfC: their layouts and blocks of steps."""

import inspect
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

import ember_mlx
from ember_mlx import LTC, NCPMap, RandomMap, StrideAwareCfC, StrideAwareLTC
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import FAMILIES, THREADGROUP_BYTES, Tile, family_of
from ember_mlx.scans.cell import fused as cell_fused
from ember_mlx.scans.cell.gated import GRU_CELL, LSTM_CELL, PROJECTED_LSTM, TANH_RNN
from ember_mlx.scans.cell.random_cases import random_arrays
from ember_mlx.scans.ltc import fused as ltc_fused
from ember_mlx.scans.ltc.random_cases import random_arrays as ltc_arrays
from ember_mlx.scans.ltc.spec import LTCSpec
from ember_mlx.scans.ltc.synapses import Synapses
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import assert_close, assert_trees_close, to_mlx
from .metal_host import metal_kernel
from .test_kernels import compare, devices, kernels_on, on_host
from .tolerances import FORWARD, GRADIENT

OTHERS = [name for name in RECURRENCES if name != "cfc"]


@devices
@pytest.mark.parametrize(("T", "B", "H"), [(33, 2, 100), (4, 2, 300), (2, 1, 1024)], ids=["H100", "H300", "H1024"])
@pytest.mark.parametrize("name", OTHERS)
def test_the_tables_own_layout(device, name, T, B, H):
    recurrence = RECURRENCES[name]
    with kernels_on(device, maker=metal_kernel) as kind:
        compare(kind, recurrence, *recurrence.problem(recurrence.variants[0], T, B, H, lengths=True))


@devices
@pytest.mark.parametrize(
    ("T", "B", "H", "density"),
    [(5, 2, 64, 1.0), (3, 2, 64, 0.5), (2, 3, 256, 1.0), (2, 1, 1024, 0.1)],
    ids=["H64-full", "H64-sparse", "H256-full", "H1024-sparse"],
)
@pytest.mark.parametrize("family", ["applegpu", "sm_90"])
def test_the_tables_own_layout_for_synapses(monkeypatch, device, family, T, B, H, density):
    monkeypatch.setattr(ltc_fused, "current_family", lambda: family_of(family))
    rng = np.random.default_rng(0)
    spec = LTCSpec(Synapses(rng.random((H, H)) < density), Synapses(rng.random((3, H)) < density), unfolds=2)
    with kernels_on(device, maker=metal_kernel) as kind:
        arrays = ltc_arrays(spec, T, B, lengths=True)
        variant = ltc_fused.variant_of(kind, spec, to_mlx(arrays))
        assert variant.tile.resident == (H == 64)
        held = [variant.held(backward) < variant.lists(backward).entries for backward in (False, True)]
        assert not variant.tile.resident or held == [family == "applegpu"] * 2  # there some are in registers, and some are not
        again = ltc_fused.recomputing(variant).tile
        assert again in ltc_fused.layouts(family_of(family), spec)
        assert again.rows > 1 or variant.tile.resident
        compare(kind, RECURRENCES["ltc"], spec, arrays)


@on_host
@pytest.mark.parametrize("variant", ["full", "rk4_sparse", "mixed_memory_sparse"])
def test_backward_of_an_ltc_in_blocks_of_steps_is_the_whole(monkeypatch, variant):
    recurrence = RECURRENCES["ltc"]
    with kernels_on("host", Tile(64, 2, 4, False), metal_kernel) as kind:
        spec, _ = recurrence.problem(variant, 7, 5, 6)
        for block in (1, 3, 4):
            monkeypatch.setattr(ltc_fused, "BLOCK_VALUES", block * spec.evaluations * 5 * 6)
            for lengths in (False, True):
                compare(kind, recurrence, *recurrence.problem(variant, 7, 5, 6, lengths=lengths))


@devices
@pytest.mark.parametrize("gates_resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize(
    ("variant", "solver"),
    [("mixed_memory", "semi_implicit"), ("mixed_memory_sparse", "explicit"), ("mixed_memory_sparse", "rk4")],
    ids=["full", "explicit-sparse", "rk4-sparse"],
)
def test_mixed_memory_of_an_ltc(device, variant, solver, gates_resident):
    """With the LSTM's weights in registers beside the synapses, and read at every step."""
    recurrence = RECURRENCES["ltc"]
    spec, _ = recurrence.problem(variant, 1, 3, 37)
    spec = replace(spec, solver=solver)
    with kernels_on(device, Tile(128, 2, 4, True, False, gates_resident)) as kind:
        compare(kind, recurrence, spec, ltc_arrays(spec, 5, 3, lengths=True))


@devices
@pytest.mark.parametrize(("family", "H", "gates_resident"), [("sm_90", 64, True), ("sm_90", 72, False), ("applegpu", 64, False)])
def test_the_tables_own_layout_for_mixed_memory(monkeypatch, device, family, H, gates_resident):
    monkeypatch.setattr(ltc_fused, "current_family", lambda: family_of(family))
    recurrence = RECURRENCES["ltc"]
    spec, arrays = recurrence.problem("mixed_memory", 3, 2, H, lengths=True)
    with kernels_on(device, maker=metal_kernel) as kind:
        tile = ltc_fused.variant_of(kind, spec, to_mlx(arrays)).tile
        assert (tile.resident, tile.gates_resident) == (True, gates_resident)
        assert tile in recurrence.fused.layouts(family_of(family), spec)
        compare(kind, recurrence, spec, arrays)


@on_host
def test_mixed_memory_of_too_many_units_is_refused_by_name():
    layer, x = LTC(RandomMap(600, 600, 3, sparsity_level=0.9, seed=1), mixed_memory=True), mx.zeros((1, 2, 3))
    message = (
        r"\[LTC\] backend 'metal' cannot run: 600 units with mixed memory need more than 32768 bytes of threadgroup memory; "
        r"use 'auto' or 'ops'\."
    )
    with kernels_made_by("metal", metal_kernel), ember_mlx.use_backend("metal"), pytest.raises(RuntimeError, match=message):
        layer(x)


@devices
@pytest.mark.parametrize("variant", ["full", "sparse"])
def test_synapses_far_from_their_middle(device, variant):
    """Fully open and closed synapses; NaN is preserved."""
    recurrence = RECURRENCES["ltc"]
    spec, arrays = recurrence.problem(variant, 2, 3, 8)
    arrays["synapses"]["sigma"] *= 200
    arrays["sensory"]["sigma"] *= 200
    with kernels_on(device, Tile(64, 2, 8, True), metal_kernel) as kind:
        (y,) = recurrence.fused.forward(kind, spec, to_mlx(arrays))
        assert_close(y, recurrence.forward(spec, arrays)[0], FORWARD["float32"])
        arrays["v0"][0, 3] = np.nan
        (y,) = recurrence.fused.forward(kind, spec, to_mlx(arrays))
    expected = np.isnan(recurrence.forward(spec, arrays)[0])
    assert expected[0].sum() > 1
    np.testing.assert_array_equal(np.isnan(np.array(y)), expected)


@devices
@pytest.mark.parametrize("solver", ["semi_implicit", "explicit"])
def test_what_lies_past_a_sequence_changes_no_gradient(device, solver):
    """Even if a solver overflows there."""
    recurrence = RECURRENCES["ltc"]
    spec, _ = recurrence.problem("sparse", 1, 1, 5)
    spec = replace(spec, solver=solver, unfolds=40)
    arrays = ltc_arrays(spec, 5, 3, lengths=True)
    past = np.arange(5)[:, None] >= arrays["lengths"]
    arrays["u"][past], arrays["dt"][past] = 1e3, 1e30
    with kernels_on(device, Tile(64, 2, 4, True), metal_kernel) as kind:
        compare(kind, recurrence, spec, arrays)


@on_host
@pytest.mark.parametrize(
    ("name", "variant"),
    [("quantum", "ctrqnet_noise"), ("rnn", "relu"), ("lstm", "lstm_bidirectional"), ("gru", "gru"), ("lstm", "lstm_projected")],
    ids=["quantum", "rnn", "lstm", "gru", "projected"],
)
def test_backward_in_blocks_of_steps_is_the_whole(monkeypatch, name, variant):
    recurrence = RECURRENCES[name]
    with kernels_on("host", Tile(64, 2, 4, False), metal_kernel) as kind:
        for block in (3, 4, 7):
            monkeypatch.setattr(inspect.getmodule(recurrence.fused.backward), "BLOCK_STEPS", block)
            for lengths in (False, True):
                compare(kind, recurrence, *recurrence.problem(variant, 7, 5, 6, lengths=lengths))


GATED_LAYOUTS = [
    ("lstm", "lstm", "sm_90", 64, (True, True)),
    ("lstm", "lstm", "sm_90", 256, (False, False)),
    ("lstm", "lstm", "sm_90", 512, (None, None)),
    ("lstm", "lstm", "applegpu_g13", 128, (False, False)),
    ("lstm", "lstm_projected_bidirectional", "sm_90", 64, (True, True)),
    ("lstm", "lstm_projected", "sm_90", 256, (False, False)),
    ("gru", "gru", "sm_90", 512, (None, None)),
    ("gru", "gru_bidirectional", "applegpu_g13", 512, (None, None)),
    ("rnn", "tanh", "sm_90", 1024, (None, None)),
]


@devices
@pytest.mark.parametrize(
    ("name", "variant", "family", "H", "resident"), GATED_LAYOUTS, ids=[f"{variant}-{f}-H{H}" for _, variant, f, H, _ in GATED_LAYOUTS]
)
def test_the_tables_own_layout_for_gates(monkeypatch, device, name, variant, family, H, resident):
    """Weights in registers, read at every step, or (None) every step by itself; forward and backward."""
    monkeypatch.setattr(cell_fused, "current_family", lambda: family_of(family))
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, 3, 2, H, lengths=True)
    chosen = cell_fused.variant_of("metal", spec, to_mlx(arrays))
    assert tuple(tile.resident if tile.rows else None for tile in (chosen.forward, chosen.backward)) == resident
    with kernels_on(device, maker=metal_kernel) as kind:
        compare(kind, recurrence, spec, arrays)


PROJECTED_LAYOUTS = cell_fused.layouts(family_of("sm_90"), PROJECTED_LSTM.definition)


@devices
@pytest.mark.parametrize("tile", PROJECTED_LAYOUTS, ids=lambda tile: f"rows{tile.rows}-{'resident' if tile.resident else 'streamed'}")
def test_a_projected_state_in_every_layout_of_the_table(device, tile):
    recurrence = RECURRENCES["lstm"]
    with kernels_on(device, tile) as kind:
        compare(kind, recurrence, *recurrence.problem("lstm_projected", 3, 3, 33, lengths=True))


@devices
@pytest.mark.parametrize(("name", "variant"), [("lstm", "lstm_projected_bidirectional"), ("lstm", "lstm"), ("gru", "gru"), ("rnn", "relu")])
def test_slopes_of_many_units_do_not_wait_in_registers(device, name, variant):
    """Weights are in registers, and each lane has so many units that their slopes are read just before the product."""
    recurrence = RECURRENCES[name]
    with kernels_on(device, Tile(64, 2, 8, True)) as kind:
        compare(kind, recurrence, *recurrence.problem(variant, 5, 3, 31, lengths=True))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_gated_layouts_fit_into_the_threadgroups_memory(family, monkeypatch):
    monkeypatch.setattr(cell_fused, "current_family", lambda: family)
    for cell in (TANH_RNN, LSTM_CELL, PROJECTED_LSTM, GRU_CELL):
        for H in (31, 64, 256, 700, 2000):
            for B in (1, 60, 5000):
                spec, arrays = cell.definition, to_mlx(random_arrays(cell.definition, 1, 1, B, H, lengths=False))
                variant = cell_fused.variant_of("metal", spec, arrays)
                for scan in map(variant.scan, (False, True)):
                    assert 16 * scan.scratch <= THREADGROUP_BYTES or not scan.tile.rows


def test_gated_arrays_that_an_int_cannot_index_are_refused():
    spec, arrays = RECURRENCES["lstm"].problem("lstm", 1, 1, 64)
    arrays = to_mlx(arrays)
    assert cell_fused.refusal("metal", spec, arrays) is None
    long = arrays | {"x": mx.broadcast_to(arrays["x"], (1, 2**16, 2**7, 3))}
    assert cell_fused.refusal("metal", spec, long) == "an array of 2147483648 elements is too large for int indices"


def test_quantum_arrays_that_an_int_cannot_index_are_refused():
    spec, arrays = RECURRENCES["quantum"].problem("ctrqnet", 1, 1, 64)
    arrays, refusal = to_mlx(arrays), RECURRENCES["quantum"].fused.refusal
    assert refusal("metal", spec, arrays) is None
    long = arrays | {"dt": mx.broadcast_to(arrays["dt"], (2**17 - 1, 2**7))}  # psi has two numbers for each unit
    assert refusal("metal", spec, long) == "an array of 2147483648 elements is too large for int indices"


def test_blocks_of_steps_of_gates_bound_the_memory():
    lstm = LSTM_CELL.definition
    assert cell_fused.block_steps(lstm, 64, 32) == cell_fused.BLOCK_STEPS
    assert 1 < cell_fused.block_steps(lstm, 1024, 512) < 20
    assert cell_fused.block_steps(lstm, 10**6, 512) == 1


@pytest.mark.parametrize("name", OTHERS)
def test_every_choice_of_the_table_is_among_the_layouts_that_are_checked(monkeypatch, name):
    recurrence = RECURRENCES[name]
    module = inspect.getmodule(recurrence.fused.forward)
    for family in FAMILIES:
        monkeypatch.setattr(module, "current_family", lambda family=family: family)
        for H in (5, 64, 200, 500):
            for B in (1, 32, 1000):
                spec, arrays = recurrence.problem(recurrence.variants[0], 1, B, H)
                variant = module.variant_of("metal", spec, to_mlx(arrays))
                tiles = [part for part in variant if isinstance(part, Tile)]
                assert tiles
                assert set(tiles) <= set(recurrence.fused.layouts(family, spec))


STRIDED = {
    "dense": lambda: StrideAwareCfC(7, [1, 3, 2], 3, backbone_units=9, return_sequences=True),
    "layered-mixed": lambda: StrideAwareCfC(NCPMap(5, 4, 3, 3, seed=1), [4, 1], mixed_memory=True, return_sequences=True),
    "pure": lambda: StrideAwareCfC(7, [2, 1], 3, mode="pure", return_sequences=True),
    "ltc": lambda: StrideAwareLTC(5, [1, 2], 3, ode_unfolds=2, return_sequences=True),
    "ltc-mixed": lambda: StrideAwareLTC(5, [1, 2], 3, ode_unfolds=2, mixed_memory=True, return_sequences=True),
}


@on_host
@pytest.mark.parametrize("streamed", [False, True], ids=["fresh", "streamed"])
@pytest.mark.parametrize("kind", STRIDED)
def test_strides_on_kernels(kind, streamed):
    """Forward and every gradient as the operations' form; the scans of all strides are one launch each way."""
    mx.random.seed(0)
    layer, calls = STRIDED[kind](), []
    x, dt, lengths = mx.random.normal((3, 9, 3)), mx.random.uniform(0.1, 2, (3, 9)), [9, 2, 4]

    def noting(**text):
        kernel = metal_kernel(**text, verify=True)

        def call(**arguments):
            calls.append(text["name"])
            return kernel(**arguments)

        return call

    with ember_mlx.use_backend("ops"):
        state = layer(x[:, :5], time_deltas=dt[:, :5], return_state=True)[1] if streamed else None

    def loss(parameters, a, d):
        layer.update(parameters)
        y = layer(a, state, d, lengths)
        return (y * y).sum(), y

    step, results = mx.value_and_grad(loss, (0, 1, 2)), {}
    with ember_mlx.use_backend("ops"):
        results["ops"] = step(layer.trainable_parameters(), x, dt)
        mx.eval(results)
    with kernels_made_by("metal", noting), ember_mlx.use_backend("metal"):
        results["metal"] = step(layer.trainable_parameters(), x, dt)
        mx.eval(results)
    assert_close(results["metal"][0][1], results["ops"][0][1], FORWARD["float32"])
    assert_trees_close(list(results["metal"][1]), list(results["ops"][1]), GRADIENT["float32"])
    cell = "ltc" if kind.startswith("ltc") else "cfc"
    assert [name for name in calls if name.endswith("_together")] == [f"{cell}_forward_together", f"{cell}_backward_together"]


@on_host
def test_strides_make_the_check_of_a_first_use(monkeypatch):
    monkeypatch.setattr("ember_mlx.scans.dispatch.gpu_kind", lambda: "metal")
    layer, x = STRIDED["dense"](), mx.random.normal((2, 6, 3))
    with ember_mlx.use_backend("ops"):
        expected = layer(x)
        mx.eval(expected)
    with kernels_made_by("metal", metal_kernel):
        assert_close(layer(x), expected, FORWARD["float32"])

"""The first-use check of a kernel: with the call's variant, and a problem that is cheap at any size."""

import gc
import time
import tracemalloc
import warnings
import weakref
from functools import partial
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from ember_mlx.kernels import first_use
from ember_mlx.kernels.launches import launches_planned
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.scans.batched import _batched
from ember_mlx.scans.cell.gated import GRU_CELL, LSTM_CELL, PROJECTED_LSTM
from ember_mlx.scans.cell.random_cases import random_arrays as cell_arrays
from ember_mlx.scans.cfc.random_cases import random_arrays as cfc_arrays
from ember_mlx.scans.cfc.spec import CfCSpec
from ember_mlx.scans.ltc.random_cases import random_arrays as ltc_arrays
from ember_mlx.scans.ltc.spec import LTCSpec
from ember_mlx.scans.ltc.synapses import Synapses
from ember_mlx.scans.quantum.random_cases import random_arrays as quantum_arrays
from ember_mlx.scans.quantum.spec import QuantumSpec
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx
from .metal_host import metal_kernel, unsupported_reason

on_host = pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason()))


@pytest.fixture(autouse=True)
def no_verdicts(monkeypatch):
    monkeypatch.setattr(first_use, "_verdicts", {})


def idle(**text):
    """A device that computes nothing."""
    return lambda **call: [mx.zeros(shape) for shape in call["output_shapes"]]


def noting(calls, **text):
    """A device that also records its kernels and their template arguments."""

    def run(**call):
        calls.add((text["name"], tuple(call["template"])))
        return idle()(**call)

    return run


def complaint(name, spec, arrays, maker=idle):
    with kernels_made_by("metal", maker), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return first_use.complaint("metal", name if not isinstance(name, str) else RECURRENCES[name], spec, arrays)


def ltc(H, B, density=1.0, I=16, **options):
    rng = np.random.default_rng(0)
    spec = LTCSpec(Synapses(rng.random((H, H)) < density), Synapses(np.ones((I, H))), **options)
    return "ltc", spec, ltc_arrays(spec, 2, B, lengths=True, dtype=np.float32)


def cfc(H, B, Z, depth=1, **options):
    spec = CfCSpec(((0, H),), **options)
    return "cfc", spec, cfc_arrays(spec, 2, B, Z, depth, lengths=True, dropout=False, dtype=np.float32)


def layered(sizes, B, **options):
    ends = np.cumsum([0, *sizes[::-1]]).tolist()
    spec = CfCSpec(tuple(pairwise(ends))[::-1], **options)
    return "cfc", spec, cfc_arrays(spec, 2, B, 0, 0, lengths=True, dropout=False, dtype=np.float32)


def gated(cell, H, B, D=1):
    spec = {"gru": GRU_CELL, "lstm": LSTM_CELL, "projected": PROJECTED_LSTM}[cell].definition
    return "gru" if cell == "gru" else "lstm", spec, cell_arrays(spec, D, 2, B, H, lengths=True, dtype=np.float32)


def quantum(H, B):
    return "quantum", QuantumSpec(), quantum_arrays(QuantumSpec(), 2, B, H, lengths=True, noise=True, dtype=np.float32)


LARGE = {
    "ltc-64-B2048": partial(ltc, 64, 2048),
    "ltc-64-mixed-memory-B2048": partial(ltc, 64, 2048, mixed_memory=True),
    "ltc-64-I4096": partial(ltc, 64, 2, I=4096),
    "ltc-256-B256": partial(ltc, 256, 256),
    "ltc-256-rk4-B256": partial(ltc, 256, 256, solver="rk4"),
    "ltc-512-mixed-memory-B32": partial(ltc, 512, 32, mixed_memory=True),
    "ltc-1024-tenth-B256": partial(ltc, 1024, 256, 0.1),
    "ltc-1024-B4": partial(ltc, 1024, 4),
    "cfc-512-B2048": partial(cfc, 512, 2048, 128),
    "cfc-1024-three-layers-mixed-memory-B32": partial(cfc, 1024, 32, 1024, 3, mixed_memory=True),
    "cfc-512-layered-B32": partial(layered, (256, 156, 100), 32),
    "gru-1024-B32": partial(gated, "gru", 1024, 32),
    "lstm-1024-bidirectional-projected-B32": partial(gated, "projected", 1024, 32, 2),
    "quantum-512-B2048": partial(quantum, 512, 2048),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_it_costs_little_at_any_size(make):
    """Without the device's part: less than 0.1 s and 50 MB, NumPy's and MLX's memory together."""
    name, spec, arrays = make()
    arrays, times = tree_map(mx.array, arrays), []
    assert RECURRENCES[name].fused.refusal("metal", spec, arrays) is None
    for _ in range(6):  # of the process alone: other tests run beside
        first_use._verdicts.clear()
        start = time.process_time()
        complaint(name, spec, arrays)
        times.append(time.process_time() - start)
    first_use._verdicts.clear()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    complaint(name, spec, arrays)
    peak = tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() - before
    tracemalloc.stop()
    assert min(times) < 0.1
    assert peak < 50e6


def templates(name, spec, arrays):
    """The kernels that a call's forward and backward make, with their template arguments."""
    calls, fused = set(), RECURRENCES[name].fused
    with kernels_made_by("metal", partial(noting, calls)):
        outputs = fused.forward("metal", spec, arrays)
        fused.backward("metal", spec, arrays, outputs, outputs)
    return calls


SAME = {
    "ltc-64-B2048": LARGE["ltc-64-B2048"],
    "ltc-64-mixed-memory-B1": partial(ltc, 64, 1, mixed_memory=True),
    "ltc-100-sparse-B9": partial(ltc, 100, 9, 0.3, solver="rk4"),
    "ltc-256-B256": LARGE["ltc-256-B256"],
    "cfc-64-B100": partial(cfc, 64, 100, 128),
    "cfc-64-heads-B3": partial(cfc, 64, 3, 0, 0, mode="pure"),
    "cfc-56-layered-B40": partial(layered, (32, 16, 8), 40),
    "cfc-512-B2048": LARGE["cfc-512-B2048"],
    "lstm-64-B32": partial(gated, "lstm", 64, 32),
    "lstm-300-B5": partial(gated, "lstm", 300, 5),
    "gru-96-bidirectional-B17": partial(gated, "gru", 96, 17, 2),
    "quantum-64-B2048": partial(quantum, 64, 2048),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_it_runs_the_kernels_of_the_call(make):
    """With the call's template arguments: layout, rows, threadgroup memory, and sizes."""
    name, spec, arrays = make()
    arrays, checked = tree_map(mx.array, arrays), set()
    complaint(name, spec, arrays, partial(noting, checked))
    assert templates(name, spec, arrays) == checked


@pytest.mark.parametrize("name", ["ltc-1024-B4", "gru-1024-B32", "cfc-512-layered-B32", "ltc-1024-tenth-B256"])
def test_a_large_layer_is_checked_in_its_layout(name):
    name, spec, arrays = LARGE[name]()
    arrays, checked = tree_map(mx.array, arrays), set()
    complaint(name, spec, arrays, partial(noting, checked))
    sizes = {"H", "K", "COUNT", "HELD", "SCRATCH", "Z", "SLOTS", "WINDOW", "FIRST"}

    def layouts(calls):
        return {(kernel, tuple(pair for pair in template if pair[0] not in sizes)) for kernel, template in calls}

    assert layouts(templates(name, spec, arrays)) == layouts(checked)


GROUPS = {
    "ltc": partial(ltc, 64, 2048),
    "cfc": partial(cfc, 24, 2048, 20),
    "lstm": partial(gated, "lstm", 32, 2048),
    "quantum": partial(quantum, 64, 99),
}


@pytest.mark.parametrize("make", GROUPS.values(), ids=GROUPS)
def test_its_sequences_fill_a_group_and_a_part_of_one(make):
    name, spec, arrays = make()
    arrays, fused = tree_map(mx.array, arrays), RECURRENCES[name].fused
    small = fused.small_problem("metal", spec, arrays)
    lengths, variant = small.arrays["lengths"], small.variant
    tiles = [variant.forward, variant.backward] if name == "lstm" else [variant.tile]
    for tile in tiles:
        assert tile.rows > 1
        assert len(lengths) > tile.rows
        assert len(lengths) % tile.rows
    assert lengths.max() == first_use.STEPS
    assert lengths.min() == 1


def test_a_variant_is_checked_once_whatever_the_sequences_and_the_synapses():
    band = np.add.outer(np.arange(24), np.arange(24)) % 24 < 12
    for shift, T, B in ((0, 1, 40), (0, 9, 7000), (5, 3, 41)):  # as many synapses of each unit, to other units
        spec = LTCSpec(Synapses(np.roll(band, shift, axis=0)), Synapses(np.ones((2, 24))))
        assert complaint("ltc", spec, to_mlx(ltc_arrays(spec, T, B, lengths=True)))  # an idle device is wrong
        assert len(first_use.verdicts()) == 1
    spec = LTCSpec(spec.synapses, spec.sensory, solver="explicit")
    complaint("ltc", spec, to_mlx(ltc_arrays(spec, 1, 40, lengths=False)))
    assert len(first_use.verdicts()) == 2


def test_what_is_remembered_is_small_and_holds_no_layer():
    name, spec, arrays = ltc(100, 3, 0.5)
    held = weakref.ref(spec.synapses)
    complaint(name, spec, to_mlx(arrays))
    assert all(len(repr(key)) < 2000 for key in first_use.verdicts())
    del spec, arrays
    gc.collect()
    assert held() is None


def test_scans_that_are_launched_together_are_checked_together_and_others_apart():
    calls = set()
    problems = [cfc(8, 3, 9), cfc(8, 3, 9), cfc(8, 3, 9), cfc(5, 3, 9)]
    arrays = {"scans": [tree_map(mx.array, tree) for _, _, tree in problems]}
    complaint(_batched(RECURRENCES["cfc"]), tuple(spec for _, spec, _ in problems), arrays, partial(noting, calls))
    assert len(first_use.verdicts()) == 2
    assert {name for name, _ in calls} >= {"cfc_forward", "cfc_forward_together", "cfc_backward", "cfc_backward_together"}


@on_host
@pytest.mark.parametrize("sequence", [0, -1], ids=["first", "last"])
def test_one_wrong_sequence_is_found(sequence):
    """The last one is in a partially filled group."""

    def wrong(**text):
        kernel = metal_kernel(**text)

        def run(**call):
            outputs = kernel(**call)
            if text["name"] == "cfc_forward":
                outputs[0][:, sequence] += 0.01
            return outputs

        return run

    name, spec, arrays = cfc(6, 50, 7)
    arrays = tree_map(mx.array, arrays)
    assert complaint(name, spec, arrays, metal_kernel) is None
    assert "differs from the NumPy form" in complaint(name, spec, arrays, wrong)


@on_host
@pytest.mark.parametrize("make", [partial(ltc, 40, 5, 0.5, I=3), partial(gated, "gru", 40, 300), partial(layered, (4, 3, 2), 20)])
def test_a_part_of_the_units_passes_where_kernels_work(make, monkeypatch):
    """As for a layer too large to be checked completely."""
    monkeypatch.setattr(first_use, "part_within", lambda weights, most=0: 0.6)
    name, spec, arrays = make()
    for module in ("ltc", "cell", "cfc"):
        monkeypatch.setattr(f"ember_mlx.scans.{module}.fused.part_within", lambda weights, most=0: 0.6)
    arrays = tree_map(mx.array, arrays)
    assert complaint(name, spec, arrays, metal_kernel) is None
    with launches_planned() as planned:
        RECURRENCES[name].fused.forward("metal", spec, arrays)
    assert planned

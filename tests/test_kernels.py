"""Every kernel's own text, run on the CPU by the host runner and, where there is one, on the GPU."""

import inspect
from contextlib import ExitStack, contextmanager
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

import ember_mlx
from ember_mlx import CfC, NCPMap
from ember_mlx.kernels import first_use
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import FAMILIES, Tile, family_of, forced_tile
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import assert_close, assert_trees_close, to_mlx
from .metal_host import metal_kernel, unsupported_reason
from .tolerances import FORWARD, GRADIENT

HOST_REASON = unsupported_reason()
DEVICES = {
    "host": HOST_REASON and f"the host runner does not work here: {HOST_REASON}",
    "metal": None if mx.metal.is_available() else "no Metal device here",
    "cuda": None if mx.cuda.is_available() else "no CUDA device here",
}
PRESENT = [name for name, reason in DEVICES.items() if reason is None]
devices = pytest.mark.parametrize("device", PRESENT)
on_host = pytest.mark.skipif(HOST_REASON is not None, reason=str(DEVICES["host"]))
# lint, address spaces, access checker, three schedules bit for bit
verified = partial(metal_kernel, verify=True)


@contextmanager
def kernels_on(device, tile=None, maker=verified):
    """Kernels of a device, named, so that nothing falls back; "host" stands in for Metal."""
    with ExitStack() as stack:
        if device == "host":
            stack.enter_context(kernels_made_by("metal", maker))
        else:
            stack.enter_context(mx.stream(mx.gpu))
        token = forced_tile.set(tile)
        stack.callback(forced_tile.reset, token)
        yield "metal" if device == "host" else device


def served():
    for name, recurrence in RECURRENCES.items():
        for variant in recurrence.variants:
            spec, arrays = recurrence.problem(variant, 1, 1, 4)
            if recurrence.fused.refusal("metal", spec, to_mlx(arrays)) is None:
                yield name, variant


def compare(kind, recurrence, spec, arrays):
    """Outputs and every gradient against float64 NumPy."""
    outputs = recurrence.forward(spec, arrays)
    rng = np.random.default_rng(1)
    dy = tuple(rng.standard_normal(a.shape) for a in outputs)
    device_arrays = to_mlx(arrays)
    got = recurrence.fused.forward(kind, spec, device_arrays)
    for a, b in zip(got, outputs, strict=True):
        assert_close(a, b, FORWARD["float32"])
    gradients = recurrence.fused.backward(kind, spec, device_arrays, got, [mx.array(a.astype(np.float32)) for a in dy])
    assert_trees_close(gradients, recurrence.backward(spec, arrays, outputs, dy), GRADIENT["float32"])


CASES = list(served())
SIZES = {"T1-B2-H1": (1, 2, 1), "T7-B3-H31": (7, 3, 31), "T5-B4-H32": (5, 4, 32)}
TILES = {"streamed": Tile(64, 1, 8, False), "resident-rows2": Tile(128, 2, 4, True), "streamed-rows3": Tile(32, 3, 16, False)}


def sweep():
    """Every layout at every size on a GPU; on the host every layout at one odd size, and one layout at each size."""
    for device in PRESENT:
        for name, variant in CASES:
            for tile in TILES:
                for size in SIZES:
                    if device != "host" or size == "T7-B3-H31" or tile == "streamed":
                        yield pytest.param(device, name, variant, TILES[tile], SIZES[size], id=f"{name}-{variant}-{device}-{tile}-{size}")


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(("device", "name", "variant", "tile", "size"), list(sweep()))
def test_kernel_agrees_with_float64_numpy(device, name, variant, tile, size, lengths):
    recurrence = RECURRENCES[name]
    with kernels_on(device, tile) as kind:
        compare(kind, recurrence, *recurrence.problem(variant, *size, lengths=lengths))


@pytest.mark.parametrize("device", DEVICES)
def test_where_kernels_ran(device):
    """One skip, with its reason, for each kind of device on which the tests above did not run."""
    if DEVICES[device] is not None:
        pytest.skip(str(DEVICES[device]))


@devices
@pytest.mark.parametrize(("T", "B", "H"), [(33, 2, 100), (4, 2, 300), (2, 1, 1024)], ids=["H100", "H300", "H1024"])
@pytest.mark.parametrize("name", RECURRENCES)
def test_the_tables_own_layout(device, name, T, B, H):
    recurrence = RECURRENCES[name]
    with kernels_on(device, maker=metal_kernel) as kind:
        compare(kind, recurrence, *recurrence.problem(recurrence.variants[0], T, B, H, lengths=True))


@on_host
@pytest.mark.parametrize(
    ("name", "variant"), [("cfc", "dropout"), ("rnn", "relu"), ("lstm", "lstm_bidirectional"), ("gru", "gru")], ids=lambda text: text
)
def test_backward_in_blocks_of_steps_is_the_whole(monkeypatch, name, variant):
    recurrence = RECURRENCES[name]
    with kernels_on("host", Tile(64, 2, 4, False), metal_kernel) as kind:
        for block in (3, 4, 7):
            monkeypatch.setattr(inspect.getmodule(recurrence.fused.backward), "BLOCK_STEPS", block)
            for lengths in (False, True):
                compare(kind, recurrence, *recurrence.problem(variant, 7, 5, 6, lengths=lengths))


@devices
def test_gates_gradients_in_one_buffer_where_two_do_not_fit(device):
    recurrence = RECURRENCES["lstm"]
    with kernels_on(device, Tile(64, 3, 8, False)) as kind:
        compare(kind, recurrence, *recurrence.problem("lstm", 3, 4, 400, lengths=True))


@devices
@pytest.mark.parametrize("kind", ["dense", "layered"])
def test_layer_on_kernels(device, kind):
    """A whole layer, forward and backward, plain and compiled; its second derivative comes from the ops form."""
    mx.random.seed(0)
    layer = CfC(7, 3, backbone_units=9) if kind == "dense" else CfC(NCPMap(5, 4, 3, 3, seed=1))
    x, dt = mx.random.normal((3, 6, 3)), mx.random.uniform(0.1, 2, (3, 6))

    def loss(p, a, d):
        layer.update(p)
        y, state = layer(a, time_deltas=d, lengths=[6, 2, 4], return_sequences=True, return_state=True)
        return (y * y).sum() + sum(s.sum() for s in state)

    gradient = mx.value_and_grad(loss, argnums=(0, 1, 2))
    parameters = layer.parameters()
    with ember_mlx.use_backend("ops"):
        expected = gradient(parameters, x, dt)
        second = mx.grad(lambda s: gradient(parameters, s * x, dt)[1][1].sum())(mx.array(1.0))
        mx.eval(expected, second)
    with kernels_on(device, maker=metal_kernel) as name, ember_mlx.use_backend(name):
        assert_trees_close(gradient(parameters, x, dt), expected, 1e-4)
        got = mx.grad(lambda s: gradient(parameters, s * x, dt)[1][1].sum())(mx.array(1.0))
        assert_close(got, second, 1e-3)


class BrokenKernel:
    """A device whose compiler refuses every kernel."""

    def __init__(self, **_):
        pass

    def __call__(self, **_):
        raise RuntimeError("[metal::Device] Unable to build metal library: error: use of undeclared identifier 'simd_shuffle_xor'")


def wrong_kernel(**text):
    """A device that runs kernels, and gets them wrong."""
    kernel = metal_kernel(**text)
    return lambda **call: [a + 1 for a in kernel(**call)]


@on_host
@pytest.mark.parametrize(
    ("maker", "message"),
    [(BrokenKernel, "undeclared identifier 'simd_shuffle_xor'"), (wrong_kernel, "it differs from the NumPy form by ")],
    ids=["refused", "wrong"],
)
def test_a_kernel_that_does_not_work_gives_way_once_and_says_so(monkeypatch, maker, message, recwarn):
    monkeypatch.setattr("ember_mlx.scans.dispatch.gpu_kind", lambda: "metal")
    layer, x = CfC(5, 3, backbone_units=6), mx.random.normal((2, 4, 3))
    with ember_mlx.use_backend("ops"):
        expected = layer(x)
        mx.eval(expected)
    with kernels_made_by("metal", maker):
        with pytest.warns(RuntimeWarning, match="the metal kernel does not work here, slower MLX operations take its place: .*" + message):
            assert_close(layer(x), expected, 1e-6)
        recwarn.clear()
        assert_close(layer(x), expected, 1e-6)
        assert not recwarn.list
        assert any(verdict and message in verdict for verdict in first_use.verdicts().values())


@on_host
def test_auto_takes_kernels_where_the_device_is_a_gpu(monkeypatch):
    calls = []

    def counting(**text):
        kernel = metal_kernel(**text)
        return lambda **call: (calls.append(text["name"]), kernel(**call))[1]

    monkeypatch.setattr("ember_mlx.scans.dispatch.gpu_kind", lambda: "metal")
    layer, x = CfC(5, 3, backbone_units=6), mx.random.normal((2, 4, 3))
    with kernels_made_by("metal", counting):
        mx.eval(mx.grad(lambda a: layer(a).sum())(x))
    # the first use runs both ways on a small problem
    assert calls == ["cfc_forward", "cfc_backward"] * 2


@pytest.mark.skipif(mx.metal.is_available(), reason="there is a Metal device here")
def test_a_named_backend_never_gives_way():
    layer, x = CfC(5, 3), mx.zeros((2, 4, 3))
    message = r"\[CfC\] backend 'metal' cannot run: there is no metal device here; use 'auto' or 'ops'\."
    with ember_mlx.use_backend("metal"), pytest.raises(RuntimeError, match=message):
        layer(x)


@on_host
def test_sizes_that_no_kernel_serves():
    layer, x = CfC(9000, 3, backbone_layers=0), mx.zeros((1, 1, 3))
    with kernels_made_by("metal", metal_kernel), ember_mlx.use_backend("metal"), pytest.raises(RuntimeError, match="threadgroup memory"):
        layer(x)


def test_the_table_has_a_row_for_every_gpu():
    assert family_of("applegpu_g14s").name == "applegpu_g14"
    assert family_of("applegpu_g17").name == "applegpu"
    assert family_of("sm_90").name == "sm_90"
    assert family_of("something else") is FAMILIES[-1]


@on_host
@pytest.mark.parametrize("file", ["pointwise.metal", "product.metal", "sequences.metal", "cfc.metal", "gated.metal"])
def test_lint_names_file_and_line(file):
    """A line outside the subset, put into a file of metal/, is found where it stands."""
    from ember_mlx.kernels.loader import read_source

    lines = read_source(file).splitlines()
    text = "\n".join([*lines, "inline double half_of(double a) { return a / 2; }"])
    findings = metal_kernel("k", ["a"], ["b"], "b[0] = a[0];", header=text).lint()
    assert any(finding.line == len(lines) + 1 and "double" in str(finding) for finding in findings)
    assert not metal_kernel("k", ["a"], ["b"], "b[0] = a[0];", header="\n".join(lines)).lint()


@on_host
@pytest.mark.parametrize(
    ("maker", "status", "last"), [(metal_kernel, 0, "every kernel works here"), (BrokenKernel, 1, "of the kernels failed")]
)
def test_report_for_an_issue(monkeypatch, capsys, maker, status, last):
    from ember_mlx import __main__ as report

    monkeypatch.setattr(report, "gpu_kind", lambda: "metal")
    monkeypatch.setattr(report, "TIMED", (3, 2, 8))
    monkeypatch.setattr(report, "REPETITIONS", 1)
    monkeypatch.setattr("sys.argv", ["ember_mlx", "--check"])
    with kernels_made_by("metal", maker):
        assert report.main() == status
    out = capsys.readouterr().out.strip().splitlines()
    assert out[-1].endswith(last)
    assert out[0].startswith(f"ember_mlx {ember_mlx.__version__}, mlx ")
    lines = [line for line in out if line.startswith(tuple(f"{name} " for name in RECURRENCES))]
    assert len(lines) == len(CASES)
    if status:
        assert all("FAILED: " in line and "undeclared identifier" in line for line in lines)


def test_report_without_a_gpu(capsys, monkeypatch):
    from ember_mlx import __main__ as report

    monkeypatch.setattr(report, "gpu_kind", lambda: None)
    monkeypatch.setattr("sys.argv", ["ember_mlx", "--check"])
    assert report.main() == 2
    assert "no kernel was checked" in capsys.readouterr().out

"""Every kernel's source, run on the CPU by the host runner and, if there is one, on the GPU."""

from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import ember_mlx
from ember_mlx import LTC, CfC, CTRQNet, NCPMap
from ember_mlx.kernels import first_use
from ember_mlx.kernels.loader import kernels_made_by, read_source, source_folder
from ember_mlx.kernels.tiles import FAMILIES, THREADGROUP_BYTES, Tile, family_of, forced_tile
from ember_mlx.scans.cfc import fused
from ember_mlx.scans.cfc.kernel_layout import Variant
from ember_mlx.scans.cfc.spec import CfCSpec
from ember_mlx.scans.dispatch import scan
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import assert_close, assert_trees_close, to_mlx, to_numpy
from .metal_host import lint_file, metal_kernel, unsupported_reason
from .tolerances import FORWARD, GRADIENT

HOST_REASON = unsupported_reason()
DEVICES = {
    "host": HOST_REASON and f"the host runner does not work here: {HOST_REASON}",
    "metal": None if mx.metal.is_available() else "no Metal device here",
    "cuda": None if mx.cuda.is_available() else "no CUDA device here",
}
KERNEL_FILES = sorted(path.name for path in source_folder().glob("*.metal"))
PRESENT = [name for name, reason in DEVICES.items() if reason is None]
devices = pytest.mark.parametrize("device", PRESENT)
on_host = pytest.mark.skipif(HOST_REASON is not None, reason=str(DEVICES["host"]))
# lint, address spaces, access checker, three schedules bit for bit
verified = partial(metal_kernel, verify=True)


@contextmanager
def kernels_on(device, tile=None, maker=verified):
    """Select a device's kernels by name, so that there is no fallback; "host" replaces Metal."""
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
    """Every layout at every size on a GPU; on the host every layout at one odd size, and one layout at one of the others in turn."""
    for device in PRESENT:
        for number, (name, variant) in enumerate(CASES):
            others = [size for size in SIZES if size != "T7-B3-H31"]
            for tile in TILES:
                for size in SIZES:
                    if device != "host" or size == "T7-B3-H31" or (tile == "streamed" and size == others[number % len(others)]):
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


BY_STEP = Tile(64, 0, 8, False)


def goes_by_step(name, variant):
    spec, _ = RECURRENCES[name].problem(variant, 1, 1, 4)
    return any(tile.rows == 0 for tile in RECURRENCES[name].fused.layouts(FAMILIES[0], spec))


BY_STEP_CASES = [case for case in CASES if goes_by_step(*case)]


@devices
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(("name", "variant"), BY_STEP_CASES, ids=[f"{n}-{v}" for n, v in BY_STEP_CASES])
def test_step_by_step_agrees_with_float64_numpy(device, name, variant, lengths):
    recurrence = RECURRENCES[name]
    with kernels_on(device, BY_STEP, verified if lengths else metal_kernel) as kind:
        compare(kind, recurrence, *recurrence.problem(variant, 3, 2, 5, lengths=lengths))


HALF_CASES = [("default", Tile(64, 2, 8, False, True)), ("default", Tile(128, 1, 4, True)), ("pure", Tile(64, 1, 8, True, True))]
HALF_CASES += [
    ("layered", Tile(64, 1, 8, True, True)),
    ("layered_mixed_memory", Tile(64, 1, 4, True, True, False)),
    ("mixed_memory", BY_STEP),
]


@devices
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("variant", "tile"), HALF_CASES, ids=[f"{v}-{'-'.join(map(str, t))}" for v, t in HALF_CASES])
def test_inputs_and_weights_in_half_precision(device, variant, tile, dtype):
    """Against float64 NumPy on the same rounded numbers: outputs are float32, gradients in the arrays' own dtypes."""
    recurrence, name = RECURRENCES["cfc"], str(dtype).removeprefix("mlx.core.")
    spec, arrays = recurrence.problem(variant, 7, 3, 13, lengths=True)
    states = ("dt", "h0", "c0", "lengths")
    given = {path: a if path in states else a.astype(dtype) for path, a in tree_flatten(to_mlx(arrays))}
    exact = tree_unflatten([(path, to_numpy(a).astype(np.int32 if path == "lengths" else np.float64)) for path, a in given.items()])
    outputs = recurrence.forward(spec, exact)
    dy = [np.random.default_rng(1).standard_normal(a.shape) for a in outputs]
    expected = dict(tree_flatten(recurrence.backward(spec, exact, outputs, tuple(dy))))
    paths = sorted(expected)

    def run(*leaves):
        return scan(recurrence, spec, tree_unflatten(list((given | dict(zip(paths, leaves, strict=True))).items())))

    with kernels_on(device, tile) as kind, ember_mlx.use_backend(kind):
        got, gradients = mx.vjp(run, [given[path] for path in paths], [mx.array(a.astype(np.float32)) for a in dy])
        mx.eval(got, gradients)
    for a, b in zip(got, outputs, strict=True):
        assert a.dtype == mx.float32
        assert_close(a, b, FORWARD[name])
    for path, gradient in zip(paths, gradients, strict=True):
        assert gradient.dtype == given[path].dtype
        assert_close(gradient, expected[path], GRADIENT[name], path)


@devices
@pytest.mark.parametrize("family", ["sm_90", "applegpu_g13"])
@pytest.mark.parametrize(
    ("variant", "T", "B", "H"),
    [
        ("default", 33, 2, 100),
        ("default", 4, 2, 300),
        ("mixed_memory", 3, 2, 64),
        ("layered", 5, 3, 56),
        ("layered_mixed_memory", 3, 2, 56),
    ],
)
def test_the_tables_own_layout(device, monkeypatch, family, variant, T, B, H):
    recurrence = RECURRENCES["cfc"]
    monkeypatch.setattr(fused, "current_family", lambda: family_of(family))
    with kernels_on(device, maker=metal_kernel) as kind:
        compare(kind, recurrence, *recurrence.problem(variant, T, B, H, lengths=True))


@devices
@pytest.mark.parametrize(("variant", "H"), [("default", 1024), ("heads_only", 1024), ("layered", 480)])
def test_the_most_units_in_one_launch(device, variant, H):
    """And 1027 backbone units: the layout serves them within threadgroup memory, whether or not the table would choose it."""
    recurrence = RECURRENCES["cfc"]
    with kernels_on(device, Tile(256, 1, 8, False), maker=metal_kernel) as kind:
        compare(kind, recurrence, *recurrence.problem(variant, 2, 1, H))


@devices
@pytest.mark.parametrize("variant", ["default", "mixed_memory"])
def test_1024_units_by_the_table(device, variant):
    recurrence = RECURRENCES["cfc"]
    spec, arrays = recurrence.problem(variant, 2, 1, 1024)
    with kernels_on(device, maker=metal_kernel) as kind:
        assert fused.variant_of(kind, spec, to_mlx(arrays)).tile.rows == 0
        compare(kind, recurrence, spec, arrays)


@on_host
def test_backward_in_blocks_of_steps_is_the_whole(monkeypatch):
    recurrence = RECURRENCES["cfc"]
    with kernels_on("host", Tile(64, 2, 4, False), metal_kernel) as kind:
        for block in (3, 4, 7):
            monkeypatch.setattr(fused, "block_steps", lambda variant, batch, block=block: block)
            for lengths in (False, True):
                compare(kind, recurrence, *recurrence.problem("dropout", 7, 5, 6, lengths=lengths))


LAYERS = {
    "dense": lambda: CfC(7, 3, backbone_units=9),
    "layered": lambda: CfC(NCPMap(5, 4, 3, 3, seed=1)),
    "layered-mixed": lambda: CfC(NCPMap(5, 4, 3, 3, seed=1), mixed_memory=True),
    "ltc": lambda: LTC(7, 3),
    "ltc-sparse": lambda: LTC(NCPMap(5, 4, 3, 3, seed=1), output_mapping=None),
    "ltc-mixed": lambda: LTC(NCPMap(5, 4, 3, 3, seed=1), mixed_memory=True),
    "quantum": lambda: CTRQNet(NCPMap(5, 4, 3, 3, seed=1)),
}


@devices
def test_layer_in_half_precision_on_kernels(device):
    """In bfloat16 x and the weights reach the kernels as they are; y and dx come back in it, the state in float32."""
    mx.random.seed(0)
    layer, x = CfC(7, 3, backbone_units=9, return_state=True), mx.random.normal((3, 6, 3)).astype(mx.bfloat16)
    layer.set_dtype(mx.bfloat16)
    given = []

    def noting(**text):
        kernel = metal_kernel(**text)

        def call(**arguments):
            given.append([text["name"], *(a.dtype for a in arguments["inputs"][:2])])
            return kernel(**arguments)

        return call

    def loss(a):
        y, state = layer(a)
        return y.astype(mx.float32).sum() + sum(s.sum() for s in state), (y, *state)

    with ember_mlx.use_backend("ops"):
        (_, expected), dx = mx.value_and_grad(loss)(x)
        mx.eval(expected, dx)
    with kernels_on(device, Tile(64, 1, 8, True, True), noting) as name, ember_mlx.use_backend(name):
        (_, got), got_dx = mx.value_and_grad(loss)(x)
        mx.eval(got, got_dx)
    assert [a.dtype for a in got] == [mx.bfloat16, mx.float32, mx.float32]
    assert got_dx.dtype == mx.bfloat16
    assert_trees_close({"y": got, "dx": got_dx}, {"y": expected, "dx": dx}, FORWARD["bfloat16"])
    if device == "host":
        assert given[0] == ["cfc_forward", mx.bfloat16, mx.bfloat16]


@devices
@pytest.mark.parametrize("kind", LAYERS)
def test_layer_on_kernels(device, kind):
    """A whole layer, forward and backward, plain and compiled; its second derivative comes from the ops form."""
    mx.random.seed(0)
    layer = LAYERS[kind]()
    layer.eval()  # without noise
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
    """A device that runs kernels with wrong results."""
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
        with pytest.warns(RuntimeWarning, match="the metal kernel does not work here; slower MLX operations are used.*" + message):
            assert_close(layer(x), expected, 1e-6)
        recwarn.clear()
        assert_close(layer(x), expected, 1e-6)
        assert not recwarn.list
        assert any(verdict and message in verdict for verdict in first_use.verdicts().values())


@pytest.mark.parametrize("wrong", ["outputs", "gradients"])
def test_a_kernel_that_gives_nan_does_not_pass(wrong):
    """For any position among the results: Python's max ignores a NaN that is not first."""
    recurrence, (spec, arrays) = RECURRENCES["lstm"], RECURRENCES["lstm"].problem("lstm", 3, 2, 4)

    def forward(_, spec, arrays):
        h, c = recurrence.ops(spec, arrays)
        return [h, c + float("nan") if wrong == "outputs" else c]

    def backward(_, spec, arrays, outputs, dy):
        paths, leaves = zip(*tree_flatten(arrays), strict=True)
        pull = mx.vjp(lambda *a: recurrence.ops(spec, tree_unflatten(list(zip(paths, a, strict=True)))), list(leaves), dy)[1]
        return tree_unflatten([(p, g + float("nan") if wrong == "gradients" and p == "b" else g) for p, g in zip(paths, pull, strict=True)])

    broken = recurrence._replace(fused=recurrence.fused._replace(forward=forward, backward=backward))
    errors = first_use.check("metal", broken, spec, arrays)
    assert [bool(np.isnan(error)) for error in errors] == [wrong == "outputs", wrong == "gradients"]
    assert not first_use.works(errors)


def counting(calls):
    """A device that records the names of its kernels."""

    def make(**text):
        kernel = metal_kernel(**text)
        return lambda **call: (calls.append(text["name"]), kernel(**call))[1]

    return make


@on_host
@pytest.mark.parametrize(
    ("kind", "slopes"),
    [
        ("dense", ["cfc_activate", "cfc_slopes"]),
        ("layered", ["cfc_slopes"]),
        ("layered-mixed", ["cfc_slopes", "memory_gate_slopes"]),
    ],
)
def test_a_scan_is_one_launch_each_way_for_all_layers(kind, slopes):
    calls, layer, x = [], LAYERS[kind](), mx.random.normal((2, 4, 3))
    with kernels_made_by("metal", counting(calls)), ember_mlx.use_backend("metal"):
        mx.eval(mx.grad(lambda a: layer(a).sum())(x))
    assert [calls[0], *sorted(calls[1:-1]), calls[-1]] == ["cfc_forward", *slopes, "cfc_backward"]


@on_host
def test_auto_takes_kernels_where_the_device_is_a_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr("ember_mlx.scans.dispatch.gpu_kind", lambda: "metal")
    layer, x = CfC(5, 3, backbone_units=6), mx.random.normal((2, 4, 3))
    with kernels_made_by("metal", counting(calls)):
        mx.eval(mx.grad(lambda a: layer(a).sum())(x))
    # the first use runs both ways on a small problem; the slopes come between the scans
    assert calls == ["cfc_forward", "cfc_activate", "cfc_slopes", "cfc_backward"] * 2


@pytest.mark.skipif(mx.metal.is_available(), reason="there is a Metal device here")
def test_a_named_backend_never_gives_way():
    layer, x = CfC(5, 3), mx.zeros((2, 4, 3))
    message = r"\[CfC\] backend 'metal' cannot run: there is no metal device; use 'auto' or 'ops'\."
    with ember_mlx.use_backend("metal"), pytest.raises(RuntimeError, match=message):
        layer(x)


@on_host
def test_sizes_that_no_threadgroup_serves_go_step_by_step():
    layer, x = CfC(2100, 3, backbone_layers=0), mx.ones((1, 1, 3))
    with ember_mlx.use_backend("ops"):
        expected = layer(x)
        mx.eval(expected)
    with kernels_made_by("metal", metal_kernel), ember_mlx.use_backend("metal"):
        assert_close(layer(x), expected, FORWARD["float32"])


def test_arrays_that_an_int_cannot_index_are_refused():
    spec, arrays = RECURRENCES["cfc"].problem("heads_only", 1, 1, 64)
    arrays = to_mlx(arrays)
    assert fused.refusal("metal", spec, arrays) is None
    long = arrays | {"dt": mx.broadcast_to(arrays["dt"], (2**16 - 1, 2**7))}
    assert fused.refusal("metal", spec, long) == "an array of 2147483648 elements is too large for int indices"


def test_blocks_of_steps_bound_the_memory():
    variant = Variant(CfCSpec(((0, 64),)), 128, 1, Tile(256, 1, 8, True))
    assert fused.block_steps(variant, 32) > 1000
    assert 100 < fused.block_steps(variant, 256) < 1000
    assert fused.block_steps(variant._replace(Z=10**7), 256) == 1


def tile_for(family, H, Z=128, depth=1, batch=32, half=False, **options):
    return fused.choose_tile(family_of(family), CfCSpec(((0, H),), **options), Z, depth, batch, half)


def test_the_table_chooses_by_registers_memory_and_time():
    assert tile_for("sm_90", 64) == Tile(256, 1, 8, True)
    assert tile_for("sm_90", 64, batch=256).rows == 2  # 132 cores: 256 sequences in one wave
    assert not tile_for("sm_90", 64, mixed_memory=True).gates_resident
    assert tile_for("sm_90", 128, half=True) == Tile(256, 1, 8, True, True)  # two weights a register
    assert tile_for("sm_90", 64, half=True) == Tile(256, 1, 8, True)  # not needed
    assert tile_for("applegpu_g13", 64) == Tile(256, 4, 8, False)  # 164 KB: not in a core's registers, so each weight for 4 sequences
    assert tile_for("applegpu_g13", 1024, 1024).rows == 0
    for family in FAMILIES:
        for H in (1, 31, 64, 256, 1024):
            for Z, depth in ((0, 0), (128, 1), (1024, 2)):
                tile = fused.choose_tile(family, CfCSpec(((0, H),)), Z or H, depth, 64, False)
                assert tile.rows == 0 or Variant(CfCSpec(((0, H),)), Z or H, depth, tile).threadgroup_bytes <= THREADGROUP_BYTES


def test_the_table_has_a_row_for_every_gpu():
    assert family_of("applegpu_g14s").name == "applegpu_g14"
    assert family_of("applegpu_g17").name == "applegpu"
    assert family_of("sm_90").name == "sm_90"
    assert family_of("something else") is FAMILIES[-1]


@on_host
@pytest.mark.parametrize("file", KERNEL_FILES)
def test_lint_names_file_and_line(file):
    """A line outside the subset, inserted into a file of metal/, is reported with its position; the files themselves are clean."""
    lines = read_source(file).splitlines()
    assert not lint_file(source_folder() / file)
    with TemporaryDirectory() as folder:
        path = Path(folder) / file
        path.write_text("\n".join([*lines, "inline double half_of(double a) { return a / 2; }", ""]))
        assert lint_file(path)[0] == f"{path}:{len(lines) + 1}: double: Metal has no double: `double`"


def test_every_choice_of_the_table_is_among_the_layouts_that_are_checked():
    for family in FAMILIES:
        for options in ({}, {"mode": "pure"}, {"mixed_memory": True}):
            chosen = {
                tile_for(family.name, H, Z, depth, batch, half, **options)
                for H in (3, 64, 200, 700)
                for Z, depth in ((H, 0), (128, 1), (1000, 2))
                for batch in (1, 17, 300)
                for half in (False, True)
            }
            assert chosen <= set(fused.layouts(family_of(family.name), CfCSpec(((0, 1),), **options)))

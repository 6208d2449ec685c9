"""Kernels of every kind, in the styles common for MLX, compared with NumPy."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_host import SCHEDULES, LintError, WriteConflictError, metal_kernel, run_checked, unsupported_reason

pytestmark = pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason()))
FLOATS = [mx.float32, mx.float16, mx.bfloat16]
TOLERANCE = {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 2e-2}
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def name_of(dtype):
    return str(dtype).removeprefix("mlx.core.")


def as_float(array):
    return np.array(array.astype(mx.float32)).astype(np.float64)


def run(source, inputs, shapes, dtypes, header="", grid=None, group=32, template=None, plain=False, construction=None, **options):
    """Run a kernel checked from end to end and return its outputs: x, x1, x2... in, y, y1... out."""
    names = ["x" if i == 0 else f"x{i}" for i in range(len(inputs))]
    output_names = ["y" if i == 0 else f"y{i}" for i in range(len(shapes))]
    kernel = metal_kernel("trial", names, output_names, source, header, **(construction or {}))
    grid = grid or (math.prod(shapes[0]), 1, 1)
    group = group if isinstance(group, tuple) else (group, 1, 1)
    call = {"inputs": inputs, "template": template, "grid": grid, "threadgroup": group, "output_shapes": shapes, "output_dtypes": dtypes}
    return kernel(**call, **options) if plain else kernel.run_checked(**call, **options)


# Types and arrays


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_elementwise_in_every_float_type(dtype):
    x = mx.random.normal((3, 37), key=mx.random.key(0)).astype(dtype)
    source = "uint i = thread_position_in_grid.x; T v = x[i]; y[i] = T(metal::exp(-v * v)) + static_cast<T>(metal::tanh(v));"
    y = run(source, [x], [x.shape], [dtype], template=[("T", dtype)])[0]
    assert y.dtype == dtype
    v = as_float(x)
    np.testing.assert_allclose(as_float(y), np.exp(-v * v) + np.tanh(v), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


INTEGERS = [mx.int8, mx.uint8, mx.int16, mx.uint16, mx.int32, mx.uint32, mx.int64, mx.uint64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=name_of)
def test_integers(dtype):
    numpy_type = np.dtype(name_of(dtype))
    limits = np.iinfo(numpy_type)
    x = np.array([limits.min, limits.min + 1, 0, 1, 2, 3, 85, limits.max - 1, limits.max], numpy_type)
    source = "uint i = thread_position_in_grid.x; y[i] = min(x[i], T(5)) ^ (x[i] >> 1); y1[i] = popcount(x[i]); y2[i] = clz(x[i]);"
    y, bits, zeros = run(source, [mx.array(x)], [x.shape] * 3, [dtype] * 3, template=[("T", dtype)])
    np.testing.assert_array_equal(np.array(y), np.minimum(x, numpy_type.type(5)) ^ (x >> 1))
    width = limits.bits
    patterns = [int(v) & (2**width - 1) for v in x]
    assert bits.tolist() == [p.bit_count() for p in patterns]
    assert zeros.tolist() == [width - p.bit_length() for p in patterns]


def test_bool_and_complex():
    x = mx.array([1 + 2j, -1j, 3, 0.5 + 0.5j] * 2, mx.complex64)
    flags = mx.array([True, False] * 4)
    source = """
        uint i = thread_position_in_grid.x;
        complex64_t v = x[i] * x[i];
        if (!x1[i]) v = complex64_t(x[i].imag, x[i].real);
        y[i] = v;
        y1[i] = !x1[i];
    """
    y, other = run(source, [x, flags], [x.shape] * 2, [mx.complex64, mx.bool_])
    values, chosen = np.array(x), np.array(flags)
    np.testing.assert_allclose(np.array(y), np.where(chosen, values * values, values.imag + 1j * values.real), rtol=1e-6)
    np.testing.assert_array_equal(np.array(other), ~chosen)


def test_python_scalars_and_small_arrays_come_by_reference_and_in_constant_memory():
    source = "uint i = thread_position_in_grid.x; y[i] = x[i] * x1 + float(x2) + (x3 ? x4[1] : 0.0f);"
    x = mx.arange(16, dtype=mx.float32)
    y = run(source, [x, 2.5, 3, True, mx.array([7.0, 8.0])], [x.shape], [mx.float32])[0]
    np.testing.assert_array_equal(np.array(y), np.arange(16) * 2.5 + 3 + 8)


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_shapes_and_strides(contiguous):
    x = mx.arange(60, dtype=mx.float32).reshape(3, 4, 5).transpose(2, 0, 1)[::2]
    source = """
        uint i = thread_position_in_grid.x;
        y[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)];
        if (i < 3) { y1[i] = x_shape[i]; y1[3 + i] = int(x_strides[i]); }
        if (i == 0) y1[6] = x_ndim;
    """
    y, meta = run(source, [x], [x.shape, (7,)], [mx.float32, mx.int32], construction={"ensure_row_contiguous": contiguous})
    np.testing.assert_array_equal(np.array(y), np.array(x))
    assert meta.tolist() == [3, 3, 4, *([12, 4, 1] if contiguous else [2, 20, 5]), 3]


def test_broadcast_and_bfloat_strides():
    x = mx.broadcast_to(mx.arange(4).astype(mx.bfloat16), (3, 4))
    source = "uint i = thread_position_in_grid.x; y[i] = x[i / 4 * x_strides[0] + i % 4 * x_strides[1]]; y1[i] = x_strides[0];"
    y, strides = run(source, [x], [(12,)] * 2, [mx.bfloat16, mx.int64], construction={"ensure_row_contiguous": False})
    assert y.tolist() == [0, 1, 2, 3] * 3
    assert strides.tolist() == [0] * 12


def test_numpy_inputs_and_init_value():
    source = "uint i = thread_position_in_grid.x; if (i % 2) y[i] = x[i];"
    y = run(source, [np.arange(8, dtype=np.float32)], [(8,)], [mx.float32], init_value=-1)[0]
    assert y.tolist() == [-1, 1, -1, 3, -1, 5, -1, 7]


@pytest.mark.parametrize("dtype", [*FLOATS, mx.int32, mx.bool_], ids=name_of)
def test_unwritten_outputs_show(dtype):
    y = run("if (thread_position_in_grid.x > 3) y[thread_position_in_grid.x] = 0;", [], [(8,)], [dtype], plain=True)[0]
    assert all(v != v or v in (-1, True) for v in y[:4].tolist())
    assert y[4:].tolist() == [0] * 4


# Grids, threadgroups, built-in arguments


def test_grid_edges_make_smaller_threadgroups():
    source = """
        uint3 p = thread_position_in_grid, n = threads_per_grid;
        uint i = (p.z * n.y + p.y) * n.x + p.x;
        y[i] = threads_per_threadgroup.x * 100 + threads_per_threadgroup.y * 10 + dispatch_threads_per_threadgroup.x;
        y1[i] = thread_index_in_threadgroup;
        y2[i] = threadgroup_position_in_grid.x + 10 * threadgroup_position_in_grid.y + 100 * threadgroup_position_in_grid.z;
    """
    nx, ny, nz = 5, 3, 2
    sizes, index, place = run(source, [], [(nz, ny, nx)] * 3, [mx.uint32] * 3, grid=(nx, ny, nz), group=(2, 2, 1))
    z, y, x = np.indices((nz, ny, nx))
    width, height = np.minimum(2, nx - x // 2 * 2), np.minimum(2, ny - y // 2 * 2)
    np.testing.assert_array_equal(np.array(sizes), width * 100 + height * 10 + 2)
    np.testing.assert_array_equal(np.array(index), x % 2 + y % 2 * width)
    np.testing.assert_array_equal(np.array(place), x // 2 + 10 * (y // 2) + 100 * z)


def test_threadgroup_is_never_larger_than_the_grid():
    y = run("y[thread_position_in_grid.x] = threads_per_threadgroup.x;", [], [(5,)], [mx.uint32], group=256)[0]
    assert y.tolist() == [5] * 5


def test_simdgroup_and_quadgroup_arguments():
    source = """
        uint i = thread_position_in_grid.x;
        y[i] = simdgroup_index_in_threadgroup * 1000 + thread_index_in_simdgroup * 10 + simdgroups_per_threadgroup;
        y1[i] = quadgroup_index_in_threadgroup * 10 + thread_index_in_quadgroup;
        y2[i] = threads_per_simdgroup + thread_execution_width;
    """
    y, quads, width = run(source, [], [(96,)] * 3, [mx.uint32] * 3, group=96)
    i = np.arange(96)
    np.testing.assert_array_equal(np.array(y), i // 32 * 1000 + i % 32 * 10 + 3)
    np.testing.assert_array_equal(np.array(quads), i // 4 * 10 + i % 4)
    assert set(width.tolist()) == {64}


def test_bad_dispatches_are_refused():
    for grid, group, words in (((0, 1, 1), (1, 1, 1), "above zero"), ((2048, 1, 1), (2048, 1, 1), "1024"), ((8, 1), (8, 1, 1), "three")):
        with pytest.raises(ValueError, match=words):
            run("y[thread_position_in_grid.x] = 0;", [], [(8,)], [mx.float32], grid=grid, group=group)


# Threadgroup memory


def test_tree_reduction_in_threadgroup_memory():
    source = f"""
        uint t = thread_index_in_threadgroup;
        threadgroup float partial[N];
        partial[t] = x[thread_position_in_grid.x];
        {BARRIER}
        for (uint step = N / 2; step > 0; step /= 2) {{
          if (t < step) partial[t] += partial[t + step];
          {BARRIER}
        }}
        if (t == 0) y[threadgroup_position_in_grid.x] = partial[0];
    """
    x = mx.random.normal((4, 128), key=mx.random.key(1))
    y = run(source, [x], [(4,)], [mx.float32], grid=(512, 1, 1), group=128, template=[("N", 128)])[0]
    np.testing.assert_allclose(as_float(y), as_float(x).sum(1), rtol=1e-5, atol=1e-5)


def test_threadgroup_arrays_of_many_kinds_reach_helper_functions():
    header = """
        struct Pair { float value; int index; };
        template <typename T, int N>
        inline T last(threadgroup const T* p) { return p[N - 1]; }
        inline void put(threadgroup Pair& pair, float value, int index) { pair.value = value; pair.index = index; }
        inline void fill(threadgroup float (*rows)[4], uint row, device const float* from) {
          for (int k = 0; k < 4; k++) rows[row][k] = from[row * 4 + k];
        }
    """
    source = f"""
        uint t = thread_index_in_threadgroup;
        threadgroup T flat[N], other[2 * N];
        threadgroup float rows[N][4];
        threadgroup Pair pairs[N];
        threadgroup float4 vectors[2];
        threadgroup int single;
        flat[t] = T(t); other[t] = T(2 * t); other[t + N] = T(t);
        fill(rows, t, x);
        put(pairs[t], x[t], int(t));
        if (t < 2) vectors[t] = float4(float(t));
        if (t == 0) single = 7;
        {BARRIER}
        Pair mirrored = pairs[N - 1 - t];
        y[t] = float(last<T, N>(flat)) + float(other[t]) + rows[N - 1 - t][t % 4] + mirrored.value + vectors[t % 2].y + float(single);
        y1[t] = mirrored.index;
    """
    n = 16
    x = mx.arange(4 * n, dtype=mx.float32)
    y, index = run(source, [x], [(n,)] * 2, [mx.float32, mx.int32], header=header, template=[("T", mx.bfloat16), ("N", n)], group=n)
    t = np.arange(n)
    np.testing.assert_array_equal(as_float(y), (n - 1) + 2 * t + ((n - 1 - t) * 4 + t % 4) + (n - 1 - t) + t % 2 + 7)
    np.testing.assert_array_equal(np.array(index), n - 1 - t)


def test_threadgroup_memory_is_counted():
    kernel = metal_kernel("big", [], ["y"], "threadgroup float a[N]; uint t = thread_index_in_threadgroup; a[t] = t; y[t] = a[t];")
    call = {"inputs": [], "grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32]}
    assert kernel(**call, template=[("N", 8192)])[0].tolist() == list(range(8))
    assert kernel.last.threadgroup_bytes == 32768


# Simdgroup functions


SIMD = {
    "sum": ("simd_sum(v)", lambda v, _: np.repeat(v.sum(1, keepdims=True), 32, 1)),
    "product": ("simd_product(v)", lambda v, _: np.repeat(v.prod(1, keepdims=True), 32, 1)),
    "max": ("simd_max(v)", lambda v, _: np.repeat(v.max(1, keepdims=True), 32, 1)),
    "min": ("simd_min(v)", lambda v, _: np.repeat(v.min(1, keepdims=True), 32, 1)),
    "inclusive-sum": ("simd_prefix_inclusive_sum(v)", lambda v, _: v.cumsum(1)),
    "exclusive-sum": ("simd_prefix_exclusive_sum(v)", lambda v, _: v.cumsum(1) - v),
    "inclusive-product": ("simd_prefix_inclusive_product(v)", lambda v, _: v.cumprod(1)),
    "shuffle": ("simd_shuffle(v, ushort(31 - lane))", lambda v, _: v[:, ::-1]),
    "shuffle-xor": ("simd_shuffle_xor(v, 5)", lambda v, i: v[:, i ^ 5]),
    "shuffle-down": ("simd_shuffle_down(v, 3)", lambda v, i: np.where(i + 3 < 32, v[:, (i + 3) % 32], v)),
    "shuffle-up": ("simd_shuffle_up(v, 2)", lambda v, i: np.where(i >= 2, v[:, i - 2], v)),
    "rotate-down": ("simd_shuffle_rotate_down(v, 3)", lambda v, i: v[:, (i + 3) % 32]),
    "rotate-up": ("simd_shuffle_rotate_up(v, 3)", lambda v, i: v[:, i - 3]),
    "fill-up": ("simd_shuffle_and_fill_up(v, -v, 4)", lambda v, i: np.where(i >= 4, v[:, i - 4], -v[:, i - 4])),
    "fill-down": ("simd_shuffle_and_fill_down(v, -v, 4)", lambda v, i: np.where(i < 28, v[:, (i + 4) % 32], -v[:, (i + 4) % 32])),
    "broadcast": ("simd_broadcast(v, 9)", lambda v, _: np.repeat(v[:, 9:10], 32, 1)),
    "broadcast-first": ("simd_broadcast_first(v)", lambda v, _: np.repeat(v[:, :1], 32, 1)),
    "any": ("T(simd_any(v > 1.2f))", lambda v, _: np.repeat((v > 1.2).any(1, keepdims=True), 32, 1)),
    "all": ("T(simd_all(v > 0.6f))", lambda v, _: np.repeat((v > 0.6).all(1, keepdims=True), 32, 1)),
    "ballot": (
        "T(popcount(uint(uint64_t(simd_ballot(v > 1.0f)))))",
        lambda v, _: np.repeat((v > 1).sum(1, keepdims=True), 32, 1),
    ),
    "is-first": ("T(simd_is_first())", lambda v, i: np.broadcast_to(i == 0, v.shape)),
    "quad-sum": ("quad_sum(v)", lambda v, _: np.repeat(v.reshape(-1, 8, 4).sum(2), 4, 1)),
    "quad-max": ("quad_max(v)", lambda v, _: np.repeat(v.reshape(-1, 8, 4).max(2), 4, 1)),
    "quad-broadcast": ("quad_broadcast(v, 2)", lambda v, i: v[:, i // 4 * 4 + 2]),
    "quad-shuffle-xor": ("quad_shuffle_xor(v, 1)", lambda v, i: v[:, i ^ 1]),
    "quad-shuffle-up": ("quad_shuffle_up(v, 1)", lambda v, i: np.where(i % 4 >= 1, v[:, i - 1], v)),
    "quad-any": ("T(quad_any(v > 1.2f))", lambda v, _: np.repeat((v > 1.2).reshape(-1, 8, 4).any(2), 4, 1)),
    "quad-all": ("T(quad_all(v > 0.7f))", lambda v, _: np.repeat((v > 0.7).reshape(-1, 8, 4).all(2), 4, 1)),
}


@pytest.fixture(scope="module")
def simdgroup_results():
    """All expressions in one kernel, since compiling takes longer than running."""
    x = mx.random.uniform(0.5, 1.5, (3, 32), key=mx.random.key(2))
    start = "uint i = thread_position_in_grid.x, lane = thread_index_in_simdgroup; T v = x[i] + 0 * T(lane);\n"
    source = start + "\n".join(f"y[{k} * 96 + i] = {expression};" for k, (expression, _) in enumerate(SIMD.values()))
    y = run(source, [x], [(len(SIMD), 3, 32)], [mx.float32], grid=(96, 1, 1), template=[("T", mx.float32)], group=64)[0]
    return as_float(x), dict(zip(SIMD, as_float(y), strict=True))


@pytest.mark.parametrize("name", SIMD)
def test_simdgroup_functions(name, simdgroup_results):
    x, results = simdgroup_results
    np.testing.assert_allclose(results[name], SIMD[name][1](x, np.arange(32)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.int32, mx.uint32, mx.int16, mx.uint8], ids=name_of)
def test_simdgroup_functions_of_other_types(dtype):
    x = (mx.arange(64) % 3).astype(dtype)
    source = "uint i = thread_position_in_grid.x; y[i] = simd_sum(x[i]) + simd_shuffle_xor(x[i], 1); y1[i] = simd_max(x[i]);"
    y, top = run(source, [x], [x.shape] * 2, [dtype] * 2, group=64)
    v = as_float(x).reshape(2, 32)
    np.testing.assert_array_equal(as_float(y).reshape(2, 32), v.sum(1, keepdims=True) + v[:, np.arange(32) ^ 1])
    assert set(as_float(top)) == {2.0}


def test_simdgroup_functions_of_vectors_and_logic():
    source = """
        uint i = thread_position_in_grid.x;
        float4 v = float4(x[i], 1.0f, 2.0f * x[i], float(i));
        float4 total = simd_sum(v);
        y[i] = total.x + total.y + total.z + total.w;
        y1[i] = simd_or(i) ^ simd_and(i | 1u) ^ simd_xor(i);
    """
    x = mx.arange(32, dtype=mx.float32)
    y, bits = run(source, [x], [x.shape] * 2, [mx.float32, mx.uint32])
    assert set(y.tolist()) == {4 * 496.0 + 32}
    assert set(bits.tolist()) == {31 ^ 1 ^ 0}


def test_a_partial_simdgroup_reduces_over_its_own_lanes():
    y = run("y[thread_position_in_grid.x] = simd_sum(1.0f);", [], [(40,)], [mx.float32], group=40)[0]
    assert y.tolist() == [32] * 32 + [8] * 8


def test_reduction_over_active_lanes_in_a_branch():
    source = f"uint t = thread_index_in_threadgroup; float v = 0; if (t % 4 == 1) v = simd_sum(1.0f); {BARRIER} y[t] = v;"
    y = run(source, [], [(32,)], [mx.float32], plain=True)[0]
    assert y.tolist() == [0, 8, 0, 0] * 8


def test_two_stage_reduction_softmax():
    source = f"""
        constexpr int SIMDGROUPS = 4;
        uint row = threadgroup_position_in_grid.x, t = thread_position_in_threadgroup.x;
        uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
        threadgroup float shared_max[SIMDGROUPS], shared_sum[SIMDGROUPS];
        float top = -INFINITY;
        for (uint i = t; i < N; i += threads_per_threadgroup.x) top = metal::max(top, static_cast<float>(x[row * N + i]));
        top = simd_max(top);
        if (lane == 0) shared_max[simdgroup] = top;
        {BARRIER}
        top = simd_max(lane < SIMDGROUPS ? shared_max[lane] : Limits<float>::min);
        float total = 0;
        for (uint i = t; i < N; i += threads_per_threadgroup.x) total += metal::fast::exp(float(x[row * N + i]) - top);
        total = simd_sum(total);
        if (lane == 0) shared_sum[simdgroup] = total;
        {BARRIER}
        total = simd_sum(lane < SIMDGROUPS ? shared_sum[lane] : 0.0f);
        for (uint i = t; i < N; i += threads_per_threadgroup.x)
          y[row * N + i] = T(metal::precise::exp(float(x[row * N + i]) - top) / total);
    """
    x = mx.random.normal((3, 301), key=mx.random.key(3)).astype(mx.float16)
    y = run(source, [x], [x.shape], [mx.float16], grid=(384, 1, 1), group=128, template=[("T", mx.float16), ("N", 301)])[0]
    v = np.exp(as_float(x) - as_float(x).max(1, keepdims=True))
    np.testing.assert_allclose(as_float(y), v / v.sum(1, keepdims=True), rtol=2e-3, atol=1e-6)


# Atomics


@pytest.mark.parametrize("dtype", [mx.float32, mx.int32, mx.uint32], ids=name_of)
def test_atomic_outputs(dtype):
    source = "uint i = thread_position_in_grid.x; atomic_fetch_add_explicit(&y[x[i]], T(i), memory_order_relaxed);"
    bins = np.random.default_rng(0).integers(0, 10, 256).astype(np.int32)
    construction = {"atomic_outputs": True}
    y = run(
        source,
        [mx.array(bins)],
        [(10,)],
        [dtype],
        grid=(256, 1, 1),
        group=64,
        template=[("T", dtype)],
        init_value=0,
        construction=construction,
    )
    np.testing.assert_array_equal(np.array(y[0]), np.bincount(bins, np.arange(256), 10))


def test_atomics_in_threadgroup_memory():
    source = f"""
        uint t = thread_index_in_threadgroup;
        threadgroup atomic_int counts[4];
        threadgroup atomic<uint> seen;
        if (t < 4) atomic_store_explicit(&counts[t], 0, memory_order_relaxed);
        if (t == 0) atomic_store_explicit(&seen, 0u, memory_order_relaxed);
        {BARRIER}
        atomic_fetch_add_explicit(&counts[x[t] % 4], 1, memory_order_relaxed);
        atomic_fetch_or_explicit(&seen, 1u << (x[t] % 4), memory_order_relaxed);
        atomic_fetch_max_explicit((device atomic_int*)y1, x[t], memory_order_relaxed);
        {BARRIER}
        int bits = int(atomic_load_explicit(&seen, memory_order_relaxed));
        if (t < 4) y[t] = atomic_load_explicit(&counts[t], memory_order_relaxed) * 100 + bits;
    """
    x = np.random.default_rng(1).integers(0, 1000, 64).astype(np.int32)
    y, top = run(source, [mx.array(x)], [(4,), (1,)], [mx.int32] * 2, grid=(64, 1, 1), group=64, init_value=0)
    np.testing.assert_array_equal(np.array(y), np.bincount(x % 4, minlength=4) * 100 + 15)
    assert top.item() == x.max()


def test_compare_and_exchange_loop():
    source = """
        float v = x[thread_position_in_grid.x];
        device atomic<float>* place = y;
        float seen = atomic_load_explicit(place, memory_order_relaxed);
        while (v > seen && !atomic_compare_exchange_weak_explicit(place, &seen, v, memory_order_relaxed, memory_order_relaxed)) {
        }
    """
    x = mx.random.normal((64,), key=mx.random.key(4))
    y = run(source, [x], [(1,)], [mx.float32], grid=(64, 1, 1), init_value=-9, construction={"atomic_outputs": True})[0]
    assert y.item() == x.max().item()


# The library


def test_vectors():
    header = "typedef vec<float, 4> Four;\nusing Half2 = half2;\n"
    source = """
        uint i = thread_position_in_grid.x;
        device const float4* rows = (device const float4*)x;
        float4 a = rows[i], b = float4(a.wzyx), c = float4(float2(1, 2), a.xy);
        a.xy = float2(3.0, 4.0);
        Four d = Four(1.0f, b.yzw);
        half4 h = half4(a);
        float4 back = static_cast<float4>(h) + (float4)h;
        Half2 pair = Half2(1.5h, 2.5h);
        int4 whole = int4(b) * 2;
        uint2 u = uint2(i, 7u);
        bool4 larger = a > b;
        float3 crossed = cross(float3(1, 0, 0), float3(0, 1, 0));
        packed_float3 packed = float3(1, 2, 3);
        float3 unpacked = packed;
        y[i] = dot(a, b) + length(c.xy) + d.x + back.z + float(pair.x * pair.y) + float(whole.w) + float(u.x + u.y);
        y[i] += select(1.0f, 2.0f, any(larger)) + (all(a == a) ? 4.0f : 0.0f) + crossed.z + unpacked.z;
        float4 bounded = clamp(b, 0.0f, 1.0f) + metal::max(a, float4(0.5f));
        ((device float4*)y1)[i] = select(a, b, a > b) + bounded + mix(a, b, 0.25f) + normalize(a);
    """
    x = np.random.default_rng(2).standard_normal((5, 4)).astype(np.float32)
    y, rows = run(source, [mx.array(x)], [(5,), (5, 4)], [mx.float32] * 2, header=header, grid=(5, 1, 1), rules_off=["literal"])
    a, b = np.concatenate([np.tile([[3.0, 4.0]], (5, 1)), x[:, 2:]], 1), x[:, ::-1].astype(np.float64)
    half = a.astype(np.float16).astype(np.float64)
    expected = (a * b).sum(1) + math.hypot(1, 2) + 1 + 2 * half[:, 2] + 3.75 + 2 * np.trunc(b[:, 3]) + np.arange(5) + 7
    expected += np.where((a > b).any(1), 2, 1) + 4 + 1 + 3
    np.testing.assert_allclose(as_float(y), expected, rtol=1e-5)
    wanted = (
        np.where(a > b, b, a) + np.clip(b, 0, 1) + a + (b - a) * 0.25 + np.maximum(a, 0.5) + a / np.linalg.norm(a, axis=1, keepdims=True)
    )
    np.testing.assert_allclose(as_float(rows), wanted, rtol=1e-5)


SAME_NAME = ["sqrt", "exp2", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh", "floor", "ceil", "rint", "trunc"]
SAME_NAME += ["abs", "fabs", "sign"]
MATH = {name: getattr(np, name) for name in SAME_NAME}
MATH |= {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "atanh": np.arctanh, "precise::tanh": np.tanh}
MATH |= {"fast::exp": np.exp, "metal::exp": np.exp, "metal::precise::sqrt": np.sqrt, "rsqrt": lambda v: 1 / np.sqrt(v)}
MATH |= {"fract": lambda v: v - np.floor(v), "saturate": lambda v: np.clip(v, 0, 1)}


def test_math_functions():
    x = np.random.default_rng(3).uniform(0.05, 0.95, 64).astype(np.float32)
    lines = [f"y[{k} * 64 + i] = {name}(x[i]);" for k, name in enumerate(MATH)]
    y = run("uint i = thread_position_in_grid.x;\n" + "\n".join(lines), [mx.array(x)], [(len(MATH), 64)], [mx.float32], grid=(64, 1, 1))[0]
    for name, values in zip(MATH, as_float(y), strict=True):
        np.testing.assert_allclose(values, MATH[name](x.astype(np.float64)), rtol=2e-5, atol=1e-6, err_msg=name)


def test_special_values():
    source = """
        float v = x[thread_position_in_grid.x];
        uint i = thread_position_in_grid.x;
        y[i] = exp(-INFINITY) + (isnan(v) ? 1 : 0) + (isinf(v) ? 2 : 0) + (isfinite(v) ? 4 : 0);
        y1[i] = max(v, -1.0f);
    """
    y, top = run(source, [mx.array([0.0, np.inf, -np.inf, np.nan])], [(4,)] * 2, [mx.float32] * 2)
    assert y.tolist() == [4, 2, 2, 1]
    assert top.tolist() == [0, np.inf, -1, -1]


def test_two_argument_functions_and_bits():
    source = """
        uint i = thread_position_in_grid.x;
        float a = x[i], b = x1[i];
        y[i] = pow(a, b) + atan2(a, b) + fmod(b, a) + fma(a, b, 1.0f) + copysign(a, -b) + step(a, b) + smoothstep(0.0f, 2.0f, a)
             + clamp(b, 0.2f, 0.4f) + mix(a, b, 0.5f) + fmin(a, b) + divide(a, b);
        y1[i] = as_type<uint>(a) ^ uint(as_type<ushort>(half(b)));
        y2[i] = extract_bits(as_type<uint>(a), 23, 8) + reverse_bits(1u) + rotate(3u, 31u) + mulhi(0x80000000u, 6u) + absdiff(3u, 5u);
    """
    rng = np.random.default_rng(4)
    a, b = (rng.uniform(0.1, 2, 32).astype(np.float32) for _ in range(2))
    y, bits, fields = run(source, [mx.array(a), mx.array(b)], [(32,)] * 3, [mx.float32, mx.uint32, mx.uint32])
    p, q = a.astype(np.float64), b.astype(np.float64)
    s = np.clip(p / 2, 0, 1)
    expected = p**q + np.arctan2(p, q) + np.fmod(q, p) + p * q + 1 - p + (q >= p) + s * s * (3 - 2 * s)
    expected += np.clip(q, 0.2, 0.4) + (p + q) / 2 + np.minimum(p, q) + p / q
    np.testing.assert_allclose(as_float(y), expected, rtol=1e-5)
    np.testing.assert_array_equal(np.array(bits), a.view(np.uint32) ^ b.astype(np.float16).view(np.uint16))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            np.array(fields), (a.view(np.uint32) >> 23) + np.uint32(2**31) + np.uint32(2**31 + 1) + np.uint32(3 + 2)
        )


def test_half_precision_rounds_after_every_operation():
    x = (mx.random.uniform(0.5, 1.5, (64,), key=mx.random.key(5))).astype(mx.float16)
    source = "uint i = thread_position_in_grid.x; half a = x[i]; y[i] = a * a * a + 0.1h;"
    v = np.array(x)
    np.testing.assert_array_equal(np.array(run(source, [x], [x.shape], [mx.float16])[0]), v * v * v + np.float16(0.1))


def test_header_with_includes_macros_constants_and_templates():
    header = """
        #include <metal_stdlib>
        #include <metal_simdgroup>
        using namespace metal;
        #define SQUARE(v) ((v) * (v))
        constant float WEIGHTS[3] = {0.25f, 0.5f, 0.25f};
        constant constexpr int RADIUS = 1;
        enum class Mode { Plain, Scaled };
        template <typename T, Mode M = Mode::Plain>
        struct Scale {
          T factor;
          Scale(T f) : factor(f) {}
          T operator()(T v) const thread { return M == Mode::Scaled ? T(v * factor) : v; }
        };
        template <typename T, typename Op>
        METAL_FUNC T apply(device const T* p, int i, Op op) { return op(p[i]); }
        static inline float smooth(device const float* p, int i, int n) {
          float sum = 0;  // edges repeat
          for (int k = -RADIUS; k <= RADIUS; ++k) sum += WEIGHTS[k + RADIUS] * p[clamp(i + k, 0, n - 1)];
          return sum;
        }
    """
    source = """
        int i = thread_position_in_grid.x; /* one element a thread */
        #pragma unroll
        for (int k = 0; k < 1; ++k) {
          y[i] = SQUARE(smooth(x, i, N)) + apply<float>(x, i, Scale<float, Mode::Scaled>(2.0));
        }
    """
    x = np.random.default_rng(5).standard_normal(32)
    padded = np.pad(x, 1, mode="edge")
    expected = (0.25 * padded[:-2] + 0.5 * x + 0.25 * padded[2:]) ** 2 + 2 * x
    y = run(source, [mx.array(x.astype(np.float32))], [(32,)], [mx.float32], header=header, template=[("N", 32)], rules_off=["literal"])[0]
    np.testing.assert_allclose(as_float(y), expected, rtol=1e-5, atol=1e-6)


def test_small_matrices():
    source = """
        uint i = thread_position_in_grid.x;
        float2x2 m = float2x2(float2(1, 2), float2(3, x[i]));
        float2 v = m * float2(1, 2);
        y[i] = v.x * 10 + v.y;
    """
    y = run(source, [mx.arange(4, dtype=mx.float32) * 1.0 + mx.zeros((4,))], [(4,)], [mx.float32])[0]
    np.testing.assert_array_equal(as_float(y), 70 + 2 + 2 * np.arange(4))


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_simdgroup_matrices(dtype):
    header = "#include <metal_simdgroup_matrix>\n"
    source = f"""
        simdgroup_matrix<T, 8, 8> a, b;
        simdgroup_matrix<float, 8, 8> c = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
        threadgroup float staged[64];
        for (uint k = 0; k < K; k += 8) {{
          simdgroup_load(a, x + k, K);
          simdgroup_load(b, x1 + k, K, ulong2(0, 0), true);
          simdgroup_multiply_accumulate(c, a, b, c);
        }}
        c.thread_elements()[0] *= 2;
        c.thread_elements()[1] *= 2;
        simdgroup_store(c, staged, 8);
        {BARRIER}
        y[thread_index_in_threadgroup] = staged[thread_index_in_threadgroup];
        y[thread_index_in_threadgroup + 32] = staged[thread_index_in_threadgroup + 32];
    """
    a, b = (mx.random.normal((8, 24), key=mx.random.key(k)).astype(dtype) for k in (6, 7))
    y = run(source, [a, b], [(8, 8)], [mx.float32], header=header, grid=(32, 1, 1), template=[("T", dtype), ("K", 24)])[0]
    np.testing.assert_allclose(as_float(y), 2 * (as_float(a) @ as_float(b).T + 1), rtol=1e-5, atol=1e-5)


# A recurrence, as this project writes them


def test_a_recurrence_with_state_in_threadgroup_memory():
    header = """
        template <int H>
        inline float product(threadgroup const float* h, thread const float* column) {
          float sum = 0;
          for (int k = 0; k < H; k++) sum += h[k] * column[k];
          return sum;
        }
    """
    source = f"""
        uint row = threadgroup_position_in_grid.x, lane = thread_index_in_threadgroup;
        threadgroup float h[H];
        float column[H];
        for (int k = 0; k < H; k++) column[k] = x1[k * H + lane];
        h[lane] = 0;
        {BARRIER}
        for (uint t = 0; t < STEPS; t++) {{
          float next = tanh(x[(row * STEPS + t) * H + lane] + product<H>(h, column));
          {BARRIER}
          h[lane] = next;
          y[(row * STEPS + t) * H + lane] = next;
          {BARRIER}
        }}
    """
    batch, steps, hidden = 3, 7, 33
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((batch, steps, hidden)), rng.standard_normal((hidden, hidden)) / 6
    arrays = [mx.array(a.astype(np.float32)) for a in (x, w)]
    y = run(
        source,
        arrays,
        [x.shape],
        [mx.float32],
        header=header,
        grid=(batch * hidden, 1, 1),
        group=hidden,
        template=[("H", hidden), ("STEPS", steps)],
    )[0]
    h = np.zeros((batch, hidden))
    for t in range(steps):
        h = np.tanh(x[:, t] + h @ w)
        np.testing.assert_allclose(as_float(y)[:, t], h, atol=1e-5)


# The runner


def test_plain_calls_checked_calls_and_schedules_agree():
    kernel = metal_kernel("twice", ["x"], ["y"], "y[thread_position_in_grid.x] = 2 * x[thread_position_in_grid.x];")
    x = mx.arange(100, dtype=mx.float32)
    call = {"inputs": [x], "grid": (100, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [x.shape], "output_dtypes": [mx.float32]}
    for options in ({}, {"checked": True}, *({"schedule": schedule, "seed": 3} for schedule in SCHEDULES), {"stream": mx.cpu}):
        assert kernel(**call, **options)[0].tolist() == (2 * x).tolist()
    assert run_checked(kernel, **call)[0].tolist() == (2 * x).tolist()
    with pytest.raises(ValueError, match="forward, reverse, shuffled"):
        kernel(**call, schedule="sideways")


def test_verify_makes_every_call_a_checked_one():
    source = "threadgroup float s[1]; s[0] = x[thread_position_in_grid.x]; y[thread_position_in_grid.x] = s[0];"
    call = {"inputs": [mx.arange(8.0)], "grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32]}
    metal_kernel("k", ["x"], ["y"], source)(**call)
    with pytest.raises(WriteConflictError):
        metal_kernel("k", ["x"], ["y"], source, verify=True)(**call)
    with pytest.raises(LintError):
        metal_kernel("k", ["x"], ["y"], source + "double d;", verify=True)(**call)


def test_calls_from_several_threads():
    kernel = metal_kernel("sums", ["x"], ["y"], f"{BARRIER} y[thread_position_in_grid.x] = simd_sum(x[thread_position_in_grid.x]);")

    def call(value):
        x = mx.full((64,), value)
        return kernel(inputs=[x], grid=(64, 1, 1), threadgroup=(64, 1, 1), output_shapes=[(64,)], output_dtypes=[mx.float32])[0].tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(20))) == [[32.0 * value] * 64 for value in range(20)]


SCRIPT = """
import mlx.core as mx
from tests.metal_host import metal_kernel
k = metal_kernel("k", [], ["y"], "y[thread_position_in_grid.x] = 5;")
print(k(inputs=[], grid=(3, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(3,)], output_dtypes=[mx.int32])[0].tolist())
"""


def test_processes_may_share_an_empty_kernel_cache(tmp_path):
    from tests.metal_host import compiler

    runtime = compiler.runtime_library()  # seconds to compile: taken along
    (tmp_path / runtime.name).write_bytes(runtime.read_bytes())
    environment = {**os.environ, compiler.CACHE_VARIABLE: str(tmp_path)}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", SCRIPT]
    processes = [subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["[5, 5, 5]"] * 2
    assert len(list(tmp_path.glob("*.so"))) == 2
    assert not list(tmp_path.glob("*.o"))

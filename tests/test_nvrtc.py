"""The kernels' text compiled by NVRTC, the compiler of MLX's CUDA build; all of them by `make check-cuda`."""

import json

import mlx.core as mx
import pytest

from ember_mlx.scans.registry import RECURRENCES

from . import nvrtc
from .kernel_calls import Input, KernelCall, Scan, calls_of
from .nvrtc import APPLE, Compiled, Resources, Work, compile_call, complaint, mlx_kernel, unsupported_reason

REASON = unsupported_reason()
compiles = pytest.mark.skipif(REASON is not None, reason=str(REASON))
SMALL_SET = {"cfc": "default", "ltc": "full", "rnn": "tanh", "lstm": "lstm", "gru": "gru", "quantum": "ctrqnet_noise", "recurrent": "grud"}
CALL = KernelCall(
    "scaled",
    (Input("x", mx.bfloat16, 2), Input("k", mx.int32, 1)),
    (("y", mx.float32),),
    "int n = x_shape[1];\ny[threadIdx.x] = FACTOR * float(x[threadIdx.x + n - 1]) + k_ndim;",
    "#define FACTOR 2.0f\n",
    (("N", 3), ("FAST", True), ("T", mx.float16)),
)


def scans_of(name, family):
    """The forward and the backward scan's kernels."""
    calls = calls_of("cuda", Scan(name, SMALL_SET[name], (3, 2, 64), family=family))
    return [call for call in calls if call.name.endswith(("_forward", "_backward"))]


@compiles
@pytest.mark.parametrize("name", SMALL_SET)
def test_apples_registers_hold_what_a_scan_of_64_units_keeps(name):
    """At most 128 a thread; nothing is spilled, and no array has come to lie in memory."""
    calls = scans_of(name, "applegpu_g13")
    assert {call.name.split("_")[-1] for call in calls} == {"forward", "backward"}
    for call in calls:
        done = compile_call(call, (APPLE,))
        assert done.ok, done.log
        assert done.resources.registers <= 128
        assert done.resources.spilled == 0, f"{call.name}: {done.resources}"


@compiles
def test_more_registers_than_there_are_count_as_spilled():
    """The layout for an NVIDIA GPU, which has 255 registers a thread."""
    forward = scans_of("cfc", "sm_90")[0]
    assert compile_call(forward).resources.spilled == 0
    assert compile_call(forward, (APPLE,)).resources.spilled > 0


@compiles
def test_a_broken_text_fails_with_the_compilers_message():
    good = compile_call(CALL)
    assert good.ok
    assert ".entry custom_kernel_scaled_3_t_float16_t" not in good.ptx  # inside a namespace
    assert "custom_kernel_scaled_3_t_float16_t" in good.ptx
    bad = compile_call(CALL._replace(source=CALL.source.replace("FACTOR", "FACTOR_OF")))
    assert not bad.ok
    assert 'identifier "FACTOR_OF" is undefined' in bad.log


@compiles
def test_a_shuffle_for_which_some_lanes_do_not_come_is_found():
    source = "float v = x[0]; for (int k = 0; k < {}; k++) v += __shfl_xor_sync(0xffffffffu, v, k); y[threadIdx.x] = v;"
    call = CALL._replace(source=source.format("int(threadIdx.x)"))
    assert "shuffles in one arm of branches: @%p" in complaint("test, scaled", compile_call(call))
    assert complaint("cfc layered_mixed_memory, cfc_forward", compile_call(call)) is None
    call = CALL._replace(source=source.format("k_shape[0]"))
    assert complaint("test, scaled", compile_call(call)) is None


def test_the_text_is_what_mlx_builds():
    name, text = mlx_kernel(CALL)
    assert name == "mlx::core::cu::custom_kernel_scaled_3_t_float16_t"
    assert text == (
        """
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

#define FACTOR 2.0f
namespace mlx::core::cu {

namespace cg = cooperative_groups;

__global__ void custom_kernel_scaled_3_t_float16_t(
    const __nv_bfloat16* x,
    const __grid_constant__ Shape x_shape,
    const int32_t* k,
    const __grid_constant__ int k_ndim,
    float* y) {
  constexpr int N = 3;
  constexpr bool FAST = true;
  using T = __half;

"""
        + CALL.source
        + """
}

} // namespace mlx::core::cu
"""
    )


def test_what_the_assembler_says_of_a_kernel():
    log = "ptxas . 16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\nptxas info : Used 128 registers, used 1 barriers\n"
    assert Compiled(True, log, "", b"").resources == Resources(128, 16, 4, 8)
    assert Resources(128, 16, 4, 8).spilled == 16
    with pytest.raises(ValueError, match="no resources in NVRTC's log: nothing"):
        Compiled(True, "nothing", "", b"").resources  # noqa: B018


def test_every_text_of_a_recurrence_is_checked_once():
    work = nvrtc.all_work(["gru"])
    assert len({(one.text, one.options) for one in work}) == len(work)
    kernels = {one.label.split(", ")[1].rsplit("_")[-1] for one in work}
    assert kernels == {"forward", "backward", "coefficients", "next", "previous"}
    assert {one.options for one in work} == {(), (APPLE,)}
    half = [one for one in nvrtc.all_work(["cfc"]) if "const __nv_bfloat16* x_proj" in one.text]
    assert {one.label.split(", ")[0].removeprefix("cfc ") for one in half} >= {"default", "pure", "layered_mixed_memory"}
    assert any("_together" in one.kernel for one in half)


@compiles
def test_the_check_of_all_kernels(monkeypatch, tmp_path, capsys):
    """A valid source, a broken one, and one that spills; a second run compiles only the failures."""
    forward = scans_of("cfc", "sm_90")[0]
    work = [
        Work("test, good", *mlx_kernel(CALL)),
        Work("test, broken", *mlx_kernel(CALL._replace(source="y[0] = nothing;"))),
        Work("test, spilling", *mlx_kernel(forward), (APPLE,)),
    ]
    monkeypatch.setattr(nvrtc, "all_work", lambda names: work)
    monkeypatch.setattr(nvrtc, "DONE", tmp_path / "out" / "done.jsonl")
    assert nvrtc.main(["--jobs", "1"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED test, broken" in printed
    assert 'identifier "nothing" is undefined' in printed
    assert "FAILED test, spilling --maxrregcount=128" in printed
    assert "not all of it is in registers: Resources(registers=128, stack=" in printed
    assert printed.splitlines()[-1].startswith("1 kernels compiled, 2 failed, ")
    lines = nvrtc.DONE.read_text()
    (line,) = map(json.loads, lines.splitlines())
    assert (line["key"], line["kernel"], line["stack"]) == (work[0].key, work[0].kernel, 0)
    assert 0 < line["registers"] < 32
    nvrtc.DONE.write_text(lines + '{"key": "torn')
    del work[1:]
    assert nvrtc.main(["--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 kernels, 1 of them compiled before" in printed
    assert printed.splitlines()[-1].startswith("1 kernels compiled, 0 failed, ")


def test_a_kernel_has_a_name_of_its_own():
    """MLX's CUDA build caches compiled kernels by name."""
    texts = {(one.kernel, one.text) for one in nvrtc.all_work(list(RECURRENCES))}
    assert len({kernel for kernel, _ in texts}) == len(texts)


def test_at_least_one_process_is_needed(capsys):
    with pytest.raises(SystemExit):
        nvrtc.main(["--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err


def test_an_unknown_recurrence_names_those_there_are(capsys):
    with pytest.raises(SystemExit):
        nvrtc.main(["lsm"])
    assert "there is no recurrence lsm; there are cfc, ltc, rnn, lstm, gru, quantum, recurrent" in capsys.readouterr().err


def test_missing_wheels_are_a_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(nvrtc, "cuda_folder", lambda: tmp_path)
    assert "extra 'cuda' is not installed" in nvrtc.unsupported_reason()
    with pytest.raises(SystemExit):
        nvrtc.main([])
    assert "lib/libnvrtc.so.13" in capsys.readouterr().err

"""The kernels' text as CUDA, compiled by nvcc where it is installed: it compiles, and what the table puts into registers stays there.

For RNN, LSTM and GRU also: no branch that lanes of a warp take differently has come to lie around shuffles.
"""

import inspect
import re
import shutil
import subprocess

import mlx.core as mx
import pytest

from ember_mlx.kernels.first_use import in_half
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import family_of
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx
from .ptx import shuffles_in_arms

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed here")
TYPES = {mx.float32: "float", mx.int32: "int", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}
FILES = {"rnn": "gated", "lstm": "gated", "gru": "gated"}
BY_STEP = ("lstm-512",)
# bytes that the assembler keeps in memory, arrays among them; 0 where nothing is said
SPILLED = {"ctrqnet-56": 8, "ltc-128": 8, "ltc-256": 16}
# a stage's units fill whole simdgroups, so that all lanes of one take the same arm, which cannot be read off the text
WITH_A_SIMDGROUPS_BRANCH = {("ncp-mixed-memory", "cfc_forward"), ("ncp-mixed-memory", "cfc_backward")}
CASES = {
    "cfc-64": ("cfc", "default", (3, 2, 64), False),
    "cfc-64-256-sequences": ("cfc", "default", (1, 256, 64), False),
    "cfc-mixed-memory": ("cfc", "mixed_memory", (3, 2, 64), False),
    "ncp-half": ("cfc", "layered", (3, 2, 56), True),
    "ncp-mixed-memory": ("cfc", "layered_mixed_memory", (3, 2, 56), False),
    "lstm-64": ("lstm", "lstm_bidirectional", (3, 2, 64), False),
    "lstm-62-200-sequences": ("lstm", "lstm_bidirectional", (1, 200, 62), False),
    "lstm-96-200-sequences": ("lstm", "lstm", (1, 200, 96), False),
    "lstm-160-500-sequences": ("lstm", "lstm", (1, 500, 160), False),
    "lstm-256": ("lstm", "lstm", (3, 2, 256), False),
    "lstm-512": ("lstm", "lstm", (3, 2, 512), False),
    "lstm-112-projected": ("lstm", "lstm_projected", (1, 200, 112), False),
    "lstm-256-projected": ("lstm", "lstm_projected_bidirectional", (3, 2, 256), False),
    "gru-64": ("gru", "gru", (3, 2, 64), False),
    "gru-62-200-sequences": ("gru", "gru", (1, 200, 62), False),
    "gru-117-200-sequences": ("gru", "gru", (1, 200, 117), False),
    "gru-256": ("gru", "gru", (3, 2, 256), False),
    "rnn-64": ("rnn", "tanh", (3, 2, 64), False),
    "rnn-192": ("rnn", "tanh", (3, 2, 192), False),
    "ltc-64": ("ltc", "full", (3, 2, 64), False),
    "ltc-sparse-rk4": ("ltc", "rk4_sparse", (3, 2, 64), False),
    "ltc-64-256-sequences": ("ltc", "full", (1, 256, 64), False),
    "ltc-128": ("ltc", "full", (2, 2, 128), False),
    "ltc-256": ("ltc", "full", (2, 2, 256), False),
    "ltc-mixed-memory": ("ltc", "mixed_memory", (3, 2, 64), False),
    "ltc-mixed-memory-72": ("ltc", "mixed_memory", (3, 2, 72), False),
    "ctrqnet-56": ("quantum", "ctrqnet_noise", (3, 2, 56), False),
}


def constant(name, value):
    """A template argument as MLX writes it into a CUDA kernel's body."""
    if isinstance(value, mx.Dtype):
        return f"  using {name} = {TYPES[value]};\n"
    return f"  constexpr {'bool' if isinstance(value, bool) else 'int'} {name} = {str(value).lower()};\n"


def compiling(folder, reports):
    """In the place of mx.fast.cuda_kernel: compiles for sm_90, notes what the assembler says, and returns zeros."""

    def make(name, input_names, output_names, source, header):
        # nvcc makes an attribute of `__device__` by the word that the dialect defines away; MLX's compiler, NVRTC, does not
        header = re.sub(r"(?<!\w)device(?!\w)", "", header.replace("#define device\n", ""))

        def call(inputs, template, grid, threadgroup, output_shapes, output_dtypes):
            arrays = [f"const {TYPES[a.dtype]}* {n}" for a, n in zip(inputs, input_names, strict=True)]
            arrays += [f"{TYPES[dtype]}* {n}" for dtype, n in zip(output_dtypes, output_names, strict=True)]
            constants = "".join(constant(*pair) for pair in template)
            bounds = f"__launch_bounds__({threadgroup[0]})"
            kernel = (
                f"namespace mlx {{\n__global__ void {bounds} custom_kernel_{name}({', '.join(arrays)}) {{\n{constants}{source}\n}}\n}}\n"
            )
            path = folder / f"{name}.cu"
            path.write_text(f"#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n{header}\n{kernel}")
            command = [NVCC, "-std=c++17", "-arch=sm_90", "-Xptxas", "-v", "-cubin", "--keep", "--keep-dir", str(folder)]
            command += ["-o", str(path.with_suffix(".cubin")), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:4000]
            reports[name] = done.stderr
            return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

        return call

    return make


@pytest.mark.parametrize("case", CASES)
def test_the_tables_layouts_compile_without_spills(case, tmp_path, monkeypatch):
    name, variant, (T, B, H), half = CASES[case]
    recurrence, reports = RECURRENCES[name], {}
    monkeypatch.setattr(inspect.getmodule(recurrence.fused.forward), "current_family", lambda: family_of("sm_90"))
    spec, arrays = recurrence.problem(variant, T, B, H, lengths=True)
    given = to_mlx(arrays)
    given = in_half(arrays | {"x": arrays["x"].astype("float32")}, mx.bfloat16) if half else given
    with kernels_made_by("cuda", compiling(tmp_path, reports)):
        states = recurrence.fused.forward("cuda", spec, given)
        recurrence.fused.backward("cuda", spec, given, states, [mx.ones_like(a) for a in states])
    parts = ("next", "previous") if case in BY_STEP else ("forward", "backward")
    assert {f"{FILES.get(name, name)}_{part}" for part in parts} <= set(reports)
    for kernel, report in reports.items():
        spills = list(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)))
        assert len(spills) == 3
        assert max(spills) <= SPILLED.get(case, 0), f"{kernel}: {report}"
        if (case, kernel) not in WITH_A_SIMDGROUPS_BRANCH:
            assert not shuffles_in_arms((tmp_path / f"{kernel}.ptx").read_text()), kernel

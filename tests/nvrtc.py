"""python -m tests.nvrtc: compile every kernel's CUDA source, as built by MLX, for sm_90a with NVRTC, without a GPU.

All recurrences, variants and layouts of the table, in float32 and bfloat16; and those of 64 units once more in an Apple GPU's layouts with
the 128 registers a thread that it has. A kernel fails that does not compile, that keeps anything outside registers, or that has shuffles in
one arm of a branch; then the status is 1. The others are noted in out/check-cuda.jsonl with the registers that they take, and a later run
passes them over.

    python -m tests.nvrtc --jobs 2 ltc
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ember_mlx.scans.registry import RECURRENCES

from .kernel_calls import KernelCall, Scan, all_scans, calls_of, chosen_scans
from .ptx import shuffles_in_arms

TYPES = {mx.float32: "float", mx.int32: "int32_t", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}
# MLX's names of types in a kernel's name
WORDS = {mx.float32: "float", mx.int32: "int32_t", mx.float16: "float16_t", mx.bfloat16: "bfloat16_t"}
UTILS = "mlx/backend/cuda/device/utils.cuh"
# in the place of MLX's own file, which is inside its CUDA build: the same public headers, and the names that a kernel may meet
UTILS_TEXT = """#pragma once
#define MAX_NDIM 10
#define WARP_SIZE 32
#include <cuda/std/complex>
#include <cuda/std/type_traits>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/array>
#include <cuda/std/limits>
#include <cuda/std/tuple>
namespace mlx::core::cu {
using Shape = cuda::std::array<int32_t, MAX_NDIM>;
using Strides = cuda::std::array<int64_t, MAX_NDIM>;
}
"""
DEFAULT_HEADER = f'\n#include "{UTILS}"\n\n#include <cooperative_groups.h>\n\n'
HEADER_MEMORY = 320 * 2**20  # bytes that NVRTC needs to keep those headers compiled
NEEDED = ("lib/libnvrtc.so.13", "include/cuda_fp16.h", "include/cccl/cuda/std/array")
APPLE = "--maxrregcount=128"  # registers that a thread has on an Apple GPU
# a stage's units fill whole simdgroups, so that all lanes of one take the same arm, which cannot be read off the text
WHOLE_SIMDGROUPS = re.compile(r"cfc layered\w*_mixed_memory, cfc_(forward|backward)(_together)?")
DONE = Path("out/check-cuda.jsonl")


class Resources(NamedTuple):
    """The assembler's report on a kernel: registers per thread, and bytes of its stack, including spilled registers."""

    registers: int
    stack: int
    stores: int
    loads: int

    @property
    def spilled(self) -> int:
        """Bytes of spilled registers."""
        return max(self.stack, self.stores, self.loads)


class Compiled(NamedTuple):
    """A compiled kernel: NVRTC's log, and if successful PTX and machine code."""

    ok: bool
    log: str
    ptx: str
    cubin: bytes

    @property
    def resources(self) -> Resources:
        """As the log has them."""
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", self.log)
        used = re.search(r"Used (\d+) registers", self.log)
        if frame is None or used is None:
            raise ValueError(f"no resources in NVRTC's log: {self.log}")
        return Resources(int(used[1]), *map(int, frame.groups()))


class Work(NamedTuple):
    """A source to compile.

    Args:
        label: for whom.
        kernel: its name.
        text: as MLX builds it.
        options: beside MLX's.
    """

    label: str
    kernel: str
    text: str
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A key of everything that the result depends on."""
        told = "\n".join([str(version()), UTILS_TEXT, self.text, *self.options])
        return hashlib.sha256(told.encode()).hexdigest()[:24]


class Result(NamedTuple):
    """The result of a source: its kernel's resources, None if it did not compile, and the fault, or None."""

    work: Work
    resources: Resources | None
    complaint: str | None


def unsupported_reason(*more: str) -> str | None:
    """Why NVRTC cannot be used here, with `more` of the extra's files; None if it can."""
    missing = [name for name in (*NEEDED, *more) if not (cuda_folder() / name).exists()]
    return f"extra 'cuda' is not installed: nvidia/cu13 lacks {', '.join(missing)}" if missing else None


def version() -> tuple[int, int]:
    """NVRTC's."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("Version", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def mlx_kernel(call: KernelCall) -> tuple[str, str]:
    """A kernel's name and text as MLX 0.32.4 makes them of a call (mlx/backend/cuda/custom_kernel.cpp)."""
    name = "custom_kernel_" + "_".join([call.name, *(_word(value) for _, value in call.template)])
    arguments = []
    for one in call.inputs:
        arguments.append(f"    const {TYPES[one.dtype]}* {one.name}")
        for kind, what in (("Shape", "shape"), ("Strides", "strides"), ("int", "ndim")) if one.ndim else ():
            if f"{one.name}_{what}" in call.source:
                arguments.append(f"    const __grid_constant__ {kind} {one.name}_{what}")
    arguments += [f"    {TYPES[dtype]}* {output}" for output, dtype in call.outputs]
    constants = "".join(_constant(*pair) for pair in call.template) + "\n" * bool(call.template)
    opened = f"namespace mlx::core::cu {{\n\nnamespace cg = cooperative_groups;\n\n__global__ void {name}(\n"
    body = ",\n".join(arguments) + f") {{\n{constants}{call.source}\n}}\n\n}} // namespace mlx::core::cu\n"
    return f"mlx::core::cu::{name}", DEFAULT_HEADER + call.header + opened + body


def _word(value: Any) -> str:
    return WORDS[value] if isinstance(value, mx.Dtype) else {True: "t", False: "f"}[value] if isinstance(value, bool) else str(value)


def _constant(name: str, value: Any) -> str:
    if isinstance(value, mx.Dtype):
        return f"  using {name} = {TYPES[value]};\n"
    return f"  constexpr {'bool' if isinstance(value, bool) else 'int'} {name} = {str(value).lower()};\n"


@lru_cache(maxsize=64)
def compile_text(kernel: str, text: str, options: tuple[str, ...] = ()) -> Compiled:
    """Compile a text with a kernel for sm_90a, with MLX's options and more.

    The assembler tells the kernel's resources in the log. The headers that all texts begin with are compiled once a process.
    """
    program, folder = ctypes.c_void_p(), cuda_folder()
    headers, names = (ctypes.c_char_p * 1)(UTILS_TEXT.encode()), (ctypes.c_char_p * 1)(UTILS.encode())
    _call("CreateProgram", ctypes.byref(program), text.encode(), b"kernel.cu", 1, headers, names)
    try:
        _call("AddNameExpression", program, kernel.encode())
        given = ["--device-as-default-execution-space", "--gpu-architecture=sm_90a"]
        given += [f"--include-path={folder}/include", f"--include-path={folder}/include/cccl"]
        given += ["--ptxas-options=-v", "--pch", f"--pch-dir={_headers_folder().name}", *options]
        code = _library().nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*map(str.encode, given)))
        log = _answer("ProgramLog", program).decode()
        if code:
            return Compiled(False, log, "", b"")
        return Compiled(True, log, _answer("PTX", program).decode(), _answer("CUBIN", program))
    finally:
        _call("DestroyProgram", ctypes.byref(program))


def compile_call(call: KernelCall, options: tuple[str, ...] = ()) -> Compiled:
    """Compile the kernel of a call."""
    return compile_text(*mlx_kernel(call), options)


def label(scan: Scan, call: KernelCall) -> str:
    """The label of a kernel."""
    return f"{scan.recurrence} {scan.variant}, {call.name}"


def complaint(label: str, done: Compiled, spilled: int = 0) -> str | None:
    """What is wrong with a kernel: its text, more bytes outside registers than that, or lanes that wait for each other; None: nothing."""
    if not done.ok:
        return done.log
    if done.resources.spilled > spilled:
        return f"not all of it is in registers: {done.resources}"
    shuffles = [] if WHOLE_SIMDGROUPS.fullmatch(label) else shuffles_in_arms(done.ptx)
    return f"shuffles in one arm of branches: {', '.join(sorted(set(shuffles)))}" if shuffles else None


def _answer(name: str, program: ctypes.c_void_p) -> bytes:
    """One of NVRTC's results of a program, without the zero at its end."""
    size = ctypes.c_size_t()
    _call(f"Get{name}Size", program, ctypes.byref(size))
    memory = ctypes.create_string_buffer(size.value)
    _call(f"Get{name}", program, memory)
    return memory.raw if name == "CUBIN" else memory.value


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_library(), f"nvrtc{name}")(*arguments)
    if code:
        raise RuntimeError(f"nvrtc{name}: error {code}")


def cuda_folder() -> Path:
    """Where the wheels of CUDA 13 put their files."""
    found = importlib.util.find_spec("nvidia")
    return Path(next(iter(found.submodule_search_locations or ())) if found else "nvidia") / "cu13"


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(cuda_folder() / "lib" / "libnvrtc.so.13"))
    library.nvrtcSetPCHHeapSize(ctypes.c_size_t(HEADER_MEMORY))
    return library


@lru_cache(maxsize=1)
def _headers_folder() -> tempfile.TemporaryDirectory[str]:
    """For the compiled headers of this process."""
    return tempfile.TemporaryDirectory(prefix="nvrtc-")


def all_work(names: Sequence[str]) -> list[Work]:
    """Every text of some recurrences once."""
    work: dict[tuple[str, ...], Work] = {}
    for scan in (*all_scans("sm_90"), *chosen_scans(64, "applegpu_g13")):
        options = (APPLE,) if scan.family.startswith("applegpu") else ()
        for call in calls_of("cuda", scan) if scan.recurrence in names else ():
            one = Work(label(scan, call), *mlx_kernel(call), options)
            work.setdefault((one.text, *options), one)
    return list(work.values())


def run(one: Work) -> Result:
    """Compile a source and check the result."""
    done = compile_text(one.kernel, one.text, one.options)
    return Result(one, done.resources if done.ok else None, complaint(one.label, done))


def check(names: Sequence[str], jobs: int) -> int:
    """Compile all sources that are not in DONE; prints the failures and their number, and returns the exit status."""
    start, work, known, failed = time.perf_counter(), all_work(names), _known(), 0
    waiting = [one for one in work if one.key not in known]
    print(f"NVRTC {'.'.join(map(str, version()))}: {len(work)} kernels, {len(work) - len(waiting)} of them compiled before", flush=True)
    DONE.parent.mkdir(exist_ok=True)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        for number, future in enumerate(as_completed([pool.submit(run, one) for one in waiting]), 1):
            failed += _report(future.result())
            if number % 100 == 0:
                print(f"{number} of {len(waiting)}, {failed} failed, {time.perf_counter() - start:.0f} s", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{len(work) - failed} kernels compiled, {failed} failed, {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


def _report(result: Result) -> bool:
    """Record a kernel in DONE, or print its fault; returns whether it failed."""
    one = result.work
    if result.resources is None or result.complaint:
        print(f"FAILED {one.label} {' '.join(one.options)}\n{one.kernel}\n{result.complaint}", flush=True)
        return True
    line = {"key": one.key, "label": one.label, "kernel": one.kernel, "options": one.options, **result.resources._asdict()}
    with DONE.open("a") as file:
        print(json.dumps(line), file=file)
    return False


def _known() -> set[str]:
    """Keys of the sources compiled earlier; incomplete lines are skipped."""
    known = set()
    for line in DONE.read_text().splitlines() if DONE.exists() else ():
        with contextlib.suppress(ValueError):
            known.add(json.loads(line)["key"])
    return known


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the recurrences that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.nvrtc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recurrence", nargs="*", help=f"of {', '.join(RECURRENCES)}; all if none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time, each with 0.5 GB of memory")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    unknown = sorted(set(options.recurrence) - set(RECURRENCES))
    if unknown:
        parser.error(f"there is no recurrence {', '.join(unknown)}; there are {', '.join(RECURRENCES)}")
    reason = unsupported_reason()
    if reason:
        parser.error(reason)
    return check(options.recurrence or list(RECURRENCES), options.jobs)


if __name__ == "__main__":
    sys.exit(main())

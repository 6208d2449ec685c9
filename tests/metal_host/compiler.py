"""Compiling with the clang of the ziglang wheel, and the cache of compiled files."""

import functools
import getpass
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from .errors import AddressSpaceError, KernelCompileError, MetalHostError, UnsupportedPlatformError

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
CACHE_VARIABLE = "EMBER_METAL_HOST_CACHE"
QUIET = ["-Wno-unknown-attributes", "-Wno-duplicate-decl-specifier", "-Wno-ignored-attributes", "-Wno-unknown-pragmas"]
STRICT_VECTORS = ["-flax-vector-conversions=none", "-fsigned-char"]
# Literals are float, halves round after every operation, and a * b + c is not fused: as in Metal with safe math.
RUN_FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-Xclang", "-cl-single-precision-constant", "-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none", "-fno-math-errno", "-Werror=vla-extension", "-Werror=vla-cxx-extension"),
    *("-gline-tables-only", "-gdwarf-4", "-fno-caret-diagnostics", *STRICT_VECTORS, *QUIET),
]
# Of the kernel's own text: Metal is C++14, and its arrays have elements.
TEXT_FLAGS = ["-Werror=pre-c++17-compat", "-Werror=zero-length-array"]
# Stated accuracies (msl/fast_math.h), and products fused with sums, as a GPU's compiler may.
FAST_MATH_FLAGS = ["-DMSL_FAST_MATH", "-ffp-contract=fast"]
CHECKED_FLAGS = ["-DMSL_CHECKED", "-fsanitize=thread"]
CHECKED_FLAGS += [
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-atomics=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
]
ADDRESS_FLAGS = [
    *("-cl-std=clc++2021", "-cl-no-stdinc", "-Xclang", "-cl-ext=+cl_khr_fp16", "-cl-single-precision-constant", "-DMSL_CHECK"),
    *("-Wimplicit-float-conversion", "-fno-caret-diagnostics", *STRICT_VECTORS, *QUIET),
]
DIAGNOSTIC = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+):(?P<column>\d+): (?P<kind>error|fatal error|warning|note): (?P<text>.*)$")
OPENCL_WORDS = {"__global": "device", "__local": "threadgroup", "__private": "thread", "__constant": "constant", "__generic": "generic"}


# The machine and its tools


def require_platform() -> None:
    """Raise an error if fibers or the instruction set are not supported."""
    system, machine = platform.system(), platform.machine().lower()
    if system not in ("Linux", "Darwin") or machine not in ("x86_64", "amd64", "aarch64", "arm64"):
        raise UnsupportedPlatformError(f"[metal_host] needs Linux or macOS on x86-64 or aarch64, not {system} on {machine}.")
    if system == "Linux" and machine in ("x86_64", "amd64") and not {"avx2", "f16c"} <= cpu_flags():
        raise UnsupportedPlatformError("[metal_host] needs an x86-64 processor with AVX2 and F16C.")


def cpu_flags() -> set[str]:
    """The processor's features as Linux lists them."""
    match = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return set(match[1].split()) if match else set()


@functools.cache
def zig() -> Path:
    """The zig program of the ziglang wheel."""
    require_platform()
    found = importlib.util.find_spec("ziglang")
    if found is None:
        raise UnsupportedPlatformError("[metal_host] needs the compiler of the `ziglang` wheel: pip install ziglang==0.17.0")
    return Path(found.origin).parent / "zig"


@functools.cache
def mlx_include() -> Path:
    """MLX's own headers, which its wheel contains."""
    for place in importlib.util.find_spec("mlx").submodule_search_locations:
        include = Path(place) / "include"
        if (include / "mlx/backend/metal/kernels/utils.h").exists():
            return include
    raise UnsupportedPlatformError("[metal_host] the installed MLX has no Metal headers (mlx/include/mlx/backend/metal/kernels).")


def machine_flags() -> list[str]:
    """The target: explicit on macOS, where `zig clang` would not find it; half conversions in hardware on x86-64."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    target = ["-target", "x86_64-apple-macos11" if x86 else "arm64-apple-macos11"] if sys.platform == "darwin" else []
    return target + (["-march=x86-64-v3"] if x86 else [])


def clang() -> list[str]:
    """The compiler with its include paths: the shim's before MLX's."""
    own = zig().parent / "lib" / "include"
    return [str(zig()), "clang", "-nostdinc", "-isystem", str(own), "-I", str(INCLUDE), "-I", str(mlx_include()), *machine_flags()]


def linker() -> list[str]:
    """Links one object to a library whose undefined symbols are in the runtime."""
    if sys.platform == "darwin":
        return [str(zig()), "cc", "-shared", "-Wl,-undefined,dynamic_lookup"]
    return [str(zig()), "ld.lld", "-shared", "--allow-shlib-undefined"]


def unsupported_reason() -> str | None:
    """The reason why this machine cannot run kernels, for skipping tests; None if it can."""
    try:
        zig()
        mlx_include()
    except UnsupportedPlatformError as error:
        return str(error)
    return None


# The cache


@functools.cache
def cache_directory() -> Path:
    """The directory of compiled kernels: $EMBER_METAL_HOST_CACHE, or a temporary directory of the user."""
    chosen = os.environ.get(CACHE_VARIABLE)
    path = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"ember-metal-host-{getpass.getuser()}"
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def shim_digest() -> str:
    """A digest of everything except the kernel that affects compilation."""
    digest = hashlib.sha256()
    for path in sorted([*INCLUDE.rglob("*.h"), INCLUDE / "metal_stdlib", *mlx_include().glob("mlx/backend/metal/kernels/*.h")]):
        digest.update(path.read_bytes())
    digest.update(" ".join([*clang(), platform.machine()]).encode())
    return digest.hexdigest()


def cached(suffix: str, make, *parts: str) -> Path:
    """The file that `make(path)` wrote for these parts; written under another name first, so that two processes may try at once."""
    key = hashlib.sha256("\0".join([shim_digest(), *parts]).encode()).hexdigest()[:24]
    path = cache_directory() / f"{key}{suffix}"
    if path.exists():
        return path
    temporary = path.with_name(f"{uuid.uuid4().hex}{suffix}")
    try:
        make(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def run(command: list[str], text: str | None = None) -> subprocess.CompletedProcess:
    """Run a tool with its own caches inside ours."""
    directory = str(cache_directory() / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": directory, "ZIG_LOCAL_CACHE_DIR": directory}
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)


def must_run(command: list[str], what: str) -> None:
    """Run a tool that must not fail."""
    result = run(command)
    if result.returncode:
        raise MetalHostError(f"[metal_host] {what} failed: {' '.join(command)}\n{result.stderr[:4000]}")


# What is compiled


def runtime_library() -> Path:
    """The runtime, compiled with the host's own headers."""
    source = HERE / "runtime.cpp"
    flags = ["-x", "c++", "-std=c++17", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fno-sanitize=undefined", "-shared", "-nostdlib++"]

    def make(path: Path) -> None:
        must_run([str(zig()), "cc", *flags, str(source), "-o", str(path), "-lm"], "compiling the runtime")

    return cached(".runtime.so", make, source.read_text(), *flags)


def precompiled_prelude(language: str, flags: list[str]) -> list[str]:
    """The prelude, parsed once for all kernels: it is most of the time that a kernel takes to compile."""
    prelude = str(INCLUDE / "kernel_prelude.h")

    def make(path: Path) -> None:
        header = ["-x", f"{language}-header", "-Xclang", "-fno-pch-timestamp", prelude, "-o", str(path)]
        must_run([*clang(), *flags, *header], "compiling the prelude")

    return ["-include-pch", str(cached(".pch", make, language, *flags)), "-Xclang", "-fno-validate-pch", "-x", language]


def kernel_library(kernel: str, text: str, checked: bool, originals: dict[str, str], fast_math: bool = False) -> Path:
    """The kernel's machine code, with or without the calls of the access checker."""
    flags = RUN_FLAGS + (CHECKED_FLAGS if checked else []) + (FAST_MATH_FLAGS if fast_math else [])

    def make(path: Path) -> None:
        item = path.with_suffix(".o")
        try:
            result = run([*clang(), *flags, *TEXT_FLAGS, *precompiled_prelude("c++", flags), "-c", "-", "-o", str(item)], text)
            if result.returncode:
                raise KernelCompileError(compile_message(kernel, result.stderr, originals))
            must_run([*linker(), "-o", str(path), str(item)], "linking a kernel")
        finally:
            item.unlink(missing_ok=True)

    return cached(".checked.so" if checked else ".so", make, text, *flags, *TEXT_FLAGS)


def check_address_spaces(kernel: str, text: str, originals: dict[str, str]) -> None:
    """Parse the source with real address spaces; raise the compiler's errors."""

    def make(path: Path) -> None:
        result = run([*clang(), *ADDRESS_FLAGS, *precompiled_prelude("cl", ADDRESS_FLAGS), "-fsyntax-only", "-"], text)
        output = bfloat_conversions_as_errors(result.stderr)
        if result.returncode or "error:" in output:
            message = compile_message(kernel, output, originals)
            raise (AddressSpaceError if is_about_address_spaces(output) else KernelCompileError)(message)
        path.write_text("checked\n")

    cached(".addresses", make, text, *ADDRESS_FLAGS)


# What the compiler says


def bfloat_conversions_as_errors(output: str) -> str:
    """Metal converts nothing to bfloat by itself; clang only warns."""
    pattern = r"^((?:source|header):\d+:\d+: )warning: (implicit conversion .* to '(?:bfloat|__bf16|bfloat16_t)\b.*)$"
    return re.sub(pattern, r"\1error: Metal has no implicit conversion to bfloat: \2", output, flags=re.M)


def is_about_address_spaces(output: str) -> bool:
    """Whether the first error, with its notes, is about address spaces."""
    first = re.split(r"(?m)^(?=.*: error: )", output)[1:2]
    return bool(first) and bool(re.search(r"address space|__(?:global|local|private|constant|generic)\b", first[0]))


def compile_message(kernel: str, output: str, originals: dict[str, str]) -> str:
    """The compiler's errors, each with the kernel's own line under it."""
    for word, metal in OPENCL_WORDS.items():
        output = re.sub(rf"{word}\b", metal, output)
    lines, shown = [f"[metal_host] kernel `{kernel}` does not compile:"], 0
    for line in output.splitlines():
        match = DIAGNOSTIC.match(line)
        if not match or match["kind"] == "warning":
            continue
        shown += 1
        lines.append(f"  {Path(match['file']).name}:{match['line']}: {match['kind']}: {match['text']}")
        lines.extend(quoted_line(originals, match["file"], int(match["line"])))
        if match["file"] == "signature" and match["kind"] == "error":
            lines.append("      (the signature is generated by MLX: see `verbose=True`; `lint` names the known reasons)")
    if not shown:
        lines.append(output[:4000])
    return "\n".join(lines[:60])


def quoted_line(originals: dict[str, str], file: str, line: int) -> list[str]:
    """One line of the kernel's original source."""
    text = originals.get(file, "").splitlines()
    return [f"    {line:5d} | {text[line - 1]}"] if 0 < line <= len(text) else []

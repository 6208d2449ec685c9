"""Timing, and the environment to report with each figure."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PACKAGES = ("ember-mlx", "mlx", "numpy", "torch", "ncps", "jax")
CORE_TYPES = ("OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "BLIS_ARCH_TYPE", "NPY_DISABLE_CPU_FEATURES")
"""Environment variables that select the CPU instructions used by matrix products or NumPy."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS")
KERNEL = """
import json, numpy, threadpoolctl
print(json.dumps([one for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]))
"""


def timed(run: Callable[[], object], seconds: float, least: int = 1) -> list[float]:
    """Milliseconds of each run within `seconds`, after a warm-up; at least `least` runs if they fit into ten times that."""
    start, times = time.perf_counter(), []
    while time.perf_counter() < start + seconds / 4:
        run()
    while not times or time.perf_counter() < start + (seconds if len(times) >= least else 10 * seconds):
        before = time.perf_counter()
        run()
        times.append((time.perf_counter() - before) * 1e3)
    return times


def environment() -> dict[str, object]:
    """Machine, versions and date."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    if platform.system() == "Darwin":
        told = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        cpu = told.stdout.strip() or cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


def blas_kernels(without: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """threadpoolctl's information on NumPy's BLAS, in a new process without some environment variables; [] if unknown."""
    variables = {name: value for name, value in os.environ.items() if name not in without}
    told = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True, check=False, env=variables)
    return json.loads(told.stdout) if told.returncode == 0 else []


def blas() -> tuple[str, list[str]]:
    """A description of NumPy's BLAS with its kernel and threads, and warnings if the environment slows it down."""
    found = blas_kernels()
    if not found:
        told = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{told['name']} {told.get('version', '')}, its kernel unknown".replace(" ,", ","), _set(CORE_TYPES, "was set")
    words = "; ".join(
        f"{one['internal_api']} {one['version']}, {one.get('architecture')} kernel, {one['num_threads']} threads" for one in found
    )
    warnings = []
    if _set(CORE_TYPES, ""):
        usual = blas_kernels(without=CORE_TYPES)
        kernels, usually = ([one.get("architecture") for one in ones] for ones in (found, usual))
        if kernels != usually or _set(CORE_TYPES[-1:], ""):
            forced = f"forces the {kernels[0]} kernel instead of {usually[0]}" if kernels != usually else "disables CPU instructions"
            warnings = [f"{line}: NumPy, and so our times on the CPU, are slower" for line in _set(CORE_TYPES, forced)]
    return words, warnings + _set(THREADS, "limits threads")


def load() -> list[str]:
    """A warning if other processes use the processor, since threads that wait for each other are then slow."""
    cores, busy = os.cpu_count() or 1, os.getloadavg()[0]
    return [f"the machine is busy (load {busy:.1f} on {cores} cores): times are too long"] if busy > 0.75 * cores else []


def _set(names: tuple[str, ...], what: str) -> list[str]:
    return [f"{name}={os.environ[name]} {what}" for name in names if os.environ.get(name)]


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    print(f"\n{title}")
    for row in [header, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")

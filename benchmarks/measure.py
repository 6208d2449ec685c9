"""Timing side by side, and what a figure must carry with it."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("ember-mlx", "mlx", "numpy", "torch", "ncps")


def side_by_side(runs: dict[str, Callable[[], object]], seconds: float = 3.0, rounds: int = 5) -> dict[str, float]:
    """Median milliseconds of each run.

    The runs take turns of some repetitions, so that a change of the machine's speed meets all of them; the first repetitions of a turn
    do not count, since the threads of the one before may still be waiting for work with a core to themselves.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            while time.perf_counter() < start + 0.25 * seconds / rounds:
                run()
            counted = 0
            while counted < 3 or time.perf_counter() < start + seconds / rounds:
                before = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - before) * 1e3)
                counted += 1
    return {name: statistics.median(values) for name, values in times.items()}


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
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


def write_json(path: Path, result: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **result}, indent=2) + "\n")


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    print(f"\n{title}")
    for row in [header, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")

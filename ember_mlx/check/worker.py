"""A worker process: python -m ember_mlx.check.worker reads one job per line and writes its result."""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import mlx.core as mx
import numpy as np

from .. import __version__
from ..backend import gpu_kind
from ..kernels.loader import is_available
from ..kernels.tiles import current_family


def kernels_here() -> str | None:
    """The kind of kernels that MLX's default device runs, or None."""
    kind = gpu_kind()
    return kind if kind is not None and is_available(kind) else None


def machine(kind: str | None) -> dict[str, Any]:
    """The machine and versions on which results depend."""
    known = ("device_name", "architecture", "memory_size")
    return {
        "ember_mlx": __version__,
        "mlx": importlib.metadata.version("mlx"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "kernels": kind,
        "family": current_family().name if kind else None,
        **{name: value for name, value in mx.device_info().items() if name in known},
        "tf32": os.environ.get("MLX_ENABLE_TF32", "1") != "0" if kind == "cuda" else False,
    }


def main() -> None:
    """Write a greeting with the list of jobs, then a result for every job until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", help="module:function that returns the kind of kernels, instead of MLX's device")
    given = parser.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr
    if given.device:
        module, function = given.device.split(":")
        kind = getattr(importlib.import_module(module), function)()
    else:
        kind = kernels_here()
    from .jobs import all_jobs  # after the device has been set
    from .work import run

    jobs = [] if kind is None else all_jobs(kind)
    print(json.dumps({"machine": machine(kind), "jobs": jobs}), file=out, flush=True)
    for line in sys.stdin:
        stage, job = json.loads(line)
        try:
            result = run(str(kind), stage, job)
        except Exception as error:
            result = {"state": "FAILED", "why": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()

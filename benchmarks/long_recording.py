"""python benchmarks/long_recording.py: memory and time of a gradient over one long recording, whole and with checkpoint_steps."""

import argparse
import json
import resource
import subprocess
import sys
import time

import mlx.core as mx
import mlx.nn as nn
from measure import environment, print_table

from ember_mlx import GRU, LSTM, LTC, CfC, LQNet, NCPMap, use_backend

I, H = 8, 64
LAYERS = {
    "CfC": lambda: CfC(H, I),
    "GRU": lambda: GRU(I, H, return_sequences=False),
    "LSTM": lambda: LSTM(I, H, return_sequences=False),
    "LTC, NCP 32/16/8": lambda: LTC(NCPMap(32, 16, 8, I, seed=1), return_sequences=False),
    "LQNet": lambda: LQNet(H, input_size=I, return_sequences=False),
}
# layer, backend, steps, checkpoint_steps
CASES = [(name, "auto", 100_000, 1000) for name in LAYERS] + [("LSTM", "ops", 10_000, 50)]
NOISE_MB = 1.0


def peak_mb() -> float:
    """Peak memory of the process, or of the GPU."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.get_peak_memory() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def gradient(layer: nn.Module, steps: int) -> None:
    x = mx.random.normal((1, steps, I))
    value, gradients = nn.value_and_grad(layer, lambda layer, x: (layer(x) ** 2).mean())(layer, x)
    mx.eval(value, gradients)


def measured(name: str, backend: str, steps: int, checkpoint_steps: int | None) -> dict[str, float]:
    """Additional memory and time of a gradient over `steps` steps, compared with 100 steps."""
    layer = LAYERS[name]()
    layer.checkpoint_steps = checkpoint_steps
    with use_backend(backend):
        gradient(layer, 100)
        before, start = peak_mb(), time.perf_counter()
        gradient(layer, steps)
        return {"mb": peak_mb() - before, "seconds": time.perf_counter() - start}


def in_a_process(*case: object) -> dict[str, float]:
    """Run a case in a separate process, since a process's peak memory never decreases."""
    result = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def row(name: str, backend: str, steps: int, size: int) -> list[str]:
    whole, parts = (in_a_process(name, backend, steps, one) for one in (None, size))
    figures = [f"{one['mb']:.0f} MB, {one['seconds']:.1f} s" for one in (whole, parts)]
    return [name, backend, f"{steps:,}", figures[0], f"{size}", figures[1], f"{whole['mb'] / max(parts['mb'], NOISE_MB):.1f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    case = parser.parse_args().case
    if case:
        print(json.dumps(measured(*json.loads(case))))
    else:
        print(environment())
        header = ["layer", "backend", "steps", "whole", "checkpoint_steps", "in segments", "times less"]
        print_table(
            f"A gradient over one recording, {I} inputs, y of the last step, float32: peak memory, time", header, [row(*c) for c in CASES]
        )

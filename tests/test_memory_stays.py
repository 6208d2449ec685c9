"""Memory does not grow with the number of calls with different batches."""

import os
import subprocess
import sys

import pytest

BATCHES = """
import gc, sys
import numpy as np, mlx.core as mx, mlx.nn as nn
import ember_mlx
from ember_mlx import GRU, LTC, CfC, AutoNCPMap, LQNet, StrideAwareCfC

def resident():
    gc.collect()
    mx.clear_cache()
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

ember_mlx.use_backend(sys.argv[2])
B, T = map(int, sys.argv[3].split(","))
make = {"gru": lambda: GRU(2, 4), "cfc": lambda: CfC(4, 2), "ltc": lambda: LTC(AutoNCPMap(9, 2, seed=1), 2, ode_unfolds=1),
        "lqnet": lambda: LQNet(4, input_size=2), "strides": lambda: StrideAwareCfC(4, [1, 3], 2)}[sys.argv[1]]
numbers, x = np.random.default_rng(0), mx.random.normal((B, T, 2))
layers = [make()]

def batch():
    layer = layers[0]
    lengths = numbers.integers(T // 2, T + 1, B)
    mx.eval(nn.value_and_grad(layer, lambda m: (m(x, lengths=lengths) ** 2).mean())(layer))

for _ in range(3):
    batch()
first = resident()
for _ in range(64):
    batch()
print(resident() - first)
"""
LAYERS = ["gru", "cfc", "ltc", "lqnet", "strides"]

NEW_LAYERS = """
import gc
import numpy as np, mlx.core as mx
import ember_mlx
from ember_mlx import LTC, RandomMap

def resident():
    gc.collect()
    mx.clear_cache()
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

x = mx.random.normal((2, 2, 8))
def use(seed):
    layer = LTC(RandomMap(200, 4, 8, 0.3, seed=seed), ode_unfolds=1)
    mx.eval(layer(x))
    with ember_mlx.use_backend("ops"):
        mx.eval(layer(x))

for seed in range(8):
    use(seed)
first = resident()
for seed in range(8, 72):
    use(seed)
print(resident() - first)
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")


# glibc raises these limits with the largest buffer freed, and from then on keeps up to twice as much of freed memory as
# it likes: resident memory then jumps by 20 MB between equal batches. Fixed limits show what is really held.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}


def growth(script, *arguments):
    """The script's result in MB."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300, env={**os.environ, **ALLOCATOR}
    )
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


@pytest.mark.parametrize("layer", LAYERS)
def test_batches_with_lengths_of_their_own(layer):
    assert growth(BATCHES, layer, "numpy", "256,200") < 10


def test_layers_that_are_gone():
    assert growth(NEW_LAYERS) < 10

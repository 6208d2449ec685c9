"""python benchmarks/gpu.py: every fused scan on this GPU, checked against float64 and timed beside its peers; JSON, and one table last.

Runs on Metal (a Mac) and on MLX's CUDA build. Peers are those that are installed: torch (CUDA with cuDNN, or MPS), ncps on it, mlx.nn,
and the package's own MLX-ops form. Set MLX_ENABLE_TF32=0 before Python starts, so that MLX's float32 products on CUDA are float32.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from measure import environment, print_table, timed, write_json
from mlx.utils import tree_map

import ember_mlx
from ember_mlx import LTC, CfC, NCPMap, RandomMap
from ember_mlx.backend import gpu_kind
from ember_mlx.kernels.first_use import check
from ember_mlx.scans.registry import RECURRENCES

I = 10
# name -> (layer, B, T); the peers of a row are those of its kind of layer
ROWS = {
    "CfC 64, backbone 128, B32 T100": ("dense", 64, 32, 100),
    "CfC 64, backbone 128, B32 T1000": ("dense", 64, 32, 1000),
    "CfC 64, backbone 128, B256 T1000": ("dense", 64, 256, 1000),
    "CfC 64, backbone 128, B32 T4096": ("dense", 64, 32, 4096),
    "CfC 256, backbone 128, B32 T1000": ("dense", 256, 32, 1000),
    "CfC 512, backbone 128, B32 T1000": ("dense", 512, 32, 1000),
    "CfC NCP 32/16/8, B32 T1000": ("ncp", 56, 32, 1000),
    "CfC 64, mixed memory, B32 T1000": ("mixed", 64, 32, 1000),
    "CfC 64, bfloat16, B32 T1000": ("bfloat16", 64, 32, 1000),
    "LTC 64, B32 T100": ("ltc", 64, 32, 100),
    "LTC 64, B32 T1000": ("ltc", 64, 32, 1000),
    "LTC 64, B256 T1000": ("ltc", 64, 256, 1000),
    "LTC NCP 32/16/8, B32 T100": ("ltc-ncp", 56, 32, 100),
    "LTC 128, B32 T1000": ("ltc", 128, 32, 1000),
    "LTC 256, B32 T1000": ("ltc", 256, 32, 1000),
    "LTC 1024 at 10 %, B32 T100": ("ltc-sparse", 1024, 32, 100),
    "LTC 64, bfloat16, B32 T1000": ("ltc-bfloat16", 64, 32, 1000),
    "LTC 64, rk4, B32 T1000": ("ltc-rk4", 64, 32, 1000),
}


def make_layer(kind, units):
    layer = LAYERS[kind](units)
    if kind.endswith("bfloat16"):
        layer.set_dtype(mx.bfloat16)
    return layer


LAYERS = {
    "dense": lambda units: CfC(units, I, return_sequences=True),
    "bfloat16": lambda units: CfC(units, I, return_sequences=True),
    "mixed": lambda units: CfC(units, I, mixed_memory=True, return_sequences=True),
    "ncp": lambda _: CfC(NCPMap(32, 16, 8, I, seed=1), return_sequences=True),
    "ltc": lambda units: LTC(units, I),
    "ltc-bfloat16": lambda units: LTC(units, I),
    "ltc-rk4": lambda units: LTC(units, I, solver="rk4"),
    "ltc-ncp": lambda _: LTC(NCPMap(32, 16, 8, I, seed=1)),
    "ltc-sparse": lambda units: LTC(RandomMap(units, input_dim=I, sparsity_level=0.9)),
}


def mlx_runs(layer, x, dt=None, backend=None):
    """(forward, forward + backward) of an MLX layer, each evaluated."""
    options = {} if dt is None else {"time_deltas": dt}

    def output(m):
        y = m(x, **options)
        return y[0] if isinstance(y, tuple) else y

    step = nn.value_and_grad(layer, lambda m: output(m).astype(mx.float32).sum())

    def run(function):
        def timed():
            if backend is None:
                mx.eval(function(layer))
            else:
                with ember_mlx.use_backend(backend):
                    mx.eval(function(layer))

        return timed

    return run(output), run(step)


def torch_runs(module, x, device, spans=None):
    """The same of a torch module."""
    import torch

    module, x = module.to(device), torch.tensor(x, device=device)
    options = {} if spans is None else {"timespans": torch.tensor(spans, device=device)}
    wait = torch.cuda.synchronize if device == "cuda" else torch.mps.synchronize

    def forward():
        with torch.no_grad():
            module(x, **options)
        wait()

    def both():
        module.zero_grad()
        module(x, **options)[0].sum().backward()
        wait()

    return forward, both


def torch_peers(layer_kind, units, x, dt):
    """The peers of a kind of layer on torch's GPU, if it has one."""
    try:
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if device is None:
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    peers, spans = {}, np.repeat(dt[:, :, None], units, axis=2)
    if layer_kind == "dense":
        peers["torch GRU"] = torch_runs(torch.nn.GRU(I, units, batch_first=True), x, device)
        peers["torch LSTM"] = torch_runs(torch.nn.LSTM(I, units, batch_first=True), x, device)
    try:
        import ncps.torch as theirs
    except ImportError:
        return peers
    module = theirs.CfC(I, units) if layer_kind == "dense" else theirs.LTC(I, units)
    return peers | {f"ncps {type(module).__name__}": torch_runs(module, x, device, spans)}


def compare(kind, layer_kind, units, B, T, seconds, slow_peers):
    """Milliseconds (forward, both) of the layer and its peers."""
    rng = np.random.default_rng(0)
    x, dt = rng.standard_normal((B, T, I)).astype(np.float32), rng.uniform(0.1, 2, (B, T)).astype(np.float32)
    mlx_x = mx.array(x).astype(mx.bfloat16 if layer_kind.endswith("bfloat16") else mx.float32)
    layer = make_layer(layer_kind, units)
    runs = {"ember_mlx": mlx_runs(layer, mlx_x, mx.array(dt), kind)}
    if slow_peers and T <= 1000:
        runs["ember_mlx ops"] = mlx_runs(layer, mlx_x, mx.array(dt), "ops")
        runs["mlx.nn.GRU"] = mlx_runs(nn.GRU(I, units), mlx_x)
    if layer_kind in ("dense", "ltc"):
        runs |= {name: pair for name, pair in torch_peers(layer_kind, units, x, dt).items() if slow_peers or "ncps" not in name}
    return {name: [statistics.median(timed(run, seconds)) for run in pair] for name, pair in runs.items()}


def check_all(kind):
    """Errors of every variant against float64: name -> (outputs, gradients)."""
    errors = {}
    for name, recurrence in RECURRENCES.items():
        for variant in recurrence.variants:
            spec, arrays = recurrence.problem(variant, 33, 5, 64, lengths=True, dtype=np.float32)
            if recurrence.fused.refusal(kind, spec, tree_map(mx.array, arrays)) is None:
                errors[f"{name} {variant}"] = check(kind, recurrence, spec, arrays)
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each figure")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="rows of the table; all of them")
    parser.add_argument("--without-slow-peers", action="store_true", help="leave out loops of small launches (ncps, mlx.nn, ops)")
    parser.add_argument("--json", type=Path, default=Path("out/bench-gpu.json"))
    arguments = parser.parse_args()
    kind = gpu_kind()
    if kind is None:
        sys.exit("gpu.py: MLX's default device is the CPU here; this benchmark needs Metal or CUDA")
    if kind == "cuda" and os.environ.get("MLX_ENABLE_TF32") != "0":
        print("MLX_ENABLE_TF32 is not 0: MLX's float32 products run in TF32, and errors are larger")
    errors, milliseconds = check_all(kind), {}
    for row in arguments.rows:
        milliseconds[row] = compare(kind, *ROWS[row], arguments.seconds, not arguments.without_slow_peers)
        print(row, milliseconds[row], flush=True)
    device = {name: str(value) for name, value in mx.device_info().items()}
    write_json(arguments.json, {"device": device, "kind": kind, "errors": errors, "ms": milliseconds})
    print(f"\n{device.get('device_name')}, {environment()['versions']}, {environment()['date']}")
    print_table("errors against float64", ["kernel", "outputs", "gradients"], [[n, f"{a:.1e}", f"{b:.1e}"] for n, (a, b) in errors.items()])
    rows = [
        [row, name, *(f"{ms:.2f} ms ({ms / times['ember_mlx'][k]:.2f} x)" for k, ms in enumerate(pair))]
        for row, times in milliseconds.items()
        for name, pair in times.items()
    ]
    print_table("times", ["", "", "forward", "forward + backward"], rows)


if __name__ == "__main__":
    main()

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
from ember_mlx import CfC, NCPMap
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
    **{f"{cell} {units}, B32 T1000": (cell, units, 32, 1000) for cell in ("LSTM", "GRU", "RNN") for units in (64, 256, 512, 1024)},
}


def inputs_of(kind, units):
    """Features of x: as many as units where a gated layer is large, as inside a stack of layers."""
    return units if kind in ("LSTM", "GRU", "RNN") and units > 64 else I


def make_layer(kind, units):
    if kind in ("LSTM", "GRU", "RNN"):
        return getattr(ember_mlx, kind)(inputs_of(kind, units), units)
    if kind == "ncp":
        return CfC(NCPMap(32, 16, 8, I, seed=1), return_sequences=True)
    layer = CfC(units, I, mixed_memory=kind == "mixed", return_sequences=True)
    if kind == "bfloat16":
        layer.set_dtype(mx.bfloat16)
    return layer


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


def torch_runs(module, x, device, spans=None, dtype=None):
    """The same of a torch module."""
    import torch

    module, x = module.to(device), torch.tensor(x, device=device, dtype=dtype)
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


def torch_peers(kind, units, x, dt):
    """The peers of a kind of layer on torch's GPU, if it has one."""
    try:
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if device is None:
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    cells = ("GRU", "LSTM") if kind == "dense" else (kind,)
    peers = {f"torch {cell}": torch_runs(getattr(torch.nn, cell)(x.shape[2], units, batch_first=True), x, device) for cell in cells}
    if kind != "dense":
        return peers | (flashrnn_peer(units, x) if kind == "LSTM" and device == "cuda" else {})
    try:
        from ncps.torch import CfC as TorchCfC
    except ImportError:
        return peers
    spans = np.repeat(dt[:, :, None], units, axis=2)
    return peers | {"ncps CfC": torch_runs(TorchCfC(I, units), x, device, spans)}


def flashrnn_peer(units, x):
    """FlashRNN's LSTM with one head, in bfloat16, which its fused backend asks for; its input product is a linear layer here."""
    try:
        import torch
        from flashrnn import flashrnn
    except ImportError:
        return {}

    class FlashLSTM(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs = torch.nn.Linear(x.shape[2], 4 * units, bias=False)
            self.R, self.b = (torch.nn.Parameter(0.05 * torch.randn(4, 1, *shape)) for shape in ((units, units), (units,)))

        def forward(self, x):
            projected = self.inputs(x).reshape(*x.shape[:2], 4, 1, units)
            zeros = torch.zeros(2, len(x), 1, 1, units, device=x.device, dtype=x.dtype)
            return flashrnn(projected, self.R, self.b, states=zeros, function="lstm", backend="cuda_fused")[0]

    return {"FlashRNN LSTM, bfloat16": torch_runs(FlashLSTM().to(torch.bfloat16), x, "cuda", dtype=torch.bfloat16)}


def compare(kind, layer_kind, units, B, T, seconds, slow_peers):
    """Milliseconds (forward, both) of the layer and its peers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, inputs_of(layer_kind, units))).astype(np.float32)
    dt = rng.uniform(0.1, 2, (B, T)).astype(np.float32)
    mlx_x = mx.array(x).astype(mx.bfloat16 if layer_kind == "bfloat16" else mx.float32)
    layer, gated = make_layer(layer_kind, units), layer_kind in ("LSTM", "GRU", "RNN")
    spans = None if gated else mx.array(dt)
    runs = {"ember_mlx": mlx_runs(layer, mlx_x, spans, kind)}
    if slow_peers and T <= 1000:
        runs["ember_mlx ops"] = mlx_runs(layer, mlx_x, spans, "ops")
        cell = layer_kind if gated else "GRU"
        runs[f"mlx.nn.{cell}"] = mlx_runs(getattr(nn, cell)(x.shape[2], units), mlx_x)
    if gated or layer_kind == "dense":
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

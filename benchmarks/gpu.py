"""python benchmarks/gpu.py: every fused scan on this GPU, checked against float64 and timed beside its peers; JSON, and one table last.

Runs on Metal (a Mac) and on MLX's CUDA build. Peers are those that are installed: torch (CUDA with cuDNN, or MPS), ncps on it, mlx.nn,
and the package's own MLX-ops form. Set MLX_ENABLE_TF32=0 before Python starts, so that MLX's float32 products on CUDA are float32.

    python benchmarks/gpu.py                        # checks and times all rows
    python benchmarks/gpu.py --rows "CfC 64" NCP    # the rows whose names contain one of these
    python benchmarks/gpu.py --sanitize             # compute-sanitizer's memcheck and racecheck over every kernel first (CUDA)
    python benchmarks/gpu.py --tune --rows "CfC 64" # tries layouts, and names the best beside the table's choice
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from measure import environment, print_table, timed, write_json
from mlx.utils import tree_flatten, tree_map

import ember_mlx
from ember_mlx import GRU, LSTM, LTC, RNN, CfC, CTRQNet, LQNet, NCPMap, RandomMap, StrideAwareCfC
from ember_mlx.backend import gpu_kind
from ember_mlx.kernels.first_use import check, in_half, works
from ember_mlx.kernels.tiles import Tile, current_family, forced_tile
from ember_mlx.scans.registry import RECURRENCES

I = 10
MOST_REGISTERS = 200  # weights of a thread that are worth trying, of 255 registers at 256 threads
Runs = tuple[Callable[[], object], Callable[[], object]]  # forward, forward + backward; each waits for its result


class Row(NamedTuple):
    """One line of the benchmark: a layer at a size, and the peers to time beside it.

    Args:
        layer: makes it, with return_sequences.
        units: of the layer, and of its peers.
        B, T: sequences and steps.
        peers: names in PEERS.
        dtype: of x and the parameters.
        inputs: features of x.
    """

    layer: Callable[[], nn.Module]
    units: int
    B: int
    T: int
    peers: tuple[str, ...]
    dtype: mx.Dtype = mx.float32
    inputs: int = I


ROWS: dict[str, Row] = {}


def add(name, layer, units, peers=(), sizes=((32, 1000),), dtype=mx.float32, inputs=I):
    """Add a layer's rows, one for each (B, T)."""
    for B, T in sizes:
        ROWS[f"{name}, B{B} T{T}"] = Row(layer, units, B, T, tuple(peers), dtype, inputs)


ALL_SIZES = ((32, 100), (32, 1000), (256, 1000), (32, 4096))
CFC_PEERS = ("ops", "mlx.nn.GRU", "torch GRU", "torch LSTM", "ncps CfC")
add("CfC 64, backbone 128", lambda: CfC(64, I, return_sequences=True), 64, CFC_PEERS, ALL_SIZES)
add("CfC 64, backbone 128, bfloat16", lambda: CfC(64, I, return_sequences=True), 64, ("torch GRU",), ((32, 1000),), mx.bfloat16)
for size in (256, 512):
    add(f"CfC {size}, backbone 128", lambda units=size: CfC(units, I, return_sequences=True), size, CFC_PEERS)
add("CfC 1024, backbone 1024", lambda: CfC(1024, I, backbone_units=1024, return_sequences=True), 1024, ("torch GRU",), ((32, 100),))
add("CfC NCP 32/16/8", lambda: CfC(NCPMap(32, 16, 8, I, seed=1), return_sequences=True), 56, ("ops", "ncps CfC NCP"))
add("CfC NCP 32/16/8, mixed memory", lambda: CfC(NCPMap(32, 16, 8, I, seed=1), mixed_memory=True, return_sequences=True), 56)
add("LQNet NCP 32/16/8", lambda: LQNet(NCPMap(32, 16, 8, I, seed=1)), 56, ("ops",))
add("CTRQNet NCP 32/16/8", lambda: CTRQNet(NCPMap(32, 16, 8, I, seed=1)), 56, ("ops",))
for full, units in (("64", 64), ("128", 128), ("256", 256)):
    sizes = ((32, 100), (32, 1000), (256, 1000)) if units == 64 else ((32, 100),)
    add(f"LTC {full}", lambda units=units: LTC(units, I), units, ("ops", "ncps LTC"), sizes)
add("LTC 1024 at 10 %", lambda: LTC(RandomMap(1024, 1024, I, sparsity_level=0.9, seed=1)), 1024, (), ((32, 100),))
add("LTC 64, bfloat16", lambda: LTC(64, I), 64, (), ((32, 1000),), mx.bfloat16)
add("LTC 64, rk4", lambda: LTC(64, I, solver="rk4"), 64, (), ((32, 100),))
add("LTC NCP 32/16/8", lambda: LTC(NCPMap(32, 16, 8, I, seed=1)), 56, ("ops", "ncps LTC NCP"), ((32, 100),))
add("LTC 64, mixed memory", lambda: LTC(64, I, mixed_memory=True), 64, ("ops",), ((32, 100), (32, 1000)))
add("LTC NCP 32/16/8, mixed memory", lambda: LTC(NCPMap(32, 16, 8, I, seed=1), mixed_memory=True), 56, (), ((32, 100),))
for cell, kind in (("LSTM", LSTM), ("GRU", GRU), ("RNN", RNN)):
    for units in (64, 256, 512, 1024):
        inputs = I if units == 64 else units  # as inside a stack of layers, where they are large
        flash = ("FlashRNN LSTM",) if cell == "LSTM" else ()
        peers = (f"torch {cell}", f"mlx.nn.{cell}", *flash)
        add(f"{cell} {units}", lambda kind=kind, n=inputs, m=units: kind(n, m), units, peers, inputs=inputs)
for units in (64, 512, 1024):
    inputs = I if units == 64 else units
    name, peers = f"LSTM {units}, proj_size {units // 2}", ("torch LSTM, projected",)
    add(name, lambda n=inputs, m=units: LSTM(n, m, proj_size=m // 2), units, peers, inputs=inputs)
add("StrideAwareCfC 64, strides 1 2 4 8", lambda: StrideAwareCfC(64, [1, 2, 4, 8], I, return_sequences=True), 256)
add("CfC 64, mixed memory", lambda: CfC(64, I, mixed_memory=True, return_sequences=True), 64)


def mlx_runs(layer, x, dt=None, backend=None) -> Runs:
    """An MLX layer's runs."""
    options = {"time_deltas": dt} if dt is not None and getattr(layer, "timed", False) else {}

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


def torch_device():
    """torch and its GPU, or None."""
    try:
        import torch
    except ImportError:
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    return device and (torch, device)


def torch_runs(make, x, dtype, spans=None) -> Runs | None:
    """A torch module's runs, or None where torch has no GPU or the peer is not installed."""
    found = torch_device()
    if found is None:
        return None
    torch, device = found
    try:
        module = make(torch)
    except ImportError:
        return None
    kind = getattr(torch, str(dtype).removeprefix("mlx.core."))
    module, x = module.to(device, kind), torch.tensor(x, device=device, dtype=kind)
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


def ncps_dense(units):
    def make(_):
        from ncps.torch import CfC as TorchCfC

        return TorchCfC(I, units)

    return make


def ncps_wired(_):
    from ncps.torch import CfC as TorchCfC
    from ncps.wirings import NCP

    return TorchCfC(I, NCP(32, 16, 8, 16, 8, 4, 8, seed=1))


def ncps_ltc(units):
    """ncps's LTC, fully connected, or on the NCP where `units` is None."""

    def make(_):
        from ncps.torch import LTC as TorchLTC
        from ncps.wirings import NCP

        return TorchLTC(I, NCP(32, 16, 8, 16, 8, 4, 8, seed=1) if units is None else units)

    return make


def flash_lstm(row):
    """FlashRNN's LSTM with one head; its fused backend asks for bfloat16 and CUDA, and its input product is a linear layer here."""

    def make(torch):
        from flashrnn import flashrnn

        class FlashLSTM(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inputs = torch.nn.Linear(row.inputs, 4 * row.units, bias=False)
                shapes = ((row.units, row.units), (row.units,))
                self.R, self.b = (torch.nn.Parameter(0.05 * torch.randn(4, 1, *shape)) for shape in shapes)

            def forward(self, x):
                projected = self.inputs(x).reshape(*x.shape[:2], 4, 1, row.units)
                zeros = torch.zeros(2, len(x), 1, 1, row.units, device=x.device, dtype=x.dtype)
                return flashrnn(projected, self.R, self.b, states=zeros, function="lstm", backend="cuda_fused")[0]

        return FlashLSTM()

    return make


def mlx_peer(cell):
    """A layer of mlx.nn."""
    return lambda row, x, dt: mlx_runs(getattr(nn, cell)(row.inputs, row.units), mx.array(x)) if row.T <= 1000 else None


def torch_peer(cell, projected=False):
    """A layer of torch.nn: with CUDA, cuDNN's; the state projected to half its units if asked for."""

    def runs(row, x, dt):
        options = {"proj_size": row.units // 2} if projected else {}
        return torch_runs(lambda torch: getattr(torch.nn, cell)(row.inputs, row.units, batch_first=True, **options), x, row.dtype)

    return runs


# name -> (row, x, dt) -> runs, or None where the peer is not here; x (B, T, I) and dt (B, T) are NumPy arrays
PEERS: dict[str, Callable[[Row, np.ndarray, np.ndarray], Runs | None]] = {
    "ops": lambda row, x, dt: mlx_runs(made(row), mx.array(x).astype(row.dtype), mx.array(dt), "ops") if row.T <= 1000 else None,
    **{f"mlx.nn.{cell}": mlx_peer(cell) for cell in ("RNN", "LSTM", "GRU")},
    **{f"torch {cell}": torch_peer(cell) for cell in ("RNN", "LSTM", "GRU")},
    "torch LSTM, projected": torch_peer("LSTM", projected=True),
    "FlashRNN LSTM": lambda row, x, dt: torch_runs(flash_lstm(row), x, mx.bfloat16),
    "ncps LTC": lambda row, x, dt: torch_runs(ncps_ltc(row.units), x, row.dtype),
    "ncps LTC NCP": lambda row, x, dt: torch_runs(ncps_ltc(None), x, row.dtype),
    "ncps CfC": lambda row, x, dt: torch_runs(ncps_dense(row.units), x, row.dtype, np.repeat(dt[:, :, None], row.units, axis=2)),
    "ncps CfC NCP": lambda row, x, dt: torch_runs(ncps_wired, x, row.dtype, dt[:, :, None]),
}
SLOW = ("ops", "mlx.nn.RNN", "mlx.nn.LSTM", "mlx.nn.GRU", "ncps CfC", "ncps CfC NCP", "ncps LTC", "ncps LTC NCP")  # loops of small launches


def made(row):
    """The row's layer."""
    mx.random.seed(0)
    layer = row.layer()
    layer.set_dtype(row.dtype)
    mx.eval(layer.parameters())
    return layer


def inputs_of(row):
    """x (B, T, I) and dt (B, T), NumPy."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((row.B, row.T, row.inputs)).astype(np.float32), rng.uniform(0.1, 2, (row.B, row.T)).astype(np.float32)


def milliseconds_of(pair, seconds):
    return [statistics.median(timed(run, seconds)) for run in pair]


def time_row(kind, row, seconds, without):
    """Milliseconds (forward, both) of the layer and its peers."""
    x, dt = inputs_of(row)
    runs = {"ember_mlx": mlx_runs(made(row), mx.array(x).astype(row.dtype), mx.array(dt), kind)}
    runs |= {name: PEERS[name](row, x, dt) for name in row.peers if name not in without}
    return {name: milliseconds_of(pair, seconds) for name, pair in runs.items() if pair is not None}


def check_all(kind, size=(33, 5, 64)):
    """Errors of every variant against float64, float32 and bfloat16: name -> (outputs, gradients, whether they are those of rounding)."""
    errors = {}
    for name, recurrence in RECURRENCES.items():
        for variant in recurrence.variants:
            spec, arrays = recurrence.problem(variant, *size, lengths=True, dtype=np.float32)
            for label, like in (("", None), *([(", bfloat16", in_half(arrays, mx.bfloat16))] if recurrence.fused.half else [])):
                if recurrence.fused.refusal(kind, spec, tree_map(mx.array, arrays)) is None:
                    pair = check(kind, recurrence, spec, arrays, like)
                    errors[f"{name} {variant}{label}"] = (*pair, works(pair, like))
    return errors


def candidates(weights, half_too):
    """Layouts to try: threads, rows, lanes that share a product, weights in registers if they can be, and in half precision."""
    yield Tile(256, 0, 8, False)
    for threads, split, half in itertools.product((128, 256, 512), (4, 8, 16), (False, True) if half_too else (False,)):
        for resident, rows in ((True, 1), (True, 2), (False, 1), (False, 2), (False, 4), (False, 8)):
            if not resident or weights / threads <= (2 if half else 1) * MOST_REGISTERS * 256 / max(threads, 256):
                yield Tile(threads, rows, split, resident, half)


def tune_row(kind, row, seconds):
    """(layout, forward, both) of every layout that gives the gradients of the table's choice, the fastest first; and the times of that."""
    x, dt = inputs_of(row)
    layer, x, dt = made(row), mx.array(x).astype(row.dtype), mx.array(dt)
    runs = mlx_runs(layer, x, dt, kind)
    step = nn.value_and_grad(layer, lambda m: m(x, time_deltas=dt).astype(mx.float32).sum())

    def result():
        with ember_mlx.use_backend(kind):
            return [np.array(a.astype(mx.float32)) for _, a in tree_flatten(step(layer))]

    expected, table = result(), milliseconds_of(runs, seconds)
    found = []
    weights = sum(a.size for _, a in tree_flatten(layer.parameters()))
    for tile in candidates(weights, row.dtype != mx.float32):
        token = forced_tile.set(tile)
        try:
            if all(np.abs(a - b).max() <= 1e-2 * max(1, np.abs(b).max()) for a, b in zip(result(), expected, strict=True)):
                found.append((tile, *milliseconds_of(runs, seconds)))
        except (RuntimeError, ValueError) as error:  # more memory or registers than there are
            print(f"  {tile}: {str(error).splitlines()[0][:120]}", flush=True)
        finally:
            forced_tile.reset(token)
    return sorted(found, key=lambda item: item[2]), table


def sanitize():
    """compute-sanitizer over every kernel, in processes of their own; whether it found nothing."""
    if shutil.which("compute-sanitizer") is None:
        sys.exit("gpu.py: --sanitize needs compute-sanitizer on the PATH")
    clean = True
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--only-check", "--small"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"compute-sanitizer {tool}: {'clean' if done.returncode == 0 else 'FAILED'}", flush=True)
        if done.returncode:
            clean = False
            print(done.stdout[-6000:], done.stderr[-3000:], sep="\n")
    return clean


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each figure")
    parser.add_argument("--rows", nargs="+", default=[""], metavar="TEXT", help="rows whose names contain one of these; all of them")
    parser.add_argument("--without-slow-peers", action="store_true", help="leave out loops of small launches (ncps, mlx.nn, ops)")
    parser.add_argument("--sanitize", action="store_true", help="run compute-sanitizer over every kernel first")
    parser.add_argument("--tune", action="store_true", help="try layouts instead of timing peers")
    parser.add_argument("--only-check", action="store_true", help="check every kernel, time nothing")
    parser.add_argument("--small", action="store_true", help="check on small problems, for slow tools")
    parser.add_argument("--json", type=Path, default=Path("out/bench-gpu.json"))
    return parser.parse_args()


def tune(kind, rows, seconds):
    """The tuned table's rows, and what goes into the JSON."""
    lines, kept = [], {}
    for name, row in rows.items():
        found, table = tune_row(kind, row, seconds)
        kept[name] = {"table": table, "tiles": [[list(tile), forward, both] for tile, forward, both in found]}
        lines.append([name, "the table's choice", *(f"{ms:.2f} ms" for ms in table)])
        lines += [[name, f"{tile}", f"{forward:.2f} ms", f"{both:.2f} ms"] for tile, forward, both in found[:3]]
        print(*lines[-4:], sep="\n", flush=True)
    return lines, kept


def time_rows(kind, rows, seconds, without):
    """The table of times, and what goes into the JSON."""
    lines, kept = [], {}
    for name, row in rows.items():
        kept[name] = times = time_row(kind, row, seconds, without)
        print(name, times, flush=True)
        for peer, pair in times.items():
            lines.append([name, peer, *(f"{ms:.2f} ms ({ms / times['ember_mlx'][k]:.2f} x)" for k, ms in enumerate(pair))])
    return lines, kept


def main():
    arguments, kind = parsed(), gpu_kind()
    if kind is None:
        sys.exit("gpu.py: MLX's default device is the CPU here; this benchmark needs Metal or CUDA")
    if kind == "cuda" and os.environ.get("MLX_ENABLE_TF32") != "0":
        print("MLX_ENABLE_TF32 is not 0: MLX's float32 products run in TF32, and errors are larger")
    clean = not arguments.sanitize or sanitize()
    errors = check_all(kind, (5, 3, 31) if arguments.small else (33, 5, 64))
    rows = {name: row for name, row in ROWS.items() if any(text in name for text in arguments.rows) and not arguments.only_check}
    if arguments.tune:
        lines, result = tune(kind, rows, arguments.seconds)
    else:
        lines, result = time_rows(kind, rows, arguments.seconds, SLOW if arguments.without_slow_peers else ())
    device = {name: str(value) for name, value in mx.device_info().items()}
    measured = {"errors": errors, "tune" if arguments.tune else "ms": result}
    write_json(arguments.json, {"device": device, "kind": kind, "family": current_family()._asdict(), **measured})
    print(f"\n{device.get('device_name')}, {environment()['versions']}, {environment()['date']}")
    texts = [[name, f"{a:.1e}", f"{b:.1e}", "" if ok else "WRONG"] for name, (a, b, ok) in errors.items()]
    print_table("errors against float64", ["kernel", "outputs", "gradients", ""], texts)
    if lines:
        print_table("the best layouts" if arguments.tune else "times", ["", "", "forward", "forward + backward"], lines)
    sys.exit(0 if clean and all(ok for *_, ok in errors.values()) else 1)


if __name__ == "__main__":
    main()

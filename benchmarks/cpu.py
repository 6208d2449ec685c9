"""python benchmarks/cpu.py: the layers on the CPU beside their peers in PyTorch and MLX, all in one run."""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from measure import environment, print_table, timed, write_json

import ember_mlx
from ember_mlx import CfC

B, I, H, Z = 32, 10, 64, 128
KINDS = ("forward", "forward+backward")
NCPS, PLAIN, OPS = "ncps.torch.CfC", "loop of MLX ops, as one writes it", "ember_mlx, its ops form"
OURS, HALF = "ember_mlx", "ember_mlx, lengths T/2"
GATED = ("LSTM", "GRU", "RNN")


def torch_runs(x, dt):
    """ncps.torch.CfC: a forward run and a training run."""
    import torch
    from ncps.torch import CfC as TorchCfC

    spans = torch.tensor(dt)[:, :, None].expand(-1, -1, H).contiguous()
    return module_runs(TorchCfC(I, H, backbone_units=Z, backbone_layers=1), torch.tensor(x), timespans=spans)


def module_runs(module, x, **options):
    """The same of a torch module."""
    import torch

    def forward():
        with torch.no_grad():
            return module(x, **options)[0]

    def both():
        module.zero_grad()
        module(x, **options)[0].sum().backward()

    return forward, both


class PlainCfC(nn.Module):
    """The loop that one writes in MLX: a cell of nn.Linear layers, called for each step."""

    def __init__(self):
        super().__init__()
        self.backbone, self.heads = nn.Linear(I + H, Z), nn.Linear(Z, 4 * H)

    def __call__(self, x, time_deltas, **_):
        h, steps = mx.zeros((x.shape[0], H)), []
        for t in range(x.shape[1]):
            z = 1.7159 * mx.tanh(0.666 * self.backbone(mx.concatenate([x[:, t], h], axis=1)))
            f, g, t_a, t_b = mx.split(self.heads(z), 4, axis=1)
            t_interp = mx.sigmoid(t_a * time_deltas[:, t, None] + t_b)
            h = mx.tanh(f) * (1 - t_interp) + mx.tanh(g) * t_interp
            steps.append(h)
        return mx.stack(steps, axis=1)


def ember_runs(layer, x, backend, **options):
    """An MLX layer in one form: a forward run and a training run."""

    def output(m):
        y = m(mx.array(x), **options)
        return y[0] if isinstance(y, tuple) else y

    step = nn.value_and_grad(layer, lambda m: output(m).sum())

    def forward():
        with ember_mlx.use_backend(backend):
            mx.eval(output(layer))

    def both():
        with ember_mlx.use_backend(backend):
            mx.eval(step(layer))

    return forward, both


def gated_runs(name, x, lengths):
    """torch.nn.LSTM, mlx.nn.LSTM, ember_mlx.LSTM and so on."""
    package, cell = name.split(",")[0].rsplit(".", 1)
    if package == "torch.nn":
        import torch

        return module_runs(getattr(torch.nn, cell)(I, H, batch_first=True), torch.tensor(x))
    if package == "mlx.nn":
        return ember_runs(getattr(nn, cell)(I, H), x, "ops")
    return ember_runs(getattr(ember_mlx, cell)(I, H), x, "numpy", lengths=lengths)


def contender(name, T):
    """The runs (forward, forward + backward) of a contender on the same data."""
    rng = np.random.default_rng(0)
    x, dt = rng.standard_normal((B, T, I)).astype(np.float32), rng.uniform(0.1, 2, (B, T)).astype(np.float32)
    lengths = np.linspace(1, T - 1, B).astype(np.int32) if name.endswith(HALF.removeprefix(OURS)) else None  # T / 2 on average
    if name.split(",")[0].endswith(GATED):
        return gated_runs(name, x, lengths)
    if name == NCPS:
        return torch_runs(x, dt)
    options = {"time_deltas": mx.array(dt), "return_sequences": True}
    if name == PLAIN:
        return ember_runs(PlainCfC(), x, "ops", **options)
    return ember_runs(CfC(H, I, backbone_units=Z), x, "ops" if name == OPS else "numpy", lengths=lengths, **options)


def tables(T):
    """For each kind of layer those who take part at T steps, ours first; the loops of MLX operations only where they are bearable."""
    torch, ncps = (importlib.util.find_spec(package) for package in ("torch", "ncps"))
    if not (torch and ncps):
        print("torch or ncps is not installed: their rows are left out (pip install 'ember-mlx[bench]')")
    loops = [PLAIN, OPS] if T <= 200 else []
    result = {f"CfC, backbone {Z}": [OURS, HALF, *loops, *([NCPS] if torch and ncps else [])]}
    for cell in GATED:
        ours = f"{OURS}.{cell}"
        peers = [*([f"mlx.nn.{cell}"] if loops else []), *([f"torch.nn.{cell}"] if torch else [])]
        result[cell] = [ours, HALF.replace(OURS, ours), *peers]
    return result


def compare(names, T, seconds, rounds):
    """Milliseconds of some contenders at T steps. Each has processes of its own, in turn: one's waiting threads would slow the next."""
    times = {name: {kind: [] for kind in KINDS} for name in names}
    for _ in range(rounds):
        for name in names:
            command = [sys.executable, __file__, "--worker", name, "--steps", str(T), "--seconds", str(seconds)]
            for kind, values in json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout).items():
                times[name][kind] += values
    medians = {name: {kind: statistics.median(values) for kind, values in by_kind.items()} for name, by_kind in times.items()}
    least = {name: {kind: min(values) for kind, values in by_kind.items()} for name, by_kind in times.items()}
    return {"median": medians, "min": least}


def work(name, T, seconds):
    """What a contender's process does: print its times as JSON."""
    print(json.dumps({kind: timed(run, seconds) for kind, run in zip(KINDS, contender(name, T), strict=True)}))


def peak_memory(T):
    """The peak of a training step beyond parameters and inputs, in arrays of (B, T, H) float32."""
    layer = CfC(H, I, backbone_units=Z)
    x, dt = mx.random.normal((B, T, I)), mx.random.uniform(0.1, 2, (B, T))
    _, both = ember_runs(layer, x, "numpy", time_deltas=dt, return_sequences=True)
    both()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    both()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    array = B * T * H * 4
    return {"numpy": numpy_peak / array, "mlx": (mx.get_peak_memory() - before) / array}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000], help="T, one table each")
    parser.add_argument("--layers", nargs="+", choices=("CfC", *GATED), default=("CfC", *GATED), help="a table for each")
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each figure of a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("out/bench-cpu.json"))
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.steps[0], arguments.seconds)
        return
    result = {"sizes": {"B": B, "I": I, "H": H, "backbone": Z}, "ms": {}, "peak": {}}
    for T in arguments.steps:
        chosen = {kind: names for kind, names in tables(T).items() if kind.split(",")[0] in arguments.layers}
        result["ms"][T] = {kind: compare(names, T, arguments.seconds, arguments.rounds) for kind, names in chosen.items()}
        result["peak"][T] = peak_memory(T)
    write_json(arguments.json, result)
    machine = environment()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['versions']}, {machine['date']}")
    print("median (and least) of runs in turn, each contender in processes of its own; ratios of the medians")
    for T in arguments.steps:
        for kind, ms in result["ms"][T].items():
            ours = next(iter(ms["median"].values()))
            rows = [
                [
                    name,
                    *(f"{ms['median'][name][k]:.1f} ms ({ms['min'][name][k]:.1f}; {ms['median'][name][k] / ours[k]:.2f} x)" for k in KINDS),
                ]
                for name in ms["median"]
            ]
            print_table(f"{kind}, B={B}, T={T}, I={I}, {H} units, float32", ["", *KINDS], rows)
        peak = result["peak"][T]
        print(f"CfC: peak of a training step: {peak['numpy']:.1f} (NumPy) + {peak['mlx']:.1f} (MLX) arrays of (B, T, H)")


if __name__ == "__main__":
    main()

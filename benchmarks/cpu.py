"""python benchmarks/cpu.py: the CfC layer on the CPU beside ncps (PyTorch) and the loop of MLX ops, all in one run."""

import argparse
import tracemalloc
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from measure import environment, print_table, side_by_side, write_json

import ember_mlx
from ember_mlx import CfC
from ember_mlx.convert import from_ncps

B, I, H, Z = 32, 10, 64, 128


def torch_runs(x, dt):
    """ncps.torch.CfC: its module, a forward run and a training run."""
    import torch
    from ncps.torch import CfC as TorchCfC

    torch.manual_seed(0)
    module = TorchCfC(I, H, backbone_units=Z, backbone_layers=1)
    x, spans = torch.tensor(x), torch.tensor(dt)[:, :, None].expand(-1, -1, H).contiguous()

    def forward():
        with torch.no_grad():
            return module(x, timespans=spans)[0]

    def both():
        module.zero_grad()
        module(x, timespans=spans)[0].sum().backward()

    return module, forward, both


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


def ember_runs(layer, x, dt, backend, lengths=None):
    """The layer in one form: a forward run and a training run."""
    x, dt = mx.array(x), mx.array(dt)
    step = nn.value_and_grad(layer, lambda m: m(x, time_deltas=dt, lengths=lengths, return_sequences=True).sum())

    def forward():
        with ember_mlx.use_backend(backend):
            mx.eval(layer(x, time_deltas=dt, lengths=lengths, return_sequences=True))

    def both():
        with ember_mlx.use_backend(backend):
            mx.eval(step(layer))

    return forward, both


def compare(T, seconds):
    """Milliseconds of every contender at T steps."""
    rng = np.random.default_rng(0)
    x, dt = rng.standard_normal((B, T, I)).astype(np.float32), rng.uniform(0.1, 2, (B, T)).astype(np.float32)
    lengths = np.linspace(1, T - 1, B).astype(np.int32)  # T / 2 on average
    runs = {}
    try:
        module, forward, both = torch_runs(x, dt)
        layer = from_ncps(module)
        runs["ncps.torch.CfC"] = (forward, both)
    except ImportError:
        print("torch and ncps are not installed: their rows are left out (pip install 'ember-mlx[bench]')")
        layer = CfC(H, I, backbone_units=Z)
    if T <= 200:
        runs["loop of MLX ops, as one writes it"] = ember_runs(PlainCfC(), x, dt, "ops")
        runs["ember_mlx, its ops form"] = ember_runs(layer, x, dt, "ops")
    runs["ember_mlx"] = ember_runs(layer, x, dt, "numpy")
    runs["ember_mlx, lengths T/2"] = ember_runs(layer, x, dt, "numpy", lengths)
    forward = side_by_side({name: pair[0] for name, pair in runs.items()}, seconds)
    both = side_by_side({name: pair[1] for name, pair in runs.items()}, seconds)
    return {name: {"forward": forward[name], "forward+backward": both[name]} for name in runs}


def peak_memory(T):
    """The peak of a training step beyond parameters and inputs, in arrays of (B, T, H) float32."""
    layer = CfC(H, I, backbone_units=Z)
    x, dt = mx.random.normal((B, T, I)), mx.random.uniform(0.1, 2, (B, T))
    _, both = ember_runs(layer, x, dt, "numpy")
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
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each contender")
    parser.add_argument("--json", type=Path, default=Path("out/bench-cpu.json"))
    arguments = parser.parse_args()
    result = {"sizes": {"B": B, "I": I, "H": H, "backbone": Z}, "ms": {}, "peak": {}}
    for T in arguments.steps:
        result["ms"][T], result["peak"][T] = compare(T, arguments.seconds), peak_memory(T)
    write_json(arguments.json, result)
    machine = environment()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['versions']}, {machine['date']}; median of runs in turn")
    for T in arguments.steps:
        ours = result["ms"][T]["ember_mlx"]
        rows = [
            [name, *(f"{ms[kind]:.1f} ms ({ms[kind] / ours[kind]:.2f} x)" for kind in ("forward", "forward+backward"))]
            for name, ms in result["ms"][T].items()
        ]
        title = f"CfC, B={B}, T={T}, I={I}, {H} units, backbone {Z}, float32"
        print_table(title, ["", "forward", "forward + backward"], rows)
        peak = result["peak"][T]
        print(f"peak of a training step: {peak['numpy']:.1f} (NumPy) + {peak['mlx']:.1f} (MLX) arrays of (B, T, H)")


if __name__ == "__main__":
    main()

"""python benchmarks/cpu.py: the CfC and LTC layers on the CPU beside ncps (PyTorch) and loops of MLX ops, all in one run."""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from measure import environment, print_table, timed, write_json

import ember_mlx
from ember_mlx import LTC, CfC, NCPMap

B, I, H, Z = 32, 10, 64, 128
KINDS = ("forward", "forward+backward")
NCPS, PLAIN, OPS = "ncps (PyTorch)", "loop of MLX ops, as one writes it", "ember_mlx, its ops form"
OURS, HALF = "ember_mlx", "ember_mlx, lengths T/2"


def ncp_map():
    return NCPMap(32, 16, 8, I, seed=1)


def ncps_cfc():
    from ncps.torch import CfC as TorchCfC

    return TorchCfC(I, H, backbone_units=Z, backbone_layers=1)


def ncps_ltc():
    from ncps.torch import LTC as TorchLTC

    return TorchLTC(I, H)


def ncps_ltc_ncp():
    """On the synapses of `ncp_map`."""
    from ncps.torch import LTC as TorchLTC
    from ncps.wirings import Wiring

    ours = ncp_map()
    wiring = Wiring(ours.units)
    wiring.set_output_dim(ours.output_dim)
    wiring.set_input_dim(I)
    wiring.adjacency_matrix, wiring.sensory_adjacency_matrix = ours.adjacency_matrix.copy(), ours.sensory_adjacency_matrix.copy()
    return TorchLTC(I, wiring)


def torch_runs(module, units, x, dt):
    """A module of ncps.torch: a forward run and a training run."""
    import torch

    x, spans = torch.tensor(x), torch.tensor(dt)[:, :, None].expand(-1, -1, units).contiguous()

    def forward():
        with torch.no_grad():
            return module(x, timespans=spans)[0]

    def both():
        module.zero_grad()
        module(x, timespans=spans)[0].sum().backward()

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


class Contest(NamedTuple):
    """A kind of layer.

    Args:
        title: of the table.
        units: H.
        ember: makes our layer.
        ncps: makes that of ncps.
        plain: makes the loop that one writes in MLX, if it takes part.
    """

    title: str
    units: int
    ember: object
    ncps: object
    plain: object = None


CONTESTS = {
    "cfc": Contest(f"CfC, {H} units, backbone {Z}", H, lambda: CfC(H, I, backbone_units=Z), ncps_cfc, PlainCfC),
    "ltc": Contest(f"LTC, {H} units, fully connected, 6 unfolds", H, lambda: LTC(H, I), ncps_ltc),
    "ltc-ncp": Contest("LTC, NCP of 32/16/8 units, 6 unfolds", 56, lambda: LTC(ncp_map()), ncps_ltc_ncp),
}


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


def contender(layer, name, T):
    """The runs (forward, forward + backward) of a contender on the same data."""
    rng, contest = np.random.default_rng(0), CONTESTS[layer]
    x, dt = rng.standard_normal((B, T, I)).astype(np.float32), rng.uniform(0.1, 2, (B, T)).astype(np.float32)
    if name == NCPS:
        return torch_runs(contest.ncps(), contest.units, x, dt)
    if name == PLAIN:
        return ember_runs(contest.plain(), x, dt, "ops")
    lengths = np.linspace(1, T - 1, B).astype(np.int32) if name == HALF else None  # T / 2 on average
    return ember_runs(contest.ember(), x, dt, "ops" if name == OPS else "numpy", lengths)


def contenders(layer, T):
    """Who takes part at T steps: the loops of MLX operations only where they are bearable."""
    names = [OURS, HALF]
    if T <= 200:
        names += [PLAIN] if CONTESTS[layer].plain else []
        names.append(OPS)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("ncps"):
        return [NCPS, *names]
    print("torch and ncps are not installed: their row is left out (pip install 'ember-mlx[bench]')")
    return names


def compare(layer, T, seconds, rounds):
    """Milliseconds of every contender at T steps. Each has processes of its own, in turn: one's waiting threads would slow the next."""
    names = contenders(layer, T)
    times = {name: {kind: [] for kind in KINDS} for name in names}
    for _ in range(rounds):
        for name in names:
            command = [sys.executable, __file__, "--layers", layer, "--worker", name, "--steps", str(T), "--seconds", str(seconds)]
            for kind, values in json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout).items():
                times[name][kind] += values
    return {name: {kind: statistics.median(values) for kind, values in by_kind.items()} for name, by_kind in times.items()}


def work(layer, name, T, seconds):
    """What a contender's process does: print its times as JSON."""
    print(json.dumps({kind: timed(run, seconds) for kind, run in zip(KINDS, contender(layer, name, T), strict=True)}))


def peak_memory(layer, T):
    """The peak of a training step beyond parameters and inputs, in arrays of (B, T, H) float32."""
    contest = CONTESTS[layer]
    x, dt = mx.random.normal((B, T, I)), mx.random.uniform(0.1, 2, (B, T))
    _, both = ember_runs(contest.ember(), x, dt, "numpy")
    both()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    both()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    array = B * T * contest.units * 4
    return {"numpy": numpy_peak / array, "mlx": (mx.get_peak_memory() - before) / array}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000], help="T, one table each")
    parser.add_argument("--layers", nargs="+", choices=CONTESTS, default=list(CONTESTS), help="kinds of layers")
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each figure of a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("out/bench-cpu.json"))
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.layers[0], arguments.worker, arguments.steps[0], arguments.seconds)
        return
    result = {"sizes": {"B": B, "I": I, "H": H, "backbone": Z}, "ms": {}, "peak": {}}
    for layer in arguments.layers:
        result["ms"][layer] = {T: compare(layer, T, arguments.seconds, arguments.rounds) for T in arguments.steps}
        result["peak"][layer] = {T: peak_memory(layer, T) for T in arguments.steps}
    write_json(arguments.json, result)
    machine = environment()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['versions']}, {machine['date']}")
    print("median of runs in turn, each contender in processes of its own")
    for layer in arguments.layers:
        for T in arguments.steps:
            print_comparison(layer, T, result["ms"][layer][T], result["peak"][layer][T])


def print_comparison(layer, T, times, peak):
    """The table of one kind of layer at T steps."""
    ours = times[OURS]
    rows = [
        [name, *(f"{ms[kind]:.1f} ms ({ms[kind] / ours[kind]:.2f} x)" for kind in ("forward", "forward+backward"))]
        for name, ms in times.items()
    ]
    print_table(f"{CONTESTS[layer].title}, B={B}, T={T}, I={I}, float32", ["", "forward", "forward + backward"], rows)
    print(f"peak of a training step: {peak['numpy']:.1f} (NumPy) + {peak['mlx']:.1f} (MLX) arrays of (B, T, H)")


if __name__ == "__main__":
    main()

"""python benchmarks/cpu.py: the layers on the CPU beside their peers in PyTorch and MLX, all in one run."""

import argparse
import contextlib
import importlib.util
import json
import random
import signal
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from measure import environment, print_table, timed, write_json

import ember_mlx
from ember_mlx import LTC, CfC, NCPMap, StrideAwareCfC

B, I, H, Z = 32, 10, 64, 128
KINDS = ("forward", "forward+backward")
OURS, HALF, OPS = "ember_mlx", "ember_mlx, lengths T/2", "ember_mlx, its ops form"
NCPS, PLAIN, ONE = "ncps (PyTorch)", "loop of MLX ops, as one writes it", "ember_mlx.CfC, stride 1 alone"
MOST_STEPS_OF_LOOPS = 200  # beyond it loops of MLX operations are unbearable


class Contest(NamedTuple):
    """A kind of layer.

    Args:
        title: of the table.
        ours: makes our layer.
        units: of its state.
        peers: name -> makes another layer, of MLX or of torch.
    """

    title: str
    ours: Callable
    units: int
    peers: dict[str, Callable]


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


def torch_cell(cell):
    def make():
        import torch

        return getattr(torch.nn, cell)(I, H, batch_first=True)

    return make


class PlainCfC(nn.Module):
    """The loop that one writes in MLX: a cell of nn.Linear layers, called for each step."""

    timed = True

    def __init__(self):
        super().__init__()
        self.backbone, self.heads = nn.Linear(I + H, Z), nn.Linear(Z, 4 * H)

    def __call__(self, x, time_deltas):
        h, steps = mx.zeros((x.shape[0], H)), []
        for t in range(x.shape[1]):
            z = 1.7159 * mx.tanh(0.666 * self.backbone(mx.concatenate([x[:, t], h], axis=1)))
            f, g, t_a, t_b = mx.split(self.heads(z), 4, axis=1)
            t_interp = mx.sigmoid(t_a * time_deltas[:, t, None] + t_b)
            h = mx.tanh(f) * (1 - t_interp) + mx.tanh(g) * t_interp
            steps.append(h)
        return mx.stack(steps, axis=1)


def full(kind, *arguments, **options):
    return lambda: kind(*arguments, return_sequences=True, **options)


CONTESTS = {
    "CfC": Contest(f"CfC, {H} units, backbone {Z}", full(CfC, H, I, backbone_units=Z), H, {NCPS: ncps_cfc, PLAIN: PlainCfC}),
    "LTC": Contest(f"LTC, {H} units, fully connected, 6 unfolds", full(LTC, H, I), H, {NCPS: ncps_ltc}),
    "LTC-NCP": Contest("LTC, NCP of 32/16/8 units, 6 unfolds", lambda: LTC(ncp_map()), 56, {NCPS: ncps_ltc_ncp}),
    **{
        cell: Contest(
            f"{cell}, {H} units",
            full(getattr(ember_mlx, cell), I, H),
            H,
            {f"mlx.nn.{cell}": lambda cell=cell: getattr(nn, cell)(I, H), f"torch.nn.{cell}": torch_cell(cell)},
        )
        for cell in ("LSTM", "GRU", "RNN")
    },
    "StrideAwareCfC": Contest(
        f"StrideAwareCfC, {H} units a stride, strides 1, 2, 4, 8", full(StrideAwareCfC, H, [1, 2, 4, 8], I), 4 * H, {ONE: full(CfC, H, I)}
    ),
}


def torch_runs(module, units, x, dt):
    """A torch module's forward run and training run; those of ncps take the elapsed times."""
    import torch

    options = {}
    if type(module).__module__.startswith("ncps."):
        options["timespans"] = torch.tensor(dt)[:, :, None].expand(-1, -1, units).contiguous()
    x = torch.tensor(x)

    def forward():
        with torch.no_grad():
            return module(x, **options)[0]

    def both():
        module.zero_grad()
        module(x, **options)[0].sum().backward()

    return forward, both


def mlx_runs(layer, x, dt, backend, **options):
    """An MLX layer's forward run and training run; ours take the elapsed times where they know time, and a backend."""
    x, options = mx.array(x), options | ({"time_deltas": mx.array(dt)} if getattr(layer, "timed", False) else {})

    def output(m):
        y = m(x, **options)
        return y[0] if isinstance(y, tuple) else y

    step = nn.value_and_grad(layer, lambda m: output(m).sum())

    def run(function):
        def evaluated():
            with ember_mlx.use_backend(backend):
                mx.eval(function(layer))

        return evaluated

    return run(output), run(step)


def contender(kind, name, T):
    """The runs (forward, forward + backward) of a contender on the same data."""
    contest, rng = CONTESTS[kind], np.random.default_rng(0)
    x, dt = rng.standard_normal((B, T, I)).astype(np.float32), rng.uniform(0.1, 2, (B, T)).astype(np.float32)
    layer = contest.peers.get(name, contest.ours)()
    if not isinstance(layer, nn.Module):
        return torch_runs(layer, contest.units, x, dt)
    lengths = {"lengths": np.linspace(1, T - 1, B).astype(np.int32)} if name == HALF else {}  # T / 2 on average
    return mlx_runs(layer, x, dt, "ops" if name == OPS else "numpy", **lengths)


def contenders(kind, T):
    """Who takes part at T steps, ours first."""
    packages = {"ncps": ("torch", "ncps"), "torch": ("torch",)}
    names = [OURS, HALF, *([OPS] if T <= MOST_STEPS_OF_LOOPS else [])]
    for name in CONTESTS[kind].peers:
        missing = [p for p in packages.get(name.split(".")[0].split(" ")[0], ()) if not importlib.util.find_spec(p)]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} is not installed (pip install 'ember-mlx[bench]')")
        elif T <= MOST_STEPS_OF_LOOPS or not name.startswith(("mlx.nn", "loop")):
            names.append(name)
    return names


class Worker:
    """A contender in a process of its own, stopped while it is not asked: one's waiting threads would slow the others.

    Args:
        kind: of layer.
        name: of the contender.
        T: steps.
    """

    def __init__(self, kind, name, T):
        command = [sys.executable, __file__, "--layers", kind, "--worker", name, "--steps", str(T)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._answer()  # it is ready
        except BaseException:
            self.close()
            raise

    def times(self, run, seconds):
        """Milliseconds of each run of a kind within some seconds."""
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps([run, seconds]), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self):
        """End the process, which may be stopped."""
        self.process.kill()
        self.process.communicate()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender's process ended: {' '.join(self.process.args)}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)


def work(kind, name, T):
    """What a contender's process does: for each line [run, seconds] that comes, the times as JSON."""
    runs = dict(zip(KINDS, contender(kind, name, T), strict=True))
    for run in runs.values():
        run()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        run, seconds = json.loads(line)
        print(json.dumps(timed(runs[run], seconds)), flush=True)


def compare(kind, T, seconds, rounds):
    """Every contender at T steps: name -> run -> median and least milliseconds, and the ratio to ours.

    They take turns, in another order every round: what runs before leaves its mark on caches and clocks.
    The ratio is the median over the rounds: a machine's speed drifts, but little within a round.
    """
    names, shuffled = contenders(kind, T), random.Random(0)
    times = {name: {run: [] for run in KINDS} for name in names}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(contextlib.closing(Worker(kind, name, T))) for name in names}
        for _ in range(rounds):
            for run in KINDS:
                for name in shuffled.sample(names, len(names)):
                    times[name][run].append(workers[name].times(run, seconds))

    def figures(name, run):
        own, ours = ([statistics.median(of_round) for of_round in times[n][run]] for n in (name, OURS))
        return {
            "median": statistics.median(own),
            "min": min(min(of_round) for of_round in times[name][run]),
            "ratio": statistics.median(a / b for a, b in zip(own, ours, strict=True)),
        }

    return {name: {run: figures(name, run) for run in KINDS} for name in names}


def peak_memory(kind, T):
    """The peak of a training step beyond parameters and inputs, in arrays of (B, T, H) float32; with what a step leaves for the next."""
    _, both = contender(kind, OURS, T)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    both()
    both()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    array = B * T * CONTESTS[kind].units * 4
    return {"numpy": numpy_peak / array, "mlx": (mx.get_peak_memory() - before) / array}


def print_comparison(kind, T, result, peak):
    """The table of one kind of layer at T steps."""

    def cell(figures):
        return f"{figures['median']:.1f} ms ({figures['min']:.1f}; {figures['ratio']:.2f} x)"

    rows = [[name, *(cell(by_run[run]) for run in KINDS)] for name, by_run in result.items()]
    print_table(f"{CONTESTS[kind].title}, B={B}, T={T}, I={I}, float32", ["", "forward", "forward + backward"], rows)
    print(f"peak of a training step: {peak['numpy']:.1f} (NumPy) + {peak['mlx']:.1f} (MLX) arrays of (B, T, H)")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000], help="T, one table each")
    parser.add_argument("--layers", nargs="+", choices=CONTESTS, default=list(CONTESTS), help="a table for each")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each figure of a round")
    parser.add_argument("--rounds", type=int, default=11, help="how often the contenders take turns")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("out/bench-cpu.json"))
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.layers[0], arguments.worker, arguments.steps[0])
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the contenders' processes end too
    result = {"sizes": {"B": B, "I": I, "H": H, "backbone": Z}, "ms": {}, "peak": {}}
    for kind in arguments.layers:
        result["ms"][kind] = {T: compare(kind, T, arguments.seconds, arguments.rounds) for T in arguments.steps}
        result["peak"][kind] = {T: peak_memory(kind, T) for T in arguments.steps}
    write_json(arguments.json, result)
    machine = environment()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['versions']}, {machine['date']}")
    print("median (and least) of runs in turn, each contender in a process of its own; the ratio to ours is the median of the rounds' own")
    for kind in arguments.layers:
        for T in arguments.steps:
            print_comparison(kind, T, result["ms"][kind][T], result["peak"][kind][T])


if __name__ == "__main__":
    main()

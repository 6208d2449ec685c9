"""Seconds of training to an accuracy: our LSTM, GRU and CfC beside torch's LSTM and GRU and ncps's CfC, on the demo's two tasks.

A layer's contenders start from the same weights and get the same data, batches, rates and Adam, so that they learn the same but for
rounding: before training, and after two steps, their outputs must be ours. Epochs are trained in turns, in another order every round, each
contender in a process of its own that is stopped while it waits. Seconds are those of the training steps; tests are not counted.

    python benchmarks/training.py
    python benchmarks/training.py --quick
    python benchmarks/training.py --tasks digits --layers GRU --threads 2
"""

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contest import WORKS, Workers, judged, missing
from measure import THREADS, blas, environment, load, print_table
from trainers import OURS, PEERS, RECIPES

PACKAGES = {"torch": ("torch",), "ncps": ("torch", "ncps")}
QUICK = {"tasks": ["vowels"], "seeds": 1, "epochs": 12}
HEADER = ["", "trained by", "seconds to {target}", "seeds that reached it", "seconds an epoch", "last accuracy (%)"]


class Training:
    """One layer on one task from one seed's weights: its contenders, and what each epoch of each measured."""

    def __init__(self, task: str, layer: str, seed: int, epochs: int, most: int | None):
        self.task, self.layer, self.seed, self.epochs, self.most = task, layer, seed, epochs, most
        self.measured: dict[str, list[dict[str, float]]] = {}
        self.failures: dict[str, str] = {}

    def run(self, workers: Workers, shuffled: random.Random) -> None:
        """Compare the contenders with ours, then train those that are right."""
        names = [name for name in (OURS, PEERS[self.layer]) if not self._lacks(name)]
        self._prepare(names, workers)
        for _ in range(self.epochs):
            todo = [name for name in self.measured if name not in self.failures]
            for name in shuffled.sample(todo, len(todo)):
                try:
                    self.measured[name].append(workers[name].ask(do="epoch", name=name))
                except RuntimeError as error:
                    self.failures[name] = f"FAILED: {error}"

    def _lacks(self, name: str) -> bool:
        lacking = missing(name, PACKAGES)
        if lacking:
            self.failures[name] = f"left out: {', '.join(lacking)} not installed"
        return bool(lacking)

    def _prepare(self, names: list[str], workers: Workers) -> None:
        reference: dict[str, np.ndarray] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                path = Path(folder) / "results.npz"
                key = [self.task, self.layer, self.seed, self.epochs, self.most]
                try:
                    told = workers[name].ask(do="prepare", key=key, name=name, path=str(path))
                except RuntimeError as error:
                    self.failures[name] = f"FAILED: {error}"
                    continue
                with np.load(path) as stored:
                    results = dict(stored)
                reference = reference or results
                outcome = judged(results, reference, "float32", told["device"])
                if outcome.state == WORKS:
                    self.measured[name] = []
                else:
                    self.failures[name] = f"{outcome.state}: {outcome.why}"

    def told(self) -> dict[str, Any]:
        """As JSON holds it."""
        settings = {name: getattr(self, name) for name in ("task", "layer", "seed", "epochs", "most")}
        recipe = RECIPES[self.task]
        settings |= {"batch_size": recipe.batch_size, "rate": recipe.rates[self.layer], "clip_norm": recipe.clip_norm}
        return settings | {"measured": self.measured, "failures": self.failures}


def seconds_to(epochs: Sequence[dict[str, float]], target: float) -> float | None:
    """Seconds of training until the test accuracy after an epoch is first the target; None: it never is."""
    spent = 0.0
    for epoch in epochs:
        spent += epoch["seconds"]
        if epoch["accuracy"] >= target:
            return spent
    return None


def rows(trainings: Sequence[Training], target: float) -> Iterator[list[str]]:
    """The lines of one task's table: medians over the seeds; a median of which half the seeds have none is not reached."""
    groups: dict[tuple[str, str], list[list[dict[str, float]]]] = {}
    for training in trainings:
        for name, epochs in training.measured.items():
            if name not in training.failures:
                groups.setdefault((training.layer, name), []).append(epochs)
    for (layer, name), runs in groups.items():
        times = [seconds_to(epochs, target) for epochs in runs]
        reached = [t for t in times if t is not None]
        median = statistics.median(float("inf") if t is None else t for t in times)
        each = statistics.median(epoch["seconds"] for epochs in runs for epoch in epochs)
        last = [100 * epochs[-1]["accuracy"] for epochs in runs]
        spread = f" ± {statistics.stdev(last):.1f}" if len(last) > 1 else ""
        time = f"{median:.1f}" if median < float("inf") else "not reached"
        yield [layer, name, time, f"{len(reached)} of {len(runs)}", f"{each:.2f}", f"{statistics.mean(last):.1f}{spread}"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="training.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tasks", nargs="+", choices=list(RECIPES), metavar="NAME", help=f"of {', '.join(RECIPES)} (default: all)")
    parser.add_argument("--layers", nargs="+", choices=list(PEERS), metavar="NAME", help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--seeds", type=whole, metavar="N", help="of weights and batches (default: 3, --quick: 1)")
    parser.add_argument("--epochs", type=whole, metavar="N", help="passes over the training data (default: the task's, --quick: 12)")
    parser.add_argument("--train", type=whole, metavar="N", help="sequences to train on at the most (default: all)")
    parser.add_argument("--threads", type=whole, default=1, metavar="N", help="of BLAS and of torch (default: 1: the products are small)")
    parser.add_argument("--json", type=Path, default=Path("out/bench/training.json"), metavar="FILE", help="of what was measured")
    parser.add_argument("--quick", action="store_true", help="vowels alone, one seed, 12 epochs: under a minute")
    return parser


def whole(text: str) -> int:
    """A type for whole numbers from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    os.environ |= dict.fromkeys(THREADS, str(options.threads))  # of the workers, which start later
    quick: dict[str, Any] = QUICK if options.quick else {}
    tasks = options.tasks or quick.get("tasks", list(RECIPES))
    seeds, busy = options.seeds or quick.get("seeds", 3), load()
    trainings: list[Training] = []
    workers, shuffled = Workers("trainers"), random.Random(0)
    try:
        for task in tasks:
            epochs = options.epochs or quick.get("epochs", RECIPES[task].epochs)
            for layer in (name for name in RECIPES[task].rates if name in (options.layers or PEERS)):
                for seed in range(seeds):
                    trainings.append(Training(task, layer, seed, epochs, options.train))
                    trainings[-1].run(workers, shuffled)
                    print(f"{task}, {layer}, seed {seed}: {epochs} epochs", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        trainings = trainings[:-1]  # what is whole is told
    finally:
        workers.close()
    command = shlex.join(["python", "benchmarks/training.py", *(sys.argv[1:] if arguments is None else arguments)])
    return report(trainings, options, command, busy)


def report(trainings: list[Training], options: argparse.Namespace, command: str, busy: list[str]) -> int:
    """Print the tables and write the file; 1 where a contender failed."""
    for task in dict.fromkeys(training.task for training in trainings):
        ones, recipe = [training for training in trainings if training.task == task], RECIPES[task]
        header = [title.format(target=f"{100 * recipe.target:.0f} %") for title in HEADER]
        title = f"**{recipe.title}, {ones[0].epochs} epochs, batches of {recipe.batch_size}**\n"
        print_table(title, header, list(rows(ones, recipe.target)))
    machine, kernel = environment(), blas()[0]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    failures = {f"{one.layer}, {name}: {why}": None for one in trainings for name, why in one.failures.items()}
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''} for each contender"
    for line in ("", f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}", versions, f"NumPy's BLAS: {kernel}"):
        print(line)
    for line in (f"{machine['date']}, {command}, {threads}", *(f"WARNING: {line}" for line in busy), *failures):
        print(line)
    told = {"command": command, "machine": machine, "blas": kernel, "warnings": busy, "trainings": [one.told() for one in trainings]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(any("left out" not in why for one in trainings for why in one.failures.values()))


if __name__ == "__main__":
    sys.exit(main())

"""Reproduce the GRU of the MNIST-1D paper, and put an LSTM and a CfC in its place: which digit is a line of 40 numbers?

MNIST-1D has ten short curves that resemble digits, each shifted, sheared, scaled and noisy: 4,000 to train on, 1,000 to test, made by the
package mnist1d; nothing is downloaded. The model is the authors': 6 units in each direction, and one linear layer on the outputs of all 40
steps; Adam with 1e-2, batches of 100, 150 epochs (6,000 steps). One thing differs: batches are drawn anew in each epoch, theirs are not.

    python examples/reproduce_mnist1d.py
    python examples/reproduce_mnist1d.py --models gru --seeds 1
    python examples/reproduce_mnist1d.py --quick

Source: Greydanus and Kobak, Scaling down deep learning with MNIST-1D, ICML 2024, https://arxiv.org/abs/2011.14439; sizes and rates from
the authors' repository, https://github.com/greydanus/mnist1d (Apache-2.0).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from demo import INTERRUPTED, Parser, whole

PUBLISHED = {"gru": "91", "lstm": "-", "cfc": "-"}
CLASSES, STEPS = 10, 40
UNITS, BATCH = 6, 100
RATES = {"gru": 1e-2, "lstm": 1e-2, "cfc": 3e-3}
EPOCHS, SEEDS = 150, 3
QUICK = {"epochs": 20, "seeds": 1}


def load() -> tuple[Any, Any]:
    """The training and the test sequences, (N, 40, 1) each; the generator's own seed makes them the same each time."""
    from mnist1d.data import get_dataset_args, make_dataset

    from ember_mlx.training import Sequences

    made = make_dataset(get_dataset_args())
    training, test = (Sequences(made[f"x{part}"][:, :, None], made[f"y{part}"]) for part in ("", "_test"))
    return training, test


def make_model(name: str, units: int) -> Any:
    """A layer in both directions, and a linear layer on the outputs of all steps: (B, 40, 1) -> logits (B, 10)."""
    import mlx.core as mx
    import mlx.nn as nn

    from ember_mlx import GRU, LSTM, Bidirectional, CfC

    class EveryStep(nn.Module):
        def __init__(self, layer: nn.Module):
            super().__init__()
            self.layer, self.readout = layer, nn.Linear(2 * units * STEPS, CLASSES)

        def __call__(self, x: mx.array) -> mx.array:
            return self.readout(self.layer(x).reshape(x.shape[0], -1))

    if name == "cfc":
        return EveryStep(Bidirectional(CfC(units, 1, return_sequences=True)))
    return EveryStep({"gru": GRU, "lstm": LSTM}[name](1, units, bidirectional=True))


def train(name: str, data: tuple[Any, Any], units: int, epochs: int, seed: int, out: Path) -> tuple[float, float]:
    """A model's test accuracy in percent after the last epoch, and the seconds that its training took."""
    import mlx.core as mx
    import mlx.optimizers as optim
    from reproduction import Training, measured

    mx.random.seed(seed)
    how = Training(epochs, BATCH, optim.Adam(RATES[name], bias_correction=True), None, seed)
    sizes = {"train": len(data[0]), "test": len(data[1]), "units": units}
    told = {"task": "mnist1d", "model": name, **sizes, "optimizer": "Adam", "rate": RATES[name], "published": PUBLISHED[name]}
    record = measured(make_model(name, units), data, how, out / f"mnist1d-{name}-seed{seed}.json", told)
    return record.accuracy[-1], record.seconds[-1]


def make_parser() -> Parser:
    parser = Parser(
        prog="reproduce_mnist1d.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = ", ".join(PUBLISHED)
    parser.add_argument(
        "--models", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), metavar="NAME", help=f"of {names} (default: all)"
    )
    parser.add_argument("--units", type=whole(1), default=UNITS, metavar="N", help=f"of each direction (default: {UNITS})")
    quick = {name: f"default: {value}, --quick: {QUICK[name]}" for name, value in (("epochs", EPOCHS), ("seeds", SEEDS))}
    parser.add_argument("--epochs", type=whole(1), metavar="N", help=f"passes over the training data ({quick['epochs']})")
    parser.add_argument("--seeds", type=whole(1), metavar="N", help=f"how often each model is trained ({quick['seeds']})")
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"), metavar="DIR", help="of the records (default: out/reproduce)")
    parser.add_argument("--quick", action="store_true", help="few epochs, one seed: shows that they learn, not what they reach")
    return parser


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if find_spec("mnist1d") is None:
        parser.exit(1, f'{parser.prog}: error: mnist1d is missing; install with: pip install "ember-mlx[reproduce]"\n')
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the demo: products of a step are too small for several threads
    sizes = {"epochs": EPOCHS, "seeds": SEEDS} | (QUICK if options.quick else {})
    sizes |= {name: value for name in sizes if (value := getattr(options, name)) is not None}
    from reproduction import spread

    data = load()
    say(f"MNIST-1D: {len(data[0])} lines to train on, {len(data[1])} to test, {sizes['epochs']} epochs, {sizes['seeds']} seeds")
    rows = []
    try:
        for name in options.models:
            runs = [train(name, data, options.units, sizes["epochs"], seed, options.out) for seed in range(sizes["seeds"])]
            accuracies, seconds = zip(*runs, strict=True)
            rows.append(f"{name:<9} {spread(accuracies):<16} {PUBLISHED[name]:<14} {statistics.mean(seconds):.0f}")
    except KeyboardInterrupt:
        say("reproduce_mnist1d.py: stopped")
        return INTERRUPTED
    for line in (f"{'model':<9} {'accuracy (%)':<16} {'published':<14} seconds", *rows):
        say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

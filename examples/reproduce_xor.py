"""Reproduce the event-based XOR of the CfC paper: which parity has a stream of bits, of which only the changes are seen?

A stream has 2 to 31 random bits. What the layer gets are events: the new bit wherever it changes, with the number of bits since the event
before as its time delta, divided by 32; a last event stands for the bits that are left. So the parity is in the times. As in the paper:
100,000 streams to train on, 10,000 to test, binary cross-entropy, a learning rate that falls by 5 or 10 % an epoch, 200 epochs.

    python examples/reproduce_xor.py --models mixed
    python examples/reproduce_xor.py --quick

Source: Hasani et al., Closed-form continuous-time neural networks, Nature Machine Intelligence 4, 992-1003 (2022),
https://doi.org/10.1038/s42256-022-00556-7; sizes and rates from the authors' repository, https://github.com/raminmh/CfC (Apache-2.0).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from demo import INTERRUPTED, Parser, whole

BITS = 32  # more than any stream has; the unit of time
QUICK = {"train": 4000, "test": 1000, "epochs": 12}


class Setting(NamedTuple):
    """A model, how it is trained, and the accuracy that its authors report, in percent."""

    options: dict[str, Any]
    units: int
    optimizer: str
    rate: float
    decay: float
    batch_size: int
    clip_norm: float
    published: str


CFC = {"activation": "relu", "backbone_units": 128, "backbone_layers": 1}
SETTINGS = {
    "mixed": Setting(CFC | {"mixed_memory": True}, 64, "RMSprop", 5e-3, 0.95, 128, 10.0, "99.72 ± 0.08"),
    "default": Setting(CFC, 192, "RMSprop", 5e-2, 0.95, 128, 1.0, "99.42 ± 0.42"),
    "no_gate": Setting(
        {"mode": "no_gate", "activation": "silu", "backbone_units": 192, "backbone_layers": 1, "backbone_dropout": 0.3},
        *(128, "RMSprop", 5e-3, 0.95, 128, 10.0, "96.29 ± 1.61"),
    ),
    "pure": Setting(
        {"mode": "pure", "activation": "silu", "backbone_units": 64, "backbone_layers": 1},
        *(64, "Adam", 5e-3, 0.9, 256, 5.0, "85.42 ± 2.84"),
    ),
    "ltc": Setting({}, 64, "Adam", 5e-3, 0.9, 256, 5.0, "49.11 ± 0.00"),
}


class Streams(NamedTuple):
    """Events of N streams.

    Args:
        x: for each stream (events, 1), the bits.
        dt: for each stream (events,), the time before each event.
        y: (N,) the parity.
    """

    x: list[np.ndarray[Any, Any]]
    dt: list[np.ndarray[Any, Any]]
    y: np.ndarray[Any, Any]


def make_streams(count: int, rng: np.random.Generator) -> Streams:
    """So many random streams.

    Example:
        >>> streams = make_streams(5, np.random.default_rng(0))
        >>> all(0 < dt.sum() * BITS < BITS for dt in streams.dt)
        True
    """
    streams = Streams([], [], np.zeros(count, np.int32))
    for k, length in enumerate(rng.integers(2, BITS, count)):
        bits = rng.integers(0, 2, length)
        places = np.concatenate([[0], 1 + np.flatnonzero(np.diff(bits))])  # where a run begins
        if places[-1] < length - 1:
            places = np.append(places, length - 1)  # what is left
        streams.x.append(bits[places, None].astype(np.float32))
        streams.dt.append((np.diff(places, prepend=-1) / BITS).astype(np.float32))
        streams.y[k] = bits.sum() % 2
    return streams


def train(name: str, data: tuple[Streams, Streams], epochs: int, seed: int, out: Path) -> tuple[float, float]:
    """A model's test accuracy in percent after the last epoch, and the seconds that its training took."""
    import mlx.core as mx
    import mlx.optimizers as optim
    from reproduction import Training, measured

    from ember_mlx import LTC, CfC, SequenceModel
    from ember_mlx.training import Sequences

    setting = SETTINGS[name]
    mx.random.seed(seed)
    layer = LTC(setting.units, 1, return_sequences=False) if name == "ltc" else CfC(setting.units, 1, **setting.options)
    model = SequenceModel(layer, outputs=2)
    training, test = (Sequences(streams.x, streams.y, streams.dt) for streams in data)
    steps = -(-len(training) // setting.batch_size)
    schedule = optim.exponential_decay(setting.rate, setting.decay ** (1 / steps))
    optimizer = optim.Adam(schedule, bias_correction=True) if setting.optimizer == "Adam" else optim.RMSprop(schedule, alpha=0.9, eps=1e-7)
    how = Training(epochs, setting.batch_size, optimizer, setting.clip_norm, seed)
    told = {"task": "xor", "model": name, "train": len(training), "test": len(test), "bits": BITS - 1, **setting._asdict()}
    record = measured(model, (training, test), how, out / f"xor-{name}-seed{seed}.json", told)
    return record.accuracy[-1], record.seconds[-1]


def make_parser() -> Parser:
    parser = Parser(prog="reproduce_xor.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    names = ", ".join(SETTINGS)
    parser.add_argument(
        "--models", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME", help=f"of {names} (default: all)"
    )
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="passes over the training data (default: 200, --quick: 12)")
    parser.add_argument("--train", type=whole(1), metavar="N", help="streams to train on (default: 100000, --quick: 4000)")
    parser.add_argument("--seeds", type=whole(1), default=1, metavar="N", help="how often each model is trained (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"), metavar="DIR", help="of the records (default: out/reproduce)")
    parser.add_argument("--quick", action="store_true", help="few streams and epochs: shows that it runs, not what it reaches")
    return parser


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    options = make_parser().parse_args(arguments)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the demo: products of a step are too small for several threads
    sizes = {"train": 100_000, "test": 10_000, "epochs": 200} | (QUICK if options.quick else {})
    sizes |= {name: value for name in ("train", "epochs") if (value := getattr(options, name)) is not None}
    rng = np.random.default_rng(0)
    data = make_streams(sizes["train"], rng), make_streams(sizes["test"], rng)
    say(f"event-based XOR: {sizes['train']} streams to train on, {sizes['test']} to test, {sizes['epochs']} epochs")
    say(f"{'model':<9} {'accuracy (%)':<16} {'published':<14} seconds")
    try:
        for name in options.models:
            runs = [train(name, data, sizes["epochs"], seed, options.out) for seed in range(options.seeds)]
            accuracies, seconds = zip(*runs, strict=True)
            spread = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
            reached = f"{statistics.mean(accuracies):.2f}{spread}"
            say(f"{name:<9} {reached:<16} {SETTINGS[name].published:<14} {statistics.mean(seconds):.0f}")
    except KeyboardInterrupt:
        say("reproduce_xor.py: stopped")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Reproduce the event-based XOR of the CfC paper: which parity has a stream of bits, of which only the changes are seen?

A stream has 2 to 31 random bits. What the layer gets are events: the new bit wherever it changes, with the number of bits since the event
before as its time delta, divided by 32; a last event stands for the bits that are left. So the parity is in the times. As in the paper:
100,000 streams to train on, 10,000 to test, binary cross-entropy, a learning rate that falls by 5 or 10 % an epoch, 200 epochs.

With --quick it is not the paper's task: streams of 2 to 8 bits, 8,000 to train on, 25 epochs, the model with mixed memory alone.

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
from typing import TYPE_CHECKING, Any, NamedTuple

from demo import INTERRUPTED, Parser, whole

if TYPE_CHECKING:
    import numpy as np  # when it is imported, its BLAS reads how many threads it may use: so functions do that, after `main` has said it

BITS = 32  # more than any stream has; the unit of time
FULL = {"train": 100_000, "test": 10_000, "epochs": 200, "bits": BITS - 1}
QUICK = {"train": 8000, "test": 1000, "epochs": 25, "bits": 8}
QUICK_MODELS = ["mixed"]


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


def make_streams(count: int, rng: np.random.Generator, most: int = BITS - 1) -> Streams:
    """So many random streams of 2 to `most` bits.

    Example:
        >>> import numpy as np
        >>> streams = make_streams(5, np.random.default_rng(0))
        >>> all(0 < dt.sum() * BITS < BITS for dt in streams.dt)
        True
    """
    import numpy as np

    streams = Streams([], [], np.zeros(count, np.int32))
    for k, length in enumerate(rng.integers(2, most + 1, count)):
        bits = rng.integers(0, 2, length)
        places = np.concatenate([[0], 1 + np.flatnonzero(np.diff(bits))])  # where a run begins
        if places[-1] < length - 1:
            places = np.append(places, length - 1)  # what is left
        streams.x.append(bits[places, None].astype(np.float32))
        streams.dt.append((np.diff(places, prepend=-1) / BITS).astype(np.float32))
        streams.y[k] = bits.sum() % 2
    return streams


def train(name: str, data: tuple[Streams, Streams], sizes: dict[str, int], seed: int, out: Path) -> tuple[float, float]:
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
    how = Training(sizes["epochs"], setting.batch_size, optimizer, setting.clip_norm, seed)
    told = {"task": "xor", "model": name, **sizes, **setting._asdict()}
    record = measured(model, (training, test), how, out / f"xor-{name}-seed{seed}.json", told)
    return record.accuracy[-1], record.seconds[-1]


def make_parser() -> Parser:
    parser = Parser(prog="reproduce_xor.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    names = f"of {', '.join(SETTINGS)} (default: all, --quick: {', '.join(QUICK_MODELS)})"
    parser.add_argument("--models", nargs="+", choices=list(SETTINGS), metavar="NAME", help=names)
    texts = {
        "epochs": "passes over the training data",
        "train": "streams to train on",
        "test": "streams to test",
        "bits": "most of a stream",
    }
    for name, text in texts.items():
        least = 2 if name == "bits" else 1
        parser.add_argument(f"--{name}", type=whole(least), metavar="N", help=f"{text} (default: {FULL[name]}, --quick: {QUICK[name]})")
    parser.add_argument("--seeds", type=whole(1), default=1, metavar="N", help="how often each model is trained (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"), metavar="DIR", help="of the records (default: out/reproduce)")
    parser.add_argument("--quick", action="store_true", help="short streams, one model: shows that it learns; not the paper's task")
    return parser


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    sizes = (QUICK if options.quick else FULL) | {name: value for name in FULL if (value := getattr(options, name)) is not None}
    if sizes["bits"] >= BITS:
        parser.error(f"--bits must be less than {BITS}, the unit of time, got {sizes['bits']}")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the demo: products of a step are too small for several threads
    import numpy as np
    from reproduction import spread

    rng = np.random.default_rng(0)
    data = make_streams(sizes["train"], rng, sizes["bits"]), make_streams(sizes["test"], rng, sizes["bits"])
    counts = f"{sizes['train']} streams to train on, {sizes['test']} to test, {sizes['epochs']} epochs"
    say(f"event-based XOR: {counts}, 2 to {sizes['bits']} bits")
    is_papers = sizes["bits"] == FULL["bits"]
    rows = []
    try:
        for name in options.models or (QUICK_MODELS if options.quick else list(SETTINGS)):
            runs = [train(name, data, sizes, seed, options.out) for seed in range(options.seeds)]
            accuracies, seconds = zip(*runs, strict=True)
            published = SETTINGS[name].published if is_papers else "another task"
            rows.append(f"{name:<9} {spread(accuracies):<16} {published:<14} {statistics.mean(seconds):.0f}")
    except KeyboardInterrupt:
        say("reproduce_xor.py: stopped")
        return INTERRUPTED
    for line in (f"{'model':<9} {'accuracy (%)':<16} {'published':<14} seconds", *rows):
        say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

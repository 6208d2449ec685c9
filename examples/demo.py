"""Train a CfC on real irregular sequences, and plot the results.

Without options: handwritten digits as event streams, with the time between events as the layer's time delta; about two minutes on two CPU
cores. With --quick: nine speakers classified from 7 to 29 frames of speech; seconds.

    python examples/demo.py
    python examples/demo.py --quick
    python examples/demo.py --model gru --epochs 15 --out out/gru
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("mlx", "numpy", "ember_mlx", "matplotlib", "rich")
MODELS = {
    "cfc-mixed": "CfC with mixed memory: an LSTM cell keeps the memory",
    "cfc": "CfC",
    "ncp": "CfC on a sparse map of inter, command and motor neurons",
    "lstm": "mlx.nn.LSTM, time deltas as another input; three times as slow",
    "gru": "mlx.nn.GRU, time deltas as another input; twice as slow",
}
PRECISIONS = ("float32", "bfloat16", "float16")
LEAST_NCP_UNITS = 4
INTERRUPTED = 130  # a shell's exit status for Ctrl-C


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if message.startswith("argument "):
            message = message.removeprefix("argument ").replace(": ", " ", 1)
        self.exit(2, f"{self.prog}: error: {message}\n")


def whole(least: int) -> Callable[[str], int]:
    """An argument type for integers of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return read


def positive(text: str) -> float:
    """An argument type for positive numbers."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def model_name(text: str) -> str:
    """An argument type for model names."""
    if text not in MODELS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(MODELS)}; got {text!r}")
    return text


def precision(text: str) -> str:
    """An argument type for the dtypes of a training step."""
    if text not in PRECISIONS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(PRECISIONS)}; got {text!r}")
    return text


def make_parser() -> Parser:
    models = "\n".join(f"  {name:<10} {text}" for name, text in MODELS.items())
    parser = Parser(
        prog="demo.py",
        description="Train a recurrent layer on real irregular sequences, and plot the results.",
        epilog=f"models:\n{models}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="classify speakers by their vowels instead of digits: seconds")
    parser.add_argument("--model", type=model_name, default="cfc-mixed", metavar="NAME", help="see below (default: cfc-mixed)")
    parser.add_argument("--units", type=whole(1), default=64, metavar="N", help="units of the layer (default: 64)")
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="passes over the training data (default: chosen for the model)")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="sequences per step (default: chosen for the data)")
    parser.add_argument("--lr", type=positive, metavar="RATE", help="highest learning rate (default: chosen for the model)")
    parser.add_argument("--precision", type=precision, default="float32", metavar="NAME", help=f"{', '.join(PRECISIONS)}")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="seed of the weights and the data order (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the figure (default: out)")
    return parser


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked as far as possible before any computation."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.model == "ncp" and options.units < LEAST_NCP_UNITS:
        parser.error(f"--units must be at least {LEAST_NCP_UNITS} for --model ncp, got {options.units}")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        names = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
        parser.exit(1, f'{parser.prog}: error: {names} missing; install with: pip install "ember-mlx[examples]"\n')
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be a folder: {error.strerror}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    # The products of a step are too small for several threads: one is hardly slower than two, and never waits for another.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from demo_report import run  # not at the top, so that --help and wrong options are fast

        run(options)
    except KeyboardInterrupt as stop:
        print(f"demo.py: {stop.args[0] if stop.args else 'stopped'}")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Reproduce the half-cheetah result of the LTC paper: LTC, CfC, LSTM and GRU with 32 units, three seeds each.

A simulated half-cheetah was recorded in 31 runs of 1,000 steps with 17 observations; the task is to forecast the next observation at each
step. As in the paper: windows of 32 steps that start every 10, trained on runs 15 to 24, validated on 0 to 4, tested on 5 to 14; mean
squared error, batches of 16, Adam with 1e-3 (LTC 1e-2), 200 epochs; the test error of the epoch with the best validation error.

The recordings are not part of this repository. They are in the paper's, https://github.com/raminmhasani/liquid_time_constant_networks
(Apache-2.0), as one .npy file a run: give that folder with --data.

    python examples/reproduce_half_cheetah.py --data PATH
    python examples/reproduce_half_cheetah.py --data PATH --models ltc --seeds 1 --epochs 20

Source: Hasani, Lechner, Amini, Rus and Grosu, Liquid time-constant networks, AAAI 35, 7657-7666 (2021),
https://doi.org/10.1609/aaai.v35i9.16936.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from demo import INTERRUPTED, Parser, whole

MODELS = ("ltc", "cfc", "lstm", "gru")
RECORDINGS = Path(__file__).parent / "data" / "half_cheetah"
REPOSITORY = "https://github.com/raminmhasani/liquid_time_constant_networks"


def make_parser() -> Parser:
    parser = Parser(
        prog="reproduce_half_cheetah.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shape = "a folder of one .npy file (1000, 17) a run, or an .npz with traces (31, 1000, 17)"
    parser.add_argument("--data", type=Path, default=RECORDINGS, metavar="PATH", help=f"{shape} (default: examples/data/half_cheetah)")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=f"of {', '.join(MODELS)} (default: all)"
    )
    parser.add_argument("--units", type=whole(1), default=32, metavar="N", help="units of each layer (default: 32)")
    parser.add_argument("--epochs", type=whole(1), default=200, metavar="N", help="passes over the training data (default: 200)")
    parser.add_argument("--seeds", type=whole(1), default=3, metavar="N", help="how often each model is trained (default: 3)")
    parser.add_argument("--first-seed", type=whole(0), default=0, metavar="N", help="the first of them, to share the work (default: 0)")
    parser.add_argument("--runs", type=whole(1), metavar="N", help="recorded runs of each part at the most (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where the picture goes (default: out)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not options.data.exists():
        parser.error(f"--data {options.data} does not exist; the recordings are in {REPOSITORY}")
    # as in the demo: products of a step are too small for several threads
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from half_cheetah import reproduce  # here, so that --help and wrong options answer at once

        seeds = range(options.first_seed, options.first_seed + options.seeds)
        reproduce(options.data, options.models, options.units, options.epochs, seeds, options.runs, options.out)
    except KeyboardInterrupt:
        print("reproduce_half_cheetah.py: stopped")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

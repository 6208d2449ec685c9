"""python benchmarks/predicted.py: write the cost model's predictions for Apple's chips to docs/benchmarks.md; nothing is measured.

With --print the table goes to the terminal, and no file is touched.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from report import DOCUMENT

from ember_mlx import GRU, LSTM, LTC, CfC, NCPMap
from ember_mlx.check.peers import own
from ember_mlx.check.rows import INPUTS, Row
from ember_mlx.kernels.launches import launches_planned
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import family_of

MARKS = ("<!-- predicted: begin -->", "<!-- predicted: end -->")
CHIPS = {"M1": "applegpu_g13g", "M2": "applegpu_g14g", "M3, M4": "applegpu_g16g"}
ROWS = {
    "CfC 64, backbone 128, B=32, T=100": Row(lambda: CfC(64, INPUTS, return_sequences=True), 64, 32, 100),
    "CfC 64, backbone 128, B=32, T=1000": Row(lambda: CfC(64, INPUTS, return_sequences=True), 64, 32, 1000),
    "LTC 64, B=32, T=100": Row(lambda: LTC(64, INPUTS), 64, 32, 100),
    "LTC, NCP 32/16/8, B=32, T=100": Row(lambda: LTC(NCPMap(32, 16, 8, INPUTS, seed=1)), 56, 32, 100),
    "LSTM 64, B=32, T=1000": Row(lambda: LSTM(INPUTS, 64), 64, 32, 1000),
    "GRU 64, B=32, T=1000": Row(lambda: GRU(INPUTS, 64), 64, 32, 1000),
    "GRU 128, B=16, T=64": Row(lambda: GRU(128, 128), 128, 16, 64, inputs=128),
}


def no_device(**_: Any) -> Callable[..., list[mx.array]]:
    """A kernel that must not be launched; launches are only counted."""
    raise RuntimeError("a kernel was launched")


def predicted(row: Row, architecture: str) -> list[float]:
    """Milliseconds of forward, and of forward and backward, without MLX's matrix products."""
    told, times = mx.device_info, []
    mx.device_info = lambda *_: {"architecture": architecture}  # determines the layouts
    try:
        with kernels_made_by("metal", no_device):
            for run in own(row, "metal"):
                with launches_planned() as planned:
                    run()
                times.append(sum(launch.ms for launch in planned))
    finally:
        mx.device_info = told
    return times


def table() -> Iterator[str]:
    """The rows of all chips."""
    yield f"| predicted, not measured | {' | '.join(CHIPS)} |"
    yield f"|---|{'---|' * len(CHIPS)}"
    for name, row in ROWS.items():
        cells = (predicted(row, architecture) for architecture in CHIPS.values())
        yield f"| {name} | {' | '.join(f'{forward:.2f} / {both:.2f} ms' for forward, both in cells)} |"
    yield ""
    figures = [(chip, family_of(architecture)) for chip, architecture in CHIPS.items()]
    assumed = "; ".join(f"{chip}: {f.cores} cores of {f.clock / 1000:.2f} GHz, {f.memory_rate / 1000:.0f} GB/s" for chip, f in figures)
    yield f"Forward / forward and backward. Assumed: {assumed}."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print to the terminal only")
    options = parser.parse_args(arguments)
    text = "\n".join(table())
    if options.print:
        print(text)
        return 0
    before, _, rest = DOCUMENT.read_text().partition(MARKS[0])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print(DOCUMENT)
    return 0


if __name__ == "__main__":
    sys.exit(main())

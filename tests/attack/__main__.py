"""Run randomised tests for some time: `python -m tests.attack --seconds 600 --seed 3`, or once more `--only SEED:INDEX`.

Each wrong configuration is printed with the command that repeats it; the last line says how many were tried, how many of them were
wrong, what was refused, and how many interrupts were survived. The exit status is 1 where anything was wrong.
"""

import argparse
import sys
import time
import warnings
from collections import Counter

import mlx.core as mx

from .sequences import CELLS
from .trial import attack, draw_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long to go on")
    parser.add_argument("--seed", type=int, default=None, help="of the configurations; the clock's unless given")
    parser.add_argument("--cell", choices=list(CELLS), help="one cell alone")
    parser.add_argument("--only", metavar="SEED:INDEX", help="one configuration alone")
    given = parser.parse_args()
    mx.set_default_device(mx.cpu)
    warnings.filterwarnings(
        "ignore", "(overflow|invalid value) encountered", RuntimeWarning
    )  # of gradients that are larger than float32 has them
    if given.only:
        seed, index = map(int, given.only.split(":"))
        indices = iter([index])
    else:
        seed, indices = int(time.time()) if given.seed is None else given.seed, iter(range(sys.maxsize))
    return report(seed, indices, time.monotonic() + given.seconds, given.cell)


def report(seed, indices, end, cell) -> int:
    tried, wrong, judged, interrupts, refused = 0, 0, 0, 0, Counter()
    for index in indices:
        if tried and time.monotonic() > end:
            break
        outcome = attack(draw_of(seed, index), cell)
        tried, judged, interrupts = tried + 1, judged + outcome.judged, interrupts + outcome.interrupts
        refused.update(outcome.refused)
        if outcome.wrong:
            wrong += 1
            print(f"python -m tests.attack --only {seed}:{index}" + (f" --cell {cell}" if cell else ""))
            print("".join(f"    {fault}\n" for fault in outcome.wrong), end="", flush=True)
    for reason, count in refused.most_common():
        print(f"refused {count} x {reason}")
    total = sum(refused.values())
    print(f"{judged} results compared")
    print(f"{tried} configurations, {wrong} wrong, {total} refused, {interrupts} interrupts survived")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Reproduce published results: a task by its name, with that script's own options; without a name, the list.

python examples/reproduce.py
python examples/reproduce.py mnist1d --quick
python examples/reproduce.py half-cheetah --data PATH
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

TASKS = {
    "half-cheetah": "forecasts of a simulated half-cheetah (LTC paper); hours; needs --data PATH, recordings from the authors",
    "xor": "parity of streams of events (CfC paper); an hour or two a model, LTC most of a day; --quick: a minute",
    "mnist1d": "digits as lines of 40 numbers (MNIST-1D paper); 20 minutes; --quick: two minutes",
}


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    name, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        for task, text in TASKS.items():
            say(f"{task:<13} {text}")
        say('make reproduce ARGS="NAME --help" lists the options of one')
        return 0
    if name not in TASKS:
        print(f"reproduce.py: error: the task must be one of {', '.join(TASKS)}; got {name!r}", file=sys.stderr)
        return 2
    script = importlib.import_module(f"reproduce_{name.replace('-', '_')}")
    return int(script.main(options))


if __name__ == "__main__":
    sys.exit(main())

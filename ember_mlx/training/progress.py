"""Display of a run's progress."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from .history import History


class _Silent:
    """Shows nothing."""

    def epoch(self, number: int, done: int, history: History) -> None:
        """Called when an epoch begins, or resumes after `done` batches."""

    def step(self, loss: float) -> None:
        """Called after a step."""

    def line(self, epoch: int, history: History) -> None:
        """Called after an epoch."""


class _Lines(_Silent):
    """Prints one line per epoch."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def line(self, epoch: int, history: History) -> None:
        print(f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}  {_numbers(history)}", flush=True)


class _Bar(_Silent):
    """A rich progress bar, in a terminal or notebook."""

    def __init__(self, epochs: int, batches: int | None, bar: Any):
        self.batches, self.bar = batches, bar
        total = None if batches is None else epochs * batches
        self.task = bar.add_task("training", total=total, epoch=f"1/{epochs}", numbers="", loss="  -  ")
        self.epochs = epochs

    def epoch(self, number: int, done: int, history: History) -> None:
        completed = None if self.batches is None else (number - 1) * self.batches + done
        self.bar.update(self.task, completed=completed, epoch=f"{number}/{self.epochs}", numbers=_numbers(history, seconds=False))

    def step(self, loss: float) -> None:
        self.bar.update(self.task, advance=1, loss=f"{loss:.4g}")

    def line(self, epoch: int, history: History) -> None:
        self.bar.update(self.task, numbers=_numbers(history, seconds=False))


@contextmanager
def show_progress(wanted: bool, epochs: int, batches: int | None) -> Iterator[_Silent]:
    """Yield the display, which is called after every step and epoch."""
    notebook = "ipykernel" in sys.modules
    if not wanted or find_spec("rich") is None or not (notebook or sys.stdout.isatty()):
        yield _Lines(epochs) if wanted else _Silent()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    texts = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("loss {task.fields[loss]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*texts, TextColumn("{task.fields[numbers]}"), *times) as bar:
        yield _Bar(epochs, batches, bar)


def _numbers(history: History, seconds: bool = True) -> str:
    shown = {name: value for name, value in history.last().items() if seconds or name not in ("seconds", "loss")}
    return "  ".join(
        f"{name.replace('_', ' ')} {value:.0f}" if name == "seconds" else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in shown.items()
    )

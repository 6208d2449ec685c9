"""The training of the demo's models."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from demo_models import Classifier
from demo_tasks import Recipe, Sequences
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WARM_UP = 0.04  # of all steps


class History(NamedTuple):
    """What was measured after each epoch, and the time it took to get there."""

    losses: list[float]
    accuracies: list[float]
    seconds: float


def train(model: Classifier, data: tuple[Sequences, Sequences], recipe: Recipe, seed: int, console: Console) -> History:
    """Train a model, showing the progress.

    Raises:
        KeyboardInterrupt: after Ctrl-C, at the end of a step, saying what was reached.
        SystemExit: if the loss is no longer finite.
    """
    training, test = data
    rng, step = np.random.default_rng(seed), _make_step(model, len(training.y), recipe)
    losses: list[float] = []
    accuracies: list[float] = []
    began = time.perf_counter()
    with _progress(console, recipe, len(training.y)) as advance, _stop_between_steps() as stopped:
        for epoch in range(1, recipe.epochs + 1):
            total = 0.0
            for batch in training.shuffled(recipe.batch_size, rng):
                total += step(batch) * len(batch[-1])
                if stopped:
                    raise KeyboardInterrupt(_reached(epoch, recipe, accuracies))
                if not np.isfinite(total):
                    raise SystemExit(
                        f"demo.py: error: the loss is no longer finite in epoch {epoch}; try a smaller --lr than {recipe.lr:g}"
                    )
                advance(len(batch[-1]), epoch, losses, accuracies)
            losses.append(total / len(training.y))
            accuracies.append(float((predict(model, test) == test.y).mean()))
            if not console.is_terminal:
                console.print(_line(epoch, recipe, losses, accuracies, time.perf_counter() - began))
    return History(losses, accuracies, time.perf_counter() - began)


def predict(model: Classifier, sequences: Sequences) -> NDArray[np.int64]:
    """The most probable class of each sequence, (N,)."""
    return np.concatenate([np.array(model(x, dt, lengths).argmax(axis=-1)) for x, dt, lengths, _ in sequences.in_order()]).astype(np.int64)


def _make_step(model: Classifier, sequences: int, recipe: Recipe) -> Callable[[tuple[mx.array, ...]], float]:
    """A function of a batch that makes one step and returns the loss.

    It is not compiled: on the CPU the layer scans the sequences outside MLX's graph, which is faster than the unrolled graph.
    """
    steps = recipe.epochs * -(-sequences // recipe.batch_size)
    warm_up = max(1, round(WARM_UP * steps))
    rise, fall = optim.linear_schedule(0.1 * recipe.lr, recipe.lr, warm_up), optim.cosine_decay(recipe.lr, max(1, steps - warm_up))
    # MLX leaves the bias correction off: the first hundreds of steps are then about three times as long as in other libraries
    optimizer = optim.Adam(optim.join_schedules([rise, fall], [warm_up]), bias_correction=True)

    def loss(x: mx.array, dt: mx.array, lengths: mx.array, y: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(x, dt, lengths), y, reduction="mean")

    loss_and_gradients = nn.value_and_grad(model, loss)

    def step(batch: tuple[mx.array, ...]) -> float:
        value, gradients = loss_and_gradients(*batch)
        gradients, _ = optim.clip_grad_norm(gradients, recipe.gradient_norm)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        return value.item()

    return step


@contextmanager
def _progress(console: Console, recipe: Recipe, sequences: int) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, and nothing elsewhere; yields the function that moves it."""
    columns = [
        TextColumn("epoch {task.fields[epoch]:>2}/" + str(recipe.epochs)),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]}  test accuracy {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=recipe.epochs * sequences, epoch=1, loss="  -  ", accuracy="  -  ")

        def advance(count: int, epoch: int, losses: list[float], accuracies: list[float]) -> None:
            progress.update(bar, advance=count, epoch=epoch)
            if losses:
                progress.update(bar, loss=f"{losses[-1]:.3f}", accuracy=f"{accuracies[-1]:.3f}")

        yield advance


@contextmanager
def _stop_between_steps() -> Iterator[list[Any]]:
    """Yields a list that is empty until Ctrl-C: an exception raised in the middle of a step would pass through MLX."""
    stopped: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _line(epoch: int, recipe: Recipe, losses: list[float], accuracies: list[float], seconds: float) -> str:
    return f"epoch {epoch:>2}/{recipe.epochs}  loss {losses[-1]:.3f}  test accuracy {accuracies[-1]:.3f}  {seconds:.0f} s"


def _reached(epoch: int, recipe: Recipe, accuracies: list[float]) -> str:
    state = f"test accuracy {accuracies[-1]:.3f} after epoch {epoch - 1}" if accuracies else "no epoch completed"
    return f"stopped in epoch {epoch} of {recipe.epochs}: {state}"

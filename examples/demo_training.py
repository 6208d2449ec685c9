"""The training of the demo's models."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from demo_tasks import Recipe

from ember_mlx.training import History, Sequences, fit

WARM_UP = 0.04  # fraction of all steps


def train(model: nn.Module, data: tuple[Sequences, Sequences], recipe: Recipe, seed: int, precision: str = "float32") -> History:
    """Train a model, showing the progress.

    Raises:
        KeyboardInterrupt: after Ctrl-C, at the end of a step, with the accuracy so far.
        SystemExit: if the loss is no longer finite.
    """
    training, test = data
    try:
        history = fit(
            model,
            training,
            epochs=recipe.epochs,
            loss="cross_entropy",
            batch_size=recipe.batch_size,
            metrics=["accuracy"],
            validation=test,
            learning_rate=_schedule(recipe, recipe.epochs * -(-len(training) // recipe.batch_size)),
            clip_norm=recipe.gradient_norm,
            seed=seed,
            precision=precision,
        )
    except FloatingPointError as error:
        raise SystemExit(f"demo.py: error: {error} Try a smaller --lr than {recipe.lr:g}.") from error
    if history.stopped == "interrupted":
        raise KeyboardInterrupt(_reached(recipe, history))
    return history


def _schedule(recipe: Recipe, steps: int) -> Callable[[mx.array], mx.array]:
    """A linear warm-up followed by a cosine decay."""
    warm_up = max(1, round(WARM_UP * steps))
    rise, fall = optim.linear_schedule(0.1 * recipe.lr, recipe.lr, warm_up), optim.cosine_decay(recipe.lr, max(1, steps - warm_up))
    return optim.join_schedules([rise, fall], [warm_up])


def _reached(recipe: Recipe, history: History) -> str:
    accuracies = history.get("validation_accuracy", [])
    state = f"test accuracy {accuracies[-1]:.3f} after epoch {len(accuracies)}" if accuracies else "no epoch completed"
    return f"stopped in epoch {len(accuracies) + 1} of {recipe.epochs}: {state}"

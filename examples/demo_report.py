"""One run of the demo: train, draw, print."""

from __future__ import annotations

import argparse

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from demo_figure import draw
from demo_models import make_model, parameter_count
from demo_tasks import EVENT_DIGITS, SPEAKERS, Recipe, Task, load
from demo_training import train
from rich import box
from rich.console import Console
from rich.table import Table

from ember_mlx.training import History, predict


def run(options: argparse.Namespace) -> None:
    """Train the model chosen by the options; draw the figure and print the results."""
    console, task = Console(highlight=False), SPEAKERS if options.quick else EVENT_DIGITS
    recipe = chosen_recipe(task, options)
    mx.random.seed(options.seed)
    training, test = load(task)
    model = make_model(options.model, options.units, training.x.shape[2], len(task.classes), recipe.time_scale)
    assert test.lengths is not None
    shortest, longest = test.lengths.min(), test.lengths.max()
    console.print(f"{task.title}: {len(training)} to train on, {len(test)} to test, lengths {shortest} to {longest}")
    history = train(model, (training, test), recipe, options.seed, options.precision)
    picture = options.out / task.picture
    draw(picture, task, options.model, model, test, np.argmax(predict(model, test), axis=-1), history)
    console.print(results(task, options.model, model, recipe, history))
    print(f"picture: {picture}")
    print(f"test accuracy {history['validation_accuracy'][-1]:.3f}")


def chosen_recipe(task: Task, options: argparse.Namespace) -> Recipe:
    """The task's recipe for the model, with the options applied."""
    recipe = task.recipe(options.model)
    changes = {name: getattr(options, name) for name in ("epochs", "lr", "batch_size")}
    return recipe._replace(**{name: value for name, value in changes.items() if value is not None})


def results(task: Task, name: str, model: nn.Module, recipe: Recipe, history: History) -> Table:
    """The results of this run, and published results of other layers."""
    best, best_accuracy = max(task.peers, key=lambda peer: peer[1])
    caption = f"* measured elsewhere with PyTorch on the same data; a {best} reaches {best_accuracy:.2f}"
    table = Table("model", box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for heading in ("parameters", "epochs", "train loss", "test accuracy", "seconds"):
        table.add_column(heading, justify="right")
    last = history.last()
    loss, accuracy, seconds = f"{last['loss']:.3f}", f"{last['validation_accuracy']:.3f}", f"{last['seconds']:.0f}"
    table.add_row(name, f"{parameter_count(model):,}", str(recipe.epochs), loss, accuracy, seconds)
    for peer, reached in task.peers:
        table.add_row(f"{peer} *", "", "", "", f"{reached:.3f}", "", style="dim")
    return table

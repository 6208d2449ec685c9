"""The two tasks of the demo: data, training recipes and reference results."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ember_mlx.training import Sequences

DATA = Path(__file__).parent / "data"


class Recipe(NamedTuple):
    """How a model is trained on a task.

    Args:
        epochs: passes over the training data.
        lr: highest learning rate.
        batch_size: sequences per step.
        time_scale: factor of every time delta, which makes their typical value about 1.
        gradient_norm: maximum norm of the gradients, which are clipped to it.
    """

    epochs: int
    lr: float
    batch_size: int
    time_scale: float = 1.0
    gradient_norm: float = 1.0


class Task(NamedTuple):
    """A classification task.

    Args:
        title: title of the figure.
        file: the archive in `DATA`.
        class_name: what the classes are called.
        classes: names of the classes.
        recipes: recipes by model name; "" for all other models.
        peers: (model, test accuracy) of other layers on the same data.
        picture: file name of the figure.
    """

    title: str
    file: str
    class_name: str
    classes: tuple[str, ...]
    recipes: dict[str, Recipe]
    peers: tuple[tuple[str, float], ...]
    picture: str

    def recipe(self, model: str) -> Recipe:
        return self.recipes.get(model, self.recipes[""])


EVENT_DIGITS = Task(
    title="handwritten digits as streams of events",
    file="event_mnist5k.npz",
    class_name="digit",
    classes=tuple("0123456789"),
    recipes={  # the mean length of a run of equal pixels is 15
        "": Recipe(24, 3e-3, 48, time_scale=0.3, gradient_norm=0.3),
        "cfc": Recipe(40, 1.5e-3, 32, time_scale=0.1),
        "ncp": Recipe(24, 5e-3, 48, time_scale=0.3),
        "lstm": Recipe(12, 1e-2, 64, time_scale=0.3),
        "gru": Recipe(12, 1e-2, 64, time_scale=0.3, gradient_norm=0.3),
    },
    peers=(("ncps cfc-mixed", 0.844), ("LSTM", 0.866), ("GRU", 0.928)),
    picture="demo.png",
)
SPEAKERS = Task(
    title="nine speakers, each saying two Japanese vowels",
    file="japanese_vowels.npz",
    class_name="speaker",
    classes=tuple("123456789"),
    recipes={"": Recipe(20, 5e-3, 16)},
    peers=(("ncps CfC", 0.972), ("LSTM", 0.970), ("GRU", 0.973)),
    picture="demo-quick.png",
)


def load(task: Task) -> tuple[Sequences, Sequences]:
    """The training and the test sequences."""
    with np.load(DATA / task.file) as arrays:
        return _part(arrays, "train"), _part(arrays, "test")


def _part(arrays: np.lib.npyio.NpzFile, part: str) -> Sequences:
    x, lengths, y = (arrays[f"{name}_{part}"] for name in ("x", "len", "y"))
    dt = arrays[f"dt_{part}"] if f"dt_{part}" in arrays else np.ones(x.shape[:2], x.dtype)
    return Sequences(x, y, dt, lengths)

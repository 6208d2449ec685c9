"""A cell in ten lines that remembers: long expressive memory (LEM) on the adding problem, beside layers of the package, as a picture.

Each sequence has two features: random numbers, and a mark at two of its steps, one in each half. What is asked for after the last step is
the sum of the two marked numbers. To answer 1, the mean, has an error of 1/6; a layer that forgets over some dozens of steps does no
better. The cell is written below as its paper has it. One definition gives all forms of the layer, and all its gradients.

    python examples/own_cell.py
    python examples/own_cell.py --length 400 --steps 800 --layers lem gru
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlx.utils import tree_flatten

from ember_mlx import GRU, RNN, Cell, Recurrent
from ember_mlx.step import Value, sigmoid, tanh

MEAN_ERROR, BATCH, TESTED = 1 / 6, 64, 512
COLOURS = {"lem": "#D55E00", "gru": "#0072B2", "rnn": "#8A8A8A"}


class LEM(Cell):
    """Source: Rusch et al., Long expressive memory for sequence modeling, ICLR 2022, https://arxiv.org/abs/2110.04744."""

    states = ("y", "z")
    x_products = 4
    h_products = {"W_y": 3, "W_z": 1}

    def step(self, x: Value, y: Value, z: Value, dt: Value, W_y: Value, W_z: Value) -> Value:
        a, b, c = W_y(y)
        z = z + dt * sigmoid(x[0] + a) * (tanh(x[2] + c) - z)
        return y + dt * sigmoid(x[1] + b) * (tanh(x[3] + W_z(z)) - y), z


LAYERS: dict[str, Callable[[int], Any]] = {
    "lem": lambda units: Recurrent(LEM, 2, units, return_sequences=False),
    "gru": lambda units: GRU(2, units, return_sequences=False),
    "rnn": lambda units: RNN(2, units, return_sequences=False),
}


def adding(rng: np.random.Generator, batch: int, length: int) -> tuple[mx.array, mx.array]:
    """x (B, T, 2): numbers in [0, 1) and marks; y (B, 1): the sum of the marked numbers."""
    numbers, marks, rows = rng.uniform(size=(batch, length)), np.zeros((batch, length)), np.arange(batch)
    for first, last in ((0, length // 2), (length // 2, length)):
        marks[rows, rng.integers(first, last, batch)] = 1
    return mx.array(np.stack([numbers, marks], axis=2), mx.float32), mx.array((numbers * marks).sum(axis=1, keepdims=True), mx.float32)


def train(name: str, units: int, length: int, steps: int, seed: int) -> tuple[list[float], float, float, int]:
    """The training errors, the error on new sequences, seconds, and how many parameters there are."""
    mx.random.seed(seed)
    model, rng = nn.Sequential(LAYERS[name](units), nn.Linear(units, 1)), np.random.default_rng(seed)
    optimizer = optim.Adam(optim.cosine_decay(1e-2, steps), bias_correction=True)
    step = nn.value_and_grad(model, lambda m, x, y: ((m(x) - y) ** 2).mean())
    errors, start = [], time.perf_counter()
    for _ in range(steps):
        value, gradient = step(model, *adding(rng, BATCH, length))
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state)
        errors.append(value.item())
    seconds = time.perf_counter() - start
    x, y = adding(np.random.default_rng(seed + 1), TESTED, length)
    test = ((model.eval()(x) - y) ** 2).mean().item()
    return errors, test, seconds, sum(a.size for _, a in tree_flatten(model.parameters()))


def smooth(errors: Sequence[float], width: int) -> np.ndarray:
    """The mean over so many steps."""
    return np.convolve(errors, np.ones(width) / width, mode="valid")


def draw(found: dict[str, list[float]], length: int, path: Path) -> None:
    """The training error of each layer over the steps."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, errors in found.items():
        width = max(1, min(15, len(errors) // 10))
        line = smooth(errors, width)
        axis.semilogy(np.arange(len(line)) + width, line, color=COLOURS[name], lw=1.8)
        axis.annotate(name.upper(), (len(errors), line[-1]), xytext=(5, 0), textcoords="offset points", color=COLOURS[name], va="center")
    axis.axhline(MEAN_ERROR, color="#BBBBBB", lw=1, ls="--", zorder=0)
    axis.annotate("the mean, always", (0, MEAN_ERROR), xytext=(3, -16), textcoords="offset points", color="#8A8A8A", fontsize=9)
    axis.set_xlabel(f"training steps of {BATCH} sequences")
    axis.set_ylabel("squared error")
    axis.set_title(f"The sum of two numbers among {length}", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--length", type=int, default=200, help="steps of a sequence")
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--steps", type=int, default=500, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/own_cell.png"))
    options = parser.parse_args(arguments)
    print(f"adding problem over {options.length} steps; to answer with the mean: {MEAN_ERROR:.4f}")
    print("layer   parameters   error on new sequences   seconds", flush=True)
    found = {}
    for name in options.layers:
        found[name], test, seconds, parameters = train(name, options.units, options.length, options.steps, options.seed)
        print(f"{name.upper():5} {parameters:12,} {test:24.4f} {seconds:9.0f}", flush=True)
    draw(found, options.length, options.out)
    print(f"{options.out}: the errors while it was trained")


if __name__ == "__main__":
    main()

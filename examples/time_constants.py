"""The time constants of an LTC layer depend on its input: a figure for a layer trained to remember the last pulse during a pause.

Each unit of a liquid time-constant layer has a separate time constant at every step, tau = cm / (gleak + the conductance of its open
synapses): the more it is driven, the faster it forgets. The figure shows an input of pulses and pauses, the units' values and, as colours,
their time constants.

    python examples/time_constants.py --units 24 --out out/time_constants.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from demo_figure import DEEP, EMBER, INK, MUTED, PALE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ember_mlx import LTC, FullyConnectedMap

STEPS, DT = 120, 0.25
Batch = tuple[NDArray[np.float32], NDArray[np.float32]]


def pulses(rng: np.random.Generator, sequences: int) -> Batch:
    """x (N, T, 2): occasional pulses of either sign, and a constant; y (N, T, 1): the sign of the last pulse."""
    x, y = np.zeros((sequences, STEPS, 2), np.float32), np.zeros((sequences, STEPS, 1), np.float32)
    x[:, :, 1] = 1
    for n in range(sequences):
        start = int(rng.integers(0, 15))
        while start < STEPS:
            sign = float(rng.choice([-1, 1]))
            x[n, start : start + 6, 0] = sign
            y[n, start:] = sign
            start += int(rng.integers(18, 40))
    return x, y


def train(layer: LTC, rounds: int, rng: np.random.Generator) -> float:
    """Train the layer to remember the sign of the last pulse; returns the final error."""
    optimizer = optim.Adam(2e-2, bias_correction=True)
    step = nn.value_and_grad(layer, lambda x, y: nn.losses.mse_loss(layer(x, time_deltas=DT), y))
    error = float("nan")
    for _ in range(rounds):
        value, gradients = step(*map(mx.array, pulses(rng, 16)))
        optimizer.update(layer, gradients)
        mx.eval(layer.parameters(), optimizer.state)
        error = value.item()
    return error


def draw(path: Path, layer: LTC, batch: Batch) -> None:
    """The first sequence of a batch: input and output, the units' values, and their time constants."""
    x, y = batch
    given, t = mx.array(x[:1]), np.arange(STEPS) * DT
    out, tau = np.array(layer(given, time_deltas=DT))[0], np.array(layer.time_constants(given, time_deltas=DT))[0]
    order = np.argsort(tau.mean(axis=0))
    figure = Figure((11, 7.5), dpi=140, facecolor="white", layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.9))
    top.fill_between(t, x[0, :, 0], step="post", color=PALE, label="input")
    top.plot(t, y[0], color=MUTED, linewidth=1.2, linestyle="--", drawstyle="steps-post", label="sign of the last pulse")
    top.plot(t, out[:, 0], color=EMBER, linewidth=2, label="output of the layer")
    top.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, labelcolor=INK)
    for unit, color in ((order[0], DEEP), (order[-1], EMBER)):
        middle.plot(t, tau[:, unit], color=color, linewidth=1.8, label=f"unit {unit}")
    middle.set(ylim=(0, None), ylabel="time constant")
    middle.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, labelcolor=INK)
    edges = np.concatenate([t - DT / 2, [t[-1] + DT / 2]])
    mesh = bottom.pcolormesh(edges, np.arange(tau.shape[1] + 1), tau[:, order].T, cmap="magma", norm=LogNorm())
    figure.colorbar(mesh, ax=bottom, pad=0.01, aspect=30, label="time constant").outline.set_visible(False)
    bottom.set(xlabel="elapsed time", ylabel="unit, fastest first")
    titles = ("Pulses and pauses", "Time constants of the fastest and the slowest unit", "Time constant of every unit")
    for axes, title in zip((top, middle, bottom), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the time constants of an LTC layer.")
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=150, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/time_constants.png"))
    options = parser.parse_args(arguments)
    mx.random.seed(options.seed)
    rng = np.random.default_rng(options.seed)
    layer = LTC(FullyConnectedMap(options.units, 1), 2)
    error = train(layer, options.rounds, rng)
    draw(options.out, layer, pulses(rng, 1))
    print(f"{layer}\nmean squared error after {options.rounds} steps: {error:.3f}\ndrawn to {options.out}")


if __name__ == "__main__":
    main()

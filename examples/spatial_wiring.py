"""Training with a wiring cost: the same layer on the same task, with and without spatial_regularization, drawn in 3-D.

The neurons of an EnhancedNeuronMap are on a grid. The task needs memory: a sequence shows one of eight patterns for a few steps, then
noise, and the layer classifies the pattern at the end. Two copies of a CfC learn it. The loss of one includes the lengths of its synapses,
weighted with their strengths and with the communicability of their neurons (Achterberg et al. 2023, Nature Machine Intelligence 5,
1369-1381, doi:10.1038/s42256-023-00748-9).

    python examples/spatial_wiring.py --steps 500
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ember_mlx import CfC, EnhancedNeuronMap, spatial_regularization
from ember_mlx.wiring.draw_spatial import draw_synapses

GRID, INPUTS, CLASSES = (5, 4, 3), 8, 8
SHOWN, LENGTH, BATCH = 4, 10, 64
PATTERNS = np.random.Generator(np.random.PCG64(7)).standard_normal((CLASSES, INPUTS))
LEARNING_RATE = 5e-3
WEAK = 0.1  # fraction of the strongest synapse below which synapses are not drawn
INK = "#333333"


class Classifier(nn.Module):
    """A CfC on a spatial map, and a linear read-out of its last state."""

    def __init__(self) -> None:
        super().__init__()
        units = int(np.prod(GRID))
        self.map = EnhancedNeuronMap(units, input_dim=INPUTS, sparsity_level=0.5, network_structure=GRID)
        self.layer = CfC(self.map)
        self.out = nn.Linear(units, CLASSES)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(self.layer(x))


def memories(rng: np.random.Generator, sequences: int) -> tuple[mx.array, mx.array]:
    """Sequences (B, LENGTH, INPUTS), and the index of the pattern at the start of each."""
    labels = rng.integers(0, CLASSES, sequences)
    x = 0.5 * rng.standard_normal((sequences, LENGTH, INPUTS))
    x[:, :SHOWN] += PATTERNS[labels][:, None]
    return mx.array(x, mx.float32), mx.array(labels)


def train(price: float, steps: int, seed: int) -> tuple[Classifier, list[float]]:
    """A trained model and its mean wire length after each step; `price` is the factor of the wiring cost in the loss."""
    mx.random.seed(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    model, optimizer = Classifier(), optim.Adam(LEARNING_RATE, bias_correction=True)

    def loss(model: Classifier, x: mx.array, labels: mx.array, price: float) -> mx.array:
        error = nn.losses.cross_entropy(model(x), labels, reduction="mean")
        return error + price * spatial_regularization(model.layer) if price else error

    step, lengths = nn.value_and_grad(model, loss), []
    for k in range(steps):
        # rising from 0, since the cost would prevent an untrained network from learning to remember
        _, gradients = step(model, *memories(rng, BATCH), price * min(1.0, 2 * k / steps))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        lengths.append(wire_length(model))
    return model, lengths


def strengths(model: Classifier) -> np.ndarray:
    """The magnitudes of the synapses between neurons, averaged over the heads, [source, target]."""
    w = np.array(mx.abs(model.layer.recurrent_weights()).mean(axis=0))
    np.fill_diagonal(w, 0)
    return w


def wire_length(model: Classifier) -> float:
    """The mean length of a synapse, weighted with its strength."""
    w = strengths(model)
    return float((w * model.map.distance_matrix).sum() / w.sum())


def accuracy(model: Classifier, seed: int) -> float:
    x, labels = memories(np.random.Generator(np.random.PCG64(10_000 + seed)), 1000)
    return float((model(x).argmax(axis=1) == labels).mean())


def draw(path: Path, results: dict[str, tuple[Classifier, list[float]]], accuracies: dict[str, float]) -> None:
    """Both networks in space, and their wire lengths during training."""
    figure = Figure((13, 4.8), dpi=150, facecolor="white")
    for k, (name, (model, _)) in enumerate(results.items()):
        axes: Any = figure.add_axes((0.33 * k - 0.03, 0.0, 0.38, 0.88), projection="3d", computed_zorder=False)  # an Axes3D
        w, places = strengths(model), model.map.coordinates
        signs = np.sign(np.array(model.layer.recurrent_weights().sum(axis=0)))
        draw_synapses(axes, places, np.where(w > WEAK * w.max(), w * signs, 0))
        axes.scatter(*places.T, s=30, color="#F2C14E", edgecolors=INK, linewidths=0.6, depthshade=False, zorder=2)
        axes.set_box_aspect(GRID)
        axes.set_axis_off()
        drawn = int((w > WEAK * w.max()).sum())
        title = f"{name}: accuracy {accuracies[name]:.2f}\n{drawn} synapses above {WEAK:.0%} of the strongest"
        figure.text(0.16 + 0.33 * k, 0.97, title, ha="center", va="top", size=11, color=INK)
    curves = figure.add_axes((0.74, 0.16, 0.24, 0.7))
    for (name, (_, lengths)), colour in zip(results.items(), ("#8A8A8A", "#D55E00"), strict=True):
        curves.plot(np.arange(1, len(lengths) + 1), lengths, color=colour, label=name)
    curves.set(xlabel="step", title="Mean length of a synapse, by strength")
    curves.set_ylim(bottom=0)
    curves.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--price", type=float, default=0.1, help="factor of the wiring cost in the loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/spatial_wiring.png"))
    options = parser.parse_args(arguments)

    results, accuracies = {}, {}
    print(f"{'':<18}{'accuracy':>10}{'mean length':>18}{'all wire':>10}{'strong synapses':>18}")
    for name, price in (("wiring is free", 0.0), ("wiring has a price", options.price)):
        model, lengths = results[name] = train(price, options.steps, options.seed)
        accuracies[name], w = accuracy(model, options.seed), strengths(model)
        wire = (w * model.map.distance_matrix).sum()
        change, strong = f"{lengths[0]:.2f} -> {lengths[-1]:.2f}", (w > WEAK * w.max()).sum()
        print(f"{name:<18}{accuracies[name]:>10.3f}{change:>18}{wire:>10.1f}{strong:>18}", flush=True)
    draw(options.out, results, accuracies)
    print(f"drawn to {options.out}")


if __name__ == "__main__":
    main()

"""Denoising sines: LQNet, CTRQNet and a GRU, with a figure of their estimates.

Each sequence is a sine with random frequency and phase, sampled at irregular times, with added noise of variance 0.09. A model reads the
noisy samples one by one and estimates the clean value at each. All models get the sample and the time since the previous one as inputs,
have 32 units and a linear read-out, and are trained in the same way on the same batches.

    python examples/noisy_sine.py --steps 300
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

from ember_mlx import CTRQNet, LQNet

UNITS, BATCH, LENGTH, NOISE = 32, 32, 64, 0.3
TEST_SEQUENCES = 256
LEARNING_RATE = 1e-2
INK, COLOURS = "#333333", {"LQNet": "#D55E00", "CTRQNet": "#0072B2", "CTRQNet, no harmonics": "#56B4E9", "mlx.nn.GRU": "#8A8A8A"}

LAYERS: dict[str, Callable[[], Any]] = {
    "LQNet": lambda: LQNet(UNITS, input_size=2),
    "CTRQNet": lambda: CTRQNet(UNITS, input_size=2),
    "CTRQNet, no harmonics": lambda: CTRQNet(UNITS, input_size=2, use_harmonic_embedding=False),
    "mlx.nn.GRU": lambda: nn.GRU(2, UNITS),
}


class Filter(nn.Module):
    """A recurrent layer and a linear read-out of one number per step."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(UNITS, 1)

    def __call__(self, values: mx.array, dt: mx.array) -> mx.array:
        """(B, T) noisy samples and (B, T) elapsed times -> (B, T) estimates."""
        x = mx.stack([values, dt], axis=2)
        h = self.layer(x) if isinstance(self.layer, nn.GRU) else self.layer(x, time_deltas=dt)
        return self.out(h).squeeze(2)


def sines(rng: np.random.Generator, sequences: int) -> tuple[mx.array, mx.array, mx.array]:
    """Noisy samples, elapsed times and clean values, (sequences, LENGTH) each."""
    dt = rng.uniform(0.2, 1.8, (sequences, LENGTH))
    frequency, phase = rng.uniform(0.02, 0.08, (sequences, 1)), rng.uniform(0, 2 * np.pi, (sequences, 1))
    clean = np.sin(2 * np.pi * frequency * np.cumsum(dt, axis=1) + phase)
    noisy = clean + NOISE * rng.standard_normal(clean.shape)
    return mx.array(noisy, mx.float32), mx.array(dt, mx.float32), mx.array(clean, mx.float32)


def mean_square(model: Filter, noisy: mx.array, dt: mx.array, clean: mx.array) -> mx.array:
    return ((model(noisy, dt) - clean) ** 2).mean()


def train(name: str, steps: int, seed: int) -> tuple[Filter, list[float]]:
    """A trained model and its loss after each step."""
    mx.random.seed(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    model, optimizer = Filter(LAYERS[name]()), optim.Adam(LEARNING_RATE, bias_correction=True)
    step, losses = nn.value_and_grad(model, mean_square), []
    for _ in range(steps):
        loss, gradients = step(model, *sines(rng, BATCH))
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
    model.eval()
    return model, losses


def draw(path: Path, losses: dict[str, list[float]], estimates: dict[str, np.ndarray], errors: dict[str, float], test: Any) -> None:
    """Loss curves, and one test sequence with the models' estimates."""
    figure = Figure((11, 4.2), dpi=150, layout="constrained")
    curves, example = figure.subplots(1, 2, width_ratios=(1, 1.5))
    for name, values in losses.items():
        window = max(1, len(values) // 20)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        curves.plot(np.arange(window, len(values) + 1), smooth, color=COLOURS[name], label=f"{name}: {errors[name]:.3f}")
    curves.set(xlabel="step", ylabel="mean square error", yscale="log", title="Training, and the error on new sequences")
    curves.legend(frameon=False, fontsize=9)
    noisy, dt, clean = (np.array(a[0]) for a in test)
    times = np.cumsum(dt)
    example.plot(times, clean, color=INK, linewidth=1, label="sine")
    example.plot(times, noisy, ".", color=INK, markersize=4, alpha=0.5, label="what the models read")
    for name, estimate in estimates.items():
        if name != "CTRQNet, no harmonics":
            example.plot(times, estimate[0], color=COLOURS[name], linewidth=1.3, label=name)
    example.set(xlabel="time", title="A sequence of the test set", ylim=(-2, 2.9))
    example.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
    for axes in (curves, example):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/noisy_sine.png"))
    options = parser.parse_args(arguments)

    test = sines(np.random.Generator(np.random.PCG64(10_000 + options.seed)), TEST_SEQUENCES)
    losses, estimates = {}, {}
    errors: dict[str, float] = {}
    print(f"{'':<24}{'first loss':>12}{'test error':>12}{'seconds':>10}")
    for name in LAYERS:
        start = time.perf_counter()
        model, losses[name] = train(name, options.steps, options.seed)
        errors[name], estimates[name] = float(np.array(mean_square(model, *test))), np.array(model(*test[:2]))
        print(f"{name:<24}{losses[name][0]:>12.3f}{errors[name]:>12.4f}{time.perf_counter() - start:>10.1f}", flush=True)
    print(f"{'the samples themselves':<24}{'':>12}{NOISE**2:>12.4f}")
    draw(options.out, losses, estimates, errors, test)
    print(f"drawn to {options.out}")


if __name__ == "__main__":
    main()

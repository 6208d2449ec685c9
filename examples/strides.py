"""CO2 at four strides: a StrideAwareCfC forecasts a series with a trend, a season and noise; draws a figure.

The series is weekly, with gaps. Each week the model gets the change since the previous measurement and the elapsed time, and forecasts the
change over the next eight measurements. Strides of 1, 4, 13 and 52 correspond to weeks, months, quarters and years; the forecast is the sum
of a linear read-out of each, so that their contributions can be separated.

    python examples/strides.py --steps 300
    python examples/strides.py --long          # time and memory of one training step over 10,000 time steps
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ember_mlx import StrideAwareCfC

DATA = Path(__file__).parent / "data" / "co2_weekly.npz"
STRIDES, UNITS, AHEAD, WINDOW, BATCH = [1, 4, 13, 52], 16, 8, 208, 16
TRAINED_UNTIL = 1800  # measurements; the rest is the test
COLOURS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00")
INK, MUTED = "#333333", "#8A8A8A"


class Forecaster(nn.Module):
    """A StrideAwareCfC and a linear read-out of each stride."""

    def __init__(self, strides: Sequence[int] = STRIDES):
        super().__init__()
        self.layer = StrideAwareCfC(UNITS, strides, 1, backbone_units=32, return_sequences=True)
        self.read_outs = [nn.Linear(UNITS, 1) for _ in strides]

    def parts(self, x: mx.array, dt: mx.array) -> mx.array:
        """(B, T, 1), (B, T) -> (B, T, strides): each stride's part of the forecast."""
        outputs = mx.split(self.layer(x, time_deltas=dt), len(self.read_outs), axis=2)
        return mx.concatenate([read(h) for read, h in zip(self.read_outs, outputs, strict=True)], axis=2)

    def __call__(self, x: mx.array, dt: mx.array) -> mx.array:
        return self.parts(x, dt).sum(axis=2)


def load() -> tuple[np.ndarray, ...]:
    """Years, x (T, 1) the standardised change since the measurement before, dt (T,) in weeks, and the change over AHEAD measurements."""
    with np.load(DATA) as data:
        years, co2 = data["t"].astype(np.float64) + 1958, data["co2"].astype(np.float64)
    change = np.diff(co2, prepend=co2[0])
    dt = np.diff(years, prepend=years[0] - 7 / 365.25) * 365.25 / 7
    target = co2[AHEAD:] - co2[:-AHEAD]
    n = len(target)
    return years[:n], (change[:n, None] / change.std()).astype(np.float32), dt[:n].astype(np.float32), target.astype(np.float32)


def train(model: Forecaster, x: np.ndarray, dt: np.ndarray, target: np.ndarray, steps: int, seed: int) -> None:
    """Adam on random windows of the years before the test; the first quarter of a window only warms up the state."""
    rng, warm = np.random.default_rng(seed), WINDOW // 4
    optimizer = optim.Adam(5e-3, bias_correction=True)

    def loss(m: Forecaster, a: mx.array, d: mx.array, y: mx.array) -> mx.array:
        return nn.losses.mse_loss(m(a, d)[:, warm:], y[:, warm:])

    step, start = nn.value_and_grad(model, loss), time.perf_counter()
    for k in range(1, steps + 1):
        places = rng.integers(0, TRAINED_UNTIL - AHEAD - WINDOW, BATCH)[:, None] + np.arange(WINDOW)
        value, gradient = step(model, *(mx.array(a[places]) for a in (x, dt, target)))
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state)
        if k % max(1, steps // 10) == 0:
            print(f"step {k:4d}   loss {value.item():.3f}   {time.perf_counter() - start:.0f} s", flush=True)


def draw(years: np.ndarray, target: np.ndarray, parts: np.ndarray, path: Path) -> None:
    """The test years: the change and its forecast, and each stride's part of the forecast without its mean."""
    shown = slice(TRAINED_UNTIL, None)
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(STRIDES) + 1, 1, sharex=True, height_ratios=[2, *[1] * len(STRIDES)])
    axes[0].plot(years[shown], target[shown], color=MUTED, lw=1, label=f"change over {AHEAD} measurements")
    axes[0].plot(years[shown], parts[shown].sum(1), color=INK, lw=1.4, label="forecast")
    axes[0].set_ylabel("ppm")
    axes[0].legend(frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, 1.2))
    for axis, stride, colour, part in zip(axes[1:], STRIDES, COLOURS, parts[shown].T, strict=True):
        axis.plot(years[shown], part - part.mean(), color=colour, lw=1.4, drawstyle="steps-post")
        axis.set_ylabel("ppm")
        axis.set_title(f"stride {stride}: standard deviation {part.std():.2f} ppm", fontsize=9, loc="left", color=colour)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("year")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def long_step(T: int, batch: int) -> tuple[float, float]:
    """Seconds and MiB of one training step over T time steps."""
    model, rng = Forecaster(), np.random.default_rng(0)
    x, dt = mx.array(rng.standard_normal((batch, T, 1)).astype(np.float32)), mx.ones((batch, T))
    step = nn.value_and_grad(model, lambda m: (m(x, dt) ** 2).mean())
    mx.eval(x, dt, model.parameters())
    before, start = peak_bytes(), time.perf_counter()
    mx.eval(step(model))
    return time.perf_counter() - start, (peak_bytes() - before) / 2**20


def peak_bytes() -> int:
    """The peak memory of this process. Not Linux's ru_maxrss, which starts with the parent's memory."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long", action="store_true", help="measure one training step over 10,000 time steps instead")
    parser.add_argument("--out", type=Path, default=Path("out/strides.png"))
    options = parser.parse_args(arguments)
    mx.random.seed(options.seed)
    if options.long:
        seconds, mebibytes = long_step(10_000, 8)
        print(f"T = 10,000, 8 sequences, strides {STRIDES}: {seconds:.1f} s, {mebibytes:.0f} MiB more than before")
        return
    years, x, dt, target = load()
    model = Forecaster()
    train(model, x, dt, target, options.steps, options.seed)
    parts = np.array(model.parts(mx.array(x)[None], mx.array(dt)[None])[0])
    test = slice(TRAINED_UNTIL, None)
    error = np.sqrt(np.mean((parts[test].sum(1) - target[test]) ** 2))
    print(f"test error {error:.2f} ppm; forecasting no change {np.sqrt(np.mean(target[test] ** 2)):.2f} ppm")
    draw(years, target, parts, options.out)
    print(f"{options.out}: the forecast and each stride's part of it")


if __name__ == "__main__":
    main()

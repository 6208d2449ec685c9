"""The half-cheetah task of the LTC paper: its data, models, training, table and picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from demo_figure import DEEP, EMBER, INK, MUTED, PALE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ember_mlx import GRU, LSTM, LTC, CfC, SequenceModel
from ember_mlx.training import History, Sequences, evaluate, fit

Windows = tuple[NDArray[np.float32], NDArray[np.float32]]  # (N, 32, 17) each: observations, and those one step later
WINDOW, STRIDE, BATCH = 32, 10, 16
PARTS = {"train": slice(15, 25), "validation": slice(0, 5), "test": slice(5, 15)}
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "ltc": lambda units, inputs: LTC(units, inputs),
    "cfc": lambda units, inputs: CfC(units, inputs, return_sequences=True),
    "lstm": lambda units, inputs: LSTM(inputs, units),
    "gru": lambda units, inputs: GRU(inputs, units),
}
RATES = {"ltc": 1e-2}
RATE = 1e-3
# Hasani et al. 2021, table of the half-cheetah results; None: not in the paper
PAPER = {"ltc": (2.308, 0.015), "cfc": None, "lstm": (2.500, 0.140), "gru": None}


class Run(NamedTuple):
    """What one model reached: mean squared errors after each epoch, and the time it took."""

    validation: list[float]
    test: list[float]
    seconds: float

    @property
    def best(self) -> float:
        """The test error of the epoch with the smallest validation error."""
        return self.test[int(np.argmin(self.validation))]


def load(path: Path, runs: int | None = None) -> dict[str, Windows]:
    """The windows of each part, the first `runs` of it, from an archive with `traces` (31, T, 17) or a folder of one .npy file a run."""
    traces = np.load(path)["traces"] if path.is_file() else [np.load(file) for file in sorted(path.glob("*.npy"))]
    if len(traces) < max(part.stop for part in PARTS.values()):
        raise SystemExit(f"reproduce_half_cheetah.py: error: {path} holds {len(traces)} recorded runs, 25 are needed")
    return {name: _windows(traces[part][:runs]) for name, part in PARTS.items()}


def _windows(traces: list[NDArray[np.float32]]) -> Windows:
    starts = [(trace, s) for trace in traces for s in range(0, len(trace) - WINDOW, STRIDE)]
    x, y = (np.stack([trace[s + shift : s + shift + WINDOW] for trace, s in starts]).astype(np.float32) for shift in (0, 1))
    return x, y


def train(name: str, units: int, epochs: int, seed: int, data: dict[str, Windows], advance: Callable[[Run], None]) -> tuple[nn.Module, Run]:
    """Train a model; `advance` is told of every epoch. Returns it as it is after the last epoch."""
    mx.random.seed(seed)
    inputs = data["train"][0].shape[2]
    model = SequenceModel(MODELS[name](units, inputs), outputs=inputs)
    parts = {part: Sequences(*windows) for part, windows in data.items()}
    errors: list[float] = []

    def after_epoch(model: nn.Module, history: History) -> None:
        errors.append(evaluate(model, parts["test"], ["mse"])["mse"])
        advance(Run(history["validation_loss"], errors, history["seconds"][-1]))

    history = fit(
        model,
        parts["train"],
        epochs=epochs,
        loss="mse",
        batch_size=BATCH,
        validation=parts["validation"],
        learning_rate=RATES.get(name, RATE),
        clip_norm=None,
        seed=seed,
        progress=False,
        callbacks=[after_epoch],
    )
    return model, Run(history["validation_loss"], errors, history["seconds"][-1])


def reproduce(path: Path, names: list[str], units: int, epochs: int, seeds: Sequence[int], runs: int | None, out: Path) -> None:
    """Train every model with every seed; print the table, and draw the picture."""
    console, data = Console(highlight=False), load(path, runs)
    console.print("half-cheetah: " + ", ".join(f"{len(x)} windows to {verb}" for (x, _), verb in zip(data.values(), PARTS, strict=True)))
    results: dict[str, list[Run]] = {name: [] for name in names}
    models: dict[str, nn.Module] = {}
    columns = [TextColumn("{task.description:<14}"), BarColumn(bar_width=None), TextColumn("{task.fields[error]}"), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        for name, seed in ((name, seed) for name in names for seed in seeds):
            bar = progress.add_task(f"{name}, seed {seed}", total=epochs, error="")

            def advance(run: Run, bar: object = bar) -> None:
                progress.update(bar, advance=1, error=f"test {run.best:.3f}")  # type: ignore[arg-type]

            models[name], run = train(name, units, epochs, seed, data, advance)
            results[name].append(run)
            if not console.is_terminal:
                console.print(f"{name}, seed {seed}: test error {run.best:.3f}, {run.seconds:.0f} s")
    console.print(table(results))
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "half_cheetah.png"
    draw(picture, results, models, data["test"])
    print(f"picture: {picture}")


def table(results: dict[str, list[Run]]) -> Table:
    """Test errors beside the paper's."""
    result = Table("model", box=box.SIMPLE_HEAD, pad_edge=False, caption="* Hasani et al. 2021, table of results", caption_justify="left")
    for heading in ("test error", "paper *", "seconds a seed"):
        result.add_column(heading, justify="right")
    for name, runs in results.items():
        best, paper = [run.best for run in runs], PAPER[name]
        seconds = np.mean([run.seconds for run in runs])
        result.add_row(name, spread(float(np.mean(best)), float(np.std(best))), spread(*paper) if paper else "", f"{seconds:.0f}")
    return result


def spread(mean: float, deviation: float) -> str:
    return f"{mean:.3f} ± {deviation:.3f}"


def draw(path: Path, results: dict[str, list[Run]], models: dict[str, nn.Module], test: Windows) -> None:
    """Errors by epoch, the reached errors beside the paper's, and one observation as each model forecasts it."""
    colors = dict(zip(results, (EMBER, DEEP, "#7a9a3a", "#8d6cab"), strict=False))
    figure = Figure((13, 7.6), dpi=150, facecolor="white", layout="constrained")
    figure.suptitle("Half-cheetah: the next observation from all before it", x=0.01, ha="left", fontsize=16, fontweight="bold", color=INK)
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    curves, bars = top.subplots(1, 2, width_ratios=(1.7, 1))
    for k, (name, runs) in enumerate(results.items()):
        errors = np.array([run.test for run in runs])
        epochs = np.arange(1, errors.shape[1] + 1)
        curves.plot(epochs, errors.mean(0), color=colors[name], linewidth=2, label=name)
        curves.fill_between(epochs, errors.min(0), errors.max(0), color=colors[name], alpha=0.18, linewidth=0)
        best, paper = [run.best for run in runs], PAPER[name]
        bars.bar(k - 0.2, np.mean(best), 0.36, yerr=np.std(best), color=colors[name], ecolor=INK)
        bars.text(k - 0.2, np.mean(best) / 2, f"{np.mean(best):.2f}", ha="center", color="white", fontweight="bold")
        if paper:
            bars.bar(k + 0.2, paper[0], 0.36, yerr=paper[1], color=PALE, ecolor=MUTED)
            bars.text(k + 0.2, paper[0] / 2, f"{paper[0]:.2f}", ha="center", color=MUTED)
    curves.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
    curves.legend(frameon=False, labelcolor=INK, loc="upper right")
    curves.set_title("Test error: mean and range over the seeds", loc="left", fontsize=11, color=INK)
    bars.set_xticks(range(len(results)), list(results))
    bars.set_title("Where validation is best; pale: the paper's figure", loc="left", fontsize=11, color=INK)
    x, y = test[0][:1], test[1][0]
    unit = int(np.argmax(y.std(axis=0)))
    forecast = bottom.subplots()
    forecast.plot(y[:, unit], color=INK, linewidth=2.4, marker="o", markersize=4, label="observed")
    for name, model in models.items():
        forecast.plot(np.array(model(mx.array(x)))[0, :, unit], color=colors[name], linewidth=1.6, label=name)
    forecast.set(xlabel="step")
    forecast.legend(frameon=False, labelcolor=INK, ncols=len(models) + 1, loc="lower right", bbox_to_anchor=(1, 1))
    forecast.set_title(
        f"Observation {unit} in a window of the test runs, each step forecast from the ones before", loc="left", fontsize=11, color=INK
    )
    for axes in (curves, bars, forecast):
        axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(MUTED)
    FigureCanvasAgg(figure).print_png(path)

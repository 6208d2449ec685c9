"""The figure of the demo: learning curves, one test sequence, and the confusion matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from demo_models import beliefs
from demo_tasks import EVENT_DIGITS, Task
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ember_mlx.training import History, Sequences

INK, MUTED, PALE = "#22262e", "#6f7887", "#e6e9ef"
EMBER, DEEP = "#d9531e", "#2b5c8a"
COUNTS = LinearSegmentedColormap.from_list("counts", ["#ffffff", "#f9d3bd", EMBER, "#7a2410"])
BELIEF = LinearSegmentedColormap.from_list("belief", ["#ffffff", "#b8d0e6", DEEP, "#12283f"])
INKED = LinearSegmentedColormap.from_list("inked", ["#ffffff", INK])
IMAGE_SIDE = 28
DARK_SHARE = 0.55  # fraction of the largest count or probability above which text is white
WHOLE = MaxNLocator(integer=True, steps=[1, 2, 5, 10])
SIZE, DPI = (13, 8.4), 150


def draw(path: Path, task: Task, name: str, model: nn.Module, test: Sequences, predicted: NDArray[np.intp], history: History) -> None:
    """Write the figure of a run to `path`."""
    figure = Figure(SIZE, dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)  # inches
    figure.suptitle(f"{name}: {task.title}", x=0.01, ha="left", fontsize=16, fontweight="bold", color=INK)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.12, 1))[:, 0]
    curves, confusion = top.subfigures(1, 2, squeeze=False, width_ratios=(1.9, 1))[0]
    _draw_history(curves, history)
    assert test.y is not None
    _draw_confusion(confusion, task, test.y, predicted)
    example = _example(test, predicted)
    if task is EVENT_DIGITS:
        _draw_digit(bottom, task, model, example)
    else:
        _draw_utterance(bottom, task, model, example)
    FigureCanvasAgg(figure).print_png(path)


def _draw_history(figure: SubFigure, history: History) -> None:
    """Training loss and test accuracy, one above the other."""
    accuracy, loss = figure.subplots(2, 1, sharex=True)
    epochs = np.arange(1, len(history["loss"]) + 1)
    _curve(accuracy, epochs, history["validation_accuracy"], DEEP, f"{history['validation_accuracy'][-1]:.3f}")
    _curve(loss, epochs, history["loss"], EMBER, f"{history['loss'][-1]:.3f}")
    _title(accuracy, "Test accuracy after each epoch")
    _title(loss, "Training loss")
    accuracy.set_ylim(0, 1.02)
    loss.set_ylim(0, 1.06 * max(history["loss"]))
    loss.set_xlabel("epoch")
    loss.set_xticks([tick for tick in WHOLE.tick_values(1, epochs[-1]) if 1 <= tick <= epochs[-1]])
    loss.set_xlim(0.5, epochs[-1] * 1.08 + 0.5)  # space for the last value


def _curve(axes: Axes, x: NDArray[np.int64], y: list[float], color: str, last: str) -> None:
    axes.plot(x, y, color=color, linewidth=2.2, marker="o", markersize=3.6)
    axes.annotate(last, (x[-1], y[-1]), (7, 0), textcoords="offset points", va="bottom", color=color, fontsize=12, fontweight="bold")
    axes.grid(axis="y", color=PALE)
    _plain(axes)


def _draw_confusion(figure: SubFigure, task: Task, actual: NDArray[np.int32], predicted: NDArray[np.int64]) -> None:
    """The confusion matrix."""
    count = len(task.classes)
    counts = np.zeros((count, count), np.int64)
    np.add.at(counts, (actual, predicted), 1)
    axes = figure.subplots()
    axes.imshow(counts, cmap=COUNTS)
    for (row, column), number in np.ndenumerate(counts):
        color = "white" if number > DARK_SHARE * counts.max() else INK
        if number:
            axes.text(column, row, str(number), ha="center", va="center", fontsize=9, color=color)
    for edge in np.arange(count + 1) - 0.5:  # borders between all cells, including empty ones
        axes.axhline(edge, color=PALE, linewidth=0.7)
        axes.axvline(edge, color=PALE, linewidth=0.7)
    axes.set_xticks(range(count), task.classes)
    axes.set_yticks(range(count), task.classes)
    axes.set_xlabel(f"{task.class_name} named by the model")
    axes.set_ylabel(f"actual {task.class_name}")
    _title(axes, f"Test set: {np.trace(counts)} of {counts.sum()} right")
    _plain(axes, frame=False)


class Example(NamedTuple):
    """One sequence: its values (T, I), time deltas (T,) and class."""

    x: NDArray[np.float32]
    time_deltas: NDArray[np.float32]
    y: int


def _example(test: Sequences, predicted: NDArray[np.int64]) -> Example:
    """The first test sequence of medium length that is classified correctly, or else the first."""
    assert test.y is not None
    assert test.lengths is not None
    assert test.time_deltas is not None
    right = np.flatnonzero((predicted == test.y) & (test.lengths >= np.median(test.lengths.astype(float))))
    index = int(right[0]) if right.size else 0
    steps = slice(test.lengths[index])
    return Example(test.x[index, steps], test.time_deltas[index, steps], int(test.y[index]))


def _draw_digit(figure: SubFigure, task: Task, model: nn.Module, example: Example) -> None:
    """A digit, its event stream, and the predicted probabilities after each event on the same time axis."""
    length, bits, runs = len(example.x), example.x[:, 0], example.time_deltas
    elapsed = np.concatenate([[0], np.cumsum(runs)])
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 2.9))[0]
    image = left.subplots()
    image.imshow(np.repeat(bits, runs.astype(int)).reshape(IMAGE_SIDE, IMAGE_SIDE), cmap=INKED, vmin=0, vmax=1)
    image.set_xticks([])
    image.set_yticks([])
    _title(image, f"A test digit: {task.classes[example.y]}")
    image.set_xlabel(f"read row by row: {length} runs of equal pixels", color=MUTED)
    for spine in image.spines.values():
        spine.set_color(PALE)
    stream, belief = right.subplots(2, 1, sharex=True, height_ratios=(1, 2.6))
    stream.stairs(bits, elapsed, fill=True, color=INK, linewidth=0)
    stream.plot(elapsed[1:], np.full(length, -0.22), "|", color=EMBER, markersize=7, markeredgewidth=1)
    stream.set_ylim(-0.4, 1.1)
    stream.set_yticks([0, 1])
    stream.set_ylabel("bit")
    _title(stream, "Its event stream: bit against elapsed time; each mark is one step of the layer")
    _plain(stream)
    _draw_belief(belief, task, model, example, elapsed)
    belief.set_xlabel("elapsed time (pixels)")
    belief.set_xlim(0, elapsed[-1])


def _draw_utterance(figure: SubFigure, task: Task, model: nn.Module, example: Example) -> None:
    """The coefficients of an utterance, and the predicted probabilities after each frame."""
    length, values = len(example.x), example.x
    frames = np.arange(length + 1)
    limit = np.abs(values).max()
    sound, belief = figure.subplots(1, 2)
    mesh = sound.pcolormesh(frames, np.arange(values.shape[1] + 1) + 0.5, values.T, cmap="PuOr", vmin=-limit, vmax=limit)
    bar = figure.colorbar(mesh, ax=sound, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=MUTED, length=0)
    sound.set_yticks(range(1, values.shape[1] + 1))
    sound.set_ylabel("cepstral coefficient")
    sound.set_xlabel("frame")
    sound.xaxis.set_major_locator(WHOLE)
    _title(sound, f"An utterance of speaker {task.classes[example.y]}: {length} frames")
    _plain(sound, frame=False)
    _draw_belief(belief, task, model, example, frames)
    belief.set_xlabel("frame")
    belief.xaxis.set_major_locator(WHOLE)


def _draw_belief(axes: Axes, task: Task, model: nn.Module, example: Example, edges: NDArray[Any]) -> None:
    """The probability of each class after every step."""
    probabilities = np.array(beliefs(model, mx.array(example.x), mx.array(example.time_deltas)))  # (T, classes)
    count = len(task.classes)
    axes.pcolormesh(edges, np.arange(count + 1) - 0.5, probabilities.T, cmap=BELIEF, vmin=0, vmax=1)
    for edge in np.arange(1, count) - 0.5:
        axes.axhline(edge, color=PALE, linewidth=0.7)
    axes.set_yticks(range(count), task.classes)
    axes.invert_yaxis()
    axes.set_ylabel(task.class_name)
    _title(axes, f"Belief after each step: white 0, dark 1; the true {task.class_name} in orange")
    _plain(axes, frame=False)
    axes.get_yticklabels()[example.y].set(color=EMBER, fontweight="bold", fontsize=11)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=INK, pad=7)


def _plain(axes: Axes, frame: bool = True) -> None:
    """Axes without ticks and box."""
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(frame and side in ("left", "bottom"))
        spine.set_color(MUTED)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=MUTED, fontsize=10)

"""What the scripts of the reproductions share: a training run that is measured after every epoch, and its record in a JSON file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from ember_mlx.training import History, Sequences, evaluate, fit

PACKAGES = ("ember-mlx", "mlx", "numpy")
FOLDER = Path("out/reproduce")


class Training(NamedTuple):
    """How a classifier is trained."""

    epochs: int
    batch_size: int
    optimizer: optim.Optimizer
    clip_norm: float | None
    seed: int


class Record(NamedTuple):
    """Accuracy on the test data, in percent, and seconds of training since the start without those of the tests, after each epoch."""

    accuracy: list[float]
    seconds: list[float]


def measured(model: nn.Module, data: tuple[Sequences, Sequences], how: Training, path: Path, settings: dict[str, Any]) -> Record:
    """Train on the first of the data and test on the second after each epoch; the file is written again each time.

    Raises:
        KeyboardInterrupt: after Ctrl-C, at the end of a step.
    """
    record, tested = Record([], []), 0.0

    def after_epoch(model: nn.Module, history: History) -> None:
        nonlocal tested
        before = time.perf_counter()
        record.accuracy.append(100 * float(evaluate(model, data[1], ["accuracy"])["accuracy"]))
        record.seconds.append(history["seconds"][-1] - tested)
        write(path, settings | {"epochs": how.epochs, "batch_size": how.batch_size, "seed": how.seed}, record)
        epoch, seconds = f"epoch {len(record.accuracy):>3}/{how.epochs}", f"{record.seconds[-1]:.0f} s"
        print(f"{path.stem}  {epoch}  accuracy {record.accuracy[-1]:.2f} %  {seconds}", flush=True)
        tested += time.perf_counter() - before

    history = fit(
        model,
        data[0],
        epochs=how.epochs,
        loss="cross_entropy",
        batch_size=how.batch_size,
        optimizer=how.optimizer,
        clip_norm=how.clip_norm,
        seed=how.seed,
        progress=False,
        callbacks=[after_epoch],
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return record


def write(path: Path, settings: dict[str, Any], record: Record) -> None:
    """A run's record as JSON: whole or not at all."""
    told = {"settings": settings, "accuracy": record.accuracy, "seconds": record.seconds, **machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps(told, indent=1) + "\n")
    new.replace(path)


def machine() -> dict[str, Any]:
    """Processor, cores, device, versions and date."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()),
        "cores": os.cpu_count(),
        "device": str(mx.default_device()),
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "date": datetime.date.today().isoformat(),
    }


def spread(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation, or the only number."""
    return f"{statistics.mean(accuracies):.2f}" + (f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else "")

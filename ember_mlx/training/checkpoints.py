"""Checkpoints of a training run, from which it resumes with identical results."""

import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import bad_argument
from ..safetensors import different, read_safetensors, write_safetensors
from .history import History
from .precision import Precision

OWNER = "checkpoint"
FORMAT = 1
WHAT = "checkpoint"


@dataclass
class RunState:
    """The progress of a run.

    Args:
        epoch: completed epochs.
        done: completed batches of the current epoch; `loss` and `targets` are their sums.
        step: completed batches in total.
        seconds: elapsed time.
        waiting: epochs since the last improvement.
        history: the measurements of each epoch.
        best: the weights after the best epoch, by path, if early stopping needs them.
        states: the model's states after the last batch, with `stateful`.
    """

    epoch: int = 0
    done: int = 0
    step: int = 0
    loss: float = 0.0
    targets: int = 0
    seconds: float = 0.0
    waiting: int = 0
    history: History = field(default_factory=History)
    best: dict[str, mx.array] = field(default_factory=dict)
    states: Any = None

    def count(self, loss: float, targets: int) -> None:
        """Record a completed batch."""
        self.done, self.step = self.done + 1, self.step + 1
        self.loss, self.targets = self.loss + loss * targets, self.targets + targets

    def next_epoch(self) -> None:
        """Record a completed epoch."""
        self.states = None
        self.epoch, self.done, self.loss, self.targets, self.waiting = self.epoch + 1, 0, 0.0, 0, self.waiting + 1


class Checkpoints:
    """A folder with the checkpoints of one run: safetensors files with further state as JSON in their metadata.

    Args:
        folder: the folder, created if missing.
        fixed: the run's settings, which must not change on resume.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, folder: str | Path, fixed: dict[str, Any], keep: int):
        self.folder, self.fixed, self.keep = Path(folder), fixed, keep
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise bad_argument(OWNER, "checkpoint", "be a folder", f"{folder}: {error.strerror}") from error

    def files(self) -> list[Path]:
        """The checkpoints, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def write(self, model: nn.Module, optimizer: optim.Optimizer, state: RunState, precision: Precision) -> None:
        """Write a checkpoint atomically, then delete the oldest ones."""
        trees = {"model": model.parameters(), "optimizer": optimizer.state, "best": state.best}
        arrays = {f"{part}/{path}": a for part, tree in trees.items() for path, a in _arrays(tree).items()}
        states = _put_away(state.states, arrays)
        numbers = {name: getattr(state, name) for name in _NUMBERS}
        told = {
            "what": WHAT,
            "format": FORMAT,
            "fixed": self.fixed,
            "state": numbers,
            "history": state.history.to_config(),
            "precision": precision.to_config(),
            "states": states,
        }
        path = self.folder / f"step-{state.step:09}.safetensors"
        try:
            write_safetensors(path, arrays, told)
        except OSError as error:
            raise OSError(f"[{OWNER}] {path} could not be written; older checkpoints are unchanged: {error}") from error
        for old in self.files()[self.keep :]:
            old.unlink()

    def restore(self, model: nn.Module, optimizer: optim.Optimizer, state: RunState, precision: Precision) -> None:
        """Restore the newest checkpoint that can be read; without any checkpoint, change nothing.

        Raises:
            ValueError: the checkpoint belongs to another model or to a run with other settings, or none can be read.
        """
        found = self.files()
        for path in found:
            try:
                arrays, told = read_safetensors(path, WHAT, FORMAT)
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                warnings.warn(f"[{OWNER}] {path} cannot be read; using the one before it: {error}", RuntimeWarning, stacklevel=3)
                continue
            self._take(path, arrays, told, model, optimizer, state, precision)
            return
        if found:
            raise bad_argument("fit", "resume", f"find a checkpoint in {self.folder} that can be read", f"none of {len(found)}")

    def check_empty(self) -> None:
        """Raise an error if the folder already holds checkpoints."""
        if self.files():
            expected = "be a folder without checkpoints if resume is False"
            raise bad_argument("fit", "checkpoint", expected, f"{self.files()[0]}")

    def _take(
        self,
        path: Path,
        arrays: dict[str, Any],
        told: Any,
        model: nn.Module,
        optimizer: optim.Optimizer,
        state: RunState,
        precision: Precision,
    ) -> None:
        for name, value in self.fixed.items():
            if told["fixed"].get(name) != value:
                raise bad_argument("fit", name, f"be {told['fixed'].get(name)}, as in the run of {path}", value)
        parts: dict[str, dict[str, mx.array]] = {"model": {}, "optimizer": {}, "best": {}, "states": {}}
        for name, a in arrays.items():
            part, _, where = name.partition("/")
            parts[part][where] = a
        if (found := different(dict(tree_flatten(model.parameters())), parts["model"])) is not None:
            raise bad_argument("fit", "model", f"be the one in {path}, whose {found[0]} is {found[2]}", found[1])
        known = _arrays(optimizer.state)
        if known.keys() != parts["optimizer"].keys():
            odd = sorted(known.keys() ^ parts["optimizer"].keys())[0]
            raise bad_argument("fit", "optimizer", f"be of the kind in {path}", f"another one: they differ in {odd}")
        model.load_weights(list(parts["model"].items()))
        optimizer.state = tree_unflatten(list(parts["optimizer"].items()))
        optimizer.init(model.trainable_parameters())
        for name in _NUMBERS:
            setattr(state, name, told["state"][name])
        restored = History.from_config(told["history"])
        state.history.update(restored)
        state.history.best_epoch = restored.best_epoch
        state.history.stopped = "epochs" if restored.stopped == "interrupted" else restored.stopped
        state.best, state.states = parts["best"], _taken_out(told["states"], arrays)
        precision.restore(told["precision"])


_NUMBERS = [f.name for f in fields(RunState) if f.name not in ("history", "best", "states")]


def _arrays(tree: Any) -> dict[str, mx.array]:
    """A tree's arrays by path; a schedule's learning rate is a plain number until its first step."""
    return {path: a for path, a in tree_flatten(tree) if isinstance(a, mx.array)}


def _put_away(tree: Any, arrays: dict[str, mx.array]) -> Any:
    """Replace a state tree's arrays by names, and add them to `arrays`. Tuples are marked, since JSON has none."""
    if isinstance(tree, mx.array):
        name = f"states/{sum(key.startswith('states/') for key in arrays)}"
        arrays[name] = tree
        return name
    return None if tree is None else {type(tree).__name__: [_put_away(branch, arrays) for branch in tree]}


def _taken_out(told: Any, arrays: dict[str, mx.array]) -> Any:
    """The inverse of `_put_away`."""
    if isinstance(told, str):
        return arrays[told]
    if told is None:
        return None
    (kind, branches), *_ = told.items()
    return {"list": list, "tuple": tuple}[kind](_taken_out(branch, arrays) for branch in branches)

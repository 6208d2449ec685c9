"""Running layers over B sequences: one step at a time, or over all steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument

Array = NDArray[Any]
Tree = dict[str, Any]


class Running(ABC):
    """A layer with the states of B sequences, which each step updates.

    Args:
        state: in the caller's form; its arrays are the buffers of the states.
    """

    def __init__(self, state: Any):
        self.state = state

    @abstractmethod
    def advance(self, x: Array, dt: Array) -> None:
        """Take a step, from the inputs (B, I) and the elapsed times before it (B,)."""

    @abstractmethod
    def output(self) -> Array:
        """y (B, O) after the last step; the next one may overwrite it."""


class Layer(ABC):
    """A saved layer in NumPy.

    Args:
        config: the constructor's arguments.
        weights: a tree of arrays, with the layer's structure.
        dtype: dtype of the computation.
    """

    input_size: int | None = None
    """Features of x, or None if unknown."""
    timed = False
    """Whether a step depends on the elapsed time before it."""
    recurrent = True
    """Whether it has states."""
    steps_alone = True
    """Whether its steps can be taken one by one."""

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        self.config, self.weights, self.dtype = config, weights, dtype
        self.batch_first = config.get("batch_first", True)
        self.return_sequences: bool = config.get("return_sequences", True)
        self.return_state: bool = config.get("return_state", False)

    @abstractmethod
    def zero(self, batch: int) -> Any:
        """A state of zeros, in the caller's form."""

    @abstractmethod
    def begin(self, batch: int) -> Running:
        """The layer before the first step of `batch` sequences."""

    def run(self, x: Array, dt: Array, lengths: Array | None, state: Any, sequences: bool | None = None) -> tuple[Array, Any]:
        """Run all steps of B sequences.

        Args:
            x: (T, B, I).
            dt: (T, B).
            lengths: (B,), or None.
            state: in the caller's form, complete.
            sequences: whether y holds every step; None: the layer's setting.

        Returns:
            y (T, B, O), zero past each length, or (B, O) at the last valid step, and the state after it.
        """
        if self.config.get("go_backwards"):
            x, dt = turned(x, lengths), turned(dt, lengths)
        running = self.begin(x.shape[1])
        fill(running.state, state)
        y = run_over(running, x, dt, lengths)
        return y if self.wants(sequences) else last_of(y, lengths), running.state

    def wants(self, sequences: bool | None) -> bool:
        """Whether y holds every step."""
        return self.return_sequences if sequences is None else sequences


def run_over(running: Running, x: Array, dt: Array, lengths: Array | None) -> Array:
    """Run all steps: y (T, B, O), zero past each length; states do not change past each length."""
    outputs = []
    for t in range(len(x)):
        valid = None if lengths is None else t < lengths
        before = [] if valid is None or valid.all() else [(a, a.copy()) for a in arrays_in(running.state)]
        running.advance(x[t], dt[t])
        y = running.output().copy()
        if valid is not None:
            for a, old in before:
                keep_old(a, old, valid)
            y[~valid] = 0
        outputs.append(y)
    return np.stack(outputs)


def keep_old(a: Array, old: Array, new: Array) -> None:
    """Restore a state (..., B, F) to its old values where `new` (B,) is False."""
    np.copyto(a, old, where=~new[:, None])


def arrays_in(state: Any) -> Iterator[Array]:
    """All arrays of a state."""
    if isinstance(state, np.ndarray):
        yield state
    else:
        for part in state:
            yield from arrays_in(part)


def fill(state: Any, given: Any) -> None:
    """Write one state over another."""
    for a, new in zip(arrays_in(state), arrays_in(given), strict=True):
        a[...] = new


def read_state(owner: str, given: Any, like: Any, name: str = "initial_state") -> Any:
    """A caller's state in the form of `like`, with zeros for None.

    Raises:
        TypeError: a missing list or tuple, or values that are not numbers.
        ValueError: a wrong number of parts, or a wrong shape.
    """
    if given is None:
        return like
    if isinstance(like, np.ndarray):
        a = np.asarray(given)
        if a.dtype.kind not in "fiu":
            raise bad_argument(owner, name, "be an array of numbers", type(given).__name__, TypeError)
        if a.shape != like.shape:
            raise bad_argument(owner, name, f"have shape {like.shape}", a.shape)
        return a.astype(like.dtype)
    if not isinstance(given, (list, tuple)):
        raise bad_argument(owner, name, f"be a list of {len(like)} parts or None", type(given).__name__, TypeError)
    if len(given) != len(like):
        raise bad_argument(owner, name, f"be a list of {len(like)} parts or None", f"{len(given)} parts")
    parts = [read_state(owner, part, one, f"{name}[{k}]") for k, (part, one) in enumerate(zip(given, like, strict=True))]
    return tuple(parts) if isinstance(like, tuple) else parts


def turned(a: Array, lengths: Array | None) -> Array:
    """(T, B, ...) with the first `lengths` (B,) steps of each sequence (all if None) in reverse order; later steps stay in place."""
    if lengths is None:
        return a[::-1]
    t = np.arange(len(a))[:, None]
    return a[np.where(t < lengths, lengths - 1 - t, t), np.arange(a.shape[1])]


def last_of(y: Array, lengths: Array | None) -> Array:
    """(T, B, O) -> (B, O) at each sequence's last valid step."""
    return y[-1] if lengths is None else y[lengths - 1, np.arange(y.shape[1])]

"""Threads for the NumPy forms: sequences do not depend on each other, and NumPy lets other threads run while it computes.

That pays where a step's pointwise work is much larger than what Python needs to ask for it. The threads of a call are its own and end with
it: none waits for work between calls, so that a forked process, a handler at exit and an interrupted call find nothing of another call's.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")
MOST_THREADS = 8
FEWEST_VALUES = 2**17  # that a thread should have to compute in one call of NumPy: with fewer, threads wait for each other


def parts_of(batch: int, lengths: NDArray[np.integer] | None, values: int) -> list[NDArray[np.intp]]:
    """The sequences of each thread, about the same number of steps each.

    Args:
        batch: B.
        lengths: (B,), or None where all sequences have the same.
        values: how many values one call of NumPy computes for each sequence.

    Example:
        >>> from ember_mlx.scans.threads import parts_of
        >>> [part.tolist() for part in parts_of(3, None, values=1)]
        [[0, 1, 2]]
    """
    count = max(1, min(_cores(), MOST_THREADS, batch, batch * values // FEWEST_VALUES))
    order = np.arange(batch) if lengths is None else np.argsort(-lengths.astype(np.int64), kind="stable")
    return [np.sort(order[k::count]) for k in range(count)]


class Stopped(Exception):
    """Raised by `Going.on`: another part of the same call has failed."""


class Going:
    """What the parts of a call know of each other."""

    def __init__(self) -> None:
        self._stopped = False
        self._changed = threading.Condition()
        self._working = self._ended = 0  # threads

    def on(self) -> None:
        """Raise Stopped in a part whose work nobody wants any more; to be asked now and then."""
        if self._stopped:
            raise Stopped

    def begin(self) -> bool:
        """Whether a thread may begin; it then says `end`."""
        with self._changed:
            self._working += not self._stopped
            return not self._stopped

    def end(self) -> None:
        """A thread has ended."""
        with self._changed:
            self._working, self._ended = self._working - 1, self._ended + 1
            self._changed.notify_all()

    def wait(self, threads: int) -> None:
        """Wait until so many have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended == threads)

    def stop(self) -> None:
        """Let no thread begin, and those that have go on no longer than to the next time that they ask."""
        with self._changed:
            self._stopped = True

    def stop_and_wait(self) -> None:
        """The same, and wait until they have ended."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._working == 0)


def run_parts(function: Callable[..., Result], *parts: Sequence[Any]) -> list[Result]:
    """function(part..., going) for each of the parts, the first in this thread, the others in threads of their own.

    Where one of them raises an exception, or this thread is interrupted, the others are told to stop, and have ended when the exception
    leaves; only a second interrupt leaves before they have. (Not by Thread.join: once interrupted, CPython's takes the thread for ended.)

    Example:
        >>> from ember_mlx.scans.threads import run_parts
        >>> run_parts(lambda n, going: n * n, [1, 2, 3])
        [1, 4, 9]
    """
    calls, going = list(zip(*parts, strict=True)), Going()
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(k: int) -> None:
        if not going.begin():
            return
        try:
            results[k] = function(*calls[k], going)
        except Stopped:
            pass
        except BaseException as error:
            errors.append(error)
            going.stop()
        finally:
            going.end()

    try:
        here = [0, *(k for k in range(1, len(calls)) if not _started(run, k))]
        for k in here:
            results[k] = function(*calls[k], going)
        going.wait(len(calls) - len(here))
    except BaseException as error:
        going.stop_and_wait()
        if not isinstance(error, Stopped):
            raise
    if errors:
        raise errors[0]
    return [results[k] for k in range(len(calls))]


def _started(run: Callable[[int], None], k: int) -> bool:
    try:
        threading.Thread(target=copy_context().run, args=(run, k), name=f"ember_mlx-{k}").start()
    except RuntimeError:  # there are no more threads to be had, as at the interpreter's exit
        return False
    return True


@lru_cache(maxsize=1)  # always the same: a backward must part its sequences as the forward did, which kept something for each part
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Threads for the NumPy forms: sequences are independent, and NumPy releases the GIL while it computes.

That pays off if a step's pointwise work is much larger than Python's overhead. The threads of a call are started by it and end with it.
There is no thread pool, so a forked process, an exit handler or an interrupted call never meets a thread of another call.
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
FEWEST_VALUES = 2**17  # minimum values per thread in one NumPy call; with fewer, threads wait for each other


def parts_of(batch: int, lengths: NDArray[np.integer] | None, values: int) -> list[NDArray[np.intp]]:
    """The sequences of each thread, with about the same number of steps each.

    Args:
        batch: B.
        lengths: (B,), or None if all sequences have the same.
        values: number of values that one NumPy call computes per sequence.

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
    """Shared state of a call's threads, used to stop them."""

    def __init__(self) -> None:
        self._stopped = False
        self._changed = threading.Condition()
        self._working = self._ended = 0  # number of threads

    def on(self) -> None:
        """Raise Stopped if the call has been stopped; threads call this regularly."""
        if self._stopped:
            raise Stopped

    def begin(self) -> bool:
        """Whether a thread may begin; if so it must call `end` later."""
        with self._changed:
            self._working += not self._stopped
            return not self._stopped

    def end(self) -> None:
        """Record that a thread has ended."""
        with self._changed:
            self._working, self._ended = self._working - 1, self._ended + 1
            self._changed.notify_all()

    def wait(self, threads: int) -> None:
        """Wait until this many threads have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended == threads)

    def stop(self) -> None:
        """Stop: no further thread begins, and running threads end at their next call of `on`."""
        with self._changed:
            self._stopped = True

    def stop_and_wait(self) -> None:
        """Call `stop`, and wait until all threads have ended."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._working == 0)


def run_parts(function: Callable[..., Result], *parts: Sequence[Any]) -> list[Result]:
    """Call function(part..., going) for each part, the first in this thread, the others in new threads.

    If one of them raises an exception, or this thread is interrupted, the others are stopped and have ended before the exception
    propagates; only a second interrupt propagates earlier. (Thread.join is not used: once interrupted, CPython considers the thread ended.)

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
    except RuntimeError:  # no more threads can be started, as at interpreter exit
        return False
    return True


@lru_cache(maxsize=1)  # cached, since the backward pass must split the sequences like the forward pass, which stores results per part
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

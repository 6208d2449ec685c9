"""A second thread for the part of a backward pass that is not sequential; NumPy lets both compute at once."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2


def ahead(prepare: Callable[[Item], Result], items: Sequence[Item], finish: Callable[[Result], None]) -> Iterator[tuple[Item, Result]]:
    """Yield (item, prepare(item)) in order; while the caller works on one, another thread prepares the next and finishes those before.

    All of `finish` has run when the iterator ends.

    Example:
        >>> from ember_mlx.scans.pipeline import ahead
        >>> finished = []
        >>> [(item, square) for item, square in ahead(lambda n: n * n, [1, 2, 3], finished.append)]
        [(1, 1), (2, 4), (3, 9)]
        >>> finished
        [1, 4, 9]
    """
    worker, waiting = _worker(), deque[Future[Result]]()
    finishing: list[Future[None]] = []
    for k, item in enumerate(items):
        while len(waiting) < AHEAD and k + len(waiting) < len(items):
            waiting.append(worker.submit(prepare, items[k + len(waiting)]))
        result = waiting.popleft().result()
        yield item, result
        finishing.append(worker.submit(finish, result))
    for future in finishing:
        future.result()


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="ember_mlx")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.cache_clear)  # a forked process has no such thread

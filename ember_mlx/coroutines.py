"""Running several generators in lockstep, so that requests of the same kind are served by one call."""

from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, TypeVar

Request = TypeVar("Request")


def run_batched(
    computations: Sequence[Generator[Request, Any, Any]], kind: Callable[[Request], Hashable], meet: Callable[[list[Request]], list[Any]]
) -> list[Any]:
    """Run generators that yield requests and are sent the responses; returns their results.

    Args:
        computations: the generators.
        kind: request -> its kind; in each round the requests of one kind are served by one call.
        meet: requests of one kind -> a response to each.

    Example:
        >>> from ember_mlx.coroutines import run_batched
        >>> def asking(number):
        ...     doubled = yield number
        ...     return doubled + 1
        >>> run_batched([asking(1), asking(5)], type, lambda numbers: [2 * n for n in numbers])
        [3, 11]
    """
    results: list[Any] = [None] * len(computations)
    given: dict[int, Any] = dict.fromkeys(range(len(computations)))
    while given:
        waiting: dict[Hashable, list[tuple[int, Request]]] = {}
        for k, answer in given.items():
            try:
                request = computations[k].send(answer)
            except StopIteration as stop:
                results[k] = stop.value
            else:
                waiting.setdefault(kind(request), []).append((k, request))
        given = {}
        for asked in waiting.values():
            answers = meet([request for _, request in asked])
            given |= {k: answer for (k, _), answer in zip(asked, answers, strict=True)}
    return results

"""A cache of results that lives as long as the object that they were computed from."""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar

Made = TypeVar("Made")


def held_by_first(function: Callable[..., Made]) -> Callable[..., Made]:
    """Cache a function's results in its first argument, an immutable object, by the other arguments; the cache is freed with the object.

    Example:
        >>> from ember_mlx.scans.held import held_by_first
        >>> from ember_mlx.scans.ltc.synapses import Synapses
        >>> @held_by_first
        ... def sizes(synapses, times):
        ...     return [times * synapses.count]
        >>> some = Synapses([[1, 0], [1, 1]])
        >>> sizes(some, 2), sizes(some, 2) is sizes(some, 2)
        ([6], True)
    """

    @wraps(function)
    def held(owner: Any, *others: Hashable, **named: Hashable) -> Made:
        made, key = owner.__dict__.setdefault("_held", {}), (function, others, *named.items())
        if key not in made:
            made[key] = function(owner, *others, **named)
        return made[key]

    return held

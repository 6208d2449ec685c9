"""Trees of arrays: nested dicts and lists. mlx.utils addresses leaves by string paths, which takes longer than a step's computation."""

from collections.abc import Iterable, Iterator
from typing import Any


def leaves_of(tree: Any) -> list[Any]:
    """The leaves in order.

    Example:
        >>> from ember_mlx.scans.pytrees import leaves_of
        >>> leaves_of({"x": 1, "stages": [{"w": 2, "b": 3}]})
        [1, 2, 3]
    """
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return [tree]
    result = []
    for part in tree:
        if isinstance(part, (dict, list, tuple)):
            result += leaves_of(part)
        else:
            result.append(part)
    return result


def with_leaves(tree: Any, leaves: Iterable[Any]) -> Any:
    """A tree of the same structure with other leaves.

    Example:
        >>> from ember_mlx.scans.pytrees import with_leaves
        >>> with_leaves({"x": 1, "stages": [{"w": 2, "b": 3}]}, "abc")
        {'x': 'a', 'stages': [{'w': 'b', 'b': 'c'}]}
    """
    return _filled(tree, iter(leaves))


def _filled(tree: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(tree, dict):
        return {name: _filled(part, leaves) for name, part in tree.items()}
    return [_filled(part, leaves) for part in tree] if isinstance(tree, (list, tuple)) else next(leaves)


def leaves_like(tree: Any, like: Any) -> list[Any]:
    """For each leaf of `like` the leaf of `tree` at the same position, or None if there is none.

    Example:
        >>> from ember_mlx.scans.pytrees import leaves_like
        >>> leaves_like({"b": [5]}, {"a": 1, "b": [2]})
        [None, 5]
    """
    if isinstance(like, dict):
        return [leaf for name, part in like.items() for leaf in leaves_like(None if tree is None else tree.get(name), part)]
    if isinstance(like, (list, tuple)):
        parts = [None] * len(like) if tree is None else tree
        return [leaf for one, part in zip(parts, like, strict=True) for leaf in leaves_like(one, part)]
    return [tree]

"""Which form of a recurrence runs: "auto", "ops" or "numpy"."""

import os
from collections.abc import Callable
from types import TracebackType

import mlx.core as mx

from .errors import bad_argument

BACKENDS = ("auto", "ops", "numpy")


class use_backend:
    """Choose the form in which recurrences run, from now on or for a `with` block.

    "auto" takes the NumPy scan on the CPU wherever arrays can be evaluated and MLX ops elsewhere (on a GPU, inside mx.compile, vmap
    and export); "ops" and "numpy" are taken as named, and raise where they cannot run. The environment variable EMBER_MLX_BACKEND
    sets the first choice.

    Args:
        name: "auto", "ops" or "numpy".

    Raises:
        ValueError: another name.

    Example:
        >>> import ember_mlx
        >>> with ember_mlx.use_backend("ops"):
        ...     ember_mlx.current_backend()
        'ops'
    """

    _current: str | None = None

    def __init__(self, name: str):
        self._before, use_backend._current = use_backend._current, _checked("use_backend", "name", name)

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        use_backend._current = self._before


def current_backend() -> str:
    """The name chosen last with `use_backend`, or by EMBER_MLX_BACKEND, or "auto"."""
    return use_backend._current or _checked("ember_mlx", "EMBER_MLX_BACKEND", os.environ.get("EMBER_MLX_BACKEND", "auto"))


def choose_backend(evaluable: Callable[[], bool], owner: str) -> str:
    """The form to run now: "ops" or "numpy"."""
    name = current_backend()
    if name == "ops" or (name == "auto" and mx.default_device().type != mx.DeviceType.cpu):
        return "ops"
    if evaluable():
        return "numpy"
    if name == "numpy":
        raise RuntimeError(f"[{owner}] backend 'numpy' cannot run inside mx.compile, mx.vmap or export; use 'auto' or 'ops'.")
    return "ops"


def _checked(owner: str, argument: str, name: str) -> str:
    if name not in BACKENDS:
        raise bad_argument(owner, argument, f"be one of {', '.join(map(repr, BACKENDS))}", repr(name))
    return name

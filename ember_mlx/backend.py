"""The choice of the form in which recurrences run."""

import os
from contextvars import ContextVar
from types import TracebackType

import mlx.core as mx

from .errors import bad_argument

KERNEL_BACKENDS = ("metal", "cuda")
BACKENDS = ("auto", "ops", "numpy", *KERNEL_BACKENDS)
MOST_CHOICES = 64  # most plain calls that are remembered

_blocks: ContextVar[tuple[str, ...]] = ContextVar("ember_mlx backend", default=())  # blocks of this thread or task, outermost first
_chosen: "list[use_backend]" = []  # plain calls outside of any block; the last one counts


class use_backend:
    """Choose the form in which recurrences run, from now on or for a `with` block.

    A plain call applies to all threads, or inside a block until that block ends; a block applies to its own thread or asyncio task.

    "auto" follows MLX's default device: the fused kernels on a GPU, the NumPy scan on the CPU if arrays have values, and MLX operations
    where these cannot run. On a GPU mx.vmap and export need "ops". The other forms have no fallback: if one cannot run, it raises an error
    with the reason. The environment variable EMBER_MLX_BACKEND sets the initial choice.

    Args:
        name: "auto", "ops" (MLX operations), "numpy", "metal" or "cuda" (fused kernels).

    Raises:
        ValueError: another name.

    Example:
        >>> import ember_mlx
        >>> with ember_mlx.use_backend("ops"):
        ...     ember_mlx.current_backend()
        'ops'
    """

    def __init__(self, name: str):
        self._name = _checked("use_backend", "name", name)
        self._before = blocks = _blocks.get()
        self._by_itself = True  # until a block is entered
        if blocks:
            _blocks.set((*blocks[:-1], self._name))
        else:
            _chosen.append(self)
            del _chosen[:-MOST_CHOICES]

    def __enter__(self) -> "use_backend":
        if self._by_itself:
            self._by_itself = False
            if self._before:
                _blocks.set(self._before)
            elif self in _chosen:
                _chosen.remove(self)
        _blocks.set((*_blocks.get(), self._name))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _blocks.set(_blocks.get()[:-1])


def current_backend() -> str:
    """The name of the innermost `use_backend` block, or chosen last by a plain call, or by EMBER_MLX_BACKEND, or "auto"."""
    if blocks := _blocks.get():
        return blocks[-1]
    if _chosen:
        return _chosen[-1]._name
    return _checked("ember_mlx", "EMBER_MLX_BACKEND", os.environ.get("EMBER_MLX_BACKEND") or "auto")


def gpu_kind() -> str | None:
    """The kind of kernels for the default device: "metal", "cuda", or None for the CPU."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return None
    return "metal" if mx.metal.is_available() else "cuda"


def _checked(owner: str, argument: str, name: str) -> str:
    if not isinstance(name, str) or name not in BACKENDS:
        raise bad_argument(owner, argument, f"be one of {', '.join(map(repr, BACKENDS))}", repr(name))
    return name

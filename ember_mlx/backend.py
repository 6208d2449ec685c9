"""Which form of a recurrence runs."""

import os
from types import TracebackType

import mlx.core as mx

from .errors import bad_argument

KERNEL_BACKENDS = ("metal", "cuda")
BACKENDS = ("auto", "ops", "numpy", *KERNEL_BACKENDS)


class use_backend:
    """Choose the form in which recurrences run, from now on or for a `with` block.

    "auto" follows MLX's default device: on a GPU the fused kernels, on the CPU the NumPy scan wherever arrays have values; where these
    cannot run, MLX operations. On a GPU mx.vmap and export need "ops". A named form never gives way to another: it raises with the
    reason where it cannot run. The environment variable EMBER_MLX_BACKEND sets the first choice.

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

    _current: str | None = None

    def __init__(self, name: str):
        self._name = _checked("use_backend", "name", name)
        self._before, use_backend._current = use_backend._current, self._name
        self._left = False  # whether a block has been left, so that the next one chooses anew

    def __enter__(self) -> "use_backend":
        if self._left:
            self._before, use_backend._current = use_backend._current, self._name
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        use_backend._current, self._left = self._before, True


def current_backend() -> str:
    """The name chosen last with `use_backend`, or by EMBER_MLX_BACKEND, or "auto"."""
    return use_backend._current or _checked("ember_mlx", "EMBER_MLX_BACKEND", os.environ.get("EMBER_MLX_BACKEND", "auto"))


def gpu_kind() -> str | None:
    """The kind of kernels for the default device: "metal", "cuda", or None for the CPU."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return None
    return "metal" if mx.metal.is_available() else "cuda"


def _checked(owner: str, argument: str, name: str) -> str:
    if name not in BACKENDS:
        raise bad_argument(owner, argument, f"be one of {', '.join(map(repr, BACKENDS))}", repr(name))
    return name

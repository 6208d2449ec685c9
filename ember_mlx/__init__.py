"""Continuous-time and gated recurrent layers for MLX.

The names below are imported when they are first used, so that `import ember_mlx.reference` works where MLX is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import current_backend, use_backend
    from .layers import LTC, CfC
    from .wiring import AutoNCPMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

_HOMES = {
    "AutoNCPMap": ".wiring",
    "CfC": ".layers",
    "FullyConnectedMap": ".wiring",
    "LTC": ".layers",
    "NCPMap": ".wiring",
    "NeuronMap": ".wiring",
    "RandomMap": ".wiring",
    "convert": ".convert",
    "current_backend": ".backend",
    "reference": ".reference",
    "use_backend": ".backend",
}

__version__ = "0.1.0"
__all__ = [
    "LTC",
    "AutoNCPMap",
    "CfC",
    "FullyConnectedMap",
    "NCPMap",
    "NeuronMap",
    "RandomMap",
    "convert",
    "current_backend",
    "reference",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES[name], __name__)
    return module if name in ("convert", "reference") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

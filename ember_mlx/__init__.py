"""Continuous-time and gated recurrent layers for MLX.

The names below are imported when they are first used, so that `import ember_mlx.reference` works where MLX is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import current_backend, use_backend
    from .layers import CfC, CTRQNet, LQNet, spatial_regularization
    from .wiring import AutoNCPMap, EnhancedNCPMap, EnhancedNeuronMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

_HOMES = {
    "AutoNCPMap": ".wiring",
    "CTRQNet": ".layers",
    "CfC": ".layers",
    "EnhancedNCPMap": ".wiring",
    "EnhancedNeuronMap": ".wiring",
    "FullyConnectedMap": ".wiring",
    "LQNet": ".layers",
    "NCPMap": ".wiring",
    "NeuronMap": ".wiring",
    "RandomMap": ".wiring",
    "convert": ".convert",
    "current_backend": ".backend",
    "reference": ".reference",
    "spatial_regularization": ".layers",
    "use_backend": ".backend",
}

__version__ = "0.1.0"
__all__ = [
    "AutoNCPMap",
    "CTRQNet",
    "CfC",
    "EnhancedNCPMap",
    "EnhancedNeuronMap",
    "FullyConnectedMap",
    "LQNet",
    "NCPMap",
    "NeuronMap",
    "RandomMap",
    "convert",
    "current_backend",
    "reference",
    "spatial_regularization",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES[name], __name__)
    return module if name in ("convert", "reference") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

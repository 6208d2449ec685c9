"""Continuous-time and gated recurrent layers for MLX.

The names below are imported on first use, so that `import ember_mlx.reference` works without MLX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import current_backend, use_backend
    from .layers import (
        GRU,
        LSTM,
        LTC,
        RNN,
        Bidirectional,
        CfC,
        CTRQNet,
        LQNet,
        Recurrent,
        SequenceModel,
        StrideAware,
        StrideAwareCfC,
        StrideAwareLTC,
        spatial_regularization,
    )
    from .saving import load, save
    from .sequences import bucket_batches, pack_sequences, unpack_sequences
    from .step.cell import Cell, Parameter
    from .wiring import AutoNCPMap, EnhancedNCPMap, EnhancedNeuronMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

_HOMES = {
    "AutoNCPMap": ".wiring",
    "Bidirectional": ".layers",
    "CTRQNet": ".layers",
    "Cell": ".step.cell",
    "CfC": ".layers",
    "EnhancedNCPMap": ".wiring",
    "EnhancedNeuronMap": ".wiring",
    "FullyConnectedMap": ".wiring",
    "GRU": ".layers",
    "LQNet": ".layers",
    "LSTM": ".layers",
    "LTC": ".layers",
    "NCPMap": ".wiring",
    "NeuronMap": ".wiring",
    "Parameter": ".step.cell",
    "RNN": ".layers",
    "RandomMap": ".wiring",
    "Recurrent": ".layers",
    "SequenceModel": ".layers",
    "StrideAware": ".layers",
    "StrideAwareCfC": ".layers",
    "StrideAwareLTC": ".layers",
    "bucket_batches": ".sequences",
    "cells": ".cells",
    "convert": ".convert",
    "current_backend": ".backend",
    "load": ".saving",
    "pack_sequences": ".sequences",
    "reference": ".reference",
    "save": ".saving",
    "spatial_regularization": ".layers",
    "step": ".step",
    "testing": ".testing",
    "training": ".training",
    "unpack_sequences": ".sequences",
    "use_backend": ".backend",
}

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "LTC",
    "RNN",
    "AutoNCPMap",
    "Bidirectional",
    "CTRQNet",
    "Cell",
    "CfC",
    "EnhancedNCPMap",
    "EnhancedNeuronMap",
    "FullyConnectedMap",
    "LQNet",
    "NCPMap",
    "NeuronMap",
    "Parameter",
    "RandomMap",
    "Recurrent",
    "SequenceModel",
    "StrideAware",
    "StrideAwareCfC",
    "StrideAwareLTC",
    "bucket_batches",
    "cells",
    "convert",
    "current_backend",
    "load",
    "pack_sequences",
    "reference",
    "save",
    "spatial_regularization",
    "step",
    "testing",
    "training",
    "unpack_sequences",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES[name], __name__)
    return module if _HOMES[name] == f".{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

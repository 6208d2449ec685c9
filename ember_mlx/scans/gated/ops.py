"""The MLX-ops form of the gated scan: that of its cells, differentiable to any order inside any transformation.

The arrays are those of the NumPy form (reference.py); MLX differentiates it.
"""

from typing import Any

import mlx.core as mx

from ..cell.ops import cell_ops, project_inputs
from .cells import cell_tree, definition_of
from .spec import GatedSpec

__all__ = ["gated_ops", "project_inputs"]
Tree = dict[str, Any]


def gated_ops(spec: GatedSpec, arrays: Tree) -> list[mx.array]:
    """Run an RNN, LSTM or GRU: [h] (D, T, B, H), for an LSTM [h, c]; zero past each length."""
    return cell_ops(definition_of(spec, arrays), cell_tree(arrays))

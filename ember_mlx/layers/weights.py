"""A module that holds named parameters."""

import mlx.core as mx
import mlx.nn as nn

from .initial import glorot_uniform, uniform_bias


class Weights(nn.Module):
    """Named arrays of a layer, such as weight and bias.

    A module instead of a dict: in MLX 0.32.4 nn.value_and_grad fails if the arrays of a plain dict are frozen.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx.layers.weights import Weights
        >>> Weights(weight=mx.zeros((2, 3)), bias=mx.zeros((2,)))
        Weights(weight=(2, 3), bias=(2,))
    """

    def __init__(self, **arrays: mx.array):
        super().__init__()
        for name, a in arrays.items():
            self[name] = a

    def _extra_repr(self) -> str:
        return ", ".join(f"{name}={a.shape}" for name, a in self.items() if isinstance(a, mx.array))


def linear_weights(outputs: int, inputs: int, blocks: int = 1) -> Weights:
    """weight (blocks * outputs, inputs) and bias (blocks * outputs,), with initial values."""
    return Weights(weight=glorot_uniform(outputs, inputs, blocks), bias=uniform_bias(blocks * outputs, inputs))


def lstm_weights(inputs: int, units: int) -> Weights:
    """The weights of the mixed memory's LSTM: Wx (4 H, I), Wh (4 H, H), bias (4 H,)."""
    return Weights(Wx=glorot_uniform(units, inputs, 4), Wh=glorot_uniform(units, units, 4), bias=uniform_bias(4 * units, inputs))

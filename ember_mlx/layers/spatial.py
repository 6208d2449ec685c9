"""Spatial regularization: the cost of a layer's wiring in space."""

from typing import Any

import mlx.core as mx

from ..errors import bad_argument
from ..wiring import SpatialMap
from ..wiring.spatial import TAYLOR_TERMS
from .arguments import type_name
from .bidirectional import Bidirectional
from .strides import StrideAware


def spatial_regularization(layer: Any) -> mx.array:
    """The wiring cost of a layer on a map with coordinates, to be scaled and added to a training loss.

    sum_ij |w_ij| d_ij c_ij: the strengths of the recurrent synapses, times their lengths d (the map's `distance_matrix`), times the
    communicability c of their two neurons in the current network::

        c = exp(M) without its diagonal,  M_ij = |w_ij| / sqrt(s_i s_j),  s_i = (sum_j |w_ij| + sum_j |w_ji|) / 2

    Minimising it shortens synapses, and prunes those between neurons that are already well connected. If a layer has several weights for
    the same pair of units, as the four heads of a CfC, |w| is the mean of their magnitudes. For symmetric w this is the loss of Achterberg
    et al.; otherwise they use s_i = sum_j |w_ij|, which is 0 for a neuron without outgoing synapses.

    Args:
        layer: a layer of this package on an :class:`EnhancedNeuronMap` or :class:`EnhancedNCPMap`, or a Bidirectional or StrideAware
            wrapper of one; a wrapper's cost is the sum of its layers' costs.

    Returns:
        A scalar in the dtype of the parameters, differentiable including the communicability.

    Raises:
        TypeError: `layer` has no recurrent weights between the units of a neuron map.
        ValueError: the map has no coordinates, or the layer has a backbone.

    Example:
        >>> import mlx.core as mx
        >>> import mlx.nn as nn
        >>> from ember_mlx import EnhancedNeuronMap, LQNet, spatial_regularization
        >>> layer = LQNet(EnhancedNeuronMap(27, input_dim=3))
        >>> cost, gradient = nn.value_and_grad(layer, spatial_regularization)(layer)
        >>> cost.item() > 0, bool(mx.any(gradient["R"] != 0))
        (True, True)

    Source: Achterberg et al. (2023), Nature Machine Intelligence 5, 1369-1381, https://doi.org/10.1038/s42256-023-00748-9.
    """
    parts = _layers_of(layer)
    if len(parts) > 1:
        return sum((spatial_regularization(part) for part in parts[1:]), spatial_regularization(parts[0]))
    (layer,) = parts
    if not (hasattr(layer, "recurrent_weights") and hasattr(layer, "neuron_map")):
        raise bad_argument("spatial_regularization", "layer", "be a layer on a neuron map", type_name(layer), TypeError)
    if not isinstance(layer.neuron_map, SpatialMap):
        expected = "be on a map with coordinates, such as EnhancedNeuronMap"
        raise bad_argument("spatial_regularization", "layer", expected, f"a {type(layer.neuron_map).__name__}")
    strengths = mx.abs(layer.recurrent_weights()).mean(axis=0)
    distance = mx.array(layer.neuron_map.distance_matrix, strengths.dtype)  # 0 on the diagonal, so c's diagonal does not matter
    return (strengths * distance * _exponential(_normalised(strengths))).sum()


def _layers_of(layer: Any) -> list[Any]:
    """The layers inside a wrapper, or the layer itself."""
    if isinstance(layer, Bidirectional):
        return [*_layers_of(layer.forward_layer), *_layers_of(layer.backward_layer)]
    return list(layer.layers) if isinstance(layer, StrideAware) else [layer]


def _normalised(strengths: mx.array) -> mx.array:
    """M; 0 for a unit without synapses, with finite gradients there."""
    total = (strengths.sum(axis=0) + strengths.sum(axis=1)) / 2
    scale = mx.where(total > 0, mx.rsqrt(mx.where(total > 0, total, 1)), 0)
    return scale[:, None] * strengths * scale


def _exponential(matrix: mx.array) -> mx.array:
    """exp(matrix) by its power series, for a non-negative matrix with a numerical radius of at most 1, such as M."""
    result = term = mx.eye(matrix.shape[0], dtype=matrix.dtype)
    for k in range(1, TAYLOR_TERMS + 1):
        term = (term @ matrix) / k
        result = result + term
    return result

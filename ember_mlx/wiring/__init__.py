"""Neuron maps: the synapses between the neurons of a layer, and their signs (NumPy only)."""

from .maps import FullyConnectedMap, RandomMap
from .ncp import AutoNCPMap, NCPMap
from .neuron_map import NeuronMap, map_from_config, map_to_config, random_polarities
from .spatial import EnhancedNCPMap, EnhancedNeuronMap, SpatialMap, communicability

__all__ = [
    "AutoNCPMap",
    "EnhancedNCPMap",
    "EnhancedNeuronMap",
    "FullyConnectedMap",
    "NCPMap",
    "NeuronMap",
    "RandomMap",
    "SpatialMap",
    "communicability",
    "map_from_config",
    "map_to_config",
    "random_polarities",
]

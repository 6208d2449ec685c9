"""Neuron maps: which neurons of a layer are joined by synapses, and with which sign (NumPy only)."""

from ember_mlx.wiring.maps import FullyConnectedMap, RandomMap
from ember_mlx.wiring.ncp import AutoNCPMap, NCPMap
from ember_mlx.wiring.neuron_map import NeuronMap, map_from_config, map_to_config, random_polarities

__all__ = [
    "AutoNCPMap",
    "FullyConnectedMap",
    "NCPMap",
    "NeuronMap",
    "RandomMap",
    "map_from_config",
    "map_to_config",
    "random_polarities",
]

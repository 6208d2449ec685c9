"""The NumPy forms of the recurrences, and the neuron maps: all that works where MLX is not installed."""

from .scans.cfc.reference import cfc_backward, cfc_forward
from .scans.cfc.spec import CfCSpec
from .wiring import AutoNCPMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

__all__ = ["AutoNCPMap", "CfCSpec", "FullyConnectedMap", "NCPMap", "NeuronMap", "RandomMap", "cfc_backward", "cfc_forward"]

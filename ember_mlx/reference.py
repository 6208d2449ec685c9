"""The NumPy forms of the recurrences, and the neuron maps: all that works where MLX is not installed."""

from .scans.cfc.reference import cfc_backward, cfc_forward
from .scans.cfc.spec import CfCSpec
from .scans.quantum.reference import quantum_backward, quantum_forward
from .scans.quantum.spec import QuantumSpec
from .wiring import AutoNCPMap, EnhancedNCPMap, EnhancedNeuronMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

__all__ = [
    "AutoNCPMap",
    "CfCSpec",
    "EnhancedNCPMap",
    "EnhancedNeuronMap",
    "FullyConnectedMap",
    "NCPMap",
    "NeuronMap",
    "QuantumSpec",
    "RandomMap",
    "cfc_backward",
    "cfc_forward",
    "quantum_backward",
    "quantum_forward",
]

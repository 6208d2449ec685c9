"""The NumPy forms of the recurrences, and the neuron maps: everything that works without MLX."""

from .predictors.predictor import Predictor, Stepper, load
from .scans.cfc.reference import CfCStep, cfc_backward, cfc_forward
from .scans.cfc.spec import CfCSpec
from .scans.gated.reference import GatedStep, gated_backward, gated_forward
from .scans.gated.spec import GatedSpec
from .scans.ltc.reference import LTCStep, ltc_backward, ltc_forward
from .scans.ltc.spec import LTCSpec
from .scans.ltc.synapses import Synapses
from .scans.quantum.reference import QuantumStep, quantum_backward, quantum_forward
from .scans.quantum.spec import QuantumSpec
from .wiring import AutoNCPMap, EnhancedNCPMap, EnhancedNeuronMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

__all__ = [
    "AutoNCPMap",
    "CfCSpec",
    "CfCStep",
    "EnhancedNCPMap",
    "EnhancedNeuronMap",
    "FullyConnectedMap",
    "GatedSpec",
    "GatedStep",
    "LTCSpec",
    "LTCStep",
    "NCPMap",
    "NeuronMap",
    "Predictor",
    "QuantumSpec",
    "QuantumStep",
    "RandomMap",
    "Stepper",
    "Synapses",
    "cfc_backward",
    "cfc_forward",
    "gated_backward",
    "gated_forward",
    "load",
    "ltc_backward",
    "ltc_forward",
    "quantum_backward",
    "quantum_forward",
]

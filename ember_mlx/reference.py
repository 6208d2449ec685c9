"""The NumPy forms of the recurrences, and the neuron maps: everything that works without MLX."""

from .predictors.predictor import Predictor, Stepper, load
from .scans.cell.reference import CellStep, cell_backward, cell_forward
from .scans.cfc.reference import CfCStep, cfc_backward, cfc_forward
from .scans.cfc.spec import CfCSpec
from .scans.ltc.reference import LTCStep, ltc_backward, ltc_forward
from .scans.ltc.spec import LTCSpec
from .scans.ltc.synapses import Synapses
from .scans.quantum.reference import QuantumStep, quantum_backward, quantum_forward
from .scans.quantum.spec import QuantumSpec
from .wiring import AutoNCPMap, EnhancedNCPMap, EnhancedNeuronMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

__all__ = [
    "AutoNCPMap",
    "CellStep",
    "CfCSpec",
    "CfCStep",
    "EnhancedNCPMap",
    "EnhancedNeuronMap",
    "FullyConnectedMap",
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
    "cell_backward",
    "cell_forward",
    "cfc_backward",
    "cfc_forward",
    "load",
    "ltc_backward",
    "ltc_forward",
    "quantum_backward",
    "quantum_forward",
]

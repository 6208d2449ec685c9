"""What is fixed about a quantum-inspired recurrence before any array is seen."""

from dataclasses import dataclass

# The parameter is f in this unit: a phase changes by 2 pi t times what f does, so an optimizer's usual steps are too long for f itself.
FREQUENCY_UNIT = 0.01


@dataclass(frozen=True)
class QuantumSpec:
    """The static part of an LQNet or CTRQNet scan; the two differ in their drive and in the values of tau.

    Args:
        nu_0: the viscosity of a state of zeros, per unit of time; 0: the rotation alone.
        beta: how fast the viscosity falls with the mean of |psi|^2.
        harmonic: whether the drive is multiplied by sines of the time elapsed.

    Example:
        >>> from ember_mlx.scans.quantum.spec import QuantumSpec
        >>> QuantumSpec().harmonic
        False
    """

    nu_0: float = 1.0
    beta: float = 0.1
    harmonic: bool = False

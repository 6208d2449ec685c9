"""The static specification of a quantum-inspired recurrence."""

from dataclasses import dataclass

# The parameter is f in this unit: a change of f changes the phase by 2 pi t times as much, so usual optimizer steps are too long for f
# itself.
FREQUENCY_UNIT = 0.01


@dataclass(frozen=True)
class QuantumSpec:
    """The static specification of an LQNet or CTRQNet scan; the two differ in their drive and in the values of tau.

    Args:
        nu_0: the viscosity of a state of zeros, per unit of time; 0: rotation only.
        beta: rate at which the viscosity falls with the mean of |psi|^2.
        harmonic: whether the drive is multiplied by sines of the elapsed time.

    Example:
        >>> from ember_mlx.scans.quantum.spec import QuantumSpec
        >>> QuantumSpec().harmonic
        False
    """

    nu_0: float = 1.0
    beta: float = 0.1
    harmonic: bool = False

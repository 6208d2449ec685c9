"""The static specification of an LTC recurrence."""

from dataclasses import dataclass

from .synapses import Synapses

SOLVERS = {"semi_implicit": 1, "explicit": 1, "rk4": 4}
"""Solver -> evaluations of the synapses per unfold."""


@dataclass(frozen=True)
class LTCSpec:
    """The static specification of an LTC scan.

    Args:
        synapses: synapses between units, H to H.
        sensory: synapses from the inputs to the units, I to H.
        unfolds: number of equal substeps of the solver per step.
        epsilon: added to the denominator (5) of the semi-implicit solver.
        solver: a key of SOLVERS.
        mixed_memory: whether an LSTM step precedes each LTC step, which starts from its h.

    Example:
        >>> from ember_mlx.scans.ltc.spec import LTCSpec
        >>> from ember_mlx.scans.ltc.synapses import Synapses
        >>> LTCSpec(Synapses([[1, 1], [0, 1]]), Synapses([[1, 0]]), solver="rk4").evaluations
        24
    """

    synapses: Synapses
    sensory: Synapses
    unfolds: int = 6
    epsilon: float = 1e-8
    solver: str = "semi_implicit"
    mixed_memory: bool = False

    @property
    def units(self) -> int:
        """H."""
        return self.synapses.units

    @property
    def least_cm(self) -> float:
        """The value that the semi-implicit solver adds to cm, so that cm and dt may both be near 0; its square is still a float32."""
        return 1e-15 if self.solver == "semi_implicit" else 0.0

    @property
    def evaluations(self) -> int:
        """Evaluations of the synapses per step, E."""
        return self.unfolds * SOLVERS[self.solver]

"""What is fixed about an LTC recurrence before any array is seen."""

from dataclasses import dataclass

from .synapses import Synapses

SOLVERS = {"semi_implicit": 1, "explicit": 1, "rk4": 4}
"""Solver -> how often an unfold evaluates the synapses."""


@dataclass(frozen=True)
class LTCSpec:
    """The static part of an LTC scan.

    Args:
        synapses: among the units, H to H.
        sensory: from the inputs to the units, I to H.
        unfolds: into how many parts of equal length the solver divides a step.
        epsilon: added to the denominator (5) of the semi-implicit solver.
        solver: a key of SOLVERS.
        mixed_memory: whether an LSTM step comes before each LTC step, which works on its h.

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
        """What the semi-implicit solver adds to cm, so that cm and the time may both be next to 0; its square is a float32 still."""
        return 1e-15 if self.solver == "semi_implicit" else 0.0

    @property
    def evaluations(self) -> int:
        """How often a step evaluates the synapses, E."""
        return self.unfolds * SOLVERS[self.solver]

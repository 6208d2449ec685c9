"""The static specification of a CfC recurrence."""

from dataclasses import dataclass

MODES = ("default", "no_gate", "pure")


@dataclass(frozen=True)
class CfCSpec:
    """The static specification of a CfC scan.

    Args:
        stages: for each CfC layer of the step, in processing order, its units [start, stop) of the state.
            A single stage with all units for a plain map; inter, command, motor for a layered map in one scan.
        mode: "default", "no_gate" or "pure".
        activation: the backbone's activation.
        mixed_memory: whether an LSTM step precedes the stages.

    Example:
        >>> from ember_mlx.scans.cfc.spec import CfCSpec
        >>> CfCSpec(stages=((0, 64),)).heads
        4
    """

    stages: tuple[tuple[int, int], ...]
    mode: str = "default"
    activation: str = "lecun_tanh"
    mixed_memory: bool = False

    @property
    def units(self) -> int:
        """Units of all stages together, H."""
        return max(stop for _, stop in self.stages)

    @property
    def heads(self) -> int:
        """Linear heads per unit: f, g, t_a, t_b, or f alone in pure mode."""
        return 1 if self.mode == "pure" else 4

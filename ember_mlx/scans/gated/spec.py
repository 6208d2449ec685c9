"""What is fixed about a gated recurrence before any array is seen."""

from dataclasses import dataclass

GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}
"""Cell -> how many blocks of H results its products have: RNN with tanh or relu; LSTM: i, f, g, o; GRU: r, z, n."""


@dataclass(frozen=True)
class GatedSpec:
    """The static part of a gated scan.

    Args:
        cell: "tanh" or "relu" (RNN), "lstm" or "gru".

    Example:
        >>> from ember_mlx.scans.gated.spec import GatedSpec
        >>> GatedSpec("lstm").gates
        4
    """

    cell: str

    @property
    def gates(self) -> int:
        """Gates of a unit."""
        return GATES[self.cell]

    @property
    def blocks(self) -> int:
        """Blocks of H gradients of the products with x and h; GRU: r, z, n's part of W_h h, n."""
        return 4 if self.cell == "gru" else self.gates

    @property
    def has_cell_state(self) -> bool:
        """Whether there is a c beside h."""
        return self.cell == "lstm"

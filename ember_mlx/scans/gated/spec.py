"""The static specification of a gated recurrence."""

from dataclasses import dataclass

GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}
"""Cell -> number of gates, each a block of H results of its products: RNN with tanh or relu; LSTM: i, f, g, o; GRU: r, z, n."""


@dataclass(frozen=True)
class GatedSpec:
    """The static specification of a gated scan.

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
        """Gates per unit."""
        return GATES[self.cell]

    @property
    def blocks(self) -> int:
        """Blocks of H gradients of the products with x and h; GRU: r, z, n's part of W_h h, n."""
        return 4 if self.cell == "gru" else self.gates

    @property
    def has_cell_state(self) -> bool:
        """Whether the state has a c in addition to h."""
        return self.cell == "lstm"

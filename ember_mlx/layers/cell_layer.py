"""What RNN, LSTM, GRU and Recurrent share: stacked layers of a cell."""

from collections.abc import Hashable, Sequence

import mlx.core as mx

from ..step.cell import Cell
from .arguments import StateLayout
from .initial import uniform
from .stacked import Direction, StackedLayer, Tree


class CellLayer(StackedLayer):
    """Stacked layers of a cell; a subclass names its recurrence and has a `cell`.

    Parameters are ``layers[k][direction]``: Wx (G H, inputs) and bias (G H) of the G products with x, the cell's products with hidden
    values by their names, all uniform in +-1/sqrt(H), and its parameters by theirs.
    """

    cell: Cell
    proj_size: int | None = None

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """As the cell names them."""
        return tuple(self.cell.states)

    @property
    def timed(self) -> bool:  # type: ignore[override]
        """Whether the cell's step has dt."""
        return bool(self.cell.definition.is_timed)

    @property
    def spec(self) -> Hashable:
        """The cell's definition."""
        definition: Hashable = self.cell.definition
        return definition

    @property
    def blocks(self) -> int:
        """Blocks of H rows in the largest weight."""
        return max([self.cell.x_products, *self.cell.h_products.values()])

    @property
    def direction_size(self) -> int:
        """Features of y per direction."""
        return self.proj_size or self.hidden_size

    @property
    def state_layouts(self) -> tuple[StateLayout, ...]:
        """The states in order."""
        sizes = [self.cell.sizes.get(name, "H") for name in self.state_names]
        projected = self.direction_size
        return tuple(
            one if size == "H" else one._replace(features=projected, letter="proj_size")
            for one, size in zip(super().state_layouts, sizes, strict=True)
        )

    def make_direction(self, inputs: int) -> "CellDirection":
        """The parameters of one layer in one direction with so many inputs."""
        return CellDirection(self.cell, inputs, self.hidden_size, self.direction_size, self.bias)

    def initial_tree(self, state: Sequence[mx.array]) -> Tree:
        """The states before a scan, as the scan takes them."""
        return {"initial": dict(zip(self.state_names, state, strict=True))}


class CellDirection(Direction):
    """The parameters of one layer in one direction; see CellLayer.

    Args:
        cell: the cell.
        inputs: features of x.
        units: H.
        projected: P, the other size that a cell may have.
        bias: whether there are biases: bias, and the parameters of a GRU.
    """

    def __init__(self, cell: Cell, inputs: int, units: int, projected: int, bias: bool):
        super().__init__()
        owner, rows, size = type(cell).__name__, cell.x_products * units, {"H": units, "P": projected}
        self.Wx = uniform((rows, inputs), units)
        for name, (count, out, given) in cell.definition.weights.items():
            self[name] = uniform((count * size[out], size[given]), units)
        if bias:
            self.bias = uniform((rows,), units)
        self._weights, self._zeros = [*cell.h_products], {} if bias else {"bias": rows}
        for name, parameter in cell.all_parameters.items():
            if parameter.is_bias and not bias:
                self._zeros[name] = 1 if parameter.shared else units
            else:
                self[name] = mx.array(parameter.drawn(owner, name, units, _drawn))
        self._others = [*cell.all_parameters]

    def scan_tree(self, dtype: mx.Dtype) -> Tree:
        """The arrays of the scan."""

        def of(name: str) -> mx.array:
            return self[name].astype(dtype) if name in self else mx.zeros((self._zeros[name],), dtype)

        tree: Tree = {"w_x": of("Wx"), "b": of("bias"), "weights": {name: of(name) for name in self._weights}}
        return tree | {"parameters": {name: of(name) for name in self._others}}


def _drawn(low: float, high: float, count: int) -> mx.array:
    return mx.random.uniform(low, high, (count,))

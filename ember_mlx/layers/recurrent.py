"""A layer of any cell."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import bad_argument
from ..scans.cell.scan import RECURRENT
from ..step.cell import Cell
from ..step.saved import cell_from_config, cell_to_config
from .arguments import type_name
from .base import RecurrentLayer
from .cell_layer import CellLayer
from .stacked import StackedOptions, described

if TYPE_CHECKING:
    from typing_extensions import Unpack


@described(
    state="a list of the cell's states in its order",
    times="elapsed time before each step, (B, T) or (B, T, 1), its axes in the order of x's, or a number; 1 if None. Where the cell's\n"
    "        step has no dt, it must be None.",
)
class Recurrent(CellLayer):
    """A layer of a cell: of one that you write (`Cell`), or of one of `ember_mlx.cells`.

    Parameters are ``layers[k][direction]`` with Wx (x_products * H, inputs) and bias (x_products * H), each product with a hidden value
    by its name (count * H, H), all uniform in +-1/sqrt(H), and the cell's parameters by their names with their own initial values, (H,)
    or (1,) where shared. y is the cell's first state.

    Args:
        cell: a cell, or a class of cells that is made without arguments.
        <sizes>
        <options>

    <call>

    Raises:
        TypeError: a cell that is none, or an argument of a wrong kind or dtype.
        ValueError: an argument of a wrong shape or value; a cell whose step cannot be expressed, see `Cell`.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import Cell, Recurrent
        >>> from ember_mlx.step import exp, sigmoid, softplus, tanh
        >>> class DecayingUnit(Cell):
        ...     x_products = 2
        ...     h_products = {"R": 2}
        ...     parameters = {"rate": (-1.0, 1.0)}
        ...     def step(self, x, h, dt, R, rate):
        ...         h = h * exp(-softplus(rate) * dt)                      # what has passed since the last sample
        ...         z, n = R(h)
        ...         return h + sigmoid(x[0] + z) * (tanh(x[1] + n) - h)
        >>> layer = Recurrent(DecayingUnit, 3, 8, bidirectional=True)
        >>> y, [h] = layer(mx.zeros((2, 5, 3)), time_deltas=0.5, return_state=True)
        >>> y.shape, h.shape
        ((2, 5, 16), (2, 2, 8))
    """

    recurrence = RECURRENT

    def __init__(
        self,
        cell: Cell | type[Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        **options: "Unpack[StackedOptions]",
    ):
        self.cell = read_cell(type(self).__name__, cell)
        super().__init__(input_size, hidden_size, num_layers, **options)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as values that JSON can hold, the cell by its class and settings."""
        return super().get_config() | {"cell": cell_to_config(self.cell)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RecurrentLayer":
        """The layer that `get_config` described, with new weights; its cell is one of `ember_mlx.cells`, or of a class that is defined."""
        if isinstance(config, Mapping) and isinstance(config.get("cell"), Mapping):
            config = {**config, "cell": cell_from_config(cls.__name__, config["cell"])}
        return super().from_config(config)

    def alike(self, **changes: Any) -> "RecurrentLayer":
        """A layer like this one, of the same cell, but for some arguments and new weights."""
        return super().alike(**{"cell": self.cell} | changes)

    def _extra_repr(self) -> str:
        return f"{self.cell!r}, {super()._extra_repr()}"


def read_cell(owner: str, cell: Any) -> Cell:
    """A layer's cell, whose step can be expressed and whose settings can be saved."""
    if isinstance(cell, type) and issubclass(cell, Cell):
        try:
            cell = cell()
        except TypeError as error:
            expected = f"be a cell: {cell.__name__} is made with arguments"
            raise bad_argument(owner, "cell", expected, error, TypeError) from error
    if not isinstance(cell, Cell):
        raise bad_argument(owner, "cell", "be a Cell, or a class of such", type_name(cell), TypeError)
    if cell.sizes:
        raise bad_argument(owner, "cell", "have states of H units alone", f"{type(cell).__name__} with sizes {dict(cell.sizes)}")
    cell_to_config(cell)
    cell.definition  # noqa: B018 - an error of the step comes here
    return cell

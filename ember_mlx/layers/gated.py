"""The gated layers RNN, LSTM and GRU: layers of the cells in scans/cell/gated.py."""

from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import bad_argument
from ..scans.cell.gated import GRU_CELL, LSTM_CELL, PROJECTED_LSTM, RELU_RNN, TANH_RNN
from ..scans.cell.scan import GRU as GRU_SCAN
from ..scans.cell.scan import LSTM as LSTM_SCAN
from ..scans.cell.scan import RNN as RNN_SCAN
from ..step.cell import Cell
from ..validation import check_choice, check_integer
from .cell_layer import CellLayer
from .stacked import StackedOptions, described

if TYPE_CHECKING:
    from typing_extensions import Unpack

RNN_CELLS = {"tanh": TANH_RNN, "relu": RELU_RNN}


class GatedLayer(CellLayer):
    """The base of RNN, LSTM and GRU, whose parameters have the names of mlx.nn: Wx (G H, inputs), Wh (G H, H), bias (G H)."""

    is_base = True


@described(state="[h]")
class RNN(GatedLayer):
    r"""A simple recurrent layer, as torch.nn.RNN defines it.

    One step::

        h' = tanh(W_x x + W_h h + b)      or relu

    Args:
        <sizes>
        activation: "tanh" or "relu".
        <options>

    <call>

    Raises:
        TypeError: an argument of a wrong kind or dtype.
        ValueError: an argument of a wrong shape or value; time_deltas.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import RNN
        >>> y, [h] = RNN(10, 20)(mx.zeros((32, 5, 10)), return_state=True)
        >>> y.shape, h.shape
        ((32, 5, 20), (1, 32, 20))

    Source: Elman, Finding structure in time, Cognitive Science 14, 179-211 (1990), https://doi.org/10.1207/s15516709cog1402_1.
    """

    recurrence = RNN_SCAN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        activation: str = "tanh",
        **options: "Unpack[StackedOptions]",
    ):
        self.activation = check_choice(type(self).__name__, "activation", activation, RNN_CELLS)
        super().__init__(input_size, hidden_size, num_layers, **options)

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        """An RNN with tanh or relu."""
        return RNN_CELLS[self.activation]

    def _extra_repr(self) -> str:
        return super()._extra_repr() + (f", activation={self.activation}" if self.activation != "tanh" else "")


@described(
    state="(h, c)",
    more_state=" With proj_size h is (..., proj_size).",
    more_result="\n    With proj_size y and h have proj_size features in place of H.",
)
class LSTM(GatedLayer):
    r"""A long short-term memory layer, as torch.nn.LSTM defines it.

    One step, each gate with H rows of W, R and b, in the order i, f, g, o::

        i, f, o = sigma(W x + R h + b);   g = tanh(W x + R h + b)
        c' = f c + i g
        h' = o tanh(c')                   with proj_size: W_r (o tanh(c'))

    Args:
        <sizes>
        proj_size: if given, h is a learned linear map of o tanh(c') to this many features, less than H.
        <options>

    <call>

    Raises:
        TypeError: an argument of a wrong kind or dtype.
        ValueError: an argument of a wrong shape or value; time_deltas.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import LSTM
        >>> y, (h, c) = LSTM(10, 20, bidirectional=True)(mx.zeros((32, 5, 10)), return_state=True)
        >>> y.shape, h.shape, c.shape
        ((32, 5, 40), (2, 32, 20), (2, 32, 20))

    Source: Hochreiter and Schmidhuber, Long short-term memory, Neural Computation 9, 1735-1780 (1997),
    https://doi.org/10.1162/neco.1997.9.8.1735.
    """

    recurrence = LSTM_SCAN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        proj_size: int | None = None,
        **options: "Unpack[StackedOptions]",
    ):
        owner = type(self).__name__
        self.proj_size = None if proj_size is None else check_integer(owner, "proj_size", proj_size)
        if proj_size is not None and proj_size >= check_integer(owner, "hidden_size", hidden_size):
            raise bad_argument(owner, "proj_size", f"be less than hidden_size = {hidden_size}", proj_size)
        super().__init__(input_size, hidden_size, num_layers, **options)

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        """An LSTM, its h projected or not."""
        return PROJECTED_LSTM if self.proj_size else LSTM_CELL

    def state_to_caller(self, state: list[mx.array]) -> Any:
        """(h, c)."""
        return tuple(state)

    def _extra_repr(self) -> str:
        return super()._extra_repr() + (f", proj_size={self.proj_size}" if self.proj_size else "")


@described(state="[h]")
class GRU(GatedLayer):
    r"""A gated recurrent unit layer, as torch.nn.GRU defines it: the reset gate acts after the product.

    One step, each gate with H rows of W, R and b, in the order r, z, n::

        r, z = sigma(W x + R h + b)
        n = tanh(W_n x + b_n + r (R_n h + b_hn))
        h' = (1 - z) n + z h

    Args:
        <sizes>
        <options>

    <call>

    Raises:
        TypeError: an argument of a wrong kind or dtype.
        ValueError: an argument of a wrong shape or value; time_deltas.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import GRU
        >>> y, [h] = GRU(10, 20)(mx.zeros((32, 5, 10)), return_state=True)
        >>> y.shape, h.shape
        ((32, 5, 20), (1, 32, 20))

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder for statistical machine translation, EMNLP 2014,
    1724-1734, https://doi.org/10.3115/v1/D14-1179.
    """

    recurrence = GRU_SCAN
    cell = GRU_CELL

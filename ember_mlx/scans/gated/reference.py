"""The NumPy form of the gated scan (RNN, LSTM, GRU): that of its cells (cells.py).

Forward and backward take the arrays of one scan as a tree (D directions, each a scan of its own; T steps, B sequences, H units, G gates):

    x        (D, T, B, I)   inputs, in each direction's order of steps
    h0       (D, B, H)      state before the first step;  c0 (D, B, H) too for an LSTM
    w_x, w_h (D, G H, I), (D, G H, H);  b (D, G H);  b_hn (D, H) too for a GRU
    w_hr     (D, P, H)      optional, for an LSTM: its h has P features, and w_h is (D, G H, P)
    lengths  (B,)           optional, integers in 1..T
"""

from typing import Any

from ..cell.reference import CellStep, cell_backward, cell_forward
from ..dense import Scratch
from ..pointwise import Array
from .cells import cell_tree, definition_of, gated_tree
from .spec import GatedSpec

Tree = dict[str, Any]


def gated_forward(spec: GatedSpec, arrays: Tree, kept: Scratch | None = None) -> tuple[Array, ...]:
    """Run an RNN, LSTM or GRU over T steps, in D directions.

    Args:
        spec: the static part.
        arrays: the tree above, float32 or float64.
        kept: memory for the gates, which spare the backward their recomputation, used unless they are too large; None: nothing is kept.

    Returns:
        (h,) of shape (D, T, B, H), zero past each length; for an LSTM (h, c), c likewise.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import GatedSpec, gated_forward
        >>> weights = {"w_x": np.zeros((1, 12, 4)), "w_h": np.zeros((1, 12, 3)), "b": np.zeros((1, 12))}
        >>> sequence = {"x": np.ones((1, 5, 2, 4)), "h0": np.ones((1, 2, 3)), "c0": np.ones((1, 2, 3))}
        >>> h, c = gated_forward(GatedSpec("lstm"), sequence | weights)
        >>> h.shape, float(c[0, 0, 0, 0])
        ((1, 5, 2, 3), 0.5)
    """
    return cell_forward(definition_of(spec, arrays), cell_tree(arrays), kept)


def gated_backward(
    spec: GatedSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], kept: Scratch | None = None
) -> Tree:
    """Pull the outputs' gradients back through a gated scan.

    Args:
        spec: the static part.
        arrays: what `gated_forward` took.
        outputs: what it returned.
        cotangents: the gradient of each output, same shapes.
        kept: what `gated_forward` was given, and nobody else since; None: it kept nothing.

    Returns:
        The gradient of every floating-point array, as a tree of the same structure, without `lengths`.
    """
    return gated_tree(cell_backward(definition_of(spec, arrays), cell_tree(arrays), outputs, cotangents, kept))


class GatedStep(CellStep):
    """A scan of one step that is run again and again: each call reads x and the state anew from the arrays that it was made with.

    Args:
        spec: the static part.
        arrays: what `gated_forward` takes, contiguous, with T = 1 and without lengths.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import GatedSpec, GatedStep
        >>> arrays = {"w_x": np.zeros((1, 3, 4)), "w_h": np.eye(3)[None], "b": np.ones((1, 3)), "x": np.ones((1, 1, 2, 4))}
        >>> arrays["h0"] = np.zeros((1, 2, 3))
        >>> step = GatedStep(GatedSpec("relu"), arrays)
        >>> for _ in range(5):
        ...     arrays["h0"][...] = step()[0]
        >>> float(arrays["h0"][0, 0, 0])
        5.0
    """

    def __init__(self, spec: GatedSpec, arrays: Tree):
        super().__init__(definition_of(spec, arrays), cell_tree(arrays))

"""A wrapper that runs a layer in both directions."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..errors import bad_argument
from ..validation import check_flag
from .arguments import integer_array, split_key, turned, type_name
from .base import RecurrentLayer, check_config, layer_from_config, layer_to_config
from .html import parameter_table

OWNER = "Bidirectional"


class Bidirectional(nn.Module):
    """Two layers of the same kind: one runs forwards over each sequence, the other backwards from its last valid step.

    Args:
        layer: the forward layer, of this package. The backward layer is made from its configuration, with its own weights.

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, ...)``, as the wrapped layer's.

        initial_state: a pair (forward, backward) of the layer's states; either or both may be None.
        time_deltas: elapsed time before each step; a step keeps its value in both directions.
        lengths: (B,) integers in 1..T; the backward run starts at each sequence's last valid step.
        key: PRNG key, for layers that draw noise, as LQNet; each direction draws its own.

    Returns:
        y, both layers' outputs concatenated on the last axis: for every step in the order of x, or without return_sequences for each
        direction's final step (the last valid step forward, the first step backward). With return_state (y, (forward state,
        backward state)).

    Raises:
        TypeError: `layer` is not a layer of this package; initial_state is not a pair.
        ValueError: a layer that already runs backwards, or cannot; an argument that the layer does not accept.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import Bidirectional, CfC
        >>> y, (forward, backward) = Bidirectional(CfC(20, 10))(mx.zeros((32, 5, 10)), return_sequences=True, return_state=True)
        >>> y.shape, [a.shape for a in backward]
        ((32, 5, 40), [(32, 20), (32, 20)])

    Source: Schuster and Paliwal, Bidirectional recurrent neural networks, IEEE Transactions on Signal Processing 45, 2673-2681 (1997),
    https://doi.org/10.1109/78.650093.
    """

    def __init__(self, layer: RecurrentLayer):
        super().__init__()
        if not isinstance(layer, RecurrentLayer):
            raise bad_argument(OWNER, "layer", "be a recurrent layer of ember_mlx", type_name(layer), TypeError)
        config = layer.get_config()
        if config.get("go_backwards") is not False:
            got = type(layer).__name__ + (" with go_backwards=True" if config.get("go_backwards") else "")
            raise bad_argument(OWNER, "layer", "run forwards and support go_backwards", got)
        self.forward_layer = layer
        self.backward_layer = layer.alike(go_backwards=True)
        self.backward_layer.set_dtype(layer.dtype)
        self.train(layer.training)

    def __call__(
        self,
        x: mx.array,
        initial_state: Any = None,
        time_deltas: Any = None,
        lengths: Any = None,
        *,
        return_sequences: bool | None = None,
        return_state: bool | None = None,
        return_states: bool = False,
        **options: Any,
    ) -> Any:
        """Run both layers over a batch of sequences; see the class for the shapes."""
        layer = self.forward_layer
        sequences = layer.return_sequences if return_sequences is None else check_flag(OWNER, "return_sequences", return_sequences)
        with_state = layer.return_state if return_state is None else check_flag(OWNER, "return_state", return_state)
        self._check_states(x, initial_state, time_deltas, lengths)
        options |= {"return_sequences": sequences, "return_state": True, "return_states": return_states}
        pair = zip((layer, self.backward_layer), _pair(initial_state), split_key(OWNER, options, 2), strict=True)
        (forward, state, *every), (backward, state_back, *every_back) = (
            each(x, initial, time_deltas, lengths, **own) for each, initial, own in pair
        )
        if sequences:
            backward = _in_order(backward, lengths, layer.batch_first)
        result = [mx.concatenate([forward, backward], axis=-1), *([(state, state_back)] if with_state else [])]
        if every:
            result.append((every[0], tree_map(lambda a: _in_order(a, lengths, layer.batch_first), every_back[0])))
        return tuple(result) if len(result) > 1 else result[0]

    def _check_states(self, x: Any, initial_state: Any, time_deltas: Any, lengths: Any) -> None:
        """Check both directions' states before either runs."""
        if initial_state is not None:
            for each, initial in zip((self.forward_layer, self.backward_layer), _pair(initial_state), strict=True):
                each.read_call(x, initial, time_deltas, lengths)

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self.forward_layer.input_size

    @property
    def output_size(self) -> int:
        """Features of y, both directions together."""
        return self.forward_layer.output_size + self.backward_layer.output_size

    def _repr_html_(self) -> str:
        """The parameter table, for notebooks."""
        return parameter_table(self)

    def get_config(self) -> dict[str, Any]:
        """The wrapped layer's class and configuration, as JSON-serialisable values."""
        return {"layer": layer_to_config(self.forward_layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Bidirectional":
        """Make the layer that `get_config` describes, with new weights."""
        check_config(OWNER, config, ("layer",), ("layer",))
        return cls(layer_from_config(OWNER, config["layer"]))


def _pair(initial_state: Any) -> tuple[Any, Any]:
    """The two layers' initial states."""
    if initial_state is None:
        return None, None
    expected = "be a pair (forward, backward) of the layer's states or None"
    if not isinstance(initial_state, (list, tuple)):
        raise bad_argument(OWNER, "initial_state", expected, type_name(initial_state), TypeError)
    if len(initial_state) != 2:
        raise bad_argument(OWNER, "initial_state", expected, f"{len(initial_state)} entries")
    return initial_state[0], initial_state[1]


def _in_order(y: mx.array, lengths: Any, batch_first: bool) -> mx.array:
    """(B, T, F) or (T, B, F), with a leading layer axis (S, ...), or (..., T, F) without batch: from processing order to x's order."""
    if lengths is None:
        axis = -2 if batch_first or y.ndim == 2 else -3
        return mx.moveaxis(turned(mx.moveaxis(y, axis, 0), None), 0, axis)
    y = y.swapaxes(-3, -2) if batch_first else y
    y = y if y.ndim == 3 else y.transpose(1, 2, 0, 3)  # (T, B, ...)
    y = turned(y, integer_array(OWNER, lengths).astype(mx.int32))
    y = y if y.ndim == 3 else y.transpose(2, 0, 1, 3)
    return y.swapaxes(-3, -2) if batch_first else y

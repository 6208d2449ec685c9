"""A sequential model that passes time deltas, lengths and states to its layers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn

from ..errors import bad_argument
from ..validation import check_flag, check_integer
from .arguments import read_lengths, type_name
from .base import RecurrentLayer
from .bidirectional import Bidirectional
from .html import parameter_table

if TYPE_CHECKING:
    from ..predictors.predictor import Stepper

OWNER = "SequenceModel"
OF_MLX = (nn.RNN, nn.GRU, nn.LSTM)
KEEP_FEATURES = (nn.Dropout, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm, nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity)


class SequenceModel(nn.Module):
    """A sequence of layers of this package and of mlx.nn; unlike `mlx.nn.Sequential` it passes on times, lengths and states.

    Time deltas go to each layer that takes them, lengths and states to each recurrent layer; a nested SequenceModel counts as one layer.
    All recurrent layers except the last return every step. The last one's `return_sequences` decides whether y is per step or per
    sequence; layers after it, such as an `nn.Linear`, are applied to its output. Recurrent layers of mlx.nn (RNN, GRU, LSTM) always
    return every step.

    Args:
        layers: modules; the recurrent ones must all have the same `batch_first`.
        outputs: features of y, made by an `nn.Linear` added at the end; None: no such layer.

    Inputs:
        x: (B, T, I), or (T, I) without batch; with `batch_first=False` in the layers (T, B, I).
        initial_state: the states that a call returned, one entry per recurrent layer; None: zeros.
        time_deltas: (B, T), or a number: the elapsed time before each step.
        lengths: (B,) integers in 1..T, or None.
        return_sequences: whether y is per step; None: the last recurrent layer's setting.
        return_state: whether the states are returned too.

    Returns:
        y (B, T, O), zero past each length, or (B, O); with return_state (y, states).

    Raises:
        TypeError: a layer that is not a module, or a call argument of the wrong type.
        ValueError: no layer, layers of incompatible sizes, or a call argument with a wrong shape or value.

    Example:
        >>> import mlx.core as mx
        >>> import mlx.nn as nn
        >>> from ember_mlx import GRU, CfC, SequenceModel
        >>> model = SequenceModel(CfC(32, 4, return_sequences=True), nn.Dropout(0.1), GRU(32, 16), outputs=7)
        >>> x, dt = mx.zeros((8, 20, 4)), mx.ones((8, 20))
        >>> y, states = model(x, time_deltas=dt, return_state=True)
        >>> y.shape, len(states)
        ((8, 20, 7), 2)
        >>> model(x, states, dt, return_sequences=False).shape
        (8, 7)
    """

    def __init__(self, *layers: nn.Module, outputs: int | None = None):
        super().__init__()
        if not layers:
            raise bad_argument(OWNER, "layers", "hold at least one", "none")
        for k, layer in enumerate(layers):
            if not isinstance(layer, nn.Module):
                raise bad_argument(OWNER, f"layers[{k}]", "be an mlx.nn.Module", type_name(layer), TypeError)
        self.layers = list(layers)
        _check_sizes(self.layers)
        if outputs is not None:
            check_integer(OWNER, "outputs", outputs)
            features = _features(self.layers)
            if features is None:
                expected = "be None after a layer of unknown output size; add an nn.Linear as the last layer instead"
                raise bad_argument(OWNER, "outputs", expected, f"{outputs} after {type_name(layers[-1])}")
            self.layers.append(nn.Linear(features, outputs))

    def __call__(
        self,
        x: mx.array,
        initial_state: Any = None,
        time_deltas: Any = None,
        lengths: Any = None,
        *,
        return_sequences: bool | None = None,
        return_state: bool = False,
    ) -> Any:
        """Run the layers over a batch of sequences; see the class for the shapes."""
        if return_sequences is not None:
            check_flag(OWNER, "return_sequences", return_sequences)
        check_flag(OWNER, "return_state", return_state)
        recurrent = [k for k, layer in enumerate(self.layers) if _is_recurrent(layer)]
        states, finals = self._states(initial_state, len(recurrent)), []
        if time_deltas is not None and not self.timed:
            raise bad_argument(OWNER, "time_deltas", "be None, since no layer uses elapsed time", type_name(time_deltas))
        by_step, y = True, x
        for k, layer in enumerate(self.layers):
            if k not in recurrent:
                y = layer(y)
                continue
            wanted = True if k != recurrent[-1] else return_sequences
            by_step = _returns_sequences(layer) if wanted is None else wanted
            y, final = _run(layer, y, next(states), time_deltas, lengths, by_step)
            finals.append(final)
        if by_step and lengths is not None and y.ndim > 2 and recurrent[-1:] != [len(self.layers) - 1]:
            y = self._without_padding(y, lengths)
        return (y, finals) if return_state else y

    def stepper(self, batch: int = 1, dtype: mx.Dtype | None = None) -> "Stepper":
        """Make an object that runs all layers one time step at a time; see RecurrentLayer.stepper.

        Example:
            >>> import numpy as np
            >>> from ember_mlx import GRU, SequenceModel
            >>> SequenceModel(GRU(3, 8), outputs=2).stepper().step(np.ones(3)).shape
            (2,)
        """
        from ..stepping import make_stepper  # not at the top: stepping imports this module

        return make_stepper(self, batch, dtype)

    def _repr_html_(self) -> str:
        """The parameter table, for notebooks."""
        return parameter_table(self)

    @property
    def input_size(self) -> int:
        """Features of x."""
        for layer in self.layers:
            if (size := _sizes(layer)[0]) is not None:
                return size
        raise AttributeError(f"{OWNER} does not know the sizes of its layers")

    @property
    def output_size(self) -> int:
        """Features of y."""
        if (size := _features(self.layers)) is None:
            raise AttributeError(f"{OWNER} does not know the sizes of its layers")
        return size

    @property
    def batch_first(self) -> bool:
        """Whether x is (B, T, I)."""
        return next(
            (bool(layer.batch_first) for layer in map(_inner, self.layers) if _is_recurrent(layer) and not isinstance(layer, OF_MLX)), True
        )

    @property
    def timed(self) -> bool:
        """Whether any layer uses elapsed time."""
        return any(_takes_times(layer) for layer in self.layers)

    @property
    def return_sequences(self) -> bool:
        """Whether y is per step by default: the last recurrent layer's setting."""
        return next((_returns_sequences(layer) for layer in reversed(self.layers) if _is_recurrent(layer)), True)

    def _states(self, initial_state: Any, count: int) -> Iterator[Any]:
        if initial_state is None:
            return iter([None] * count)
        if not isinstance(initial_state, (list, tuple)):
            raise bad_argument(OWNER, "initial_state", "be a list of states, one per recurrent layer", type_name(initial_state), TypeError)
        if len(initial_state) != count:
            raise bad_argument(OWNER, "initial_state", f"hold {count} entries, one per recurrent layer", len(initial_state))
        return iter(initial_state)

    def _without_padding(self, y: mx.array, lengths: Any) -> mx.array:
        """y with zeros past each length."""
        T, B = y.shape[:2][::-1] if self.batch_first else y.shape[:2]
        ends = cast(mx.array, read_lengths(OWNER, lengths, T, B, True))
        valid = mx.arange(T) < ends[:, None]
        return mx.where((valid if self.batch_first else valid.T)[:, :, None], y, 0)


def _inner(layer: nn.Module) -> nn.Module:
    return layer.forward_layer if isinstance(layer, Bidirectional) else layer


def _is_recurrent(layer: nn.Module) -> bool:
    if isinstance(layer, SequenceModel):
        return any(_is_recurrent(one) for one in layer.layers)
    return isinstance(layer, (RecurrentLayer, Bidirectional, *OF_MLX))


def _takes_times(layer: nn.Module) -> bool:
    return isinstance(_inner(layer), (RecurrentLayer, SequenceModel)) and bool(_inner(layer).timed)


def _returns_sequences(layer: nn.Module) -> bool:
    return bool(getattr(_inner(layer), "return_sequences", True))


def _run(layer: nn.Module, x: mx.array, state: Any, time_deltas: Any, lengths: Any, by_step: bool) -> tuple[mx.array, Any]:
    """A recurrent layer's y and states."""
    if isinstance(layer, OF_MLX):
        return _run_of_mlx(layer, x, state, lengths, by_step)
    times = time_deltas if _takes_times(layer) else None
    return layer(x, state, times, lengths, return_sequences=by_step, return_state=True)


def _run_of_mlx(layer: nn.Module, x: mx.array, state: Any, lengths: Any, by_step: bool) -> tuple[mx.array, list[mx.array]]:
    """The same for a recurrent layer of mlx.nn, which also computes the padding: its states are taken at each last valid step."""
    found = layer(x, *(state or []))
    every = list(found) if isinstance(found, tuple) else [found]
    T = x.shape[-2]
    ends = None if lengths is None else read_lengths(OWNER, lengths, T, x.shape[0], x.ndim == 3)
    if ends is None:
        last = [a[..., -1, :] for a in every]
        return every[0] if by_step else last[0], last
    last = [mx.take_along_axis(a, (ends - 1)[:, None, None], axis=1).squeeze(1) for a in every]
    return mx.where((mx.arange(T) < ends[:, None])[:, :, None], every[0], 0) if by_step else last[0], last


def _sizes(layer: nn.Module) -> tuple[int | None, int | None]:
    """Features of a layer's input and output, or None if unknown."""
    if isinstance(layer, (RecurrentLayer, Bidirectional, SequenceModel)):
        return layer.input_size, layer.output_size
    if isinstance(layer, nn.Linear):
        return layer.weight.shape[1], layer.weight.shape[0]
    if isinstance(layer, nn.RNN):
        return layer.Wxh.shape[1], layer.Wxh.shape[0]
    if isinstance(layer, (nn.GRU, nn.LSTM)):
        return layer.Wx.shape[1], layer.Wh.shape[1]
    return None, None


def _features(layers: list[nn.Module]) -> int | None:
    """Features of the last layer's output, or None if unknown."""
    for layer in reversed(layers):
        if not isinstance(layer, KEEP_FEATURES):
            return _sizes(layer)[1]
    return None


def _check_sizes(layers: list[nn.Module]) -> None:
    batch_first = [layer.batch_first for layer in map(_inner, layers) if isinstance(layer, RecurrentLayer)]
    batch_first += [layer.batch_first for layer in layers if isinstance(layer, SequenceModel) and _is_recurrent(layer)]
    batch_first += [True for layer in layers if isinstance(layer, OF_MLX)]
    if len(set(batch_first)) > 1:
        raise bad_argument(OWNER, "layers", "have the same batch_first, which is True for layers of mlx.nn", batch_first)
    for k in range(1, len(layers)):
        before, needed = _features(layers[:k]), _sizes(layers[k])[0]
        if before is not None and needed is not None and before != needed:
            raise bad_argument(OWNER, f"layers[{k}]", f"take {before} features, the output of the layer before it", needed)

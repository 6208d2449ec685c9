"""Models made of layers, and layers of mlx.nn, in NumPy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..scans.cell.gated import GRU_CELL, LSTM_CELL
from ..scans.pointwise import ACTIVATIONS, sigmoid
from .layers import RunningCell
from .running import Array, Layer, Running, Tree, turned

Function = Callable[[Array], Array]


class Bidirectional(Layer):
    """Two layers: one runs forwards over each sequence, the other backwards from its last valid step."""

    steps_alone = False

    def __init__(self, weights: Tree, dtype: np.dtype[Any], forward: Layer, backward: Layer):
        super().__init__(forward.config, weights, dtype)
        self.forward, self.backward = forward, backward
        self.input_size, self.timed = forward.input_size, forward.timed

    def zero(self, batch: int) -> Any:
        return (self.forward.zero(batch), self.backward.zero(batch))

    def begin(self, batch: int) -> Running:
        raise TypeError("a bidirectional layer has no single steps")

    def run(self, x: Array, dt: Array, lengths: Array | None, state: Any, sequences: bool | None = None) -> tuple[Array, Any]:
        every = self.wants(sequences)
        (y, final), (y_back, final_back) = (
            layer.run(x, dt, lengths, given, every) for layer, given in zip((self.forward, self.backward), state, strict=True)
        )
        return np.concatenate([y, turned(y_back, lengths) if every else y_back], axis=-1), (final, final_back)


class OfMLX(Layer):
    """mlx.nn's GRU or LSTM, which return every step.

    Args:
        cell: "gru" or "lstm".
        weights: as in Layer.
        dtype: as in Layer.
    """

    def __init__(self, cell: str, weights: Tree, dtype: np.dtype[Any]):
        super().__init__({}, weights, dtype)
        self.definition = (GRU_CELL if cell == "gru" else LSTM_CELL).definition
        biases = {"b": "bias"} if cell == "gru" else {}
        self.weights = {biases.get(name, name): a for name, a in weights.items()}
        self.input_size = weights["Wx"].shape[1]

    def zero(self, batch: int) -> Any:
        return [np.zeros((batch, self.weights["Wh"].shape[1]), self.dtype) for _ in self.definition.states]

    def begin(self, batch: int) -> Running:
        return RunningCell(self.definition, self.weights, self.zero(batch))


class Pointwise(Layer):
    """A function applied to each step separately."""

    recurrent = False

    def __init__(self, function: Function, weights: Tree, dtype: np.dtype[Any]):
        super().__init__({}, weights, dtype)
        self.function = function
        self.input_size = weights["weight"].shape[-1] if "weight" in weights else None

    def zero(self, batch: int) -> Any:
        return []

    def begin(self, batch: int) -> Running:
        return _RunningPointwise(self)

    def run(self, x: Array, dt: Array, lengths: Array | None, state: Any, sequences: bool | None = None) -> tuple[Array, Any]:
        return self.function(x), []


class _RunningPointwise(Running):
    def __init__(self, layer: Pointwise):
        super().__init__([])
        self.function = layer.function

    def advance(self, x: Array, dt: Array) -> None:
        self.y = self.function(x)

    def output(self) -> Array:
        return self.y


class SequenceModel(Layer):
    """A sequence of layers."""

    def __init__(self, layers: list[Layer], dtype: np.dtype[Any]):
        super().__init__({}, {}, dtype)
        self.layers = layers
        self.with_states = [layer for layer in layers if layer.recurrent]
        self.recurrent, self.steps_alone = bool(self.with_states), all(layer.steps_alone for layer in layers)
        self.timed = any(layer.timed for layer in layers)
        self.batch_first = all(layer.batch_first for layer in layers)
        self.input_size = next((layer.input_size for layer in layers if layer.input_size is not None), None)
        self.return_sequences = not self.recurrent or self.with_states[-1].return_sequences

    def zero(self, batch: int) -> Any:
        return [layer.zero(batch) for layer in self.with_states]

    def begin(self, batch: int) -> Running:
        return _RunningModel(self, batch)

    def wanted(self, layer: Layer, sequences: bool | None) -> bool | None:
        """Whether a layer returns every step; None: its own setting."""
        return sequences if layer is self.with_states[-1] else True

    def run(self, x: Array, dt: Array, lengths: Array | None, state: Any, sequences: bool | None = None) -> tuple[Array, Any]:
        given, finals = iter(state), []
        for layer in self.layers:
            if not layer.recurrent:
                x, _ = layer.run(x, dt, lengths, [])
                continue
            x, final = layer.run(x, dt, lengths, next(given), self.wanted(layer, sequences))
            finals.append(final)
        if self.wants(sequences) and lengths is not None:
            x = np.where((np.arange(len(x))[:, None] < lengths)[:, :, None], x, self.dtype.type(0))
        return x, finals


class Sequential(SequenceModel):
    """mlx.nn's Sequential, which passes on x alone; each layer uses its own settings."""

    def __init__(self, layers: list[Layer], dtype: np.dtype[Any]):
        super().__init__(layers, dtype)
        self.timed = False

    def wanted(self, layer: Layer, sequences: bool | None) -> bool | None:
        return sequences if layer is self.with_states[-1] else None


class _RunningModel(Running):
    def __init__(self, model: SequenceModel, batch: int):
        self.each = [layer.begin(batch) for layer in model.layers]
        super().__init__([one.state for one, layer in zip(self.each, model.layers, strict=True) if layer.recurrent])

    def advance(self, x: Array, dt: Array) -> None:
        for one in self.each:
            one.advance(x, dt)
            x = one.output()

    def output(self) -> Array:
        return self.each[-1].output()


def _linear(config: Tree, weights: Tree) -> Function:
    w, b = weights["weight"].T, weights.get("bias", 0)
    return lambda x: x @ w + b


def _layer_norm(config: Tree, weights: Tree) -> Function:
    w, b, eps = weights.get("weight", 1), weights.get("bias", 0), config["eps"]

    def norm(x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        return _over_root(centred, eps) * w + b

    return norm


def _rms_norm(config: Tree, weights: Tree) -> Function:
    return lambda x: _over_root(x, config["eps"]) * weights["weight"]


def _over_root(x: Array, eps: float) -> Array:
    """x divided by its root mean square."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(eps))


def _gelu(config: Tree, weights: Tree) -> Function:
    if config["approx"] == "none":
        return _activation("gelu")
    if config["approx"] == "fast":
        return lambda x: x * sigmoid(1.702 * x)
    return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _activation(name: str) -> Function:
    return lambda x: ACTIVATIONS[name].value(x, np.empty_like(x))


FUNCTIONS: dict[str, Callable[[Tree, Tree], Function]] = {
    "Linear": _linear,
    "LayerNorm": _layer_norm,
    "RMSNorm": _rms_norm,
    "GELU": _gelu,
    "Sigmoid": lambda config, weights: lambda x: sigmoid(x.copy()),
    "Softplus": lambda config, weights: lambda x: np.logaddexp(x, x.dtype.type(0)),
    **{name: lambda config, weights: lambda x: x for name in ("Dropout", "Identity")},
    **{kind: lambda config, weights, kind=kind: _activation(kind.lower()) for kind in ("ReLU", "Tanh", "SiLU")},  # type: ignore[misc]
}

"""The models of the demo: a recurrent layer, and a linear read-out of its last valid step."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ember_mlx import AutoNCPMap, CfC, FullyConnectedMap, SequenceModel

BACKBONE = {"activation": "tanh", "backbone_units": 64}


class TimeAsInput(nn.Module):
    """A model of mlx.nn layers, which take no time deltas, with the time delta as an additional input."""

    def __init__(self, model: SequenceModel, time_scale: float):
        super().__init__()
        self.model, self.time_scale = model, time_scale

    def __call__(self, x: mx.array, time_deltas: mx.array, lengths: mx.array | None = None, *, return_sequences: bool = False) -> mx.array:
        with_time = mx.concatenate([x, self.time_scale * time_deltas[:, :, None]], axis=2)
        return self.model(with_time, lengths=lengths, return_sequences=return_sequences)


def make_model(name: str, units: int, inputs: int, classes: int, time_scale: float) -> nn.Module:
    """A model of `demo.MODELS`: (B, T, I), time deltas (B, T) and lengths (B,) -> logits (B, classes)."""
    if name in ("lstm", "gru"):
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[name](inputs + 1, units)
        return TimeAsInput(SequenceModel(layer, outputs=classes), time_scale)
    neurons = AutoNCPMap(units, units // 4) if name == "ncp" else FullyConnectedMap(units)
    options: dict[str, Any] = {} if name == "ncp" else BACKBONE | {"mixed_memory": name == "cfc-mixed"}
    return SequenceModel(CfC(neurons, inputs, time_scale_factor=time_scale, **options), outputs=classes)


def beliefs(model: nn.Module, x: mx.array, time_deltas: mx.array) -> mx.array:
    """One sequence (T, I), (T,) -> the probability of each class after every step, (T, classes)."""
    return mx.softmax(model(x[None], time_deltas=time_deltas[None], return_sequences=True)[0], axis=-1)


def parameter_count(model: nn.Module) -> int:
    return sum(a.size for _, a in tree_flatten(model.trainable_parameters()))

"""The models of the demo: a recurrent layer, and a linear read-out of its last valid step."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ember_mlx import AutoNCPMap, CfC, FullyConnectedMap

BACKBONE = {"activation": "tanh", "backbone_units": 64}


class Classifier(nn.Module):
    """A recurrent layer that returns every step, and a linear read-out."""

    def __init__(self, recurrent: nn.Module, units: int, classes: int):
        super().__init__()
        self.recurrent, self.read_out = recurrent, nn.Linear(units, classes)

    def __call__(self, x: mx.array, dt: mx.array, lengths: mx.array) -> mx.array:
        """(B, T, I), (B, T), (B,) -> logits (B, classes) after each sequence's last valid step."""
        h = self.recurrent(x, time_deltas=dt, lengths=lengths)
        return self.read_out(mx.take_along_axis(h, (lengths - 1)[:, None, None], axis=1)[:, 0])

    def every_step(self, x: mx.array, dt: mx.array) -> mx.array:
        """One sequence (T, I), (T,) -> the probability of each class after every step, (T, classes)."""
        return mx.softmax(self.read_out(self.recurrent(x[None], time_deltas=dt[None])[0]), axis=-1)


class TimeAsInput(nn.Module):
    """A layer of mlx.nn, which has no time deltas: they are one more input."""

    def __init__(self, layer: nn.Module, time_scale: float):
        super().__init__()
        self.layer, self.time_scale = layer, time_scale

    def __call__(self, x: mx.array, time_deltas: mx.array, lengths: mx.array | None = None) -> mx.array:
        h = self.layer(mx.concatenate([x, self.time_scale * time_deltas[:, :, None]], axis=2))
        return h[0] if isinstance(h, tuple) else h


def cfc_mixed(units: int, inputs: int, time_scale: float) -> nn.Module:
    return CfC(FullyConnectedMap(units), inputs, mixed_memory=True, time_scale_factor=time_scale, return_sequences=True, **BACKBONE)


def cfc(units: int, inputs: int, time_scale: float) -> nn.Module:
    return CfC(FullyConnectedMap(units), inputs, time_scale_factor=time_scale, return_sequences=True, **BACKBONE)


def ncp(units: int, inputs: int, time_scale: float) -> nn.Module:
    return CfC(AutoNCPMap(units, units // 4), inputs, time_scale_factor=time_scale, return_sequences=True)


def lstm(units: int, inputs: int, time_scale: float) -> nn.Module:
    return TimeAsInput(nn.LSTM(inputs + 1, units), time_scale)


def gru(units: int, inputs: int, time_scale: float) -> nn.Module:
    return TimeAsInput(nn.GRU(inputs + 1, units), time_scale)


MODELS: dict[str, Callable[[int, int, float], nn.Module]] = {"cfc-mixed": cfc_mixed, "cfc": cfc, "ncp": ncp, "lstm": lstm, "gru": gru}


def make_model(name: str, units: int, inputs: int, classes: int, time_scale: float) -> Classifier:
    return Classifier(MODELS[name](units, inputs, time_scale), units, classes)


def parameter_count(model: nn.Module) -> int:
    return sum(a.size for _, a in tree_flatten(model.trainable_parameters()))

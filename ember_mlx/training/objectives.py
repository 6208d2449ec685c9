"""Losses and metrics by name, over the unmasked targets."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..layers.arguments import type_name
from ..scans.dispatch import can_evaluate
from .data import Batch

Array = NDArray[Any]
Loss = Callable[[mx.array, mx.array], mx.array]
Metric = Callable[[Array, Array], float]


def _cross_entropy(predictions: mx.array, y: mx.array) -> mx.array:
    _check_classes("loss", predictions, y)
    if can_evaluate([y]):
        check_labels("loss", np.asarray(y), predictions.shape[-1])
    return nn.losses.cross_entropy(predictions, y, reduction="mean")


def _elementwise(function: Callable[..., mx.array]) -> Loss:
    def loss(predictions: mx.array, y: mx.array) -> mx.array:
        predictions = _squeezed(predictions, y)
        return function(predictions, y.astype(predictions.dtype), reduction="mean")

    return loss


LOSSES: dict[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "mse": _elementwise(nn.losses.mse_loss),
    "mae": _elementwise(nn.losses.l1_loss),
    "bce": _elementwise(nn.losses.binary_cross_entropy),
    "huber": _elementwise(nn.losses.huber_loss),
}
"""Means over all targets; "cross_entropy" and "bce" take logits."""


def _accuracy(predictions: Array, y: Array) -> float:
    if predictions.shape == y.shape or predictions.shape == (*y.shape, 1):  # logits of a binary classifier
        return float(((_squeezed(predictions, y) > 0) == (y > 0.5)).mean())
    _check_classes("metrics", predictions, y)
    return float((predictions.argmax(axis=-1) == y).mean())


def _mae(predictions: Array, y: Array) -> float:
    return float(np.abs(_squeezed(predictions, y).astype(np.float64) - y).mean())


def _mse(predictions: Array, y: Array) -> float:
    return float(((_squeezed(predictions, y).astype(np.float64) - y) ** 2).mean())


def _auc(predictions: Array, y: Array) -> float:
    """The area under the ROC curve: the fraction of pairs in which a positive's score exceeds a negative's; ties count half."""
    scores = predictions[..., 1] - predictions[..., 0] if predictions.shape == (*y.shape, 2) else _squeezed(predictions, y)
    scores, positive = scores.ravel(), y.ravel() > 0.5
    if positive.all() or not positive.any():
        raise bad_argument("metrics", "y", "hold both classes for 'auc'", f"{int(positive.sum())} positive of {positive.size}")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (positive.size - n)))


METRICS: dict[str, Metric] = {"accuracy": _accuracy, "mae": _mae, "mse": _mse, "auc": _auc}
LARGER_IS_BETTER = ("accuracy", "auc")


def loss_of(owner: str, loss: Any) -> Loss:
    """The loss of this name, or the given function (predictions, y) -> scalar."""
    if callable(loss):
        return loss
    if not isinstance(loss, str):
        raise bad_argument(owner, "loss", "be a name or a function (predictions, y) -> scalar", type_name(loss), TypeError)
    if loss not in LOSSES:
        raise bad_argument(owner, "loss", f"be one of {', '.join(map(repr, LOSSES))}, or a function", repr(loss))
    return LOSSES[loss]


def metrics_of(owner: str, metrics: Any) -> dict[str, Metric]:
    """The metrics of these names, or the given functions (predictions, y) -> float of NumPy arrays."""
    if isinstance(metrics, str) or not isinstance(metrics, (list, tuple)):
        raise bad_argument(owner, "metrics", "be a list of names and functions", repr(metrics), TypeError)
    for metric in metrics:
        if not callable(metric) and metric not in METRICS:
            raise bad_argument(owner, "metrics", f"be among {', '.join(map(repr, METRICS))}, or functions", repr(metric))
    return {metric.__name__ if callable(metric) else metric: metric if callable(metric) else METRICS[metric] for metric in metrics}


def counted(predictions: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
    """Predictions and targets that count, each (n, ...): without padding and masked targets."""
    y, chosen = batch.y, _chosen(predictions, batch)
    assert y is not None, "callers reject batches without targets"
    if chosen is None:
        return predictions, y
    if y.shape[: chosen.ndim] != chosen.shape:
        raise bad_argument("fit", "y", f"have shape {chosen.shape} or (*{chosen.shape}, K), like the predictions", y.shape)
    rows = mx.array(np.flatnonzero(chosen))
    chosen_predictions, chosen_y = (a.reshape(-1, *a.shape[chosen.ndim :])[rows] for a in (predictions, y))
    return chosen_predictions, chosen_y


def _chosen(predictions: mx.array, batch: Batch) -> NDArray[np.bool_] | None:
    """Which targets count, or None if all do."""
    mask = None if batch.mask is None else np.array(batch.mask)
    if batch.lengths is None or predictions.ndim < 3:  # one target per sequence, so no padding
        return mask
    valid = np.arange(batch.x.shape[1]) < np.array(batch.lengths)[:, None]
    return valid if mask is None else mask & valid.reshape(valid.shape + (1,) * (mask.ndim - 2))


def count_of(predictions: mx.array, batch: Batch) -> int:
    """The number of targets that count."""
    chosen = _chosen(predictions, batch)
    return int(np.prod(predictions.shape[: max(1, predictions.ndim - 1)])) if chosen is None else int(chosen.sum())


def check_labels(owner: str, y: Array, classes: int) -> None:
    """Raise an error unless y are integers in 0 .. classes - 1."""
    if y.dtype.kind not in "iu":
        raise bad_argument(owner, "y", "hold integers, the class indices", y.dtype, TypeError)
    wrong = y[(y < 0) | (y >= classes)]
    if wrong.size:
        raise bad_argument(owner, "y", f"hold classes in 0 .. {classes - 1}, as the model predicts {classes}", wrong[0])


def _check_classes(argument: str, predictions: Any, y: Any) -> None:
    if predictions.ndim != y.ndim + 1 or predictions.shape[:-1] != y.shape:
        expected = f"have shape {predictions.shape[:-1]}, one class for each row of the predictions {predictions.shape}"
        raise bad_argument(argument, "y", expected, y.shape)


def _squeezed(predictions: Any, y: Any) -> Any:
    """Predictions in the shape of y."""
    if predictions.shape == (*y.shape, 1):
        predictions = predictions.squeeze(-1)
    if predictions.shape != y.shape:
        raise bad_argument("loss", "y", f"have the shape of the predictions, {predictions.shape}", y.shape)
    return predictions

"""Training, evaluation and prediction for any mlx.nn.Module."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from numpy.typing import NDArray

from ..errors import bad_argument
from ..layers.arguments import type_name
from ..validation import check_choice, check_flag, check_integer, check_positive
from .checkpoints import Checkpoints, RunState
from .data import Batch, Sequences, as_batch, as_sequences, is_batches
from .history import History
from .interrupts import stop_between_steps
from .objectives import LARGER_IS_BETTER, LOSSES, Loss, check_labels, count_of, counted, loss_of, metrics_of
from .peers import Peers
from .precision import PRECISIONS, Precision
from .progress import show_progress

OWNER = "fit"
Callback = Callable[[nn.Module, History], Any]


def fit(
    model: nn.Module,
    train: Any,
    *,
    epochs: int,
    loss: str | Loss,
    batch_size: int = 32,
    metrics: Sequence[Any] = (),
    validation: Any = None,
    learning_rate: float | Callable[[mx.array], mx.array] = 1e-3,
    optimizer: optim.Optimizer | None = None,
    clip_norm: float | None = 1.0,
    seed: int = 0,
    bucket: bool = False,
    patience: int | None = None,
    monitor: str = "validation_loss",
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    checkpoint: str | Path | None = None,
    every: int | None = None,
    keep: int = 3,
    resume: bool = False,
    precision: str = "float32",
    stateful: bool = False,
    distributed: bool = False,
) -> History:
    """Train a model.

    Ctrl-C ends the run after the current step: the model keeps its weights, and the history records the interrupt.

    Args:
        model: any mlx.nn.Module that maps x (B, T, I) to predictions, (B, ...) or (B, T, ...); `time_deltas` and `lengths` are passed to
            it too if the data have them.
        train: Sequences, or an iterable of batches, (x, y, time_deltas, lengths, mask) or dicts with these names, iterated once per epoch.
        epochs: number of epochs.
        loss: "cross_entropy" (of logits and classes), "mse", "mae", "bce" (of logits) or "huber", means over the targets that count; or a
            function (predictions, y) -> scalar, which is given only these targets.
        batch_size: sequences per step, if train is Sequences.
        metrics: "accuracy", "mae", "mse", "auc", or functions (predictions, y) -> float of NumPy arrays, for the validation data.
        validation: Sequences, or a list of batches, on which loss and metrics are computed after each epoch.
        learning_rate: Adam's learning rate, or a schedule of mlx.optimizers.
        optimizer: an optimizer to use instead of Adam with bias correction.
        clip_norm: maximum norm of the gradients; None: no clipping.
        seed: seed of the data order and of dropout: `mx.random.seed` is called before each step with a seed derived from it and the step.
        bucket: whether sequences of similar length share a batch. It reduces padding, which this package's layers skip anyway, and makes
            batches less random.
        patience: epochs without a better `monitor` before training stops; the best weights are restored then and at the end.
        monitor: "loss", "validation_loss" or "validation_<metric>".
        callbacks: functions (model, history), called after each epoch; training stops if one returns True.
        progress: whether to show progress: a bar if rich is installed and there is a terminal or notebook, else one line per epoch.
        checkpoint: a folder for checkpoints.
        every: steps between checkpoints; None: one after each epoch.
        keep: number of newest checkpoints to keep.
        resume: whether to resume from the newest checkpoint, if there is one; results are the same as without the interruption.
        precision: "float32", "bfloat16" or "float16". In half precision x and the weights are cast for each step, while the trained weights
            stay float32; with float16 the loss is scaled, and a step whose gradients overflow is skipped.
        stateful: whether each batch starts from the states at the end of the one before, as for the batches of `stream_batches`.
        distributed: whether each batch is divided among the processes of mlx.launch; every process is given the same data.

    Returns:
        The measurements; see `History`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument with a wrong value, or data that do not fit the model or the loss; raised before the first step if train
            is Sequences.
        RuntimeError: another process of a distributed run was lost.
        FloatingPointError: the loss or a gradient is not finite; the weights are those before the step.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import CfC, SequenceModel
        >>> from ember_mlx.training import Sequences, evaluate, fit
        >>> x = mx.random.normal((64, 12, 1), key=mx.random.key(0))
        >>> data = Sequences(x, (x.sum(axis=(1, 2)) > 0).astype(mx.int32))
        >>> mx.random.seed(0)
        >>> model = SequenceModel(CfC(16, 1), outputs=2)
        >>> history = fit(model, data, epochs=10, loss="cross_entropy", learning_rate=1e-2, progress=False)
        >>> evaluate(model, data, ["accuracy"])["accuracy"] > 0.8
        True
    """
    check_integer(OWNER, "epochs", epochs)
    check_integer(OWNER, "batch_size", batch_size)
    seed = check_integer(OWNER, "seed", seed, minimum=0)
    flags = {"bucket": bucket, "progress": progress, "resume": resume, "stateful": stateful, "distributed": distributed}
    for name, flag in flags.items():
        check_flag(OWNER, name, flag)
    if clip_norm is not None:
        check_positive(OWNER, "clip_norm", clip_norm)
    _check_optimizer(learning_rate, optimizer)
    for name, wanted in (("resume", resume), ("every", every is not None)):
        if wanted and checkpoint is None:
            raise bad_argument(OWNER, name, f"be {'None' if name == 'every' else 'False'} without a folder `checkpoint`", locals()[name])
    function, measured = loss_of(OWNER, loss), metrics_of(OWNER, metrics)
    check_choice(OWNER, "precision", precision, PRECISIONS)
    _check_monitor(monitor, patience, measured, validation)
    for name, data in (("train", train), ("validation", validation)):
        if data is not None:
            _rehearse(OWNER, name, model, data, function, stateful)
    group = mx.distributed.init() if distributed else None
    peers = Peers(group) if group is not None and group.size() > 1 else None
    feed = _Feed(train, batch_size, seed, bucket, peers)
    optimizer = optim.Adam(learning_rate, bias_correction=True) if optimizer is None else optimizer
    stepper = _Stepper(model, function, optimizer, math.inf if clip_norm is None else clip_norm, Precision(precision), stateful, peers)
    fixed = {"seed": seed, "batch_size": batch_size, "bucket": bucket, "precision": precision, "sequences": feed.sequences}
    store = None if checkpoint is None else Checkpoints(checkpoint, fixed, check_integer(OWNER, "keep", keep))
    every = None if every is None else check_integer(OWNER, "every", every)
    state = RunState()
    if store is not None:
        if resume:
            store.restore(model, optimizer, state, stepper.precision)
        elif feed.is_first:
            store.check_empty()
    history, began = state.history, time.perf_counter() - state.seconds

    def save() -> None:
        state.seconds = time.perf_counter() - began
        if store is not None and feed.is_first:
            store.write(model, optimizer, state, stepper.precision)

    def train_epoch() -> None:
        for batch in feed.batches(state.epoch, skip=state.done):
            where = f"in step {state.step + 1}, epoch {state.epoch + 1}"
            mx.random.seed(feed.random_seed(state.step))
            try:
                loss, targets, state.states, asked = stepper.step(batch, state.states, where, interrupted)
            except RuntimeError as error:
                if feed.peers is None:
                    raise
                raise RuntimeError(f"[{OWNER}] another process was lost {where}; start again with resume=True: {error}") from error
            state.count(loss, targets)
            shown.step(state.loss / max(1, state.targets))
            if asked:
                history.stopped = "interrupted"
                return
            if every is not None and state.step % every == 0:
                save()

    was_training = model.training
    model.train()
    with show_progress(progress and feed.is_first, epochs, feed.count) as shown, stop_between_steps() as interrupted:
        while state.epoch < epochs and history.stopped == "epochs":
            shown.epoch(state.epoch + 1, state.done, history)
            train_epoch()
            if history.stopped == "interrupted":
                save()
                break
            numbers = {"loss": state.loss / max(1, state.targets)}
            if validation is not None:
                found = evaluate(model, validation, metrics, loss=function, stateful=stateful)
                numbers |= {f"validation_{name}": number for name, number in found.items()}
            history.add(**numbers, seconds=time.perf_counter() - began)
            state.next_epoch()
            if patience is not None and is_best(history[monitor], monitor):
                history.best_epoch, state.best, state.waiting = state.epoch, dict(tree_flatten(model.parameters())), 0
            if any([callback(model, history) is True for callback in callbacks]):  # a list, so that every callback is called
                history.stopped = "callback"
            elif patience is not None and state.waiting >= patience:
                history.stopped = "patience"
            shown.line(state.epoch, history)
            if every is None or state.epoch == epochs or history.stopped != "epochs":
                save()
    if state.best and history.stopped != "interrupted":
        model.load_weights(list(state.best.items()))
    model.train(was_training)
    return history


class _Feed:
    """The batches of each epoch, or this process's part of them."""

    def __init__(self, data: Any, batch_size: int, seed: int, bucket: bool, peers: Peers | None):
        self.data, self.batch_size, self.seed, self.bucket, self.peers = data, batch_size, seed, bucket, peers
        self.is_first = peers is None or peers.rank == 0
        self.sequences = len(data) if isinstance(data, Sequences) else None
        self.count = -(-len(data) // batch_size) if isinstance(data, Sequences) else len(data) if hasattr(data, "__len__") else None

    def random_seed(self, step: int) -> int:
        """A step's seed: different for each process, and unchanged on resume."""
        rank = 0 if self.peers is None else self.peers.rank
        return int(np.random.SeedSequence([self.seed, step, rank]).generate_state(1)[0])

    def batches(self, epoch: int, skip: int) -> Iterator[Batch | None]:
        """The batches of an epoch without the first `skip`; None if this process has no part of a batch."""
        part = slice(None) if self.peers is None else slice(self.peers.rank, None, self.peers.size)
        if isinstance(self.data, Sequences):
            for index in self.data.order(self.batch_size, seed=[self.seed, epoch], bucket=self.bucket)[skip:]:
                yield self.data.batch(index[part]) if len(index[part]) else None
            return
        found = False
        for item in islice(self.data, skip, None):
            found, batch = True, as_batch(OWNER, item)
            batch = batch.each(lambda a: a[part])
            yield batch if len(batch.x) else None
        if not found and not skip:
            raise bad_argument(OWNER, "train", "yield at least one batch in each epoch", "none")


class _Stepper:
    """Runs optimizer steps."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: optim.Optimizer,
        clip_norm: float,
        precision: Precision,
        stateful: bool,
        peers: Peers | None,
    ):
        self.model, self.loss, self.optimizer, self.clip_norm = model, loss, optimizer, clip_norm
        self.precision, self.stateful, self.peers = precision, stateful, peers
        self.constrained = [m for m in model.modules() if hasattr(m, "apply_weight_constraints")]
        self.value_and_gradients = mx.value_and_grad(self._loss)
        optimizer.init(model.trainable_parameters())

    def step(self, batch: Batch | None, states: Any, where: str, interrupted: list[int]) -> tuple[float, int, Any, bool]:
        """Take a step. Returns the loss, the number of targets in its mean, the states, and whether any process was interrupted."""
        parameters = self.model.trainable_parameters()
        if batch is None:
            value, targets, gradients = mx.array(0.0), mx.array(0), tree_map(mx.zeros_like, parameters)
        else:
            (value, targets, states), gradients = self.value_and_gradients(parameters, batch, states)
            self.model.update(parameters)
        asked = bool(interrupted)
        if self.peers is not None:
            value, targets, gradients, asked = self.peers.join(value, targets, gradients, asked)
        if self.precision.scale != 1:
            value, gradients = tree_map(lambda a: a / self.precision.scale, (value, gradients))
        gradients, norm = optim.clip_grad_norm(gradients, self.clip_norm)
        mx.eval(value, targets, norm, states)
        number, finite = float(value), math.isfinite(float(norm))
        if not math.isfinite(number) or not (finite or self.precision.may_overflow):
            raise FloatingPointError(_complaint(number, gradients, where))
        if self.precision.adapt(finite):
            self.optimizer.update(self.model, gradients)
            for module in self.constrained:
                module.apply_weight_constraints()
            mx.eval(self.model.parameters(), self.optimizer.state)
        return number, int(targets), states, asked

    def _loss(self, parameters: Any, batch: Batch, states: Any) -> Any:
        self.model.update(self.precision.cast(parameters))
        batch = batch._replace(x=self.precision.cast(batch.x))
        predictions, states = call(self.model, batch, self.stateful, states)
        chosen, y = counted(predictions, batch)
        value = self.loss(chosen.astype(mx.float32) if self.precision.half else chosen, y)
        return value * self.precision.scale, mx.array(count_of(predictions, batch)), states


def _complaint(loss: float, gradients: Any, where: str) -> str:
    if not math.isfinite(loss):
        return f"[{OWNER}] the loss must be finite, got {loss} {where}."
    for name, gradient in tree_flatten(gradients):
        if not mx.isfinite(gradient).all().item():
            return f"[{OWNER}] the gradient of {name} must be finite, got NaN or infinity {where}."
    return f"[{OWNER}] the norm of the gradients must be finite, got infinity {where}."


def evaluate(
    model: nn.Module,
    data: Any,
    metrics: Sequence[Any] = (),
    *,
    loss: str | Loss | None = None,
    batch_size: int = 256,
    stateful: bool = False,
) -> dict[str, float]:
    """Metrics, and a loss, over all targets of a data set.

    Args:
        model: any mlx.nn.Module, as for `fit`; run in evaluation mode.
        data: Sequences, or an iterable of batches, with targets.
        metrics: as in `fit`.
        loss: as in `fit`; None: no loss.
        batch_size: sequences per batch, if data is Sequences.
        stateful: as in `fit`.

    Returns:
        Name -> number, with "loss" first.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown loss or metric, or data that do not fit the model.
    """
    owner = "evaluate"
    measured = metrics_of(owner, metrics)
    pairs = []
    for batch, predicted in _predictions(owner, model, data, batch_size, stateful):
        if batch.y is None:
            raise bad_argument(owner, "data", "hold targets y", "none")
        pairs.append([a.reshape(-1, *a.shape[2:]) if predicted.ndim > 2 and a.ndim > 1 else a for a in counted(predicted, batch)])
    if not pairs:
        raise bad_argument(owner, "data", "hold at least one batch", "none")
    predictions, y = (np.concatenate([_as_numpy(pair[k]) for pair in pairs]) for k in (0, 1))
    found = {} if loss is None else {"loss": float(loss_of(owner, loss)(mx.array(predictions), mx.array(y)))}
    return found | {name: float(metric(predictions, y)) for name, metric in measured.items()}


def predict(model: nn.Module, data: Any, *, batch_size: int = 256, stateful: bool = False) -> NDArray[Any] | list[NDArray[Any]]:
    """A model's predictions.

    Args:
        model: any mlx.nn.Module, as for `fit`; run in evaluation mode.
        data: Sequences, x as for Sequences, or an iterable of batches.
        batch_size: sequences per batch, if data is not batches.
        stateful: as in `fit`.

    Returns:
        (N, ...); or a list of N arrays (T_i, ...) if the model predicts every step and sequences differ in length.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: data that do not fit the model.
    """
    rows: list[NDArray[Any]] = []
    for batch, y in _predictions("predict", model, data, batch_size, stateful):
        values = _as_numpy(y)
        lengths = None if batch.lengths is None or values.ndim < 3 else np.array(batch.lengths)
        rows += list(values) if lengths is None else [a[:n] for a, n in zip(values, lengths, strict=True)]
    if not rows:
        raise bad_argument("predict", "data", "hold at least one batch", "none")
    return np.stack(rows) if len({a.shape for a in rows}) == 1 else rows


def _predictions(owner: str, model: nn.Module, data: Any, batch_size: int, stateful: bool) -> Iterator[tuple[Batch, mx.array]]:
    """Every batch with its predictions."""
    check_integer(owner, "batch_size", batch_size)
    batches = map(lambda item: as_batch(owner, item), data) if is_batches(data) else as_sequences(owner, "data", data).batches(batch_size)
    states, was_training = None, model.training
    model.eval()
    try:
        for batch in batches:
            _check_inputs(owner, "data", model, batch, stateful)
            y, states = call(model, batch, stateful, states)
            mx.eval(y, states)
            yield batch, y
    finally:
        model.train(was_training)


def call(model: nn.Module, batch: Batch, stateful: bool, states: Any) -> tuple[mx.array, Any]:
    """A model's predictions, and with `stateful` the states after them."""
    if not stateful:
        return model(batch.x, **batch.inputs()), None
    y, states = model(batch.x, initial_state=states, return_state=True, **batch.inputs())
    return y, states


def _as_numpy(a: mx.array) -> NDArray[Any]:
    return np.array(a.astype(mx.float32) if a.dtype == mx.bfloat16 else a)


def is_best(values: Sequence[float], monitor: str) -> bool:
    """Whether the last value is better than all earlier ones."""
    sign = -1 if monitor.removeprefix("validation_") in LARGER_IS_BETTER else 1
    return all(sign * values[-1] < sign * value for value in values[:-1])


def _check_optimizer(learning_rate: Any, optimizer: Any) -> None:
    if not callable(learning_rate):
        check_positive(OWNER, "learning_rate", learning_rate)
    if optimizer is not None and not isinstance(optimizer, optim.Optimizer):
        raise bad_argument(OWNER, "optimizer", "be one of mlx.optimizers", type_name(optimizer), TypeError)


def _check_monitor(monitor: str, patience: int | None, metrics: Any, validation: Any) -> None:
    if patience is None:
        return
    check_integer(OWNER, "patience", patience)
    known = ["loss", *([] if validation is None else ["validation_loss", *(f"validation_{name}" for name in metrics)])]
    check_choice(OWNER, "monitor", monitor, known)


def _check_inputs(owner: str, name: str, model: nn.Module, batch: Batch, stateful: bool) -> None:
    """Raise a TypeError if the data have inputs that the model's call does not take."""
    parameters = inspect.signature(type(model).__call__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for needed in (*batch.inputs(), *(("initial_state", "return_state") if stateful else ())):
        if needed not in parameters:
            expected = f"go without {needed}, which {type(model).__name__} does not take"
            raise bad_argument(owner, "stateful" if stateful and needed not in batch.inputs() else name, expected, needed, TypeError)


def _rehearse(owner: str, name: str, model: nn.Module, data: Any, loss: Loss, stateful: bool) -> None:
    """Raise an error before the first step if data, model and loss do not fit each other."""
    if not isinstance(model, nn.Module):
        raise bad_argument(owner, "model", "be an mlx.nn.Module", type_name(model), TypeError)
    if not isinstance(data, Sequences) and (not is_batches(data) or iter(data) is data):
        got = type_name(data)
        raise bad_argument(owner, name, "be Sequences, or batches that can be iterated again, such as a list", got, TypeError)
    if stateful and isinstance(data, Sequences):
        raise bad_argument(owner, name, "be consecutive batches, as from stream_batches, if stateful is True", "Sequences")
    first = next(iter(data.batches(min(2, len(data))) if isinstance(data, Sequences) else data), None)
    if first is None:
        raise bad_argument(owner, name, "hold at least one batch", "none")
    batch = as_batch(owner, first)
    if batch.y is None:
        raise bad_argument(owner, name, "hold targets y", "none")
    _check_inputs(owner, name, model, batch, stateful)
    was_training = model.training
    model.eval()
    try:
        predictions, _ = call(model, batch, stateful, None)
        value = loss(*counted(predictions, batch))
    finally:
        model.train(was_training)
    if not isinstance(value, mx.array) or value.size != 1:
        got = f"shape {value.shape}" if isinstance(value, mx.array) else type_name(value)
        raise bad_argument(owner, "loss", "return a scalar mx.array", got)
    if loss is LOSSES["cross_entropy"] and isinstance(data, Sequences):
        check_labels(owner, data.counted_targets(), predictions.shape[-1])

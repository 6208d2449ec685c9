"""Running a saved layer without MLX."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import bad_argument
from ..files import SAVED_FORMAT, SAVED_LAYER, read_arrays, told
from ..step.cell import Cell
from ..step.saved import with_cells
from ..validation import check_flag, check_integer
from . import layers, models
from .running import Array, Layer, Tree, fill, read_state

OWNER, STEPPER = "Predictor", "stepper"
SILENT: dict[str, Any] = {"all": "ignore"}  # as in MLX, no floating-point warnings
RECURRENT = {name: getattr(layers, name) for name in ("CfC", "LTC", "RNN", "GRU", "LSTM", "Recurrent", "LQNet", "CTRQNet")}


def load(path: str | Path, classes: Sequence[type[Cell]] = ()) -> "Predictor":
    """Load a layer or model written by `ember_mlx.save` as a predictor that needs only NumPy.

    Args:
        path: the file.
        classes: cells of your own that may be in it.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: a class that is no cell.
        ValueError: a file that is truncated, not a saved layer, of another format, or with a class that this package does not have.

    Example:
        >>> import tempfile
        >>> import mlx.core as mx
        >>> import numpy as np
        >>> import ember_mlx
        >>> layer = ember_mlx.CfC(20, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ember_mlx.save(layer, f"{folder}/layer.safetensors")
        ...     predict = ember_mlx.reference.load(f"{folder}/layer.safetensors")  # this line works without MLX
        >>> x = np.ones((2, 7, 4))
        >>> y, state = predict(x, time_deltas=0.5, return_state=True)
        >>> bool(np.allclose(y, np.array(layer(mx.array(x), time_deltas=0.5)), atol=1e-6))
        True
    """
    path = Path(path)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, Cell)):
            raise bad_argument("load", "classes", "hold subclasses of Cell", repr(cls), TypeError)
    if not path.exists():
        raise FileNotFoundError(f"[load] path must be a saved layer, got {path}, which does not exist.")
    try:
        weights, metadata = read_arrays(path)
        described = told(metadata, SAVED_LAYER, SAVED_FORMAT)["model"]
    except (OSError, ValueError) as error:
        raise bad_argument("load", "path", f"be a {SAVED_LAYER}", f"{path}: {error}") from error
    return Predictor(with_cells(described, classes), weights)


class Predictor:
    """A layer or model in NumPy, in evaluation mode: without dropout and noise.

    It takes the layer's arguments and returns the layer's results to 1e-6, as NumPy arrays in float32 (float64 if the weights are float64);
    other dtypes are converted.

    Args:
        described: class and configuration, in the form written by `ember_mlx.save`; a cell may stand for its own description.
        weights: arrays by name.
        dtype: dtype of the computation; None: chosen as above.

    Call:
        ``predictor(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences=None, return_state=None)``, as the layer's;
        see its class for the shapes.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument with a wrong shape or value.
    """

    def __init__(self, described: Tree, weights: dict[str, Array], dtype: Any = None):
        double = any(a.dtype == np.float64 for a in weights.values())
        self.dtype = np.dtype(dtype or (np.float64 if double else np.float32))
        self.described = described
        self.layer = _made(described, _tree({name: a.astype(self.dtype) for name, a in weights.items()}), self.dtype)

    def __call__(
        self,
        x: Any,
        initial_state: Any = None,
        time_deltas: Any = None,
        lengths: Any = None,
        *,
        return_sequences: bool | None = None,
        return_state: bool | None = None,
    ) -> Any:
        """Run the layer over a batch of sequences."""
        layer = self.layer
        for name, flag in (("return_sequences", return_sequences), ("return_state", return_state)):
            if flag is not None:
                check_flag(OWNER, name, flag)
        x = self._numbers("x", x)
        layout = "(B, T, I)" if layer.batch_first else "(T, B, I)"
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise bad_argument(OWNER, "x", f"have shape {layout}, or (T, I) without batch, with at least one sequence and step", x.shape)
        if layer.input_size not in (None, x.shape[-1]):
            raise bad_argument(OWNER, "x", f"have I = {layer.input_size} features on its last axis", f"shape {x.shape}")
        batched, swapped = x.ndim == 3, layer.batch_first and x.ndim == 3
        x = x.swapaxes(0, 1) if swapped else x if batched else x[:, None]
        T, B, _ = x.shape
        ends = self._lengths(lengths, T, B, batched)
        dt = self._times(time_deltas, ends, T, B, swapped, batched)
        state = _with_batch(initial_state) if not batched else initial_state
        state = read_state(OWNER, state, layer.zero(B))
        if ends is not None:
            valid = np.arange(T)[:, None] < ends
            x, dt = np.where(valid[:, :, None], x, self.dtype.type(0)), np.where(valid, dt, self.dtype.type(0))
        with np.errstate(**SILENT):
            y, final = layer.run(x, dt, ends, state, return_sequences)
        every = layer.wants(return_sequences)
        if not batched:
            y, final = y.squeeze(-2), _without_batch(final)
        elif swapped and every:
            y = y.swapaxes(0, 1)
        return (y, final) if (layer.return_state if return_state is None else return_state) else y

    def stepper(self, batch: int = 1) -> "Stepper":
        """Make a :class:`Stepper`, which runs the layer one time step at a time.

        Raises:
            ValueError: a layer that is bidirectional or runs backwards.
        """
        return Stepper(self, batch)

    def _numbers(self, name: str, a: Any) -> Array:
        a = np.asarray(a)
        if a.dtype.kind not in "fiu":
            raise bad_argument(OWNER, name, "be an array of numbers", a.dtype, TypeError)
        return a.astype(self.dtype)

    def _lengths(self, lengths: Any, T: int, B: int, batched: bool) -> Array | None:
        """(B,), or None."""
        if lengths is None:
            return None
        if not batched or isinstance(self.layer, models.Sequential):
            raise bad_argument(OWNER, "lengths", "be None for an mlx.nn.Sequential, and if x has no batch axis", lengths)
        ends = np.asarray(lengths)
        if ends.dtype.kind not in "iu":
            raise bad_argument(OWNER, "lengths", "hold integers", ends.dtype, TypeError)
        if ends.shape != (B,):
            raise bad_argument(OWNER, "lengths", f"have shape (B,) = ({B},)", ends.shape)
        if ((ends < 1) | (ends > T)).any():
            raise bad_argument(OWNER, "lengths", f"lie in 1..T = 1..{T}", ends)
        return ends.astype(np.int64)

    def _times(self, time_deltas: Any, ends: Array | None, T: int, B: int, swapped: bool, batched: bool) -> Array:
        """(T, B)."""
        if time_deltas is None:
            return np.ones((T, B), self.dtype)
        if not self.layer.timed:
            raise bad_argument(OWNER, "time_deltas", "be None, since this layer does not use elapsed time", type(time_deltas).__name__)
        dt = self._numbers("time_deltas", time_deltas)
        shape = (T,) if not batched else (B, T) if swapped else (T, B)
        if dt.shape not in ((), shape, (*shape, 1)):
            raise bad_argument(OWNER, "time_deltas", f"have shape {shape}, {(*shape, 1)} or be a scalar", dt.shape)
        dt = np.broadcast_to(dt, shape) if dt.ndim == 0 else dt.reshape(shape)
        dt = dt[:, None] if not batched else dt.T if swapped else dt
        wrong = ~(np.isfinite(dt) & (dt >= 0)) & (True if ends is None else np.arange(T)[:, None] < ends)
        if wrong.any():
            raise bad_argument(OWNER, "time_deltas", "be finite and not negative", dt[wrong][0])
        return dt


class Stepper:
    """Runs a layer one time step at a time, for control loops and sensors: it holds the state, and each call of `step` updates it.

    Its weights are those of the layer when the stepper was made. There is no dropout and no noise.

    Args:
        predictor: the layer.
        batch: B, number of sequences stepped together.

    Raises:
        TypeError: a batch that is not an integer.
        ValueError: a batch below 1; a layer that is bidirectional or runs backwards, and so cannot run step by step.

    Example:
        >>> import numpy as np
        >>> from ember_mlx import CfC
        >>> stepper = CfC(20, 4).stepper()
        >>> for seconds in (0.1, 0.1, 2.5):
        ...     y = stepper.step(np.ones(4, np.float32), dt=seconds)
        >>> y.shape
        (20,)
        >>> stepper.reset()
    """

    def __init__(self, predictor: Predictor, batch: int = 1):
        layer = predictor.layer
        check_integer(STEPPER, "batch", batch)
        if not layer.steps_alone or _backwards(layer):
            expected = "run forwards only, since a step cannot depend on later ones"
            raise bad_argument(STEPPER, "layer", expected, predictor.described["class"])
        if layer.input_size is None:
            raise bad_argument(STEPPER, "layer", "have a known number of inputs", predictor.described["class"])
        self.layer, self.dtype, self.running = layer, predictor.dtype, layer.begin(batch)
        self._shape: tuple[int, int] = (batch, layer.input_size)
        self._ones = np.ones(batch, self.dtype)

    def step(self, x: Any, dt: Any = 1.0) -> Any:
        """Take a step.

        Args:
            x: (B, I), or (I,) if B is 1.
            dt: elapsed time before the step, a number or (B,); must be 1 for a layer that does not use elapsed time.

        Returns:
            y (B, O), or (O,) if x has one axis: the layer's output at this step.

        Raises:
            TypeError: values that are not numbers.
            ValueError: a wrong shape; a dt that is negative or not finite.
        """
        a = as_numbers("x", x, self.dtype)
        check_step(a.shape, *self._shape)
        self.running.advance(a.reshape(self._shape), self._ones if dt is None else check_times(dt, self.layer.timed, self._ones))
        y = self.running.output()
        return (y[0] if a.ndim == 1 else y).copy()

    def reset(self) -> None:
        """Set all states to zeros."""
        fill(self.running.state, self.layer.zero(len(self._ones)))

    @property
    def state(self) -> Any:
        """A copy of the states, in the form that the layer's call takes and returns; can be set."""
        return self._to_caller(_copied(self.running.state))

    @state.setter
    def state(self, state: Any) -> None:
        fill(self.running.state, read_state(STEPPER, self._from_caller(state), self.layer.zero(len(self._ones)), "state"))

    def _to_caller(self, state: Any) -> Any:
        """Convert NumPy states to the caller's form."""
        return state

    def _from_caller(self, state: Any) -> Any:
        """The inverse of `_to_caller`."""
        return state


def as_numbers(name: str, a: Any, dtype: np.dtype[Any]) -> Array:
    """Convert to an array of real numbers in this dtype, or raise a TypeError."""
    a = np.asarray(a)
    if a.dtype.kind not in "fiu":
        raise bad_argument(STEPPER, name, "be an array of numbers", a.dtype, TypeError)
    return a.astype(dtype, copy=False)


def check_step(shape: tuple[int, ...], batch: int, inputs: int) -> None:
    """Raise a ValueError unless a step's x is (B, I) or, if B is 1, (I,)."""
    if shape != (batch, inputs) and (batch > 1 or shape != (inputs,)):
        raise bad_argument(STEPPER, "x", f"have shape (B, I) = ({batch}, {inputs}){f' or ({inputs},)' if batch == 1 else ''}", shape)


def check_times(dt: Any, timed: bool, ones: Array) -> Array:
    """Check a step's time and return it as (B,)."""
    a = as_numbers("dt", dt, ones.dtype)
    if a.shape not in ((), ones.shape):
        raise bad_argument(STEPPER, "dt", f"be a number or have shape (B,) = {ones.shape}", a.shape)
    if not timed and (a != 1).any():
        raise bad_argument(STEPPER, "dt", "be 1, since this layer does not use elapsed time", dt)
    if not ((a >= 0) & (a < np.inf)).all():
        raise bad_argument(STEPPER, "dt", "be finite and not negative", dt)
    return ones * a


def _made(described: Tree, weights: Tree, dtype: np.dtype[Any]) -> Layer:
    """Make the layer from its description."""
    name, config = described["class"], described.get("config", {})
    if "layers" in described:
        parts = weights.get("layers", {})
        each = [_made(one, parts.get(str(k), {}), dtype) for k, one in enumerate(described["layers"])]
        return (models.Sequential if name == "mlx.nn.Sequential" else models.SequenceModel)(each, dtype)
    if name == "Bidirectional":
        one = config["layer"]
        back = one | {"config": one["config"] | {"go_backwards": True}}
        return models.Bidirectional(
            weights, dtype, _made(one, weights["forward_layer"], dtype), _made(back, weights["backward_layer"], dtype)
        )
    if name in ("StrideAware", "StrideAwareCfC", "StrideAwareLTC"):
        one = config["layer"] if name == "StrideAware" else {"class": name.removeprefix("StrideAware"), "config": config}
        each = [_made(one, weights["layers"][str(k)], dtype) for k in range(len(config["stride_lengths"]))]
        return layers.StrideAware(config, weights, dtype, each)
    if name in RECURRENT:
        layer: Layer = RECURRENT[name](config, weights, dtype)
        return layer
    kind = name.removeprefix("mlx.nn.")
    if name != kind and kind in ("GRU", "LSTM"):
        return models.OfMLX(kind.lower(), weights, dtype)
    if name != kind and kind in models.FUNCTIONS:
        return models.Pointwise(models.FUNCTIONS[kind](config, weights), weights, dtype)
    known = ", ".join([*RECURRENT, "StrideAware", "Bidirectional", "SequenceModel", *models.FUNCTIONS])
    raise bad_argument("load", "path", f"hold layers that have a NumPy form, {known}", name)


def _tree(weights: dict[str, Array]) -> Tree:
    """Arrays by dotted name -> dicts of dicts."""
    tree: Tree = {}
    for name, a in weights.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = a
    return tree


def _backwards(layer: Layer) -> bool:
    return bool(layer.config.get("go_backwards")) or any(_backwards(one) for one in getattr(layer, "layers", ()))


def _copied(state: Any) -> Any:
    return state.copy() if isinstance(state, np.ndarray) else type(state)(_copied(part) for part in state)


def _with_batch(state: Any) -> Any:
    """Add a batch axis to a caller's state."""
    if state is None:
        return None
    return type(state)(map(_with_batch, state)) if isinstance(state, (list, tuple)) else np.expand_dims(np.asarray(state), -2)


def _without_batch(state: Any) -> Any:
    return state.squeeze(-2) if isinstance(state, np.ndarray) else type(state)(map(_without_batch, state))

"""Steppers, which run layers one time step at a time: in NumPy on the CPU, compiled on a GPU."""

import copy
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from .backend import current_backend, gpu_kind
from .errors import bad_argument
from .layers import Recurrent
from .layers.arguments import dtype_name, type_name
from .predictors.predictor import STEPPER, Predictor, Stepper, as_numbers, check_step, check_times
from .predictors.running import read_state
from .saving import described, has_class_of_its_own
from .step.saved import with_cells
from .validation import check_integer


def make_stepper(module: Any, batch: int, dtype: mx.Dtype | None) -> Stepper:
    """The stepper of a layer or SequenceModel; see RecurrentLayer.stepper."""
    if dtype is not None and not isinstance(dtype, mx.Dtype):
        raise bad_argument(STEPPER, "dtype", "be mx.float32, mx.float64 or None", type_name(dtype), TypeError)
    if dtype is not None and dtype not in (mx.float32, mx.float64):
        raise bad_argument(STEPPER, "dtype", "be float32 or float64, the dtypes of states", dtype_name(dtype))
    name, weights = current_backend(), dict(tree_flatten(module.parameters()))
    if dtype is None:
        dtype = mx.float64 if mx.float64 in [a.dtype for a in weights.values()] else mx.float32
    on_cpu = name == "numpy" or (name == "auto" and gpu_kind() is None)
    if not on_cpu or has_class_of_its_own(module):
        return CompiledStepper(module, batch, dtype)
    arrays = {name: np.array(a.astype(dtype)) for name, a in weights.items()}
    cells = [type(one.cell) for one in module.modules() if isinstance(one, Recurrent)]
    return ArrayStepper(Predictor(with_cells(described(module, "layer"), cells), arrays, dtype_name(dtype)), batch)


class ArrayStepper(Stepper):
    """A Stepper that returns MLX arrays if its inputs are MLX arrays."""

    def step(self, x: Any, dt: Any = 1.0) -> Any:
        """See Stepper.step."""
        if not isinstance(x, mx.array):
            return super().step(x, _as_numpy(dt))
        return _as_mlx(super().step(_as_numpy(x), _as_numpy(dt)))

    def _to_caller(self, state: Any) -> Any:
        return tree_map(_as_mlx, state)

    def _from_caller(self, state: Any) -> Any:
        return tree_map(_as_numpy, state)


class CompiledStepper(Stepper):
    """A copy of a layer, compiled for one step.

    Args:
        module: the layer or SequenceModel.
        batch: B.
        dtype: float32 or float64.
    """

    def __init__(self, module: Any, batch: int, dtype: mx.Dtype):
        check_integer(STEPPER, "batch", batch)
        if any(getattr(one, "go_backwards", False) or getattr(one, "bidirectional", False) for one in module.modules()):
            raise bad_argument(STEPPER, "layer", "run forwards only, since a step cannot depend on later ones", type(module).__name__)
        self.module: Any = copy.deepcopy(module).eval()
        self.mx_dtype, self.dtype, self.timed = dtype, np.dtype(dtype_name(dtype)), bool(module.timed)
        self._shape, self._ones = (batch, module.input_size), np.ones(batch, self.dtype)
        _, self._state = self._one(mx.zeros((batch, module.input_size), dtype), mx.ones((batch,), dtype), None)
        self.reset()
        self._compiled = mx.compile(self._one)

    def _one(self, x: mx.array, dt: mx.array, state: Any) -> tuple[mx.array, Any]:
        """One step: y (B, O) and the state after it."""
        axis = 1 if self.module.batch_first else 0
        times = mx.expand_dims(dt, axis) if self.timed else None
        y, state = self.module(mx.expand_dims(x, axis), state, times, return_sequences=False, return_state=True)
        return y.astype(self.mx_dtype), state

    def step(self, x: Any, dt: Any = 1.0) -> Any:
        """See Stepper.step."""
        given = x if isinstance(x, mx.array) else _as_mlx(as_numbers("x", x, self.dtype))
        check_step(given.shape, *self._shape)
        times = check_times(1.0 if dt is None else _as_numpy(dt), self.timed, self._ones)
        y, self._state = self._compiled(given.astype(self.mx_dtype).reshape(self._shape), _as_mlx(times), self._state)
        mx.eval(y, self._state)
        y = y[0] if given.ndim == 1 else y
        return y if isinstance(x, mx.array) else np.array(y)

    def reset(self) -> None:
        """Set all states to zeros."""
        self._state = tree_map(mx.zeros_like, self._state)

    @property
    def state(self) -> Any:
        """The states, in the form that the layer's call takes and returns; can be set."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        like = tree_map(lambda a: np.array(mx.zeros_like(a)), self._state)
        self._state = tree_map(_as_mlx, read_state(STEPPER, tree_map(_as_numpy, state), like, "state"))


def _as_numpy(a: Any) -> Any:
    if not isinstance(a, mx.array):
        return a
    return np.array(a.astype(mx.float32) if a.dtype in (mx.float16, mx.bfloat16) else a)


def _as_mlx(a: Any) -> mx.array:
    return mx.array(a, mx.float64) if a.dtype == np.float64 else mx.array(a)

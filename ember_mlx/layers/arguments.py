"""Validation of the arguments common to all layers, and their conversion to one layout: time first, with a batch axis."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..scans.dispatch import can_evaluate
from ..validation import check_rectangular

MAX_LENGTHS_SHOWN = 4
CALL_ARGUMENTS = ("x", "initial_state", "time_deltas", "lengths", "return_sequences", "return_state", "return_states")


class Steps(NamedTuple):
    """A batch of sequences, time first.

    Args:
        x: (T, B, I) inputs, in the dtype of the caller.
        dt: (T, B) elapsed time before each step, float32 (float64 where x is).
        lengths: (B,) int32 valid steps, or None where all are.
        batched: whether the caller's x had a batch axis.
        batch_first: whether the caller's batch axis comes first.
        key: PRNG key for the random numbers drawn in these steps; None: MLX's global state.
        every: whether to return the states after every step, or only after the last one.
    """

    x: mx.array
    dt: mx.array
    lengths: mx.array | None
    batched: bool
    batch_first: bool
    key: mx.array | None = None
    every: bool = False

    def kept(self, a: mx.array) -> mx.array:
        """The states to return, from those after each step (T, B, F): all of them if `every`, else the last valid ones (B, F)."""
        return a if self.every else self.last(a)

    def last_of_stack(self, a: mx.array) -> mx.array:
        """(..., T, B, F) -> (..., B, F) at each sequence's last valid step."""
        return self.last(mx.moveaxis(a, -3, 0))

    def elapsed(self, dt: mx.array) -> mx.array:
        """The total elapsed time (B, 1), or if `every` the elapsed time after each step (T, B, 1), 0 past each length."""
        dt = dt if self.valid is None else mx.where(self.valid, dt, 0)
        return mx.expand_dims(mx.cumsum(dt, axis=0) if self.every else dt.sum(axis=0), -1)

    def without_padding(self, a: mx.array) -> mx.array:
        """(..., T, B, F), 0 past each length."""
        return a if self.valid is None else mx.where(mx.expand_dims(self.valid, -1), a, 0)

    def keys(self, count: int) -> list[mx.array | None]:
        """`count` independent keys, or None for each if there is no key."""
        return [None] * count if self.key is None else list(mx.random.split(self.key, count))

    @property
    def valid(self) -> mx.array | None:
        """(T, B) bool, or None where every step is valid."""
        if self.lengths is None:
            return None
        return mx.arange(self.x.shape[0])[:, None] < self.lengths[None, :]

    def last(self, a: mx.array) -> mx.array:
        """(T, ..., B, F) -> (..., B, F) at each sequence's last valid step, with ops that can be differentiated more than once."""
        T = a.shape[0]
        if self.lengths is None:
            return mx.split(a, [T - 1])[1].squeeze(0)
        is_last = mx.arange(T)[:, None] == self.lengths - 1  # (T, B)
        return mx.where(is_last.reshape(T, *[1] * (a.ndim - 3), -1, 1), a, 0).sum(axis=0)

    def backwards(self) -> "Steps":
        """The same sequences with their valid steps in reverse order; every step keeps its own dt."""
        return self._replace(x=self.turned(self.x), dt=self.turned(self.dt))

    def turned(self, a: mx.array) -> mx.array:
        """(T, B, ...) with each sequence's valid steps in reverse order; padding stays in place."""
        return turned(a, self.lengths)

    def without_batch(self, a: mx.array) -> mx.array:
        """(..., B, F) unchanged, or (..., F) if the caller's x had no batch axis."""
        return a if self.batched else a.squeeze(-2)

    def to_caller(self, y: mx.array) -> mx.array:
        """(..., T, B, F) -> the caller's layout; unbatched: (..., T, F)."""
        if not self.batched:
            return y.squeeze(-2)
        return y.swapaxes(-3, -2) if self.batch_first else y


def read_steps(owner: str, x: Any, time_deltas: Any, lengths: Any, input_size: int, batch_first: bool) -> Steps:
    """Check a layer's x, time_deltas and lengths, and convert them to the time-first layout.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or value. Values are not checked inside mx.compile, mx.vmap and export.
    """
    batched = _check_x(owner, x, input_size, batch_first)
    if not batched:
        x = x[:, None]
    elif batch_first:
        x = x.swapaxes(0, 1)
    T, B, _ = x.shape
    dtype = mx.float64 if x.dtype == mx.float64 else mx.float32
    lengths = read_lengths(owner, lengths, T, B, batched)
    dt = _read_time_deltas(owner, time_deltas, lengths, T, B, batched, batch_first, dtype)
    return _without_padding(Steps(x, dt, lengths, batched, batch_first))


def _without_padding(steps: Steps) -> Steps:
    """The same steps with the padding zeroed: 0 times a NaN or infinity there would put NaN into the parameters' gradients."""
    valid = steps.valid
    return steps if valid is None else steps._replace(x=mx.where(valid[:, :, None], steps.x, 0), dt=mx.where(valid, steps.dt, 0))


def turned(a: mx.array, lengths: mx.array | None) -> mx.array:
    """(T, B, ...) with the first `lengths` (B,) steps of each sequence (all if None) in reverse order; later steps stay in place."""
    if lengths is None:
        return a[::-1]
    T, B = a.shape[:2]
    t = mx.broadcast_to(mx.arange(T)[:, None], (T, B))
    index = mx.where(t < lengths, lengths - 1 - t, t)
    return mx.take_along_axis(a, index.reshape(T, B, *[1] * (a.ndim - 2)), axis=0)


class StateLayout(NamedTuple):
    """The layout of one state of a layer: (B, features), or (stack, B, features).

    Args:
        name: the state's name.
        features: size of the last axis.
        stack: size of the first axis, or None if there is no such axis.
        axis: name of the first axis, for messages.
        letter: letter of the last axis, for messages.
    """

    name: str
    features: int
    stack: int | None = None
    axis: str = ""
    letter: str = "H"

    def shape(self, batch: int, batched: bool) -> tuple[int, ...]:
        """The shape in the caller's layout."""
        return (*(() if self.stack is None else (self.stack,)), *((batch,) if batched else ()), self.features)

    def axes(self, batched: bool) -> str:
        """The shape in letters, as (B, H)."""
        letters = [*([] if self.stack is None else [self.axis]), *(["B"] if batched else []), self.letter]
        return f"({', '.join(letters)}{',' if len(letters) == 1 else ''})"


def read_state(owner: str, initial_state: Any, layouts: Sequence[StateLayout], batch: int, batched: bool) -> list[mx.array | None]:
    """Check a list of states, each None or of its layout's shape (without B if x has no batch axis), and return each with B, or None.

    Raises:
        TypeError: not a list or tuple, or an entry that is not a floating-point mx.array.
        ValueError: a wrong number of entries, or a wrong shape.
    """
    form = f"be a list [{', '.join(layout.name for layout in layouts)}] of arrays or None"
    if layouts[0].stack is not None:
        form += f", each {layouts[0].axes(batched)}"
    if initial_state is None:
        return [None] * len(layouts)
    if not isinstance(initial_state, (list, tuple)):
        raise bad_argument(owner, "initial_state", form, type_name(initial_state), TypeError)
    if len(initial_state) != len(layouts):
        raise bad_argument(owner, "initial_state", form, f"{len(initial_state)} entries")
    return [_read_one_state(owner, a, layout, batch, batched) for a, layout in zip(initial_state, layouts, strict=True)]


def check_call_options(owner: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Raise a TypeError for a call option that the layer does not have."""
    for name in options:
        if name not in known:
            raise bad_argument(owner, "a call's argument", f"be one of {', '.join((*CALL_ARGUMENTS, *known))}", repr(name), TypeError)


def check_key(owner: str, key: Any) -> None:
    """Raise an error unless `key` is None or a PRNG key."""
    if key is not None and not isinstance(key, mx.array):
        raise bad_argument(owner, "key", "be a key of mx.random.key", type_name(key), TypeError)
    if key is not None and (key.shape, key.dtype) != ((2,), mx.uint32):
        raise bad_argument(owner, "key", "be a key of mx.random.key", f"{key.shape} of {dtype_name(key.dtype)}")


def split_key(owner: str, options: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A call's options for each of several layers; a key among them is split, so that no two layers draw the same numbers."""
    key = options.get("key")
    check_key(owner, key)
    return [options] * count if key is None else [options | {"key": one} for one in mx.random.split(key, count)]


def compute_dtype(x: mx.array, parameters: mx.Dtype) -> mx.Dtype:
    """The dtype of states and sums: float64 if x or the parameters are float64, else float32."""
    return mx.float64 if mx.float64 in (x.dtype, parameters) else mx.float32


def type_name(value: Any) -> str:
    """The name of a value's type, as mlx.core.array, numpy.ndarray or list."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def check_array(owner: str, name: str, a: Any) -> None:
    """Raise a TypeError unless `a` is a floating-point mx.array."""
    if not isinstance(a, mx.array):
        hint = f"; mx.array({name.split(' ')[0]}) makes one" if isinstance(a, (np.ndarray, list)) and " " not in name else ""
        raise bad_argument(owner, name, "be an mx.array", type_name(a) + hint, TypeError)
    if not mx.issubdtype(a.dtype, mx.floating):
        raise bad_argument(owner, name, "have a floating-point dtype", dtype_name(a.dtype), TypeError)


def dtype_name(dtype: Any) -> str:
    """float32 for mlx.core.float32."""
    return str(dtype).removeprefix("mlx.core.")


def _check_x(owner: str, x: Any, input_size: int, batch_first: bool) -> bool:
    """Whether x has a batch axis."""
    check_array(owner, "x", x)
    layout = "(B, T, I)" if batch_first else "(T, B, I)"
    if x.ndim not in (2, 3):
        raise bad_argument(owner, "x", f"have shape {layout}, or (T, I) without batch", x.shape)
    if x.shape[-1] != input_size:
        raise bad_argument(owner, "x", f"have I = {input_size} features on its last axis", f"shape {x.shape}")
    if 0 in x.shape:
        raise bad_argument(owner, "x", "have at least one sequence and one step", f"shape {x.shape}")
    return x.ndim == 3


def _read_time_deltas(
    owner: str, time_deltas: Any, lengths: mx.array | None, T: int, B: int, batched: bool, batch_first: bool, dtype: mx.Dtype
) -> mx.array:
    """(T, B) in `dtype`."""
    if time_deltas is None:
        return mx.ones((T, B), dtype)
    most = float(np.finfo(dtype_name(dtype)).max)
    if isinstance(time_deltas, (int, float, np.integer, np.floating)) and not isinstance(time_deltas, bool):
        value = float(time_deltas)
        if not 0 <= value <= most:
            raise bad_argument(owner, "time_deltas", _possible_times(value, most), time_deltas)
        return mx.full((T, B), value, dtype)
    check_array(owner, "time_deltas", time_deltas)
    shape: tuple[int, ...] = (T,) if not batched else (B, T) if batch_first else (T, B)
    name = "(T,)" if not batched else "(B, T)" if batch_first else "(T, B)"
    if time_deltas.shape not in ((), shape, (*shape, 1)):
        raise bad_argument(owner, "time_deltas", f"have shape {name} = {shape}, {(*shape, 1)} or be a scalar", time_deltas.shape)
    _check_time_values(owner, time_deltas, lengths, batch_first, most)
    dt = time_deltas.astype(dtype)
    if dt.ndim == 0:
        return mx.broadcast_to(dt, (T, B))
    dt = dt.reshape(shape)
    if not batched:
        return dt[:, None]
    return dt.swapaxes(0, 1) if batch_first else dt


def _possible_times(value: float, most: float) -> str:
    return f"be at most {most:.3g}, the largest number of x's dtype" if most < value < np.inf else "be finite and not negative"


def _check_time_values(owner: str, time_deltas: mx.array, lengths: mx.array | None, batch_first: bool, most: float) -> None:
    """Raise a ValueError for an invalid time delta of a valid step; padding is not used and may hold any value."""
    if not can_evaluate([time_deltas]):
        return
    values = np.array(time_deltas.astype(mx.float64 if time_deltas.dtype == mx.float64 else mx.float32))
    wrong = ~((values >= 0) & (values <= np.float64(most)))  # a bound for float64 overflows in float32
    if lengths is not None and values.ndim > 0 and can_evaluate([lengths]):
        t, ends = np.arange(values.shape[1 if batch_first else 0]), np.asarray(lengths)
        valid = t[None, :] < ends[:, None] if batch_first else t[:, None] < ends[None, :]
        wrong &= valid.reshape(valid.shape + (1,) * (values.ndim - 2))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise bad_argument(owner, "time_deltas", _possible_times(values[place], most), f"{values[place]} at {place}")


def read_lengths(owner: str, lengths: Any, T: int, B: int, batched: bool) -> mx.array | None:
    """(B,) int32, or None."""
    if lengths is None:
        return None
    if not batched:
        raise bad_argument(owner, "lengths", "be None where x has no batch axis", type_name(lengths))
    lengths = integer_array(owner, lengths)
    if lengths.shape != (B,):
        raise bad_argument(owner, "lengths", f"have shape (B,) = ({B},)", lengths.shape)
    if can_evaluate([lengths]):
        values = np.asarray(lengths)
        wrong = values[(values < 1) | (values > T)]
        if wrong.size:
            raise bad_argument(owner, "lengths", f"lie in 1..T = 1..{T}", ", ".join(map(str, wrong[:MAX_LENGTHS_SHOWN])))
    return lengths.astype(mx.int32)


def integer_array(owner: str, lengths: Any) -> mx.array:
    """Lengths as an mx.array of integers."""
    if isinstance(lengths, (np.ndarray, Sequence)) and not isinstance(lengths, str):
        return mx.array(_integers(owner, lengths))
    if not isinstance(lengths, mx.array):
        raise bad_argument(owner, "lengths", "be an mx.array or a sequence of integers", type_name(lengths), TypeError)
    if not mx.issubdtype(lengths.dtype, mx.integer):
        raise bad_argument(owner, "lengths", "hold integers", dtype_name(lengths.dtype), TypeError)
    return lengths


def _integers(owner: str, lengths: Any) -> NDArray[np.int64]:
    values = check_rectangular(owner, "lengths", lengths)
    if values.dtype.kind not in "iu" and values.size:
        raise bad_argument(owner, "lengths", "hold integers", values.dtype, TypeError)
    return values.astype(np.int64)


def _read_one_state(owner: str, a: Any, layout: StateLayout, batch: int, batched: bool) -> mx.array | None:
    if a is None:
        return None
    name, expected = f"initial_state {layout.name}", layout.shape(batch, batched)
    check_array(owner, name, a)
    if a.shape != expected:
        raise bad_argument(owner, name, f"have shape {layout.axes(batched)} = {expected}", a.shape)
    return a if batched else mx.expand_dims(a, -2)

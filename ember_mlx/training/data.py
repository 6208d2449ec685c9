"""Sequences with targets, and their batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..layers.arguments import type_name
from ..sequences import bucket_batches
from ..validation import check_rectangular

OWNER = "Sequences"
Array = NDArray[Any]


class Batch(NamedTuple):
    """A batch of sequences, padded to the longest one.

    Args:
        x: (B, T, I).
        y: targets (B, ...), or per step (B, T, ...), or None.
        time_deltas: (B, T), or None.
        lengths: (B,) int32 valid steps, or None if all are valid.
        mask: bool with the first axes of y: which targets count; None: all.
    """

    x: mx.array
    y: mx.array | None = None
    time_deltas: mx.array | None = None
    lengths: mx.array | None = None
    mask: mx.array | None = None

    def each(self, function: Callable[[mx.array], mx.array]) -> "Batch":
        """The batch with a function applied to every array."""
        return Batch(**{name: function(a) for name, a in self._asdict().items() if a is not None})

    def inputs(self) -> dict[str, mx.array]:
        """The keyword arguments of the model's call."""
        given = {"time_deltas": self.time_deltas, "lengths": self.lengths}
        return {name: a for name, a in given.items() if a is not None}


class Sequences:
    """Sequences with their targets, for `fit`, `evaluate` and `predict`.

    Args:
        x: (N, T, I), or a list of N arrays (T_i, I), of NumPy or MLX. NumPy's float64 becomes float32; integers are an error.
        y: targets: one per sequence, (N,) classes or (N, K) numbers; or one per step, (N, T), (N, T, K), or a list of N arrays
            (T_i,) or (T_i, K). Integers become int32, float64 becomes float32. None: for `predict`.
        time_deltas: (N, T), or a list of N arrays (T_i,): the elapsed time before each step; None: 1 for every step.
        lengths: (N,) integers in 1..T, the valid steps; None: all, or each array's length if x is a list.
        mask: bool, shaped like the first axes of y, or a list: which targets count in loss and metrics; None: all up to each length.
        per_step: whether an array y has one target per step; None: yes if its second axis is T.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument with a wrong shape or value, or no sequence.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.training import Sequences
        >>> data = Sequences([np.zeros((3, 2)), np.zeros((5, 2))], y=[0, 1])
        >>> len(data), [batch.x.shape for batch in data.batches(2)]
        (2, [(2, 5, 2)])
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        time_deltas: Any = None,
        lengths: Any = None,
        mask: Any = None,
        *,
        per_step: bool | None = None,
    ):
        self.x = _column("x", x, "f")
        self.lengths = self._read_lengths(lengths)
        steps = self._steps()
        self.y = None if y is None else _column("y", y, "fiub")
        self.per_step = self._targets_by_step(per_step, steps)
        self.time_deltas = None if time_deltas is None else _column("time_deltas", time_deltas, "f")
        self.mask = None if mask is None else _column("mask", mask, "b")
        for name, column in (("y", self.y), ("time_deltas", self.time_deltas), ("mask", self.mask)):
            if column is not None and len(column) != len(self):
                raise bad_argument(OWNER, name, f"hold N = {len(self)} entries, like x", len(column))
        for name in ("y", "mask") if self.per_step else ():
            self._check_steps(name, getattr(self, name), steps)
        self._check_time_deltas(steps)
        self._check_mask()

    def __len__(self) -> int:
        """N."""
        return len(self.x)

    def batches(self, batch_size: int, *, seed: Any = None, bucket: bool = False) -> Iterator[Batch]:
        """All sequences once, in batches.

        Args:
            batch_size: sequences per batch; the last batch may have fewer.
            seed: seed of the random order, an integer or a list of integers; None: no shuffling.
            bucket: whether sequences of similar length share a batch, which reduces padding.
        """
        return map(self.batch, self.order(batch_size, seed=seed, bucket=bucket))

    def order(self, batch_size: int, *, seed: Any = None, bucket: bool = False) -> list[NDArray[np.int64]]:
        """The indices of each batch's sequences."""
        if bucket and self.lengths is not None:
            words = 0 if seed is None else int(np.random.SeedSequence(seed).generate_state(1)[0])
            return list(bucket_batches(self.lengths, batch_size, shuffle=seed is not None, seed=words))
        order = np.arange(len(self)) if seed is None else np.random.Generator(np.random.PCG64(seed)).permutation(len(self))
        return [order[start : start + batch_size] for start in range(0, len(self), batch_size)]

    def batch(self, index: NDArray[np.integer]) -> Batch:
        """The sequences with these indices, truncated to the longest one."""
        lengths = None if self.lengths is None else self.lengths[index]
        T = self._steps().max() if lengths is None else lengths.max()
        columns = ((self.x, True), (self.y, self.per_step), (self.time_deltas, True))
        x, y, dt = (None if column is None else _rows(column, index, T if by_step else None) for column, by_step in columns)
        mask = None if self.mask is None else _rows(self.mask, index, T if self.per_step else None)
        return Batch(*(None if a is None else mx.array(a) for a in (x, y, dt, lengths, mask)))  # type: ignore[arg-type]

    def counted_targets(self) -> NDArray[Any]:
        """(n, ...): the targets of all sequences that count."""
        assert self.y is not None
        ends = None if self.lengths is None or not self.per_step else self.lengths
        parts = [y if ends is None else y[: ends[k]] for k, y in enumerate(self.y)]
        if self.mask is not None:
            parts = [y[m if ends is None else m[: ends[k]]] for k, (y, m) in enumerate(zip(parts, self.mask, strict=True))]
        return np.concatenate([np.atleast_1d(a) for a in parts])

    def _steps(self) -> NDArray[np.int64]:
        """(N,): steps of each entry of x."""
        return np.array([len(a) for a in self.x]) if isinstance(self.x, list) else np.full(len(self.x), self.x.shape[1])

    def _read_lengths(self, lengths: Any) -> NDArray[np.int32] | None:
        arrays = self.x if isinstance(self.x, list) else [self.x[0]]
        for k, a in enumerate(arrays):
            if a.ndim != 2 or 0 in a.shape or a.shape[1] != arrays[0].shape[1]:
                name, form = (f"x[{k}]", f"have shape (T_i, I) with I = {arrays[0].shape[-1]} and at least one step")
                raise (
                    bad_argument(OWNER, name, form, a.shape)
                    if isinstance(self.x, list)
                    else bad_argument(OWNER, "x", "have shape (N, T, I), with at least one step", self.x.shape)
                )
        steps = self._steps()
        if lengths is None:
            return steps.astype(np.int32) if isinstance(self.x, list) else None
        values = check_rectangular(OWNER, "lengths", np.array(lengths) if isinstance(lengths, mx.array) else lengths)
        if values.dtype.kind not in "iu":
            raise bad_argument(OWNER, "lengths", "hold integers", values.dtype, TypeError)
        if values.shape != (len(self.x),):
            raise bad_argument(OWNER, "lengths", f"have shape (N,) = ({len(self.x)},)", values.shape)
        wrong = np.flatnonzero((values < 1) | (values > steps))
        if wrong.size:
            raise bad_argument(OWNER, "lengths", f"lie in 1..T = 1..{steps[wrong[0]]}", f"{values[wrong[0]]} at {wrong[0]}")
        return values.astype(np.int32)

    def _targets_by_step(self, per_step: bool | None, steps: NDArray[np.int64]) -> bool:
        if self.y is None or per_step is False:
            return False
        by_step = isinstance(self.y, list) or (self.y.ndim > 1 and not isinstance(self.x, list) and self.y.shape[1] == steps[0])
        if per_step and not by_step:
            shape = self.y.shape if isinstance(self.y, np.ndarray) else "a list"
            raise bad_argument(OWNER, "y", "have one target per step if per_step is True", shape)
        return by_step

    def _check_steps(self, name: str, column: Any, steps: NDArray[np.int64]) -> None:
        """Raise an error if a per-step column does not have the steps of x."""
        if column is None:
            return
        found = [len(a) if a.ndim else 0 for a in column] if isinstance(column, list) else [column.shape[1] if column.ndim > 1 else 0]
        for k, (n, wanted) in enumerate(zip(found, steps.tolist(), strict=False)):
            if n != wanted:
                raise bad_argument(OWNER, f"{name}[{k}]" if isinstance(column, list) else name, f"have {wanted} steps, like x", n)

    def _check_time_deltas(self, steps: NDArray[np.int64]) -> None:
        self._check_steps("time_deltas", self.time_deltas, steps)
        for k, a in enumerate([] if self.time_deltas is None else self.time_deltas):
            if a.ndim != 1:
                raise bad_argument(OWNER, "time_deltas", "have shape (N, T)", (len(self), *a.shape))
            valid = a if self.lengths is None else a[: self.lengths[k]]
            wrong = valid[~((valid >= 0) & np.isfinite(valid))]
            if wrong.size:
                raise bad_argument(OWNER, "time_deltas", "be finite and not negative", f"{wrong[0]} in sequence {k}")

    def _check_mask(self) -> None:
        if self.mask is None:
            return
        if self.y is None:
            raise bad_argument(OWNER, "mask", "be None without targets", type_name(self.mask))
        for k, (a, target) in enumerate(zip(self.mask, self.y, strict=True)):
            if np.shape(a) != np.shape(target)[: np.ndim(a)]:
                raise bad_argument(OWNER, f"mask[{k}]", f"have the first axes of y[{k}], {np.shape(target)}", np.shape(a))


def as_sequences(owner: str, name: str, data: Any) -> Sequences:
    """Return Sequences unchanged, or wrap x."""
    if isinstance(data, Sequences):
        return data
    if isinstance(data, (mx.array, np.ndarray, list)):
        return Sequences(data)
    raise bad_argument(owner, name, "be Sequences, or x as for Sequences", type_name(data), TypeError)


def as_batch(owner: str, item: Any) -> Batch:
    """An entry of an iterable of batches as a Batch: a Batch, a tuple (x, y, ...) in its order, or a dict with its names."""
    if isinstance(item, Mapping):
        unknown = [name for name in item if name not in Batch._fields]
        if unknown or "x" not in item:
            got = f"{unknown[0]!r}" if unknown else "no x"
            raise bad_argument(owner, "a batch", f"be a dict of {', '.join(Batch._fields)}", got)
        item = Batch(**item)
    if not isinstance(item, tuple) or not 1 <= len(item) <= len(Batch._fields):
        raise bad_argument(owner, "a batch", f"be a tuple ({', '.join(Batch._fields)}), or a dict of these", type_name(item), TypeError)
    data = Sequences(*item)
    return data.batch(np.arange(len(data)))


def is_batches(data: Any) -> bool:
    """Whether data is an iterable of batches."""
    return isinstance(data, Iterable) and not isinstance(data, (Sequences, mx.array, np.ndarray, str, Mapping))


def _column(name: str, values: Any, kinds: str) -> Any:
    """An (N, ...) NumPy array, or a list of N arrays of different lengths; NumPy's 64-bit defaults are converted to 32 bits."""
    if isinstance(values, Sequence) and not isinstance(values, str) and len({np.shape(a) for a in values}) > 1:
        arrays = [_array(f"{name}[{k}]", a, kinds) for k, a in enumerate(values)]
        if any(a.ndim == 0 for a in arrays) or len({(a.dtype, a.shape[1:]) for a in arrays}) > 1:
            raise bad_argument(OWNER, name, "hold arrays of one dtype that differ only in their first axis", [a.shape for a in arrays[:4]])
        return arrays
    if isinstance(values, Sequence) and not isinstance(values, str):
        values = np.stack([np.asarray(_array(f"{name}[{k}]", a, kinds)) for k, a in enumerate(values)]) if len(values) else np.zeros(0)
    a = _array(name, values, kinds)
    if a.ndim == 0 or len(a) == 0:
        raise bad_argument(OWNER, name, "hold at least one sequence", f"shape {a.shape}")
    return a


def _array(name: str, a: Any, kinds: str) -> Array:
    if isinstance(a, mx.array):
        a = np.array(a.astype(mx.float32) if a.dtype == mx.bfloat16 else a)
    elif not isinstance(a, (np.ndarray, np.generic, int, float, bool, list, tuple)):
        raise bad_argument(OWNER, name, "be a NumPy or MLX array, or a list of them", type_name(a), TypeError)
    a = check_rectangular(OWNER, name, a)
    if a.dtype.kind not in kinds:
        expected = {"f": "floating-point numbers", "fiub": "numbers", "b": "True and False"}[kinds]
        raise bad_argument(OWNER, name, f"hold {expected}", a.dtype, TypeError)
    if a.dtype.kind in "iu" and a.size and (a.max() > np.iinfo(np.int32).max or a.min() < np.iinfo(np.int32).min):
        raise bad_argument(OWNER, name, "fit into int32", a.max())
    small = {"f": np.float16 if a.dtype == np.float16 else np.float32, "b": np.bool_}.get(a.dtype.kind, np.int32)
    return a.astype(small)


def _rows(column: Any, index: NDArray[np.integer], steps: int | None) -> Array:
    """Entries of a column, zero-padded or truncated to `steps`."""
    if isinstance(column, np.ndarray):
        return column[index] if steps is None else column[index, :steps]
    n = max(len(column[i]) for i in index) if steps is None else steps
    rows = np.zeros((len(index), n, *column[0].shape[1:]), column[0].dtype)
    for row, i in zip(rows, index, strict=True):
        row[: len(column[i])] = column[i][:n]
    return rows

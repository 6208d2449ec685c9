"""Sequences of different lengths, stored without their padding."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


class PackedLayout:
    """The positions of the valid steps of a padded, time-major batch when their rows are stored contiguously.

    Step t has the rows of the sequences longer than t, longest sequence first, so that the rows active at step t + 1 are the
    first rows of step t. Without lengths the packed layout is the padded one, and nothing is copied.

    Args:
        steps: T, the padded number of steps.
        batch: B, the number of sequences.
        lengths: (B,) integers in 0..T, or None if every sequence has T steps.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.scans.packed_sequences import PackedLayout
        >>> layout = PackedLayout(3, 2, np.array([1, 3]))
        >>> flat = layout.flat(np.arange(6.0).reshape(3, 2, 1))
        >>> layout.rows_of(flat, slice(0, 4), out=np.empty((4, 1))).ravel()  # sequence 1 first; sequence 0 has one step
        array([1., 0., 3., 5.])
    """

    def __init__(self, steps: int, batch: int, lengths: NDArray[np.integer] | None = None):
        self.steps, self.batch = steps, batch
        if lengths is None or (lengths == steps).all():
            self.order = None
            self.active = np.full(steps, batch)
        else:
            self.order = np.argsort(-lengths.astype(np.int64), kind="stable")
            self.active = (lengths[None, :] > np.arange(steps)[:, None]).sum(1)
        starts = np.concatenate([[0], np.cumsum(self.active)])
        self.starts: list[int] = starts.tolist()
        self.total = self.starts[-1]
        if self.order is not None:
            valid = np.arange(batch)[None, :] < self.active[:, None]  # (T, B), in sorted order
            self.padded_row = (np.arange(steps)[:, None] * batch + self.order[None, :])[valid]

    def rows(self, t: int) -> slice:
        """The packed rows of step t."""
        return slice(self.starts[t], self.starts[t + 1])

    def sort(self, batch_rows: Array) -> Array:
        """(B, F) in the caller's order -> in packed order."""
        return batch_rows if self.order is None else batch_rows[self.order]

    def unsort(self, batch_rows: Array) -> Array:
        """(B, F) in packed order -> in the caller's order."""
        if self.order is None:
            return batch_rows
        result = np.empty_like(batch_rows)
        result[self.order] = batch_rows
        return result

    def flat(self, padded: Array) -> Array:
        """(T, B, F) -> (T * B, F), the form that the methods below take."""
        return padded.reshape(self.steps * self.batch, padded.shape[2])

    def rows_of(self, flat: Array, rows: slice, out: Array) -> Array:
        """Packed rows of (T * B, F): a view without lengths, else a copy in `out`."""
        return flat[rows] if self.order is None else flat.take(self.padded_row[rows], axis=0, out=out, mode="clip")

    def previous(self, initial: Array, flat: Array, rows: slice, out: Array) -> Array:
        """The states before the steps in `rows` (whole steps), from the sorted initial ones (B, F) and those after every step.

        A view if possible, else a copy in `out`.
        """
        B, first = self.batch, self.starts[1]
        initial = initial[: max(first - rows.start, 0)]  # all or none, since the first step's rows come first
        earlier = slice(rows.start + len(initial) - B, rows.stop - B)
        if self.order is None and not len(initial):
            return flat[earlier]
        out[: len(initial)] = initial
        if self.order is None:
            out[len(initial) :] = flat[earlier]
        else:
            flat.take(self.padded_row[rows.start + len(initial) : rows.stop] - B, axis=0, out=out[len(initial) :], mode="clip")
        return out

    def room(self, flat: Array, rows: slice, out: Array) -> Array:
        """The buffer for packed rows of (T * B, F), to be passed to `store`: a view without lengths, else `out`."""
        return flat[rows] if self.order is None else out

    def store(self, block: Array, flat: Array, rows: slice) -> None:
        """Write packed rows to (T * B, F); does nothing if `room` returned a view."""
        if self.order is not None:
            flat[self.padded_row[rows]] = block

    def result(self, features: int, dtype: Any) -> Array:
        """An array (T, B, F), zero past each length, to be filled with `room` and `store`."""
        shape = (self.steps, self.batch, features)
        return np.empty(shape, dtype) if self.order is None else np.zeros(shape, dtype)

    def chunks(self, rows: int) -> list[tuple[int, int]]:
        """Ranges of steps [first, last), in time order, with at least `rows` packed rows each (except the last).

        Steps that no sequence has are left out.
        """
        result, first = [], 0
        steps = min(self.steps, max(1, int(np.count_nonzero(self.active))))  # at least one, even without rows
        for t in range(1, steps + 1):
            if self.starts[t] - self.starts[first] >= rows or t == steps:
                result.append((first, t))
                first = t
        return result

    def even_chunks(self, rows: int) -> list[tuple[int, int]]:
        """Like `chunks`, but all steps of a range have the same rows, and a range exceeds `rows` rows only if it is a single step."""
        if self.total == 0:
            return [(0, 1)]
        ends = [*(np.flatnonzero(np.diff(self.active)) + 1).tolist(), self.steps]
        result = []
        for first, last in pairwise([0, *ends]):
            n = int(self.active[first])
            if n:
                at_once = max(1, rows // n)
                result += [(t, min(t + at_once, last)) for t in range(first, last, at_once)]
        return result

"""Sequences of different lengths, stored without their padding."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


class PackedLayout:
    """Where the valid steps of a padded, time-major batch lie when their rows are stored one after another.

    Step t keeps the rows of the sequences longer than t, longest sequence first, so that the rows active at step t + 1 are the
    first rows of step t. Without lengths the packed form is the padded one, and packing copies nothing.

    Args:
        steps: T, the padded number of steps.
        batch: B, the number of sequences.
        lengths: (B,) integers in 1..T, or None where every sequence has T steps.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.scans.packing import PackedLayout
        >>> layout = PackedLayout(3, 2, np.array([1, 3]))
        >>> layout.pack(np.arange(6.0).reshape(3, 2, 1)).ravel()  # steps of sequence 1 first, sequence 0 has one step
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
            self._padded_row = (np.arange(steps)[:, None] * batch + self.order[None, :])[valid]
            self._previous_row = (starts[:-2, None] + np.arange(batch)[None, :])[valid[1:]]  # of every row after the first step

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

    def pack(self, padded: Array) -> Array:
        """(T, B, F) -> (N, F), N the number of valid steps."""
        flat = padded.reshape(self.steps * self.batch, padded.shape[2])
        return flat if self.order is None else flat.take(self._padded_row, axis=0)

    def unpack(self, packed: Array) -> Array:
        """(N, F) -> (T, B, F), zero past each length."""
        shape = (self.steps, self.batch, packed.shape[1])
        if self.order is None:
            return packed.reshape(shape)
        flat = np.zeros((self.steps * self.batch, packed.shape[1]), packed.dtype)
        flat[self._padded_row] = packed
        return flat.reshape(shape)

    def previous(self, initial: Array, states: Array, rows: slice) -> Array:
        """The states before the steps in `rows`, from the initial ones (B, H) in the caller's order and every step's (N, H), packed."""
        B = self.batch
        if rows.start < B:  # all of the first step's B rows come first
            head = self.sort(initial)[rows.start : rows.stop]
            return np.concatenate([head, self.previous(initial, states, slice(B, rows.stop))]) if rows.stop > B else head
        before = slice(rows.start - B, rows.stop - B)
        return states[before] if self.order is None else states.take(self._previous_row[before], axis=0)

    def chunks(self, rows: int) -> list[tuple[int, int]]:
        """Ranges of steps [first, last) of at least `rows` packed rows each (but the last), in order of time."""
        result, first = [], 0
        for t in range(1, self.steps + 1):
            if self.starts[t] - self.starts[first] >= rows or t == self.steps:
                result.append((first, t))
                first = t
        return result

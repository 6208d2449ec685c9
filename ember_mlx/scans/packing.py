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
        self.starts = np.concatenate([[0], np.cumsum(self.active)])
        self.total = int(self.starts[-1])
        if self.order is not None:
            valid = np.arange(batch)[None, :] < self.active[:, None]  # (T, B), in sorted order
            self._padded_row = (np.arange(steps)[:, None] * batch + self.order[None, :])[valid]
            before = np.concatenate([[0], batch + self.starts[:-2]])
            self._previous_row = (before[:, None] + np.arange(batch)[None, :])[valid]

    def rows(self, t: int) -> slice:
        """The packed rows of step t."""
        return slice(int(self.starts[t]), int(self.starts[t + 1]))

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
        return flat if self.order is None else flat[self._padded_row]

    def unpack(self, packed: Array) -> Array:
        """(N, F) -> (T, B, F), zero past each length."""
        shape = (self.steps, self.batch, packed.shape[1])
        if self.order is None:
            return packed.reshape(shape)
        flat = np.zeros((self.steps * self.batch, packed.shape[1]), packed.dtype)
        flat[self._padded_row] = packed
        return flat.reshape(shape)

    def previous(self, states: Array, rows: slice) -> Array:
        """The states before the steps in `rows`; `states` (B + N, H) holds the B initial rows and then every step's."""
        return states[rows] if self.order is None else states[self._previous_row[rows]]

    def before(self, t: int) -> slice:
        """The rows of `states` (B + N, H) that the rows of step t follow."""
        start = 0 if t == 0 else self.batch + int(self.starts[t - 1])
        return slice(start, start + int(self.active[t]))

    def chunks(self, rows: int) -> list[tuple[int, int]]:
        """Ranges of steps [first, last) of at least `rows` packed rows each (but the last), in order of time."""
        result, first = [], 0
        for t in range(1, self.steps + 1):
            if self.starts[t] - self.starts[first] >= rows or t == self.steps:
                result.append((first, t))
                first = t
        return result

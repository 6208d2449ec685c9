"""Windows of long recordings, for truncated backpropagation through time."""

from collections.abc import Iterator
from typing import Any

from ..errors import bad_argument
from ..validation import check_integer
from .data import Batch, Sequences


class StreamBatches:
    """Consecutive windows of long recordings; see `stream_batches`."""

    def __init__(self, data: Sequences, steps: int):
        self._data, self.steps = data, steps

    def __len__(self) -> int:
        """Number of windows."""
        return -(-self._data.x.shape[1] // self.steps)

    def __iter__(self) -> Iterator[Batch]:
        """All windows in order."""
        whole = self._data.batch(slice(None))  # type: ignore[arg-type]
        for start in range(0, whole.x.shape[1], self.steps):
            window = slice(start, start + self.steps)
            yield whole.each(lambda a, window=window: a[:, window])  # type: ignore[misc]


def stream_batches(x: Any, y: Any = None, *, steps: int, time_deltas: Any = None, mask: Any = None) -> StreamBatches:
    """Split recordings into windows, for `fit(..., stateful=True)`: states are carried from window to window, gradients are not.

    Args:
        x: (N, T, I): N parallel recordings.
        y: targets per step, (N, T) or (N, T, K); None: for `predict`.
        steps: time steps per window; the last window may have fewer.
        time_deltas: (N, T), or None.
        mask: (N, T), which targets count; None: all.

    Returns:
        An iterable of batches with a length, which can be iterated again.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.training import stream_batches
        >>> [batch.x.shape for batch in stream_batches(np.zeros((2, 25, 3)), np.zeros((2, 25)), steps=10)]
        [(2, 10, 3), (2, 10, 3), (2, 5, 3)]
    """
    steps = check_integer("stream_batches", "steps", steps)
    data = Sequences(x, y, time_deltas, mask=mask, per_step=None if y is None else True)
    if data.lengths is not None:
        raise bad_argument("stream_batches", "x", "be one array (N, T, I)", "sequences of different lengths")
    return StreamBatches(data, steps)

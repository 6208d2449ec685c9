"""Batches of sequences of different lengths: packing into a padded array and back, and bucketing by length to reduce padding."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .errors import bad_argument
from .layers.arguments import check_array, dtype_name, integer_array, type_name
from .scans.dispatch import can_evaluate
from .validation import check_flag, check_integer


def pack_sequences(sequences: Sequence[mx.array | NDArray[Any]]) -> tuple[mx.array, mx.array]:
    """Pack sequences of different lengths into one padded batch, the input of every layer.

    Args:
        sequences: MLX or NumPy arrays (T_i, I) of one floating-point dtype; NumPy's float64 is converted to float32, as by `mx.array`.

    Returns:
        x (B, T, I), where T is the longest T_i, zero past each sequence's end, and lengths (B,), int32.

    Raises:
        TypeError: an entry that is not a floating-point array.
        ValueError: no sequence; a sequence without steps; different numbers of features or dtypes.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import GRU, pack_sequences
        >>> x, lengths = pack_sequences([mx.ones((3, 10)), mx.ones((5, 10))])
        >>> x.shape, lengths.tolist(), GRU(10, 20)(x, lengths=lengths).shape
        ((2, 5, 10), [3, 5], (2, 5, 20))
    """
    owner = "pack_sequences"
    if isinstance(sequences, (mx.array, np.ndarray)) or not isinstance(sequences, Sequence):
        raise bad_argument(owner, "sequences", "be a list of arrays (T_i, I)", type_name(sequences), TypeError)
    if not sequences:
        raise bad_argument(owner, "sequences", "hold at least one array", "none")
    arrays = [_checked_sequence(owner, k, a) for k, a in enumerate(sequences)]
    for k, a in enumerate(arrays):
        if a.shape[1] != arrays[0].shape[1]:
            raise bad_argument(owner, f"sequences[{k}]", f"have {arrays[0].shape[1]} features, like the first", f"shape {a.shape}")
        if a.dtype != arrays[0].dtype:
            raise bad_argument(owner, f"sequences[{k}]", f"be of {dtype_name(arrays[0].dtype)}, like the first", dtype_name(a.dtype))
    T = max(len(a) for a in arrays)
    return mx.stack([mx.pad(a, [(0, T - len(a)), (0, 0)]) for a in arrays]), mx.array([len(a) for a in arrays], mx.int32)


def _checked_sequence(owner: str, k: int, a: Any) -> mx.array:
    name = f"sequences[{k}]"
    if isinstance(a, np.ndarray):
        if a.dtype.kind in "OSUTMm":
            raise bad_argument(owner, name, "have a floating-point dtype", a.dtype, TypeError)
        a = mx.array(a)  # as in MLX, float64, NumPy's default, becomes float32
    check_array(owner, name, a)
    if a.ndim != 2 or 0 in a.shape:
        raise bad_argument(owner, name, "have shape (T_i, I), with at least one step and one feature", a.shape)
    return a


def unpack_sequences(x: mx.array, lengths: Any) -> list[mx.array]:
    """The sequences of a padded batch, from `pack_sequences` or a layer's output, without the padding.

    Args:
        x: (B, T, F).
        lengths: (B,) integers in 1..T.

    Returns:
        B arrays (T_i, F).

    Raises:
        TypeError: x is not an array, or lengths are not integers.
        ValueError: x or lengths have a wrong shape; a length is outside 1..T; a call inside mx.compile, where lengths have no values.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import unpack_sequences
        >>> [a.shape for a in unpack_sequences(mx.zeros((2, 5, 10)), [3, 5])]
        [(3, 10), (5, 10)]
    """
    owner = "unpack_sequences"
    if not isinstance(x, mx.array):
        raise bad_argument(owner, "x", "be an mx.array", type_name(x), TypeError)
    if x.ndim != 3:
        raise bad_argument(owner, "x", "have shape (B, T, F)", x.shape)
    values = _values(owner, lengths)
    if values.shape != (len(x),):
        raise bad_argument(owner, "lengths", f"have shape (B,) = ({len(x)},)", values.shape)
    if (values < 1).any() or (values > x.shape[1]).any():
        raise bad_argument(owner, "lengths", f"lie in 1..T = 1..{x.shape[1]}", values.tolist())
    return [a[:n] for a, n in zip(x, values.tolist(), strict=True)]


def bucket_batches(
    lengths: Any, batch_size: int, *, shuffle: bool = False, seed: int = 0, pool: int = 64, drop_last: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Batches of sequences of similar length, to reduce padding.

    Without shuffle all sequences are sorted by length and split into batches. With shuffle they are first put into a random order; then
    each pool of `pool` batches is sorted and split, and the batches of all pools are returned in random order.

    Args:
        lengths: (N,) integers, the length of each sequence.
        batch_size: sequences per batch; the last batch may have fewer.
        shuffle: whether batches are random; use a different seed for each epoch.
        seed: seed of the random order; the same seed gives the same batches on every platform.
        pool: with shuffle, number of batches sorted together; fewer give more random batches and more padding.
        drop_last: whether to drop batches of fewer than batch_size sequences.

    Yields:
        The indices of each batch's sequences, int64, shortest first.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: lengths of a wrong shape or below 1; batch_size or pool below 1.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import bucket_batches, pack_sequences
        >>> data = [mx.ones((n, 10)) for n in (7, 2, 6, 3)]
        >>> for index in bucket_batches([len(a) for a in data], 2):
        ...     x, lengths = pack_sequences([data[i] for i in index])
        ...     print(index, x.shape)
        [1 3] (2, 3, 10)
        [2 0] (2, 7, 10)
    """
    owner = "bucket_batches"
    values = _values(owner, lengths)
    if values.ndim != 1 or (values < 1).any():
        raise bad_argument(
            owner, "lengths", "be (N,) integers of at least 1", f"shape {values.shape}" if values.ndim != 1 else values.min()
        )
    batch_size, pool = check_integer(owner, "batch_size", batch_size), check_integer(owner, "pool", pool)
    shuffle, drop_last = check_flag(owner, "shuffle", shuffle), check_flag(owner, "drop_last", drop_last)
    seed = check_integer(owner, "seed", seed, minimum=0)
    rng = np.random.Generator(np.random.PCG64(seed)) if shuffle else None
    return _batches(values, batch_size, pool * batch_size, drop_last, rng)


def _batches(
    lengths: NDArray[np.integer], batch_size: int, pool: int, drop_last: bool, rng: np.random.Generator | None
) -> Iterator[NDArray[np.int64]]:
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    pools = [order] if rng is None else [order[start : start + pool] for start in range(0, len(order), pool)]
    batches = []
    for ids in pools:
        ids = ids[np.argsort(lengths[ids], kind="stable")].astype(np.int64)
        batches += [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    for k in range(len(batches)) if rng is None else rng.permutation(len(batches)):
        if len(batches[k]) == batch_size or not drop_last:
            yield batches[k]


def _values(owner: str, lengths: Any) -> NDArray[np.integer]:
    """Lengths as NumPy integers."""
    if isinstance(lengths, mx.array) and not can_evaluate([lengths]):
        raise bad_argument(owner, "lengths", "have values, which arrays do not have inside mx.compile, mx.vmap and export", "none")
    return np.array(integer_array(owner, lengths)).astype(np.int64)

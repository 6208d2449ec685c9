"""Batches of sequences of different lengths: packing, unpacking, bucketing."""

import mlx.core as mx
import numpy as np
import pytest

from ember_mlx import GRU, bucket_batches, pack_sequences, unpack_sequences

from .comparisons import assert_close


def ragged(lengths, features=3):
    mx.random.seed(0)
    return [mx.random.normal((n, features)) for n in lengths]


def test_pack_and_unpack_are_inverse():
    data = ragged([4, 1, 7])
    x, lengths = pack_sequences(data)
    assert x.shape == (3, 7, 3)
    assert lengths.dtype == mx.int32
    assert lengths.tolist() == [4, 1, 7]
    assert not mx.any(x[0, 4:])
    for a, b in zip(unpack_sequences(x, lengths), data, strict=True):
        assert mx.array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_sequences_become_what_mlx_makes_of_them(dtype):
    x, _ = pack_sequences([np.ones((2, 3), dtype), np.ones((5, 3), dtype)])
    assert x.dtype == mx.array(np.ones(1, dtype)).dtype


def test_a_packed_batch_is_each_sequence_alone():
    data, layer = ragged([4, 1, 7]), GRU(3, 5)
    x, lengths = pack_sequences(data)
    for y, a in zip(unpack_sequences(layer(x, lengths=lengths), lengths), data, strict=True):
        assert_close(y, layer(a), 1e-6)


def test_gradient_goes_through():
    data = ragged([2, 4])
    gradient = mx.grad(lambda *a: (pack_sequences(list(a))[0] ** 2).sum(), argnums=(0, 1))(*data)
    for g, a in zip(gradient, data, strict=True):
        assert_close(g, 2 * a, 1e-6)


LENGTHS = np.random.default_rng(0).integers(1, 200, 1003)


@pytest.mark.parametrize("shuffle", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("drop_last", [False, True], ids=["all", "drop-last"])
def test_every_sequence_is_in_one_batch(shuffle, drop_last):
    batches = list(bucket_batches(LENGTHS, 32, shuffle=shuffle, drop_last=drop_last, pool=4))
    ids = np.concatenate(batches)
    assert len(np.unique(ids)) == len(ids) == (31 * 32 if drop_last else 1003)
    assert all(batch.dtype == np.int64 and (np.diff(LENGTHS[batch]) >= 0).all() for batch in batches)


def padding(batches):
    return sum(len(b) * LENGTHS[b].max() - LENGTHS[b].sum() for b in batches) / LENGTHS.sum()


def test_buckets_save_padding():
    plain = padding(np.split(np.arange(1003), range(32, 1003, 32)))
    assert padding(bucket_batches(LENGTHS, 32)) < 0.05 * plain
    assert padding(bucket_batches(LENGTHS, 32, shuffle=True, pool=8)) < 0.2 * plain


def test_the_seed_decides():
    def order(**options):
        return [batch.tolist() for batch in bucket_batches(LENGTHS, 32, **options)]

    assert order(shuffle=True, seed=1) == order(shuffle=True, seed=1)
    assert order(shuffle=True, seed=1) != order(shuffle=True, seed=2)
    assert order() == order(seed=3)
    assert order(shuffle=True, seed=5, pool=2)[0][:3] == [965, 498, 267]  # on every platform


MESSAGES = {
    "pack-array": (
        TypeError,
        lambda: pack_sequences(mx.zeros((2, 3, 4))),
        "[pack_sequences] sequences must be a list of arrays (T_i, I), got mlx.core.array.",
    ),
    "pack-nothing": (ValueError, lambda: pack_sequences([]), "[pack_sequences] sequences must hold at least one array, got none."),
    "pack-integers": (
        TypeError,
        lambda: pack_sequences([mx.zeros((2, 3), mx.int32)]),
        "[pack_sequences] sequences[0] must have a floating-point dtype, got int32.",
    ),
    "pack-text": (
        TypeError,
        lambda: pack_sequences([np.array([["a"]])]),
        "[pack_sequences] sequences[0] must have a floating-point dtype, got <U1.",
    ),
    "pack-objects": (
        TypeError,
        lambda: pack_sequences([np.array([[None]])]),
        "[pack_sequences] sequences[0] must have a floating-point dtype, got object.",
    ),
    "unpack-ragged": (
        ValueError,
        lambda: unpack_sequences(mx.zeros((2, 3, 1)), [[1], [1, 2]]),
        "[unpack_sequences] lengths must have rows of equal length, got [[1], [1, 2]].",
    ),
    "bucket-seed-negative": (
        ValueError,
        lambda: list(bucket_batches([1, 2], 1, seed=-1)),
        "[bucket_batches] seed must be at least 0, got -1.",
    ),
    "pack-rank": (
        ValueError,
        lambda: pack_sequences([mx.zeros((2, 3)), mx.zeros((2,))]),
        "[pack_sequences] sequences[1] must have shape (T_i, I), with at least one step and one feature, got (2,).",
    ),
    "pack-empty": (
        ValueError,
        lambda: pack_sequences([mx.zeros((0, 3))]),
        "[pack_sequences] sequences[0] must have shape (T_i, I), with at least one step and one feature, got (0, 3).",
    ),
    "pack-features": (
        ValueError,
        lambda: pack_sequences([mx.zeros((2, 3)), mx.zeros((2, 4))]),
        "[pack_sequences] sequences[1] must have 3 features, like the first, got shape (2, 4).",
    ),
    "pack-dtypes": (
        ValueError,
        lambda: pack_sequences([mx.zeros((2, 3)), mx.zeros((2, 3), mx.float16)]),
        "[pack_sequences] sequences[1] must be of float32, like the first, got float16.",
    ),
    "unpack-rank": (
        ValueError,
        lambda: unpack_sequences(mx.zeros((2, 3)), [1, 2]),
        "[unpack_sequences] x must have shape (B, T, F), got (2, 3).",
    ),
    "unpack-lengths": (
        ValueError,
        lambda: unpack_sequences(mx.zeros((2, 3, 1)), [1, 2, 3]),
        "[unpack_sequences] lengths must have shape (B,) = (2,), got (3,).",
    ),
    "unpack-range": (
        ValueError,
        lambda: unpack_sequences(mx.zeros((2, 3, 1)), [1, 4]),
        "[unpack_sequences] lengths must lie in 1..T = 1..3, got [1, 4].",
    ),
    "unpack-floats": (
        TypeError,
        lambda: unpack_sequences(mx.zeros((2, 3, 1)), [1.0, 2.0]),
        "[unpack_sequences] lengths must hold integers, got float64.",
    ),
    "unpack-numpy": (
        TypeError,
        lambda: unpack_sequences(np.zeros((2, 3, 1)), [1, 2]),
        "[unpack_sequences] x must be an mx.array, got numpy.ndarray.",
    ),
    "unpack-compiled": (
        ValueError,
        lambda: mx.compile(lambda n: unpack_sequences(mx.zeros((2, 3, 1)), n))(mx.array([1, 2])),
        "[unpack_sequences] lengths must have values, which arrays do not have inside mx.compile, mx.vmap and export, got none.",
    ),
    "bucket-size": (ValueError, lambda: bucket_batches([1, 2], 0), "[bucket_batches] batch_size must be at least 1, got 0."),
    "bucket-zero-length": (
        ValueError,
        lambda: bucket_batches([1, 0], 2),
        "[bucket_batches] lengths must be (N,) integers of at least 1, got 0.",
    ),
    "bucket-rank": (
        ValueError,
        lambda: bucket_batches([[1, 2]], 2),
        "[bucket_batches] lengths must be (N,) integers of at least 1, got shape (1, 2).",
    ),
    "bucket-number": (
        TypeError,
        lambda: bucket_batches(3, 2),
        "[bucket_batches] lengths must be an mx.array or a sequence of integers, got int.",
    ),
    "bucket-shuffle": (TypeError, lambda: bucket_batches([1], 2, shuffle=1), "[bucket_batches] shuffle must be True or False, got 1."),
    "bucket-pool": (ValueError, lambda: bucket_batches([1], 2, pool=0), "[bucket_batches] pool must be at least 1, got 0."),
    "bucket-seed": (
        TypeError,
        lambda: bucket_batches([1], 2, shuffle=True, seed=0.5),
        "[bucket_batches] seed must be an integer, got 0.5.",
    ),
}


@pytest.mark.parametrize(("kind", "call", "message"), MESSAGES.values(), ids=MESSAGES)
def test_message(kind, call, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message

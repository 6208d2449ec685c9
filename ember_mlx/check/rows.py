"""The layers and sizes to time."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .. import GRU, LSTM, LTC, RNN, CfC, CTRQNet, LQNet, NCPMap, RandomMap, Recurrent, StrideAwareCfC, cells
from ..kernels.tiles import Tile

INPUTS = 10


class Row(NamedTuple):
    """A layer at one size, timed forward and forward + backward.

    Args:
        layer: a function that makes the layer, with every step returned.
        units: units of the layer and its peers.
        B: number of sequences.
        T: number of time steps.
        peers: names of `peers.PEERS`.
        dtype: dtype of x and the parameters.
        inputs: features of x.
    """

    layer: Callable[[], nn.Module]
    units: int
    B: int
    T: int
    peers: tuple[str, ...] = ()
    dtype: mx.Dtype = mx.float32
    inputs: int = INPUTS


def _sized(
    name: str,
    layer: Callable[[], nn.Module],
    units: int,
    peers: tuple[str, ...] = (),
    sizes: tuple[tuple[int, int], ...] = ((32, 1000),),
    dtype: mx.Dtype = mx.float32,
    inputs: int = INPUTS,
) -> Iterator[tuple[str, Row]]:
    for B, T in sizes:
        yield f"{name}, B{B} T{T}", Row(layer, units, B, T, peers, dtype, inputs)


def _ncp() -> NCPMap:
    return NCPMap(32, 16, 8, INPUTS, seed=1)


def _gated(cell: type[nn.Module], inputs: int, units: int) -> Callable[[], nn.Module]:
    return lambda: cell(inputs, units)


_BOTH = ((32, 100), (32, 1000))
HEADLINE: dict[str, Row] = dict(
    itertools.chain(
        _sized("CfC 64, backbone 128", lambda: CfC(64, INPUTS, return_sequences=True), 64, ("operations", "ncps CfC"), _BOTH),
        _sized("LTC 64", lambda: LTC(64, INPUTS), 64, ("operations", "ncps LTC"), _BOTH),
        _sized("LSTM 64", lambda: LSTM(INPUTS, 64), 64, ("torch LSTM", "jax LSTM", "mlx.nn.LSTM"), _BOTH),
        _sized("GRU 64", lambda: GRU(INPUTS, 64), 64, ("torch GRU", "jax GRU", "mlx.nn.GRU"), _BOTH),
    )
)


def _other() -> Iterator[tuple[str, Row]]:
    half = mx.bfloat16
    yield from _sized("LSTM 256", _gated(LSTM, 256, 256), 256, ("torch LSTM",), inputs=256)
    yield from _sized("LSTM 768, bfloat16", _gated(LSTM, 768, 768), 768, ("torch LSTM", "FlashRNN LSTM"), ((16, 1024),), half, 768)
    yield from _sized("CfC 64, backbone 128, bfloat16", lambda: CfC(64, INPUTS, return_sequences=True), 64, (), dtype=half)
    yield from _sized("CfC 64, backbone 128", lambda: CfC(64, INPUTS, return_sequences=True), 64, (), ((256, 1000), (32, 4096)))
    yield from _sized("CfC NCP 32/16/8", lambda: CfC(_ncp(), return_sequences=True), 56, ("ncps CfC NCP",))
    yield from _sized("LTC NCP 32/16/8", lambda: LTC(_ncp()), 56, ("ncps LTC NCP",), ((32, 100),))
    yield from _sized("CfC 64, mixed memory", lambda: CfC(64, INPUTS, mixed_memory=True, return_sequences=True), 64)
    yield from _sized("CfC NCP 32/16/8, mixed memory", lambda: CfC(_ncp(), mixed_memory=True, return_sequences=True), 56)
    yield from _sized("LTC 64, mixed memory", lambda: LTC(64, INPUTS, mixed_memory=True), 64)
    yield from _sized("LTC NCP 32/16/8, mixed memory", lambda: LTC(_ncp(), mixed_memory=True), 56, (), ((32, 100),))
    yield from _sized("LTC 64, rk4", lambda: LTC(64, INPUTS, solver="rk4"), 64, (), ((32, 100),))
    yield from _sized("LTC 64, bfloat16", lambda: LTC(64, INPUTS), 64, (), dtype=half)
    yield from _sized("LTC 64", lambda: LTC(64, INPUTS), 64, (), ((256, 1000),))
    yield from _sized("LQNet NCP 32/16/8", lambda: LQNet(_ncp()), 56)
    yield from _sized("CTRQNet NCP 32/16/8", lambda: CTRQNet(_ncp()), 56)
    yield from _sized("StrideAwareCfC 64, strides 1 2 4 8", lambda: StrideAwareCfC(64, [1, 2, 4, 8], INPUTS, return_sequences=True), 256)
    yield from _sized("RNN 64", _gated(RNN, INPUTS, 64), 64, ("torch RNN",))
    yield from _sized("LTC 128", lambda: LTC(128, INPUTS), 128, (), ((32, 100),))
    yield from _sized("LTC 256", lambda: LTC(256, INPUTS), 256, (), ((32, 100),))
    sparse = lambda: LTC(RandomMap(1024, 1024, INPUTS, sparsity_level=0.9, seed=1))  # noqa: E731
    yield from _sized("LTC 1024 at 10 %", sparse, 1024, (), ((32, 100),))
    for units in (256, 512):
        yield from _sized(f"CfC {units}, backbone 128", lambda n=units: CfC(n, INPUTS, return_sequences=True), units)  # type: ignore[misc]
    large = lambda: CfC(1024, INPUTS, backbone_units=1024, return_sequences=True)  # noqa: E731
    yield from _sized("CfC 1024, backbone 1024", large, 1024, (), ((32, 100),))
    for cell in (GRU, RNN):
        yield from _sized(f"{cell.__name__} 256", _gated(cell, 256, 256), 256, (f"torch {cell.__name__}",), inputs=256)
    for kind, units in itertools.product((LSTM, GRU, RNN), (512, 1024)):
        yield from _sized(f"{kind.__name__} {units}", _gated(kind, units, units), units, (f"torch {kind.__name__}",), inputs=units)
    for units in (64, 512, 1024):
        projected = lambda n=units: LSTM(INPUTS if n == 64 else n, n, proj_size=n // 2)  # noqa: E731
        inputs = INPUTS if units == 64 else units
        yield from _sized(f"LSTM {units}, proj_size {units // 2}", projected, units, ("torch LSTM, projected",), inputs=inputs)
    for made in (cells.LEM, cells.GRUD, cells.MinGRU):
        yield from _sized(f"{made.__name__} 64", lambda made=made: Recurrent(made, INPUTS, 64), 64)  # type: ignore[misc]


OTHER: dict[str, Row] = dict(_other())
ROWS = HEADLINE | OTHER
CANDIDATES = [
    Tile(threads, rows, split, resident)
    for threads, split, (resident, rows) in itertools.product(
        (128, 256, 512), (4, 8, 16), ((True, 1), (True, 2), (False, 1), (False, 2), (False, 4))
    )
]

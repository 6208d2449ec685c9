"""What the suite measures, as data: works, and who contends for each."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import mlx.nn as nn

from ember_mlx import GRU, LSTM, LTC, RNN, CfC, LQNet, NCPMap, StrideAwareCfC

INPUTS, BACKBONE = 10, 128
HEADINGS = {"forward": "forward", "both": "forward+backward"}
OURS, OPS = "ember_mlx", "ember_mlx ops"
MOST_STEPS_OF_LOOPS = 200  # loops of MLX operations are left out beyond it: seconds a run
LOOPS = (OPS, "mlx.nn", "mlx loop")


class Work(NamedTuple):
    """A layer at a size, in one direction.

    Args:
        title: of the layer.
        layer: makes ours, with every step returned.
        peers: names of `contenders.CONTENDERS`, beside ours.
        direction: "forward", or "both" for forward and backward.
        units: of the layer.
        B: sequences.
        T: steps.
        dtype: of x and the parameters.
        lengths: whether the sequences have lengths, T / 2 on average.
        timed: whether time deltas are given.
        ops: whether our form in MLX operations contends.
        pictured: it is for the pictures over sizes alone.
    """

    title: str
    layer: Callable[[], nn.Module]
    peers: tuple[str, ...]
    direction: str = "both"
    units: int = 64
    B: int = 32
    T: int = 100
    dtype: str = "float32"
    lengths: bool = False
    timed: bool = False
    ops: bool = True
    pictured: bool = False

    @property
    def inputs(self) -> int:
        return INPUTS

    @property
    def name(self) -> str:
        """Unlike any other."""
        return f"{self.sized}, {HEADINGS[self.direction]}"

    @property
    def sized(self) -> str:
        """The name without the direction."""
        return ", ".join([self.title, f"B={self.B} T={self.T}", *(["lengths T/2"] if self.lengths else []), self.dtype])

    @property
    def contenders(self) -> tuple[str, ...]:
        """Ours first."""
        names = (OURS, *([OPS] if self.ops else []), *self.peers)
        return tuple(name for name in names if self.T <= MOST_STEPS_OF_LOOPS or name not in LOOPS)


def _gated(cell: type[nn.Module], units: int) -> Callable[[], nn.Module]:
    return lambda: cell(INPUTS, units)


def _ncp() -> NCPMap:
    return NCPMap(32, 16, 8, INPUTS, seed=1)


def _cfc(units: int) -> Work:
    layer = lambda: CfC(units, INPUTS, backbone_units=BACKBONE, return_sequences=True)  # noqa: E731
    return Work(f"CfC {units}", layer, ("mlx loop", "ncps", "jax", "jax remat"), units=units, timed=True)


def _lstm(units: int) -> Work:
    return Work(f"LSTM {units}", _gated(LSTM, units), ("mlx.nn", "torch", "jax", "jax remat"), units=units)


def _tables(full: bool) -> Iterator[Work]:
    yield _lstm(64)
    yield _lstm(64)._replace(lengths=True, peers=("torch",))
    yield Work("GRU 64", _gated(GRU, 64), ("mlx.nn", "torch", "jax", "jax remat"))
    yield Work("RNN 64", _gated(RNN, 64), ("mlx.nn", "torch"))
    yield _cfc(64)
    # ncps masks no time head, and squeezes time deltas of several sequences until they broadcast over units: none are given
    layer = lambda: CfC(_ncp(), mask_time_heads=False, output="motor", return_sequences=True)  # noqa: E731
    yield Work("CfC, NCP 32-16-8", layer, ("ncps",), units=56)
    yield Work("LTC 64", lambda: LTC(64, INPUTS, return_sequences=True), ("ncps",), timed=True)
    yield Work("LTC, NCP 32-16-8", lambda: LTC(_ncp(), return_sequences=True), ("ncps",), units=56, timed=True)
    strides = lambda: StrideAwareCfC(64, [1, 2, 4, 8], INPUTS, return_sequences=True)  # noqa: E731
    yield Work("StrideAwareCfC 64, strides 1-2-4-8", strides, (), units=256, timed=True)
    yield Work("LQNet 64", lambda: LQNet(64, input_size=INPUTS, return_sequences=True), (), timed=True)
    if full:
        yield _lstm(256)
        yield Work("GRU 256", _gated(GRU, 256), ("mlx.nn", "torch", "jax", "jax remat"), units=256)
        yield Work("RNN 256", _gated(RNN, 256), ("mlx.nn", "torch"), units=256)
        yield _cfc(256)
        yield _lstm(64)._replace(dtype="bfloat16", peers=("mlx.nn", "torch"))
        yield _cfc(64)._replace(dtype="bfloat16", peers=("mlx loop", "ncps"))


BASE = {"T": 100, "B": 32, "H": 64}
"""The sizes that stay while another one goes through the pictures' axis."""
SWEEPS = {"T": (10, 30, 100, 300, 1000), "B": (1, 4, 16, 64, 256), "H": (16, 32, 64, 128, 256, 512)}
QUICK_SWEEPS = {"T": (10, 100, 1000), "B": (1, 16, 128), "H": (16, 64, 128)}


def _sweeps(sizes: dict[str, tuple[int, ...]], ops: bool) -> Iterator[Work]:
    for make in (_cfc, _lstm):
        for letter, values in sizes.items():
            for n in values:
                work = make(n if letter == "H" else BASE["H"])._replace(pictured=True, ops=ops)
                yield work if letter == "H" else work._replace(**{letter: n})


def all_works(quick: bool = False, full: bool = False) -> list[Work]:
    """The works of a run: tables first, then the pictures' sizes, forward and backward; nothing is measured twice.

    Args:
        quick: fewer sizes in the pictures, and our form in MLX operations in the tables of the LSTM and the CfC of 64 units alone.
        full: 256 units and bfloat16 too.
    """
    works = [work._replace(direction=direction) for work in _tables(full) for direction in HEADINGS]
    if quick:
        works = [work._replace(ops=work.title in ("LSTM 64", "CfC 64") and not work.lengths) for work in works]
    works += _sweeps(QUICK_SWEEPS if quick else SWEEPS, ops=not quick)
    once: dict[str, Work] = {}
    for work in works:
        once.setdefault(work.name, work)
    return list(once.values())

"""Several scans of one recurrence at once, in a single launch if the kernels support it.

The arrays are {"scans": [tree, ...]}, the specification is the tuple of the scans' specifications, and the outputs are concatenated.
"""

from collections.abc import Generator, Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..coroutines import run_batched
from ..kernels.first_use import SmallProblem
from ..kernels.launches import run_together
from .dispatch import FusedForms, Recurrence, scan
from .scratch import Scratch, split_kept

Tree = dict[str, Any]


class Scan(NamedTuple):
    """The arguments of `scan`."""

    recurrence: Recurrence
    spec: Hashable
    arrays: Tree


Scans = Generator[Scan, list[mx.array], Any]  # yields scans, gets their outputs, and returns its result


def run_scans(computations: Sequence[Scans], keep: bool) -> list[Any]:
    """Run generators of scans in lockstep; in each round the scans of one recurrence run together. `keep`: see `scan`."""

    def run(scans: list[Scan]) -> list[list[mx.array]]:
        return scan_batch(scans[0].recurrence, [one.spec for one in scans], [one.arrays for one in scans], keep)

    return run_batched(computations, lambda one: one.recurrence, run)


def scan_batch(recurrence: Recurrence, specs: Sequence[Hashable], arrays: Sequence[Tree], keep: bool = True) -> list[list[mx.array]]:
    """Run several scans of a recurrence, each with its specification and arrays; returns the outputs of each."""
    if len(specs) == 1:
        return [scan(recurrence, specs[0], arrays[0], keep)]
    outputs = scan(_batched(recurrence), tuple(specs), {"scans": list(arrays)}, keep)
    return _parted(outputs, len(specs))


@lru_cache(maxsize=16)
def _batched(recurrence: Recurrence) -> Recurrence:
    """The recurrence that runs several scans as one."""

    def forward(specs: tuple[Any, ...], arrays: Tree, kept: Scratch | None = None) -> tuple[np.ndarray, ...]:
        given = zip(specs, arrays["scans"], split_kept(kept, len(specs)), strict=True)
        return tuple(a for one in given for a in recurrence.forward(*one))

    def backward(specs: tuple[Any, ...], arrays: Tree, outputs: Any, cotangents: Any, kept: Scratch | None = None) -> Tree:
        count = len(specs)
        given = zip(specs, arrays["scans"], _parted(outputs, count), _parted(cotangents, count), split_kept(kept, count), strict=True)
        return {"scans": [recurrence.backward(*one) for one in given]}

    def ops(specs: tuple[Any, ...], arrays: Tree) -> list[mx.array]:
        return [a for spec, tree in zip(specs, arrays["scans"], strict=True) for a in recurrence.ops(spec, tree)]

    def depth(specs: tuple[Any, ...], arrays: Tree) -> int:
        return max(recurrence.depth(*pair) for pair in zip(specs, arrays["scans"], strict=True))

    return recurrence._replace(forward=forward, backward=backward, ops=ops, fused=_fused(recurrence.fused), depth=depth)


def _fused(fused: FusedForms) -> FusedForms:
    """The kernels of several scans."""

    def forward(kind: str, specs: tuple[Any, ...], arrays: Tree) -> list[mx.array]:
        pairs = list(zip(specs, arrays["scans"], strict=True))
        if fused.launches is None:
            return [a for spec, tree in pairs for a in fused.forward(kind, spec, tree)]
        return [a for outputs in run_together(kind, [fused.launches[0](kind, *pair) for pair in pairs]) for a in outputs]

    def backward(kind: str, specs: tuple[Any, ...], arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
        given = list(zip(specs, arrays["scans"], _parted(outputs, len(specs)), _parted(cotangents, len(specs)), strict=True))
        if fused.launches is None:
            return {"scans": [fused.backward(kind, *one) for one in given]}
        return {"scans": run_together(kind, [fused.launches[1](kind, *one) for one in given])}

    def refusal(kind: str, specs: tuple[Any, ...], arrays: Tree) -> str | None:
        return next(filter(None, (fused.refusal(kind, *pair) for pair in zip(specs, arrays["scans"], strict=True))), None)

    def key(kind: str, specs: tuple[Any, ...], arrays: Tree) -> Hashable:
        return tuple(fused.key(kind, *pair) for pair in zip(specs, arrays["scans"], strict=True))

    def small_problem(kind: str, specs: tuple[Any, ...], arrays: Tree) -> SmallProblem:
        small = [fused.small_problem(kind, *pair) for pair in zip(specs, arrays["scans"], strict=True)]
        return SmallProblem(tuple(one.spec for one in small), {"scans": [one.arrays for one in small]}, small[0].variant)

    def parts(kind: str, specs: tuple[Any, ...], arrays: Tree) -> list[tuple[Any, Tree]]:
        """Two scans of each variant: only scans of the same variant are launched together."""
        alike: dict[Hashable, list[tuple[Any, Tree]]] = {}
        for pair in zip(specs, arrays["scans"], strict=True):
            alike.setdefault(fused.key(kind, *pair), []).append(pair)
        return [(tuple(spec for spec, _ in pairs[:2]), {"scans": [tree for _, tree in pairs[:2]]}) for pairs in alike.values()]

    return FusedForms(forward, backward, refusal, key, small_problem, half=fused.half, parts=parts)


def _parted(values: Any, parts: int) -> list[list[Any]]:
    """A flat list of values split into one list per scan."""
    count = len(values) // parts
    return [list(values[k * count : (k + 1) * count]) for k in range(parts)]

"""The kernels that recurrences call, recorded without a device: their source, arrays and template arguments."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import mlx.core as mx

from ember_mlx.kernels.first_use import in_half
from ember_mlx.kernels.launches import run_together
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import Tile, family_of, forced_tile
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx


class Input(NamedTuple):
    """An input array of a call."""

    name: str
    dtype: mx.Dtype
    ndim: int


class KernelCall(NamedTuple):
    """A call of mx.fast.metal_kernel or mx.fast.cuda_kernel.

    Args:
        name: the kernel's name.
        inputs: its input arrays.
        outputs: names and dtypes of its output arrays.
        source: the body of the kernel.
        header: the code before it.
        template: names and values of the template arguments.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, mx.Dtype], ...]
    source: str
    header: str
    template: tuple[tuple[str, Any], ...]

    @property
    def buffers(self) -> int:
        """Arguments that MLX gives the kernel: arrays, and the shape, strides and ndim of those whose body asks for them."""
        asked = sum(f"{one.name}_{what}" in self.source for one in self.inputs if one.ndim for what in ("shape", "strides", "ndim"))
        return len(self.inputs) + asked + len(self.outputs)


def noting(calls: list[KernelCall]) -> Callable[..., Any]:
    """A replacement for mx.fast.metal_kernel or mx.fast.cuda_kernel that records every call in the list, and returns zeros."""

    def make(name, input_names, output_names, source, header):
        def call(inputs, template, grid, threadgroup, output_shapes, output_dtypes):
            given = tuple(Input(n, a.dtype, a.ndim) for n, a in zip(input_names, inputs, strict=True))
            outputs = tuple(zip(output_names, output_dtypes, strict=True))
            calls.append(KernelCall(name, given, outputs, source, header, tuple(map(tuple, template))))
            return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

        return call

    return make


class Scan(NamedTuple):
    """A forward scan and its backward.

    Args:
        recurrence: a name in the registry.
        variant: of its problems.
        size: T, B, H.
        half: whether x and weights are bfloat16.
        tile: the layout; None: what the table chooses.
        family: of GPUs, as the table has it.
        together: whether two such scans are launched as one.
    """

    recurrence: str
    variant: str
    size: tuple[int, int, int]
    half: bool = False
    tile: Tile | None = None
    family: str = "sm_90"
    together: bool = False


def calls_of(kind: str, scan: Scan) -> list[KernelCall]:
    """The kernels of a scan and its backward, each once; `kind`: "metal" or "cuda"."""
    recurrence, calls = RECURRENCES[scan.recurrence], list[KernelCall]()
    spec, arrays = recurrence.problem(scan.variant, *scan.size, lengths=True)
    given = in_half(arrays | {"x": arrays["x"].astype("float32")}, mx.bfloat16) if scan.half else to_mlx(arrays)
    module = inspect.getmodule(recurrence.fused.forward)
    with ExitStack() as stack:
        stack.enter_context(patch.object(module, "current_family", lambda: family_of(scan.family)))
        stack.enter_context(kernels_made_by(kind, noting(calls)))
        stack.callback(forced_tile.reset, forced_tile.set(scan.tile))
        _both_ways(kind, recurrence.fused, spec, given, 2 if scan.together else 1)
    return list(dict.fromkeys(calls))


def _both_ways(kind, fused, spec, arrays, scans):
    if scans == 1:
        outputs = fused.forward(kind, spec, arrays)
        fused.backward(kind, spec, arrays, outputs, [mx.ones_like(a) for a in outputs])
        return
    forward, backward = fused.launches
    outputs = run_together(kind, [forward(kind, spec, arrays) for _ in range(scans)])
    run_together(kind, [backward(kind, spec, arrays, one, [mx.ones_like(a) for a in one]) for one in outputs])


def chosen_scans(H: int, family: str) -> Iterator[Scan]:
    """What the table chooses for every variant of every recurrence with so many units, in float32 and, where kernels take it, bfloat16."""
    for name, recurrence in RECURRENCES.items():
        for variant in recurrence.variants:
            for half in (False, True) if recurrence.fused.half else (False,):
                yield Scan(name, variant, (3, 2, H), half, family=family)


def all_scans(family: str) -> Iterator[Scan]:
    """`chosen_scans` of 64 units, two of them as one launch where that is possible, and every layout of the table at 31 units."""
    for scan in chosen_scans(64, family):
        recurrence, size = RECURRENCES[scan.recurrence], (7, 3, 31)
        yield scan
        if recurrence.fused.launches:
            yield scan._replace(together=True)
        spec, _ = recurrence.problem(scan.variant, *size)
        for tile in recurrence.fused.layouts(family_of(family), spec):
            if scan.half or not tile.half:
                yield scan._replace(size=size, tile=tile)

"""The kernels' text, its compilation for Metal or CUDA, and a launch."""

import math
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..turns import run_in_turns

PACKAGE = Path(__file__).resolve().parent.parent
SMALLEST = 8  # MLX puts arrays of fewer elements into Metal's constant address space, which the kernels' text does not expect
MOST_TOGETHER = 2**30  # numbers of an array, beyond which launches are not made together: their places are counted in ints
Maker = Callable[..., Any]

_makers: dict[str, Maker] = {}
_SHARED = {"metal": "threadgroup", "cuda": "__shared__"}
# MLX looks for the names of Metal's attributes in a kernel's body alone, so they stand there
_PLACES = {
    "metal": ("int(threadgroup_position_in_grid.x)", "int(thread_index_in_threadgroup)"),
    "cuda": ("int(blockIdx.x)", "int(threadIdx.x)"),
}


class KernelText(NamedTuple):
    """A kernel, before it is compiled.

    Args:
        name: of the function in the text, which takes the arrays, the group's index, the thread's, and the scratch memory.
        arguments: the function's template arguments.
        files: the .metal files that it needs, in order.
        inputs: names of its input arrays.
        outputs: names of its output arrays.
    """

    name: str
    arguments: str
    files: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def source_folder() -> Path:
    """Where the .metal files are: inside an installed package, beside the package in a checkout."""
    installed = PACKAGE / "metal"
    return installed if installed.is_dir() else PACKAGE.parent / "metal"


@lru_cache(maxsize=64)
def read_source(*names: str) -> str:
    """The text of some files of the folder, one after another."""
    return "\n".join((source_folder() / name).read_text() for name in names)


@contextmanager
def kernels_made_by(kind: str, maker: Maker) -> Iterator[None]:
    """Compile the kernels of a kind ("metal" or "cuda") with another function of mx.fast.metal_kernel's call, for tests."""
    before = _makers.get(kind)
    _makers[kind] = maker
    try:
        yield
    finally:
        if before is None:
            del _makers[kind]
        else:
            _makers[kind] = before


def is_available(kind: str) -> bool:
    """Whether kernels of a kind can run here."""
    return kind in _makers or (mx.metal.is_available() if kind == "metal" else mx.cuda.is_available())


def maker_of(kind: str) -> Maker | None:
    """The function set by `kernels_made_by`, or None for MLX's own."""
    return _makers.get(kind)


class Launch(NamedTuple):
    """What `launch` takes, for a launch that may be made together with others."""

    text: KernelText
    arrays: list[mx.array]
    template: list[tuple[str, Any]]
    groups: int
    threads: int
    output_shapes: Sequence[tuple[int, ...]]
    output_dtypes: Sequence[mx.Dtype]


Launches = Generator[Launch, list[mx.array], Any]  # yields launches, gets their outputs, and returns its result


def run_launches(kind: str, launches: Launches) -> Any:
    """Run a computation that asks for launches, one by one."""
    return run_together(kind, [launches])[0]


def run_together(kind: str, computations: Sequence[Launches]) -> list[Any]:
    """Run several computations that ask for launches; those that differ in their arrays alone are one launch, at every turn."""

    def make(launches: list[Launch]) -> list[list[mx.array]]:
        if len(launches) > 1 and sum(max(a.size for a in one.arrays) for one in launches) < MOST_TOGETHER:
            return _launch_together(kind, launches)
        return [launch(kind, *one) for one in launches]

    return run_in_turns(computations, _alike, make)


def _alike(one: Launch) -> Hashable:
    """What launches have in common that can be made together."""
    return (one.text, *map(tuple, one.template), one.groups, one.threads, *one.output_dtypes, *(a.dtype for a in one.arrays))


def _launch_together(kind: str, launches: list[Launch]) -> list[list[mx.array]]:
    """One launch instead of several: each array holds those of all one after another, and a group's set says where its own begin."""
    first, shapes = launches[0], [one.output_shapes for one in launches]
    sizes = [[_even(a.size) for a in one.arrays] + [math.prod(shape) for shape in one.output_shapes] for one in launches]
    starts = np.cumsum([[0] * len(sizes[0]), *sizes], axis=0)
    arrays = [mx.concatenate([_padded(one.arrays[k], sizes[s][k]) for s, one in enumerate(launches)]) for k in range(len(first.arrays))]
    arrays.append(mx.array(np.resize(starts[:-1].reshape(-1), _even(starts[:-1].size)).astype(np.int32)))
    kernel = _compiled(kind, first.text, _makers.get(kind), together=True)
    flat = kernel(
        inputs=arrays,
        template=[*first.template, ("SET_GROUPS", first.groups)],
        grid=(len(launches) * first.groups * first.threads, 1, 1),
        threadgroup=(first.threads, 1, 1),
        output_shapes=[(int(total),) for total in starts[-1, len(first.arrays) :]],
        output_dtypes=first.output_dtypes,
    )
    begins = starts[:, len(first.arrays) :].tolist()
    return [
        [flat[k][begins[s][k] : begins[s][k] + math.prod(shape)].reshape(shape) for k, shape in enumerate(own)]
        for s, own in enumerate(shapes)
    ]


def launch(
    kind: str,
    text: KernelText,
    arrays: list[mx.array],
    template: list[tuple[str, Any]],
    groups: int,
    threads: int,
    output_shapes: Sequence[tuple[int, ...]],
    output_dtypes: Sequence[mx.Dtype],
) -> list[mx.array]:
    """Run a kernel.

    `template` must name SCRATCH, the float4s of threadgroup memory. What the kernel's text depends on must be named there too, dtypes of
    arrays included: MLX's CUDA build keeps compiled kernels by name and template arguments alone.
    """
    kernel = _compiled(kind, text, _makers.get(kind))
    return kernel(
        inputs=[a if a.size >= SMALLEST else _padded(a, SMALLEST) for a in arrays],
        template=template,
        grid=(groups * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=output_shapes,
        output_dtypes=output_dtypes,
    )


@lru_cache(maxsize=256)
def _compiled(kind: str, text: KernelText, maker: Maker | None, together: bool = False) -> Any:
    if maker is None:
        maker = mx.fast.metal_kernel if kind == "metal" else mx.fast.cuda_kernel
    names, (group, thread) = [*text.inputs, *text.outputs], _PLACES[kind]
    name, inputs, body = text.name, list(text.inputs), f"{_SHARED[kind]} float4 scratch[SCRATCH];\n"
    if together:
        name, inputs = f"{text.name}_together", [*inputs, "starts"]
        body += f"int first_start = {group} / SET_GROUPS * {len(names)};\n"
        names, group = [f"{array} + starts[first_start + {k}]" for k, array in enumerate(names)], f"{group} % SET_GROUPS"
    body += f"{text.name}<{text.arguments}>({', '.join(names)}, {group}, {thread}, scratch);"
    header = read_source(*(["dialect_cuda.h"] if kind == "cuda" else []), *text.files)
    return maker(name=name, input_names=inputs, output_names=list(text.outputs), source=body, header=header)


def _even(size: int) -> int:
    """The next multiple of SMALLEST, which keeps vectors of four in place."""
    return -(-size // SMALLEST) * SMALLEST


def _padded(a: mx.array, size: int) -> mx.array:
    """Flat, with zeros up to some size."""
    a = a.reshape(-1)
    return a if a.size == size else mx.concatenate([a, mx.zeros((size - a.size,), a.dtype)])

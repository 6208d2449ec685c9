"""The kernels' source, and its compilation for Metal or CUDA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

PACKAGE = Path(__file__).resolve().parent.parent
SMALLEST = 8  # MLX puts arrays of fewer elements into Metal's constant address space, which the kernels do not support
Maker = Callable[..., Any]

_makers: dict[str, Maker] = {}
_SHARED = {"metal": "threadgroup", "cuda": "__shared__"}
# MLX looks for the names of Metal's attributes only in a kernel's body, so they are passed on from there
_PLACES = {
    "metal": ("int(threadgroup_position_in_grid.x)", "int(thread_index_in_threadgroup)"),
    "cuda": ("int(blockIdx.x)", "int(threadIdx.x)"),
}


class KernelText(NamedTuple):
    """A kernel, before it is compiled.

    Args:
        name: of the function in the source; it takes the arrays, the threadgroup's index, the thread's index, and the scratch memory.
        arguments: the function's template arguments.
        files: the .metal files that it needs, in order.
        inputs: names of its input arrays.
        outputs: names of its output arrays, all float32.
        axes: the arrays' axes along which a launch can be split, as returned by `axes`; arrays not named have none.
        carried: pairs (input, output): in a launch for the next steps the input is this output of the launch before, or the last step of it
            if it has a time axis.
        text: generated text that follows the files; the kernel's name must then be unique to this text.
    """

    name: str
    arguments: str
    files: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[tuple[str, str], ...] = ()
    carried: tuple[tuple[str, str], ...] = ()
    text: str = ""

    def axis(self, name: str, kind: str, ndim: int) -> int | None:
        """The index of the axis of a kind in an array of `ndim` axes; None if it has no such axis, or is a placeholder."""
        order = dict(self.axes).get(name, "")
        return order.index(kind) if kind in order and ndim == len(order) else None


def axes(**names: str) -> tuple[tuple[str, str], ...]:
    """Axis letters for arrays by name: "t" for time steps, "b" for sequences, "u" for units of steps; other letters are not split.

    Example:
        >>> axes(tbh="x y", bh="h0")
        (('x', 'tbh'), ('y', 'tbh'), ('h0', 'bh'))
    """
    return tuple((name, order) for order, together in names.items() for name in together.split())


def source_folder() -> Path:
    """The folder of the .metal files: inside an installed package, next to the package in a checkout."""
    installed = PACKAGE / "metal"
    return installed if installed.is_dir() else PACKAGE.parent / "metal"


@lru_cache(maxsize=64)
def read_source(*names: str) -> str:
    """The concatenated text of files in the folder."""
    return "\n".join((source_folder() / name).read_text() for name in names)


@contextmanager
def kernels_made_by(kind: str, maker: Maker) -> Iterator[None]:
    """Compile the kernels of a kind ("metal" or "cuda") with another function with mx.fast.metal_kernel's signature, for tests."""
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


def compiled(kind: str, text: KernelText, together: bool = False) -> Any:
    """The compiled kernel; with `together` it makes several merged launches, with their arrays concatenated.

    All that the kernel's source depends on, including array dtypes, must be in the call's template arguments: MLX's CUDA build caches
    compiled kernels by name and template arguments alone. The template argument SCRATCH is the number of float4s of threadgroup memory.
    """
    return _compiled(kind, text, _makers.get(kind), together)


@lru_cache(maxsize=256)
def _compiled(kind: str, text: KernelText, maker: Maker | None, together: bool) -> Any:
    if maker is None:
        maker = mx.fast.metal_kernel if kind == "metal" else mx.fast.cuda_kernel
    names, (group, thread) = [*text.inputs, *text.outputs], _PLACES[kind]
    name, inputs, body = text.name, list(text.inputs), f"{_SHARED[kind]} float4 scratch[SCRATCH];\n"
    if together:
        name, inputs = f"{text.name}_together", [*inputs, "starts"]
        body += f"int first_start = {group} / SET_GROUPS * {len(names)};\n"
        names, group = [f"{array} + starts[first_start + {k}]" for k, array in enumerate(names)], f"{group} % SET_GROUPS"
    body += f"{text.name}<{text.arguments}>({', '.join(names)}, {group}, {thread}, scratch);"
    header = read_source(*(["dialect_cuda.h"] if kind == "cuda" else []), *text.files) + text.text
    return maker(name=name, input_names=inputs, output_names=list(text.outputs), source=body, header=header)

"""The kernels' text, its compilation for Metal or CUDA, and a launch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

PACKAGE = Path(__file__).resolve().parent.parent
SMALLEST = 8  # MLX puts arrays of fewer elements into Metal's constant address space, which the kernels' text does not expect
Maker = Callable[..., Any]

_makers: dict[str, Maker] = {}
_SHARED = {"metal": "threadgroup", "cuda": "__shared__"}
# MLX looks for the names of Metal's attributes in a kernel's body alone, so they stand there
_PLACES = {
    "metal": "int(threadgroup_position_in_grid.x), int(thread_index_in_threadgroup)",
    "cuda": "int(blockIdx.x), int(threadIdx.x)",
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
        inputs=[_padded(a) for a in arrays],
        template=template,
        grid=(groups * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=output_shapes,
        output_dtypes=output_dtypes,
    )


@lru_cache(maxsize=256)
def _compiled(kind: str, text: KernelText, maker: Maker | None) -> Any:
    if maker is None:
        maker = mx.fast.metal_kernel if kind == "metal" else mx.fast.cuda_kernel
    arrays = ", ".join([*text.inputs, *text.outputs])
    body = f"{_SHARED[kind]} float4 scratch[SCRATCH];\n{text.name}<{text.arguments}>({arrays}, {_PLACES[kind]}, scratch);"
    header = read_source(*(["dialect_cuda.h"] if kind == "cuda" else []), *text.files)
    return maker(name=text.name, input_names=list(text.inputs), output_names=list(text.outputs), source=body, header=header)


def _padded(a: mx.array) -> mx.array:
    return a if a.size >= SMALLEST else mx.concatenate([a.reshape(-1), mx.zeros((SMALLEST - a.size,), a.dtype)])

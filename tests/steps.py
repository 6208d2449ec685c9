"""python -m tests.steps: the kernel text of the package's own cells, written to metal/steps for reading.

The package generates this text when a cell is first run, and loads none of these files. Files there that belong to no cell are removed.
"""

import inspect
import re
from pathlib import Path

from ember_mlx import cells
from ember_mlx.kernels.loader import KernelText
from ember_mlx.scans.cell.backward_text import backward_kernel
from ember_mlx.scans.cell.forward_text import forward_kernel
from ember_mlx.scans.cell.gated import GRU_CELL, LSTM_CELL, PROJECTED_LSTM, RELU_RNN, TANH_RNN
from ember_mlx.scans.cell.kernel_plan import plan_of
from ember_mlx.scans.cell.pointwise_text import arguments_kernel, back_kernel, coefficients_kernel, next_kernel
from ember_mlx.step.cell import Cell
from ember_mlx.step.definition import Definition

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "metal" / "steps"
OWN: tuple[Cell, ...] = (TANH_RNN, RELU_RNN, LSTM_CELL, PROJECTED_LSTM, GRU_CELL, *(getattr(cells, name)() for name in cells.__all__))


def kernels_of(definition: Definition) -> list[KernelText]:
    """The kernels of a cell, each once: the two scans, and what is made for all steps at once or for one step."""
    plan = plan_of(definition)
    found: list[KernelText | None] = [forward_kernel(definition), backward_kernel(definition)]
    found += [coefficients_kernel(definition, size) for size in plan.sizes if plan.coefficients_of(size)]
    found += [arguments_kernel(definition, stage, size) for stage in range(definition.depth) for size in plan.sizes]
    found += [next_kernel(definition, stage, size) for stage in range(definition.depth + 1) for size in plan.sizes]
    found += [back_kernel(definition, level, size) for level in range(max(plan.depth_back, 1)) for size in plan.sizes]
    return list(dict.fromkeys(kernel for kernel in found if kernel is not None))


def file_of(cell: Cell) -> Path:
    """Where a cell's text is."""
    return FOLDER / f"{re.sub('(?<=[a-z])(?=[A-Z])', '_', type(cell).__name__).lower()}.metal"


def text_of(cell: Cell) -> str:
    """A file: a heading, and the kernels below it."""
    source = Path(inspect.getfile(type(cell))).relative_to(ROOT)
    kernels = kernels_of(cell.definition)
    stands_on = dict.fromkeys(name for kernel in kernels for name in kernel.files)
    heading = [
        f"// The kernels of {type(cell).__name__}, generated from its step in {source.as_posix()} by `make steps`.",
        "// They are here to be read; nothing loads this file.",
        f"// They stand on {', '.join(stands_on)}.",
    ]
    return "\n".join([*heading, "", *(kernel.text for kernel in kernels)])


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for path in set(FOLDER.glob("*")) - set(map(file_of, OWN)):
        path.unlink()
    for cell in OWN:
        file_of(cell).write_text(text_of(cell))


if __name__ == "__main__":
    main()

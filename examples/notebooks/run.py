"""Execute the notebooks of this folder and store their outputs, without machine-dependent metadata.

python examples/notebooks/run.py                    # all of them, in place
python examples/notebooks/run.py 01_first_steps     # one
python examples/notebooks/run.py --check            # fails if a cell fails, and writes nothing
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_SECONDS = 300  # time limit per cell
COLOURS = 128  # colours per image


def clean(notebook: Any) -> Any:
    """Keep only a notebook's cells and outputs, with the same ids, counts and metadata on every machine.

    Example:
        >>> import nbformat
        >>> notebook = nbformat.v4.new_notebook(metadata={"vscode": 1}, cells=[nbformat.v4.new_code_cell("1 + 1")])
        >>> cleaned = clean(notebook)
        >>> cleaned.cells[0].id, sorted(cleaned.metadata)
        ('cell-01', ['kernelspec', 'language_info'])
    """
    import nbformat

    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for k, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{k:02d}", nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Merge a cell's printed messages into one output."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def shrink_pictures(notebook: Any) -> Any:
    """Convert each image to a palette: a third of the size, without a visible difference."""
    from PIL import Image

    for data in (output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output):
        if "image/png" in data:
            picture = BytesIO()
            image = Image.open(BytesIO(base64.b64decode(data["image/png"])))
            image.convert("RGB").quantize(COLOURS).save(picture, format="png", optimize=True)
            data["image/png"] = base64.b64encode(picture.getvalue()).decode() + "\n"
    return notebook


def execute(path: Path) -> Any:
    """Execute a notebook in a kernel of this Python, and clean it.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; its message shows the cell and the traceback.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    return shrink_pictures(clean(notebook))


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute notebooks; returns 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks of this folder (default: all)")
    parser.add_argument("--check", action="store_true", help="fail if a cell fails, and write nothing")
    options = parser.parse_args(arguments)
    known = {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}
    wanted = [Path(name).stem for name in options.names] or list(known)
    for name in wanted:
        if name not in known:
            parser.error(f"there is no notebook {name}; there are {', '.join(known)}")
    try:
        import nbformat
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        parser.exit(1, f'run.py: error: {error.name} is missing; install with: pip install "ember-mlx[notebooks]"\n')
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a step's products are small: one thread is hardly slower than two
    failed = 0
    for name in wanted:
        start = time.perf_counter()
        try:
            notebook = execute(known[name])
        except CellExecutionError as error:
            failed += 1
            print(f"{name}: failed\n{error}", file=sys.stderr, flush=True)
            continue
        if not options.check:
            known[name].write_text(nbformat.writes(notebook, version=4) + "\n", encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

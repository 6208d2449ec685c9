"""The notebooks parse, were executed without errors, and contain nothing about the machine. `make notebooks` executes them."""

import base64
import importlib.util
import itertools
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BYTES = 1_000_000
ABSOLUTE = re.compile(r"(?<![\w.:/<])/(home|Users|root|tmp|work|usr|opt|var|private|mnt)/|[A-Z]:\\\\")


def tool():
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def texts(notebook):
    """Sources, and outputs without pictures."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (str(text) for kind, text in output.get("data", {}).items() if not kind.startswith("image/"))


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_it_parses(notebook):
    nbformat.validate(notebook)


def test_it_has_outputs_and_pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_no_cell_failed_or_complained(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


def test_no_path_of_a_machine(notebook):
    for text in texts(notebook):
        assert not ABSOLUTE.search(text), text


@pytest.mark.parametrize("text", ["see /home/me/x", "/tmp/a", "'/Users/me'", "C:\\\\Users"])
def test_paths_of_machines_are_seen(text):
    assert ABSOLUTE.search(text)


def test_size(path):
    assert path.stat().st_size < BYTES


def test_metadata_are_clean(path):
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(nbformat.writes(tool().clean(nbformat.reads(text, as_version=4))))


def test_every_code_cell_has_a_text_before_it(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    kinds = [cell.cell_type for cell in notebook.cells]
    for before, kind in itertools.pairwise(kinds):
        assert kind == "markdown" or before == "markdown"


def test_cells_survive_jupytext(notebook):
    again = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), fmt="py:percent")
    assert [(cell.cell_type, cell.source) for cell in again.cells] == [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        tool().main(["nothing_of_this_name"])
    assert "there is no notebook nothing_of_this_name" in capsys.readouterr().err


def test_the_readmes_picture_is_a_notebooks():
    notebook = nbformat.read(FOLDER / "01_first_steps.ipynb", as_version=4)
    pictures = [out.data["image/png"] for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    shown = (FOLDER.parents[1] / "docs" / "_static" / "forecast.png").read_bytes()
    assert shown in [base64.b64decode(picture) for picture in pictures]

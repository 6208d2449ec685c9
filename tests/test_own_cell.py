"""The example of a cell of one's own trains, prints a table and draws."""

import importlib.util
from pathlib import Path

import numpy as np

from ember_mlx import cells
from ember_mlx.testing import check_cell

EXAMPLES = Path(__file__).parent.parent / "examples"


def example():
    spec = importlib.util.spec_from_file_location("own_cell", EXAMPLES / "own_cell.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_problem():
    x, y = example().adding(np.random.default_rng(0), 5, 11)
    x, y = np.array(x), np.array(y)
    assert (x.shape, y.shape) == ((5, 11, 2), (5, 1))
    assert (x[:, :5, 1].sum(axis=1) == 1).all()
    assert (x[:, 5:, 1].sum(axis=1) == 1).all()
    np.testing.assert_allclose((x[..., 0] * x[..., 1]).sum(axis=1), y[:, 0], atol=1e-6)


def test_its_cell_is_the_papers():
    cell = example().LEM
    assert check_cell(cell, backends=["numpy"]).errors["numpy"][0] < 1e-12
    assert cell().definition.signature == cells.LEM().definition.signature


def test_it_learns_and_draws(tmp_path, capsys):
    path = tmp_path / "out" / "own_cell.png"
    example().main(["--layers", "lem", "--length", "8", "--units", "16", "--steps", "250", "--out", str(path)])
    assert path.stat().st_size > 10_000
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("LEM")).split()
    assert float(row[2]) < 0.05

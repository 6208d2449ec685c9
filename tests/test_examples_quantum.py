"""The examples of quantum-inspired layers and of spatial wiring, with a few steps each."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_noisy_sine(tmp_path, capsys):
    module = example("noisy_sine")
    module.main(["--steps", "12", "--out", str(tmp_path / "out" / "sine.png")])
    assert (tmp_path / "out" / "sine.png").stat().st_size > 20_000
    rows = capsys.readouterr().out.splitlines()[1:5]
    assert [row[:24].strip() for row in rows] == list(module.LAYERS)
    for row in rows:
        first, error, _ = map(float, row[24:].split())
        assert error < 0.8 * first


def test_noisy_sine_has_the_noise_that_it_says():
    noisy, dt, clean = (np.array(a) for a in example("noisy_sine").sines(np.random.default_rng(0), 500))
    assert np.mean((noisy - clean) ** 2) == pytest.approx(0.09, rel=0.02)
    assert dt.min() >= 0.2


def test_spatial_wiring(tmp_path, capsys):
    module = example("spatial_wiring")
    module.main(["--steps", "25", "--price", "0.5", "--out", str(tmp_path / "out" / "wiring.png")])
    assert (tmp_path / "out" / "wiring.png").stat().st_size > 20_000
    free, priced = (row.split() for row in capsys.readouterr().out.splitlines()[1:3])
    assert float(priced[-3]) < float(free[-3]) - 0.05  # the mean length of a synapse
    assert float(priced[-2]) < 0.8 * float(free[-2])  # all wire

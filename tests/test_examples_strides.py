"""The strides example, and the memory of a long training step."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"


def example():
    spec = importlib.util.spec_from_file_location("strides", EXAMPLES / "strides.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_series_and_target():
    module = example()
    years, x, dt, target = module.load()
    with np.load(module.DATA) as data:
        co2 = data["co2"]
    assert len(years) == len(x) == len(dt) == len(target) == len(co2) - module.AHEAD
    np.testing.assert_allclose(target[100], co2[100 + module.AHEAD] - co2[100], rtol=1e-5)
    np.testing.assert_allclose(np.median(dt), 1, atol=0.01)  # weeks
    assert dt.min() > 0.5


def test_it_learns_and_draws(tmp_path, capsys):
    example().main(["--steps", "60", "--out", str(tmp_path / "out" / "strides.png")])
    assert (tmp_path / "out" / "strides.png").stat().st_size > 20_000
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test error"))
    model, nothing = (float(part.split()[-2]) for part in line.split(";"))
    assert model < 0.8 * nothing


def test_a_training_step_over_10000_steps_fits_in_memory():
    """In a separate process, since the peak of this one may already be higher."""
    command = [sys.executable, EXAMPLES / "strides.py", "--long"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mebibytes = int(out.split(" s, ")[1].split()[0])
    assert 10 < mebibytes < 500

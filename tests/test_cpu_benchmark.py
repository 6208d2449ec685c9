"""The benchmark on the CPU runs from end to end."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "cpu.py"


def test_it_prints_a_table_and_writes_every_contenders_figures(tmp_path):
    options = ["--layers", "RNN", "--steps", "3", "--rounds", "2", "--seconds", "0.01", "--json", str(tmp_path / "bench.json")]
    run = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=True, timeout=300)
    figures = json.loads((tmp_path / "bench.json").read_text())["ms"]["RNN"]["3"]
    assert {"ember_mlx", "ember_mlx, its ops form", "mlx.nn.RNN"} <= set(figures)
    for name, by_run in figures.items():
        assert f"| {name} " in run.stdout
        for of_run in by_run.values():
            assert 0 < of_run["min"] <= of_run["median"]
            assert of_run["ratio"] > 0
    assert all(of_run["ratio"] == 1 for of_run in figures["ember_mlx"].values())

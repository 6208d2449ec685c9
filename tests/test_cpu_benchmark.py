"""The benchmark on the CPU runs from end to end."""

import json
import os
import signal
import subprocess
import sys
import time
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


def test_ended_from_outside_it_leaves_no_process(tmp_path):
    options = ["--layers", "RNN", "--steps", "3", "--seconds", "0.01", "--rounds", "100000", "--json", str(tmp_path / "bench.json")]
    run = subprocess.Popen([sys.executable, str(SCRIPT), *options], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for _ in range(600):  # until its contenders are there
            if processes_of_group(run.pid) > 2:
                break
            time.sleep(0.1)
        assert processes_of_group(run.pid) > 2
        run.send_signal(signal.SIGTERM)
        assert "ended by SIGTERM" in run.communicate(timeout=60)[1]
        assert processes_of_group(run.pid) == 0
    finally:
        if processes_of_group(run.pid):
            os.killpg(run.pid, signal.SIGKILL)


def processes_of_group(group):
    found = subprocess.run(["ps", "-A", "-o", "pgid="], capture_output=True, text=True, check=True).stdout.split()
    return found.count(str(group))

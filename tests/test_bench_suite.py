"""The benchmark suite, on a small work with contenders that are wrong, fail and give NaN."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

ROOT = Path(__file__).parent.parent
SUITE = """
import contenders
import numpy as np
from contenders import *
from works import Work
from ember_mlx import RNN

SMALL = Work("RNN 5", lambda: RNN(10, 5), ("mlx.nn", "bad sum", "bad op", "bad nan", "bad end", "lacking"), units=5, B=2, T=3)

def all_works(quick, full):
    return [SMALL, SMALL._replace(direction="forward")]

def work_of(key):
    return next(work for work in all_works(False, False) if work.name == key[0])

def changed(change):
    def make(given):
        contender = contenders.ours(given)
        return contender._replace(results=lambda: {name: change(name, a) for name, a in contender.results().items()})
    return make

def failing(given):
    raise RuntimeError("this GPU has no such operation")

PACKAGES = {"lacking": ("no_such_package",)}
CONTENDERS = contenders.CONTENDERS | {
    "bad sum": changed(lambda name, a: a + 0.01 * a.max() if name == "x" else a),
    "bad nan": changed(lambda name, a: np.full_like(a, np.nan) if name == "y" else a),
    "bad op": failing,
    "bad end": lambda given: os._exit(3),
}
"""


def command(folder, *options):
    (folder / "small.py").write_text(SUITE)
    runs = f"--benchmark-storage=file://{folder / 'runs'}"
    return [sys.executable, "-m", "pytest", str(ROOT / "benchmarks"), "--suite", "small", "--out", str(folder), runs, *options]


def environment(folder):
    # pytest-benchmark stores nothing in a worker of xdist, which this run is not
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return outside | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT / "benchmarks"), str(ROOT)))}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    done = subprocess.run(
        command(folder, "--quick"), cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_who_is_wrong_or_fails_is_listed_with_the_reason_and_not_timed(run):
    _, text = run
    assert "bad sum, forward+backward: WRONG: the gradient of x is off by 1.0e-02 of the largest value, more than 1e-04" in text
    assert "bad op, forward: FAILED: RuntimeError: this GPU has no such operation" in text
    assert "bad nan, forward+backward: FAILED: NaN or infinity in the output" in text
    assert "bad end, forward: FAILED: its process ended with 3" in text
    assert "left out: lacking (no_such_package not installed)" in text
    assert "NumPy's BLAS:" in text


def test_every_contender_that_is_right_is_stored_by_its_name_and_nothing_private(run):
    folder, _ = run
    (path,) = (folder / "runs").rglob("*.json")
    stored = json.loads(path.read_text())
    names = {one["name"] for one in stored["benchmarks"]}
    both, forward = "RNN 5, B=2 T=3, float32, forward+backward", "RNN 5, B=2 T=3, float32, forward"
    assert names == {
        *(f"test_work[{both}, {name}]" for name in ("ember_mlx", "ember_mlx ops", "mlx.nn")),
        *(f"test_work[{forward}, {name}]" for name in ("ember_mlx", "ember_mlx ops", "mlx.nn", "bad sum")),
    }
    assert all(0 < one["stats"]["min"] <= one["stats"]["median"] for one in stored["benchmarks"])
    assert "node" not in stored["machine_info"]
    compared = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", f"--storage=file://{folder / 'runs'}", "compare"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mlx.nn" in compared.stdout


def test_the_page_is_one_file_without_the_machines_folders(run):
    folder, _ = run
    page = (folder / "benchmarks.html").read_text()
    assert (folder / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page
    assert str(folder) not in page
    assert str(ROOT) not in page


def test_an_old_blas_kernel_is_warned_of(tmp_path):
    script = "import measure; words, warnings = measure.blas(); print(words, *warnings, sep='\\n')"
    usual = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True).stdout
    if "openblas" not in usual or "x86" not in os.uname().machine:
        pytest.skip("NumPy has no OpenBLAS for x86 here")
    old = os.environ | {"OPENBLAS_CORETYPE": "Nehalem"}
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "benchmarks", env=old, capture_output=True, text=True, check=True
    ).stdout
    assert "OPENBLAS_CORETYPE=Nehalem forces the Nehalem kernel instead of" in told


def test_ended_from_outside_it_leaves_no_process(tmp_path):
    options = ["--full", "-k", "forward and mlx.nn"]
    run = subprocess.Popen(
        command(tmp_path, *options), cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(600):  # until its contenders are there
            if processes_of_group(run.pid) > 2:
                break
            time.sleep(0.05)
        assert processes_of_group(run.pid) > 2
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == 2
        assert processes_of_group(run.pid) == 0
    finally:
        if processes_of_group(run.pid):
            os.killpg(run.pid, signal.SIGKILL)


def processes_of_group(group):
    found = subprocess.run(["ps", "-A", "-o", "pgid="], capture_output=True, text=True, check=True).stdout.split()
    return found.count(str(group))

"""fit(distributed=True): two processes of mlx.launch on this machine give the same result as one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from .distributed_run import train

ROOT = Path(__file__).parents[1]
LAUNCH = shutil.which("mlx.launch", path=Path(sys.executable).parent) or shutil.which("mlx.launch")

pytestmark = pytest.mark.skipif(LAUNCH is None or not mx.distributed.is_available(), reason="mlx.launch or its backends are missing")


SCRIPT = str(ROOT / "tests" / "distributed_run.py")


def launch(folder, what):
    """Run it and return its output; mlx.launch exits with 0 even if a process fails."""
    command = [LAUNCH, "-n", "2", "--backend", "ring", "--python", sys.executable, SCRIPT, str(folder), what]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    return result.stdout + result.stderr


def start_both(folder, what):
    """The same without mlx.launch, which ends all processes when one is lost."""
    with socket.socket() as first, socket.socket() as second:
        for s in (first, second):
            s.bind(("127.0.0.1", 0))
        hosts = [[f"127.0.0.1:{s.getsockname()[1]}"] for s in (first, second)]
    (folder / "hosts.json").write_text(json.dumps(hosts))
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(folder), what],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(folder / "hosts.json")},
        )
        for rank in (0, 1)
    ]


def weights(model):
    return [np.array(a) for _, a in tree_flatten(model.parameters())]


def loaded(folder, rank):
    with np.load(folder / f"rank-{rank}.npz") as arrays:
        return [arrays[str(k)] for k in range(len(arrays))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return weights(train(tmp_path_factory.mktemp("alone")))


def check_both(folder, output, expected):
    for rank in (0, 1):
        assert f"rank {rank} of 2 is done" in output, output
        assert all(np.allclose(a, b, atol=1e-6, rtol=0) for a, b in zip(loaded(folder, rank), expected, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(loaded(folder, 0), loaded(folder, 1), strict=True))


def test_two_processes_train_as_one(tmp_path, alone):
    check_both(tmp_path, launch(tmp_path, "whole"), alone)


def test_a_lost_process_ends_the_run_which_goes_on_from_its_checkpoint(tmp_path, alone):
    began = time.monotonic()
    processes = start_both(tmp_path, "killed")
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert time.monotonic() - began < 60
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL]
    assert "RuntimeError: [fit] another process was lost in step 9, epoch 3; start again with resume=True: " in errors[0]
    check_both(tmp_path, launch(tmp_path, "resumed"), alone)

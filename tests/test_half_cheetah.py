"""The reproduction of the half-cheetah result: a reduced run on synthetic recordings, and its windows."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "reproduce_half_cheetah.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
TIME_LIMIT = 120  # seconds; an idle machine needs a twentieth


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """25 runs of 80 steps: waves of three frequencies."""
    t, phase = np.arange(80), np.random.default_rng(0).uniform(0, 6, (25, 1, 3))
    path = tmp_path_factory.mktemp("recordings") / "runs.npz"
    np.savez(path, traces=np.sin(t[None, :, None] * np.array([0.3, 0.5, 0.8]) + phase).astype(np.float32))
    return path


@pytest.fixture
def half_cheetah(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("half_cheetah", SCRIPT.parent / "half_cheetah.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*options):
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)


def test_reduced_run(recordings, tmp_path):
    result = run("--data", recordings, "--units", 4, "--runs", 2, "--epochs", 2, "--seeds", 2, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for name in ("ltc", "cfc", "lstm", "gru"):
        assert result.stdout.count(f"{name}, seed ") == 2
    assert "2.308 ± 0.015" in result.stdout
    assert "2.500 ± 0.140" in result.stdout
    assert (tmp_path / "half_cheetah.png").read_bytes().startswith(b"\x89PNG")


def test_missing_recordings_are_named(tmp_path):
    result = run("--data", tmp_path / "nothing")
    assert result.returncode == 2
    assert "nothing does not exist; the recordings are in https://github.com/" in result.stderr


def test_too_few_recordings_are_named(tmp_path):
    np.savez(tmp_path / "few.npz", traces=np.zeros((3, 50, 2), np.float32))
    result = run("--data", tmp_path / "few.npz")
    assert result.returncode == 1
    assert result.stderr.endswith("few.npz holds 3 recorded runs, 25 are needed\n")


def test_windows_are_those_of_the_protocol(half_cheetah, recordings, tmp_path):
    traces = np.load(recordings)["traces"]
    windows = half_cheetah.load(recordings)
    starts = [0, 10, 20, 30, 40]  # of 32 steps, the target one step later, in 80
    for part, ids in (("train", range(15, 25)), ("validation", range(5)), ("test", range(5, 15))):
        x, y = windows[part]
        np.testing.assert_array_equal(x, [traces[i, s : s + 32] for i in ids for s in starts])
        np.testing.assert_array_equal(y, [traces[i, s + 1 : s + 33] for i in ids for s in starts])
    for k, trace in enumerate(traces):
        np.save(tmp_path / f"trace_{k:04d}.npy", trace)
    np.testing.assert_array_equal(half_cheetah.load(tmp_path)["test"][1], windows["test"][1])


def test_training_lowers_the_error_and_reports_the_best_epoch(half_cheetah, recordings):
    data, reported = half_cheetah.load(recordings, 3), []
    _, result = half_cheetah.train("ltc", 6, 8, 0, data, reported.append)
    assert len(reported) == 8
    assert result.validation[-1] < 0.9 * result.validation[0]
    assert result.best == result.test[int(np.argmin(result.validation))]

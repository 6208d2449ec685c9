"""Seconds of training to an accuracy: a small run, what is compared, and what a table says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
LACKING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("ncps") is None

pytestmark = pytest.mark.skipif(not (ROOT / "examples" / "data").is_dir(), reason="examples/data is not part of the source distribution")
needs_peers = pytest.mark.skipif(LACKING, reason="torch and ncps are not installed")


@pytest.fixture
def module(monkeypatch):
    """A module of benchmarks, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    path = list(sys.path)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in ("training", "trainers", "contest", "measure", "works", "demo_tasks", "demo_models"):
            sys.modules.pop(name)
    sys.path[:] = path


def run(folder, *options):
    command = [sys.executable, "benchmarks/training.py", "--json", str(folder / "training.json"), *options]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def test_a_small_run_learns_and_tells_it(tmp_path):
    done = run(tmp_path, "--quick", "--layers", "GRU", "--epochs", "2", "--train", "160")
    assert done.returncode == 0, done.stderr
    assert "**Japanese Vowels, 2 epochs, batches of 16**" in done.stdout
    assert "| GRU | ember_mlx  | not reached     | 0 of 1" in done.stdout
    (told,) = json.loads((tmp_path / "training.json").read_text())["trainings"]
    ours = told["measured"]["ember_mlx"]
    assert len(ours) == 2
    assert max(epoch["accuracy"] for epoch in ours) > 0.2  # without training a ninth
    assert all(epoch["seconds"] > 0 for epoch in ours)
    assert told["rate"] == 1e-2
    if LACKING:
        assert "GRU, torch: left out: torch not installed" in done.stdout
    else:
        theirs = told["measured"]["torch"]
        np.testing.assert_allclose([e["loss"] for e in theirs], [e["loss"] for e in ours], rtol=1e-2)


@needs_peers
@pytest.mark.parametrize(("task", "layer"), [("vowels", "LSTM"), ("vowels", "GRU"), ("digits", "CfC")])
def test_contenders_learn_the_same(module, task, layer):
    import torch

    torch.set_num_threads(1)  # several wait for each other where the machine is busy
    trainers = module("trainers")
    ours, theirs = (trainers.Run(name, task, layer, 1, 2, 96).results() for name in ("ember_mlx", trainers.PEERS[layer]))
    assert ours.keys() == theirs.keys()
    for name, y in ours.items():
        np.testing.assert_allclose(theirs[name], y, rtol=0, atol=1e-4 * np.abs(y).max())
    assert np.abs(ours["y"] - ours["y after two steps"]).max() > 0.01


def test_rates_rise_and_fall(module):
    rates = [module("trainers").rate_at(step, 100, 2.0) for step in range(100)]
    assert np.argmax(rates) in (4, 5)
    assert rates[0] == pytest.approx(0.4)
    assert max(rates) == 2.0
    assert rates[-1] < 0.01
    assert (np.diff(rates[5:]) < 0).all()


def test_seconds_to_a_target(module):
    training = module("training")
    epochs = [{"seconds": 2.0, "accuracy": accuracy} for accuracy in (0.5, 0.8, 0.7, 0.9)]
    assert training.seconds_to(epochs, 0.8) == 4.0
    assert training.seconds_to(epochs, 0.85) == 8.0
    assert training.seconds_to(epochs, 0.95) is None


@pytest.mark.parametrize(("reached", "time"), [((0.9, 0.9, 0.2), "3.0"), ((0.9, 0.2, 0.2), "not reached")])
def test_a_median_that_is_not_there_is_said(module, reached, time):
    training = module("training")
    trainings = []
    for seed, accuracy in enumerate(reached):
        trainings.append(training.Training("vowels", "GRU", seed, 1, None))
        trainings[-1].measured["ember_mlx"] = [{"seconds": 3.0, "accuracy": accuracy, "loss": 0.0}]
    (row,) = training.rows(trainings, 0.8)
    assert row[:3] == ["GRU", "ember_mlx", time]
    assert row[3] == f"{sum(accuracy > 0.8 for accuracy in reached)} of 3"


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--seeds", "0"], "argument --seeds: must be a whole number from 1 on, got '0'"), (["--tasks", "xor"], "invalid choice: 'xor'")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named(module, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        module("training").main(options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

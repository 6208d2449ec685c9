"""MNIST-1D: its data, and runs of the script."""

import importlib.util
import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

needs_mnist1d = pytest.mark.skipif(importlib.util.find_spec("mnist1d") is None, reason="the package mnist1d is not installed")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("reproduce_mnist1d")
    for name in ("reproduce_mnist1d", "reproduction", "demo"):
        sys.modules.pop(name, None)


@needs_mnist1d
def test_data_are_made_here_and_always_the_same(script, monkeypatch):
    def refuse(*_):
        raise AssertionError("a download")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    training, test = script.load()
    assert training.x.shape == (4000, 40, 1)
    assert test.x.shape == (1000, 40, 1)
    both = np.concatenate([training.x, test.x])
    np.testing.assert_allclose([both.mean(), both.std()], [0, 1], atol=1e-5)
    assert (np.bincount(np.concatenate([training.y, test.y])) == 500).all()
    np.testing.assert_array_equal(script.load()[1].x, test.x)


@needs_mnist1d
@pytest.mark.parametrize("name", ["gru", "lstm", "cfc"])
def test_a_short_run_learns_and_leaves_its_record(script, tmp_path, name):
    said = []
    assert script.main(["--models", name, "--epochs", "2", "--seeds", "1", "--out", str(tmp_path)], said.append) == 0
    assert said[0] == "MNIST-1D: 4000 lines to train on, 1000 to test, 2 epochs, 1 seeds"
    told = json.loads((tmp_path / f"mnist1d-{name}-seed0.json").read_text())
    assert len(told["accuracy"]) == len(told["seconds"]) == 2
    assert max(told["accuracy"]) > 18  # without training 10
    assert 0 < told["seconds"][0] < told["seconds"][1]
    assert told["settings"]["units"] == 6
    assert {"mlx", "numpy", "python", "ember-mlx"} <= told["versions"].keys()
    words = said[-1].split()
    assert words[:3] == [name, f"{told['accuracy'][-1]:.2f}", script.PUBLISHED[name]]


@needs_mnist1d
def test_without_training_it_guesses(script):
    from ember_mlx.training import evaluate

    assert evaluate(script.make_model("gru", 6), script.load()[1], ["accuracy"])["accuracy"] < 0.18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "cnn"], "--models invalid choice: 'cnn' (choose from "),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--units", "six"], "--units must be a whole number, got 'six'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named_in_one_line(script, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        script.main(options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"reproduce_mnist1d.py: error: {message}")
    assert error.count("\n") == 1


def test_without_the_package_its_extra_is_named(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        script.main([])
    assert stop.value.code == 1
    assert capsys.readouterr().err == 'reproduce_mnist1d.py: error: mnist1d is missing; install with: pip install "ember-mlx[reproduce]"\n'

"""The event-based XOR: its streams, and a run of the script."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def xor(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("reproduce_xor")
    for name in ("reproduce_xor", "reproduction", "demo"):
        sys.modules.pop(name, None)


def bits_of(x, dt):
    """The stream of bits that these events encode."""
    counts = np.round(dt * 32).astype(int)
    bits = [int(x[0, 0])]
    for k in range(1, len(x)):
        bits += [bits[-1]] * (counts[k] - 1) + [int(x[k, 0])]  # the bits between two events are the older one's
    return bits


def test_streams_and_their_parity(xor):
    streams = xor.make_streams(500, np.random.default_rng(3))
    lengths = []
    for x, dt, parity in zip(streams.x, streams.dt, streams.y, strict=True):
        bits = bits_of(x, dt)
        lengths.append(len(bits))
        assert sum(bits) % 2 == parity
        assert (np.diff(x[:-1, 0]) != 0).all()  # an event is a change; the last one may be what is left
        assert dt[0] == 1 / 32
    assert min(lengths) == 2
    assert max(lengths) == 31
    assert 0.4 < streams.y.mean() < 0.6


def test_bits_limit_the_length(xor):
    streams = xor.make_streams(200, np.random.default_rng(3), most=5)
    assert {len(bits_of(x, dt)) for x, dt in zip(streams.x, streams.dt, strict=True)} == {2, 3, 4, 5}


def test_a_run_prints_the_published_figure_beside_its_own(xor, monkeypatch, tmp_path):
    monkeypatch.setitem(xor.SETTINGS, "pure", xor.SETTINGS["pure"]._replace(units=4))
    said = []
    options = ["--train", "60", "--test", "50", "--epochs", "1", "--models", "pure", "--seeds", "2", "--out", str(tmp_path)]
    assert xor.main(options, said.append) == 0
    assert said[0] == "event-based XOR: 60 streams to train on, 50 to test, 1 epochs, 2 to 31 bits"
    assert "85.42 ± 2.84" in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["xor-pure-seed0.json", "xor-pure-seed1.json"]


def test_a_quick_run_learns_and_leaves_its_record(xor, tmp_path):
    said = []
    options = ["--quick", "--bits", "3", "--train", "3000", "--test", "400", "--epochs", "4", "--out", str(tmp_path)]
    assert xor.main(options, said.append) == 0
    told = json.loads((tmp_path / "xor-mixed-seed0.json").read_text())
    assert len(told["accuracy"]) == len(told["seconds"]) == 4
    assert max(told["accuracy"]) > 75  # without training 50
    assert told["settings"]["bits"] == 3
    assert {"mlx", "numpy", "python", "ember-mlx"} <= told["versions"].keys()
    assert "another task" in said[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "lstm"], "--models invalid choice: 'lstm' (choose from "),
        (["--bits", "1"], "--bits must be at least 2, got 1"),
        (["--bits", "32"], "--bits must be less than 32, the unit of time, got 32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named_in_one_line(xor, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        xor.main(options)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"reproduce_xor.py: error: {message}")

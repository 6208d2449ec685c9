"""The event-based XOR: its streams, and a run of the script."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def xor(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("reproduce_xor")
    for name in ("reproduce_xor", "demo"):
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


def test_a_run_prints_the_published_figure_beside_its_own(xor, monkeypatch):
    monkeypatch.setitem(xor.SETTINGS, "pure", xor.SETTINGS["pure"]._replace(units=4))
    said = []
    assert xor.main(["--quick", "--train", "60", "--epochs", "1", "--models", "pure", "--seeds", "2"], said.append) == 0
    assert said[0] == "event-based XOR: 60 streams to train on, 1000 to test, 1 epochs"
    assert "85.42 ± 2.84" in said[-1]

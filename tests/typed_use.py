"""A user's code, for type checkers: checked by `mypy --strict` against the installed wheel, and run by the release check.

It shows that the annotations reach who installs the package (py.typed), that what is right passes, and that what is wrong is found: an
`ignore` below that is not needed is an error of --strict.
"""

import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from ember_mlx import GRU, LTC, Cell, CfC, NCPMap, Recurrent, SequenceModel, current_backend, load, pack_sequences, save, use_backend
from ember_mlx.step import Value, sigmoid, tanh
from ember_mlx.testing import check_cell
from ember_mlx.training import History, Sequences, evaluate, fit, predict


class GatedUnit(Cell):
    """A cell of one's own."""

    x_products = 2
    h_products = {"R": 2}

    def step(self, x: Value, h: Value, dt: Value, R: Value) -> Value:
        """The next state."""
        z, n = R(h)
        return h + dt * sigmoid(x[0] + z) * (tanh(x[1] + n) - h)


def train(folder: Path) -> History:
    """One training step, saved and loaded."""
    mx.random.seed(0)
    x, time_deltas = mx.random.normal((8, 6, 3)), mx.full((8, 6), 0.5)
    data = Sequences(x, mx.array([0, 1] * 4), time_deltas=time_deltas)
    model = SequenceModel(CfC(8, input_size=3), outputs=2)
    before = np.array(model(x, time_deltas=time_deltas))
    history = fit(model, data, epochs=1, loss="cross_entropy", batch_size=8, progress=False)
    after = np.array(model(x, time_deltas=time_deltas))
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)  # it learned something
    path = folder / "model.safetensors"
    save(model, path)
    assert np.array_equal(np.array(load(path)(x, time_deltas=time_deltas)), after)
    scores: dict[str, float] = evaluate(model, data, ["accuracy"])
    assert 0 <= scores["accuracy"] <= 1
    assert len(predict(model, data)) == 8
    return history


def call() -> None:
    """Layers of other kinds."""
    neuron_map = NCPMap(inter_neurons=4, command_neurons=3, motor_neurons=2, sensory_neurons=3, seed=1)
    x, lengths = pack_sequences([mx.ones((5, 3)), mx.ones((2, 3))])
    y: mx.array = CfC(neuron_map, output="motor")(x, lengths=lengths, time_deltas=0.5)
    assert y.shape == (2, 2)
    units: int = LTC(neuron_map).output_size
    assert units > 0
    recurrent = Recurrent(GatedUnit, 3, 4, 2, bidirectional=True)
    y = recurrent(x, lengths=lengths, time_deltas=0.5)
    assert y.shape == (2, 5, recurrent.output_size)
    points: int = check_cell(GatedUnit, backends=["numpy"]).points
    assert points > 0
    with use_backend("ops"):
        name: str = current_backend()
    assert name == "ops"


def wrong() -> None:
    """Errors that a type checker must find; not run."""
    CfC("8", input_size=3)  # type: ignore[arg-type]
    CfC(8, input_size=3, moed="pure")  # type: ignore[call-arg]
    Recurrent(GatedUnit, 3, 4, bidirectonal=True)  # type: ignore[call-arg]
    Recurrent("GatedUnit", 3, 4)  # type: ignore[arg-type]
    GRU(3, 4, num_layers=2, dropout="much")  # type: ignore[arg-type]
    use_backend(3)  # type: ignore[arg-type]
    fit(SequenceModel(CfC(8, 3), outputs=2), None, epochs="1", loss="mse")  # type: ignore[arg-type]


if __name__ == "__main__":
    call()
    with tempfile.TemporaryDirectory() as folder:
        loss: list[float] = train(Path(folder))["loss"]
    print(f"one training step, loss {loss[0]:.3f}")

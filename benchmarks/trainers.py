"""Training as each contender does it: a layer and a linear read-out of its last valid step, ours and the same in torch.

All start from our weights, converted, and get the same batches, rates and Adam. LSTM and GRU take no time deltas: they have them as one
more feature. The CfC is the demo's, with mixed memory.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["MLX_ENABLE_TF32"] = os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # before the libraries start
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from demo_models import BACKBONE
from demo_tasks import EVENT_DIGITS, SPEAKERS, load

from ember_mlx import GRU, LSTM, CfC, SequenceModel
from ember_mlx.convert import to_ncps_state_dict, to_torch_state_dict
from ember_mlx.training import Sequences
from ember_mlx.training.data import Batch

UNITS, WARM_UP = 64, 0.05  # of all steps
Results = dict[str, np.ndarray]


class Recipe(NamedTuple):
    """How a task is trained, by all contenders in the same way.

    Args:
        title: of the task.
        demo: the demo's task, which has the data.
        target: the accuracy on the test data whose time is told.
        epochs: passes over the training data.
        batch_size: sequences in a step.
        rates: the highest learning rate, by layer.
        clip_norm: of the gradients.
        time_scale: factor of every time delta; None: the task has no time deltas.
    """

    title: str
    demo: Any
    target: float
    epochs: int
    batch_size: int
    rates: dict[str, float]
    clip_norm: float
    time_scale: float | None = None


RECIPES = {
    "vowels": Recipe("Japanese Vowels", SPEAKERS, 0.9, 20, 16, {"LSTM": 1e-2, "GRU": 1e-2, "CfC": 5e-3}, 1.0),
    "digits": Recipe("event MNIST", EVENT_DIGITS, 0.8, 12, 64, {"LSTM": 1e-2, "GRU": 1e-2, "CfC": 5e-3}, 0.3, 0.3),
}
PEERS = {"LSTM": "torch", "GRU": "torch", "CfC": "ncps"}
CFC: dict[str, Any] = BACKBONE | {"mixed_memory": True}
OURS = "ember_mlx"


def layer_of(name: str, inputs: int) -> nn.Module:
    """Ours, which returns the last valid step."""
    if name == "CfC":
        return CfC(UNITS, inputs, **CFC)
    return {"LSTM": LSTM, "GRU": GRU}[name](inputs, UNITS, return_sequences=False)


def data_of(name: str, recipe: Recipe) -> tuple[Sequences, Sequences]:
    """The training and the test data as a layer takes them."""

    def part(data: Sequences) -> Sequences:
        if recipe.time_scale is None:
            return Sequences(data.x, data.y, lengths=data.lengths)
        dt = recipe.time_scale * data.time_deltas
        if name == "CfC":
            return Sequences(data.x, data.y, dt, data.lengths)
        return Sequences(np.concatenate([data.x, dt[:, :, None]], axis=2), data.y, lengths=data.lengths)

    training, test = load(recipe.demo)
    return part(training), part(test)


def rate_at(step: int, steps: int, highest: float) -> float:
    """Up in a straight line, down along a cosine, as in the demo."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + float(np.cos(np.pi * (step - warm_up) / (steps - warm_up))))


class Ours:
    """A model of ours."""

    def __init__(self, name: str, inputs: int, classes: int, clip_norm: float):
        self.model = SequenceModel(layer_of(name, inputs), outputs=classes)
        self.clip_norm, self.optimizer = clip_norm, optim.Adam(1e-3, bias_correction=True)
        self.gradients = nn.value_and_grad(self.model, self.loss)

    def batch(self, batch: Batch) -> Batch:
        return batch

    def loss(self, batch: Batch) -> mx.array:
        return nn.losses.cross_entropy(self.model(batch.x, **batch.inputs()), batch.y, reduction="mean")

    def step(self, batch: Batch, rate: float) -> float:
        self.optimizer.learning_rate = rate
        loss, gradients = self.gradients(batch)
        self.optimizer.update(self.model, optim.clip_grad_norm(gradients, self.clip_norm)[0])
        mx.eval(loss, self.model.parameters(), self.optimizer.state)
        return loss.item()

    def logits(self, batch: Batch) -> np.ndarray:
        self.model.eval()
        y = np.array(self.model(batch.x, **batch.inputs()))
        self.model.train()
        return y


class Torch:
    """The same in torch, with torch.nn's layer or ncps's; sequences of different lengths are packed where the layer takes that."""

    def __init__(self, name: str, inputs: int, classes: int, clip_norm: float):
        import torch

        self.torch, self.clip_norm = torch, clip_norm
        layer, readout = Ours(name, inputs, classes, clip_norm).model.layers
        self.layer, state = (_ncps if name == "CfC" else _torch_nn)(name, layer, inputs)
        self.layer.load_state_dict({key: torch.tensor(np.array(a)) for key, a in state.items()})
        self.packed = name != "CfC"
        if self.packed:
            _keep_one_bias(self.layer, name)
        self.readout = torch.nn.Linear(UNITS, classes)
        self.readout.load_state_dict({key: torch.tensor(np.array(readout[key])) for key in ("weight", "bias")})
        self.parameters = [p for m in (self.layer, self.readout) for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, 1e-3)

    def batch(self, batch: Batch) -> Any:
        given = {name: self.torch.tensor(np.array(a)) for name, a in batch._asdict().items() if a is not None}
        given["y"] = given["y"].long()
        if "time_deltas" in given:  # ncps takes them for each unit: it squeezes each step's
            given["time_deltas"] = given["time_deltas"][:, :, None].repeat(1, 1, UNITS)
        return given

    def output(self, batch: Any) -> Any:
        x, lengths = batch["x"], batch["lengths"]
        if self.packed:
            rnn = self.torch.nn.utils.rnn
            state = self.layer(rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1]
            return self.readout((state[0] if isinstance(state, tuple) else state)[-1])
        y = self.layer(x, timespans=batch.get("time_deltas"))[0]
        return self.readout(y[self.torch.arange(len(x)), lengths.long() - 1])

    def step(self, batch: Any, rate: float) -> float:
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.output(batch), batch["y"])
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        return loss.item()

    def logits(self, batch: Any) -> np.ndarray:
        with self.torch.no_grad():
            return self.output(batch).numpy()


def _torch_nn(name: str, layer: nn.Module, inputs: int) -> tuple[Any, Results]:
    import torch

    return getattr(torch.nn, name)(inputs, UNITS, batch_first=True), to_torch_state_dict(layer)


def _ncps(name: str, layer: nn.Module, inputs: int) -> tuple[Any, Results]:
    import ncps.torch

    return ncps.torch.CfC(inputs, UNITS, **CFC), to_ncps_state_dict(layer)


def _keep_one_bias(layer: Any, name: str) -> None:
    """Torch's second bias does not learn where we have but one: Adam would move the sum of two twice as far."""
    if name == "LSTM":
        layer.bias_hh_l0.requires_grad_(False)
        return
    mask = layer.bias_hh_l0.new_zeros(3 * UNITS)
    mask[2 * UNITS :] = 1
    layer.bias_hh_l0.register_hook(lambda gradient: gradient * mask)


CONTENDERS: dict[str, Callable[..., Any]] = {OURS: Ours, "torch": Torch, "ncps": Torch}


class Run:
    """A contender's training of a layer on a task from a seed's weights, epoch by epoch.

    Args:
        contender: a name of `CONTENDERS`.
        task: a name of `RECIPES`.
        layer: a name of its rates.
        seed: of the weights and of the batches.
        epochs: passes in all.
        most: sequences to train on at the most.
    """

    def __init__(self, contender: str, task: str, layer: str, seed: int, epochs: int, most: int | None = None):
        self.recipe = RECIPES[task]
        self.training, self.test = data_of(layer, self.recipe)
        self.count = min(most or len(self.training), len(self.training))
        self.seed, self.highest, self.done = seed, self.recipe.rates[layer], 0
        self.steps = epochs * -(-self.count // self.recipe.batch_size)
        mx.random.seed(seed)
        self.model = CONTENDERS[contender](layer, self.training.x.shape[2], len(self.recipe.demo.classes), self.recipe.clip_norm)
        self.tests = [(self.model.batch(batch), np.array(batch.y)) for batch in self.test.batches(256)]

    def batches(self, epoch: int) -> list[Any]:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        size = self.recipe.batch_size
        return [self.model.batch(self.training.batch(order[k : k + size])) for k in range(0, self.count, size)]

    def epoch(self) -> dict[str, float]:
        """Train an epoch; its seconds are those of the steps alone: batches are made before, the test comes after."""
        batches = self.batches(self.done // -(-self.count // self.recipe.batch_size))
        before = time.perf_counter()
        losses = [self.model.step(batch, rate_at(self.done + k, self.steps, self.highest)) for k, batch in enumerate(batches)]
        seconds = time.perf_counter() - before
        self.done += len(batches)
        right = [(self.model.logits(batch).argmax(axis=1) == y).sum() for batch, y in self.tests]
        return {"seconds": seconds, "loss": float(np.mean(losses)), "accuracy": float(sum(right)) / len(self.test)}

    def results(self) -> Results:
        """Outputs before training, and after two steps, which warm up too."""
        found = {"y": self.model.logits(self.tests[0][0])}
        for batch in self.batches(0)[:2]:
            self.model.step(batch, self.highest)
        return found | {"y after two steps": self.model.logits(self.tests[0][0])}


def answered(prepared: dict[str, Any], do: str, name: str, key: list[Any] | None = None, path: str = "") -> Any:
    """What a worker's process answers: to "prepare" with what is compared, to "epoch" with what an epoch measured."""
    if do == "prepare":
        np.savez(path, **Run(name, *key).results())
        prepared[name] = Run(name, *key)
        return {"device": "cpu"}
    return prepared[name].epoch()

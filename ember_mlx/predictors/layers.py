"""Every layer of the package in NumPy; the steps are those of the scans' NumPy forms."""

import math
from typing import Any

import numpy as np

from ..scans.cell.gated import GRU_CELL, LSTM_CELL, PROJECTED_LSTM, RELU_RNN, TANH_RNN
from ..scans.cell.reference import CellStep
from ..scans.cfc.reference import CfCStep
from ..scans.cfc.spec import CfCSpec
from ..scans.ltc.reference import LTCStep
from ..scans.ltc.spec import LTCSpec
from ..scans.ltc.synapses import Synapses
from ..scans.quantum.reference import QuantumStep
from ..scans.quantum.spec import FREQUENCY_UNIT, QuantumSpec
from ..step.cell import Cell
from ..step.definition import Definition
from ..step.saved import cell_from_config
from ..wiring import NeuronMap, map_from_config
from ..wiring.stages import head_masks, stage_units
from .running import Array, Layer, Running, Tree, arrays_in, fill, keep_old, last_of, run_over, turned

POSITIVE = ("w", "sensory_w", "cm", "gleak")
MOST_STEPS = 2**30  # the clock wraps here if the strides have a common multiple


class _OnMap(Layer):
    """A layer on a neuron map."""

    timed = True

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        super().__init__(config, weights, dtype)
        self.map: NeuronMap = map_from_config(config["neuron_map"])
        self.units, self.input_size = self.map.units, self.map.require_input_dim()

    def zeros(self, batch: int, *names: str) -> dict[str, Array]:
        """States by name, (B, H) each."""
        return {name: np.zeros((batch, self.units), self.dtype) for name in names}

    def inputs(self, batch: int) -> dict[str, Array]:
        """Buffers for the inputs and the elapsed time of a step."""
        return {"x": np.zeros((1, batch, self.input_size or 0), self.dtype), "dt": np.zeros((1, batch), self.dtype)}

    def memory(self) -> Tree:
        """The LSTM weights of the mixed memory, in the form that the scan takes."""
        return {ours: self.weights["lstm"][name] for ours, name in (("w_x", "Wx"), ("w_h", "Wh"), ("b", "bias"))}


class CfC(_OnMap):
    """layers/cfc.py, in NumPy."""

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        super().__init__(config, weights, dtype)
        self.mixed_memory, self.motor = config["mixed_memory"], config["output"] == "motor"
        masks = head_masks("CfC", self.map, config["mode"], config["mask_time_heads"])
        stages = [weights["stages"][str(k)] for k in range(len(masks))]
        self.spec = CfCSpec(stage_units("CfC", self.map), config["mode"], config["activation"], self.mixed_memory)
        inputs = [self.input_size or 0, *(stop - start for start, stop in self.spec.stages[:-1])]
        self.tree: Tree = {"stages": [_stage_tree(*each) for each in zip(stages, inputs, masks, strict=True)]}
        if self.mixed_memory:
            self.tree["lstm"] = self.memory()

    def zero(self, batch: int) -> Any:
        return list(self.zeros(batch, *("hct" if self.mixed_memory else "ht")).values())

    def begin(self, batch: int) -> Running:
        return _RunningCfC(self, batch)

    def read_out(self, h: Array) -> Array:
        """(B, H) -> (B, O)."""
        h = h[:, : self.map.output_dim] if self.motor else h
        projection = self.weights.get("proj")
        return h if projection is None else h @ projection["weight"].T + projection["bias"]


class _RunningCfC(Running):
    def __init__(self, layer: CfC, batch: int):
        super().__init__(layer.zero(batch))
        self.layer, self.inputs, self.scale = layer, layer.inputs(batch), layer.dtype.type(layer.config["time_scale_factor"])
        *self.scanned, self.clock = self.state
        self.step = CfCStep(layer.spec, layer.tree | self.inputs | dict(zip(("h0", "c0"), self.scanned, strict=False)))

    def advance(self, x: Array, dt: Array) -> None:
        self.inputs["x"][0] = x
        np.multiply(dt, self.scale, out=self.inputs["dt"][0])
        fill(self.scanned, self.step())
        self.clock += self.inputs["dt"][0][:, None]

    def output(self) -> Array:
        return self.layer.read_out(self.scanned[0])


def _stage_tree(stage: Tree, inputs: int, mask: Array | None) -> Tree:
    """A stage's weights in the form that the scan takes."""
    first, *rest = [*(stage["backbone"][str(k)] for k in range(len(stage.get("backbone", {})))), stage["heads"]]
    weight = first["weight"] if mask is None else first["weight"] * mask
    tree: Tree = {"w_x": weight[:, :inputs], "w_h": weight[:, inputs:], "b": first["bias"]}
    tree |= {name: stage[name] for name in ("w_tau", "A") if name in stage}
    return tree | ({"dense": [{"w": layer["weight"], "b": layer["bias"]} for layer in rest]} if rest else {})


class LTC(_OnMap):
    """layers/ltc.py, in NumPy."""

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        super().__init__(config, weights, dtype)
        self.mixed_memory = config["mixed_memory"]
        synapses, sensory = Synapses(self.map.adjacency_matrix), Synapses(self.map.sensory_adjacency_matrix)
        self.spec = LTCSpec(synapses, sensory, config["ode_unfolds"], config["epsilon"], config["solver"], self.mixed_memory)
        values = dict(weights)
        if config["implicit_param_constraints"]:
            values |= {name: np.logaddexp(values[name], self.dtype.type(0)) for name in POSITIVE}
        names = ("w", "sigma", "mu", "erev")
        self.tree: Tree = {name: values[name] for name in ("gleak", "vleak", "cm")}
        self.tree |= {"synapses": {name: values[name] for name in names}, "sensory": {name: values[f"sensory_{name}"] for name in names}}
        if self.mixed_memory:
            self.tree["lstm"] = self.memory()

    def zero(self, batch: int) -> Any:
        v, *c = self.zeros(batch, *("vc" if self.mixed_memory else "v")).values()
        return [v, *c] if c else v

    def begin(self, batch: int) -> Running:
        return _RunningLTC(self, batch)


class _RunningLTC(Running):
    def __init__(self, layer: LTC, batch: int):
        super().__init__(layer.zero(batch))
        self.layer, self.scanned, self.motors = layer, list(arrays_in(self.state)), layer.map.output_dim
        inputs = layer.inputs(batch)
        self.x, self.dt, self.u = inputs["x"], inputs["dt"], np.zeros_like(inputs["x"])
        given: Tree = {"u": self.u, "dt": self.dt} | ({"x": self.x} if layer.mixed_memory else {})
        self.step = LTCStep(layer.spec, layer.tree | given | dict(zip(("v0", "c0"), self.scanned, strict=False)))

    def advance(self, x: Array, dt: Array) -> None:
        self.x[0], self.dt[0] = x, dt
        self._mapped("input", self.x, self.u)
        fill(self.scanned, self.step())

    def output(self) -> Array:
        return self._mapped("output", self.scanned[0][:, : self.motors], None)

    def _mapped(self, place: str, a: Array, out: Array | None) -> Array:
        weights = self.layer.weights
        if (w := weights.get(f"{place}_w")) is None:
            return np.positive(a, out=out)
        a = np.multiply(a, w, out=out)
        return a if (b := weights.get(f"{place}_b")) is None else np.add(a, b, out=a)


class Stacked(Layer):
    """layers/stacked.py, in NumPy: stacked layers, each in one direction or both."""

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        super().__init__(config, weights, dtype)
        self.input_size, self.units, self.depth = config["input_size"], config["hidden_size"], config["num_layers"]
        self.directions = ("forward", "backward") if config["bidirectional"] else ("forward",)
        self.features = config.get("proj_size") or self.units
        self.steps_alone = len(self.directions) == 1

    def sizes(self) -> list[int]:
        """Features of each state."""
        raise NotImplementedError

    def direction(self, k: int, name: str, state: list[Array]) -> Running:
        """Layer k in one direction, with its states, (B, F) each."""
        raise NotImplementedError

    def zero(self, batch: int) -> Any:
        stack = self.depth * len(self.directions)
        return [np.zeros((stack, batch, size), self.dtype) for size in self.sizes()]

    def begin(self, batch: int) -> Running:
        return _RunningStacked(self, batch)

    def run(self, x: Array, dt: Array, lengths: Array | None, state: Any, sequences: bool | None = None) -> tuple[Array, Any]:
        if self.steps_alone:
            return super().run(x, dt, lengths, state, sequences)
        if self.config["go_backwards"]:
            x, dt = turned(x, lengths), turned(dt, lengths)
        final = self.zero(x.shape[1])
        fill(final, state)
        for k in range(self.depth):
            forward, backward = (self.direction(k, name, [a[2 * k + d] for a in final]) for d, name in enumerate(self.directions))
            back = run_over(backward, turned(x, lengths), turned(dt, lengths), lengths)
            x = np.concatenate([run_over(forward, x, dt, lengths), turned(back, lengths)], axis=2)
        if self.wants(sequences):
            return x, final
        return np.concatenate([last_of(x, lengths)[:, : self.features], x[0, :, self.features :]], axis=1), final


class _RunningStacked(Running):
    """All layers of a unidirectional model."""

    def __init__(self, layer: Stacked, batch: int):
        super().__init__(layer.zero(batch))
        self.layers = [layer.direction(k, "forward", [a[k] for a in self.state]) for k in range(layer.depth)]

    def advance(self, x: Array, dt: Array) -> None:
        for one in self.layers:
            one.advance(x, dt)
            x = one.output()

    def output(self) -> Array:
        return self.layers[-1].output()


class _OfCell(Stacked):
    """layers/cell_layer.py, in NumPy."""

    @property
    def cell(self) -> Cell:
        """The layer's cell."""
        raise NotImplementedError

    @property
    def definition(self) -> Definition:
        """Of the cell's step."""
        definition: Definition = self.cell.definition
        return definition

    def sizes(self) -> list[int]:
        return [self.units if self.definition.sizes[name] == "H" else self.features for name in self.definition.states]

    def direction(self, k: int, name: str, state: list[Array]) -> Running:
        return RunningCell(self.definition, self.weights["layers"][str(k)][name], state)


class RunningCell(Running):
    """One layer of a cell in one direction.

    Args:
        definition: of the cell.
        weights: by the names of the layer's parameters; missing biases are 0.
        state: its states, (B, F) each.
    """

    def __init__(self, definition: Definition, weights: Tree, state: list[Array]):
        super().__init__(state)
        w_x, batch = weights["Wx"], len(state[0])
        units = len(w_x) // len(definition.x)
        self.x, self.dt = np.zeros((1, 1, batch, w_x.shape[1]), w_x.dtype), np.zeros((1, 1, batch), w_x.dtype)

        def of(name: str, size: int) -> Array:
            return weights.get(name, np.zeros(size, w_x.dtype))[None]

        tree: Tree = {"x": self.x, "w_x": w_x[None], "b": of("bias", len(w_x))} | ({"dt": self.dt} if definition.is_timed else {})
        tree["weights"] = {name: weights[name][None] for name in definition.h_products}
        tree["parameters"] = {name: of(name, 1 if name in definition.shared else units) for name in definition.parameters}
        tree["initial"] = {name: a[None] for name, a in zip(definition.states, state, strict=True)}
        self.step = CellStep(definition, tree)

    def advance(self, x: Array, dt: Array) -> None:
        self.x[0, 0], self.dt[0, 0] = x, dt
        fill(self.state, [a[0] for a in self.step()])

    def output(self) -> Array:
        y: Array = self.state[0]
        return y


class RNN(_OfCell):
    """With tanh or relu."""

    @property
    def cell(self) -> Cell:
        return {"tanh": TANH_RNN, "relu": RELU_RNN}[self.config["activation"]]


class GRU(_OfCell):
    """As in torch."""

    cell = GRU_CELL


class LSTM(_OfCell):
    """As in torch, optionally with a projection."""

    @property
    def cell(self) -> Cell:
        return LSTM_CELL if self.config.get("proj_size") is None else PROJECTED_LSTM

    def zero(self, batch: int) -> Any:
        return tuple(super().zero(batch))


class Recurrent(_OfCell):
    """layers/recurrent.py, in NumPy; the cell is described, or there."""

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        super().__init__(config, weights, dtype)
        cell = config["cell"]
        self._cell = cell if isinstance(cell, Cell) else cell_from_config("load", cell, ())
        self.timed = self.definition.is_timed

    @property
    def cell(self) -> Cell:
        return self._cell


class LQNet(_OnMap):
    """layers/quantum.py, in NumPy, without noise."""

    harmonic = False

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        super().__init__(config, weights, dtype)
        recurrent, omega = self.map.get_recurrent_mask(), weights["Omega"]
        self.spec = QuantumSpec(config["nu_0"], config["beta"], self.harmonic)
        self.tree: Tree = {
            "w_x": weights["drive"]["weight"] * self.map.get_input_mask().T,
            "b": weights["drive"]["bias"],
            "omega": (omega + omega.T) / 2 * np.maximum(recurrent, recurrent.T),
            "w_h": (weights["R"] * recurrent).T,
            "tau": self.tau(),
        }
        self.tree = {name: a.astype(dtype) for name, a in self.tree.items()}

    def tau(self) -> Array:
        """The units' time constants in units of 1 / nu, (H,)."""
        return np.ones(self.units)

    def zero(self, batch: int) -> Any:
        return [*self.zeros(batch, "h_c", "h_s").values(), np.zeros((batch, 1), self.dtype)]

    def begin(self, batch: int) -> Running:
        return _RunningQuantum(self, batch)


class CTRQNet(LQNet):
    """An LQNet with time constants and optionally an oscillating drive."""

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        self.harmonic = config["use_harmonic_embedding"]
        super().__init__(config, weights, dtype)
        if self.harmonic:
            drive = weights["drive"]
            self.tree |= {"f": dtype.type(FREQUENCY_UNIT) * drive["frequency"], "phi": drive["phase"]}

    def tau(self) -> Array:
        return self.dtype.type(self.config["time_scale_factor"]) * np.logaddexp(self.weights["time_scale"], self.dtype.type(0))


class _RunningQuantum(Running):
    def __init__(self, layer: LQNet, batch: int):
        super().__init__(layer.zero(batch))
        self.inputs, self.t = layer.inputs(batch), np.zeros((1, batch), layer.dtype)
        *self.scanned, self.clock = self.state
        given = self.inputs | ({"t": self.t} if layer.spec.harmonic else {})
        self.step = QuantumStep(layer.spec, layer.tree | given | dict(zip(("h_c0", "h_s0"), self.scanned, strict=True)))

    def advance(self, x: Array, dt: Array) -> None:
        self.inputs["x"][0], self.inputs["dt"][0] = x, dt
        self.clock += self.inputs["dt"][0][:, None]
        self.t[0] = self.clock[:, 0]
        fill(self.scanned, list(self.step()))

    def output(self) -> Array:
        h_c, h_s = self.scanned
        y: Array = h_c + h_s
        return y


class StrideAware(Layer):
    """layers/strides.py, in NumPy: one layer per stride s, which takes every s-th step.

    Args:
        config: as in Layer.
        weights: as in Layer.
        dtype: as in Layer.
        layers: one per stride.
    """

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any], layers: list[Layer]):
        super().__init__(config, weights, dtype)
        self.layers, self.strides = layers, config["stride_lengths"]
        self.input_size, self.timed = layers[0].input_size, layers[0].timed

    def zero(self, batch: int) -> Any:
        clock = [np.zeros((batch, 1), np.int32), np.zeros((batch, len(self.strides)), self.dtype)]
        return [*(layer.zero(batch) for layer in self.layers), clock]

    def begin(self, batch: int) -> Running:
        return _RunningStrides(self, batch)


class _RunningStrides(Running):
    def __init__(self, layer: StrideAware, batch: int):
        self.each, (self.taken, self.elapsed) = [one.begin(batch) for one in layer.layers], layer.zero(batch)[-1]
        super().__init__([*(one.state for one in self.each), [self.taken, self.elapsed]])
        self.strides = layer.strides
        self.turn = MOST_STEPS - MOST_STEPS % math.lcm(*self.strides)

    def advance(self, x: Array, dt: Array) -> None:
        self.elapsed += dt[:, None]
        for k, (one, stride) in enumerate(zip(self.each, self.strides, strict=True)):
            own = self.taken[:, 0] % stride == 0
            if not own.any():
                continue
            before = [] if own.all() else [(a, a.copy()) for a in arrays_in(one.state)]
            one.advance(x, self.elapsed[:, k])
            for a, old in before:
                keep_old(a, old, own)
            self.elapsed[own, k] = 0
        self.taken += 1
        if self.turn:
            self.taken[self.taken >= self.turn] -= self.turn

    def output(self) -> Array:
        return np.concatenate([one.output() for one in self.each], axis=1)

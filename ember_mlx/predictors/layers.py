"""Every layer of the package in NumPy; the steps are those of the scans' NumPy forms."""

import math
from typing import Any

import numpy as np

from ..scans.cfc.reference import CfCStep
from ..scans.cfc.spec import CfCSpec
from ..scans.gated.reference import GatedStep
from ..scans.gated.spec import GatedSpec
from ..scans.ltc.reference import LTCStep
from ..scans.ltc.spec import LTCSpec
from ..scans.ltc.synapses import Synapses
from ..scans.quantum.reference import QuantumStep
from ..scans.quantum.spec import FREQUENCY_UNIT, QuantumSpec
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


class Gated(Layer):
    """layers/gated.py, in NumPy: stacked layers, each in one direction or both."""

    states: tuple[str, ...] = ("h",)

    def __init__(self, config: Tree, weights: Tree, dtype: np.dtype[Any]):
        super().__init__(config, weights, dtype)
        self.input_size, self.units, self.depth = config["input_size"], config["hidden_size"], config["num_layers"]
        self.directions = ("forward", "backward") if config["bidirectional"] else ("forward",)
        self.features = config.get("proj_size") or self.units
        self.steps_alone = len(self.directions) == 1
        self.spec = GatedSpec(self.cell)

    @property
    def cell(self) -> str:
        """The cell's name in the scan."""
        return type(self).__name__.lower()

    def zero(self, batch: int) -> Any:
        stack, sizes = self.depth * len(self.directions), {"h": self.features, "c": self.units}
        return [np.zeros((stack, batch, sizes[name]), self.dtype) for name in self.states]

    def begin(self, batch: int) -> Running:
        return _RunningGated(self, batch)

    def run(self, x: Array, dt: Array, lengths: Array | None, state: Any, sequences: bool | None = None) -> tuple[Array, Any]:
        if self.steps_alone:
            return super().run(x, dt, lengths, state, sequences)
        x = turned(x, lengths) if self.config["go_backwards"] else x
        final = self.zero(x.shape[1])
        fill(final, state)
        for k in range(self.depth):
            forward, backward = (
                RunningDirection(self.spec, self.tree(k, direction), [a[2 * k + d] for a in final])
                for d, direction in enumerate(self.directions)
            )
            outputs = run_over(forward, x, dt, lengths), turned(run_over(backward, turned(x, lengths), dt, lengths), lengths)
            x = np.concatenate(outputs, axis=2)
        if self.wants(sequences):
            return x, final
        return np.concatenate([last_of(x, lengths)[:, : self.features], x[0, :, self.features :]], axis=1), final

    def tree(self, k: int, direction: str) -> Tree:
        """The weights of one layer and direction, in the form that the scan takes."""
        return gated_tree(self.spec, self.weights["layers"][str(k)][direction])


def gated_tree(spec: GatedSpec, weights: Tree) -> Tree:
    """The weights of one direction, in the form that the scan takes."""
    names = {"Wx": "w_x", "Wh": "w_h", "bias": "b", "bhn": "b_hn", "Wr": "w_hr"}
    tree = {ours: weights[name][None] for name, ours in names.items() if name in weights}
    rows = tree["w_x"].shape[1]
    tree.setdefault("b", np.zeros((1, rows), tree["w_x"].dtype))
    return tree | ({"b_hn": np.zeros((1, rows // 3), tree["w_x"].dtype)} if spec.cell == "gru" and "b_hn" not in tree else {})


class RunningDirection(Running):
    """One layer in one direction.

    Args:
        spec: the scan's specification.
        tree: the scan's weights.
        state: [h] or [h, c], (B, H) each.
    """

    def __init__(self, spec: GatedSpec, tree: Tree, state: list[Array]):
        super().__init__(state)
        self.x = np.zeros((1, 1, len(state[0]), tree["w_x"].shape[2]), state[0].dtype)
        self.step = GatedStep(spec, tree | {"x": self.x} | {f"{name}0": a[None] for name, a in zip("hc", state, strict=False)})

    def advance(self, x: Array, dt: Array) -> None:
        self.x[0, 0] = x
        fill(self.state, [a[0] for a in self.step()])

    def output(self) -> Array:
        h: Array = self.state[0]
        return h


class _RunningGated(Running):
    """All layers of a unidirectional model."""

    def __init__(self, layer: Gated, batch: int):
        super().__init__(layer.zero(batch))
        self.layers = [RunningDirection(layer.spec, layer.tree(k, "forward"), [a[k] for a in self.state]) for k in range(layer.depth)]

    def advance(self, x: Array, dt: Array) -> None:
        for one in self.layers:
            one.advance(x, dt)
            x = one.output()

    def output(self) -> Array:
        return self.layers[-1].output()


class RNN(Gated):
    """With tanh or relu."""

    @property
    def cell(self) -> str:
        activation: str = self.config["activation"]
        return activation


class GRU(Gated):
    """As in torch."""


class LSTM(Gated):
    """As in torch, optionally with a projection."""

    states = ("h", "c")

    def zero(self, batch: int) -> Any:
        return tuple(super().zero(batch))


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

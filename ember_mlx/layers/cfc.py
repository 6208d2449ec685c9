"""The closed-form continuous-time layer."""

from itertools import pairwise
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..scans.batched import Scan, Scans
from ..scans.cfc.scan import CFC
from ..scans.cfc.spec import MODES, CfCSpec
from ..scans.ops import project
from ..scans.pointwise import ACTIVATIONS
from ..validation import check_choice, check_flag, check_integer, check_positive, check_probability, check_size
from ..wiring import NeuronMap
from ..wiring.stages import head_masks, stage_units
from .arguments import Steps, compute_dtype
from .base import Check, RecurrentLayer
from .maps import built_map, parameter_of_map
from .weights import Weights, linear_weights, lstm_weights

OUTPUTS = ("units", "motor")
DEFAULT_BACKBONE_UNITS = 128
Tree = dict[str, Any]


class CfC(RecurrentLayer):
    r"""A closed-form continuous-time layer on a neuron map.

    One step, with dt the time elapsed before it::

        (1) z      = backbone([x, h])
        (2) f, g   = W_f z + b_f, W_g z + b_g
        (3) t_interp = sigma((W_ta z + b_ta) dt + (W_tb z + b_tb))
        default: h' = tanh(f) (1 - t_interp) + tanh(g) t_interp
        no_gate: h' = tanh(f) + tanh(g) t_interp
        pure:    h' = A - A exp(-dt (|w_tau| + |f|)) f

    On a map with layers (:class:`NCPMap`) each layer is such a step without a backbone. It takes the output of the layer before it in the
    same time step; recurrence is dense within a layer, and the map masks its other inputs. On any other map a single step updates all
    units; the map's sensory synapses mask x, and its recurrent ones h.

    Args:
        neuron_map: the units and their synapses. An int stands for ``FullyConnectedMap(int)``. The layer keeps a copy.
        input_size: I, features of x; optional if the map is already built.
        mode: "default", "no_gate" or "pure".
        activation: the backbone's: "lecun_tanh" (1.7159 tanh(0.666 a)), "tanh", "relu", "silu" or "gelu".
        backbone_units: width Z of each backbone layer; default 128.
        backbone_layers: number of backbone layers; default 1 on a fully connected map, else 0.
        backbone_dropout: probability of dropping a backbone unit at a step, in training. As with mlx.nn.Dropout, gradients are wrong inside
            ``mx.checkpoint``, which draws a different mask in the backward pass.
        mixed_memory: whether an LSTM step precedes each CfC step and updates its h.
        time_scale_factor: multiplies every dt. None: the value in the map's neuron_params, else 1.
        mask_time_heads: whether the map also masks t_a and t_b, or only f and g (as the package ncps does).
        proj_size: if given, y is a learned linear map of the output to this many features.
        output: "units": y holds all H units; "motor": the map's O motor units.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first. As in Keras, y is then in the order
            of processing. Each step keeps its own time delta.
        checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
            recomputes each segment. None: keep everything.

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, return_states, output)``

        x: (B, T, I), or (T, I) without batch; floating point.
        initial_state: [h, t], with mixed_memory [h, c, t], each (B, H) or None for zeros.
        time_deltas: elapsed time before each step, in any unit: (B, T) or (B, T, 1), with axes in the order of x's, or a scalar; 1 if
            None. Must not be negative.
        lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, cost no time on the CPU, and y is 0 there.

    Returns:
        y (B, H), or (B, T, H) with return_sequences (O or proj_size instead of H if chosen), in the promoted dtype of x and the
        parameters. With return_state (y, [h, t]) or (y, [h, c, t]): float32 (B, H) each; t is each unit's clock, the time that it
        has integrated so far, scaled by time_scale_factor.
        With return_states the last item is the states after every step, each (..., B, T, F) instead of (..., B, F).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of a wrong shape or value; a map that is not built, without input_size; a backbone on a
            map that is not fully connected.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import CfC, NCPMap
        >>> layer = CfC(NCPMap(inter_neurons=10, command_neurons=5, motor_neurons=5, sensory_neurons=10, seed=42))
        >>> y, [h, t] = layer(mx.zeros((32, 7, 10)), time_deltas=0.5, return_state=True)
        >>> y.shape, h.shape, t[0, 0].item()
        ((32, 20), (32, 20), 3.5)

    Source: Hasani et al., Closed-form continuous-time neural networks, Nature Machine Intelligence 4, 992-1003 (2022),
    https://doi.org/10.1038/s42256-022-00556-7.
    """

    read_options = ("output",)
    settings: ClassVar[dict[str, Check]] = RecurrentLayer.settings | {
        "backbone_dropout": check_probability,
        "time_scale_factor": check_positive,
        "output": lambda owner, name, value: check_choice(owner, name, value, OUTPUTS),
    }

    def __init__(
        self,
        neuron_map: NeuronMap | int,
        input_size: int | None = None,
        *,
        mode: str = "default",
        activation: str = "lecun_tanh",
        backbone_units: int | None = None,
        backbone_layers: int | None = None,
        backbone_dropout: float = 0.0,
        mixed_memory: bool = False,
        time_scale_factor: float | None = None,
        mask_time_heads: bool = True,
        proj_size: int | None = None,
        output: str = "units",
        return_sequences: bool = False,
        return_state: bool = False,
        batch_first: bool = True,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
    ):
        owner = type(self).__name__
        neuron_map = built_map(owner, neuron_map, input_size)
        flags = return_sequences, return_state, batch_first, go_backwards, checkpoint_steps
        super().__init__(neuron_map.require_input_dim(), neuron_map.units, *flags)
        self.neuron_map = neuron_map
        self.mode, self.activation = check_choice(owner, "mode", mode, MODES), check_choice(owner, "activation", activation, ACTIVATIONS)
        self.backbone_units, self.backbone_layers = backbone_size(owner, neuron_map, backbone_units, backbone_layers)
        self.backbone_dropout = backbone_dropout
        self.mixed_memory = check_flag(owner, "mixed_memory", mixed_memory)
        self.time_scale_factor = parameter_of_map(neuron_map, "time_scale_factor", time_scale_factor, 1.0)
        self.mask_time_heads = check_flag(owner, "mask_time_heads", mask_time_heads)
        self.proj_size = None if proj_size is None else check_integer(owner, "proj_size", proj_size)
        self.output = output
        self._make_parameters()
        self.made()

    def _make_parameters(self) -> None:
        """Create the stages, the LSTM of the mixed memory and the output projection."""
        owner, H, ranges = type(self).__name__, self.units, self.stage_units
        masks = head_masks(owner, self.neuron_map, self.mode, self.mask_time_heads)
        inputs = [self.input_size, *(stop - start for start, stop in ranges[:-1])]
        width, depth = self.backbone_units or 0, self.backbone_layers
        if depth:
            check_size(owner, "backbone_units", depth, width, max(width, self.input_size + H, 4 * H))
        check_size(owner, "neuron_map", 4 * H, H + self.input_size)
        if self.proj_size is not None:
            check_size(owner, "proj_size", self.proj_size, H)
        self.keep_map_id(self.neuron_map)
        self.stages = [
            CfCStage(size, stop - start, self.mode, width, depth, mask)
            for size, (start, stop), mask in zip(inputs, ranges, masks, strict=True)
        ]
        if self.mixed_memory:
            self.lstm = lstm_weights(self.input_size, H)
        if self.proj_size is not None:
            size = self.neuron_map.output_dim if self.output == "motor" else H
            self.proj = linear_weights(self.proj_size, size)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether there is dropout."""
        return self.backbone_dropout > 0

    @property
    def output_size(self) -> int:
        """Features of y, unless a call asks for another output."""
        return self.proj_size or (self.neuron_map.output_dim if self.output == "motor" else self.units)

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The states in order: h, c (with mixed memory), t."""
        return ("h", "c", "t") if self.mixed_memory else ("h", "t")

    @property
    def stage_units(self) -> tuple[tuple[int, int], ...]:
        """The units [start, stop) of each layer of the map, in the order of computation; a single range for a map without layers."""
        return stage_units(type(self).__name__, self.neuron_map)

    def recurrent_weights(self) -> mx.array:
        """The masked weights between units, indexed [source, target]: one (H, H) for each head.

        Raises:
            ValueError: a layer with a backbone, which connects every unit to every other.
        """
        if self.backbone_layers:
            raise bad_argument(type(self).__name__, "backbone_layers", "be 0 for weights between units", self.backbone_layers)
        ranges = self.stage_units
        columns: dict[int, mx.array] = {}
        for k, ((start, _), stage) in enumerate(zip(ranges, self.stages, strict=True)):
            weight = stage.masked_heads()  # (heads, H_s, inputs + H_s)
            own, others = weight[..., stage.inputs :], weight[..., : stage.inputs]
            columns[start] = _spread(own, start, self.units)
            if k:
                columns[start] = columns[start] + _spread(others, ranges[k - 1][0], self.units)
        return mx.concatenate([columns[start] for start in sorted(columns)], axis=1).swapaxes(1, 2)

    def scans(self, steps: Steps, state: list[mx.array | None]) -> Scans:  # type: ignore[override]
        """The scan of the layer; see RecurrentLayer.scans."""
        dtype, shape = compute_dtype(steps.x, self.dtype), (steps.x.shape[1], self.units)
        initial = dict(zip(self.state_names, (mx.zeros(shape, dtype) if a is None else a.astype(dtype) for a in state), strict=True))
        dt = steps.dt.astype(dtype) * mx.array(self.time_scale_factor, dtype)
        spec = CfCSpec(self.stage_units, self.mode, self.activation, self.mixed_memory)
        outputs = yield Scan(CFC, spec, self._arrays(steps, initial, dt))
        return outputs[0], [*(steps.kept(a) for a in outputs), initial["t"] + steps.elapsed(dt)]

    def _arrays(self, steps: Steps, initial: dict[str, mx.array], dt: mx.array) -> Tree:
        """The scan's arrays: x and the weights in their own dtype, states and times in the dtype of sums."""
        arrays: Tree = {"x": steps.x, "dt": dt, "h0": initial["h"], "stages": [stage.scan_tree() for stage in self.stages]}
        arrays |= self._dropout(dt, steps.keys(self.backbone_layers)) | ({} if steps.lengths is None else {"lengths": steps.lengths})
        if self.mixed_memory:
            lstm = self.lstm
            arrays |= {"c0": initial["c"], "lstm": {"w_x": lstm["Wx"], "w_h": lstm["Wh"], "b": lstm["bias"]}}
        return arrays

    def _dropout(self, dt: mx.array, keys: list[mx.array | None]) -> Tree:
        """The backbone's dropout factors, drawn for all steps (T, B) before the scan."""
        p = self.backbone_dropout
        if not (self.training and p > 0 and self.backbone_layers):
            return {}
        shape = (*dt.shape, self.backbone_units or 0)
        drawn = [mx.random.bernoulli(1 - p, shape, key) for key in keys]
        return {"dropout": [kept.astype(dt.dtype) / (1 - p or 1) for kept in drawn]}

    def check_read_options(self, *, output: str | None = None) -> None:  # type: ignore[override]
        """Raise a ValueError for an unknown output."""
        if output is None:
            return
        check_choice(type(self).__name__, "output", output, OUTPUTS)
        if self.proj_size is not None and output != self.output:
            raise bad_argument(type(self).__name__, "output", f"be {self.output!r}, for which the projection was made", repr(output))

    def read_out(self, y: mx.array, steps: Steps, *, output: str | None = None) -> mx.array:
        """Select all units or the motor units, and apply the projection if there is one."""
        if (output or self.output) == "motor":
            y = y[..., : self.neuron_map.output_dim]
        if self.proj_size is None:
            return y
        y = project(y, self.proj["weight"].astype(y.dtype), self.proj["bias"].astype(y.dtype))
        return y if steps.valid is None else mx.where(steps.valid[:, :, None], y, 0)

    def _extra_repr(self) -> str:
        kinds = [f"mode={self.mode}"]
        if self.backbone_layers:
            kinds.append(f"backbone={self.backbone_layers} x {self.backbone_units} {self.activation}")
        if self.mixed_memory:
            kinds.append("mixed_memory")
        return f"{self.neuron_map!r}, {', '.join(kinds)}"


class CfCStage(nn.Module):
    """The parameters of one CfC step: `backbone` and `heads`, each {weight (outputs, inputs), bias}; w_tau and A in pure mode.

    The first product's weight multiplies [u, h], where u is the stage's input. The heads f, g, t_a, t_b are stacked by rows.
    """

    def __init__(self, inputs: int, units: int, mode: str, width: int, depth: int, mask: NDArray[np.float32] | None):
        super().__init__()
        self.inputs = inputs
        # A NumPy mask is not a parameter, so it cannot be unfrozen or trained. Contiguous: mx.export_function ignores a constant's strides.
        self.mask = None if mask is None else np.ascontiguousarray(mask)
        sizes = [inputs + units, *[width] * depth]
        if depth:
            pairs = pairwise(sizes)
            self.backbone = [linear_weights(n, m) for m, n in pairs]
        blocks = 1 if mode == "pure" else 4
        self.heads = linear_weights(units, sizes[-1], blocks)
        if mode == "pure":
            self.w_tau, self.A = mx.zeros((units,)), mx.ones((units,))

    def masked_heads(self) -> mx.array:
        """The heads' masked weights on [u, h] in a stage without backbone, (heads, H_s, inputs + H_s)."""
        weight = self.heads["weight"]
        if self.mask is not None:
            weight = weight * mx.array(self.mask, weight.dtype)
        units = weight.shape[1] - self.inputs
        return weight.reshape(-1, units, weight.shape[1])

    def scan_tree(self) -> Tree:
        """The stage's arrays for the scan."""
        layers: list[Weights] = [*self.get("backbone", []), self.heads]
        first, rest = layers[0], layers[1:]
        weight = first["weight"]
        if self.mask is not None:
            weight = weight * mx.array(self.mask, weight.dtype)
        tree: Tree = {"w_x": weight[:, : self.inputs], "w_h": weight[:, self.inputs :], "b": first["bias"]}
        tree |= {name: self[name] for name in ("w_tau", "A") if name in self}
        if rest:
            tree["dense"] = [{"w": layer["weight"], "b": layer["bias"]} for layer in rest]
        return tree

    def _extra_repr(self) -> str:
        return f"inputs={self.inputs}"


def _spread(weight: mx.array, start: int, units: int) -> mx.array:
    """(heads, H_s, sources) -> (heads, H_s, units): zeros for all units except the sources, which begin at `start`."""
    return mx.pad(weight, [(0, 0), (0, 0), (start, units - start - weight.shape[2])])


def backbone_size(owner: str, neuron_map: NeuronMap, units: int | None, layers: int | None) -> tuple[int | None, int]:
    """The backbone's (units, layers) with defaults filled in; (None, 0) without a backbone."""
    possible = neuron_map.is_fully_connected and neuron_map.layers is None
    if layers is None:
        layers = 1 if possible or units is not None else 0
    layers = check_integer(owner, "backbone_layers", layers, minimum=0)
    units = DEFAULT_BACKBONE_UNITS if units is None else check_integer(owner, "backbone_units", units)
    if layers and not possible:
        raise bad_argument(owner, "neuron_map", "be fully connected and without layers to have a backbone", repr(neuron_map))
    return (units, layers) if layers else (None, 0)

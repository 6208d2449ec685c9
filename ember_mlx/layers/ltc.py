"""The liquid time-constant layer."""

from typing import Any, ClassVar, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from ..errors import bad_argument
from ..scans.batched import Scan, Scans
from ..scans.dispatch import scan
from ..scans.ltc.ops import drives, synapse_sums
from ..scans.ltc.scan import LTC as RECURRENCE
from ..scans.ltc.spec import SOLVERS, LTCSpec
from ..scans.ltc.synapses import Synapses
from ..validation import check_choice, check_flag, check_integer, check_not_negative, check_positive, check_size
from ..wiring import NeuronMap, map_to_config
from .arguments import Steps, compute_dtype
from .base import Check, RecurrentLayer
from .maps import built_map
from .weights import lstm_weights

MAPPINGS = ("affine", "linear", None)
PARAMETERS = ("w", "sigma", "mu", "erev")  # one value per synapse
POSITIVE = ("w", "sensory_w", "cm", "gleak")
RANGES = {"gleak": (0.001, 1), "vleak": (-0.2, 0.2), "cm": (0.4, 0.6), "w": (0.001, 1), "sigma": (3, 8), "mu": (0.3, 0.8)}
SMALLEST_CM = 1e-6  # with cm = 0, v would be 0 / 0 where dt is 0
BLOCK_VALUES = 2**22  # values per block in `time_constants`, to limit memory
Tree = dict[str, Any]


class LTC(RecurrentLayer):
    r"""A liquid time-constant layer on a neuron map: leaky units with synapses whose conductance depends on the source unit.

    One step, with the mapped input u_i = input_w_i x_i + input_b_i and dt the time elapsed before it, computes once::

        (1) s_ij = sensory_w_ij sigma(sensory_sigma_ij (u_i - sensory_mu_ij));  num_s_j = sum_i s_ij sensory_erev_ij;  den_s_j = sum_i s_ij

    and `ode_unfolds` times, with delta = dt / ode_unfolds::

        (2) s_ij = w_ij sigma(sigma_ij (v_i - mu_ij))
        (3) num_j = gleak_j vleak_j + sum_i s_ij erev_ij + num_s_j
        (4) den_j = gleak_j + sum_i s_ij + den_s_j
        (5) v_j = (cm_j v_j + delta num_j) / (cm_j + delta (den_j + epsilon))

    The output is output_w_j v_j + output_b_j for the map's O motor units. Sums are over the map's synapses: a missing one has no
    parameters and costs nothing. With dt = 0, v does not change; with a very long dt it reaches the steady state.

    The other solvers integrate dv_j/dt = (num_j - den_j v_j) / cm_j in `ode_unfolds` substeps: "explicit" by Euler's method, "rk4" by the
    classical Runge-Kutta method. They are exact to a higher order for short dt and unstable for long ones: keep dt / ode_unfolds below
    about 2 cm_j / den_j, twice the value of `time_constants`.

    Args:
        neuron_map: the units and their synapses. An int stands for ``FullyConnectedMap(int)``. The layer keeps a copy.
        input_size: I, features of x; optional if the map is already built.
        input_mapping: "affine" (as above), "linear" (without input_b) or None (u = x).
        output_mapping: "affine" (as above), "linear" (without output_b) or None (the units' v).
        ode_unfolds: number of equal substeps of each dt.
        epsilon: added to the denominator in the solver "semi_implicit".
        solver: "semi_implicit" (as above), "explicit" or "rk4".
        implicit_param_constraints: whether w, sensory_w, cm and gleak are the softplus of the parameters of these names, and so positive;
            otherwise call `apply_weight_constraints` after each optimizer step.
        mixed_memory: whether an LSTM step on (x, (v, c)) precedes each LTC step, which starts from its h.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first. As in Keras, y is then in the order
            of processing. Each step keeps its own time delta.
        checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
            recomputes each segment. None: keep everything.

    Parameters: w, sigma, mu, erev have one value for each synapse of the map, (S,), ordered by target unit, then by source; with
    sensory_ before the name for each synapse of an input. gleak, vleak, cm (H,); input_w, input_b (I,); output_w, output_b (O,).

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, return_states)``

        x: (B, T, I), or (T, I) without batch; floating point.
        initial_state: v (B, H), or None for zeros; with mixed_memory a list [v, c].
        time_deltas: elapsed time before each step, in any unit: (B, T) or (B, T, 1), with axes in the order of x's, or a scalar; 1 if
            None. Must not be negative.
        lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, cost no time on the CPU, and y is 0 there.

    Returns:
        y (B, T, O), or (B, O) without return_sequences, in the promoted dtype of x and the parameters. With return_state (y, v), or
        with mixed_memory (y, [v, c]): float32 (B, H) each.
        With return_states the last item is the states after every step, each (..., B, T, F) instead of (..., B, F).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of a wrong shape or value; a map that is not built, without input_size.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import LTC, FullyConnectedMap
        >>> layer = LTC(neuron_map=FullyConnectedMap(units=20, input_dim=10, output_dim=5))
        >>> y, v = layer(mx.zeros((32, 7, 10)), time_deltas=0.5, return_state=True)
        >>> y.shape, v.shape
        ((32, 7, 5), (32, 20))

    Source: Hasani et al., Liquid time-constant networks, AAAI 35, 7657-7666 (2021), https://doi.org/10.1609/aaai.v35i9.16936.
    """

    settings: ClassVar[dict[str, Check]] = RecurrentLayer.settings | {
        "ode_unfolds": check_integer,
        "epsilon": check_not_negative,
        "solver": lambda owner, name, value: check_choice(owner, name, value, SOLVERS),
    }

    def __init__(
        self,
        neuron_map: NeuronMap | int,
        input_size: int | None = None,
        *,
        input_mapping: str | None = "affine",
        output_mapping: str | None = "affine",
        ode_unfolds: int = 6,
        epsilon: float = 1e-8,
        solver: str = "semi_implicit",
        implicit_param_constraints: bool = True,
        mixed_memory: bool = False,
        return_sequences: bool = True,
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
        self.input_mapping = check_mapping(owner, "input_mapping", input_mapping)
        self.output_mapping = check_mapping(owner, "output_mapping", output_mapping)
        self.ode_unfolds, self.epsilon, self.solver = ode_unfolds, epsilon, solver
        self.implicit_param_constraints = check_flag(owner, "implicit_param_constraints", implicit_param_constraints)
        self.mixed_memory = check_flag(owner, "mixed_memory", mixed_memory)
        self._synapses, self._sensory = Synapses(neuron_map.adjacency_matrix), Synapses(neuron_map.sensory_adjacency_matrix)
        check_size(owner, "ode_unfolds", self._spec().evaluations, max(1, self._synapses.count))
        self._make_parameters()
        self.made()

    def _make_parameters(self) -> None:
        """Create the units' and synapses' parameters, the mappings, and the LSTM of the mixed memory."""
        H, I, O = self.units, self.input_size, self.neuron_map.output_dim
        self.keep_map_id(self.neuron_map)
        for name in ("gleak", "vleak", "cm"):
            self[name] = mx.random.uniform(*RANGES[name], (H,))
        kinds = (
            ("", self._synapses, self.neuron_map.adjacency_matrix),
            ("sensory_", self._sensory, self.neuron_map.sensory_adjacency_matrix),
        )
        for prefix, synapses, matrix in kinds:
            for name in ("w", "sigma", "mu"):
                self[prefix + name] = mx.random.uniform(*RANGES[name], (synapses.count,))
            self[prefix + "erev"] = mx.array(matrix[synapses.sources, synapses.targets], mx.float32)
        for place, mapping, size in (("input", self.input_mapping, I), ("output", self.output_mapping, O)):
            if mapping is not None:
                self[f"{place}_w"] = mx.ones((size,))
            if mapping == "affine":
                self[f"{place}_b"] = mx.zeros((size,))
        if self.mixed_memory:
            self.lstm = lstm_weights(I, H)

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The states in order: v, and with mixed memory c."""
        return ("v", "c") if self.mixed_memory else ("v",)

    @property
    def bare_state(self) -> bool:  # type: ignore[override]
        """Whether the state is v itself instead of a list."""
        return not self.mixed_memory

    def recurrent_weights(self) -> mx.array:
        """w erev of each synapse between units, indexed [source, target]: (1, H, H), 0 where there is no synapse."""
        w = mx.logaddexp(self.w, mx.array(0, self.w.dtype)) if self.implicit_param_constraints else self.w
        places = self._synapses.sources * self.units + self._synapses.targets
        return mx.zeros((self.units**2,), w.dtype).at[mx.array(places)].add(w * self.erev).reshape(1, self.units, self.units)

    def prune(self, threshold: float) -> "LTC":
        """Return a smaller layer without the weak synapses; it computes what this one would with their w set to 0.

        Fewer synapses take less time and memory per step. The new layer can be trained further, pruned again and saved.

        Args:
            threshold: synapses whose w or sensory_w is below this are dropped. It is compared with the conductance, after the softplus of
                `implicit_param_constraints`.

        Returns:
            A new layer; this one is unchanged.

        Raises:
            TypeError: threshold is not a number.
            ValueError: threshold is not positive and finite.

        Example:
            >>> from ember_mlx import LTC
            >>> layer = LTC(20, 4)
            >>> fewer = layer.prune(1.0)
            >>> bool(fewer.neuron_map.synapse_count < layer.neuron_map.synapse_count), bool(fewer.prune(1.0).w.size == fewer.w.size)
            (True, True)
        """
        threshold = check_positive(type(self).__name__, "threshold", threshold)
        kept = {"": self._conductances("w") >= threshold, "sensory_": self._conductances("sensory_w") >= threshold}
        masks = []
        for prefix, synapses in (("", self._synapses), ("sensory_", self._sensory)):
            mask = np.zeros((synapses.inputs, synapses.units), bool)
            mask[synapses.sources, synapses.targets] = kept[prefix]
            masks.append(mask)
        config = self.get_config() | {"neuron_map": map_to_config(self.neuron_map.prune(*masks))}
        layer = cast(LTC, type(self).from_config(config))
        layer.set_dtype(self.dtype)
        values = {name: a for name, a in tree_flatten(self.parameters()) if name != "map_id"}
        for prefix, mask in kept.items():
            values |= {f"{prefix}{name}": values[f"{prefix}{name}"][mx.array(mask.nonzero()[0])] for name in PARAMETERS}
        layer.load_weights(list(values.items()), strict=False)
        layer.freeze(keys=list(self._no_grad), recurse=False)
        return cast(LTC, layer.train(self.training))

    def _conductances(self, name: str) -> NDArray[np.float32]:
        """The synapses' conductances, (S,)."""
        w = self[name].astype(mx.float32)
        return np.array(mx.logaddexp(w, mx.zeros_like(w)) if self.implicit_param_constraints else w)

    def apply_weight_constraints(self) -> None:
        """Clip w, sensory_w and gleak to at least 0, and cm to at least 1e-6. Does nothing with implicit_param_constraints.

        Example:
            >>> from ember_mlx import LTC
            >>> layer = LTC(4, 2, implicit_param_constraints=False)
            >>> layer.w = layer.w - 0.5  # as an optimizer step may do
            >>> layer.apply_weight_constraints()
            >>> layer.w.min().item()
            0.0
        """
        for name in () if self.implicit_param_constraints else POSITIVE:
            self[name] = mx.maximum(self[name], mx.array(SMALLEST_CM if name == "cm" else 0, self[name].dtype))

    def scans(self, steps: Steps, state: list[mx.array | None]) -> Scans:  # type: ignore[override]
        """The scan of the layer; see RecurrentLayer.scans. Its output is v of all units."""
        outputs = yield Scan(RECURRENCE, self._spec(), self._arrays(steps, state))
        return outputs[0], [steps.kept(a) for a in outputs]

    def _spec(self) -> LTCSpec:
        return LTCSpec(self._synapses, self._sensory, self.ode_unfolds, self.epsilon, self.solver, self.mixed_memory)

    def _arrays(self, steps: Steps, state: list[mx.array | None]) -> Tree:
        """The scan's arrays."""
        dtype, shape = compute_dtype(steps.x, self.dtype), (steps.x.shape[1], self.units)
        values = {name: a.astype(dtype) for name, a in self.items() if isinstance(a, mx.array) and name != "map_id"}
        if self.implicit_param_constraints:
            zero = mx.array(0, dtype)  # softplus; nn.softplus is compiled and cannot be exported
            values |= {name: mx.logaddexp(values[name], zero) for name in POSITIVE}
        x = u = steps.x.astype(dtype)
        if self.input_mapping is not None:
            u = u * values["input_w"]
        if self.input_mapping == "affine":
            u = u + values["input_b"]
        arrays: Tree = {"u": u, "dt": steps.dt.astype(dtype)} | {name: values[name] for name in ("gleak", "vleak", "cm")}
        initial = [mx.zeros(shape, dtype) if a is None else a.astype(dtype) for a in state]
        arrays |= dict(zip(("v0", "c0"), initial, strict=False)) | ({} if steps.lengths is None else {"lengths": steps.lengths})
        arrays |= {
            "synapses": {name: values[name] for name in PARAMETERS},
            "sensory": {name: values[f"sensory_{name}"] for name in PARAMETERS},
        }
        if self.mixed_memory:
            lstm = {name: a.astype(dtype) for name, a in self.lstm.items()}
            arrays |= {"x": x, "lstm": {"w_x": lstm["Wx"], "w_h": lstm["Wh"], "b": lstm["bias"]}}
        return arrays

    @property
    def output_size(self) -> int:
        """Features of y: the map's motor units."""
        return self.neuron_map.output_dim

    def read_out(self, y: mx.array, steps: Steps) -> mx.array:
        """The motor units, mapped."""
        y = y[..., : self.neuron_map.output_dim]
        if self.output_mapping is not None:
            y = y * self.output_w.astype(y.dtype)
        if self.output_mapping == "affine":
            y = y + self.output_b.astype(y.dtype)
        return y if steps.valid is None else mx.where(steps.valid[:, :, None], y, 0)

    def time_constants(self, x: mx.array, initial_state: Any = None, time_deltas: Any = None, lengths: Any = None) -> mx.array:
        """The effective time constant of each unit, tau_j = cm_j / den_j with den_j of equation (4), after each step.

        It is the time in which the distance of v_j from its steady state falls by a factor of e, if all other units and the input are
        held constant. Strongly driven units are fast.

        Args:
            x: (B, T, I), or (T, I) without batch, as the layer takes it.
            initial_state: v (B, H), or None for zeros; with mixed_memory a list [v, c].
            time_deltas: elapsed time before each step, as the layer takes it.
            lengths: (B,) integers in 1..T, or None.

        Returns:
            (B, T, H), in the unit of `time_deltas`; 0 past a sequence's length.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of a wrong shape or value.

        Example:
            >>> import mlx.core as mx
            >>> from ember_mlx import LTC
            >>> tau = LTC(4, 2).time_constants(mx.zeros((3, 5, 2)))
            >>> tau.shape, bool((tau > 0).all())
            ((3, 5, 4), True)
        """
        steps, state = self.read_call(x, initial_state, time_deltas, lengths)
        arrays = self._arrays(steps, state)
        v = scan(RECURRENCE, self._spec(), arrays, keep=self.training)[0]
        block = max(1, BLOCK_VALUES // (v.shape[1] * max(1, self._synapses.count, self._sensory.count)))
        parts = []
        for start in range(0, v.shape[0], block):
            part = slice(start, start + block)
            _, den = drives(self._spec(), {**arrays, "u": arrays["u"][part]})
            _, from_units = synapse_sums(self._synapses, arrays["synapses"], v[part])
            parts.append(arrays["cm"] / (den + from_units))
        tau = mx.concatenate(parts)
        return steps.to_caller(tau if steps.valid is None else mx.where(steps.valid[:, :, None], tau, 0))

    def _extra_repr(self) -> str:
        kinds = [f"solver={self.solver}", f"ode_unfolds={self.ode_unfolds}"]
        if self.mixed_memory:
            kinds.append("mixed_memory")
        return f"{self.neuron_map!r}, {', '.join(kinds)}"


def check_mapping(owner: str, name: str, value: object) -> str | None:
    """Return `value`, or raise ValueError unless it is a mapping."""
    if not (value is None or isinstance(value, str)) or value not in MAPPINGS:
        raise bad_argument(owner, name, "be 'affine', 'linear' or None", repr(value))
    return None if value is None else str(value)

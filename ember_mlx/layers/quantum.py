"""The quantum-inspired layers."""

import math
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..scans.batched import Scan, Scans
from ..scans.quantum.scan import QUANTUM
from ..scans.quantum.spec import FREQUENCY_UNIT, QuantumSpec
from ..validation import check_flag, check_not_negative, check_positive
from ..wiring import NeuronMap
from .arguments import StateLayout, Steps, check_key, compute_dtype
from .base import Check, RecurrentLayer
from .deprecated import accepts_old_order
from .initial import glorot_uniform
from .maps import built_map, parameter_of_map
from .weights import linear_weights

Tree = dict[str, Any]
HIGHEST_FREQUENCY = 0.05  # of the initial frequencies: a period of 20 steps with dt = 1


class LQNet(RecurrentLayer):
    r"""A liquid, quantum-inspired layer on a neuron map: complex units whose phases rotate and whose amplitudes relax.

    One step, with dt the time elapsed before it and psi = h_c + i h_s::

        (1) drive       u = x W_in + b
        (2) rotation    theta = dt (h_c^2 + h_s^2) Omega
                        h_c, h_s = h_c cos(theta) - h_s sin(theta), h_c sin(theta) + h_s cos(theta)
        (3) noise       h_c, h_s = h_c + n_c, h_s + n_s;  n = noise_scale sqrt(dt) (xi B_noise), in training only
        (4) viscosity   nu = nu_0 exp(-beta mean_j(h_c^2 + h_s^2))
        (5) relaxation  kappa = 1 - exp(-nu dt)
                        h_c = (1 - kappa) h_c + kappa tanh(h_c R + u)
                        h_s = (1 - kappa) h_s + kappa tanh(h_s R)
        output          y = h_c + h_s

    The map masks W_in (sensory synapses) and R (recurrent ones); Omega is symmetric and couples two units where there is a synapse in
    either direction. (2) is the exact flow of the Hamiltonian 1/4 |psi|^2 . Omega . |psi|^2, with h_s the coordinates and h_c their
    momenta: it keeps every |psi|. Without noise |psi| <= max(sqrt(2), |psi| of the initial state) for every unit, any dt and any number
    of steps, as docs/quantum.md shows.

    From the default initial state, zeros, the first step rotates nothing and fills only h_c. From the second step on (2) moves part of it
    into h_s. Without noise h_s stays 0 if Omega = 0, and in a unit without any recurrent synapse.
    Gradients are not bounded in this way: choose a time unit in which dt is about 1 or less.

    Parameters: drive, {weight (H, I), bias}, W_in's transpose and b; R, Omega and B_noise, (H, H), indexed [source, target].

    Args:
        neuron_map: the units and their synapses, with or without layers. An int stands for ``FullyConnectedMap(int)``. The layer keeps a
            copy.
        input_size: I, features of x; optional if the map is already built.
        nu_0: viscosity of a state of zeros, per unit of time, at least 0; with 0 there is no relaxation.
        beta: rate at which the viscosity falls with the mean of |psi|^2, at least 0.
        noise_scale: size of the noise in training, at least 0.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first; y is then in the order of processing.
        checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
            recomputes each segment. None: keep everything.

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, return_states, key)``

        x: (B, T, I), or (T, I) without batch; floating point.
        initial_state: [h_c, h_s, t], (B, H), (B, H) and (B, 1); None, for any or all of them, means zeros.
        time_deltas: elapsed time before each step, in any unit: (B, T) or (B, T, 1), with axes in the order of x's, or a scalar; 1 if
            None. Must not be negative.
        lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, cost no time on the CPU, and y is 0 there.
        key: PRNG key for the noise, from ``mx.random.key``; None: MLX's global state, set by ``mx.random.seed``. xi is drawn once per
            call, so the same key gives the same noise on every backend. Pass a key inside ``mx.checkpoint``: without one the backward
            pass draws different noise and the gradients are wrong. Inside ``mx.compile`` pass a key or capture ``mx.random.state``:
            otherwise every call has the same noise.

    Returns:
        y (B, T, H), or (B, H) without return_sequences, in the promoted dtype of x and the parameters. With return_state
        (y, [h_c, h_s, t]): float32; t is the time elapsed.
        With return_states the last item is the states after every step, each (..., B, T, F) instead of (..., B, F).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of a wrong shape or value; a map that is not built, without input_size.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import LQNet, NCPMap
        >>> layer = LQNet(NCPMap(inter_neurons=32, command_neurons=16, motor_neurons=8, sensory_neurons=10, seed=42))
        >>> y, [h_c, h_s, t] = layer(mx.zeros((32, 100, 10)), time_deltas=0.5, return_state=True)
        >>> y.shape, h_c.shape, t.shape, t[0, 0].item()
        ((32, 100, 56), (32, 56), (32, 1), 50.0)

    Source: defined by this package, with the components and parameters of ember-ml's layer of the same name, whose states diverge;
    docs/quantum.md describes the relation to quantum mechanics.
    """

    state_names = ("h_c", "h_s", "t")
    run_options = ("key",)
    settings: ClassVar[dict[str, Check]] = RecurrentLayer.settings | dict.fromkeys(("nu_0", "beta", "noise_scale"), check_not_negative)

    @accepts_old_order("nu_0", "beta", "noise_scale", "return_sequences", "return_state", "batch_first")
    def __init__(
        self,
        neuron_map: NeuronMap | int,
        input_size: int | None = None,
        *,
        nu_0: float = 1.0,
        beta: float = 0.1,
        noise_scale: float = 0.1,
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
        self.nu_0, self.beta, self.noise_scale = nu_0, beta, noise_scale
        self.keep_map_id(neuron_map)
        # NumPy masks are not parameters, so they cannot be unfrozen or trained
        recurrent = neuron_map.get_recurrent_mask()
        self.sensory_mask, self.recurrent_mask = _mask(neuron_map.get_input_mask().T), _mask(recurrent)
        self.rotation_mask = _mask(np.maximum(recurrent, recurrent.T))
        H, I = self.units, self.input_size
        self.drive = linear_weights(H, I)
        self.R = glorot_uniform(H, H)
        self.Omega = mx.random.uniform(-1 / math.sqrt(H), 1 / math.sqrt(H), (H, H))
        self.B_noise = mx.eye(H)
        self.made()

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether there is noise."""
        return self.noise_scale > 0

    @property
    def state_layouts(self) -> tuple[StateLayout, ...]:
        """The states in order; t is one number per sequence."""
        return tuple(StateLayout(name, 1, letter="1") if name == "t" else StateLayout(name, self.units) for name in self.state_names)

    def scans(self, steps: Steps, state: list[mx.array | None], key: mx.array | None = None) -> Scans:  # type: ignore[override]
        """The scan; see RecurrentLayer.scans."""
        dtype, B = compute_dtype(steps.x, self.dtype), steps.x.shape[1]
        h_c, h_s, t = (
            mx.zeros((B, layout.features), dtype) if a is None else a.astype(dtype)
            for a, layout in zip(state, self.state_layouts, strict=True)
        )
        dt = steps.dt.astype(dtype)
        arrays: Tree = {"x": steps.x.astype(dtype), "dt": dt, "h_c0": h_c, "h_s0": h_s} | self._weights(dtype)
        arrays |= {} if steps.lengths is None else {"lengths": steps.lengths}
        arrays |= self._noise(steps, dtype, key)
        arrays |= {"t": t[:, 0] + mx.cumsum(dt, axis=0)} if self._spec.harmonic else {}
        h_c, h_s = yield Scan(QUANTUM, self._spec, arrays)
        return h_c + h_s, [steps.kept(h_c), steps.kept(h_s), t + steps.elapsed(dt)]

    def output_of(self, state: list[mx.array]) -> mx.array:
        """h_c + h_s."""
        return state[0] + state[1]

    @property
    def _spec(self) -> QuantumSpec:
        return QuantumSpec(self.nu_0, self.beta)

    def rotation(self, dtype: mx.Dtype | None = None) -> mx.array:
        """Omega as used in the step: symmetric and masked, (H, H), computed in `dtype`; None: in the parameter's dtype."""
        omega = self.Omega if dtype is None else self.Omega.astype(dtype)
        return _masked((omega + omega.T) / 2, self.rotation_mask)

    def recurrent_weights(self) -> mx.array:
        """The masked weights between units, indexed [source, target]: R and Omega, (2, H, H)."""
        return mx.stack([_masked(self.R, self.recurrent_mask), self.rotation()])

    def _weights(self, dtype: mx.Dtype) -> Tree:
        """The parameters in the form that the scan takes."""
        w_x = _masked(self.drive["weight"], self.sensory_mask)
        weights = {"w_x": w_x, "b": self.drive["bias"], "omega": self.rotation(dtype), "w_h": _masked(self.R, self.recurrent_mask).T}
        return {name: a.astype(dtype) for name, a in weights.items()} | {"tau": self._tau(dtype)}

    def _tau(self, dtype: mx.Dtype) -> mx.array:
        """The units' time constants in units of 1 / nu, (H,)."""
        return mx.ones((self.units,), dtype)

    def _noise(self, steps: Steps, dtype: mx.Dtype, key: mx.array | None) -> Tree:
        """xi for all steps and the noise weight, in training; otherwise empty."""
        check_key(type(self).__name__, key)
        if not (self.training and self.noise_scale > 0):
            return {}
        xi = mx.random.normal((*steps.x.shape[:2], 2 * self.units), key=steps.key if key is None else key).astype(dtype)
        return {"xi": xi, "w_noise": mx.array(self.noise_scale, dtype) * self.B_noise.T.astype(dtype)}

    def _extra_repr(self) -> str:
        return f"{self.neuron_map!r}, nu_0={self.nu_0:g}, beta={self.beta:g}, noise_scale={self.noise_scale:g}"


class CTRQNet(LQNet):
    r"""A continuous-time, quantum-inspired layer on a neuron map: an :class:`LQNet` with a time constant for every unit and, optionally,
    a drive that oscillates with the elapsed time.

    The step is that of :class:`LQNet`, and ::

        (1) drive       u_j = sum_i x_i a_ij sin(2 pi f_ij t + phi_ij) + b_j      with use_harmonic_embedding; else as in LQNet
        (5) relaxation  kappa_j = 1 - exp(-nu dt / tau_j),  tau = time_scale_factor softplus(time_scale)

    with t the elapsed time including this step's dt. The amplitudes a, the frequencies f (per unit of time; the parameter is 100 f), the
    phases phi and time_scale are learned. In float32 a phase has an error of about 4e-7 f t radians: for an exact oscillation over a long
    time, reduce t by whole periods from time to time.

    Args:
        neuron_map: the units and their synapses, with or without layers; see :class:`LQNet`.
        input_size: I, features of x; optional if the map is already built.
        nu_0: viscosity of a state of zeros, per unit of time, at least 0; with 0 there is no relaxation.
        beta: fall of the viscosity with the mean of |psi|^2, at least 0.
        noise_scale: size of the noise in training, at least 0.
        time_scale_factor: multiplies every time constant; greater than 0. None: the value in the map's neuron_params, else 1.
        use_harmonic_embedding: whether the drive is multiplied by sines of the elapsed time.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first; y is then in the order of processing.
        checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
            recomputes each segment. None: keep everything.

    Call, returns, raises: as :class:`LQNet`.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import CTRQNet
        >>> layer = CTRQNet(24, input_size=3, time_scale_factor=5.0)
        >>> y, state = layer(mx.zeros((4, 10, 3)), return_state=True)
        >>> more = layer(mx.zeros((4, 1, 3)), initial_state=state, time_deltas=0.25)
        >>> y.shape, more.shape
        ((4, 10, 24), (4, 1, 24))

    Source: as :class:`LQNet`.
    """

    settings: ClassVar[dict[str, Check]] = LQNet.settings | {"time_scale_factor": check_positive}

    @accepts_old_order(
        *("nu_0", "beta", "noise_scale", "time_scale_factor", "use_harmonic_embedding", "return_sequences", "return_state", "batch_first")
    )
    def __init__(
        self,
        neuron_map: NeuronMap | int,
        input_size: int | None = None,
        *,
        nu_0: float = 1.0,
        beta: float = 0.1,
        noise_scale: float = 0.1,
        time_scale_factor: float | None = None,
        use_harmonic_embedding: bool = True,
        return_sequences: bool = True,
        return_state: bool = False,
        batch_first: bool = True,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
    ):
        super().__init__(
            neuron_map,
            input_size,
            nu_0=nu_0,
            beta=beta,
            noise_scale=noise_scale,
            return_sequences=return_sequences,
            return_state=return_state,
            batch_first=batch_first,
            go_backwards=go_backwards,
            checkpoint_steps=checkpoint_steps,
        )
        owner = type(self).__name__
        self.time_scale_factor = parameter_of_map(self.neuron_map, "time_scale_factor", time_scale_factor, 1.0)
        self.use_harmonic_embedding = check_flag(owner, "use_harmonic_embedding", use_harmonic_embedding)
        self.time_scale = mx.full((self.units,), math.log(math.e - 1))  # softplus of it is 1
        if use_harmonic_embedding:
            shape = (self.units, self.input_size)
            self.drive["weight"] *= math.sqrt(2)  # the mean square of a sine is 1/2
            self.drive["frequency"] = mx.random.uniform(0, HIGHEST_FREQUENCY / FREQUENCY_UNIT, shape)
            self.drive["phase"] = mx.random.uniform(0, 2 * math.pi, shape)
        self.made()

    @property
    def _spec(self) -> QuantumSpec:
        return QuantumSpec(self.nu_0, self.beta, self.use_harmonic_embedding)

    def _tau(self, dtype: mx.Dtype) -> mx.array:
        raw = self.time_scale.astype(dtype)
        softplus = mx.logaddexp(raw, mx.zeros_like(raw))  # nn.softplus is compiled and cannot be exported
        return mx.array(self.time_scale_factor, dtype) * softplus

    def _weights(self, dtype: mx.Dtype) -> Tree:
        weights = super()._weights(dtype)
        if self.use_harmonic_embedding:
            weights["f"] = mx.array(FREQUENCY_UNIT, dtype) * self.drive["frequency"].astype(dtype)
            weights["phi"] = self.drive["phase"].astype(dtype)
        return weights

    def _extra_repr(self) -> str:
        harmonic = ", harmonic" if self.use_harmonic_embedding else ""
        return f"{super()._extra_repr()}, time_scale_factor={self.time_scale_factor:g}{harmonic}"


def _mask(mask: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The mask, made contiguous since mx.export_function ignores a constant's strides, or None if nothing is masked."""
    return None if mask.all() else np.ascontiguousarray(mask)


def _masked(weight: mx.array, mask: NDArray[np.float32] | None) -> mx.array:
    return weight if mask is None else weight * mx.array(mask, weight.dtype)

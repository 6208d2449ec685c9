"""Layers that process a sequence at several strides."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import bad_argument
from ..scans.batched import Scans, run_scans
from ..scans.dispatch import can_evaluate
from ..validation import check_integer
from ..wiring import NeuronMap
from .arguments import Steps, check_array, compute_dtype, dtype_name, read_state, read_steps, split_key, type_name
from .base import RecurrentLayer, check_config, layer_from_config, layer_to_config
from .cfc import CfC
from .ltc import LTC

# for mx.repeat, whose gradient on MLX 0.32.4's CPU is slow for few repeats and a non-contiguous cotangent
FEWEST_REPEATED = 8
MOST_STEPS = 2**30  # the clock wraps here if the strides have a common multiple; also the longest stride
LAST_STEP = 2**31 - 1  # the largest int32


class OwnSteps(NamedTuple):
    """The steps of a call that one stride takes, at most K per sequence.

    Args:
        stride: the distance between them, capped at T.
        steps: these steps as a batch: x (K, B, I), dt since the previous one, and lengths, which may be 0.
        first: (B,) index of the first one, or None if it is step 0 in every sequence.
        taken: (B,) number of them.
        last: (B,) index of the last one, if there is any.
    """

    stride: int
    steps: Steps
    first: mx.array | None
    taken: mx.array
    last: mx.array


class StrideAware(RecurrentLayer):
    """One recurrent layer per stride s, which runs on every s-th step of a sequence and holds its output in between.

    The layer of stride s takes the steps t with t mod s = 0, counted from the first step of the stream; its elapsed time is measured from
    the previous step that it took. So a stride of 8 takes one step in eight, with the summed time of eight steps.

    Args:
        layer: a layer of this package as template: each stride's layer is made from its configuration and dtype, with its own weights.
        stride_lengths: the strides, integers of at least 1, in the order of the outputs. They need not be sorted, and may repeat, for
            layers that differ only in their weights.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first; strides then count from the last step;
            y is in the order of processing, and each step keeps its own time delta.
        checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
            recomputes each segment. None: keep everything.

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state)``

        x: (B, T, I), or (T, I) without batch; floating point.
        initial_state: None, or a list of each stride's state, as its layer returns it, or None, followed by the clock [steps, elapsed].
            steps (B, 1) int32 is the number of steps so far; from 2^30 on it is reduced by a common multiple of the strides, so a stream
            may be endless (strides without a common multiple below 2^30 end at step 2^31). elapsed (B, strides) is the time since each
            stride's last step.
        time_deltas: elapsed time before each step, (B, T) or (B, T, 1), its axes in the order of x's, or a scalar; 1 if None. Not for
            layers that do not use elapsed time.
        lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, and y is 0 there.
        key: PRNG key, for layers that draw noise, as LQNet; each stride draws its own.

    Returns:
        y (B, strides * O), or (B, T, strides * O) with return_sequences, where O is the wrapped layer's output size. With return_state
        (y, state); the state continues the sequence from any step.

    Raises:
        TypeError: `layer` is not a layer of this package; strides that are not integers; an argument of the wrong type.
        ValueError: no stride, or one below 1 or above 2^30; a layer that runs backwards; an argument with a wrong shape or value.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import GRU, StrideAware
        >>> y, [h_1, h_4, [steps, elapsed]] = StrideAware(GRU(10, 20), [1, 4])(mx.zeros((32, 7, 10)), return_state=True)
        >>> y.shape, steps[0].item(), elapsed[0].tolist()            # the last step of stride 4 was step 4, two steps ago
        ((32, 40), 7, [0.0, 2.0])
    """

    def __init__(
        self,
        layer: RecurrentLayer,
        stride_lengths: Sequence[int],
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        batch_first: bool = True,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
    ):
        owner = type(self).__name__
        if not isinstance(layer, RecurrentLayer) or isinstance(layer, StrideAware):
            raise bad_argument(owner, "layer", "be a recurrent layer of ember_mlx without strides", type_name(layer), TypeError)
        config = layer.get_config()
        if checkpoint_steps is None:
            checkpoint_steps = config["checkpoint_steps"]
        for name in ("go_backwards", "bidirectional"):
            if config.get(name):
                raise bad_argument(owner, "layer", "run forwards", f"{type(layer).__name__} with {name}=True")
        strides = check_strides(owner, stride_lengths)
        flags = return_sequences, return_state, batch_first, go_backwards, checkpoint_steps
        super().__init__(layer.input_size, layer.units * len(strides), *flags)
        self._strides = tuple(strides)
        self.layers = [layer.alike(checkpoint_steps=None) for _ in strides]
        self.set_dtype(layer.dtype)
        self.train(layer.training)
        self.made()

    @property
    def stride_lengths(self) -> list[int]:
        """The strides, in the order of the outputs."""
        return list(self._strides)

    @property
    def timed(self) -> bool:  # type: ignore[override]
        """Whether a step depends on the time elapsed before it."""
        return self.layers[0].timed

    @property
    def output_size(self) -> int:
        """Features of y, all strides together."""
        return sum(layer.output_size for layer in self.layers)

    @property
    def run_options(self) -> tuple[str, ...]:  # type: ignore[override]
        """Further call options: those of the wrapped layer."""
        return self.layers[0].run_options

    def read_call(self, x: Any, initial_state: Any, time_deltas: Any, lengths: Any) -> tuple[Steps, list[mx.array | None]]:
        """Check a call's arguments; returns the state as a flat list: every stride's states, then steps and elapsed."""
        owner = type(self).__name__
        steps = read_steps(owner, x, time_deltas, lengths, self.input_size, self.batch_first)
        batch, count = steps.x.shape[1], len(self.layers)
        given = [None] * (count + 1) if initial_state is None else initial_state
        form = f"be a list of {count} states, one per stride, and the clock [steps, elapsed]"
        if not isinstance(given, (list, tuple)):
            raise bad_argument(owner, "initial_state", form, type_name(given), TypeError)
        if len(given) != count + 1:
            raise bad_argument(owner, "initial_state", form, f"{len(given)} entries")
        states: list[mx.array | None] = []
        for layer, one in zip(self.layers, given, strict=False):
            states += read_state(owner, [one] if layer.bare_state else one, layer.state_layouts, batch, steps.batched)
        states += _read_clock(owner, given[-1], batch, count, steps)
        return (steps.backwards() if self.go_backwards else steps), states

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether any stride's layer does."""
        return any(layer.draws for layer in self.layers)

    def filled(self, state: list[mx.array | None], steps: Steps) -> list[mx.array]:
        """The states and the clock, with zeros for None."""
        B, count, dtype = steps.x.shape[1], len(self.layers), compute_dtype(steps.x, self.dtype)
        shapes = [layout.shape(B, True) for layer in self.layers for layout in layer.state_layouts]
        *states, taken, elapsed = state
        result = [mx.zeros(shape, dtype) if a is None else a.astype(dtype) for a, shape in zip(states, shapes, strict=True)]
        result.append(mx.zeros((B, 1), mx.int32) if taken is None else taken)
        return [*result, mx.zeros((B, count), dtype) if elapsed is None else elapsed.astype(dtype)]

    def run(self, steps: Steps, state: list[mx.array | None], **options: Any) -> tuple[mx.array, list[mx.array]]:
        """Run every stride's layer over its steps, with the scans of all strides together; see RecurrentLayer.scans."""
        *states, taken, elapsed = state
        dtype = compute_dtype(steps.x, self.dtype)
        own = {stride: own_steps(stride, steps, taken) for stride in self.stride_lengths}  # once per stride: mx.compile fails on duplicates
        runs, keys = [], steps.keys(len(self.layers))
        each = zip(self.layers, self.stride_lengths, split_key(type(self).__name__, options, len(self.layers)), strict=True)
        for k, (layer, stride, own_options) in enumerate(each):
            count = len(layer.state_layouts)
            initial, states = states[:count], states[count:]
            waited = None if elapsed is None else elapsed[:, k]
            runs.append(stride_scans(layer, steps._replace(key=keys[k]), own[stride], initial, waited, dtype, **own_options))
        outputs, finals, since = zip(*run_scans(runs, keep=self.training), strict=True)
        T, B, _ = steps.x.shape
        passed = mx.full((B,), T, mx.int32) if steps.lengths is None else steps.lengths
        after = self._wrapped(passed if taken is None else passed + taken[:, 0])
        y = mx.concatenate(list(outputs), axis=2)
        y = y if steps.valid is None else mx.where(steps.valid[:, :, None], y, 0)
        return y, [*(a for final in finals for a in final), after[:, None], mx.stack(list(since), axis=1)]

    def _wrapped(self, taken: mx.array) -> mx.array:
        """The steps so far, reduced by a common multiple of the strides before int32 overflows."""
        turn = MOST_STEPS - MOST_STEPS % math.lcm(*self.stride_lengths)
        return mx.where(taken >= turn, taken - turn, taken) if turn else taken

    def check_states_wanted(self, return_states: Any) -> bool:
        """Raise an error if set: each stride has its own steps."""
        if super().check_states_wanted(return_states):
            expected = "be False, since each stride has its own steps; call one of `layers` instead"
            raise bad_argument(type(self).__name__, "return_states", expected, return_states)
        return False

    def state_to_caller(self, state: list[mx.array]) -> Any:
        """Each stride's state as its layer returns it, then [steps, elapsed]."""
        result: list[Any] = []
        for layer in self.layers:
            count = len(layer.state_layouts)
            result.append(layer.state_to_caller(state[:count]))
            state = state[count:]
        return [*result, state]

    def get_config(self) -> dict[str, Any]:
        """The template's class and configuration, and the strides, as JSON-serialisable values."""
        pattern = self.layers[0]
        return {"layer": layer_to_config(pattern)} | self._own_config()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RecurrentLayer":
        """Make the layer that `get_config` describes, with new weights."""
        check_config(cls.__name__, config, inspect.signature(cls.__init__).parameters, ("layer", "stride_lengths"))
        return cls(**config | {"layer": layer_from_config(cls.__name__, config["layer"])})

    def _own_config(self) -> dict[str, Any]:
        return {"stride_lengths": list(self.stride_lengths)} | {name: getattr(self, name) for name in RecurrentLayer.settings}

    def _extra_repr(self) -> str:
        return f"stride_lengths={self.stride_lengths}"


class _StrideAwareOnMap(StrideAware):
    """StrideAware over a layer on a neuron map, made from the map and the layer's options."""

    kind: Callable[..., RecurrentLayer]

    def __init__(
        self,
        neuron_map: NeuronMap | int,
        stride_lengths: Sequence[int],
        input_size: int | None = None,
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        batch_first: bool = True,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
        **options: Any,
    ):
        pattern = self.kind(neuron_map, input_size, **options)
        super().__init__(
            pattern,
            stride_lengths,
            return_sequences=return_sequences,
            return_state=return_state,
            batch_first=batch_first,
            go_backwards=go_backwards,
            checkpoint_steps=checkpoint_steps,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON-serialisable values."""
        return self.layers[0].get_config() | self._own_config()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RecurrentLayer":
        """Make the layer that `get_config` describes, with new weights."""
        return super(StrideAware, cls).from_config(config)


class StrideAwareCfC(_StrideAwareOnMap):
    """A closed-form continuous-time layer for each of several strides: StrideAware over CfC.

    Args:
        neuron_map: the map of each stride's layer, or an int for FullyConnectedMap(int).
        stride_lengths: the strides, integers from 1 on.
        input_size: I, where the map is not built yet.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first; strides then count from the last step.
        checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
            recomputes each segment. None: keep everything.
        **options: of CfC: mode, backbone_units, backbone_layers, mixed_memory, output, ...

    Call, returns and errors as StrideAware: y (B, strides * H), or (B, T, strides * H) with return_sequences; the state is a list of
    [h, t] for each stride, and the clock.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import FullyConnectedMap, StrideAwareCfC
        >>> neuron_map = FullyConnectedMap(units=20, input_dim=10, output_dim=20)
        >>> layer = StrideAwareCfC(neuron_map=neuron_map, stride_lengths=[1, 2, 4, 8], backbone_units=32, backbone_layers=2)
        >>> layer(mx.zeros((32, 100, 10))).shape, layer(mx.zeros((32, 100, 10)), return_sequences=True).shape
        ((32, 80), (32, 100, 80))
    """

    kind = CfC


class StrideAwareLTC(_StrideAwareOnMap):
    """A liquid time-constant layer for each of several strides: StrideAware over LTC.

    Args:
        neuron_map: the map of each stride's layer, or an int for FullyConnectedMap(int).
        stride_lengths: the strides, integers from 1 on.
        input_size: I, where the map is not built yet.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first; strides then count from the last step.
        checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
            recomputes each segment. None: keep everything.
        **options: of LTC: ode_unfolds, solver, input_mapping, output_mapping, ...

    Call, returns and errors as StrideAware: y (B, strides * O), or (B, T, strides * O) with return_sequences; the state is a list of v for
    each stride, and the clock.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import NCPMap, StrideAwareLTC
        >>> layer = StrideAwareLTC(NCPMap(10, 5, 3, sensory_neurons=4, seed=1), [1, 5])
        >>> layer(mx.zeros((2, 12, 4)), return_sequences=True).shape
        (2, 12, 6)
    """

    kind = LTC


def stride_scans(
    layer: RecurrentLayer,
    steps: Steps,
    own: OwnSteps,
    state: list[mx.array | None],
    waited: mx.array | None,
    dtype: mx.Dtype,
    **options: Any,
) -> Scans:
    """One stride's layer as a generator of scans; see RecurrentLayer.scans.

    Args:
        layer: the stride's layer.
        steps: all steps.
        own: the steps that the stride takes.
        state: the layer's state.
        waited: (B,) time since the stride's last step before this call, or None.
        dtype: the states' dtype.
        **options: passed to the layer's `scans`.

    Returns:
        y (T, B, O), held between the stride's steps; the layer's states; and (B,) the time since the stride's last step.
    """
    T, B, _ = steps.x.shape
    initial = [
        mx.zeros(layout.shape(B, True), dtype) if a is None else a.astype(dtype)
        for a, layout in zip(state, layer.state_layouts, strict=True)
    ]
    here = own.steps._replace(key=steps.key)
    if waited is not None:
        here = here._replace(dt=mx.concatenate([here.dt[:1] + waited.astype(here.dt.dtype), here.dt[1:]]))
    y, final = yield from layer.scans(here, list(initial), **options)
    y = layer.read_out(y, here)
    if own.first is None:
        held = _repeated(y, own.stride)[:T]
    else:
        one = here._replace(x=here.x[:1], dt=here.dt[:1], lengths=None)
        before = layer.read_out(mx.expand_dims(layer.output_of(initial), 0), one)
        t = mx.arange(T)[:, None]
        place = mx.maximum(t - own.first, 0) // own.stride
        held = mx.where((t >= own.first)[:, :, None], mx.take_along_axis(y, place[:, :, None], axis=0), before)
        final = [mx.where((own.taken > 0)[:, None], a, b) for a, b in zip(final, initial, strict=True)]
    return held, final, _time_since(own, steps, waited)


def _repeated(y: mx.array, count: int) -> mx.array:
    """(K, ...) -> (K * count, ...), each step repeated `count` times."""
    if count >= FEWEST_REPEATED:
        return mx.repeat(y, count, axis=0)
    return mx.stack([y] * count, axis=1).reshape(-1, *y.shape[1:])


def own_steps(stride: int, steps: Steps, taken: mx.array | None) -> OwnSteps:
    """The steps t with (taken + t) mod stride = 0, each with the time since the previous one, as far as it lies in these steps."""
    T, B, _ = steps.x.shape
    length = mx.full((B,), T, mx.int32) if steps.lengths is None else steps.lengths
    first = None if taken is None else mx.minimum((-taken[:, 0]) % stride, T).astype(mx.int32)  # (B,)
    stride = min(stride, T)  # bounds the size of the arrays
    if first is None:
        count = (length + stride - 1) // stride
        windows = mx.concatenate([mx.zeros((stride - 1, B), steps.dt.dtype), steps.dt])
        windows = windows[: (T - 1) // stride * stride + stride].reshape(-1, stride, B)
        own = steps._replace(x=steps.x[::stride], dt=windows.sum(axis=1), lengths=None if steps.lengths is None else count)
        return OwnSteps(stride, own, None, count, (count - 1) * stride)
    count = mx.maximum(length - first + stride - 1, 0) // stride
    K = (T + stride - 1) // stride
    places = first + mx.arange(K)[:, None] * stride  # (K, B)
    x = mx.take_along_axis(steps.x, mx.minimum(places, T - 1)[:, :, None], axis=0)
    window = places[:, None] - mx.arange(stride - 1, -1, -1)[None, :, None]  # (K, stride, B): the steps up to each of the stride's
    there = (window >= 0) & (window < T)
    dt = mx.take_along_axis(steps.dt, mx.clip(window, 0, T - 1).reshape(-1, B), axis=0).reshape(window.shape)
    dt = mx.where(there, dt, 0).sum(axis=1)
    own = steps._replace(x=x, dt=dt, lengths=count)
    return OwnSteps(stride, own, first, count, first + (count - 1) * stride)


def _time_since(own: OwnSteps, steps: Steps, waited: mx.array | None) -> mx.array:
    """(B,) the time since the stride's last step, at the end of each sequence."""
    t = mx.arange(steps.x.shape[0])[:, None]
    counts = t > mx.where(own.taken > 0, own.last, -1)
    counts = counts if steps.valid is None else counts & steps.valid
    since = mx.where(counts, steps.dt, 0).sum(axis=0)
    return since if waited is None else since + mx.where(own.taken > 0, 0, waited.astype(since.dtype))


def check_strides(owner: str, stride_lengths: Any) -> list[int]:
    """The strides as a list of ints, or a TypeError or ValueError."""
    if isinstance(stride_lengths, str) or not isinstance(stride_lengths, Sequence):
        raise bad_argument(owner, "stride_lengths", "be a sequence of integers", type_name(stride_lengths), TypeError)
    if not stride_lengths:
        raise bad_argument(owner, "stride_lengths", "hold at least one stride", "none")
    strides = [check_integer(owner, f"stride_lengths[{k}]", stride) for k, stride in enumerate(stride_lengths)]
    for k, stride in enumerate(strides):
        if stride > MOST_STEPS:
            raise bad_argument(owner, f"stride_lengths[{k}]", f"be at most 2^30 = {MOST_STEPS}", stride)
    return strides


def _read_clock(owner: str, clock: Any, batch: int, strides: int, steps: Steps) -> list[mx.array | None]:
    """Check the last entry of a state, [steps, elapsed] or None; returns arrays (B, 1) and (B, strides), or None."""
    if clock is None:
        return [None, None]
    form = "be a list [steps, elapsed] of arrays or None"
    if not isinstance(clock, (list, tuple)):
        raise bad_argument(owner, "initial_state clock", form, type_name(clock), TypeError)
    if len(clock) != 2:
        raise bad_argument(owner, "initial_state clock", form, f"{len(clock)} entries")
    result: list[mx.array | None] = []
    for name, a, features in zip(("steps", "elapsed"), clock, (1, strides), strict=True):
        if a is not None:
            most = LAST_STEP - len(steps.x) if name == "steps" else math.inf
            _check_clock(owner, f"initial_state {name}", a, (batch, features) if steps.batched else (features,), most)
            a = a.astype(mx.int32) if name == "steps" else a
        result.append(a if a is None or steps.batched else mx.expand_dims(a, 0))
    return result


def _check_clock(owner: str, name: str, a: Any, shape: tuple[int, ...], most: float) -> None:
    if name.endswith("elapsed"):
        check_array(owner, name, a)
    elif not isinstance(a, mx.array) or not mx.issubdtype(a.dtype, mx.integer):
        got = dtype_name(a.dtype) if isinstance(a, mx.array) else type_name(a)
        raise bad_argument(owner, name, "be an mx.array of integers", got, TypeError)
    if a.shape != shape:
        raise bad_argument(owner, name, f"have shape {shape}", a.shape)
    if can_evaluate([a]):
        values = np.array(a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a)
        wrong = values[~(np.isfinite(values) & (values >= 0))]
        if wrong.size:
            raise bad_argument(owner, name, "be finite and not negative", wrong[0])
        if (values > most).any():  # the strides have no common multiple, so the clock cannot wrap
            raise bad_argument(owner, name, f"be at most {most}, or the step count overflows; start a new stream", values.max())

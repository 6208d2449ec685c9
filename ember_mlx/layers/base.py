"""What all recurrent layers share: how they are called."""

import inspect
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checks import check_flag
from ..errors import bad_argument
from ..scans.several import Scans, run_scans
from ..wiring import NeuronMap, map_from_config, map_to_config
from .arguments import StateLayout, Steps, check_call_options, read_state, read_steps, type_name


def layer_to_config(layer: "RecurrentLayer") -> dict[str, Any]:
    """A layer's class and constructor arguments, as values that JSON can hold, for a layer that wraps it."""
    return {"class": type(layer).__name__, "config": layer.get_config()}


def layer_from_config(owner: str, config: dict[str, Any]) -> "RecurrentLayer":
    """The layer that `layer_to_config` described, with new weights; of a class of one's own too, once that is defined."""
    classes = {cls.__name__: cls for cls in _subclasses(RecurrentLayer)}
    if config["class"] not in classes:
        known = ", ".join(sorted(name for name in classes if not name.startswith("_")))
        raise bad_argument(owner, "config", f"name a layer that is defined, one of {known}", repr(config["class"]))
    return classes[config["class"]].from_config(config["config"])


def _subclasses(cls: type["RecurrentLayer"]) -> list[type["RecurrentLayer"]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_subclasses(sub))]


def _add_dtypes(parameters: Any, found: set[mx.Dtype]) -> None:
    """Those of all parameters of a module, or of a part of them; in every call of a layer nn.Module.parameters would take too long."""
    parts = parameters.items() if isinstance(parameters, dict) else enumerate(parameters)
    for name, part in parts:
        if isinstance(part, mx.array):
            if not str(name).startswith("_"):
                found.add(part.dtype)
        elif isinstance(part, (dict, list, tuple)) and not str(name).startswith("_"):
            _add_dtypes(part, found)


class RecurrentLayer(nn.Module):
    """The base of the layers: it reads the arguments, runs the subclass's recurrence over the steps, and lays out the result.

    A subclass names its states in `state_names`, or describes them in `state_layouts`, and defines `scans`. Where there is one state only
    and `bare_state` is set, the caller gives and gets it alone, not in a list. A call's further options go to `scans` where `run_options`
    names them, to `read_out` where `read_options` does; others are refused.

    Args:
        input_size: I, features of x.
        units: H, units of a state.
        return_sequences: whether y holds every step, or the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first; y is in the order of processing,
            and each step keeps its own time delta.
    """

    state_names: tuple[str, ...] = ("h",)
    timed: bool = True
    """Whether a step depends on the time elapsed before it."""
    bare_state: bool = False
    run_options: tuple[str, ...] = ()
    read_options: tuple[str, ...] = ()

    def __init__(
        self, input_size: int, units: int, return_sequences: bool, return_state: bool, batch_first: bool, go_backwards: bool = False
    ):
        super().__init__()
        self.input_size, self.units = input_size, units
        owner = type(self).__name__
        self.return_sequences = check_flag(owner, "return_sequences", return_sequences)
        self.return_state = check_flag(owner, "return_state", return_state)
        self.batch_first = check_flag(owner, "batch_first", batch_first)
        self.go_backwards = check_flag(owner, "go_backwards", go_backwards)

    def run(self, steps: Steps, state: list[mx.array | None], **options: Any) -> tuple[mx.array, list[mx.array]]:
        """Run the recurrence; see `scans`."""
        return run_scans([self.scans(steps, state, **options)], keep=self.training)[0]

    def scans(self, steps: Steps, state: list[mx.array | None], **options: Any) -> Scans:
        """The recurrence as a computation that asks for its scans: it yields each and gets its outputs.

        Args:
            steps: the sequences, time first.
            state: for each of `state_layouts` an array, (B, H) where it says nothing else, or None for zeros.

        Returns:
            The output (T, B, O), zero past each length, and the state after each sequence's last valid step.
        """
        raise TypeError(f"{type(self).__name__} defines no scans().")

    @property
    def state_layouts(self) -> tuple[StateLayout, ...]:
        """The states in order."""
        return tuple(StateLayout(name, self.units) for name in self.state_names)

    @property
    def output_size(self) -> int:
        """Features of y."""
        return self.units

    def output_of(self, state: list[mx.array]) -> mx.array:
        """(B, O): what `run` gave for the step after which the states are these."""
        return state[0]

    def last_step(self, y: mx.array, steps: Steps) -> mx.array:
        """(T, B, O) -> (B, O): what y is without return_sequences."""
        return steps.last(y)

    def state_to_caller(self, state: list[mx.array]) -> Any:
        """The states as the caller gets them."""
        return state[0] if self.bare_state else state

    def check_read_options(self, **options: Any) -> None:
        """Raise an error for a wrong value of `read_options`, before any work."""

    def read_out(self, y: mx.array, steps: Steps) -> mx.array:
        """What the caller sees of the units' outputs (..., H) -> (..., O); here all of it."""
        return y

    def __call__(
        self,
        x: mx.array,
        initial_state: Any = None,
        time_deltas: Any = None,
        lengths: Any = None,
        *,
        return_sequences: bool | None = None,
        return_state: bool | None = None,
        **options: Any,
    ) -> Any:
        """Run the layer over a batch of sequences; see the class for the shapes."""
        owner = type(self).__name__
        sequences = self.return_sequences if return_sequences is None else check_flag(owner, "return_sequences", return_sequences)
        with_state = self.return_state if return_state is None else check_flag(owner, "return_state", return_state)
        check_call_options(owner, options, (*self.run_options, *self.read_options))
        if time_deltas is not None and not self.timed:
            raise bad_argument(owner, "time_deltas", "be None, for this layer knows no elapsed time", type_name(time_deltas))
        steps, state = self.read_call(x, initial_state, time_deltas, lengths)
        run_options = {name: options.pop(name) for name in self.run_options if name in options}
        self.check_read_options(**options)
        y, final = self.run(steps, state, **run_options)
        y = self.read_out(y, steps, **options).astype(mx.result_type(x.dtype, self.dtype))
        y = steps.to_caller(y) if sequences else steps.without_batch(self.last_step(y, steps))
        return (y, self.state_to_caller([steps.without_batch(a) for a in final])) if with_state else y

    def read_call(self, x: Any, initial_state: Any, time_deltas: Any, lengths: Any) -> tuple[Steps, list[mx.array | None]]:
        """A call's arguments, checked: the sequences in the order of processing, and each state as in `state_layouts`, or None."""
        owner = type(self).__name__
        steps = read_steps(owner, x, time_deltas, lengths, self.input_size, self.batch_first)
        given = [initial_state] if self.bare_state else initial_state
        state = read_state(owner, given, self.state_layouts, steps.x.shape[1], steps.batched)
        return (steps.backwards() if self.go_backwards else steps), state

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as values that JSON can hold; `from_config` makes a layer like this one, but for its weights."""
        config = {name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"}
        return {name: map_to_config(value) if isinstance(value, NeuronMap) else value for name, value in config.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RecurrentLayer":
        """The layer that `get_config` of the same class described, with new weights."""
        arguments: dict[str, Any] = {name: map_from_config(value) if name == "neuron_map" else value for name, value in config.items()}
        return cls(**arguments)

    @property
    def dtype(self) -> mx.Dtype:
        """The parameters' dtype."""
        found: set[mx.Dtype] = set()
        _add_dtypes(self, found)
        return mx.result_type(*found)

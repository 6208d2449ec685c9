"""The base class of all recurrent layers."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import bad_argument
from ..scans.batched import Scans, run_scans
from ..scans.dispatch import can_evaluate
from ..validation import check_flag, check_integer, check_names
from ..wiring import NeuronMap, map_from_config, map_to_config
from .arguments import StateLayout, Steps, check_call_options, compute_dtype, dtype_name, read_state, read_steps, type_name
from .checkpointing import run_in_parts
from .html import parameter_table
from .maps import map_id

if TYPE_CHECKING:
    from ..predictors.predictor import Stepper

Check = Callable[[str, str, Any], Any]  # owner, name, value -> the value, or an error


def layer_to_config(layer: "RecurrentLayer") -> dict[str, Any]:
    """A layer's class and constructor arguments as JSON-serialisable values, for use in the configuration of a wrapping layer."""
    return {"class": type(layer).__name__, "config": layer.get_config()}


def layer_from_config(owner: str, config: dict[str, Any]) -> "RecurrentLayer":
    """Make the layer that `layer_to_config` describes, with new weights; user-defined subclasses work once they are defined."""
    classes = {cls.__name__: cls for cls in _subclasses(RecurrentLayer)}
    check_config(owner, config, ("class", "config"), ("class", "config"))
    if config["class"] not in classes:
        known = ", ".join(sorted(name for name, cls in classes.items() if not name.startswith("_") and "is_base" not in vars(cls)))
        raise bad_argument(owner, "config", f"name a defined layer, one of {known}", repr(config["class"]))
    return classes[config["class"]].from_config(config["config"])


def _subclasses(cls: type["RecurrentLayer"]) -> list[type["RecurrentLayer"]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_subclasses(sub))]


def check_config(owner: str, config: Any, known: Any, needed: Any) -> None:
    """Raise an error unless `config` is a dict with the names of the class's arguments."""
    if not isinstance(config, Mapping):
        raise bad_argument(owner, "config", "be a dict, as get_config returns it", type_name(config), TypeError)
    check_names(owner, "config", map(str, config), known, needed)


def _arrays_of(parameters: Any, before: str = "") -> Iterator[tuple[str, mx.array]]:
    """All parameters under `parameters`, by path. Faster than nn.Module.parameters, which is too slow for every call of a layer."""
    parts = parameters.items() if isinstance(parameters, dict) else enumerate(parameters)
    for name, part in parts:
        if isinstance(part, mx.array):
            if not str(name).startswith("_"):
                yield f"{before}{name}", part
        elif isinstance(part, (dict, list, tuple)) and not str(name).startswith("_"):
            yield from _arrays_of(part, f"{before}{name}.")


class RecurrentLayer(nn.Module):
    """Base class of the layers: it checks the arguments, runs the subclass's recurrence over the steps, and lays out the result.

    A subclass names its states in `state_names`, or describes them in `state_layouts`, and defines `scans`. With a single state and
    `bare_state` set, callers pass and receive that array itself instead of a list. Further call options go to `scans` if they are in
    `run_options`, and to `read_out` if they are in `read_options`; any other option is an error.

    Args:
        input_size: I, features of x.
        units: H, units of a state.
        return_sequences: whether y holds every step or only the last valid one.
        return_state: whether the state is returned too.
        batch_first: whether x is (B, T, I) or (T, B, I).
        go_backwards: whether each sequence is processed from its last valid step to its first; y is in the order of processing,
            and each step keeps its own time delta.
        checkpoint_steps: time steps per segment; only the states between segments are kept for the backward pass. None: one segment.
    """

    state_names: tuple[str, ...] = ("h",)
    timed: bool = True
    """Whether a step depends on the time elapsed before it."""
    bare_state: bool = False
    run_options: tuple[str, ...] = ()
    read_options: tuple[str, ...] = ()
    draws: bool = False
    """Whether the layer draws random numbers in training."""
    settings: ClassVar[dict[str, Check]] = {
        **dict.fromkeys(("return_sequences", "return_state", "batch_first", "go_backwards"), check_flag),
        "checkpoint_steps": lambda owner, name, value: None if value is None else check_integer(owner, name, value),
    }
    """The constructor arguments that may also be set later, each with its check; all others are fixed."""

    def __init__(
        self,
        input_size: int,
        units: int,
        return_sequences: bool,
        return_state: bool,
        batch_first: bool,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
    ):
        super().__init__()
        self.input_size, self.units = input_size, units
        self.return_sequences, self.return_state = return_sequences, return_state
        self.batch_first, self.go_backwards = batch_first, go_backwards
        self.checkpoint_steps = checkpoint_steps

    def __setattr__(self, name: str, value: Any) -> None:
        owner = type(self).__name__
        if name in self.settings:
            value = self.settings[name](owner, name, value)
        elif name in self.__dict__.get("_fixed", ()):
            raise bad_argument(owner, name, "not change, since the parameters depend on it; make a new layer", repr(value))
        super().__setattr__(name, value)

    def made(self) -> None:
        """Call this once all parameters exist. It fixes their shapes, and the constructor arguments that determine them."""
        names = {"input_size", "units", *inspect.signature(type(self).__init__).parameters}
        fixed = {name for name in names - self.settings.keys() if hasattr(self, name) and name not in self}
        object.__setattr__(self, "_fixed", fixed)
        object.__setattr__(self, "_shapes", {path: a.shape for path, a in _arrays_of(self)})

    def keep_map_id(self, neuron_map: NeuronMap) -> None:
        """Store an identifier of the map with the weights, unless the map has every synapse; see `map_id`."""
        if (identity := map_id(neuron_map)) is not None:
            self.map_id = identity
            self.freeze(keys="map_id", recurse=False)

    def unfreeze(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in mlx.nn; the map identifier is never trained."""
        super().unfreeze(*args, **kwargs)
        if "map_id" in self:
            self.freeze(keys="map_id", recurse=False)
        return self

    def check_parameters(self) -> None:
        """Raise an error for a parameter that has been replaced by one of another shape or type."""
        shapes, owner = self.__dict__.get("_shapes"), type(self).__name__
        if shapes is None:
            return
        found = dict(_arrays_of(self))
        for path, shape in shapes.items():
            a = found.get(path)
            if a is None:
                raise bad_argument(owner, path, f"be an array of shape {shape}", "none")
            if a.shape != shape:
                if path.endswith("map_id"):
                    raise bad_argument(owner, "the weights", "be those of a layer on the same neuron map", f"a {path} of another map")
                raise bad_argument(owner, path, f"have shape {shape}", a.shape)
            if not mx.issubdtype(a.dtype, mx.floating):
                raise bad_argument(owner, path, "have a floating-point dtype", dtype_name(a.dtype), TypeError)

    def run(self, steps: Steps, state: list[mx.array | None], **options: Any) -> tuple[mx.array, list[mx.array]]:
        """Run the recurrence; see `scans`."""
        return run_scans([self.scans(steps, state, **options)], keep=self.training)[0]

    def _run(
        self, steps: Steps, state: list[mx.array | None], sequences: bool, run_options: dict[str, Any], read_options: dict[str, Any]
    ) -> tuple[mx.array, list[mx.array]]:
        """The output of every step (T, B, O) or of the last one (B, O), and the final states; in segments if `checkpoint_steps` asks so."""

        def run(layer: Any, steps: Steps, state: list[Any]) -> tuple[mx.array, list[mx.array]]:
            y, final = layer.run(steps, state, **run_options)
            y = layer.read_out(y, steps, **read_options)
            return (y if sequences else layer.last_step(y, steps)), final

        size = self.part_size(steps)
        if size is None or not self.can_be_cut:
            return run(self, steps, state)
        key = run_options.pop("key", None)
        return run_in_parts(self, run, steps, self.filled(state, steps), size, sequences, key, self.training and self.draws)

    @property
    def can_be_cut(self) -> bool:
        """Whether a sequence can be run in consecutive segments."""
        return True

    def part_size(self, steps: Steps) -> int | None:
        """The time steps per segment, or None for a single segment."""
        size: int | None = self.checkpoint_steps
        return None if size is None or steps.every or steps.x.shape[0] <= size or not can_evaluate([steps.x, steps.dt]) else size

    def filled(self, state: list[mx.array | None], steps: Steps) -> list[mx.array]:
        """The states with zeros for None."""
        shapes, dtype = [layout.shape(steps.x.shape[1], True) for layout in self.state_layouts], compute_dtype(steps.x, self.dtype)
        return [mx.zeros(shape, dtype) if a is None else a.astype(dtype) for a, shape in zip(state, shapes, strict=True)]

    def scans(self, steps: Steps, state: list[mx.array | None], **options: Any) -> Scans:
        """The recurrence as a generator: it yields each scan that it needs and is sent that scan's outputs.

        Args:
            steps: the sequences, time first.
            state: for each of `state_layouts` an array, (B, H) by default, or None for zeros.

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
        """(B, O): the output of the step that ended in these states."""
        return state[0]

    def last_step(self, y: mx.array, steps: Steps) -> mx.array:
        """(T, B, O) -> (B, O): y without return_sequences."""
        return steps.last(y)

    def state_to_caller(self, state: list[mx.array]) -> Any:
        """The states in the form returned to the caller."""
        return state[0] if self.bare_state else state

    def check_read_options(self, **options: Any) -> None:
        """Raise an error for a wrong value of one of `read_options`, before any computation."""

    def read_out(self, y: mx.array, steps: Steps) -> mx.array:
        """Map the units' outputs (..., H) to y (..., O); here the identity."""
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
        return_states: bool = False,
        **options: Any,
    ) -> Any:
        """Run the layer over a batch of sequences; see the class for the shapes.

        With `return_states` the last returned item is the states after every step: in the form of the state, each (..., B, T, F) instead
        of (..., B, F), with y's order of steps and layout, zero past each length. `checkpoint_steps` then saves no memory.
        """
        owner = type(self).__name__
        sequences = self.return_sequences if return_sequences is None else check_flag(owner, "return_sequences", return_sequences)
        with_state = self.return_state if return_state is None else check_flag(owner, "return_state", return_state)
        check_call_options(owner, options, (*self.run_options, *self.read_options))
        if time_deltas is not None and not self.timed:
            raise bad_argument(owner, "time_deltas", "be None, since this layer does not use elapsed time", type_name(time_deltas))
        self.check_parameters()
        steps, state = self.read_call(x, initial_state, time_deltas, lengths)
        run_options = {name: options.pop(name) for name in self.run_options if name in options}
        self.check_read_options(**options)
        steps = steps._replace(every=self.check_states_wanted(return_states))
        y, final = self._run(steps, state, sequences, run_options, options)
        y = y.astype(mx.result_type(x.dtype, self.dtype))
        result = [steps.to_caller(y) if sequences else steps.without_batch(y)]
        every = [steps.without_padding(a) for a in final] if steps.every else []
        if with_state:
            final = [steps.last_of_stack(a) for a in every] if steps.every else final
            result.append(self.state_to_caller([steps.without_batch(a) for a in final]))
        if steps.every:
            result.append(self.state_to_caller([steps.to_caller(a) for a in every]))
        return tuple(result) if len(result) > 1 else result[0]

    def check_states_wanted(self, return_states: Any) -> bool:
        """Check `return_states` and return it as a bool."""
        return check_flag(type(self).__name__, "return_states", return_states)

    def read_call(self, x: Any, initial_state: Any, time_deltas: Any, lengths: Any) -> tuple[Steps, list[mx.array | None]]:
        """Check a call's arguments and return the sequences in processing order, and each state as in `state_layouts`, or None."""
        owner = type(self).__name__
        steps = read_steps(owner, x, time_deltas, lengths, self.input_size, self.batch_first)
        given = [initial_state] if self.bare_state else initial_state
        state = read_state(owner, given, self.state_layouts, steps.x.shape[1], steps.batched)
        return (steps.backwards() if self.go_backwards else steps), state

    def stepper(self, batch: int = 1, dtype: mx.Dtype | None = None) -> "Stepper":
        """Make an object that runs the layer one time step at a time, for control loops and sensors, with the current weights.

        On the CPU a step is computed by NumPy, without a graph; on a GPU, and for a user-defined layer, it is compiled.

        Args:
            batch: B, number of sequences stepped together.
            dtype: mx.float32 or mx.float64, for the computation and the results; None: float64 if the parameters are, else float32.

        Returns:
            An object with `step(x_t, dt=1.0)`, which maps (B, I) to y_t (B, O), or (I,) to (O,) if B is 1, and returns MLX or NumPy arrays
            like its input; `reset()`; and `state`, in the form that a call takes and returns, which can be set.

        Raises:
            TypeError: a batch that is not an integer, a dtype that is not an MLX dtype.
            ValueError: a batch below 1, an unsupported dtype, or a layer that runs backwards or in both directions.

        Example:
            >>> import mlx.core as mx
            >>> from ember_mlx import LTC
            >>> stepper = LTC(8, 3).stepper()
            >>> stepper.step(mx.ones((3,)), dt=0.1).shape
            (8,)
        """
        from ..stepping import make_stepper  # not at the top: stepping imports the layers

        return make_stepper(self, batch, dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments as JSON-serialisable values; `from_config` makes the same layer from them, with new weights."""
        config = {name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"}
        return {name: map_to_config(value) if isinstance(value, NeuronMap) else value for name, value in config.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RecurrentLayer":
        """Make the layer that `get_config` of the same class describes, with new weights."""
        parameters = [p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"]
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        others = [str(name) for name in config if name not in named] if len(named) < len(parameters) and isinstance(config, Mapping) else []
        check_config(cls.__name__, config, [*named, *others], [p.name for p in parameters if p.default is p.empty and p.name in named])
        arguments: dict[str, Any] = {name: map_from_config(value) if name == "neuron_map" else value for name, value in config.items()}
        return cls(**arguments)

    def alike(self, **changes: Any) -> "RecurrentLayer":
        """A layer like this one but for some of the constructor's arguments, with new weights."""
        return type(self).from_config(self.get_config() | changes)

    def _repr_html_(self) -> str:
        """The parameter table, for notebooks."""
        return parameter_table(self)

    @property
    def dtype(self) -> mx.Dtype:
        """The parameters' dtype."""
        return mx.result_type(*{a.dtype for path, a in _arrays_of(self) if not path.endswith("map_id")})

"""Stacked recurrent layers, each in one direction or both."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, TypedDict, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import bad_argument
from ..scans.batched import Scan, Scans, run_scans
from ..scans.dispatch import Recurrence
from ..validation import check_flag, check_integer, check_probability, check_size
from .arguments import StateLayout, Steps, compute_dtype
from .base import Check, RecurrentLayer
from .checkpointing import Run, run_in_parts

DIRECTIONS = ("forward", "backward")
Tree = dict[str, Any]
Layer = TypeVar("Layer", bound=type["StackedLayer"])

SIZES = """
input_size: I, features of x.
hidden_size: H, units of each layer and direction.
num_layers: stacked layers; each takes the output of the one below.
"""
OPTIONS = """
bias: whether there are biases.
dropout: probability of dropping a feature between two layers, in training; not inside ``mx.checkpoint``, which draws a different
    mask in the backward pass.
bidirectional: whether each layer also runs in reverse, from the last valid step to the first, with its own weights. The layer
    above takes both outputs, concatenated.
return_sequences: whether y holds every step, or only each direction's final step: the last valid step of the forward run, the
    first step of the backward run.
return_state: whether the state is returned too.
batch_first: whether x is (B, T, I) or (T, B, I).
go_backwards: whether each sequence is processed from its last valid step to its first. As in Keras, y is then in the order
    of processing.
checkpoint_steps: time steps per segment, for long sequences: only the states between segments are kept, and the backward pass
    recomputes each segment. None: keep everything.
"""
CALL = """
Call:
    ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, return_states)``

    x: (B, T, I), or (T, I) without batch; floating point.
    initial_state: {state}, (num_layers * num_directions, B, H) each, or None for zeros, as a whole or for one of them.{more_state}
    time_deltas: {times}
    lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, cost no time on the CPU, and y is 0 there.

Returns:
    y (B, T, H * num_directions), or (B, H * num_directions) without return_sequences, in the promoted dtype of x and the
    parameters. With return_state (y, {state}): float32, (num_layers * num_directions, B, H) each, in the order layer 0 forward,
    layer 0 backward, layer 1 forward ... Without batch y is (T, ...) and a state (num_layers * num_directions, H).{more_result}
    With return_states the last item is the states after every step, each (..., B, T, F) instead of (..., B, F).
"""
UNTIMED = "must be None: these equations do not use elapsed time. Append it to x, or use a continuous-time layer."


class StackedOptions(TypedDict, total=False):
    """The keyword arguments of every stacked layer; see OPTIONS."""

    bias: bool
    dropout: float
    bidirectional: bool
    return_sequences: bool
    return_state: bool
    batch_first: bool
    go_backwards: bool
    checkpoint_steps: int | None


class StackedLayer(RecurrentLayer):
    """Base class of RNN, LSTM, GRU and Recurrent: stacked layers, each in one direction or both.

    A subclass names its recurrence and its states, and defines the static part of a scan (`spec`) and the parameters of a direction
    (`make_direction`). Parameters are ``layers[k][direction]``, direction "forward" or "backward".

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: stacked layers.
        bias: whether there are biases.
        dropout: between layers.
        bidirectional: whether each layer has two directions.
        return_sequences: as in RecurrentLayer.
        return_state: as in RecurrentLayer.
        batch_first: as in RecurrentLayer.
        go_backwards: as in RecurrentLayer.
        checkpoint_steps: as in RecurrentLayer.
    """

    is_base = True
    recurrence: Recurrence
    timed: bool = False
    settings: ClassVar[dict[str, Check]] = RecurrentLayer.settings | {"dropout": check_probability}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        return_sequences: bool = True,
        return_state: bool = False,
        batch_first: bool = True,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
    ):
        owner = type(self).__name__
        input_size, hidden_size = check_integer(owner, "input_size", input_size), check_integer(owner, "hidden_size", hidden_size)
        super().__init__(input_size, hidden_size, return_sequences, return_state, batch_first, go_backwards, checkpoint_steps)
        self.hidden_size, self.num_layers = hidden_size, check_integer(owner, "num_layers", num_layers)
        self.bias, self.bidirectional = check_flag(owner, "bias", bias), check_flag(owner, "bidirectional", bidirectional)
        self.dropout = dropout
        if self.dropout and self.num_layers == 1:
            raise bad_argument(owner, "dropout", "be 0 with a single layer, since it acts between layers", dropout)
        self._make_parameters()

    @property
    def spec(self) -> Hashable:
        """What is fixed about a scan."""
        raise TypeError(f"{type(self).__name__} defines no spec.")

    @property
    def blocks(self) -> int:
        """Blocks of H rows in the largest weight."""
        return 1

    def make_direction(self, inputs: int) -> "Direction":
        """The parameters of one layer in one direction, which has so many inputs."""
        raise TypeError(f"{type(self).__name__} defines no make_direction().")

    def initial_tree(self, state: Sequence[mx.array]) -> Tree:
        """The states before a scan, (D, B, F) each, as the scan takes them."""
        return {f"{name}0": a for name, a in zip(self.state_names, state, strict=True)}

    def _make_parameters(self) -> None:
        names, features = DIRECTIONS[: self.num_directions], self.direction_size
        owner, rows = type(self).__name__, self.blocks * self.hidden_size
        check_size(owner, "hidden_size", rows, self.hidden_size)
        check_size(owner, "input_size", rows, self.input_size)
        check_size(owner, "num_layers", self.num_layers, rows, features)
        sizes = [self.input_size, *[features * self.num_directions] * (self.num_layers - 1)]
        self.layers = [{name: self.make_direction(size) for name in names} for size in sizes]
        self.made()

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Where there is dropout."""
        return self.dropout > 0

    @property
    def num_directions(self) -> int:
        """2 where it is bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def direction_size(self) -> int:
        """Features of y in one direction."""
        return self.hidden_size

    @property
    def output_size(self) -> int:
        """Features of y, of both directions where there are two."""
        return self.direction_size * self.num_directions

    @property
    def state_layouts(self) -> tuple[StateLayout, ...]:
        """The states in order."""
        stack, axis = self.num_layers * self.num_directions, "num_layers * num_directions"
        return tuple(StateLayout(name, self.hidden_size, stack, axis) for name in self.state_names)

    def scans(self, steps: Steps, state: list[mx.array | None]) -> Scans:  # type: ignore[override]
        """The scan of each layer; see RecurrentLayer.scans."""
        u = steps.x.astype(compute_dtype(steps.x, self.dtype))
        initial, final = self._by_layer(state, u), []
        dt = mx.stack([steps.dt, steps.turned(steps.dt)] if self.bidirectional else [steps.dt]) if self.timed else None
        for k in range(self.num_layers):
            x = mx.stack([u, steps.turned(u)]) if self.bidirectional else mx.expand_dims(u, 0)
            outputs = yield from self._layer(k, DIRECTIONS[: self.num_directions], steps.lengths, x, dt, initial[k])
            final.append([[steps.kept(steps.turned(a) if d and steps.every else a) for d, a in enumerate(parts)] for parts in outputs])
            u = self._between(k, steps, outputs[0])
        return u, [mx.stack([a for layer in final for a in layer[s]]) for s in range(len(self.state_names))]

    def _layer(
        self, k: int, directions: Sequence[str], lengths: mx.array | None, x: mx.array, dt: mx.array | None, state: list[mx.array]
    ) -> Scans:
        """The scan of layer k in some directions, from x (D, T, B, I), dt (D, T, B) and states (D, B, F).

        Returns:
            For each state D times (T, B, F).
        """
        arrays: Tree = _stacked([self.layers[k][name].scan_tree(x.dtype) for name in directions])
        arrays |= {"x": x} | self.initial_tree(state)
        arrays |= {} if dt is None else {"dt": dt}
        arrays |= {} if lengths is None else {"lengths": lengths}
        outputs = yield Scan(self.recurrence, self.spec, arrays)
        return [_by_direction(a) for a in outputs]

    def _between(self, k: int, steps: Steps, h: list[mx.array]) -> mx.array:
        """From layer k's h in each direction to what the layer above takes, or the caller."""
        u = mx.concatenate([h[0], steps.turned(h[1])], axis=2) if self.bidirectional else h[0]
        return self._dropped(u, steps.keys(self.num_layers)[k]) if k + 1 < self.num_layers else u

    @property
    def can_be_cut(self) -> bool:
        """Not in both directions: the layer above needs the whole of the backward run."""
        return not self.bidirectional

    def run(self, steps: Steps, state: list[mx.array | None], **options: Any) -> tuple[mx.array, list[mx.array]]:
        """Run the recurrence; in both directions each direction of each layer in parts, where that is wanted."""
        size = self.part_size(steps)
        if size is None or self.can_be_cut:
            return super().run(steps, state, **options)
        u, final = steps.x.astype(compute_dtype(steps.x, self.dtype)), []
        for k, initial in enumerate(self._by_layer(state, u)):
            runs, ways = [], (steps._replace(x=u), steps._replace(x=u).backwards())
            for d, (way, name) in enumerate(zip(ways, DIRECTIONS, strict=True)):
                own = [mx.split(a, 2)[d] for a in initial]  # of an index the gradient has no jvp
                runs.append(run_in_parts(self, self._run_of(k, name), way, own, size, True))
            final.append([mx.concatenate(list(pair)) for pair in zip(*(last for _, last in runs), strict=True)])
            u = self._between(k, steps, [y for y, _ in runs])
        return u, [mx.concatenate(list(parts)) for parts in zip(*final, strict=True)]

    def _run_of(self, k: int, direction: str) -> Run:
        """One direction of layer k, for parts of its steps."""

        def run(layer: Any, steps: Steps, state: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
            dt = mx.expand_dims(steps.dt, 0) if layer.timed else None
            scan = layer._layer(k, [direction], steps.lengths, mx.expand_dims(steps.x, 0), dt, state)
            outputs = run_scans([scan], keep=layer.training)[0]
            return outputs[0][0], [mx.expand_dims(steps.last(parts[0]), 0) for parts in outputs]

        return run

    def _by_layer(self, state: list[mx.array | None], like: mx.array) -> list[list[mx.array]]:
        """For each layer its states, (D, B, F) each."""
        shapes = [layout.shape(like.shape[1], True) for layout in self.state_layouts]
        given = [mx.zeros(shape, like.dtype) if a is None else a.astype(like.dtype) for a, shape in zip(state, shapes, strict=True)]
        return [list(parts) for parts in zip(*(mx.split(a, self.num_layers) for a in given), strict=True)]

    def _dropped(self, u: mx.array, key: mx.array | None = None) -> mx.array:
        """Dropout between layers, in training."""
        if not (self.training and self.dropout):
            return u
        kept = mx.random.bernoulli(1 - self.dropout, u.shape, key).astype(u.dtype)
        return u * kept / (1 - self.dropout or 1)

    def output_of(self, state: list[mx.array]) -> mx.array:
        """The last layer's output; in one direction only."""
        return state[0][-1]

    def last_step(self, y: mx.array, steps: Steps) -> mx.array:
        """Each direction's last step: that of the backward one is the first."""
        if not self.bidirectional:
            return steps.last(y)
        forward, backward = mx.split(y, 2, axis=2)
        return mx.concatenate([steps.last(forward), mx.split(backward, [1])[0].squeeze(0)], axis=1)

    def _extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        parts += [f"num_layers={self.num_layers}"] if self.num_layers > 1 else []
        parts += ["bias=False"] if not self.bias else []
        parts += [f"dropout={self.dropout}"] if self.dropout else []
        parts += ["bidirectional=True"] if self.bidirectional else []
        return ", ".join(parts)


class Direction(nn.Module):
    """The parameters of one layer in one direction."""

    def scan_tree(self, dtype: mx.Dtype) -> Tree:
        """The arrays of the scan."""
        raise TypeError(f"{type(self).__name__} defines no scan_tree().")

    def _extra_repr(self) -> str:
        return ", ".join(f"{name}={a.shape}" for name, a in self.items() if isinstance(a, mx.array))


def _stacked(trees: list[Any]) -> Any:
    """Trees of arrays as one, with an axis of them before the others."""
    if isinstance(trees[0], dict):
        return {name: _stacked([tree[name] for tree in trees]) for name in trees[0]}
    return mx.stack(trees)


def _by_direction(a: mx.array) -> list[mx.array]:
    """(D, T, B, F) -> D times (T, B, F)."""
    return [part.squeeze(0) for part in mx.split(a, a.shape[0])]


def described(state: str, times: str = UNTIMED, more_state: str = "", more_result: str = "") -> Callable[[Layer], Layer]:
    """A class's docstring and signature, with what all classes of this kind say and take.

    In the docstring the lines <sizes>, <options> and <call> stand for SIZES, OPTIONS and CALL; in the constructor's signature
    ``**options`` stands for StackedLayer's options.

    Args:
        state: the states as a caller gives and gets them.
        times: what time_deltas are.
        more_state: what else is said of initial_state.
        more_result: what else is said of what is returned.
    """
    call = CALL.format(state=state, times=times, more_state=more_state, more_result=more_result)
    texts = {"<sizes>": SIZES, "<options>": OPTIONS, "<call>": call}

    def complete(cls: Layer) -> Layer:
        lines: list[str] = []
        for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
            margin = line[: len(line) - len(line.lstrip())]
            lines += [f"{margin}{each}".rstrip() for each in texts[line.strip()].strip().splitlines()] if line.strip() in texts else [line]
        cls.__doc__ = "\n".join(lines)
        if "__init__" in vars(cls):
            own = [p for p in inspect.signature(cls.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD]
            common = [p for p in inspect.signature(StackedLayer.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
            cls.__init__.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        return cls

    return complete

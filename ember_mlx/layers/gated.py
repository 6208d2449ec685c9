"""The gated layers RNN, LSTM and GRU."""

from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..checks import check_choice, check_flag, check_integer, check_probability, check_size
from ..errors import bad_argument
from ..scans.dispatch import Recurrence
from ..scans.gated.scan import GRU as GRU_SCAN
from ..scans.gated.scan import LSTM as LSTM_SCAN
from ..scans.gated.scan import RNN as RNN_SCAN
from ..scans.gated.spec import GatedSpec
from ..scans.several import Scan, Scans, run_scans
from .arguments import StateLayout, Steps, compute_dtype
from .base import Check, RecurrentLayer
from .checkpointing import Run, run_in_parts
from .initial import uniform

DIRECTIONS = ("forward", "backward")
RNN_ACTIVATIONS = ("tanh", "relu")
Tree = dict[str, Any]


class GatedLayer(RecurrentLayer):
    """Base class of RNN, LSTM and GRU: stacked layers, each in one direction or both.

    A subclass names its recurrence, its cell and its states. Parameters are ``layers[k][direction]``, direction "forward" or
    "backward", with the names of mlx.nn: Wx (G H, inputs), Wh (G H, H), bias (G H).
    """

    recurrence: Recurrence
    cell: str
    state_names: tuple[str, ...] = ("h",)
    timed = False
    proj_size: int | None = None
    settings: ClassVar[dict[str, Check]] = RecurrentLayer.settings | {"dropout": check_probability}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        dropout: float,
        bidirectional: bool,
        return_sequences: bool,
        return_state: bool,
        batch_first: bool,
        go_backwards: bool,
        checkpoint_steps: int | None,
    ):
        owner = type(self).__name__
        input_size, hidden_size = check_integer(owner, "input_size", input_size), check_integer(owner, "hidden_size", hidden_size)
        super().__init__(input_size, hidden_size, return_sequences, return_state, batch_first, go_backwards, checkpoint_steps)
        self.hidden_size, self.num_layers = hidden_size, check_integer(owner, "num_layers", num_layers)
        self.bias, self.bidirectional = check_flag(owner, "bias", bias), check_flag(owner, "bidirectional", bidirectional)
        self.dropout = dropout
        if self.dropout and self.num_layers == 1:
            raise bad_argument(owner, "dropout", "be 0 with a single layer, since it acts between layers", dropout)

    def _make_parameters(self) -> None:
        names, features = DIRECTIONS[: self.num_directions], self.direction_size
        owner, rows = type(self).__name__, GatedSpec(self.cell).gates * self.hidden_size
        check_size(owner, "hidden_size", rows, self.hidden_size)
        check_size(owner, "input_size", rows, self.input_size)
        check_size(owner, "num_layers", self.num_layers, rows, features)
        sizes = [self.input_size, *[features * self.num_directions] * (self.num_layers - 1)]
        self.layers = [{name: self._direction(size) for name in names} for size in sizes]
        self.made()

    def _direction(self, inputs: int) -> "GatedDirection":
        return GatedDirection(self.cell, inputs, self.hidden_size, self.bias, self.proj_size)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether there is dropout."""
        return self.dropout > 0

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def direction_size(self) -> int:
        """Features of h per direction."""
        return self.proj_size or self.hidden_size

    @property
    def output_size(self) -> int:
        """Features of y, all directions together."""
        return self.direction_size * self.num_directions

    @property
    def state_layouts(self) -> tuple[StateLayout, ...]:
        """h, and for an LSTM c."""
        stack, axis = self.num_layers * self.num_directions, "num_layers * num_directions"
        sizes = {"h": (self.direction_size, "proj_size" if self.proj_size else "H"), "c": (self.hidden_size, "H")}
        return tuple(StateLayout(name, sizes[name][0], stack, axis, sizes[name][1]) for name in self.state_names)

    def scans(self, steps: Steps, state: list[mx.array | None]) -> Scans:  # type: ignore[override]
        """The scan of each layer; see RecurrentLayer.scans."""
        u = steps.x.astype(compute_dtype(steps.x, self.dtype))
        initial, final = self._by_layer(state, u), []
        for k in range(self.num_layers):
            x = mx.stack([u, steps.turned(u)]) if self.bidirectional else mx.expand_dims(u, 0)
            outputs = yield from self._layer(k, DIRECTIONS[: self.num_directions], steps, x, initial[k])
            final.append([[steps.kept(steps.turned(a) if d and steps.every else a) for d, a in enumerate(parts)] for parts in outputs])
            u = self._between(k, steps, outputs[0])
        return u, [mx.stack([a for layer in final for a in layer[s]]) for s in range(len(self.state_names))]

    def _layer(self, k: int, directions: Sequence[str], steps: Steps, x: mx.array, state: list[mx.array]) -> Scans:
        """The scan of layer k in D directions, from x (D, T, B, I) and states (D, B, F) to D arrays (T, B, F) for each state."""
        arrays = self._weights([self.layers[k][name] for name in directions], x.dtype)
        arrays |= {"x": x} | {f"{name}0": a for name, a in zip(self.state_names, state, strict=True)}
        arrays |= {} if steps.lengths is None else {"lengths": steps.lengths}
        outputs = yield Scan(self.recurrence, GatedSpec(self.cell), arrays)
        return [_by_direction(a) for a in outputs]

    def _between(self, k: int, steps: Steps, h: list[mx.array]) -> mx.array:
        """Combine layer k's h in each direction into the input of the next layer, or into y."""
        u = mx.concatenate([h[0], steps.turned(h[1])], axis=2) if self.bidirectional else h[0]
        return self._dropped(u, steps.keys(self.num_layers)[k]) if k + 1 < self.num_layers else u

    @property
    def can_be_cut(self) -> bool:
        """False if bidirectional: the next layer needs the complete backward run."""
        return not self.bidirectional

    def run(self, steps: Steps, state: list[mx.array | None], **options: Any) -> tuple[mx.array, list[mx.array]]:
        """Run the recurrence; a bidirectional layer is checkpointed per layer and direction."""
        size = self.part_size(steps)
        if size is None or self.can_be_cut:
            return super().run(steps, state, **options)
        u, final = steps.x.astype(compute_dtype(steps.x, self.dtype)), []
        for k, initial in enumerate(self._by_layer(state, u)):
            runs = []
            for d, (x, name) in enumerate(zip((u, steps.turned(u)), DIRECTIONS, strict=True)):
                own = [mx.split(a, 2)[d] for a in initial]  # not an index: its gradient has no jvp
                runs.append(run_in_parts(self, self._run_of(k, name), steps._replace(x=x), own, size, True))
            final.append([mx.concatenate(list(pair)) for pair in zip(*(last for _, last in runs), strict=True)])
            u = self._between(k, steps, [y for y, _ in runs])
        return u, [mx.concatenate(list(parts)) for parts in zip(*final, strict=True)]

    def _run_of(self, k: int, direction: str) -> Run:
        """A function that runs one direction of layer k over a segment."""

        def run(layer: Any, steps: Steps, state: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
            scan = layer._layer(k, [direction], steps, mx.expand_dims(steps.x, 0), state)
            outputs = run_scans([scan], keep=layer.training)[0]
            return outputs[0][0], [mx.expand_dims(steps.last(parts[0]), 0) for parts in outputs]

        return run

    def _by_layer(self, state: list[mx.array | None], like: mx.array) -> list[list[mx.array]]:
        """Each layer's states, (D, B, F) each."""
        shapes = [layout.shape(like.shape[1], True) for layout in self.state_layouts]
        given = [mx.zeros(shape, like.dtype) if a is None else a.astype(like.dtype) for a, shape in zip(state, shapes, strict=True)]
        return [list(parts) for parts in zip(*(mx.split(a, self.num_layers) for a in given), strict=True)]

    def _weights(self, directions: list["GatedDirection"], dtype: mx.Dtype) -> Tree:
        """One layer's weights for the scan."""
        parts = [direction.scan_tree(dtype) for direction in directions]
        return {name: mx.stack([part[name] for part in parts]) for name in parts[0]}

    def _dropped(self, u: mx.array, key: mx.array | None = None) -> mx.array:
        """Dropout between layers, in training."""
        if not (self.training and self.dropout):
            return u
        kept = mx.random.bernoulli(1 - self.dropout, u.shape, key).astype(u.dtype)
        return u * kept / (1 - self.dropout or 1)

    def output_of(self, state: list[mx.array]) -> mx.array:
        """The last layer's h; unidirectional layers only."""
        return state[0][-1]

    def last_step(self, y: mx.array, steps: Steps) -> mx.array:
        """Each direction's final step; the backward run ends at the first step."""
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


class GatedDirection(nn.Module):
    """One layer's parameters in one direction, uniform in +-1/sqrt(H): Wx, Wh, bias; for a GRU bhn; for an LSTM with projection Wr."""

    def __init__(self, cell: str, inputs: int, units: int, bias: bool, proj_size: int | None):
        super().__init__()
        rows = GatedSpec(cell).gates * units
        self.Wx, self.Wh = uniform((rows, inputs), units), uniform((rows, proj_size or units), units)
        if bias:
            self.bias = uniform((rows,), units)
        if bias and cell == "gru":
            self.bhn = uniform((units,), units)
        if proj_size is not None:
            self.Wr = uniform((proj_size, units), units)
        self._rows, self._bhn_units = rows, units if cell == "gru" else 0

    def scan_tree(self, dtype: mx.Dtype) -> Tree:
        """The arrays of the scan."""
        names = {"Wx": "w_x", "Wh": "w_h", "bias": "b", "bhn": "b_hn", "Wr": "w_hr"}
        tree = {name: self[ours].astype(dtype) for ours, name in names.items() if ours in self}
        if "b" not in tree:
            tree["b"] = mx.zeros((self._rows,), dtype)
        if self._bhn_units and "b_hn" not in tree:
            tree["b_hn"] = mx.zeros((self._bhn_units,), dtype)
        return tree

    def _extra_repr(self) -> str:
        return ", ".join(f"{name}={a.shape}" for name, a in self.items() if isinstance(a, mx.array))


def _by_direction(a: mx.array) -> list[mx.array]:
    """(D, T, B, F) -> D arrays (T, B, F)."""
    return [part.squeeze(0) for part in mx.split(a, a.shape[0])]


class RNN(GatedLayer):
    r"""A simple recurrent layer, as torch.nn.RNN defines it.

    One step::

        h' = tanh(W_x x + W_h h + b)      or relu

    Args:
        input_size: I, features of x.
        hidden_size: H, units of each layer and direction.
        num_layers: stacked layers; each takes the output of the one below.
        activation: "tanh" or "relu".
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

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, return_states)``

        x: (B, T, I), or (T, I) without batch; floating point.
        initial_state: [h], (num_layers * num_directions, B, H), or None for zeros.
        time_deltas: must be None: these equations do not use elapsed time. Append it to x, or use a continuous-time layer.
        lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, cost no time on the CPU, and y is 0 there.

    Returns:
        y (B, T, H * num_directions), or (B, H * num_directions) without return_sequences, in the promoted dtype of x and the
        parameters. With return_state (y, [h]): float32, (num_layers * num_directions, B, H), in the order layer 0 forward,
        layer 0 backward, layer 1 forward ... Without batch y is (T, ...) and a state (num_layers * num_directions, H).
        With return_states the last item is the states after every step, each (..., B, T, F) instead of (..., B, F).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of a wrong shape or value; time_deltas.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import RNN
        >>> y, [h] = RNN(10, 20)(mx.zeros((32, 5, 10)), return_state=True)
        >>> y.shape, h.shape
        ((32, 5, 20), (1, 32, 20))

    Source: Elman, Finding structure in time, Cognitive Science 14, 179-211 (1990), https://doi.org/10.1207/s15516709cog1402_1.
    """

    recurrence = RNN_SCAN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        activation: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        return_sequences: bool = True,
        return_state: bool = False,
        batch_first: bool = True,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
    ):
        flags = return_sequences, return_state, batch_first, go_backwards, checkpoint_steps
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, bidirectional, *flags)
        self.activation = check_choice(type(self).__name__, "activation", activation, RNN_ACTIVATIONS)
        self._make_parameters()

    @property
    def cell(self) -> str:  # type: ignore[override]
        """tanh or relu."""
        return self.activation

    def _extra_repr(self) -> str:
        return super()._extra_repr() + (f", activation={self.activation}" if self.activation != "tanh" else "")


class LSTM(GatedLayer):
    r"""A long short-term memory layer, as torch.nn.LSTM defines it.

    One step, each gate with H rows of W, R and b, in the order i, f, g, o::

        i, f, o = sigma(W x + R h + b);   g = tanh(W x + R h + b)
        c' = f c + i g
        h' = o tanh(c')                   with proj_size: W_r (o tanh(c'))

    Args:
        input_size: I, features of x.
        hidden_size: H, units of each layer and direction.
        num_layers: stacked layers; each takes the output of the one below.
        proj_size: if given, h is a learned linear map of o tanh(c') to this many features, less than H.
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

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, return_states)``

        x: (B, T, I), or (T, I) without batch; floating point.
        initial_state: (h, c), each (num_layers * num_directions, B, H) or None for zeros; h is (..., proj_size) if that is given.
        time_deltas: must be None: these equations do not use elapsed time. Append it to x, or use a continuous-time layer.
        lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, cost no time on the CPU, and y is 0 there.

    Returns:
        y (B, T, H * num_directions), or (B, H * num_directions) without return_sequences, in the promoted dtype of x and the
        parameters. With return_state (y, (h, c)): float32, (num_layers * num_directions, B, H) each, in the order layer 0 forward,
        layer 0 backward, layer 1 forward ... Without batch y is (T, ...) and a state (num_layers * num_directions, H). With proj_size
        y and h have proj_size features instead of H.
        With return_states the last item is the states after every step, each (..., B, T, F) instead of (..., B, F).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of a wrong shape or value; time_deltas.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import LSTM
        >>> y, (h, c) = LSTM(10, 20, bidirectional=True)(mx.zeros((32, 5, 10)), return_state=True)
        >>> y.shape, h.shape, c.shape
        ((32, 5, 40), (2, 32, 20), (2, 32, 20))

    Source: Hochreiter and Schmidhuber, Long short-term memory, Neural Computation 9, 1735-1780 (1997),
    https://doi.org/10.1162/neco.1997.9.8.1735.
    """

    recurrence = LSTM_SCAN
    cell = "lstm"
    state_names = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        proj_size: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        return_sequences: bool = True,
        return_state: bool = False,
        batch_first: bool = True,
        go_backwards: bool = False,
        checkpoint_steps: int | None = None,
    ):
        flags = return_sequences, return_state, batch_first, go_backwards, checkpoint_steps
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, bidirectional, *flags)
        self.proj_size = None if proj_size is None else check_integer(type(self).__name__, "proj_size", proj_size)
        if proj_size is not None and proj_size >= hidden_size:
            raise bad_argument(type(self).__name__, "proj_size", f"be less than hidden_size = {hidden_size}", proj_size)
        self._make_parameters()

    def state_to_caller(self, state: list[mx.array]) -> Any:
        """(h, c)."""
        return tuple(state)

    def _extra_repr(self) -> str:
        return super()._extra_repr() + (f", proj_size={self.proj_size}" if self.proj_size else "")


class GRU(GatedLayer):
    r"""A gated recurrent unit layer, as torch.nn.GRU defines it: the reset gate acts after the product.

    One step, each gate with H rows of W, R and b, in the order r, z, n::

        r, z = sigma(W x + R h + b)
        n = tanh(W_n x + b_n + r (R_n h + b_hn))
        h' = (1 - z) n + z h

    Args:
        input_size: I, features of x.
        hidden_size: H, units of each layer and direction.
        num_layers: stacked layers; each takes the output of the one below.
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

    Call:
        ``layer(x, initial_state=None, time_deltas=None, lengths=None, *, return_sequences, return_state, return_states)``

        x: (B, T, I), or (T, I) without batch; floating point.
        initial_state: [h], (num_layers * num_directions, B, H), or None for zeros.
        time_deltas: must be None: these equations do not use elapsed time. Append it to x, or use a continuous-time layer.
        lengths: (B,) integers in 1..T; later steps are padding: they leave the state unchanged, cost no time on the CPU, and y is 0 there.

    Returns:
        y (B, T, H * num_directions), or (B, H * num_directions) without return_sequences, in the promoted dtype of x and the
        parameters. With return_state (y, [h]): float32, (num_layers * num_directions, B, H), in the order layer 0 forward,
        layer 0 backward, layer 1 forward ... Without batch y is (T, ...) and a state (num_layers * num_directions, H).
        With return_states the last item is the states after every step, each (..., B, T, F) instead of (..., B, F).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of a wrong shape or value; time_deltas.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx import GRU
        >>> y, [h] = GRU(10, 20)(mx.zeros((32, 5, 10)), return_state=True)
        >>> y.shape, h.shape
        ((32, 5, 20), (1, 32, 20))

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder for statistical machine translation, EMNLP 2014,
    1724-1734, https://doi.org/10.3115/v1/D14-1179.
    """

    recurrence = GRU_SCAN
    cell = "gru"

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
        flags = return_sequences, return_state, batch_first, go_backwards, checkpoint_steps
        super().__init__(input_size, hidden_size, num_layers, bias, dropout, bidirectional, *flags)
        self._make_parameters()

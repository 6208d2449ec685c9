"""The NumPy form of the gated scan (RNN, LSTM, GRU): forward, and a handwritten backward. It computes in the dtype of its arrays.

Both take the arrays of one scan as a tree (D independent directions; T steps, B sequences, H units, G gates):

    x        (D, T, B, I)   inputs, in each direction's order of steps
    h0       (D, B, H)      state before the first step;  c0 (D, B, H) too for an LSTM
    w_x, w_h (D, G H, I), (D, G H, H);  b (D, G H);  b_hn (D, H) too for a GRU
    w_hr     (D, P, H)      optional, for an LSTM: its h has P features, and w_h is (D, G H, P)
    lengths  (B,)           optional, integers in 1..T

One step; gates in the order of torch.nn, each H rows of the products::

    (1) q = W_h h,  a = W_x x + b + q       GRU: n's part of q is added in (2)
    (2) RNN:  a = tanh(a) or relu(a)
        LSTM: i, f, o = sigma(a_i, a_f, a_o);  g = tanh(a_g)
        GRU:  r, z = sigma(a_r, a_z);  n = tanh(W_xn x + b_n + r (q_n + b_hn))
    (3) RNN:  h' = a
        LSTM: c' = f c + i g;  h' = o tanh(c'), times W_hr if there is one
        GRU:  h' = n + z (h - n)

The loops over T contain only W_h h and what depends on it. The backward recomputes the gates from the states, a block of steps at a time,
unless the forward stored them.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..dense import KEPT_BYTES, Scratch, StepProduct, Sums
from ..packing import PackedLayout
from ..pointwise import Array, sigmoid_of_negative
from ..products import multiply, multiply_over_rows
from .spec import GatedSpec

Tree = dict[str, Any]
BLOCK_ROWS = 800  # rows (step and sequence) at a time: enough for products on two threads, few enough to stay in the cache


def gated_forward(spec: GatedSpec, arrays: Tree, kept: Scratch | None = None) -> tuple[Array, ...]:
    """Run an RNN, LSTM or GRU over T steps, in D directions.

    Args:
        spec: the static part.
        arrays: the tree above, float32 or float64.
        kept: buffers for the gates, which `gated_backward` reuses, unless they are too large; None: nothing is stored.

    Returns:
        (h,) of shape (D, T, B, H), zero past each length; for an LSTM (h, c), c of the same shape.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import GatedSpec, gated_forward
        >>> weights = {"w_x": np.zeros((1, 12, 4)), "w_h": np.zeros((1, 12, 3)), "b": np.zeros((1, 12))}
        >>> sequence = {"x": np.ones((1, 5, 2, 4)), "h0": np.ones((1, 2, 3)), "c0": np.ones((1, 2, 3))}
        >>> h, c = gated_forward(GatedSpec("lstm"), sequence | weights)
        >>> h.shape, float(c[0, 0, 0, 0])
        ((1, 5, 2, 3), 0.5)
    """
    scratch = Scratch(arrays["h0"].dtype)
    with np.errstate(over="ignore"):  # 1 / (1 + exp(-a)) is right there too
        scan = _Scan(spec, arrays, scratch)
        results = scan.results()
        all_gates = scan.room_to_keep(kept)
        state = scan.initial()
        for first, last in scan.layout.chunks(BLOCK_ROWS):
            block = scan.block(first, last)
            states = [scan.rows_of(f"states{k}", a, block) for k, a in enumerate(results)]
            point = scan.gates_of(all_gates, block)
            scan.project(block, point)
            for rows in block.steps:
                n = rows.stop - rows.start
                state = [a[:, :n] for a in state]
                gates, out = point[:, :, rows], [a[:, rows] for a in states]
                scan.cell.gates(scan.of_state(state[0]), gates)
                scan.cell.update(gates, state, out)
                state = out
            state = [scratch.copy(f"state{k}", a) for k, a in enumerate(state)]  # the next block overwrites these states
            for a, result in zip(states, results, strict=True):
                scan.store(a, result, block)
    return tuple(results)


def gated_backward(
    spec: GatedSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], kept: Scratch | None = None
) -> Tree:
    """The gradients of a gated scan, from those of its outputs.

    Args:
        spec: the static part.
        arrays: the arguments of `gated_forward`.
        outputs: its results.
        cotangents: the gradient of each output, same shapes.
        kept: the buffers passed to `gated_forward`, not used since; None: nothing was stored.

    Returns:
        The gradient of every floating-point array, as a tree of the same structure, without `lengths`.
    """
    scratch = Scratch(arrays["h0"].dtype)
    with np.errstate(over="ignore"):  # 1 / (1 + exp(-a)) is right there too
        scan = _Scan(spec, arrays, scratch)
        initial = scan.initial()
        outputs, cotangents = (tuple(np.ascontiguousarray(a) for a in given) for given in (outputs, cotangents))
        d_state = [np.zeros_like(a) for a in initial]
        d_x = scan.like_inputs()
        all_gates = scan.room_to_keep(kept)
        for first, last in reversed(scan.layout.chunks(BLOCK_ROWS)):
            block = scan.block(first, last)
            before = [scan.previous(f"before{k}", a, b, block) for k, (a, b) in enumerate(zip(initial, outputs, strict=True))]
            after, dy = (
                [scan.rows_of(f"{name}{k}", a, block) for k, a in enumerate(given)]
                for name, given in (("states", outputs), ("dy", cotangents))
            )
            gates = scan.recompute(block, before[0]) if all_gates is None else scan.gates_of(all_gates, block)
            point = scan.cell.linearise(gates, before, after)
            for rows in reversed(block.steps):
                n = rows.stop - rows.start
                here = [a[:, :n] for a in d_state]
                for a, b in zip(here, dy, strict=True):
                    a += b[:, rows]
                scan.cell.pull(point, rows, here)
            scan.accumulate(block, point, before[0], d_x)
        return scan.gradients(d_x, d_state)


class GatedStep:
    """A single step for repeated calls: each call reads x and the state from the arrays passed to the constructor.

    Args:
        spec: the static part.
        arrays: arguments as for `gated_forward`, contiguous, with T = 1 and without lengths.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import GatedSpec, GatedStep
        >>> arrays = {"w_x": np.zeros((1, 3, 4)), "w_h": np.eye(3)[None], "b": np.ones((1, 3)), "x": np.ones((1, 1, 2, 4))}
        >>> arrays["h0"] = np.zeros((1, 2, 3))
        >>> step = GatedStep(GatedSpec("relu"), arrays)
        >>> for _ in range(5):
        ...     arrays["h0"][...] = step()[0]
        >>> float(arrays["h0"][0, 0, 0])
        5.0
    """

    def __init__(self, spec: GatedSpec, arrays: Tree):
        self.scan = _Scan(spec, arrays, Scratch(arrays["h0"].dtype))
        self.block = self.scan.block(0, 1)
        self.gates = self.scan.gates_of(None, self.block)
        self.before = [arrays[name] for name in self.scan.states]
        self.after = [np.empty_like(a) for a in self.before]

    def __call__(self) -> list[Array]:
        """The state after the step, [h] or [h, c], (D, B, H) each; the next call overwrites it."""
        self.scan.project(self.block, self.gates)
        self.scan.cell.gates(self.scan.of_state(self.before[0]), self.gates)
        self.scan.cell.update(self.gates, self.before, self.after)
        return self.after


class _Point(NamedTuple):
    """A block of N steps linearised at its states, and the gradients that `pull` writes."""

    d: Array  # (D, blocks, N, H): gradients of the products' results
    slopes: tuple[Array, ...]
    projected: tuple[Array, Array] | None = None  # with W_hr: the gradient of h, and the input of W_hr


class _Cell(ABC):
    """The cell-specific part of a scan: the order of its gates, and its equations (2) and (3), forward and backward.

    `x_order` and `h_order` are the orders of the blocks in the products with x and h, as indices of torch.nn's gates, so that gates with
    the same activation are adjacent. The products' gradients are one array (D, blocks, N, H): the first G blocks belong to x, the last G to
    h. `factors` are folded into the weights, so that a step has fewer constants to multiply by: sigma(a) = 1 / (1 + exp(-a)).
    """

    x_order: tuple[int, ...] = (0,)
    h_order: tuple[int, ...] = (0,)
    factors: tuple[float, ...] = (1,)
    blocks = 1  # blocks of the gates that the backward needs, and of the products' gradients
    recomputed = True  # whether the backward needs the gates

    def __init__(self, arrays: Tree, scratch: Scratch):
        self.arrays, self.scratch = arrays, scratch

    @cached_property
    def back(self) -> StepProduct:
        """The product from the gradients of W_h h to h's, for each gate."""
        return StepProduct(gate_blocks(self.arrays["w_h"], self.h_order), self.scratch.part("back"))

    @abstractmethod
    def gates(self, q: Array, a: Array) -> None:
        """From q = W_h h (D, G, n, H) and a = W_x x + b to the gates, written to `a` (D, blocks, n, H)."""

    @abstractmethod
    def update(self, a: Array, before: list[Array], out: list[Array]) -> None:
        """From the gates and the state to the next one, `out`, (D, n, H) each."""

    @abstractmethod
    def linearise(self, a: Array, before: list[Array], after: list[Array]) -> _Point:
        """For a block of steps at once: everything that `pull` needs and that does not depend on the gradients."""

    @abstractmethod
    def pull(self, point: _Point, rows: slice, d_state: list[Array]) -> None:
        """From the gradients of a step's state (D, n, H) to those of the previous state, in place, and of the products, in `point.d`."""

    def pull_product(self, d: Array, dh: Array) -> None:
        """From the gradients of W_h h (D, G, n, H) to that of h, `dh` (D, n, P)."""
        if d.shape[1] == 1:
            self.back(d, dh[:, None])
        else:
            np.add.reduce(self.back(d, self.scratch("dq", *d.shape[:3], dh.shape[2])), axis=1, out=dh)


def gate_blocks(a: Array, order: tuple[int, ...]) -> Array:
    """(D, G H, ...) -> (D, G, H, ...), with the gates reordered."""
    a = a.reshape(len(a), len(order), -1, *a.shape[2:])
    return a if len(order) == 1 else a[:, order]


class _RNN(_Cell):
    """h' = tanh(a) or relu(a)."""

    recomputed = False

    def gates(self, q: Array, a: Array) -> None:
        a += q  # (1)
        self.activate(a)  # (2)

    @staticmethod
    def activate(a: Array) -> None:
        np.tanh(a, out=a)

    @staticmethod
    def slope(h: Array, out: Array) -> None:
        np.multiply(h, h, out=out)
        np.subtract(1, out, out=out)

    def update(self, a: Array, before: list[Array], out: list[Array]) -> None:
        out[0][...] = a[:, 0]  # (3)

    def linearise(self, a: Array, before: list[Array], after: list[Array]) -> _Point:
        h = after[0]
        slope, d = self.scratch("slope", *h.shape), self.scratch("d", *h.shape)
        self.slope(h, slope)
        return _Point(d[:, None], (slope,))

    def pull(self, point: _Point, rows: slice, d_state: list[Array]) -> None:
        (dh,), d = d_state, point.d[:, :, rows]
        np.multiply(dh, point.slopes[0][:, rows], out=d[:, 0])
        self.pull_product(d, dh)


class _ReluRNN(_RNN):
    @staticmethod
    def activate(a: Array) -> None:
        np.maximum(a, 0, out=a)

    @staticmethod
    def slope(h: Array, out: Array) -> None:
        np.greater(h, 0, out=out, casting="unsafe")


class _LSTM(_Cell):
    """Gates in the order o, i, f, g: the three logistic gates are adjacent, and so are the three that c depends on.

    g uses tanh: 2 sigma(2 a) - 1, which would allow one exp for all four gates, loses the digits of a small a.
    """

    x_order = h_order = (3, 0, 1, 2)
    factors = (-1, -1, 1, -1)
    blocks = 4

    def __init__(self, arrays: Tree, scratch: Scratch):
        super().__init__(arrays, scratch)
        w_hr = arrays.get("w_hr")
        self.project = None if w_hr is None else StepProduct(w_hr.swapaxes(1, 2)[:, None], scratch.part("project"))
        self.project_back = None if w_hr is None else StepProduct(w_hr[:, None], scratch.part("project_back"))

    def gates(self, q: Array, a: Array) -> None:
        a += q  # (1)
        sigmoid_of_negative(a[:, :3])  # (2)
        np.tanh(a[:, 3], out=a[:, 3])

    def update(self, a: Array, before: list[Array], out: list[Array]) -> None:
        o, i, f, g = a.swapaxes(0, 1)
        c, c_next = before[1], out[1]
        rest = np.multiply(i, g, out=self.scratch("rest", *c.shape))
        np.multiply(f, c, out=c_next)
        c_next += rest  # (3)
        np.tanh(c_next, out=rest)
        if self.project is None:
            np.multiply(o, rest, out=out[0])
        else:
            rest *= o
            self.project(rest[:, None], out[0][:, None])

    def linearise(self, a: Array, before: list[Array], after: list[Array]) -> _Point:
        o, i, f, g = a.swapaxes(0, 1)
        slopes, d = self.scratch("slopes", *a.shape), self.scratch("d", *a.shape)
        of_c, tanh_c = self.scratch("of_c", *f.shape), np.tanh(after[1], out=self.scratch("tanh_c", *f.shape))
        by_o, by_i, by_f, by_g = slopes.swapaxes(0, 1)
        np.subtract(1, a[:, :3], out=slopes[:, :3])
        slopes[:, :3] *= a[:, :3]
        by_o *= tanh_c
        by_i *= g
        by_f *= before[1]
        for of, value, factor in ((by_g, g, i), (of_c, tanh_c, o)):
            np.multiply(value, value, out=of)
            np.subtract(1, of, out=of)
            of *= factor
        projected = None
        if self.project is not None:
            tanh_c *= o
            projected = self.scratch("dh", *after[0].shape), tanh_c
        return _Point(d, (by_o, slopes[:, 1:], of_c, f), projected)

    def pull(self, point: _Point, rows: slice, d_state: list[Array]) -> None:
        (by_o, by_c, of_c, f), d = point.slopes, point.d[:, :, rows]
        dh, dc = d_state
        dm = dh
        if point.projected is not None and self.project_back is not None:
            point.projected[0][:, rows] = dh
            dm = self.scratch("dm", *dc.shape)
            self.project_back(dh[:, None], dm[:, None])
        dc += np.multiply(dm, of_c[:, rows], out=self.scratch("rest", *dc.shape))
        np.multiply(dm, by_o[:, rows], out=d[:, 0])
        np.multiply(by_c[:, :, rows], dc[:, None], out=d[:, 1:])
        self.pull_product(d, dh)
        dc *= f[:, rows]


class _GRU(_Cell):
    """Gates in the order n, r, z for x and r, z, n for h, with the logistic gates adjacent; stored are n, r, z, and n's part of q."""

    x_order, h_order = (2, 0, 1), (0, 1, 2)
    factors = (-1, -1, 1)
    blocks = 4

    def __init__(self, arrays: Tree, scratch: Scratch):
        super().__init__(arrays, scratch)
        self.b_hn = arrays["b_hn"][:, None]

    def gates(self, q: Array, a: Array) -> None:
        logistic = a[:, 1:3]
        logistic += q[:, :2]  # (1)
        sigmoid_of_negative(logistic)  # (2)
        n, r, _, q_n = a.swapaxes(0, 1)
        np.add(q[:, 2], self.b_hn, out=q_n)
        n += np.multiply(r, q_n, out=self.scratch("rest", *n.shape))
        np.tanh(n, out=n)

    def update(self, a: Array, before: list[Array], out: list[Array]) -> None:
        n, _, z, _ = a.swapaxes(0, 1)
        h_next = np.subtract(before[0], n, out=out[0])
        h_next *= z
        h_next += n  # (3)

    def linearise(self, a: Array, before: list[Array], after: list[Array]) -> _Point:
        n, r, z, q_n = a.swapaxes(0, 1)
        slopes, d, rest = self.scratch("slopes", *a.shape), self.scratch("d", *a.shape), self.scratch("rest", *n.shape)
        by_n, by_r, by_z, by_q_n = slopes.swapaxes(0, 1)
        np.subtract(1, a[:, 1:3], out=slopes[:, 1:3])
        np.multiply(n, n, out=by_n)
        np.subtract(1, by_n, out=by_n)
        by_n *= by_z  # 1 - z, so far
        np.multiply(by_n, r, out=by_q_n)
        slopes[:, 1:3] *= a[:, 1:3]
        by_r *= np.multiply(q_n, by_n, out=rest)
        by_z *= np.subtract(before[0], n, out=rest)
        return _Point(d, (slopes, z))

    def pull(self, point: _Point, rows: slice, d_state: list[Array]) -> None:
        (slopes, z), (dh,), d = point.slopes, d_state, point.d[:, :, rows]
        rest = np.multiply(dh, z[:, rows], out=self.scratch("rest", *dh.shape))
        np.multiply(slopes[:, :, rows], dh[:, None], out=d)
        self.pull_product(d[:, 1:], dh)
        dh += rest


CELLS: dict[str, type[_Cell]] = {"tanh": _RNN, "relu": _ReluRNN, "lstm": _LSTM, "gru": _GRU}


class _Block(NamedTuple):
    """A block of whole steps, n rows in total."""

    rows: slice  # in packed order
    n: int
    steps: list[slice]  # the rows of each step, relative to the block's first row


class _Scan:
    """The parts of one scan, over packed rows; the first axis of every array is the directions."""

    def __init__(self, spec: GatedSpec, arrays: Tree, scratch: Scratch):
        self.D, T, B, _ = arrays["x"].shape
        self.H = arrays["b"].shape[1] // spec.gates
        self.arrays, self.scratch = arrays, scratch
        self.x = np.ascontiguousarray(arrays["x"])
        self.layout = PackedLayout(T, B, arrays.get("lengths"))
        self.cell = cell = CELLS[spec.cell](arrays, scratch.part("cell"))
        self.factors = np.repeat(cell.factors, self.H).astype(arrays["b"].dtype)
        self.G, self.b = spec.gates, gate_blocks(arrays["b"] * self.factors, cell.x_order)[:, :, None]
        self.sums = [Sums(scratch.part(f"sums{d}")) for d in range(self.D)]

    @cached_property
    def of_x(self) -> Array:
        """The weights of W_x x, times the factors: (D, G, I, H)."""
        return gate_blocks(self.arrays["w_x"] * self.factors[:, None], self.cell.x_order).swapaxes(2, 3)

    @cached_property
    def of_h(self) -> StepProduct:
        """W_h h, times the factors."""
        w = gate_blocks(self.arrays["w_h"] * self.factors[:, None], self.cell.h_order)
        return StepProduct(w.swapaxes(2, 3), self.scratch.part("of_h"))

    @cached_property
    def back_x(self) -> Array:
        """The weights for the product from the gradients of W_x x to x's: (D, G, H, I)."""
        return gate_blocks(self.arrays["w_x"], self.cell.x_order)

    def initial(self) -> list[Array]:
        """The states before the first step, in packed order."""
        return [np.stack([self.layout.sort(a) for a in self.arrays[name]]) for name in self.states]

    @property
    def states(self) -> list[str]:
        """The names of the initial states."""
        return [name for name in ("h0", "c0") if name in self.arrays]

    def results(self) -> list[Array]:
        """Buffers for the outputs."""
        return [self._padded(self.arrays[name].shape[2]) for name in self.states]

    def like_inputs(self) -> Array:
        """A buffer for the inputs' gradient."""
        return self._padded(self.arrays["x"].shape[3])

    def _padded(self, features: int) -> Array:
        """(D, T, B, features), zero past each length."""
        make = np.empty if self.layout.order is None else np.zeros
        return make((self.D, self.layout.steps, self.layout.batch, features), self.arrays["x"].dtype)

    def block(self, first: int, last: int) -> _Block:
        """The steps [first, last)."""
        starts = self.layout.starts[first : last + 1]
        steps = [slice(a - starts[0], b - starts[0]) for a, b in pairwise(starts)]
        return _Block(slice(starts[0], starts[-1]), starts[-1] - starts[0], steps)

    def rows_of(self, name: str, a: Array, block: _Block) -> Array:
        """The block's rows of (D, T, B, F): (D, n, F), a view without lengths, else a copy."""
        if self.layout.order is None:
            return a.reshape(self.D, -1, a.shape[3])[:, block.rows]
        out = self.scratch(name, self.D, block.n, a.shape[3])
        for d in range(self.D):
            self.layout.rows_of(self.layout.flat(a[d]), block.rows, out=out[d])
        return out

    def store(self, rows: Array, a: Array, block: _Block) -> None:
        """Write the block's rows to (D, T, B, F); does nothing for a view."""
        for d in range(self.D):
            self.layout.store(rows[d], self.layout.flat(a[d]), block.rows)

    def previous(self, name: str, initial: Array, outputs: Array, block: _Block) -> Array:
        """The states before the block's steps, (D, n, H)."""
        out = self.scratch(name, self.D, block.n, outputs.shape[3])
        for d in range(self.D):
            before = self.layout.previous(initial[d], self.layout.flat(outputs[d]), block.rows, out=out[d])
            if not np.may_share_memory(before, out):
                out[d] = before
        return out

    def room_to_keep(self, memory: Scratch | None) -> Array | None:
        """A buffer in `memory` for the gates of all steps, always the same; None if the backward needs none, or it would be too large."""
        shape = (self.D, self.cell.blocks, self.layout.total, self.H)
        if memory is None or not self.cell.recomputed or math.prod(shape) * self.b.itemsize > KEPT_BYTES:
            return None
        return memory("gates", *shape)

    def gates_of(self, kept: Array | None, block: _Block) -> Array:
        """The block's part of the gates (D, blocks, n, H), or a temporary buffer if they are not stored."""
        return self.scratch("gates", self.D, self.cell.blocks, block.n, self.H) if kept is None else kept[:, :, block.rows]

    def project(self, block: _Block, gates: Array) -> None:
        """W_x x + b of a block of steps, written to the first G blocks of its gates."""
        a = gates[:, : self.G]
        for x, w, out in zip(self.rows_of("x", self.x, block), self.of_x, a, strict=True):
            multiply(x, w, out)
        a += self.b

    def of_state(self, h: Array) -> Array:
        """W_h h (D, G, n, H); the next call overwrites it."""
        return self.of_h(h[:, None], self.scratch("q", self.D, self.G, h.shape[1], self.H))

    def recompute(self, block: _Block, h: Array) -> Array:
        """The gates of a block of steps from the states before them."""
        gates = self.gates_of(None, block)
        if self.cell.recomputed:
            self.project(block, gates)
            q = self.scratch("q", self.D, self.G, block.n, self.H)
            for u, w, out in zip(h, self.of_h.w, q, strict=True):
                multiply(u, w, out)
            self.cell.gates(q, gates)
        return gates

    def accumulate(self, block: _Block, point: _Point, h: Array, d_x: Array) -> None:
        """Add a block's part of the weights' gradients, and store that of the inputs."""
        x, dx = self.rows_of("x", self.x, block), self.rows_of("dx", d_x, block)
        inputs = self.scratch("inputs", self.D, block.n, h.shape[2] + x.shape[2] + 1)
        # one product with [h, x, 1] gives the gradients of W_h, W_x and b
        np.concatenate([h, x, np.ones((self.D, block.n, 1), x.dtype)], axis=2, out=inputs)
        for k, (sums, u, d) in enumerate(zip(self.sums, inputs, point.d, strict=True)):
            part = sums.scratch
            sums.add("products", multiply_over_rows(u, d, part("products", len(d), u.shape[1], self.H), part))
            if point.projected is not None:
                dh, m = (a[k] for a in point.projected)
                sums.add("w_hr", multiply_over_rows(dh, m[None], part("w_hr", 1, dh.shape[1], m.shape[1]), part.part("w_hr"))[0])
            by_gate = [multiply(d[g], w, part(f"dx{g}", *dx[k].shape)) for g, w in enumerate(self.back_x[k])]
            dx[k] = by_gate[0]
            for more in by_gate[1:]:
                dx[k] += more
        self.store(dx, d_x, block)

    def gradients(self, d_x: Array, d_state: list[Array]) -> Tree:
        """All gradients, in the structure of the scan's arrays."""
        totals = {name: np.stack([sums.totals[name] for sums in self.sums]) for name in self.sums[0].totals}
        products, P = totals.pop("products").swapaxes(2, 3), self.arrays["h0"].shape[2]  # (D, blocks, H, P + I + 1)
        of_x, of_h = products[:, : self.G][:, np.argsort(self.cell.x_order)], products[:, -self.G :][:, np.argsort(self.cell.h_order)]
        totals |= {"w_h": of_h[..., :P], "w_x": of_x[..., P:-1], "b": of_x[..., -1]}
        if "b_hn" in self.arrays:
            totals["b_hn"] = products[:, -1, :, -1]
        result = {name: a.reshape(self.arrays[name].shape) for name, a in totals.items()} | {"x": d_x}
        for name, d in zip(self.states, d_state, strict=True):
            result[name] = np.stack([self.layout.unsort(a) for a in d])
        return result

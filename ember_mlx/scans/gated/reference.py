"""The NumPy form of the gated scan (RNN, LSTM, GRU): forward, and a backward written by hand. It computes in the dtype of its arrays.

Both take the arrays of one scan as a tree (D directions, each a scan of its own; T steps, B sequences, H units, G gates):

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

Only W_h h and what follows it are in the loops over T. The backward recomputes the gates from the states, a block of steps at a time,
unless the forward kept them.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..dense import Scratch, Sums, borrowed_scratch
from ..packing import PackedLayout
from ..pointwise import Array, sigmoid_of_tanh
from ..products import FEWEST_ROWS, LARGE, PIECE, multiply
from .spec import GatedSpec

Tree = dict[str, Any]
FEWEST_COLUMNS = 32  # of a piece of a step's product
BLOCK_ROWS = 800  # rows (step and sequence) at a time: enough for products on two threads, few enough to stay in the cache


def gated_forward(spec: GatedSpec, arrays: Tree, keep: list[Array] | None = None) -> tuple[Array, ...]:
    """Run an RNN, LSTM or GRU over T steps, in D directions.

    Args:
        spec: the static part.
        arrays: the tree above, float32 or float64.
        keep: a list to which the gates are appended, which spare the backward their recomputation.

    Returns:
        (h,) of shape (D, T, B, H), zero past each length; for an LSTM (h, c), c likewise.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import GatedSpec, gated_forward
        >>> weights = {"w_x": np.zeros((1, 12, 4)), "w_h": np.zeros((1, 12, 3)), "b": np.zeros((1, 12))}
        >>> sequence = {"x": np.ones((1, 5, 2, 4)), "h0": np.ones((1, 2, 3)), "c0": np.ones((1, 2, 3))}
        >>> h, c = gated_forward(GatedSpec("lstm"), sequence | weights)
        >>> h.shape, float(c[0, 0, 0, 0])
        ((1, 5, 2, 3), 0.5)
    """
    with borrowed_scratch(arrays["h0"].dtype) as scratch:
        scan = _Scan(spec, arrays, scratch)
        results = scan.results()
        gates = scan.new_gates(keep)
        h, c = scan.initial()
        for first, last in scan.layout.chunks(BLOCK_ROWS):
            block = scan.block(first, last)
            states = [scan.rows_of(f"states{k}", a, block) for k, a in enumerate(results)]
            point = scan.gates_of(gates, block)
            scan.project(block, point[0])
            for rows in block.steps:
                n = rows.stop - rows.start
                h, c = h[:, :n], None if c is None else c[:, :n]
                now, out = [a[:, rows] for a in point], [a[:, rows] for a in states]
                scan.cell.gates(scan.of_state(h), *now)
                scan.cell.update(now[0], h, c, *out)
                h, c = out[0], None if c is None else out[1]
            h, c = scratch.copy("h", h), None if c is None else scratch.copy("c", c)  # the next block overwrites these states
            for a, result in zip(states, results, strict=True):
                scan.store(a, result, block)
    return tuple(results)


def gated_backward(
    spec: GatedSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], kept: tuple[Array, ...] | list[Array] = ()
) -> Tree:
    """Pull the outputs' gradients back through a gated scan.

    Args:
        spec: the static part.
        arrays: what `gated_forward` took.
        outputs: what it returned.
        cotangents: the gradient of each output, same shapes.
        kept: what it appended to `keep`, or nothing.

    Returns:
        The gradient of every floating-point array, as a tree of the same structure, without `lengths`.
    """
    with borrowed_scratch(arrays["h0"].dtype) as scratch:
        scan = _Scan(spec, arrays, scratch)
        initial = scan.initial()
        dh, dc = (None if a is None else np.zeros_like(a) for a in initial)
        d_x = scan.like_inputs()
        for first, last in reversed(scan.layout.chunks(BLOCK_ROWS)):
            block = scan.block(first, last)
            before = [scan.previous(f"before{k}", a, b, block) for k, (a, b) in enumerate(zip(initial, outputs, strict=False))]
            after = [scan.rows_of(f"states{k}", a, block) for k, a in enumerate(outputs)]
            dy = [scan.rows_of(f"dy{k}", a, block) for k, a in enumerate(cotangents)]
            gates = scan.gates_of(list(kept), block) if kept else scan.recompute(block, before[0])
            point = scan.cell.linearise(gates, before, after, scratch)
            for rows in reversed(block.steps):
                n = rows.stop - rows.start
                scan.cell.pull(point, rows, dh[:, :n], None if dc is None else dc[:, :n], [a[:, rows] for a in dy])
            scan.accumulate(block, point, before[0], d_x)
        return scan.gradients(d_x, dh, dc)


class StepProduct:
    """u W^T for the few rows of a step, in every direction, in pieces that one thread works on (see products.py).

    Args:
        w: (D, J, K).
        scratch: where the weights lie.
    """

    def __init__(self, w: Array, scratch: Scratch):
        D, self.J, self.K = w.shape
        self.w_T, self.scratch = scratch("w_T", D, self.K, self.J), scratch  # (in, out) in memory: faster for few rows
        self.w_T[...] = w.swapaxes(1, 2)
        self.plans: dict[int, tuple[int, Array]] = {}

    def plan(self, n: int) -> tuple[int, Array]:
        """For n rows: in how many parts to take them, and the weights in pieces (D, 1, pieces, K, columns)."""
        if n not in self.plans:
            columns, rows = self.J, n
            if n * self.K * self.J <= LARGE:
                while rows * self.K * columns > PIECE and columns % 2 == 0 and columns > FEWEST_COLUMNS:
                    columns //= 2
                while rows * self.K * columns > PIECE and rows % 2 == 0 and rows > FEWEST_ROWS:
                    rows //= 2
            pieces = self.w_T.reshape(len(self.w_T), self.K, self.J // columns, columns).swapaxes(1, 2)
            self.plans[n] = n // rows, self.scratch.copy(f"pieces{columns}", pieces)[:, None]
        return self.plans[n]

    def __call__(self, u: Array, out: Array) -> Array:
        """(D, n, K) -> (D, n, J)."""
        D, n, _ = u.shape
        parts, w = self.plan(n)
        result = out.reshape(D, parts, n // parts, w.shape[2], w.shape[4]).swapaxes(2, 3)  # a view: only axes are split
        np.matmul(u.reshape(D, parts, 1, n // parts, self.K), w, out=result)
        return out


class _Cell:
    """What one cell adds to a scan: how it orders its gates, and its equations (2) and (3), forward and back.

    Gates are in an order in which those of one kind lie side by side: `x_order` for the products with x, `h_order` for those with h, as
    indices of torch.nn's order; the gradients of both lie in one array (D, N, width), of which x has the columns [0, G H) and h the last G H.
    """

    x_order: tuple[int, ...] = (0,)
    h_order: tuple[int, ...] = (0,)
    logistic: tuple[int, ...] = ()  # gates, in torch.nn's order, whose argument is halved in the weights: sigma(a) = (1 + tanh(a / 2)) / 2
    kept_blocks: tuple[int, ...] = ()  # blocks of H features of each array of gates that spares the backward its recomputation
    width = 1  # blocks of the products' gradients

    def __init__(self, arrays: Tree, scratch: Scratch):
        self.H = arrays["w_h"].shape[1] // len(self.h_order)
        self.scratch = scratch
        self.back = StepProduct(blocks(arrays["w_h"], self.h_order).swapaxes(1, 2), scratch.part("back"))

    def gates(self, q: Array, a: Array, *more: Array) -> None:
        """From q = W_h h and a = W_x x + b to the gates, in `a` and `more`."""
        raise NotImplementedError

    def update(self, a: Array, h: Array, c: Array | None, h_next: Array, c_next: Array | None = None) -> None:
        """From the gates and the state to the next one, (D, n, H) each."""
        raise NotImplementedError

    def linearise(self, gates: list[Array], before: list[Array], after: list[Array], scratch: Scratch) -> "_Point":
        """For a block of steps at once: everything that the pull needs and that does not depend on it."""
        raise NotImplementedError

    def pull(self, point: "_Point", rows: slice, dh: Array, dc: Array | None, dy: list[Array]) -> None:
        """From the gradients of a step's state, (D, n, H), to those of the state before it, in place, and the products' in `point.d`."""
        raise NotImplementedError


class _Point(NamedTuple):
    """A block of N steps at its states, and what the pull leaves there."""

    d: Array  # (D, N, width H): gradients of the products' results
    slopes: tuple[Array, ...]
    projected: tuple[Array, Array] | None = None  # with W_hr: the gradient of h, and what W_hr takes


def blocks(a: Array, order: tuple[int, ...]) -> Array:
    """(D, G H, ...) -> the same with its G blocks in another order."""
    return a if order == tuple(range(len(order))) else a.reshape(len(a), len(order), -1, *a.shape[2:])[:, order].reshape(a.shape)


class _RNN(_Cell):
    """h' = tanh(a) or relu(a)."""

    def gates(self, q: Array, a: Array, *more: Array) -> None:
        a += q  # (1)
        self.activate(a)  # (2)

    @staticmethod
    def activate(a: Array) -> None:
        np.tanh(a, out=a)

    @staticmethod
    def slope(h: Array, out: Array) -> None:
        np.multiply(h, h, out=out)
        np.subtract(1, out, out=out)

    def update(self, a: Array, h: Array, c: Array | None, h_next: Array, c_next: Array | None = None) -> None:
        h_next[...] = a  # (3)

    def linearise(self, gates: list[Array], before: list[Array], after: list[Array], scratch: Scratch) -> _Point:
        slope, d = scratch("slope", *after[0].shape), scratch("d", *after[0].shape)
        self.slope(after[0], slope)
        return _Point(d, (slope,))

    def pull(self, point: _Point, rows: slice, dh: Array, dc: Array | None, dy: list[Array]) -> None:
        d = point.d[:, rows]
        np.add(dh, dy[0], out=d)
        d *= point.slopes[0][:, rows]
        self.back(d, dh)


class _ReluRNN(_RNN):
    @staticmethod
    def activate(a: Array) -> None:
        np.maximum(a, 0, out=a)

    @staticmethod
    def slope(h: Array, out: Array) -> None:
        np.greater(h, 0, out=out, casting="unsafe")


class _LSTM(_Cell):
    """o, i, f, g: the three logistic gates side by side, and the three that c takes."""

    x_order = h_order = (3, 0, 1, 2)
    logistic = (0, 1, 3)
    kept_blocks = (4,)
    width = 4

    def __init__(self, arrays: Tree, scratch: Scratch):
        super().__init__(arrays, scratch)
        w_hr = arrays.get("w_hr")
        self.project = None if w_hr is None else StepProduct(w_hr, scratch.part("w_hr"))
        self.project_back = None if w_hr is None else StepProduct(w_hr.swapaxes(1, 2), scratch.part("w_hr_back"))

    def gates(self, q: Array, a: Array, *more: Array) -> None:
        a += q  # (1)
        np.tanh(a, out=a)  # (2)
        sigmoid_of_tanh(a[..., : 3 * self.H])

    def update(self, a: Array, h: Array, c: Array | None, h_next: Array, c_next: Array | None = None) -> None:
        assert c is not None and c_next is not None
        H = self.H
        rest = self.scratch("rest", *c.shape)
        np.multiply(a[..., 2 * H : 3 * H], c, out=c_next)
        c_next += np.multiply(a[..., H : 2 * H], a[..., 3 * H :], out=rest)  # (3)
        np.tanh(c_next, out=rest)
        if self.project is None:
            np.multiply(a[..., :H], rest, out=h_next)
        else:
            rest *= a[..., :H]
            self.project(rest, h_next)

    def linearise(self, gates: list[Array], before: list[Array], after: list[Array], scratch: Scratch) -> _Point:
        a, H = gates[0], self.H
        D, N, _ = a.shape
        slopes, d = scratch("slopes", *a.shape), scratch("d", *a.shape)
        of_c, tanh_c = scratch("of_c", D, N, H), np.tanh(after[1], out=scratch("tanh_c", D, N, H))
        by_o, by_i, by_f, by_g = (slopes[..., k * H : (k + 1) * H] for k in range(4))
        o, i, f, g = (a[..., k * H : (k + 1) * H] for k in range(4))
        logistic, of_logistic = a[..., : 3 * H], slopes[..., : 3 * H]
        np.subtract(1, logistic, out=of_logistic)
        of_logistic *= logistic
        by_o *= tanh_c
        by_i *= g
        by_f *= before[1]
        np.multiply(g, g, out=by_g)
        np.subtract(1, by_g, out=by_g)
        by_g *= i
        np.multiply(tanh_c, tanh_c, out=of_c)
        np.subtract(1, of_c, out=of_c)
        of_c *= o
        projected = None
        if self.project is not None:
            tanh_c *= o
            projected = scratch("dh", *after[0].shape), tanh_c
        return _Point(d, (by_o, slopes[..., H:].reshape(D, N, 3, H), of_c, f), projected)

    def pull(self, point: _Point, rows: slice, dh: Array, dc: Array | None, dy: list[Array]) -> None:
        assert dc is not None
        H, (by_o, by_ifg, of_c, f), d = self.H, point.slopes, point.d[:, rows]
        dh += dy[0]
        dm = dh
        if point.projected is not None and self.project_back is not None:
            point.projected[0][:, rows] = dh
            dm = self.project_back(dh, self.scratch("dm", *dc.shape))
        dc += dy[1]
        dc += np.multiply(dm, of_c[:, rows], out=self.scratch("rest", *dc.shape))
        np.multiply(dm, by_o[:, rows], out=d[..., :H])
        np.multiply(by_ifg[:, rows], dc[:, :, None], out=d[..., H:].reshape(*by_ifg[:, rows].shape))
        self.back(d, dh)
        dc *= f[:, rows]


class _GRU(_Cell):
    """For x n, r, z and for h r, z, n: the logistic gates side by side in both, and in the gradients n, r, z, n too."""

    x_order, h_order = (2, 0, 1), (0, 1, 2)
    logistic = (0, 1)
    kept_blocks = (3, 1)
    width = 4

    def __init__(self, arrays: Tree, scratch: Scratch):
        super().__init__(arrays, scratch)
        self.b_hn = arrays["b_hn"][:, None]

    def gates(self, q: Array, a: Array, *more: Array) -> None:
        H = self.H
        logistic, n, q_n = a[..., H:], a[..., :H], more[0]
        logistic += q[..., : 2 * H]  # (1)
        np.tanh(logistic, out=logistic)
        sigmoid_of_tanh(logistic)  # (2)
        np.add(q[..., 2 * H :], self.b_hn, out=q_n)
        n += np.multiply(logistic[..., :H], q_n, out=self.scratch("rest", *q_n.shape))
        np.tanh(n, out=n)

    def update(self, a: Array, h: Array, c: Array | None, h_next: Array, c_next: Array | None = None) -> None:
        n, z = a[..., : self.H], a[..., 2 * self.H :]
        np.subtract(h, n, out=h_next)
        h_next *= z
        h_next += n  # (3)

    def linearise(self, gates: list[Array], before: list[Array], after: list[Array], scratch: Scratch) -> _Point:
        a, q_n, H = gates[0], gates[1], self.H
        D, N, _ = q_n.shape
        slopes, d = scratch("slopes", D, N, 4 * H), scratch("d", D, N, 4 * H)
        n, r, z = (a[..., k * H : (k + 1) * H] for k in range(3))
        by_n, by_r, by_z, by_q_n = (slopes[..., k * H : (k + 1) * H] for k in range(4))
        logistic, of_logistic = a[..., H:], slopes[..., H : 3 * H]
        np.subtract(1, logistic, out=of_logistic)
        np.multiply(n, n, out=by_n)
        np.subtract(1, by_n, out=by_n)
        by_n *= by_z  # 1 - z, so far
        np.multiply(by_n, r, out=by_q_n)
        of_logistic *= logistic
        rest = np.multiply(q_n, by_n, out=scratch("rest", D, N, H))
        by_r *= rest
        by_z *= np.subtract(before[0], n, out=rest)
        return _Point(d, (slopes.reshape(D, N, 4, H), z))

    def pull(self, point: _Point, rows: slice, dh: Array, dc: Array | None, dy: list[Array]) -> None:
        slopes, z = point.slopes[0][:, rows], point.slopes[1][:, rows]
        d, rest = point.d[:, rows], self.scratch("rest", *dh.shape)
        dh += dy[0]
        np.multiply(slopes, dh[:, :, None], out=d.reshape(slopes.shape))
        np.multiply(dh, z, out=rest)
        self.back(d[..., self.H :], dh)
        dh += rest


CELLS: dict[str, type[_Cell]] = {"tanh": _RNN, "relu": _ReluRNN, "lstm": _LSTM, "gru": _GRU}


class _Block(NamedTuple):
    """Some whole steps, n rows in all."""

    rows: slice  # in the packed order
    n: int
    steps: list[slice]  # the rows of each, counted from the block's first


class _Scan:
    """The parts of one scan, over packed rows; every array has the directions first."""

    def __init__(self, spec: GatedSpec, arrays: Tree, scratch: Scratch):
        self.D, T, B, _ = arrays["x"].shape
        self.arrays, self.scratch = arrays, scratch
        self.layout = PackedLayout(T, B, arrays.get("lengths"))
        self.cell = CELLS[spec.cell](arrays, scratch.part("cell"))
        halved = np.ones((len(self.cell.x_order), 1), arrays["w_x"].dtype)
        halved[list(self.cell.logistic)] = 0.5
        halved = np.repeat(halved, self.cell.H, axis=0)
        x_order, h_order = self.cell.x_order, self.cell.h_order
        self.w_x, self.w_h = blocks(arrays["w_x"], x_order), arrays["w_h"]
        self.w_x_T = blocks(arrays["w_x"] * halved, x_order).swapaxes(1, 2)
        self.b = blocks(arrays["b"] * halved[:, 0], x_order)
        self.step = StepProduct(blocks(arrays["w_h"] * halved, h_order), scratch.part("step"))
        self.sums = [Sums(scratch.part(f"sums{d}")) for d in range(self.D)]

    def initial(self) -> list[Array | None]:
        """h and c before the first step, in packed order; c None where there is none."""
        return [np.stack([self.layout.sort(a) for a in self.arrays[name]]) if name in self.arrays else None for name in ("h0", "c0")]

    def results(self) -> list[Array]:
        """Memory for the outputs."""
        sizes = [self.arrays[name].shape[2] for name in ("h0", "c0") if name in self.arrays]
        return [self._padded(size) for size in sizes]

    def like_inputs(self) -> Array:
        """Memory for the inputs' gradient."""
        return self._padded(self.arrays["x"].shape[3])

    def _padded(self, features: int) -> Array:
        """(D, T, B, features), zero past each length."""
        make = np.empty if self.layout.order is None else np.zeros
        return make((self.D, self.layout.steps, self.layout.batch, features), self.arrays["x"].dtype)

    def block(self, first: int, last: int) -> _Block:
        """The steps [first, last)."""
        starts = self.layout.starts[first : last + 1]
        return _Block(
            slice(starts[0], starts[-1]), starts[-1] - starts[0], [slice(a - starts[0], b - starts[0]) for a, b in pairwise(starts)]
        )

    def rows_of(self, name: str, a: Array, block: _Block) -> Array:
        """The block's rows of (D, T, B, F): (D, n, F), a view without lengths, else a copy."""
        if self.layout.order is None:
            return a.reshape(self.D, -1, a.shape[3])[:, block.rows]
        out = self.scratch(name, self.D, block.n, a.shape[3])
        for d in range(self.D):
            self.layout.rows_of(self.layout.flat(a[d]), block.rows, out=out[d])
        return out

    def store(self, rows: Array, a: Array, block: _Block) -> None:
        """Put the block's rows into (D, T, B, F); nothing to do for a view."""
        for d in range(self.D):
            self.layout.store(rows[d], self.layout.flat(a[d]), block.rows)

    def previous(self, name: str, initial: Array | None, outputs: Array, block: _Block) -> Array:
        """The states before the block's steps, (D, n, H)."""
        assert initial is not None
        out = self.scratch(name, self.D, block.n, outputs.shape[3])
        parts = [self.layout.previous(initial[d], self.layout.flat(outputs[d]), block.rows, out=out[d]) for d in range(self.D)]
        if self.D == 1:
            return parts[0][None]
        for d, part in enumerate(parts):
            if part is not out[d] and part.base is not out:
                out[d] = part
        return out

    def new_gates(self, keep: list[Array] | None) -> list[Array]:
        """Memory for the gates of all steps, given to `keep`; nothing without it."""
        if keep is None:
            return []
        gates = [np.empty((self.D, self.layout.total, k * self.cell.H), self.b.dtype) for k in self.cell.kept_blocks]
        keep.extend(gates)
        return gates

    def gates_of(self, gates: list[Array], block: _Block) -> list[Array]:
        """The block's part of the gates; where none are kept memory for them."""
        if gates:
            return [a[:, block.rows] for a in gates]
        sizes = self.cell.kept_blocks or (len(self.cell.x_order),)
        return [self.scratch(f"gates{k}", self.D, block.n, size * self.cell.H) for k, size in enumerate(sizes)]

    def project(self, block: _Block, a: Array) -> None:
        """W_x x + b of a block of steps, into `a`."""
        x = self.rows_of("x", self.arrays["x"], block)
        for d in range(self.D):
            multiply(x[d], self.w_x_T[d], out=a[d])
            a[d] += self.b[d]

    def of_state(self, h: Array) -> Array:
        """W_h h of a step; the next call overwrites it."""
        return self.step(h, self.scratch("q", self.D, h.shape[1], self.step.J))

    def recompute(self, block: _Block, h: Array) -> list[Array]:
        """The gates of a block of steps from the states before them."""
        point = self.gates_of([], block)
        if self.cell.kept_blocks:
            self.project(block, point[0])
            q = self.scratch("q", self.D, block.n, self.step.J)
            for d in range(self.D):
                multiply(h[d], self.step.w_T[d], out=q[d])
            self.cell.gates(q, *point)
        return point

    def accumulate(self, block: _Block, point: _Point, h: Array, d_x: Array) -> None:
        """Add a block's part of the weights' gradients, and store that of the inputs."""
        x, dx = self.rows_of("x", self.arrays["x"], block), self.rows_of("dx", d_x, block)
        for k, sums in enumerate(self.sums):
            d_of_x, d_of_h = point.d[k][:, : self.w_x.shape[1]], point.d[k][:, -self.w_h.shape[1] :]
            sums.add("w_x", multiply(d_of_x.T, x[k], sums.scratch("w_x", *self.w_x.shape[1:])))
            sums.add("w_h", multiply(d_of_h.T, h[k], sums.scratch("w_h", *self.w_h.shape[1:])))
            sums.add("d", point.d[k].sum(0))
            if point.projected is not None:
                dh, m = point.projected[0][k], point.projected[1][k]
                sums.add("w_hr", multiply(dh.T, m, sums.scratch("w_hr", dh.shape[1], m.shape[1])))
            multiply(d_of_x, self.w_x[k], out=dx[k])
        self.store(dx, d_x, block)

    def gradients(self, d_x: Array, dh: Array, dc: Array | None) -> Tree:
        """All gradients, in the structure of the scan's arrays."""
        totals = {name: np.stack([sums.totals[name] for sums in self.sums]) for name in self.sums[0].totals}
        x_order, h_order, d = self.cell.x_order, self.cell.h_order, totals.pop("d")
        back = [tuple(np.argsort(order)) for order in (x_order, h_order)]
        totals |= {"w_x": blocks(totals["w_x"], back[0]), "w_h": blocks(totals["w_h"], back[1])}
        totals["b"] = blocks(d[:, : self.w_x.shape[1]], back[0])
        if "b_hn" in self.arrays:
            totals["b_hn"] = d[:, -self.cell.H :]
        states = {name: a for name, a in (("h0", dh), ("c0", dc)) if a is not None}
        return totals | {"x": d_x} | {name: np.stack([self.layout.unsort(a) for a in state]) for name, state in states.items()}

"""The NumPy form of the CfC scan: forward, and a handwritten backward. It computes in the dtype of its arrays.

Both take the arrays of one scan as a tree (T steps, B sequences, H units of all stages, P = Z backbone units or heads * H):

    x        (T, B, I)   inputs
    dt       (T, B)      elapsed time before each step
    h0       (B, H)      state before the first step;  c0 (B, H) too with mixed memory
    lengths  (B,)        optional, integers in 1..T
    dropout  [(T, B, Z)] optional, one factor for each backbone layer's output
    lstm     w_x (4H, I), w_h (4H, H), b (4H,): gates a, i, f, o            with mixed memory
    stages   one tree for each stage of the spec (H_s its units):
             w_x (P, I), w_h (P, H_s), b (P,), the first product; each stage after the first takes the output of the one before
             dense [{w, b}], the products after the first, the last of which gives the heads; absent without backbone;
             w_tau (H_s,), A (H_s,) in pure mode

The loops over T contain only the sequential part. The backward processes a block of steps at a time. It takes each step's intermediate
results (its trace) from the forward or, if that would need too much memory, recomputes them from the states for all steps of the block;
computes the slopes; runs dh -> dq -> dz -> dh; and computes the weights' gradients as products over the block.
"""

from functools import cached_property
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from ..linear import Product, StateProduct, Sums
from ..matmul import multiply
from ..memory import MemoryPoint, MixedMemory
from ..packed_sequences import PackedLayout
from ..pointwise import ACTIVATIONS, Array, sigmoid_of_negative
from ..scratch import KEPT_BYTES, Scratch
from .spec import CfCSpec

Tree = dict[str, Any]
BLOCK_ROWS = 800  # rows (step and sequence) per block: enough for products on two threads, few enough to bound the memory


@np.errstate(over="ignore")  # 1 / (1 + exp(-a)) and exp(-dt ...) are right there too
def cfc_forward(spec: CfCSpec, arrays: Tree, kept: Scratch | None = None) -> tuple[Array, ...]:
    """Run a CfC scan over T steps.

    Args:
        spec: the static part.
        arrays: the tree above, float32 or float64.
        kept: buffers for intermediate results that `cfc_backward` reuses, unless they are too large; None: nothing is stored.

    Returns:
        (h,) of shape (T, B, H), zero past each length; with mixed memory (h, c), with the cell c of the same shape.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import CfCSpec, cfc_forward
        >>> stage = {"w_x": np.zeros((12, 4)), "w_h": np.zeros((12, 3)), "b": np.zeros(12)}
        >>> sequence = {"x": np.ones((5, 2, 4)), "dt": np.ones((5, 2)), "h0": np.ones((2, 3))}
        >>> (h,) = cfc_forward(CfCSpec(stages=((0, 3),)), sequence | {"stages": [stage]})
        >>> h.shape
        (5, 2, 3)
    """
    scratch = Scratch(arrays["h0"].dtype)
    scan = _Scan(spec, arrays, scratch)
    layout, H, dtype = scan.layout, arrays["h0"].shape[1], arrays["h0"].dtype
    results = [layout.result(H, dtype) for _ in range(2 if scan.lstm else 1)]
    h, c = layout.sort(arrays["h0"]), layout.sort(arrays["c0"]) if scan.lstm else None
    traces = scan.room_to_keep(kept)
    for first, last in layout.chunks(BLOCK_ROWS):
        block = scan.block(first, last, traces)
        states, *cells = (layout.room(layout.flat(a), block.rows, scratch(f"states{k}", block.n, H)) for k, a in enumerate(results))
        steps = _Steps(scan, block)
        for rows in block.steps:
            h, c = steps.run(rows, h[: rows.stop - rows.start], c, [a[rows] for a in (states, *cells)])
        h = scratch.copy("h", h)  # the next block overwrites the states of this one
        c = None if c is None else scratch.copy("c", c)
        for a, result in zip((states, *cells), results, strict=True):
            layout.store(a, layout.flat(result), block.rows)
    return tuple(results)


@np.errstate(over="ignore")
def cfc_backward(
    spec: CfCSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], kept: Scratch | None = None
) -> Tree:
    """The gradients of a CfC scan, from those of its outputs.

    Args:
        spec: the static part.
        arrays: the arguments of `cfc_forward`.
        outputs: its results.
        cotangents: the gradient of each output, same shapes.
        kept: the buffers passed to `cfc_forward`, not used since; None: nothing was stored.

    Returns:
        The gradient of every floating-point array, as a tree of the same structure, without `lengths` and `dropout`.
    """
    scratch = Scratch(arrays["h0"].dtype)
    scan = _Scan(spec, arrays, scratch)
    layout, H = scan.layout, arrays["h0"].shape[1]
    h0, c0 = layout.sort(arrays["h0"]), layout.sort(arrays["c0"]) if scan.lstm else None
    flat, flat_dy = [layout.flat(a) for a in outputs], [layout.flat(a) for a in cotangents]
    dh, dc = np.zeros_like(h0), np.zeros_like(h0)
    traces = scan.room_to_keep(kept)
    for first, last in reversed(layout.chunks(BLOCK_ROWS)):
        block = scan.block(first, last, traces)
        states, *cells = (layout.rows_of(a, block.rows, out=scratch(f"states{k}", block.n, H)) for k, a in enumerate(flat))
        dy, *dy_c = (layout.rows_of(a, block.rows, out=scratch(f"dy{k}", block.n, H)) for k, a in enumerate(flat_dy))
        h_prev = layout.previous(h0, flat[0], block.rows, out=scratch("h_prev", block.n, H))
        memory = None
        if c0 is not None:
            memory = (layout.previous(c0, flat[1], block.rows, out=scratch("c_prev", block.n, H)), cells[0])
        points = scan.linearise(block, h_prev, states, memory, traced=traces is not None)
        for rows in reversed(block.steps):
            n = rows.stop - rows.start
            np.add(dh[:n], dy[rows], out=points.dh[rows])
            if dy_c:
                dc[:n] += dy_c[0][rows]
            scan.pull(points, rows, dh[:n], dc[:n])
        scan.accumulate(block, points)
    return scan.gradients(layout.unsort(dh), layout.unsort(dc))


class CfCStep:
    """A single step for repeated calls: each call reads x, dt and the state from the arrays passed to the constructor.

    Args:
        spec: the static part.
        arrays: arguments as for `cfc_forward`, contiguous, with T = 1 and without lengths and dropout.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import CfCSpec, CfCStep
        >>> stage = {"w_x": np.zeros((12, 4)), "w_h": np.zeros((12, 3)), "b": np.ones(12)}
        >>> arrays = {"x": np.ones((1, 2, 4)), "dt": np.ones((1, 2)), "h0": np.zeros((2, 3)), "stages": [stage]}
        >>> step = CfCStep(CfCSpec(stages=((0, 3),)), arrays)
        >>> for _ in range(5):
        ...     arrays["h0"][...] = step()[0]
    """

    def __init__(self, spec: CfCSpec, arrays: Tree):
        scan = _Scan(spec, arrays, Scratch(arrays["h0"].dtype))
        self.steps = _Steps(scan, scan.block(0, 1, None))
        self.h, self.c = arrays["h0"], arrays.get("c0")
        self.after = [np.empty_like(a) for a in (self.h, self.c) if a is not None]

    def __call__(self) -> list[Array]:
        """The state after the step, [h] or [h, c], (B, H) each; the next call overwrites it."""
        self.steps.project()
        self.steps.run(self.steps.block.steps[0], self.h, self.c, self.after)
        return self.after


class _Slopes(NamedTuple):
    """The derivatives of the next state of each unit, for a block of N steps."""

    q: Array  # (heads, N, H_s), by the heads, in the order of the mode
    dt: Array  # (N, H_s), by the elapsed time
    pure: dict[str, Array]  # (N, H_s) each, by w_tau and A


class _Gated:
    """The heads f, g, -t_b, -t_a of N rows in the modes default and no_gate, and the next states and slopes from them.

    sigma(t) = 1 / (1 + exp(-t)): the weights of t_a and t_b include the sign. f and g are adjacent, for a single call of tanh.

    Args:
        q: (4, N, H_s).
        dt: (N, 1).
        spec: the static part.
        tree: the stage's arrays.
        scratch: buffers.
    """

    order = (0, 1, 3, 2)  # position of each head in the weights
    factors = (1, 1, -1, -1)  # factor in the weights of each head

    def __init__(self, q: Array, dt: Array, spec: CfCSpec, tree: Tree, scratch: Scratch):
        self.q, self.dt, self.no_gate, self.scratch = q, dt, spec.mode == "no_gate", scratch
        self.tanhs, (self.f, self.g, self.t, self.t_a) = q[:2], q
        self.rest = scratch("rest", *self.f.shape)

    def gate(self, rows: slice) -> None:
        """f, g, -t_b, -t_a to tanh(f), tanh(g), t_interp, -t_a, in place."""
        t, tanhs, rest = self.t[rows], self.tanhs[:, rows], self.rest
        t += np.multiply(self.t_a[rows], self.dt[rows], out=rest[: len(t)])
        np.tanh(tanhs, out=tanhs)  # (2)
        sigmoid_of_negative(t)  # (3)

    def next(self, rows: slice, out: Array) -> None:
        """From the results of `gate` to the next state (n, H_s), `out`."""
        f, g, t = self.f[rows], self.g[rows], self.t[rows]
        np.multiply(g if self.no_gate else np.subtract(g, f, out=self.rest[: len(f)]), t, out=out)
        out += f  # f + g t_interp, or f (1 - t_interp) + g t_interp

    def slopes(self) -> _Slopes:
        """From the results of `gate` to the slopes of the next state."""
        f, g, t, rest, no_gate = self.f, self.g, self.t, self.rest, self.no_gate
        slopes = self.scratch("slopes", *self.q.shape)
        by_f, by_g, slope, by_t_a = slopes
        np.subtract(1, t, out=rest)
        np.multiply(rest, t, out=slope)
        slope *= np.negative(g, out=by_f) if no_gate else np.subtract(f, g, out=by_f)  # by minus the argument of sigma
        np.multiply(slope, self.dt, out=by_t_a)
        for of, head, weight in ((by_f, f, None if no_gate else rest), (by_g, g, t)):
            np.multiply(head, head, out=of)
            np.subtract(1, of, out=of)
            if weight is not None:
                of *= weight
        return _Slopes(slopes, np.multiply(slope, self.t_a, out=rest), {})


class _Pure:
    """The head f of N rows in the mode pure, as `_Gated`."""

    order, factors = (0,), (1,)

    def __init__(self, q: Array, dt: Array, spec: CfCSpec, tree: Tree, scratch: Scratch):
        (self.f,), self.dt, self.w_tau, self.A = q, dt, tree["w_tau"], tree["A"]  # (2)

    def gate(self, rows: slice) -> None:
        """Nothing to store."""

    def next(self, rows: slice, out: Array) -> None:
        """From f to the next state (n, H_s), `out`."""
        f, dt, A = self.f[rows], self.dt[rows], self.A
        decay = np.exp(-dt * (np.abs(self.w_tau) + np.abs(f)))  # (3)
        np.subtract(A, A * decay * f, out=out)

    def slopes(self) -> _Slopes:
        """From f to the slopes of the next state."""
        f, dt, A = self.f, self.dt, self.A
        rate = np.abs(self.w_tau) + np.abs(f)
        decay = np.exp(-dt * rate)
        # |w_tau| has the slope 1 at 0, a subgradient: with 0, w_tau would never leave its initial value
        sign = np.where(self.w_tau < 0, -1, 1).astype(f.dtype)
        passed = decay * dt  # computed first, to get 0 where dt |f| would overflow
        by_f = -A * (decay - passed * np.abs(f))
        by_rate = A * f * passed
        return _Slopes(by_f[None], A * decay * f * rate, {"w_tau": by_rate * sign, "A": 1 - decay * f})


MODES: dict[str, type[_Gated] | type[_Pure]] = {"default": _Gated, "no_gate": _Gated, "pure": _Pure}


class _Weights:
    """The weights in the form used by the steps: multiplied by constants that the steps then need not apply, heads in the mode's order.

    Args:
        spec: the static part.
        tree: a stage's arrays.
        scratch: buffers for them.
    """

    def __init__(self, spec: CfCSpec, tree: Tree, scratch: Scratch):
        activation, mode = ACTIVATIONS[spec.activation], MODES[spec.mode]
        dense = tree.get("dense", [])
        sizes = [len(tree["b"]), *(len(layer["b"]) for layer in dense)]
        units = sizes[-1] // spec.heads
        self.blocks = [[(slice(0, P), activation.inner)] for P in sizes[:-1]]  # for each product: rows of its weights, and their factor
        self.blocks.append([(slice(k * units, (k + 1) * units), mode.factors[k]) for k in mode.order])
        self.outer = activation.outer
        self.first = {name: self._scaled(tree[name], 0, scratch(name, *tree[name].shape)) for name in ("w_x", "w_h", "b")}
        # [w b], since the inputs end with a 1: one more column in the product costs less than adding the bias
        self.dense = [scratch(f"dense{k}", len(p["b"]), p["w"].shape[1] + 1) for k, p in enumerate(dense, 1)]
        for k, (p, out) in enumerate(zip(dense, self.dense, strict=True), 1):
            self._scaled(p["w"], k, out[:, :-1], self.outer)
            self._scaled(p["b"], k, out[:, -1])

    def gradients(self, totals: Tree) -> Tree:
        """From the gradients of these weights (`first` by name, `dense` by index) to those of the stage's tree."""
        result: Tree = {name: self._scaled(totals[name], 0) for name in self.first}
        dense = [totals[f"dense{k}"] for k in range(1, len(self.blocks))]
        return result | {
            "dense": [{"w": self._scaled(d[:, :-1], k, by=self.outer), "b": self._scaled(d[:, -1], k)} for k, d in enumerate(dense, 1)]
        }

    def _scaled(self, a: Array, k: int, out: Array | None = None, by: float = 1) -> Array:
        """Rows (P, ...) of product k, or their gradients: the order of the blocks is its own inverse, and the factors are the same."""
        out = np.empty(a.shape, a.dtype) if out is None else out
        first = 0
        for rows, factor in self.blocks[k]:
            size = rows.stop - rows.start
            np.multiply(a[rows], a.dtype.type(factor * by), out=out[first : first + size])
            first += size
        return out


class _Block(NamedTuple):
    """A block of whole steps, n rows in total."""

    rows: slice  # in packed order
    n: int
    steps: list[slice]  # the rows of each step, relative to the block's first row
    x: Array  # (n, I)
    dt: Array  # (n, 1)
    dropout: list[Array]  # (n, Z) each
    gates: Array | None  # (4, n, H): the trace of the LSTM, if there is one
    traces: list[list[Array]]  # for each stage, see _Stage.trace_shapes


class _Stage(StateProduct):
    """One CfC layer of the step."""

    def __init__(self, spec: CfCSpec, index: int, tree: Tree, rows: int, scratch: Scratch):
        self.units = slice(*spec.stages[index])
        self.spec, self.activation = spec, ACTIVATIONS[spec.activation]
        self.tree, self.weights = tree, _Weights(spec, tree, scratch.part("weights"))
        depth = len(self.weights.dense)
        super().__init__(self.weights.first, None if depth else spec.heads, rows, scratch)
        self.products, self.products_back = [], []
        for k, w in enumerate(self.weights.dense, 1):
            self.products.append(Product(w, None, spec.heads if k == depth else None, rows, scratch.part(f"product{k}")))
            self.products_back.append(Product(w[:, :-1].T, None, None, rows, scratch.part(f"back{k}")))
        self.scratch, self.sums = scratch, Sums(scratch.part("sums"))

    def trace_shapes(self, n: int) -> list[tuple[int, ...]]:
        """The shapes of the trace of n rows: for each backbone layer the values that give its slope, and a 1; then the gated heads."""
        shapes = [self.of_state.shape(n), *(product.shape(n) for product in self.products)]
        return [*((n, Z + 1) for _, Z in shapes[:-1]), shapes[-1]]

    def linearise(self, u: Array, h: Array, block: _Block, trace: list[Array], dh: Array, traced: bool) -> "_StagePoint":
        """For a block of steps at once: everything that `pull` needs and that does not depend on the gradients, and an unset `dh`."""
        at = _Rows(self, block, trace)
        if not traced:
            at.run(at.every, self.project(u), h)
        z = [at.fed(k, at.every) for k in range(len(at.layers))]
        slopes_z = [self.activation.slope(a, self.scratch(f"slope{k}", *a.shape)) for k, a in enumerate(at.values)]
        for slope, mask in zip(slopes_z, block.dropout, strict=False):
            slope *= mask
        slopes = at.heads.slopes()
        sizes = [len(w) for w in (self.w_h, *self.weights.dense)]
        d_products = [self.scratch(f"d{k}", len(h), size) for k, size in enumerate(sizes)]
        slope_q = slopes.q.swapaxes(0, 1)
        back = list(zip(self.products_back, d_products, slopes_z, strict=False))
        return _StagePoint(u, h, z, slopes, slope_q, dh, d_products, d_products[-1].reshape(slope_q.shape), back[::-1])

    def pull(self, point: "_StagePoint", local: slice) -> Array:
        """dh -> dq -> dz for one step: from the next state's gradient (n, H_s) to that of the first product (n, P)."""
        np.multiply(point.slope_q[local], point.dh[local, None], out=point.d_heads[local])
        d = point.d_products[-1][local]
        for product, d_product, slope in point.back:
            d = product(d, out=d_product[local])
            d *= slope[local]
        return d

    def accumulate(self, point: "_StagePoint") -> Array:
        """Add a block's part of the weights' gradients; returns the gradient of dt, (n, 1)."""
        self.sums.add_state_product(point.d_products[0], point.u, point.h)
        for k, (z, d) in enumerate(zip(point.z, point.d_products[1:], strict=True), 1):
            self.sums.add_product(f"dense{k}", d, z)
        for name, slope in point.slopes.pure.items():
            self.sums.add(name, (point.dh * slope).sum(0))
        by_dt = point.slopes.dt
        by_dt *= point.dh
        return by_dt.sum(1, keepdims=True)

    def gradients(self) -> Tree:
        """The gradients in the structure of the stage's tree."""
        totals = self.sums.totals
        return self.weights.gradients(totals) | {name: totals[name] for name in ("w_tau", "A") if name in totals}


class _Rows:
    """A stage's computation on the rows of a block.

    Args:
        stage: the stage.
        block: the block.
        trace: the stage's trace for these rows.
    """

    def __init__(self, stage: _Stage, block: _Block, trace: list[Array]):
        *self.layers, q = trace  # (N, Z + 1) for each backbone layer, and (heads, N, H_s)
        self.every, self.dropout, self.activation, self.scratch = slice(0, block.n), block.dropout, stage.activation, stage.scratch
        self.plain = self.activation.in_place and not self.dropout  # whether a layer's trace is the next product's input
        self.values = [layer[:, :-1] for layer in self.layers]  # without the 1
        self.heads = MODES[stage.spec.mode](q, block.dt, stage.spec, stage.tree, stage.scratch)
        self.products, self.results = [stage.of_state, *stage.products], [*self.values, q]

    @cached_property
    def in_pieces(self) -> list[tuple[Array, Array]]:
        """For each product of a step: the weights in pieces, and the view of its results that they write."""
        return [(product.pieces, product.in_pieces(result)) for product, result in zip(self.products, self.results, strict=True)]

    def run(self, rows: slice, projected: Array, h: Array) -> None:
        """From the projected input and the state (n, H_s) to the trace, for the rows of a step, or for all rows (`every`)."""
        u, last = h, len(self.layers)
        for k, result in enumerate(self.results):
            if rows is self.every:
                self.products[k](u, out=result)  # (2)
            else:
                pieces, out = self.in_pieces[k]
                np.matmul(u, pieces, out=out[..., rows, :])  # (2)
            a = result[..., rows, :]
            if k == 0:
                a += projected
            if k < last:
                if self.activation.in_place:
                    self.activation.value(a, a)  # (1)
                u = self.layers[k][rows] if self.plain else self.fed(k, rows)
        self.heads.gate(rows)

    def fed(self, k: int, rows: slice) -> Array:
        """From the trace of backbone layer k to the next product's input."""
        layer = self.layers[k][rows]
        if self.plain:
            return layer
        z = self.scratch(f"fed{k}", *layer.shape)
        z[:, -1] = 1
        if self.activation.in_place:
            z[:, :-1] = layer[:, :-1]
        else:
            self.activation.value(layer[:, :-1], z[:, :-1])
        if self.dropout:
            z[:, :-1] *= self.dropout[k][rows]
        return z


class _Steps:
    """The steps of a block, run one after another."""

    def __init__(self, scan: "_Scan", block: _Block):
        self.scan, self.block = scan, block
        self.stages = [(stage, _Rows(stage, block, trace)) for stage, trace in zip(scan.stages, block.traces, strict=True)]
        self.project()

    def project(self) -> None:
        """Project the inputs of all steps."""
        self.projected, self.projected_gates = self.scan.project(self.block)

    def run(self, rows: slice, h: Array, c: Array | None, after: list[Array]) -> tuple[Array, Array | None]:
        """From the state (n, H) before a step to the one after it, written to `after`: h, and c with mixed memory."""
        lstm, gates, projected = self.scan.lstm, self.block.gates, self.projected_gates
        if lstm is not None and c is not None and projected is not None and gates is not None:
            h, c = lstm.step(projected[:, rows], h, c[: len(h)], gates[:, rows], out=after[1])
        below = None
        for stage, at in self.stages:
            inputs = self.projected[..., rows, :] if below is None else stage.project(below)
            at.run(rows, inputs, h[:, stage.units])
            below = after[0][:, stage.units]
            at.heads.next(rows, out=below)
        return after[0], c


class _StagePoint(NamedTuple):
    """A stage linearised at the states of a block of N steps, and the gradients that `pull` writes."""

    u: Array  # (N, inputs)
    h: Array  # (N, H_s)
    z: list[Array]  # (N, Z + 1): output of each backbone layer
    slopes: _Slopes
    slope_q: Array  # (N, heads, H_s): a view of slopes.q
    dh: Array  # (N, H_s): gradient of the next state, a view of all units' gradient
    d_products: list[Array]  # gradients of the products' results, first to last
    d_heads: Array  # (N, heads, H_s): a view of the last of them
    back: list[tuple[Product, Array, Array]]  # for each backbone layer, last to first: the backward product, (N, Z), the slope


class _Points(NamedTuple):
    """The whole step linearised at the states of a block."""

    dh: Array  # (N, H): gradient of the next state
    stages: list[_StagePoint]
    lstm: MemoryPoint | None


class _Scan:
    """The parts of one scan, over packed rows."""

    def __init__(self, spec: CfCSpec, arrays: Tree, scratch: Scratch):
        steps, batch = arrays["dt"].shape
        self.layout, self.scratch = PackedLayout(steps, batch, arrays.get("lengths")), scratch
        self.x, self.dt = self.layout.flat(arrays["x"]), self.layout.flat(arrays["dt"][:, :, None])
        self.dropout = [self.layout.flat(mask) for mask in arrays.get("dropout", [])]
        self.stages = [_Stage(spec, k, tree, batch, scratch.part(f"stage{k}")) for k, tree in enumerate(arrays["stages"])]
        self.lstm = MixedMemory(arrays["lstm"], batch, scratch.part("lstm")) if spec.mixed_memory else None

    @cached_property
    def d(self) -> dict[str, Array]:
        """Buffers for the gradients of the inputs and the elapsed times."""
        layout = self.layout
        return {name: layout.flat(layout.result(a.shape[1], a.dtype)) for name, a in (("dx", self.x), ("d_dt", self.dt))}

    def room(self, n: int, memory: Scratch) -> list[Array]:
        """Buffers for the traces of n rows: the LSTM's gates, then the stages' traces."""
        result = [] if self.lstm is None else [memory("gates", *self.lstm.trace_shape(n))]
        for k, stage in enumerate(self.stages):
            *layers, heads = (memory(f"stage{k} {i}", *shape) for i, shape in enumerate(stage.trace_shapes(n)))
            for layer in layers:
                layer[:, -1] = 1
            result += [*layers, heads]
        return result

    def room_to_keep(self, memory: Scratch | None) -> list[Array] | None:
        """Buffers in `memory` for the traces of all steps, always the same; None if they would be too large."""
        row_bytes = sum(a.nbytes for a in self.room(1, self.scratch.part("row")))
        return None if memory is None or row_bytes * self.layout.total > KEPT_BYTES else self.room(self.layout.total, memory)

    def block(self, first: int, last: int, kept: list[Array] | None) -> _Block:
        """The steps [first, last), with their traces in `kept`, or in temporary buffers if that is None."""
        starts = self.layout.starts[first : last + 1]
        rows, n = slice(starts[0], starts[-1]), starts[-1] - starts[0]
        given = (("x", self.x), ("dt", self.dt), *((f"dropout{k}", mask) for k, mask in enumerate(self.dropout)))
        x, dt, *dropout = (self.layout.rows_of(a, rows, out=self.scratch(name, n, a.shape[1])) for name, a in given)
        steps = [slice(a - starts[0], b - starts[0]) for a, b in pairwise(starts)]
        traces = iter(self.room(n, self.scratch.part("trace")) if kept is None else [a[..., rows, :] for a in kept])
        gates = None if self.lstm is None else next(traces)
        return _Block(rows, n, steps, x, dt, dropout, gates, [list(islice(traces, len(stage.products) + 1)) for stage in self.stages])

    def project(self, block: _Block) -> tuple[Array, Array | None]:
        """The projected inputs of a block of steps, for the first stage's product and the LSTM's gates."""
        return self.stages[0].project(block.x), None if self.lstm is None else self.lstm.project(block.x)

    def linearise(self, block: _Block, h: Array, h_next: Array, cells: tuple[Array, Array] | None, traced: bool) -> _Points:
        """The inputs of `pull` for a block of steps (N rows at once), from the states before (h) and after (h_next) them, and the cells.

        The block's traces either exist (`traced`) or are computed here.
        """
        memory = None
        if self.lstm is not None and cells is not None and block.gates is not None:
            memory = self.lstm.linearise(block.x, h, *cells, block.gates, traced)
        h_inner = h if memory is None else memory.h_inner
        inputs = [block.x, *(h_next[:, stage.units] for stage in self.stages[:-1])]
        dh = self.scratch("dh", *h.shape)
        points = [
            stage.linearise(u, h_inner[:, stage.units], block, trace, dh[:, stage.units], traced)
            for stage, u, trace in zip(self.stages, inputs, block.traces, strict=True)
        ]
        return _Points(dh, points, memory)

    def pull(self, points: _Points, local: slice, dh: Array, dc: Array) -> None:
        """From the gradient of the state after one step, in `points`, to that of the state before it, `dh` (n, H); updates dc in place."""
        for k in reversed(range(len(self.stages))):
            stage = self.stages[k]
            d = stage.pull(points.stages[k], local)
            if k > 0:
                points.stages[k - 1].dh[local] += d @ stage.w_x
            stage.to_state(d, out=dh[:, stage.units])
        if self.lstm is not None and points.lstm is not None:
            self.lstm.pull(points.lstm, local, dh, dc)

    def accumulate(self, block: _Block, points: _Points) -> None:
        """Add a block's part of the weights' gradients, and store those of the inputs and the elapsed times."""
        dx, d_dt = (self.layout.room(a, block.rows, self.scratch(name, block.n, a.shape[1])) for name, a in self.d.items())
        d_dt[...] = 0
        for stage, point in zip(self.stages, points.stages, strict=True):
            d_dt += stage.accumulate(point)
        multiply(points.stages[0].d_products[0], self.stages[0].w_x, out=dx)
        if self.lstm is not None and points.lstm is not None:
            self.lstm.accumulate(points.lstm)
            dx += multiply(points.lstm.d_gates, self.lstm.w_x)
        for d, a in zip((dx, d_dt), self.d.values(), strict=True):
            self.layout.store(d, a, block.rows)

    def gradients(self, dh0: Array, dc0: Array) -> Tree:
        """All gradients, in the structure of the scan's arrays."""
        T, B = self.layout.steps, self.layout.batch
        result: Tree = {"x": self.d["dx"].reshape(T, B, -1), "dt": self.d["d_dt"].reshape(T, B), "h0": dh0}
        result["stages"] = [stage.gradients() for stage in self.stages]
        return result if self.lstm is None else result | {"c0": dc0, "lstm": self.lstm.gradients()}

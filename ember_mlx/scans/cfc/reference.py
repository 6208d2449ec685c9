"""The NumPy form of the CfC scan: forward, and a backward written by hand. It computes in the dtype of its arrays.

Both take the arrays of one scan as a tree (T steps, B sequences, H units of all stages, P = Z backbone units or heads * H):

    x        (T, B, I)   inputs
    dt       (T, B)      elapsed time before each step
    h0       (B, H)      state before the first step;  c0 (B, H) too with mixed memory
    lengths  (B,)        optional, integers in 1..T
    dropout  [(T, B, Z)] optional, one factor for each backbone layer's output
    lstm     w_x (4H, I), w_h (4H, H), b (4H,): gates a, i, f, o            with mixed memory
    stages   one tree for each stage of the spec (H_s its units):
             w_x (P, I), w_h (P, H_s), b (P,), the first product; the input of a stage after the first is the one before it
             dense [{w, b}], the products after the first, the last one giving the heads, absent without backbone;
             w_tau (H_s,), A (H_s,) in pure mode

Only what is sequential is in the loops over T. The backward keeps nothing but the states: it recomputes gates and slopes from them,
a block of steps at a time, then runs dh -> dq -> dz -> dh, then forms the weights' gradients as products over the block.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..dense import Product, Scratch, StateProduct, Sums, borrowed_scratch
from ..memory import MemoryPoint, MixedMemory
from ..packing import PackedLayout
from ..pointwise import ACTIVATIONS, Array, sigmoid_of_tanh
from ..products import multiply
from .spec import CfCSpec

Tree = dict[str, Any]
BLOCK_ROWS = 800  # rows (step and sequence) recomputed at a time: enough for products on two threads, few enough to bound the memory


def cfc_forward(spec: CfCSpec, arrays: Tree) -> tuple[Array, ...]:
    """Run a CfC scan over T steps.

    Args:
        spec: the static part.
        arrays: the tree above, float32 or float64.

    Returns:
        (h,) of shape (T, B, H), zero past each length; with mixed memory (h, c), c the cell, likewise.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import CfCSpec, cfc_forward
        >>> stage = {"w_x": np.zeros((12, 4)), "w_h": np.zeros((12, 3)), "b": np.zeros(12)}
        >>> sequence = {"x": np.ones((5, 2, 4)), "dt": np.ones((5, 2)), "h0": np.ones((2, 3))}
        >>> (h,) = cfc_forward(CfCSpec(stages=((0, 3),)), sequence | {"stages": [stage]})
        >>> h.shape
        (5, 2, 3)
    """
    with borrowed_scratch(arrays["h0"].dtype) as scratch:
        scan = _Scan(spec, arrays, scratch)
        layout, H, dtype = scan.layout, arrays["h0"].shape[1], arrays["h0"].dtype
        results = [layout.result(H, dtype) for _ in range(2 if scan.lstm else 1)]
        h, c = layout.sort(arrays["h0"]), layout.sort(arrays["c0"]) if scan.lstm else None
        for first, last in layout.chunks(BLOCK_ROWS):
            block = scan.block(first, last)
            states, *cells = (
                layout.rows_of(layout.flat(a), block.rows, out=scratch(f"states{k}", block.n, H)) for k, a in enumerate(results)
            )
            projected, gates = scan.project(block)
            for rows in block.steps:
                h = h[: rows.stop - rows.start]
                if scan.lstm is not None and c is not None and gates is not None:
                    h, c = scan.lstm.step(gates[:, rows], h, c[: len(h)], out=cells[0][rows])
                below = None
                for stage in scan.stages:
                    inputs = projected[..., rows, :] if below is None else stage.project(below)
                    below = stage.step(inputs, h[:, stage.units], block, rows, out=states[rows, stage.units])
                h = states[rows]
            h = scratch.copy("h", h)  # the next block overwrites the states of this one
            c = None if c is None else scratch.copy("c", c)
            for a, result in zip((states, *cells), results, strict=True):
                layout.store(a, layout.flat(result), block.rows)
    return tuple(results)


def cfc_backward(spec: CfCSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...]) -> Tree:
    """Pull the outputs' gradients back through a CfC scan.

    Args:
        spec: the static part.
        arrays: what `cfc_forward` took.
        outputs: what it returned.
        cotangents: the gradient of each output, same shapes.

    Returns:
        The gradient of every floating-point array, as a tree of the same structure, without `lengths` and `dropout`.
    """
    with borrowed_scratch(arrays["h0"].dtype) as scratch:
        scan = _Scan(spec, arrays, scratch)
        layout, H = scan.layout, arrays["h0"].shape[1]
        h0, c0 = layout.sort(arrays["h0"]), layout.sort(arrays["c0"]) if scan.lstm else None
        flat, flat_dy = [layout.flat(a) for a in outputs], [layout.flat(a) for a in cotangents]
        dh, dc = np.zeros_like(h0), np.zeros_like(h0)
        for first, last in reversed(layout.chunks(BLOCK_ROWS)):
            block = scan.block(first, last)
            states, *cells = (layout.rows_of(a, block.rows, out=scratch(f"states{k}", block.n, H)) for k, a in enumerate(flat))
            dy, *dy_c = (layout.rows_of(a, block.rows, out=scratch(f"dy{k}", block.n, H)) for k, a in enumerate(flat_dy))
            h_prev = layout.previous(h0, flat[0], block.rows, out=scratch("h_prev", block.n, H))
            memory = None
            if c0 is not None:
                memory = (layout.previous(c0, flat[1], block.rows, out=scratch("c_prev", block.n, H)), cells[0])
            points = scan.linearise(block, h_prev, states, memory)
            for rows in reversed(block.steps):
                n = rows.stop - rows.start
                np.add(dh[:n], dy[rows], out=points.dh[rows])
                if dy_c:
                    dc[:n] += dy_c[0][rows]
                scan.pull(points, rows, dh[:n], dc[:n])
            scan.accumulate(block, points)
        return scan.gradients(layout.unsort(dh), layout.unsort(dc))


class _Slopes(NamedTuple):
    """The derivatives of the next state of each unit, for a block of N steps."""

    q: Array  # (heads, N, H_s), by the heads
    dt: Array  # (N, H_s), by the elapsed time
    pure: dict[str, Array]  # (N, H_s) each, by w_tau and A


def _gated_step(q: Array, dt: Array, _: Tree, out: Array, *, no_gate: bool) -> None:
    """Heads f, g, t_a / 2, t_b / 2 (4, N, H_s), overwritten, to the next state (N, H_s), `out`."""
    f, g, t, t_b = q
    t *= dt
    t += t_b
    np.tanh(q[:3], out=q[:3])  # (2)
    sigmoid_of_tanh(t)  # (3)
    if not no_gate:
        g -= f
    g *= t
    np.add(f, g, out=out)  # f + g t_interp, or f (1 - t_interp) + g t_interp


def _gated_slopes(q: Array, dt: Array, _: Tree, scratch: Scratch, *, no_gate: bool) -> _Slopes:
    """Heads f, g, t_a / 2, t_b / 2 (4, N, H_s), overwritten, to the slopes of the next state."""
    f, g, t_a, t = q
    slopes, rest = scratch("slopes", *q.shape), scratch("rest", *f.shape)
    by_f, by_g, by_t_a, slope = slopes
    np.tanh(q[:2], out=q[:2])  # (2)
    t += np.multiply(t_a, dt, out=rest)
    np.tanh(t, out=t)
    sigmoid_of_tanh(t)  # (3)
    np.subtract(1, t, out=rest)
    np.multiply(rest, t, out=slope)
    slope *= np.multiply(g, 2, out=by_f) if no_gate else np.multiply(np.subtract(g, f, out=by_f), 2, out=by_f)
    np.multiply(slope, dt, out=by_t_a)
    t_a *= slope  # the slope by dt
    for of, head, weight in ((by_f, f, None if no_gate else rest), (by_g, g, t)):
        np.multiply(head, head, out=of)
        np.subtract(1, of, out=of)
        if weight is not None:
            of *= weight
    return _Slopes(slopes, t_a, {})


def _pure_step(q: Array, dt: Array, p: Tree, out: Array) -> None:
    """Heads q (1, N, H_s) to the next state (N, H_s), `out`."""
    (f,), A = q, p["A"]  # (2)
    decay = np.exp(-dt * (np.abs(p["w_tau"]) + np.abs(f)))  # (3)
    np.subtract(A, A * decay * f, out=out)


def _pure_slopes(q: Array, dt: Array, p: Tree, _: Scratch) -> _Slopes:
    """Heads q (1, N, H_s) to the slopes of the next state."""
    (f,), A = q, p["A"]
    rate = np.abs(p["w_tau"]) + np.abs(f)
    decay = np.exp(-dt * rate)
    # |w_tau| has the slope 1 at 0, a subgradient: with 0, w_tau would never leave its initial value
    sign = np.where(p["w_tau"] < 0, -1, 1).astype(q.dtype)
    by_f = -A * decay * (1 - dt * np.abs(f))
    by_rate = A * decay * f * dt
    return _Slopes(by_f[None], A * decay * f * rate, {"w_tau": by_rate * sign, "A": 1 - decay * f})


class _Mode(NamedTuple):
    """How the heads make the next state."""

    step: Callable[..., None]
    slopes: Callable[..., _Slopes]
    factors: tuple[float, ...]  # of each head, in its weights


# sigma(t) = (1 + tanh(t / 2)) / 2: the half is in the weights of t_a and t_b
MODES = {
    "default": _Mode(partial(_gated_step, no_gate=False), partial(_gated_slopes, no_gate=False), (1, 1, 0.5, 0.5)),
    "no_gate": _Mode(partial(_gated_step, no_gate=True), partial(_gated_slopes, no_gate=True), (1, 1, 0.5, 0.5)),
    "pure": _Mode(_pure_step, _pure_slopes, (1,)),
}


def _factors(spec: CfCSpec, tree: Tree) -> Tree:
    """What a stage's weights are multiplied by, so that a step has fewer constants to multiply by; their gradients likewise."""
    activation, dtype, dense = ACTIVATIONS[spec.activation], tree["w_h"].dtype, tree.get("dense", [])
    sizes = [len(tree["b"]), *(len(layer["b"]) for layer in dense)]
    by_product = [np.full((P, 1), activation.inner, dtype) for P in sizes[:-1]]
    by_product.append(np.repeat(MODES[spec.mode].factors, sizes[-1] // spec.heads)[:, None].astype(dtype))
    first, *others = by_product
    outer = dtype.type(activation.outer)
    return {"w_x": first, "w_h": first, "b": first[:, 0], "dense": [{"w": outer * of, "b": of[:, 0]} for of in others]}


def _scaled(tree: Tree, factors: Tree) -> Tree:
    """A stage's weights times their factors."""
    dense = [_scaled(layer, of) for layer, of in zip(tree.get("dense", []), factors.get("dense", []), strict=True)]
    return {name: a if name not in factors else dense if name == "dense" else a * factors[name] for name, a in tree.items()}


class _Block(NamedTuple):
    """Some whole steps, n rows in all."""

    rows: slice  # in the packed order
    n: int
    steps: list[slice]  # the rows of each, counted from the block's first
    x: Array  # (n, I)
    dt: Array  # (n, 1)
    dropout: list[Array]  # (n, Z) each


class _Stage(StateProduct):
    """One CfC layer of the step."""

    def __init__(self, spec: CfCSpec, index: int, tree: Tree, scratch: Scratch):
        self.units = slice(*spec.stages[index])
        self.activation, self.mode = ACTIVATIONS[spec.activation].function, MODES[spec.mode]
        self.factors = _factors(spec, tree)
        self.tree = tree = _scaled(tree, self.factors)
        self.dense = [(layer["w"], layer["b"]) for layer in tree.get("dense", [])]
        depth = len(self.dense)
        super().__init__(tree, None if depth else spec.heads, scratch)
        self.products = [
            Product(w, b, spec.heads if k == depth else None, scratch.part(f"product{k}")) for k, (w, b) in enumerate(self.dense, 1)
        ]
        self.scratch, self.sums = scratch, Sums(scratch.part("sums"))

    def heads(self, a: Array, dropout: list[Array], keep: list[tuple[Array, Array]] | None = None) -> Array:
        """From the first product to the heads (heads, n, H_s); `keep` collects each backbone layer's output and its slope."""
        for k, product in enumerate(self.products):
            slope = None if keep is None else self.scratch(f"slope{k}", *a.shape)
            z = self.activation(a, slope)  # (1)
            if dropout:
                z *= dropout[k]
            if keep is not None and slope is not None:
                if dropout:
                    slope *= dropout[k]
                keep.append((z, slope))
            a = product(z)  # (2)
        return a

    def step(self, projected: Array, h: Array, block: _Block, rows: slice, out: Array) -> Array:
        """From the projected input and the state (n, H_s) to the next state, `out`, for one step's rows of the block."""
        dropout = [mask[rows] for mask in block.dropout] if block.dropout else []
        self.mode.step(self.heads(self.with_state(projected, h), dropout), block.dt[rows], self.tree, out)
        return out

    def linearise(self, u: Array, h: Array, block: _Block, dh: Array) -> "_StagePoint":
        """For a block of steps at once: everything that the pull needs and that does not depend on it, beside `dh`, still empty."""
        kept: list[tuple[Array, Array]] = []
        q = self.heads(self.with_state(self.project(u), h), block.dropout, kept)
        slopes = self.mode.slopes(q, block.dt, self.tree, self.scratch)
        sizes = [len(w) for w in (self.w_h, *(w for w, _ in self.dense))]
        d_products = [self.scratch(f"d{k}", len(h), size) for k, size in enumerate(sizes)]
        slope_q = slopes.q.swapaxes(0, 1)
        return _StagePoint(u, h, kept, slopes, slope_q, dh, d_products, d_products[-1].reshape(slope_q.shape))

    def pull(self, point: "_StagePoint", local: slice) -> Array:
        """dh -> dq -> dz for one step: from the next state's gradient (n, H_s) to that of the first product (n, P)."""
        np.multiply(point.slope_q[local], point.dh[local, None], out=point.d_heads[local])
        d = point.d_products[-1][local]
        for k in reversed(range(len(self.dense))):
            d = multiply(d, self.dense[k][0], out=point.d_products[k][local])
            d *= point.kept[k][1][local]
        return d

    def accumulate(self, point: "_StagePoint") -> Array:
        """Add a block's part of the weights' gradients; returns the gradient of dt, (n, 1)."""
        self.sums.add_products(("w_x", "w_h"), "b", point.d_products[0], (point.u, point.h))
        for k, ((z, _), d) in enumerate(zip(point.kept, point.d_products[1:], strict=True)):
            self.sums.add_products((f"w{k}",), f"b{k}", d, (z,))
        for name, slope in point.slopes.pure.items():
            self.sums.add(name, (point.dh * slope).sum(0))
        by_dt = point.slopes.dt
        by_dt *= point.dh
        return by_dt.sum(1, keepdims=True)

    def gradients(self) -> Tree:
        """The gradients in the structure of the stage's tree."""
        totals = self.sums.totals
        result: Tree = {name: totals[name] for name in ("w_x", "w_h", "b", "w_tau", "A") if name in totals}
        result["dense"] = [{"w": totals[f"w{k}"], "b": totals[f"b{k}"]} for k in range(len(self.dense))]
        return _scaled(result, self.factors)


class _StagePoint(NamedTuple):
    """A stage at the states of a block of N steps, and what the pull leaves there."""

    u: Array  # (N, inputs)
    h: Array  # (N, H_s)
    kept: list[tuple[Array, Array]]  # of each backbone layer: z and its slope, (N, Z)
    slopes: _Slopes
    slope_q: Array  # (N, heads, H_s): a view of slopes.q
    dh: Array  # (N, H_s): gradient of the next state, a view of that of all units
    d_products: list[Array]  # gradients of the products' results, first to last
    d_heads: Array  # (N, heads, H_s): a view of the last


class _Points(NamedTuple):
    """The whole step at the states of a block."""

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
        self.d = {name: self.layout.flat(self.layout.result(a.shape[1], a.dtype)) for name, a in (("dx", self.x), ("d_dt", self.dt))}
        self.stages = [_Stage(spec, k, tree, scratch.part(f"stage{k}")) for k, tree in enumerate(arrays["stages"])]
        self.lstm = MixedMemory(arrays["lstm"], scratch.part("lstm")) if spec.mixed_memory else None

    def block(self, first: int, last: int) -> _Block:
        """The steps [first, last)."""
        starts = self.layout.starts[first : last + 1]
        rows, n = slice(starts[0], starts[-1]), starts[-1] - starts[0]
        given = (("x", self.x), ("dt", self.dt), *((f"dropout{k}", mask) for k, mask in enumerate(self.dropout)))
        x, dt, *dropout = (self.layout.rows_of(a, rows, out=self.scratch(name, n, a.shape[1])) for name, a in given)
        return _Block(rows, n, [slice(a - starts[0], b - starts[0]) for a, b in pairwise(starts)], x, dt, dropout)

    def project(self, block: _Block) -> tuple[Array, Array | None]:
        """The inputs' part of a block of steps: of the first stage's product, and of the LSTM's gates."""
        return self.stages[0].project(block.x), None if self.lstm is None else self.lstm.project(block.x)

    def linearise(self, block: _Block, h: Array, h_next: Array, cells: tuple[Array, Array] | None) -> _Points:
        """Recompute a block of steps (N rows at once) from the states before (h) and after (h_next) them, and the cells likewise."""
        memory = None if self.lstm is None or cells is None else self.lstm.linearise(block.x, h, *cells)
        h_inner = h if memory is None else memory.h_inner
        inputs = [block.x, *(h_next[:, stage.units] for stage in self.stages[:-1])]
        dh = self.scratch("dh", *h.shape)
        points = [
            stage.linearise(u, h_inner[:, stage.units], block, dh[:, stage.units]) for stage, u in zip(self.stages, inputs, strict=True)
        ]
        return _Points(dh, points, memory)

    def pull(self, points: _Points, local: slice, dh: Array, dc: Array) -> None:
        """From the gradient of the state after one step, in `points`, to that of the state before it, `dh` (n, H); dc in place."""
        for k in reversed(range(len(self.stages))):
            stage = self.stages[k]
            d = stage.pull(points.stages[k], local)
            if k > 0:
                points.stages[k - 1].dh[local] += d @ stage.w_x
            multiply(d, stage.w_h, out=dh[:, stage.units])
        if self.lstm is not None and points.lstm is not None:
            self.lstm.pull(points.lstm, local, dh, dc)

    def accumulate(self, block: _Block, points: _Points) -> None:
        """Add a block's part of the weights' gradients, and store those of the inputs and the elapsed times."""
        dx, d_dt = (self.layout.rows_of(a, block.rows, out=self.scratch(name, block.n, a.shape[1])) for name, a in self.d.items())
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

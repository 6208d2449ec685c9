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
from typing import Any, NamedTuple, cast

import numpy as np

from ..dense import Product, Scratch, StateProduct, Sums
from ..packing import PackedLayout
from ..pointwise import ACTIVATIONS, Array, sigmoid
from ..products import multiply
from .spec import CfCSpec

Tree = dict[str, Any]
BLOCK_ROWS = 160  # rows (step and sequence) recomputed at a time: large enough for matrix products, small enough for the cache


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
    scan = _Scan(spec, arrays)
    layout, H = scan.layout, arrays["h0"].shape[1]
    states = np.empty((layout.total, H), arrays["h0"].dtype)
    h, c = layout.sort(arrays["h0"]), layout.sort(arrays["c0"]) if scan.lstm else None
    cells = None if c is None else np.empty_like(states)
    for first, last in layout.chunks(BLOCK_ROWS):
        start = layout.starts[first]
        projected, gates = scan.project(slice(start, layout.starts[last]))
        for t in range(first, last):
            rows = layout.rows(t)
            n, local, below = rows.stop - rows.start, slice(rows.start - start, rows.stop - start), None
            h = h[:n]
            if scan.lstm is not None and c is not None and cells is not None and gates is not None:
                h, c = scan.lstm.step(gates[:, local], h, c[:n], out=cells[rows])
            for stage in scan.stages:
                inputs = projected[..., local, :] if below is None else stage.project(below)
                below = stage.step(inputs, h[:, stage.units], rows, out=states[rows, stage.units])
            h = states[rows]
    return tuple(layout.unpack(a) for a in (states, cells) if a is not None)


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
    scan = _Scan(spec, arrays)
    layout = scan.layout
    states, *cells = (layout.pack(a) for a in outputs)
    dy, *dy_c = (layout.pack(a) for a in cotangents)
    dh, dc = np.zeros_like(arrays["h0"]), np.zeros_like(arrays["h0"])

    for first, last in reversed(layout.chunks(BLOCK_ROWS)):
        block = slice(layout.starts[first], layout.starts[last])
        c_prev = layout.previous(arrays["c0"], cells[0], block) if cells else None
        points = scan.linearise(block, layout.previous(arrays["h0"], states, block), states[block], c_prev)
        for t in reversed(range(first, last)):
            rows = layout.rows(t)
            n = rows.stop - rows.start
            dh[:n] += dy[rows]
            if dy_c:
                dc[:n] += dy_c[0][rows]
            start = rows.start - block.start
            scan.pull(points, slice(start, start + n), dh[:n], dc[:n])
        scan.accumulate(points)
    return scan.gradients(layout.unsort(dh), layout.unsort(dc))


class _Slopes(NamedTuple):
    """The derivatives of the next state of each unit, for a block of N steps."""

    q: Array  # (heads, N, H_s), by the heads
    dt: Array  # (N, H_s), by the elapsed time
    pure: dict[str, Array]  # (N, H_s) each, by w_tau and A


def _gated(q: Array, dt: Array, p: Tree, scratch: Scratch, no_gate: bool, out: Array | None = None) -> _Slopes | None:
    """Heads q (4, N, H_s), overwritten, to the next state (N, H_s) in `out`; without it to its slopes."""
    f, g, t_a, t_b = q
    np.tanh(q[:2], out=q[:2])  # (2)
    t_interp = np.multiply(t_a, dt, out=scratch("t_interp", *f.shape))
    t_interp += t_b
    sigmoid(t_interp)  # (3)
    if out is None:
        return _gated_slopes(q, t_interp, dt, scratch, no_gate)
    if not no_gate:
        g -= f
    g *= t_interp
    np.add(f, g, out=out)  # f + g t_interp, or f (1 - t_interp) + g t_interp
    return None


def _gated_slopes(q: Array, t_interp: Array, dt: Array, scratch: Scratch, no_gate: bool) -> _Slopes:
    f, g, t_a, _ = q
    slopes, rest = scratch("slopes", *q.shape), scratch("rest", *f.shape)
    by_f, by_g, by_t_a, slope = slopes
    np.subtract(1, t_interp, out=rest)
    np.multiply(rest, t_interp, out=slope)
    slope *= g if no_gate else np.subtract(g, f, out=by_f)
    np.multiply(slope, dt, out=by_t_a)
    t_a *= slope  # the slope by dt
    for of, head, weight in ((by_f, f, None if no_gate else rest), (by_g, g, t_interp)):
        np.multiply(head, head, out=of)
        np.subtract(1, of, out=of)
        if weight is not None:
            of *= weight
    return _Slopes(slopes, t_a, {})


def _pure(q: Array, dt: Array, p: Tree, scratch: Scratch, out: Array | None = None) -> _Slopes | None:
    """Heads q (1, N, H_s) to the next state (N, H_s) in `out`; without it to its slopes."""
    (f,), A = q, p["A"]  # (2)
    rate = np.abs(p["w_tau"]) + np.abs(f)
    decay = np.exp(-dt * rate)  # (3)
    if out is not None:
        np.subtract(A, A * decay * f, out=out)
        return None
    # |w_tau| has the slope 1 at 0, a subgradient: with 0, w_tau would never leave its initial value
    sign = np.where(p["w_tau"] < 0, -1, 1).astype(q.dtype)
    by_f = -A * decay * (1 - dt * np.abs(f))
    by_rate = A * decay * f * dt
    return _Slopes(by_f[None], A * decay * f * rate, {"w_tau": by_rate * sign, "A": 1 - decay * f})


INTERPOLATIONS: dict[str, Callable[..., _Slopes | None]] = {
    "default": partial(_gated, no_gate=False),
    "no_gate": partial(_gated, no_gate=True),
    "pure": _pure,
}


class _Stage(StateProduct):
    """One CfC layer of the step."""

    def __init__(self, spec: CfCSpec, index: int, tree: Tree, dropout: list[Array], dt: Array):
        self.units = slice(*spec.stages[index])
        self.activation, self.interpolate = ACTIVATIONS[spec.activation], INTERPOLATIONS[spec.mode]
        self.tree, self.dt, self.dropout = tree, dt, dropout
        self.dense = [(layer["w"], layer["b"]) for layer in tree.get("dense", [])]
        depth = len(self.dense)
        super().__init__(tree, None if depth else spec.heads)
        self.products = [Product(w, b, spec.heads if k == depth else None) for k, (w, b) in enumerate(self.dense, 1)]
        self.scratch, self.sums = Scratch(self.w_h.dtype), Sums(self.w_h.dtype)
        self.d_dt = np.empty((len(dt), 1), self.w_h.dtype)

    def heads(self, a: Array, rows: slice, keep: list[tuple[Array, Array]] | None = None) -> Array:
        """From the first product to the heads (heads, n, H_s); `keep` collects each backbone layer's output and its slope."""
        for k, product in enumerate(self.products):
            slope = None if keep is None else self.scratch(f"slope{k}", *a.shape)
            z = self.activation(a, slope)  # (1)
            if self.dropout:
                z *= self.dropout[k][rows]
            if keep is not None and slope is not None:
                if self.dropout:
                    slope *= self.dropout[k][rows]
                keep.append((z, slope))
            a = product(z)  # (2)
        return a

    def step(self, projected: Array, h: Array, rows: slice, out: Array) -> Array:
        """From the projected input and the state (n, H_s) to the next state, `out`."""
        self.interpolate(self.heads(self.with_state(projected, h), rows), self.dt[rows], self.tree, self.scratch, out=out)
        return out

    def linearise(self, u: Array, h: Array, rows: slice) -> "_StagePoint":
        """For a block of steps at once: everything that the pull needs and that does not depend on it."""
        kept: list[tuple[Array, Array]] = []
        q = self.heads(self.with_state(self.project(u), h), rows, kept)
        slopes = cast(_Slopes, self.interpolate(q, self.dt[rows], self.tree, self.scratch))
        sizes = [len(w) for w in (self.w_h, *(w for w, _ in self.dense))]
        d_products = [self.scratch(f"d{k}", len(h), size) for k, size in enumerate(sizes)]
        dh, slope_q = self.scratch("dh", *h.shape), slopes.q.swapaxes(0, 1)
        return _StagePoint(rows, u, h, kept, slopes, slope_q, dh, d_products, d_products[-1].reshape(slope_q.shape))

    def pull(self, point: "_StagePoint", local: slice, dh: Array) -> Array:
        """dh -> dq -> dz for one step: from the next state's gradient (n, H_s) to that of the first product (n, P)."""
        point.dh[local] = dh
        np.multiply(point.slope_q[local], dh[:, None], out=point.d_heads[local])
        d = point.d_products[-1][local]
        for k in reversed(range(len(self.dense))):
            d = multiply(d, self.dense[k][0], out=point.d_products[k][local])
            d *= point.kept[k][1][local]
        return d

    def accumulate(self, point: "_StagePoint") -> None:
        """Add a block's part of the weights' gradients."""
        self.sums.add_products(("w_x", "w_h"), "b", point.d_products[0], (point.u, point.h))
        for k, ((z, _), d) in enumerate(zip(point.kept, point.d_products[1:], strict=True)):
            self.sums.add_products((f"w{k}",), f"b{k}", d, (z,))
        np.sum(np.multiply(point.dh, point.slopes.dt, out=point.slopes.dt), axis=1, out=self.d_dt[point.rows, 0])
        for name, slope in point.slopes.pure.items():
            self.sums.add(name, (point.dh * slope).sum(0))

    def gradients(self) -> Tree:
        """The gradients in the structure of the stage's tree."""
        totals = self.sums.totals
        result: Tree = {name: totals[name] for name in ("w_x", "w_h", "b", "w_tau", "A") if name in totals}
        return result | {"dense": [{"w": totals[f"w{k}"], "b": totals[f"b{k}"]} for k in range(len(self.dense))]}


class _StagePoint(NamedTuple):
    """A stage at the states of a block of N steps, and what the pull leaves there."""

    rows: slice
    u: Array  # (N, inputs)
    h: Array  # (N, H_s)
    kept: list[tuple[Array, Array]]  # of each backbone layer: z and its slope, (N, Z)
    slopes: _Slopes
    slope_q: Array  # (N, heads, H_s): a view of slopes.q
    dh: Array  # (N, H_s): gradient of the next state
    d_products: list[Array]  # gradients of the products' results, first to last
    d_heads: Array  # (N, heads, H_s): a view of the last


class _MixedMemory(StateProduct):
    """The LSTM step before the stages."""

    def __init__(self, tree: Tree):
        super().__init__(tree, heads=4)
        self.sums = Sums(self.w_h.dtype)

    def gates(self, projected: Array, h: Array) -> Array:
        """tanh(a), sigma(i), sigma(f + 1), sigma(o): (4, n, H)."""
        gates = self.with_state(projected, h)
        gates[2] += 1
        np.tanh(gates[0], out=gates[0])
        sigmoid(gates[1:])
        return gates

    def step(self, projected: Array, h: Array, c: Array, out: Array) -> tuple[Array, Array]:
        """(h, c) (n, H) each -> the same after the LSTM step, c in `out`."""
        a, i, f, o = self.gates(projected, h)
        f *= c
        a *= i
        c = np.add(f, a, out=out)
        o *= np.tanh(c)
        return o, c

    def linearise(self, x: Array, h: Array, c: Array) -> "_MemoryPoint":
        """For a block of steps at once: everything that the pull needs and that does not depend on it."""
        a, i, f, o = self.gates(self.project(x), h)
        tanh_c = np.tanh(c * f + a * i)
        slope_aif = np.stack([(1 - a * a) * i, a * i * (1 - i), c * f * (1 - f)])
        return _MemoryPoint(
            x,
            h,
            tanh_c * o,
            f,
            o * (1 - tanh_c * tanh_c),
            slope_aif,
            tanh_c * o * (1 - o),
            np.empty_like(x, shape=(len(h), self.w_h.shape[0])),
        )

    def pull(self, point: "_MemoryPoint", local: slice, dh: Array, dc: Array) -> None:
        """Gradients of the LSTM's h and c (n, H) -> those of the h and c before it, in place."""
        dc += dh * point.slope_c[local]
        d, H = point.d_gates[local], dh.shape[1]
        np.multiply(point.slope_aif[:, local].swapaxes(0, 1), dc[:, None], out=d.reshape(len(d), 4, H)[:, :3])
        np.multiply(point.slope_o[local], dh, out=d[:, 3 * H :])
        multiply(d, self.w_h, out=dh)
        dc *= point.f[local]

    def accumulate(self, point: "_MemoryPoint") -> None:
        """Add a block's part of the weights' gradient."""
        self.sums.add_products(("w_x", "w_h"), "b", point.d_gates, (point.x, point.h))


class _MemoryPoint(NamedTuple):
    """The LSTM at the states of a block of N steps."""

    x: Array  # (N, I)
    h: Array  # (N, H): before the LSTM
    h_inner: Array  # (N, H): after it
    f: Array  # (N, H)
    slope_c: Array  # (N, H): of h_inner, by c
    slope_aif: Array  # (3, N, H): of c, by the gates
    slope_o: Array  # (N, H): of h_inner, by o
    d_gates: Array  # (N, 4 H): gradients of the gates' products


class _Points(NamedTuple):
    """The whole step at the states of a block."""

    stages: list[_StagePoint]
    lstm: _MemoryPoint | None


class _Scan:
    """The parts of one scan, over packed rows."""

    def __init__(self, spec: CfCSpec, arrays: Tree):
        steps, batch = arrays["dt"].shape
        self.layout = PackedLayout(steps, batch, arrays.get("lengths"))
        dt, self.x = self.layout.pack(arrays["dt"][:, :, None]), self.layout.pack(arrays["x"])
        self.dx = np.empty_like(self.x)
        dropout = [self.layout.pack(mask) for mask in arrays.get("dropout", [])]
        self.stages = [_Stage(spec, k, tree, dropout, dt) for k, tree in enumerate(arrays["stages"])]
        self.lstm = _MixedMemory(arrays["lstm"]) if spec.mixed_memory else None

    def project(self, block: slice) -> tuple[Array, Array | None]:
        """The inputs' part of a block of steps: of the first stage's product, and of the LSTM's gates."""
        x = self.x[block]
        return self.stages[0].project(x), None if self.lstm is None else self.lstm.project(x)

    def linearise(self, block: slice, h: Array, h_next: Array, c: Array | None) -> _Points:
        """Recompute a block of steps (N rows at once) from the states before (h, c) and after (h_next) them."""
        x = self.x[block]
        memory = None if self.lstm is None or c is None else self.lstm.linearise(x, h, c)
        h_inner = h if memory is None else memory.h_inner
        inputs = [x, *(h_next[:, stage.units] for stage in self.stages[:-1])]
        points = [stage.linearise(u, h_inner[:, stage.units], block) for stage, u in zip(self.stages, inputs, strict=True)]
        return _Points(points, memory)

    def pull(self, points: _Points, local: slice, dh: Array, dc: Array) -> None:
        """Gradients (n, H) of the states after one step -> of the states before it, in place."""
        for k in reversed(range(len(self.stages))):
            stage = self.stages[k]
            d = stage.pull(points.stages[k], local, dh[:, stage.units])
            if k > 0:
                dh[:, self.stages[k - 1].units] += d @ stage.w_x
            multiply(d, stage.w_h, out=dh[:, stage.units])
        if self.lstm is not None and points.lstm is not None:
            self.lstm.pull(points.lstm, local, dh, dc)

    def accumulate(self, points: _Points) -> None:
        """Add a block's part of the weights' gradients."""
        for stage, point in zip(self.stages, points.stages, strict=True):
            stage.accumulate(point)
        dx = self.dx[points.stages[0].rows]
        multiply(points.stages[0].d_products[0], self.stages[0].w_x, out=dx)
        if self.lstm is not None and points.lstm is not None:
            self.lstm.accumulate(points.lstm)
            dx += multiply(points.lstm.d_gates, self.lstm.w_x)

    def gradients(self, dh0: Array, dc0: Array) -> Tree:
        """All gradients, in the structure of the scan's arrays."""
        dt: Array = np.sum([stage.d_dt for stage in self.stages], axis=0)
        result: Tree = {"x": self.layout.unpack(self.dx), "dt": self.layout.unpack(dt)[:, :, 0], "h0": dh0}
        result["stages"] = [stage.gradients() for stage in self.stages]
        return result if self.lstm is None else result | {"c0": dc0, "lstm": self.lstm.sums.totals}

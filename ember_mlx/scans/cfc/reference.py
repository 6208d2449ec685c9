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
from typing import Any, NamedTuple

import numpy as np

from ..packing import PackedLayout
from ..pointwise import ACTIVATIONS, Array, sigmoid
from ..products import multiply
from .spec import CfCSpec

Tree = dict[str, Any]
BLOCK_ROWS = 128  # rows (step and sequence) recomputed at a time: large enough for matrix products, small enough for the cache


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
    layout, B = scan.layout, scan.layout.batch
    states = scan.states_buffer(arrays["h0"])
    cells = scan.states_buffer(arrays["c0"]) if scan.lstm else None
    for first, last in layout.chunks(BLOCK_ROWS):
        start = int(layout.starts[first])
        projected, gates = scan.project(slice(start, int(layout.starts[last])))
        for t in range(first, last):
            rows, before = layout.rows(t), layout.before(t)
            local, after = slice(rows.start - start, rows.stop - start), slice(B + rows.start, B + rows.stop)
            h, below = states[before], None
            if scan.lstm is not None and cells is not None and gates is not None:
                h, cells[after] = scan.lstm.step(gates[local], h, cells[before])
            for stage in scan.stages:
                below = stage.step(projected[local] if below is None else stage.project(below), h[:, stage.units], rows)
                states[after, stage.units] = below
    kept = (states,) if cells is None else (states, cells)
    return tuple(layout.unpack(a[B:]) for a in kept)


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
    layout, B = scan.layout, scan.layout.batch
    states, dy = scan.states_buffer(arrays["h0"], outputs[0]), layout.pack(cotangents[0])
    cells = scan.states_buffer(arrays["c0"], outputs[1]) if scan.lstm else None
    dy_c = layout.pack(cotangents[1]) if scan.lstm else None
    dh, dc = np.zeros_like(states[:B]), np.zeros_like(states[:B])

    for first, last in reversed(layout.chunks(BLOCK_ROWS)):
        block = slice(int(layout.starts[first]), int(layout.starts[last]))
        c_prev = None if cells is None else layout.previous(cells, block)
        points = scan.linearise(block, layout.previous(states, block), states[B + block.start : B + block.stop], c_prev)
        for t in reversed(range(first, last)):
            rows = layout.rows(t)
            n = rows.stop - rows.start
            dh[:n] += dy[rows]
            if dy_c is not None:
                dc[:n] += dy_c[rows]
            start = rows.start - block.start
            scan.pull(points, slice(start, start + n), dh[:n], dc[:n])
        scan.accumulate(points)
    return scan.gradients(layout.unsort(dh), layout.unsort(dc))


class _Slopes(NamedTuple):
    """The derivatives of the next state of each unit, for a block of N steps."""

    q: Array  # (N, heads, H_s), by the heads
    dt: Array  # (N, H_s), by the elapsed time
    pure: dict[str, Array]  # (N, H_s) each, by w_tau and A


def _gated(q: Array, dt: Array, p: Tree, no_gate: bool, want_slopes: bool) -> tuple[Array | None, _Slopes | None]:
    """Heads q (N, 4 H_s), overwritten, to the next state (N, H_s), or to its slopes."""
    H = q.shape[1] // 4
    f, g, t_a, t_b = (q[:, k * H : (k + 1) * H] for k in range(4))
    np.tanh(q[:, : 2 * H], out=q[:, : 2 * H])  # (2)
    t_interp = t_a * dt
    t_interp += t_b
    sigmoid(t_interp)  # (3)
    if want_slopes:
        return None, _gated_slopes(f, g, t_a, t_interp, dt, no_gate)
    h = t_interp
    h *= g if no_gate else g - f
    h += f
    return h, None  # f + g t_interp, or f (1 - t_interp) + g t_interp


def _gated_slopes(f: Array, g: Array, t_a: Array, t_interp: Array, dt: Array, no_gate: bool) -> _Slopes:
    slopes = np.empty((len(f), 4, f.shape[1]), f.dtype)
    by_f, by_g, by_t_a, slope = (slopes[:, k] for k in range(4))
    rest = 1 - t_interp
    np.multiply(g if no_gate else g - f, t_interp, out=slope)
    slope *= rest
    np.multiply(slope, dt, out=by_t_a)
    for of, head, weight in ((by_f, f, None if no_gate else rest), (by_g, g, t_interp)):
        np.multiply(head, head, out=of)
        np.subtract(1, of, out=of)
        if weight is not None:
            of *= weight
    return _Slopes(slopes, slope * t_a, {})


def _pure(q: Array, dt: Array, p: Tree, want_slopes: bool) -> tuple[Array | None, _Slopes | None]:
    """Heads q (N, H_s) to the next state (N, H_s), or to its slopes."""
    f, A = q, p["A"]  # (2)
    rate = np.abs(p["w_tau"]) + np.abs(f)
    decay = np.exp(-dt * rate)  # (3)
    if not want_slopes:
        return A - A * decay * f, None
    # |w_tau| has the slope 1 at 0, a subgradient: with 0, w_tau would never leave its initial value
    sign = np.where(p["w_tau"] < 0, -1, 1).astype(q.dtype)
    by_f = -A * decay * (1 - dt * np.abs(f))
    by_rate = A * decay * f * dt
    return None, _Slopes(by_f[:, None], A * decay * f * rate, {"w_tau": by_rate * sign, "A": 1 - decay * f})


INTERPOLATIONS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "default": partial(_gated, no_gate=False),
    "no_gate": partial(_gated, no_gate=True),
    "pure": _pure,
}


class _FirstProduct:
    """W_x u + W_h h + b, the product that takes the state; what it makes of the inputs can be had for many steps at once."""

    def __init__(self, tree: Tree):
        self.w_x, self.w_h, self.b = tree["w_x"], tree["w_h"], tree["b"]
        # (in, out) in memory: a third faster for the few rows of a step
        self.w_x_T, self.w_h_T = np.ascontiguousarray(self.w_x.T), np.ascontiguousarray(self.w_h.T)

    def project(self, u: Array) -> Array:
        """The inputs' part, W_x u + b: (n, inputs) -> (n, P)."""
        a = multiply(u, self.w_x_T)
        a += self.b
        return a

    def with_state(self, projected: Array, h: Array) -> Array:
        """The whole, from the inputs' part (n, P) and the state (n, H_s)."""
        a = multiply(h, self.w_h_T)
        a += projected
        return a


class _Stage(_FirstProduct):
    """One CfC layer of the step."""

    def __init__(self, spec: CfCSpec, index: int, tree: Tree, dropout: list[Array], dt: Array, layout: PackedLayout):
        self.units = slice(*spec.stages[index])
        self.activation, self.interpolate = ACTIVATIONS[spec.activation], INTERPOLATIONS[spec.mode]
        self.tree, self.dt, self.dropout = tree, dt, dropout
        super().__init__(tree)
        self.dense = [(layer["w"], layer["b"]) for layer in tree.get("dense", [])]
        self.dense_T = [np.ascontiguousarray(w.T) for w, _ in self.dense]
        self.grad: Tree = {"dt": np.empty((len(dt), 1), self.w_h.dtype)}

    def heads(self, a: Array, rows: slice, keep: list[tuple[Array, Array]] | None = None) -> Array:
        """From the first product to the heads; `keep` collects each backbone layer's output and its slope."""
        for k, w_T in enumerate(self.dense_T):
            z, slope = self.activation(a, keep is not None)  # (1)
            if self.dropout:
                z *= self.dropout[k][rows]
            if keep is not None and slope is not None:
                keep.append((z, slope * self.dropout[k][rows] if self.dropout else slope))
            a = multiply(z, w_T)  # (2)
            a += self.dense[k][1]
        return a

    def step(self, projected: Array, h: Array, rows: slice) -> Array:
        """From the projected input (n, P) and the state (n, H_s) to the next state."""
        return self.interpolate(self.heads(self.with_state(projected, h), rows), self.dt[rows], self.tree, want_slopes=False)[0]

    def linearise(self, u: Array, h: Array, rows: slice) -> "_StagePoint":
        """For a block of steps at once: everything that the pull needs and that does not depend on it."""
        kept: list[tuple[Array, Array]] = []
        q = self.heads(self.with_state(self.project(u), h), rows, kept)
        _, slopes = self.interpolate(q, self.dt[rows], self.tree, want_slopes=True)
        d_products = [np.empty((len(q), w.shape[0]), q.dtype) for w in (self.w_h, *(w for w, _ in self.dense))]
        return _StagePoint(rows, u, h, kept, slopes, np.empty((len(q), h.shape[1]), q.dtype), d_products)

    def pull(self, point: "_StagePoint", local: slice, dh: Array) -> Array:
        """dh -> dq -> dz for one step: from the next state's gradient (n, H_s) to that of the first product (n, P)."""
        point.dh[local] = dh
        d, slope_q = point.d_products[-1][local], point.slopes.q[local]
        np.multiply(slope_q, dh[:, None], out=d.reshape(slope_q.shape))
        for (w, _), (_, slope), out in zip(self.dense[::-1], point.kept[::-1], point.d_products[-2::-1], strict=True):
            d = multiply(d, w, out=out[local])
            d *= slope[local]
        return d

    def accumulate(self, point: "_StagePoint") -> None:
        """Add a block's part of the weights' gradients."""
        d_first, grad = point.d_products[0], self.grad
        add_product(grad, d_first, point.u, point.h)
        for k, ((z, _), d) in enumerate(zip(point.kept, point.d_products[1:], strict=True)):
            add(grad, f"w{k}", multiply(d.T, z))
            add(grad, f"b{k}", d.sum(0))
        grad["dt"][point.rows, 0] = np.einsum("nh,nh->n", point.dh, point.slopes.dt)
        for name, slope in point.slopes.pure.items():
            add(grad, name, (point.dh * slope).sum(0))

    def gradients(self) -> Tree:
        """The gradients in the structure of the stage's tree."""
        grad = self.grad
        result: Tree = {name: grad[name] for name in ("w_x", "w_h", "b", "w_tau", "A") if name in grad}
        return result | {"dense": [{"w": grad[f"w{k}"], "b": grad[f"b{k}"]} for k in range(len(self.dense))]}


class _StagePoint(NamedTuple):
    """A stage at the states of a block of N steps, and what the pull leaves there."""

    rows: slice
    u: Array  # (N, inputs)
    h: Array  # (N, H_s)
    kept: list[tuple[Array, Array]]  # of each backbone layer: z and its slope, (N, Z)
    slopes: _Slopes
    dh: Array  # (N, H_s): gradient of the next state
    d_products: list[Array]  # gradients of the products' results, first to last


class _MixedMemory(_FirstProduct):
    """The LSTM step before the stages."""

    def __init__(self, tree: Tree):
        super().__init__(tree)
        self.grad: Tree = {}

    def gates(self, projected: Array, h: Array) -> tuple[Array, Array, Array, Array]:
        """tanh(a), sigma(i), sigma(f + 1), sigma(o), each (n, H)."""
        a, i, f, o = np.split(self.with_state(projected, h), 4, axis=1)
        f += 1
        return np.tanh(a, out=a), sigmoid(i), sigmoid(f), sigmoid(o)

    def step(self, projected: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """(h, c) (n, H) each -> the same after the LSTM step."""
        a, i, f, o = self.gates(projected, h)
        c = c * f + a * i
        return np.tanh(c) * o, c

    def linearise(self, x: Array, h: Array, c: Array) -> "_MemoryPoint":
        """For a block of steps at once: everything that the pull needs and that does not depend on it."""
        a, i, f, o = self.gates(self.project(x), h)
        tanh_c = np.tanh(c * f + a * i)
        slope_aif = np.stack([(1 - a * a) * i, a * i * (1 - i), c * f * (1 - f)], axis=1)
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
        np.multiply(point.slope_aif[local], dc[:, None], out=d.reshape(len(d), 4, H)[:, :3])
        np.multiply(point.slope_o[local], dh, out=d[:, 3 * H :])
        multiply(d, self.w_h, out=dh)
        dc *= point.f[local]

    def accumulate(self, point: "_MemoryPoint") -> None:
        """Add a block's part of the weights' gradient."""
        add_product(self.grad, point.d_gates, point.x, point.h)


class _MemoryPoint(NamedTuple):
    """The LSTM at the states of a block of N steps."""

    x: Array  # (N, I)
    h: Array  # (N, H): before the LSTM
    h_inner: Array  # (N, H): after it
    f: Array  # (N, H)
    slope_c: Array  # (N, H): of h_inner, by c
    slope_aif: Array  # (N, 3, H): of c, by the gates
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
        self.stages = [_Stage(spec, k, tree, dropout, dt, self.layout) for k, tree in enumerate(arrays["stages"])]
        self.lstm = _MixedMemory(arrays["lstm"]) if spec.mixed_memory else None

    def states_buffer(self, initial: Array, padded: Array | None = None) -> Array:
        """(B + N, H): the initial states, then every step's, from the padded array or to be filled."""
        layout = self.layout
        states = np.empty((layout.batch + layout.total, initial.shape[1]), initial.dtype)
        states[: layout.batch] = layout.sort(initial)
        if padded is not None:
            states[layout.batch :] = layout.pack(padded)
        return states

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
        dt = sum(stage.grad["dt"] for stage in self.stages)
        result: Tree = {"x": self.layout.unpack(self.dx), "dt": self.layout.unpack(dt)[:, :, 0], "h0": dh0}
        result["stages"] = [stage.gradients() for stage in self.stages]
        return result if self.lstm is None else result | {"c0": dc0, "lstm": self.lstm.grad}


def add_product(grad: Tree, d: Array, x: Array, h: Array) -> None:
    """Add to the gradients of w_x, w_h and b of a product W_x x + W_h h + b, from that of its results."""
    add(grad, "w_x", multiply(d.T, x))
    add(grad, "w_h", multiply(d.T, h))
    add(grad, "b", d.sum(0))


def add(total: Tree, name: str, part: Array) -> None:
    """total[name] += part, starting from nothing."""
    if name in total:
        total[name] += part
    else:
        total[name] = part

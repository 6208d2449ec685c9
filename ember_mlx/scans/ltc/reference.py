"""The NumPy form of the LTC scan: forward, and a handwritten backward. It computes in the dtype of its arrays.

Both take the arrays of one scan as a tree (T steps, B sequences, I inputs, H units, S synapses and S_s sensory ones):

    u         (T, B, I)   inputs, mapped
    dt        (T, B)      elapsed time before each step
    v0        (B, H)      state before the first step;  c0 (B, H) too with mixed memory
    lengths   (B,)        optional, integers in 1..T
    synapses  w, sigma, mu, erev (S,) each: one value per synapse, in the order of the spec's `synapses`
    sensory   the same (S_s,), in the order of the spec's `sensory`
    gleak, vleak, cm      (H,) each
    x         (T, B, I)   inputs of the LSTM, and
    lstm      w_x (4H, I), w_h (4H, H), b (4H,): gates a, i, f, o            with mixed memory

See synapse_sums.py for the layout of synapses. The solver's arrays have the same layout: (F, n) for a step, (S, F, n) for a block of S
steps. The sensory part does not depend on the state, so it is computed for a block of steps at once. The backward recomputes a block of steps at once
from the states before them, unfold by unfold, unless the forward stored them; then it propagates the gradient of v back through the block's
unfolds; then it sums the parameters' gradients over all steps, sequences and unfolds of the block. Sequences are independent, so they are
divided among several threads.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..linear import Sums
from ..memory import MemoryPoint, MixedMemory
from ..packed_sequences import PackedLayout
from ..pointwise import Array
from ..scratch import KEPT_BYTES, Scratch, split_kept
from ..threads import Going, parts_of, run_parts
from .solvers import STEPS
from .spec import SOLVERS, LTCSpec
from .synapse_sums import Kind

Tree = dict[str, Any]
BLOCK_FLOATS = 2**21  # most synapse activations per block of steps


def ltc_forward(spec: LTCSpec, arrays: Tree, kept: Scratch | None = None) -> tuple[Array, ...]:
    """Run an LTC scan over T steps.

    Args:
        spec: the static part.
        arrays: the tree above, float32 or float64.
        kept: buffers for intermediate results that `ltc_backward` reuses, unless they are too large; None: nothing is stored.

    Returns:
        (v,) of shape (T, B, H), zero past each length; with mixed memory (v, c), with the LSTM's cell c of the same shape.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import LTCSpec, Synapses, ltc_forward
        >>> synapse = {name: np.ones(1) for name in ("w", "sigma", "mu", "erev")}
        >>> spec = LTCSpec(Synapses([[1, 0], [0, 0]]), Synapses([[0, 1]]))
        >>> arrays = {"u": np.ones((5, 3, 1)), "dt": np.ones((5, 3)), "v0": np.zeros((3, 2)), "synapses": synapse, "sensory": synapse}
        >>> (v,) = ltc_forward(spec, arrays | {name: np.ones(2) for name in ("gleak", "vleak", "cm")})
        >>> v.shape
        (5, 3, 2)
    """
    parts = _parts(spec, arrays)
    memories = _memories(kept, len(parts))
    if len(parts) == 1:
        return _forward(spec, arrays, memories[0], Going())
    results = run_parts(lambda part, memory, going: _forward(spec, _of_sequences(arrays, part), memory, going), parts, memories)
    return tuple(_together(parts, outputs, axis=1) for outputs in zip(*results, strict=True))


def ltc_backward(
    spec: LTCSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], kept: Scratch | None = None
) -> Tree:
    """The gradients of an LTC scan, from those of its outputs.

    Args:
        spec: the static part.
        arrays: the arguments of `ltc_forward`.
        outputs: its results.
        cotangents: the gradient of each output, same shapes.
        kept: the buffers passed to `ltc_forward`, not used since; None: nothing was stored.

    Returns:
        The gradient of every floating-point array, as a tree of the same structure, without `lengths`.
    """
    parts = _parts(spec, arrays)
    memories = _memories(kept, len(parts))
    if len(parts) == 1:
        return _backward(spec, arrays, outputs, cotangents, memories[0], Going())

    def run(part: NDArray[np.intp], memory: _Memory, going: Going) -> Tree:
        y, dy = (tuple(a[:, part] for a in group) for group in (outputs, cotangents))
        return _backward(spec, _of_sequences(arrays, part), y, dy, memory, going)

    return _joined(parts, run_parts(run, parts, memories))


class LTCStep:
    """A single step for repeated calls: each call reads u, dt and the state from the arrays passed to the constructor.

    Args:
        spec: the static part.
        arrays: arguments as for `ltc_forward`, contiguous, with T = 1 and without lengths.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import LTCSpec, LTCStep, Synapses
        >>> synapse = {name: np.ones(1) for name in ("w", "sigma", "mu", "erev")}
        >>> arrays = {"u": np.ones((1, 3, 1)), "dt": np.ones((1, 3)), "v0": np.zeros((3, 2)), "synapses": synapse, "sensory": synapse}
        >>> arrays |= {name: np.ones(2) for name in ("gleak", "vleak", "cm")}
        >>> step = LTCStep(LTCSpec(Synapses([[1, 0], [0, 0]]), Synapses([[0, 1]])), arrays)
        >>> for _ in range(5):
        ...     arrays["v0"][...] = step()[0]
    """

    def __init__(self, spec: LTCSpec, arrays: Tree):
        self.scan = _Scan(spec, arrays, Scratch(arrays["v0"].dtype))
        self.v, self.c = arrays["v0"], arrays.get("c0")
        self.cells = [] if self.c is None else [np.empty_like(self.c)]

    def __call__(self) -> list[Array]:
        """The state after the step, [v] or [v, c], (B, H) each; the next call overwrites it."""
        block = self.scan.block(0, 1)
        projected = None if self.scan.lstm is None else self.scan.lstm.project(block.x)
        v, _ = self.scan.through_memory(projected, block.steps[0], self.v, self.c, self.cells)
        return [self.scan.step(v, block, 0, None), *self.cells]


class _Memory(NamedTuple):
    """The buffers of one thread."""

    kept: Scratch | None
    most_bytes: int


def _memories(kept: Scratch | None, threads: int) -> list[_Memory]:
    return [_Memory(part, KEPT_BYTES // threads) for part in split_kept(kept, threads)]


# The batch axis of the arrays that have one.
SEQUENCES = {"u": 1, "x": 1, "dt": 1, "v0": 0, "c0": 0, "lengths": 0}


def _parts(spec: LTCSpec, arrays: Tree) -> list[NDArray[np.intp]]:
    """The sequences of each thread."""
    return parts_of(len(arrays["v0"]), arrays.get("lengths"), spec.synapses.count)


def _of_sequences(arrays: Tree, part: NDArray[np.intp]) -> Tree:
    """The arrays of a part of the sequences."""
    return {name: a.take(part, axis=SEQUENCES[name]) if name in SEQUENCES else a for name, a in arrays.items()}


def _together(parts: list[NDArray[np.intp]], arrays: Sequence[Array], axis: int) -> Array:
    """Join the arrays of all parts along the batch axis, in the caller's order of sequences."""
    return np.concatenate(arrays, axis=axis).take(np.argsort(np.concatenate(parts)), axis=axis)


def _joined(parts: list[NDArray[np.intp]], gradients: list[Tree]) -> Tree:
    """Join the gradients of all parts: per-sequence arrays are concatenated, the others added."""
    result: Tree = {}
    for name, first in gradients[0].items():
        given = [gradient[name] for gradient in gradients]
        if isinstance(first, dict):
            result[name] = {key: sum(tree[key] for tree in given) for key in first}
        else:
            result[name] = _together(parts, given, SEQUENCES[name]) if name in SEQUENCES else sum(given)
    return result


def _forward(spec: LTCSpec, arrays: Tree, memory: "_Memory", going: Going) -> tuple[Array, ...]:
    """`ltc_forward` in one thread."""
    scratch = Scratch(arrays["v0"].dtype)
    with np.errstate(over="ignore"):
        scan = _Scan(spec, arrays, scratch)
        layout, H, dtype = scan.layout, spec.units, arrays["v0"].dtype
        results = [layout.result(H, dtype) for _ in range(2 if scan.lstm else 1)]
        v, c = layout.sort(arrays["v0"]), layout.sort(arrays["c0"]) if scan.lstm else None
        for first, last in layout.even_chunks(scan.block_rows):
            going.on()
            block = scan.block(first, last)
            trace = scan.kept_trace(memory, block)
            states, *cells = (layout.room(layout.flat(a), block.rows, scratch(f"states{k}", block.N, H)) for k, a in enumerate(results))
            projected = None if scan.lstm is None else scan.lstm.project(block.x)
            for k, rows in enumerate(block.steps):
                v, c = scan.through_memory(projected, rows, v[: rows.stop - rows.start], c, cells)
                states[rows] = v = scan.step(v, block, k, trace)
            v = scratch.copy("v", v)  # the next block overwrites the states of this one
            c = None if c is None else scratch.copy("c", c)
            for a, result in zip((states, *cells), results, strict=True):
                layout.store(a, layout.flat(result), block.rows)
    return tuple(results)


def _backward(
    spec: LTCSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], memory: "_Memory", going: Going
) -> Tree:
    """`ltc_backward` in one thread."""
    scratch = Scratch(arrays["v0"].dtype)
    with np.errstate(over="ignore"):
        scan = _Scan(spec, arrays, scratch)
        layout, H = scan.layout, spec.units
        v0, c0 = layout.sort(arrays["v0"]), layout.sort(arrays["c0"]) if scan.lstm else None
        flat, flat_dy = [layout.flat(a) for a in outputs], [layout.flat(a) for a in cotangents]
        dv, dc = np.zeros_like(v0), np.zeros_like(v0)
        for first, last in reversed(layout.even_chunks(scan.block_rows)):
            going.on()
            block = scan.block(first, last)
            trace = scan.kept_trace(memory, block)
            dy, *dy_c = (layout.rows_of(a, block.rows, out=scratch(f"dy{k}", block.N, H)) for k, a in enumerate(flat_dy))
            before = layout.previous(v0, flat[0], block.rows, out=scratch("v_prev", block.N, H))
            lstm = None
            if scan.lstm is not None and c0 is not None:
                cells = layout.rows_of(flat[1], block.rows, out=scratch("cells", block.N, H))
                c_prev = layout.previous(c0, flat[1], block.rows, out=scratch("c_prev", block.N, H))
                gates = scratch("gates", *scan.lstm.trace_shape(block.N))
                lstm = scan.lstm.linearise(block.x, before, c_prev, cells, gates, traced=False)
            point = scan.linearise(before if lstm is None else lstm.h_inner, block, trace)
            for k, rows in reversed(list(enumerate(block.steps))):
                n = rows.stop - rows.start
                dv[:n] += dy[rows]
                if dy_c:
                    dc[:n] += dy_c[0][rows]
                scan.pull(point, k, dv[:n])
                if scan.lstm is not None and lstm is not None:
                    scan.lstm.pull(lstm, rows, dv[:n], dc[:n])
            scan.accumulate(block, point, lstm)
        return scan.gradients(layout.unsort(dv), layout.unsort(dc))


class _Block(NamedTuple):
    """A block of S whole steps with n sequences each, N = S n rows."""

    rows: slice  # in packed order
    N: int
    steps: list[slice]  # the rows of each step, relative to the block's first row
    x: Array  # (N, I) with mixed memory, else (N, 0)
    u: Array  # (S, I, n)
    total: Array  # (S, H, n): cm + delta of the semi-implicit solver, else cm
    share: Array  # (S, H, n): cm / total
    r: Array  # (S, H, 1, n): delta / total
    active: Array  # (S, P, n): tanh(...) of the sensory synapses
    drive: Array  # (S, H, 2, n): num and den without the tanh sums of the synapses between units
    rest: Array  # (S, H, 2, n): r times that; for the semi-implicit solver den's part plus share


class _Trace(NamedTuple):
    """The intermediate results of a block of S steps with E evaluations of the synapses each."""

    v: Array  # (E + 1, S, H, n): the v of each evaluation, and the state after the step
    sums: Array  # (E, S, H, 2, n): the tanh sums of the synapses in num and den
    active: Array  # (E, S, P, n): tanh(...)


class _Point(NamedTuple):
    """A block of S steps linearised, with E evaluations of the synapses each, and the gradients that `pull` writes."""

    trace: _Trace
    share: Array  # (S, H, n)
    den: Array  # (E, S, H, n): r den, for the semi-implicit solver share + r den
    factors: Array  # (E, S, H, 2, n): from h to the gradients of num and den
    by_argument: Array  # (E, S, P, n): the gradient of each sigma's argument
    h: Array  # (E, S, H, n): see solvers.py
    d: Array  # (E, S, H, 2, n): the gradients of num and den


class _Scan:
    """The parts of one scan, over packed rows."""

    def __init__(self, spec: LTCSpec, arrays: Tree, scratch: Scratch):
        steps, batch = arrays["dt"].shape
        self.spec, self.scratch = spec, scratch
        self.layout = PackedLayout(steps, batch, arrays.get("lengths"))
        self.flat = {name: self.layout.flat(a) for name, a in _over_time(arrays).items()}
        self.d = {name: self.layout.flat(self.layout.result(a.shape[1], a.dtype)) for name, a in self.flat.items()}
        self.gleak, self.vleak, self.cm = (arrays[name][:, None] for name in ("gleak", "vleak", "cm"))
        self.cm = self.cm + self.cm.dtype.type(spec.least_cm)
        self.synapses = Kind(spec.synapses, arrays["synapses"], scratch.part("synapses"))
        self.sensory = Kind(spec.sensory, arrays["sensory"], scratch.part("sensory"))
        self.lstm = MixedMemory(arrays["lstm"], batch, scratch.part("lstm")) if spec.mixed_memory else None
        self.sums = Sums(scratch.part("sums"))
        self.block_rows = BLOCK_FLOATS // (spec.evaluations * max(1, spec.synapses.count)) + 1
        self.trace_size = spec.evaluations * (3 * spec.units + self.synapses.grouping.size) + spec.units  # floats per row of the trace
        self.semi_implicit = spec.solver == "semi_implicit"
        leak = np.stack([self.gleak * self.vleak, self.gleak + self.gleak.dtype.type(spec.epsilon if self.semi_implicit else 0)], axis=1)
        self.constant = leak + (self.synapses.constant + self.sensory.constant)[:, :, None]  # (H, 2, 1), for num and den
        self.advance, self.pull_unfold = STEPS[spec.solver]

    def block(self, first: int, last: int) -> _Block:
        """The steps [first, last), which have the same sequences."""
        starts = self.layout.starts[first : last + 1]
        rows, n = slice(starts[0], starts[-1]), starts[-1] - starts[0]
        part = {name: self.layout.rows_of(a, rows, out=self.scratch(name, n, a.shape[1])) for name, a in self.flat.items()}
        u, dt = (self.by_step(name, part[name], last - first) for name in ("u", "dt"))
        S, H, (n, _) = last - first, self.spec.units, part["u"].shape
        n //= S
        active, drive = self.sensory.room("active", S, n), self.scratch("drive", S, H, 2, n)
        self.sensory.activate(u, active, out=drive)  # (1)
        drive += self.constant
        total, share, r = self.scales(dt / dt.dtype.type(self.spec.unfolds))
        rest = np.multiply(drive, r, out=self.scratch("rest", *drive.shape))
        if self.semi_implicit:
            rest[:, :, 1] += share
        steps = [slice(a - starts[0], b - starts[0]) for a, b in pairwise(starts)]
        return _Block(rows, S * n, steps, part.get("x", part["u"]), u, total, share, r, active, drive, rest)

    def scales(self, delta: Array) -> tuple[Array, Array, Array]:
        """_Block's total, share and r, from delta (S, 1, n): no division by cm alone, and with delta = 0 share is 1, so v is unchanged."""
        total, share, r = (self.scratch(name, len(delta), self.spec.units, delta.shape[2]) for name in ("total", "share", "r"))
        np.add(self.cm, delta if self.semi_implicit else 0, out=total)
        return total, np.divide(self.cm, total, out=share), np.divide(delta, total, out=r)[:, :, None]

    def by_step(self, name: str, rows: Array, steps: int) -> Array:
        """(S n, F) -> (S, F, n), in the buffer of this name."""
        n, F = len(rows) // steps, rows.shape[1]
        return self.scratch.copy(f"{name} by step", rows.reshape(steps, n, F).swapaxes(1, 2))

    def kept_trace(self, memory: _Memory, block: _Block) -> _Trace | None:
        """The stored trace of a block, always in the same buffer; None if nothing is stored, or the traces of all blocks are too large."""
        if memory.kept is None or self.layout.total * self.trace_size * self.cm.itemsize > memory.most_bytes:
            return None
        traces = memory.kept("traces", self.layout.total * self.trace_size)
        return self.trace(traces[block.rows.start * self.trace_size : block.rows.stop * self.trace_size], len(block.steps))

    def trace(self, memory: Array, steps: int) -> _Trace:
        """(N trace_size,) -> views of it as the trace of N rows of `steps` steps."""
        E, H = self.spec.evaluations, self.spec.units
        n = len(memory) // (self.trace_size * steps)
        v, sums, active = np.split(memory, np.cumsum([(E + 1) * steps * H * n, 2 * E * steps * H * n]))
        active = self.synapses.laid_out(active, E, steps, n)
        return _Trace(v.reshape(E + 1, steps, H, n), sums.reshape(E, steps, H, 2, n), active)

    def through_memory(
        self, projected: Array | None, rows: slice, v: Array, c: Array | None, cells: list[Array]
    ) -> tuple[Array, Array | None]:
        """(v, c) before a step -> the solver's initial v, and the next c; `projected` is the LSTM's projected input for the block."""
        if self.lstm is None or c is None or projected is None:
            return v, c
        gates = self.scratch("gates", *self.lstm.trace_shape(len(v)))
        return self.lstm.step(projected[:, rows], v, c[: len(v)], gates, out=cells[0][rows])

    def step(self, v: Array, block: _Block, k: int, trace: _Trace | None) -> Array:
        """Step k of a block: v (n, H) -> (n, H). It writes its part of the trace, if there is one."""
        E, H, n = self.spec.evaluations, self.spec.units, len(v)
        if trace is None:
            points, sums = self.scratch("points", E + 1, H, n), [self.scratch("sums", H, 2, n)] * E
            active = [self.synapses.room("active", n)] * E
        else:
            points, sums, active = trace.v[:, k], list(trace.sums[:, k]), list(trace.active[:, k])
        points[0] = v.T
        self.unfold(list(points), sums, active, block.share[k], block.r[k], block.rest[k])
        return points[-1].T

    def unfold(self, points: list[Array], sums: list[Array], active: list[Array], share: Array, r: Array, rest: Array) -> None:
        """Run the unfolds of a step, or of a block of steps at once.

        Args:
            points: E + 1 arrays (..., H, n): the state before, then buffers for v at each further evaluation and for the state after.
            sums: E buffers (..., H, 2, n) for the synapses' part of num and den.
            active: E buffers (..., P, n) for tanh(...).
            share: (..., H, n).
            r: (..., H, 1, n).
            rest: (..., H, 2, n).
        """
        evaluations = iter(range(len(sums)))

        def evaluate(v: Array) -> Array:
            e = next(evaluations)
            if v is not points[e]:
                points[e][...] = v
            self.synapses.activate(points[e], active[e], out=sums[e])  # (2)
            both = np.multiply(sums[e], r, out=self.scratch("both", *sums[e].shape))
            both += rest  # (3), (4)
            return both

        for v, after in pairwise(points[:: SOLVERS[self.spec.solver]]):
            self.advance(evaluate, share, v, out=after)

    def linearise(self, before: Array, block: _Block, trace: _Trace | None) -> _Point:
        """Linearise a block of steps at once, from the states before them (N, H) and their trace, which is computed if it is None."""
        if trace is None:
            trace = self.trace(self.scratch("trace", block.N * self.trace_size), len(block.steps))
            S, n = trace.v.shape[1], trace.v.shape[3]
            trace.v[0] = before.reshape(S, n, self.spec.units).swapaxes(1, 2)
            self.unfold(list(trace.v), list(trace.sums), list(trace.active), block.share, block.r, block.rest)
        shape = trace.sums.shape
        den, h = (self.scratch(name, *shape[:3], shape[4]) for name in ("den", "h"))
        np.multiply(trace.sums[..., 1, :], block.r[..., 0, :], out=den)
        den += block.rest[..., 1, :]
        factors, d = (self.scratch(name, *shape) for name in ("factors", "d_sums"))
        factors[..., 0, :] = block.r[..., 0, :]
        # minus the factor of den in the equation of this evaluation
        np.negative(trace.v[1:] if self.semi_implicit else trace.v[:-1], out=factors[..., 1, :])
        factors[..., 1, :] *= block.r[..., 0, :]
        return _Point(trace, block.share, den, factors, self.synapses.room("by_argument", *shape[:2], shape[4]), h, d)

    def pull(self, point: _Point, k: int, dv: Array) -> None:
        """From the gradient (n, H) of the state after step k of a block to that of the state before it, in place."""
        h = point.h[:, k]

        def pull(e: int) -> Array:
            d = np.multiply(h[e][:, None], point.factors[e, k], out=point.d[e, k])
            return self.synapses.pull(point.trace.active[e, k], d, out=point.by_argument[e, k])

        result = self.scratch.copy("dv by unit", dv.T)
        for first in reversed(range(0, self.spec.evaluations, SOLVERS[self.spec.solver])):
            result = self.pull_unfold(pull, first, point.share[k], point.den[:, k], h, result)
        dv[...] = result.T

    def accumulate(self, block: _Block, point: _Point, memory: MemoryPoint | None) -> None:
        """Add a block's part of the parameters' gradients, and store those of the inputs and the elapsed times."""
        v, sums = point.trace.v[:-1], point.trace.sums
        # h (num - den v) / total, for the semi-implicit solver also divided by share + r den: share times this is the gradient of delta,
        # and -r times this that of cm. Both keep their digits for short and long steps, unlike with the v
        # after the evaluation
        by_change = np.add(sums[..., 1, :], block.drive[..., 1, :], out=self.scratch("by_change", *v.shape))
        by_change *= v
        np.subtract(sums[..., 0, :], by_change, out=by_change)
        by_change += block.drive[..., 0, :]
        by_change *= point.h
        by_change /= np.multiply(point.den, block.total, out=point.den) if self.semi_implicit else block.total
        self.sums.add("cm", -_by_unit(np.multiply(by_change, block.r[..., 0, :], out=point.den)))
        self.synapses.accumulate(*(_evaluations_together(a) for a in (point.trace.active, point.by_argument, v, point.d)))
        d = point.d.sum(0)
        by_num, by_den = (_by_unit(d[:, :, k]) for k in range(2))
        self.sums.add("vleak", self.gleak[:, 0] * by_num)
        self.sums.add("gleak", self.vleak[:, 0] * by_num + by_den)
        by_argument = self.sensory.room("by_argument", len(block.steps), block.u.shape[2])
        d_rows = {"u": _by_row(self.sensory.pull(block.active, d, out=by_argument))}
        self.sensory.accumulate(block.active, by_argument, block.u, d)
        d_rows["dt"] = (by_change.sum(0) * block.share).sum(1).reshape(-1, 1) / by_change.dtype.type(self.spec.unfolds)
        if self.lstm is not None and memory is not None:
            self.lstm.accumulate(memory)
            d_rows["x"] = memory.d_gates @ self.lstm.w_x
        for name, a in d_rows.items():
            self.layout.rows_of(self.d[name], block.rows, out=self.scratch("d", *a.shape))[...] = a
            self.layout.store(a, self.d[name], block.rows)

    def gradients(self, dv0: Array, dc0: Array) -> Tree:
        """All gradients, in the structure of the scan's arrays."""
        T, B = self.layout.steps, self.layout.batch
        result: Tree = {name: a.reshape(T, B, -1) for name, a in self.d.items()} | dict(self.sums.totals)
        result |= {"dt": result["dt"][:, :, 0], "v0": dv0}
        result |= {"synapses": self.synapses.gradients(), "sensory": self.sensory.gradients()}
        return result if self.lstm is None else result | {"c0": dc0, "lstm": self.lstm.gradients()}


def _over_time(arrays: Tree) -> Tree:
    """The (T, B, F) arrays of a tree."""
    return {"u": arrays["u"], "dt": arrays["dt"][:, :, None]} | ({"x": arrays["x"]} if "x" in arrays else {})


def _by_row(a: Array) -> Array:
    """(S, F, n) -> (S n, F)."""
    return a.swapaxes(1, 2).reshape(a.shape[0] * a.shape[2], a.shape[1])


def _by_unit(a: Array) -> Array:
    """(..., H, n) -> (H,), the sums."""
    return a.sum(tuple(range(a.ndim - 2))).sum(-1)


def _evaluations_together(a: Array) -> Array:
    """(E, S, ...) -> (E S, ...)."""
    return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])

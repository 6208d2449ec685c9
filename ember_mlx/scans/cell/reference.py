"""The NumPy form of the scan of any cell: forward and backward, by statements generated from its step (numpy_plan.py).

Both take the arrays of one scan as a tree (D directions, each a scan of its own; T steps, B sequences, H units, G products with x):

    x          (D, T, B, I)   inputs, in each direction's order of steps
    w_x, b     (D, G H, I), (D, G H)
    initial    state -> (D, B, H), before the first step
    weights    name -> (D, count H, H), of the products with hidden values
               (a cell may name another size P for a state and for what such a product gives)
    parameters name -> (D, H), or (D, 1) where it is shared by all units
    dt         (D, T, B)      elapsed time before each step, of a cell that takes it
    lengths    (B,)           optional, integers in 1..T

Only what depends on the state is in the loops over T. The backward computes the values that it needs again from the states, a block of
steps at a time, unless the forward kept them.
"""

import math
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...step.definition import Definition
from ...step.evaluation import evaluate
from ..linear import StepProduct, Sums
from ..matmul import multiply, multiply_over_rows
from ..packed_sequences import PackedLayout
from ..pointwise import Array
from ..scratch import KEPT_BYTES, Scratch
from .numpy_plan import plan_of

Tree = dict[str, Any]
Small = dict[int, Any]
BLOCK_ROWS = 800  # rows (step and sequence) at a time: enough for products on two threads, few enough to stay in the cache


def cell_forward(definition: Definition, arrays: Tree, kept: Scratch | None = None) -> tuple[Array, ...]:
    """Run a cell over T steps, in D directions.

    Args:
        definition: of the cell.
        arrays: the tree above, float32 or float64.
        kept: memory for values that spare the backward their recomputation, used unless they are too large; None: nothing is kept.

    Returns:
        For each state (D, T, B, H), zero past each length.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.cells import MinGRU
        >>> from ember_mlx.scans.cell.reference import cell_forward
        >>> weights = {"w_x": np.zeros((1, 6, 4)), "b": np.zeros((1, 6)), "weights": {}, "parameters": {}}
        >>> sequence = {"x": np.ones((1, 5, 2, 4)), "initial": {"h": np.ones((1, 2, 3))}}
        >>> (h,) = cell_forward(MinGRU().definition, sequence | weights)
        >>> h.shape, float(h[0, 0, 0, 0])
        ((1, 5, 2, 3), 0.5)
    """
    with np.errstate(over="ignore"):  # 1 / (1 + exp(-a)) is right there too
        scan = _Scan(definition, arrays)
        results = scan.results()
        memory = scan.room_to_keep(kept)
        state = scan.initial()
        for first, last in scan.layout.chunks(BLOCK_ROWS):
            block = scan.block(first, last)
            states = [scan.rows_of(f"after{k}", a, block) for k, a in enumerate(results)]
            m = scan.values_of(memory, block)
            small = scan.prepare(m, block)
            for rows in block.steps:
                n = rows.stop - rows.start
                out = [a[:, rows] for a in states]
                scan.step(m, rows, scan.small_of(small, rows), [a[:, :n] for a in state], out)
                state = out
            state = [scan.scratch.copy(f"state{k}", a) for k, a in enumerate(state)]  # the next block overwrites these states
            for a, result in zip(states, results, strict=True):
                scan.store(a, result, block)
    return tuple(results)


def cell_backward(
    definition: Definition, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], kept: Scratch | None = None
) -> Tree:
    """Pull the outputs' gradients back through the scan of a cell.

    Args:
        definition: of the cell.
        arrays: what `cell_forward` took.
        outputs: what it returned.
        cotangents: the gradient of each output, same shapes.
        kept: what `cell_forward` was given, and nobody else since; None: it kept nothing.

    Returns:
        The gradient of every floating-point array, as a tree of the same structure, without `lengths`.
    """
    with np.errstate(over="ignore"):
        scan = _Scan(definition, arrays)
        initial = scan.initial()
        outputs, cotangents = (tuple(np.ascontiguousarray(a) for a in given) for given in (outputs, cotangents))
        d_state = [np.zeros_like(a) for a in initial]
        d_x, d_dt = scan.padded(arrays["x"].shape[3]), scan.padded(1) if definition.is_timed else None
        memory = scan.room_to_keep(kept)
        for first, last in reversed(scan.layout.chunks(BLOCK_ROWS)):
            block = scan.block(first, last)
            before = [scan.previous(f"before{k}", a, b, block) for k, (a, b) in enumerate(zip(initial, outputs, strict=True))]
            after, dy = (
                [scan.rows_of(f"{name}{k}", a, block) for k, a in enumerate(given)]
                for name, given in (("after", outputs), ("dy", cotangents))
            )
            point = scan.linearise(block, memory, before, after)
            for rows in reversed(block.steps):
                here = [a[:, : rows.stop - rows.start] for a in d_state]
                for a, b in zip(here, dy, strict=True):
                    a += b[:, rows]
                scan.pull(point, rows, here)
            scan.accumulate(block, point, d_x, d_dt)
        return scan.gradients(d_x, d_dt, d_state)


class CellStep:
    """A scan of one step that is run again and again: each call reads x, dt and the state anew from the arrays that it was made with.

    Args:
        definition: of the cell.
        arrays: what `cell_forward` takes, contiguous, with T = 1 and without lengths.
    """

    def __init__(self, definition: Definition, arrays: Tree):
        self.scan = _Scan(definition, arrays)
        self.block = self.scan.block(0, 1)
        self.m = self.scan.values_of(None, self.block)
        self.before = [arrays["initial"][name] for name in definition.states]
        self.after = [np.empty_like(a) for a in self.before]

    def __call__(self) -> list[Array]:
        """The states after the step, (D, B, H) each; the next call overwrites them."""
        self.scan.step(self.m, slice(None), self.scan.prepare(self.m, self.block), self.before, self.after)
        return self.after


class _Block(NamedTuple):
    """Some whole steps, n rows in all."""

    rows: slice  # in the packed order
    n: int
    steps: list[slice]  # the rows of each, counted from the block's first


class _Point(NamedTuple):
    """A block of N steps at its states, and what the pull leaves there."""

    c: Array  # (D, coefficients, N, H)
    d: Array  # (D, blocks, N, H): gradients
    p: Array  # (D, blocks, N, P): those of another size
    given: list[Array]  # coefficients that are values of the forward pass
    small: Small
    arguments: list[Array]  # of each product (D, N, H)


class _Scan:
    """The parts of one scan, over packed rows; every array has the directions first."""

    def __init__(self, definition: Definition, arrays: Tree):
        self.arrays, self.plan = arrays, plan_of(definition)
        self.definition = self.plan.definition  # the same step, of which the plan has the nodes
        self.D, T, B, _ = arrays["x"].shape
        self.H, self.dtype = arrays["b"].shape[1] // len(definition.x), arrays["b"].dtype
        self.P = next((a.shape[2] for name, a in arrays["initial"].items() if definition.sizes[name] != "H"), self.H)
        self.scratch = Scratch(self.dtype)
        self.layout = PackedLayout(T, B, arrays.get("lengths"))
        self.x = np.ascontiguousarray(arrays["x"])
        self.sums = [Sums(self.scratch.part(f"sums{d}")) for d in range(self.D)]
        self.factors = np.array(self.plan.x_factors, self.dtype)
        self.b = self._x_blocks(arrays["b"])[:, :, None]
        self.constants = self._constants()
        self.names = [call.name for call in definition.calls]
        self.memory: dict[int, tuple[Array, list[Array]]] = {}
        self.pulled: dict[int, Array] = {}

    def _x_blocks(self, a: Array) -> Array:
        """(D, G H, ...) -> (D, G, H, ...) as the products with x lie in memory, times their factors."""
        a = a.reshape(self.D, len(self.factors), self.H, *a.shape[2:])
        order = self.plan.x_order
        a = a if order == sorted(order) else a[:, order]
        factors = self.factors[order]
        return a if (factors == 1).all() else a * factors.reshape(-1, *[1] * (a.ndim - 2))

    def _constants(self) -> Small:
        """What depends on parameters alone, (D, 1, H) or (D, 1, 1)."""
        given = {node.index: self.arrays["parameters"][name][:, None] for name, node in self.definition.parameters.items()}
        nodes = [n for n in self.plan.small if not n.per_row]
        return dict(zip((n.index for n in nodes), evaluate(self.definition, nodes, given), strict=True))

    @cached_property
    def of_x(self) -> Array:
        """The weights of W_x x: (D, G, I, H)."""
        return self._x_blocks(self.arrays["w_x"]).swapaxes(2, 3)

    @cached_property
    def weights(self) -> dict[str, Array]:
        """Those of the products with hidden values as these lie in memory, times their factors: (D, count, H, H), inputs first."""
        made = {}
        for c, name in enumerate(self.names):
            w = self._by_block(name)
            factors = np.array(self.plan.factors[c], self.dtype)[self.plan.orders[c]]
            w = w[:, self.plan.orders[c]] if len(self.plan.orders[c]) > 1 else w
            made[name] = (w if (factors == 1).all() else w * factors[:, None, None]).swapaxes(2, 3)
        return made

    @cached_property
    def products(self) -> dict[str, Callable[[Array, Array], Any]]:
        """W v for the rows of a step."""
        return {name: StepProduct(w, self.scratch.part(f"of {name}")) for name, w in self.weights.items()}

    @cached_property
    def back(self) -> dict[str, Callable[[Array, Array], None]]:
        """From the gradients of W v, (D, count, n, H), to that of v, for the rows of a step."""
        return {name: self._back(name, c) for c, name in enumerate(self.names)}

    def _by_block(self, name: str) -> Array:
        """A weight (D, count, H, H)."""
        w = self.arrays["weights"][name]
        return w.reshape(self.D, self.definition.h_products[name], -1, w.shape[2])

    def _back(self, name: str, call: int) -> Callable[[Array, Array], None]:
        scratch = self.scratch.part(f"back {name}")
        product = StepProduct(self._by_block(name)[:, self.plan.orders[call]], scratch)

        def back(d: Array, out: Array) -> None:
            if d.shape[1] == 1:
                product(d, out[:, None])
            else:
                np.add.reduce(product(d, scratch("parts", *d.shape[:3], out.shape[2])), axis=1, out=out)

        return back

    def initial(self) -> list[Array]:
        """The states before the first step, in packed order."""
        return [np.stack([self.layout.sort(a) for a in self.arrays["initial"][name]]) for name in self.definition.states]

    def results(self) -> list[Array]:
        """Memory for the outputs."""
        return [self.padded(self.arrays["initial"][name].shape[2]) for name in self.definition.states]

    def padded(self, features: int) -> Array:
        """(D, T, B, features), zero past each length."""
        make = np.empty if self.layout.order is None else np.zeros
        return make((self.D, self.layout.steps, self.layout.batch, features), self.dtype)

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
        """Put the block's rows into (D, T, B, F); nothing to do for a view."""
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
        """Room there for the values of all steps, always the same; None where the backward needs none, or where they would be too large."""
        shape = (self.D, self.plan.slots, self.layout.total, self.H)
        if memory is None or not self.plan.kept or math.prod(shape) * self.b.itemsize > KEPT_BYTES:
            return None
        return memory("values", *shape)

    def values_of(self, kept: Array | None, block: _Block) -> Array:
        """The block's part of the values (D, slots, n, H); where none are kept memory for them."""
        return self.scratch("values", self.D, self.plan.slots, block.n, self.H) if kept is None else kept[:, :, block.rows]

    def prepare(self, m: Array, block: _Block) -> Small:
        """For a block of steps what does not depend on the states: into m, and what is not (n, H)."""
        products = m[:, : len(self.factors)]
        for x, w, out in zip(self.rows_of("x", self.x, block), self.of_x, products, strict=True):
            multiply(x, w, out)
        products += self.b
        small = self.small(block)
        if self.plan.is_early_needed:
            self.plan.early(m, self._temporary(block.n), small)
        return small

    def _temporary(self, n: int) -> Array:
        return self.scratch("temporary", self.D, self.plan.temporary, n, self.H)

    def small(self, block: _Block) -> Small:
        """What depends on the elapsed times of a block alone, (D, n, 1), beside what depends on parameters."""
        nodes = [n for n in self.plan.small if n.per_row]
        if not nodes or self.definition.dt is None:
            return self.constants
        dt = self.rows_of("dt", self.arrays["dt"][..., None], block)
        found = evaluate(self.definition, nodes, self.constants | {self.definition.dt.index: dt})
        return self.constants | dict(zip((n.index for n in nodes), found, strict=True))

    def small_of(self, small: Small, rows: slice) -> Small:
        """Those of some rows of the block."""
        if small is self.constants:
            return small
        return {index: a if index in self.constants else a[:, rows] for index, a in small.items()}

    def step(self, m: Array, rows: slice, small: Small, before: list[Array], after: list[Array]) -> None:
        """The states (D, n, H) after a step, from what lies in m (D, slots, N, H) in some rows."""
        t, q = self._memory(before[0].shape[1])
        self.plan.step(m, rows, t, small, self.products, *q, *before, *after)

    def _memory(self, n: int) -> tuple[Array, list[Array]]:
        """For n rows what a step overwrites: its temporary values and the results of its products."""
        if n not in self.memory:
            sizes = [self.H if self.definition.sizes[name] == "H" else self.P for name in self.names]
            q = [self.scratch(f"q{c}", self.D, len(self.definition.calls[c].results), n, size) for c, size in enumerate(sizes)]
            self.memory[n] = self._temporary(n), q
        return self.memory[n]

    def linearise(self, block: _Block, memory: Array | None, before: list[Array], after: list[Array]) -> _Point:
        """Everything that the pull needs and that does not depend on it, for a block of steps at once."""
        plan, m, slots = self.plan, self.values_of(memory, block), self.plan.kept
        small = self.small(block)
        if memory is None and plan.kept:
            small, slots = self.prepare(m, block), plan.made_again
            self._again(m, small, block.n, before, after)
        kept = [m[:, slot] for slot in slots]
        c = self.scratch("c", self.D, len(plan.blocks.coefficients), block.n, self.H)
        u = self.scratch("u", self.D, plan.made_arguments, block.n, self.H)
        t = self.scratch("t", self.D, plan.linearise_temporary, block.n, self.H)
        plan.linearise(c, u, t, kept, small, *before, *after)
        where = {"before": before, "after": after, "kept": kept, "made": [u[:, j] for j in range(plan.made_arguments)]}
        given, arguments = ([where[kind][k] for kind, k in of.values()] for of in (plan.blocks.at_hand, plan.arguments))
        d = self.scratch("d", self.D, plan.blocks.count, block.n, self.H)
        return _Point(c, d, self.scratch("p", self.D, plan.blocks.others, block.n, self.P), given, small, arguments)

    def _again(self, m: Array, small: Small, n: int, before: list[Array], after: list[Array]) -> None:
        """What the forward pass left in m, from the states."""
        if not self.plan.is_again_needed:
            return
        t, q = self._memory(n)
        products = {name: self._for_block(name) for name in self.weights}
        self.plan.again(m, slice(None), t, small, products, *q, *before, *after)

    def _for_block(self, name: str) -> Callable[[Array, Array], None]:
        """W v for the rows of a block of steps."""

        def product(v: Array, out: Array) -> None:
            for u, w, result in zip(v[:, 0], self.weights[name], out, strict=True):
                multiply(u, w, result)

        return product

    def pull(self, point: _Point, rows: slice, d_state: list[Array]) -> None:
        """From the gradients of a step's states, (D, n, H), to those of the states before it, in place, and to the gradients in `d`."""
        n, small, given = rows.stop - rows.start, point.small, point.given
        if n not in self.pulled:
            self.pulled[n] = self.scratch("pulled", self.D, self.plan.blocks.temporary, n, self.H)
        small = small if small is self.constants else self.small_of(small, rows)
        given = [a[:, rows] for a in given] if given else given
        self.plan.pull(point.c, point.d, point.p, rows, self.pulled[n], small, self.back, *d_state, *given)

    def accumulate(self, block: _Block, point: _Point, d_x: Array, d_dt: Array | None) -> None:
        """Add a block's part of the gradients of weights and parameters, and store those of x and dt."""
        x, dx, blocks = self.rows_of("x", self.x, block), self.rows_of("dx", d_x, block), self.plan.blocks
        together = self._is_one_product  # then one product gives the gradients of all weights, b and the parameters
        inputs = self._joined("inputs", [*(point.arguments if together else []), x, np.ones((self.D, block.n, 1), x.dtype)])
        for k, sums in enumerate(self.sums):
            part, d = sums.scratch, point.d[k]
            sums.add("products", multiply_over_rows(inputs[k], d, part("products", len(d), inputs.shape[2], self.H), part))
            for c, u in [] if together else list(enumerate(point.arguments)):
                array, where = blocks.of_calls[c]
                own, name = (d if array == "d" else point.p[k])[where], f"call {c}"
                sums.add(name, multiply_over_rows(u[k], own, part(name, len(own), u.shape[2], own.shape[2]), part.part(name)))
            by_gate = [
                multiply(d[at], self._back_x[k, g], part(f"dx{g}", *dx[k].shape)) for g, at in enumerate(self._x_slots) if at is not None
            ]
            dx[k] = by_gate[0] if by_gate else 0
            for more in by_gate[1:]:
                dx[k] += more
        self.store(dx, d_x, block)
        if d_dt is not None and self.definition.dt is not None:
            at = blocks.of_inputs[self.definition.dt.index]
            d_t = self.rows_of("d_dt", d_dt, block)
            d_t[...] = 0 if at is None else point.d[:, at].sum(axis=2, keepdims=True)
            self.store(d_t, d_dt, block)

    @property
    def _is_one_product(self) -> bool:
        """Whether there is one product with a hidden value, whose weight's gradient can be had with that of W_x."""
        return len(self.names) == 1 and not self.plan.blocks.others

    def _joined(self, name: str, parts: list[Array]) -> Array:
        out = self.scratch(name, self.D, parts[0].shape[1], sum(a.shape[2] for a in parts))
        return np.concatenate(parts, axis=2, out=out)

    @cached_property
    def _back_x(self) -> Array:
        """The weights from the gradients of W_x x to x's: (D, G, H, I)."""
        return self.arrays["w_x"].reshape(self.D, len(self.factors), self.H, -1)

    @property
    def _x_slots(self) -> list[int | None]:
        """The block of the gradient of each product with x."""
        return [self.plan.blocks.of_inputs[n.index] for n in self.definition.x]

    def gradients(self, d_x: Array, d_dt: Array | None, d_state: list[Array]) -> Tree:
        """All gradients, in the structure of the scan's arrays."""
        totals = {name: np.stack([sums.totals[name] for sums in self.sums]) for name in self.sums[0].totals}
        products, definition, blocks = totals["products"].swapaxes(2, 3), self.definition, self.plan.blocks  # (D, blocks, H, inputs)
        I = self.x.shape[3]
        none = np.zeros((self.D, *products.shape[2:]), products.dtype)
        by_x = np.stack([none if at is None else products[:, at] for at in self._x_slots], axis=1)
        result: Tree = {"x": d_x, "w_x": by_x[..., -1 - I : -1].reshape(self.arrays["w_x"].shape)}
        result["b"] = by_x[..., -1].reshape(self.arrays["b"].shape)
        result["weights"] = {name: np.zeros_like(a) for name, a in self.arrays.get("weights", {}).items()}
        for c, call in enumerate(definition.calls):
            own_blocks = blocks.of_calls[c][1] if self._is_one_product else slice(None)
            own = totals.get(f"call {c}", totals["products"]).swapaxes(2, 3)[:, own_blocks]
            own = own[..., : -1 - I] if self._is_one_product else own
            result["weights"][call.name] += own[:, self.plan.slots_of_calls[c]].reshape(result["weights"][call.name].shape)
        result["parameters"] = {}
        for name, node in definition.parameters.items():
            at = blocks.of_inputs[node.index]
            d = none[..., -1] if at is None else products[:, at, :, -1]
            result["parameters"][name] = d.sum(axis=1, keepdims=True) if name in definition.shared else d
        result["initial"] = {name: np.stack([self.layout.unsort(a) for a in d]) for name, d in zip(definition.states, d_state, strict=True)}
        return result if d_dt is None else result | {"dt": d_dt[..., 0]}

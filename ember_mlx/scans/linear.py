"""The dense layers of the NumPy forms: products for a step or a block of steps in reused buffers, and the sums of their gradients."""

from functools import cached_property
from typing import Any

import numpy as np

from .matmul import FEWEST_ROWS, LARGE, PIECE, cut, cut_columns, multiply, multiply_over_rows
from .pointwise import Array
from .scratch import Scratch

Tree = dict[str, Any]
FEWEST_COLUMNS = 16  # minimum columns per piece of a StepProduct


class Product:
    """w u + b; with `heads` the result is (heads, n, H) instead of (n, heads * H), so that each head is contiguous.

    Args:
        w: (P, K).
        b: (P,), or None for no bias.
        heads: number of heads into which the P results are split, or None.
        rows: maximum rows of a step; a block of steps may have more.
        scratch: buffers.
    """

    def __init__(self, w: Array, b: Array | None, heads: int | None, rows: int, scratch: Scratch):
        self.w, self.heads, self.rows, self.scratch = w, heads, rows, scratch
        self.b = b if heads is None or b is None else b.reshape(heads, 1, -1)

    @cached_property
    def w_T(self) -> Array:
        """(K, P), or (heads, K, H): contiguous with inputs first, a third faster for the few rows of a step."""
        return self.scratch.copy("w_T", self.w.T if self.heads is None else self.w.reshape(self.heads, -1, self.w.shape[1]).swapaxes(1, 2))

    @cached_property
    def pieces(self) -> Array:
        """w_T cut into pieces for the rows of a step."""
        return cut(self.w_T, self.rows)

    def in_pieces(self, out: Array) -> Array:
        """A view of a result into which np.matmul can write the product with `pieces`."""
        return out if out.ndim == self.pieces.ndim else cut_columns(out, self.pieces.shape[-3])

    def shape(self, n: int) -> tuple[int, ...]:
        """The shape of the result for n rows."""
        return (n, len(self.w)) if self.heads is None else (self.heads, n, len(self.w) // self.heads)

    def __call__(self, u: Array, out: Array | None = None) -> Array:
        """(n, K) -> (n, P), or (heads, n, H); without `out` the next call overwrites it."""
        if out is None:
            out = self.scratch("result", *self.shape(len(u)))
        if len(u) <= self.rows:
            np.matmul(u, self.pieces, out=self.in_pieces(out))
        else:
            multiply(u, self.w_T, out)
        if self.b is not None:
            out += self.b
        return out


class StepProduct:
    """u w for the few rows of a step, for every direction and gate, in single-threaded pieces (see matmul.py).

    Unlike a Product, each direction and gate may have its own inputs; many rows are split as well.

    Args:
        w: (D, G, K, J).
        scratch: buffers for the weights.
    """

    def __init__(self, w: Array, scratch: Scratch):
        self.w, self.scratch = scratch.copy("w", w), scratch
        self.D, self.G, self.K, self.J = w.shape
        self.plans: dict[int, tuple[int, Array]] = {}

    def __call__(self, u: Array, out: Array) -> Array:
        """(D, 1 or G, n, K) -> (D, G, n, J)."""
        n = u.shape[2]
        if not PIECE < n * self.K * self.J <= LARGE:
            return np.matmul(u, self.w, out=out)
        parts, w = self._plan(n)
        result = out.reshape(self.D, self.G, parts, n // parts, w.shape[3], w.shape[5]).swapaxes(3, 4)  # a view: only axes are split
        np.matmul(u.reshape(self.D, -1, parts, 1, n // parts, self.K), w, out=result)
        return out

    def _plan(self, n: int) -> tuple[int, Array]:
        """For n rows: the number of parts to split them into, and the weights in pieces (D, G, 1, pieces, K, columns)."""
        if n not in self.plans:
            columns, rows = self.J, n
            while rows * self.K * columns > PIECE and columns % 2 == 0 and columns > FEWEST_COLUMNS:
                columns //= 2
            while rows * self.K * columns > PIECE and rows % 2 == 0 and rows > FEWEST_ROWS:
                rows //= 2
            pieces = self.w.reshape(self.D, self.G, self.K, self.J // columns, columns).swapaxes(2, 3)
            self.plans[n] = n // rows, self.scratch.copy(f"pieces{columns}", pieces)[:, :, None]
        return self.plans[n]


class StateProduct:
    """w_x u + w_h h + b, a product of the inputs and the state; the inputs' part can be computed for many steps at once.

    Args:
        tree: w_x (P, I), w_h (P, H), b (P,).
        heads: number of heads into which the P results are split, or None.
        rows: maximum rows of a step.
        scratch: buffers for the results.
    """

    def __init__(self, tree: Tree, heads: int | None, rows: int, scratch: Scratch):
        self.w_x, self.w_h = tree["w_x"], tree["w_h"]
        self.project = Product(self.w_x, tree["b"], heads, rows, scratch.part("project"))
        self.of_state = Product(self.w_h, None, heads, rows, scratch.part("of_state"))
        self.to_state = Product(self.w_h.T, None, None, rows, scratch.part("to_state"))  # for the backward pass

    def with_state(self, projected: Array, h: Array, out: Array) -> Array:
        """The full product, from the inputs' part and the state (n, H), written to `out`."""
        self.of_state(h, out)
        out += projected
        return out


class Sums:
    """Sums over the blocks of steps, by name.

    Args:
        scratch: buffers for a block's part.
    """

    def __init__(self, scratch: Scratch):
        self.totals: dict[str, Array] = {}
        self.scratch = scratch

    def add(self, name: str, part: Array) -> None:
        """Add a block's part, which may be overwritten afterwards."""
        if name in self.totals:
            self.totals[name] += part
        else:
            self.totals[name] = part.copy()

    def add_product(self, name: str, d: Array, u: Array) -> None:
        """Add to the gradient of a product's weight (P, K), from its results' gradient d (N, P) and its inputs u (N, K)."""
        part = self.scratch("part", 1, d.shape[1], u.shape[1])
        self.add(name, multiply_over_rows(d, u[None], part, self.scratch)[0])

    def add_state_product(self, d: Array, x: Array, h: Array) -> None:
        """Add to the gradients of a StateProduct's w_x, w_h and b, from its results' gradient d (N, P), its inputs and states."""
        (N, H), I = h.shape, x.shape[1]
        inputs = self.scratch("inputs", N, H + I + 1)
        inputs[:, :H], inputs[:, H:-1], inputs[:, -1] = h, x, 1
        part = multiply_over_rows(d, inputs[None], self.scratch("part", 1, d.shape[1], H + I + 1), self.scratch)[0]
        for name, columns in (("w_h", part[:, :H]), ("w_x", part[:, H:-1]), ("b", part[:, -1])):
            self.add(name, columns)

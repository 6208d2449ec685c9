"""Matrix products of the NumPy forms.

OpenBLAS, NumPy's library on Linux, uses several threads above 2^18 multiply-adds. For the products of one step that gains little, and if
another process uses a core these threads wait for each other: a product of 0.02 ms then takes 16 ms (measured). So products of moderate
size are split into single-threaded pieces, by one call of np.matmul over stacked views. With other libraries (such as Accelerate on macOS)
products are not split.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .pointwise import Array

WITH_OPENBLAS = "openblas" in str(np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas"))
LARGE = 2**24  # multiply-adds above which threads pay off
PIECE = 2**18 if WITH_OPENBLAS else LARGE  # multiply-adds up to which the library uses only the calling thread
FEWEST_COLUMNS = 8  # minimum columns of a piece that is cut once for several products
FEWEST_ROWS = 8  # minimum rows of a piece, since each piece reads its right-hand side again
FEWEST_ROWS_ADDED = 32  # minimum rows of a piece of a sum over rows, since each piece writes its own product
MOST_CUTS = 4  # most parts of the columns of such a piece


def multiply(a: Array, b: Array, out: Array | None = None) -> Array:
    """(N, K) @ (K, J) -> (N, J), or for a stack of right-hand sides (N, K) @ (S, K, J) -> (S, N, J).

    Example:
        >>> import numpy as np
        >>> from ember_mlx.scans.matmul import multiply
        >>> a, b = np.ones((96, 128)), np.ones((128, 200))
        >>> bool((multiply(a, b) == a @ b).all())
        True
    """
    (N, K), J = a.shape, b.shape[-1]
    if out is None:
        out = np.empty((*b.shape[:-2], N, J), a.dtype)
    if not PIECE < N * K * J <= LARGE:
        return np.matmul(a, b, out=out)
    columns = min(J, max(1, PIECE // (K * min(N, FEWEST_ROWS))))
    whole = J // columns * columns
    _by_rows(a, _columns(b, columns), _columns(out, columns), max(1, PIECE // (K * columns)))
    if whole < J:
        multiply(a, b[..., whole:], out[..., whole:])
    return out


def cut(b: Array, rows: int) -> Array:
    """(..., K, J) -> (..., pieces, K, J / pieces), contiguous: a right-hand side in single-threaded pieces for up to `rows` rows.

    One piece if J cannot be split evenly, or if threads pay off.
    """
    K, J = b.shape[-2:]
    least, most = -(-rows * K * J // PIECE), J // FEWEST_COLUMNS
    pieces = next((n for n in range(least, most + 1) if J % n == 0), 1) if rows * K * J <= LARGE else 1
    return np.ascontiguousarray(cut_columns(b, max(1, pieces)))


def cut_columns(a: Array, pieces: int) -> Array:
    """(..., N, J) -> (..., pieces, N, J / pieces), a view; unchanged for one piece."""
    if pieces == 1:
        return a
    return a.reshape(*a.shape[:-1], pieces, a.shape[-1] // pieces).swapaxes(-2, -3)


def multiply_over_rows(a: Array, b: Array, out: Array, parts: Callable[..., Array]) -> Array:
    """a^T b over many rows: (N, K), (S, N, J) -> (S, K, J), in pieces of rows whose products are added up.

    Args:
        a: (N, K).
        b: (S, N, J).
        out: the result.
        parts: (name, *shape) -> a buffer for the pieces' products.
    """
    (N, K), (S, _, J) = a.shape, b.shape
    if not PIECE < N * K * J <= LARGE:
        return np.matmul(a.T, b, out=out)
    of_a, of_b, rows = _pieces_over_rows(N, K, J)
    if rows == 0:
        return multiply(a.T, b, out)
    pieces = N // rows
    whole = rows * pieces
    products = parts("parts", S, pieces, of_a, of_b, K // of_a, J // of_b)
    left = a[:whole].reshape(pieces, rows, of_a, 1, K // of_a).transpose(0, 2, 3, 4, 1)
    right = b[:, :whole].reshape(S, pieces, rows, 1, of_b, J // of_b).transpose(0, 1, 3, 4, 2, 5)
    np.matmul(left, right, out=products)
    if of_b == 1:
        np.add.reduce(products.reshape(S, pieces, K, J), axis=1, out=out)
    else:  # sum into a buffer and reorder: five times faster than a sum into a view
        total = np.add.reduce(products.reshape(S, pieces, of_b, K, J // of_b), axis=1, out=parts("total", S, of_b, K, J // of_b))
        out.reshape(S, K, of_b, J // of_b).swapaxes(1, 2)[...] = total
    if whole < N:
        out += np.matmul(a[whole:].T, b[:, whole:])
    return out


@lru_cache(maxsize=256)
def _pieces_over_rows(N: int, K: int, J: int) -> tuple[int, int, int]:
    """The numbers of parts for the K and the J columns, and the rows per piece; 0 rows if splitting does not pay off."""
    for cuts in range(1, MOST_CUTS + 1):
        most = PIECE * cuts // (K * J)
        of_a, of_b = (cuts, 1) if K % cuts == 0 else (1, cuts)
        if most >= FEWEST_ROWS_ADDED and J % of_b == 0:
            fewest = -(-N // most)  # pieces; a few more are better than leftover rows
            pieces = next((n for n in range(fewest, fewest + fewest // 2 + 1) if N % n == 0), fewest)
            return of_a, of_b, N // pieces
    return 1, 1, 0


def _columns(a: Array, columns: int) -> Array:
    """(..., N, J) -> (..., pieces, N, columns), a view without the leftover columns; unchanged for a single piece."""
    J = a.shape[-1]
    if columns == J:
        return a
    return np.moveaxis(a[..., : J // columns * columns].reshape(*a.shape[:-1], J // columns, columns), -2, -3)


def _by_rows(a: Array, b: Array, out: Array, most: int) -> None:
    """out = a @ b, at most `most` rows of a at a time."""
    N = len(a)
    rows = -(-N // -(-N // most))  # as even as possible
    whole = N - N % rows
    stacked = out[..., :whole, :].reshape(*out.shape[:-2], whole // rows, rows, out.shape[-1])  # a view: only an axis is split
    np.matmul(a[:whole].reshape(whole // rows, rows, -1), b[..., None, :, :], out=stacked)
    if whole < N:
        np.matmul(a[whole:], b, out=out[..., whole:, :])

"""Matrix products of the NumPy forms.

OpenBLAS, with which NumPy comes on Linux, puts threads to work above 2^18 multiply-adds. For the products of one step that gains nothing,
and where another process has a core these threads wait for each other: a product of 0.02 ms then takes 16 ms (measured). So products of
moderate size are made in pieces that one thread works on.
"""

import numpy as np

from .pointwise import Array

PIECE = 2**18  # multiply-adds up to which OpenBLAS stays in the calling thread
LARGE = 2**22  # above this many, threads pay
MOST_COLUMNS = 64


def multiply(a: Array, b: Array, out: Array | None = None) -> Array:
    """(N, K) @ (K, J) -> (N, J).

    Example:
        >>> import numpy as np
        >>> from ember_mlx.scans.products import multiply
        >>> a, b = np.ones((96, 128)), np.ones((128, 200))
        >>> bool((multiply(a, b) == a @ b).all())
        True
    """
    (N, K), J = a.shape, b.shape[1]
    cells = PIECE // K
    if not PIECE < N * K * J <= LARGE or cells < MOST_COLUMNS:
        return np.matmul(a, b, out=out)
    if out is None:
        out = np.empty((N, J), np.result_type(a, b))
    columns = min(J, max(MOST_COLUMNS, cells // N))
    rows = cells // columns
    for i in range(0, N, rows):
        for j in range(0, J, columns):
            np.matmul(a[i : i + rows], b[:, j : j + columns], out=out[i : i + rows, j : j + columns])
    return out

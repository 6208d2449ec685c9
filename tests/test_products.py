"""The NumPy forms' matrix products, made in pieces."""

import numpy as np
import pytest

from ember_mlx.scans.products import LARGE, PIECE, multiply

SIZES = [
    (1, 1, 1),
    (7, 33, 200),
    (32, 64, 128),
    (33, 128, 64),
    (17, 256, 128),
    (96, 128, 200),
    (3, 4000, 64),
    (100, 33, 1111),
    (1, 700, 700),
]


@pytest.mark.parametrize("stack", [None, 4], ids=["plain", "stacked"])
@pytest.mark.parametrize(("N", "K", "J"), SIZES, ids=str)
def test_product_in_pieces(N, K, J, stack):
    rng = np.random.Generator(np.random.PCG64(0))
    a, b = rng.standard_normal((N, K)), rng.standard_normal((K, J) if stack is None else (stack, K, J))
    expected = np.einsum("nk,...kj->...nj", a, b)
    wide = np.full((*b.shape[:-2], N, J + 5), np.nan)
    out = wide[..., 2:-3]  # the result may be a view into a wider array
    assert multiply(a, b, out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-10)
    assert np.isnan(wide[..., :2]).all()
    assert np.isnan(wide[..., -3:]).all()
    np.testing.assert_allclose(multiply(np.asfortranarray(a), b), expected, rtol=1e-10, atol=1e-10)


def test_sizes_are_cut_and_not_cut():
    work = [N * K * J for N, K, J in SIZES]
    assert min(work) <= PIECE
    assert PIECE < max(work) <= LARGE

"""The NumPy forms' matrix products, made in pieces."""

import numpy as np
import pytest

from ember_mlx.scans import products
from ember_mlx.scans.products import LARGE, cut, cut_columns, multiply, outer

PIECE = 2**18

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


@pytest.fixture(autouse=True)
def _as_with_openblas(monkeypatch):
    monkeypatch.setattr(products, "PIECE", PIECE)


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


@pytest.mark.parametrize(
    ("rows", "K", "J", "pieces"), [(32, 64, 128, 1), (32, 256, 128, 4), (32, 129, 64, 2), (32, 400, 97, 1), (4000, 64, 128, 1)]
)
def test_right_hand_side_cut_once(rows, K, J, pieces):
    rng = np.random.Generator(np.random.PCG64(0))
    a, b = rng.standard_normal((5, K)), rng.standard_normal((3, K, J))
    right, out = cut(b, rows), np.empty((3, 5, J))
    assert right.shape == ((3, K, J) if pieces == 1 else (3, pieces, K, J // pieces))
    np.matmul(a, right, out=cut_columns(out, pieces))
    np.testing.assert_allclose(out, a @ b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("N", "P", "K"), [(7, 5, 3), (800, 128, 64), (801, 128, 64), (60, 400, 300)], ids=str)
def test_sum_of_outer_products(N, P, K):
    rng = np.random.Generator(np.random.PCG64(0))
    d, u = rng.standard_normal((N, P)), rng.standard_normal((N, K))
    got = outer(d, u, np.empty((P, K)), lambda _, *shape: np.empty(shape))
    np.testing.assert_allclose(got, d.T @ u, rtol=1e-10, atol=1e-10)

"""The NumPy forms' matrix products, computed in pieces."""

import numpy as np
import pytest

from ember_mlx.scans import matmul
from ember_mlx.scans.linear import StepProduct
from ember_mlx.scans.matmul import LARGE, cut, cut_columns, multiply, multiply_over_rows
from ember_mlx.scans.scratch import Scratch

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
    monkeypatch.setattr(matmul, "PIECE", PIECE)


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


@pytest.mark.parametrize(
    ("N", "K", "J"),
    [(1, 1, 1), (800, 64, 64), (801, 10, 64), (800, 256, 256), (4000, 33, 7), (800, 193, 64), (803, 128, 75), (33, 101, 90), (9, 300, 301)],
    ids=str,
)
def test_sum_over_rows_in_pieces(N, K, J):
    rng = np.random.Generator(np.random.PCG64(0))
    a, b, out = rng.standard_normal((N, K)), rng.standard_normal((3, N, J)), np.full((3, K, J), np.nan)
    assert multiply_over_rows(a, b, out, Scratch(a.dtype)) is out
    np.testing.assert_allclose(out, a.T @ b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("G", [1, 3])
@pytest.mark.parametrize(
    ("n", "K", "J"), [(1, 3, 5), (32, 64, 64), (32, 256, 256), (31, 256, 250), (256, 64, 128), (7, 1024, 1024)], ids=str
)
def test_a_steps_product_in_pieces(n, K, J, G):
    rng = np.random.Generator(np.random.PCG64(0))
    w, u, out = rng.standard_normal((2, G, K, J)), rng.standard_normal((2, 1, n, K)), np.full((2, G, n, J), np.nan)
    product = StepProduct(w, Scratch(w.dtype))
    for _ in range(2):
        assert product(u, out) is out
        np.testing.assert_allclose(out, u @ w, rtol=1e-10, atol=1e-10)

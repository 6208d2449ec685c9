"""Non-finite numbers pass through the NumPy scans without a warning, as in MLX."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx import GRU, LTC, CfC, LQNet

LAYERS = {"gru": lambda: GRU(2, 40), "cfc": lambda: CfC(40, 2), "ltc": lambda: LTC(40, 2), "lqnet": lambda: LQNet(40, input_size=2)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_said(name):
    """With enough sequences for several threads."""
    layer = LAYERS[name]()
    x = np.full((256, 8, 2), 3e38, np.float32)
    x[5, 3], x[200, 3] = np.inf, np.nan
    gradients = nn.value_and_grad(layer, lambda m: (m(mx.array(x)) * 1e38).sum())(layer)[1]
    assert not all(mx.isfinite(g).all().item() for _, g in tree_flatten(gradients))

"""LSTM, GRU and RNN written as cells, to compare their kernels and results with those of metal/gated.metal."""

from ember_mlx.step import relu, sigmoid, tanh
from ember_mlx.step.cell import Cell


class LSTM(Cell):
    """(1) to (3) of the gated reference."""

    states = ("h", "c")
    x_products = 4
    h_products = {"W_h": 4}

    def step(self, x, h, c, W_h):
        i, f, g, o = (a + q for a, q in zip(x, W_h(h), strict=True))
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c


class GRU(Cell):
    """With a bias inside the reset gate's product."""

    x_products = 3
    h_products = {"W_h": 3}
    parameters = {"b_hn": 0.0}

    def step(self, x, h, W_h, b_hn):
        r, z, n = W_h(h)
        r, z = sigmoid(x[0] + r), sigmoid(x[1] + z)
        n = tanh(x[2] + r * (n + b_hn))
        return n + z * (h - n)


class RNN(Cell):
    """tanh."""

    h_products = {"W_h": 1}

    def step(self, x, h, W_h):
        return tanh(x + W_h(h))


class ReluRNN(Cell):
    """relu."""

    h_products = {"W_h": 1}

    def step(self, x, h, W_h):
        return relu(x + W_h(h))


GATED = {"lstm": LSTM(), "gru": GRU(), "tanh": RNN(), "relu": ReluRNN()}

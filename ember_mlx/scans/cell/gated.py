"""RNN, LSTM and GRU as cells, the one definition of their steps.

Gates are in the order of torch.nn::

    (1) q = Wh h,  a = Wx x + bias + q      GRU: n's part of q is added in (2)
    (2) RNN:  a = tanh(a) or relu(a)
        LSTM: i, f, o = sigma(a_i, a_f, a_o);  g = tanh(a_g)
        GRU:  r, z = sigma(a_r, a_z);  n = tanh(Wx_n x + bias_n + r (q_n + bhn))
    (3) RNN:  h' = a
        LSTM: c' = f c + i g;  h' = o tanh(c'), times Wr if there is one
        GRU:  h' = n + z (h - n)
"""

from typing import Any

from ...step import maximum, sigmoid, tanh
from ...step.cell import Cell, Parameter

Value = Any


class TanhRNN(Cell):
    """An RNN with tanh."""

    h_products = {"Wh": 1}

    def step(self, x: Value, h: Value, Wh: Value) -> Value:
        a = x + Wh(h)  # (1)
        return tanh(a)  # (2), (3)


class ReluRNN(Cell):
    """An RNN with relu."""

    h_products = {"Wh": 1}

    def step(self, x: Value, h: Value, Wh: Value) -> Value:
        a = x + Wh(h)  # (1)
        return maximum(a, 0)  # (2), (3)


class LSTM(Cell):
    """An LSTM."""

    states = ("h", "c")
    x_products = 4
    h_products = {"Wh": 4}

    def step(self, x: Value, h: Value, c: Value, Wh: Value) -> Value:
        i, f, g, o = (a + q for a, q in zip(x, Wh(h), strict=True))  # (1)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)  # (2)
        c = f * c + i * g  # (3)
        return o * tanh(c), c  # (3)


class ProjectedLSTM(LSTM):
    """An LSTM whose h is projected to P features."""

    h_products = {"Wh": 4, "Wr": 1}
    sizes = {"h": "P", "Wr": "P"}

    def step(self, x: Value, h: Value, c: Value, Wh: Value, Wr: Value) -> Value:  # type: ignore[override]
        m, c = super().step(x, h, c, Wh)
        return Wr(m), c


class GRU(Cell):
    """A GRU whose reset gate acts after the product."""

    x_products = 3
    h_products = {"Wh": 3}
    parameters = {"bhn": Parameter(is_bias=True)}

    def step(self, x: Value, h: Value, Wh: Value, bhn: Value) -> Value:
        q = Wh(h)
        r, z = sigmoid(x[0] + q[0]), sigmoid(x[1] + q[1])  # (1), (2)
        n = tanh(x[2] + r * (q[2] + bhn))  # (2)
        return n + z * (h - n)  # (3)


TANH_RNN, RELU_RNN, LSTM_CELL, PROJECTED_LSTM, GRU_CELL = TanhRNN(), ReluRNN(), LSTM(), ProjectedLSTM(), GRU()

"""Cells from the literature, for `ember_mlx.Recurrent`.

Example:
    >>> import mlx.core as mx
    >>> from ember_mlx import Recurrent
    >>> from ember_mlx.cells import LEM
    >>> Recurrent(LEM, 3, 8)(mx.zeros((2, 5, 3)), time_deltas=0.1).shape
    (2, 5, 8)
"""

from .step import Value, exp, expm1, maximum, relu, sigmoid, softplus, tanh
from .step.cell import Cell, Parameter
from .validation import check_integer, check_not_negative, check_positive

__all__ = ["CTRNN", "GRUD", "LEM", "ODELSTM", "SRU", "UGRNN", "CoRNN", "IndRNN", "MinGRU", "MinLSTM"]


class MinGRU(Cell):
    """The minimal GRU, whose gate does not see the state.

    Source: Feng et al., Were RNNs all we needed?, 2024, https://arxiv.org/abs/2410.01201.
    """

    x_products = 2

    def step(self, x: Value, h: Value) -> Value:
        z = sigmoid(x[0])
        return h + z * (x[1] - h)


class MinLSTM(Cell):
    """The minimal LSTM, with its forget and input gates divided by their sum.

    Source: Feng et al., Were RNNs all we needed?, 2024, https://arxiv.org/abs/2410.01201.
    """

    x_products = 3

    def step(self, x: Value, h: Value) -> Value:
        f = sigmoid(softplus(-x[1]) - softplus(-x[0]))  # sigma(x0) / (sigma(x0) + sigma(x1)), where these are zero in float32 too
        return x[2] + f * (h - x[2])


class IndRNN(Cell):
    """Independently recurrent units: each sees of the state only itself.

    Source: Li et al., Independently recurrent neural network (IndRNN), CVPR 2018, https://arxiv.org/abs/1803.04831.
    """

    parameters = {"u": Parameter((-1.0, 1.0))}

    def step(self, x: Value, h: Value, u: Value) -> Value:
        return relu(x + u * h)


class SRU(Cell):
    """The simple recurrent unit; its highway is a product with x.

    Source: Lei et al., Simple recurrent units for highly parallelizable recurrence, EMNLP 2018, https://arxiv.org/abs/1709.02755.
    """

    states = ("h", "c")
    x_products = 4
    parameters = {"v_f": Parameter((-0.1, 0.1)), "v_r": Parameter((-0.1, 0.1))}

    def step(self, x: Value, c: Value, v_f: Value, v_r: Value) -> Value:
        f, r = sigmoid(x[0] + v_f * c), sigmoid(x[1] + v_r * c)
        c = x[2] + f * (c - x[2])
        return x[3] + r * (c - x[3]), c


class CoRNN(Cell):
    """Coupled oscillators: positions y and velocities z.

    Args:
        step_size: the time of a step.
        gamma: the stiffness.
        epsilon: the damping.

    Source: Rusch and Mishra, Coupled oscillatory recurrent neural network (coRNN), ICLR 2021, https://arxiv.org/abs/2010.00951.
    """

    states = ("y", "z")
    h_products = {"W": 1, "W_z": 1}

    def __init__(self, step_size: float = 0.05, gamma: float = 2.0, epsilon: float = 4.0):
        self.step_size = check_positive("CoRNN", "step_size", step_size)
        self.gamma, self.epsilon = check_not_negative("CoRNN", "gamma", gamma), check_not_negative("CoRNN", "epsilon", epsilon)

    def step(self, x: Value, y: Value, z: Value, W: Value, W_z: Value) -> Value:
        z = z + self.step_size * (tanh(x + W(y) + W_z(z)) - self.gamma * y - self.epsilon * z)
        return y + self.step_size * z, z


class LEM(Cell):
    """Long expressive memory: two states, each with a step size of its own making.

    Source: Rusch et al., Long expressive memory for sequence modeling, ICLR 2022, https://arxiv.org/abs/2110.04744.
    """

    states = ("y", "z")
    x_products = 4
    h_products = {"W_y": 3, "W_z": 1}

    def step(self, x: Value, y: Value, z: Value, dt: Value, W_y: Value, W_z: Value) -> Value:
        a, b, c = W_y(y)
        z = z + dt * sigmoid(x[0] + a) * (tanh(x[2] + c) - z)
        return y + dt * sigmoid(x[1] + b) * (tanh(x[3] + W_z(z)) - y), z


class CTRNN(Cell):
    """A continuous-time network, tau h' = -h + tanh(W x + R h + b), by Euler steps.

    Args:
        unfolds: Euler steps in each step of time.

    Source: Funahashi and Nakamura, Approximation of dynamical systems by continuous time recurrent neural networks,
    Neural Networks 6, 801-806 (1993), https://doi.org/10.1016/S0893-6080(05)80125-X.
    """

    h_products = {"R": 1}
    parameters = {"rate": 0.0}

    def __init__(self, unfolds: int = 4):
        self.unfolds = check_integer("CTRNN", "unfolds", unfolds)

    def step(self, x: Value, h: Value, dt: Value, R: Value, rate: Value) -> Value:
        part = -expm1(-dt / self.unfolds * exp(rate))
        for _ in range(self.unfolds):
            h = h + part * (tanh(x + R(h)) - h)
        return h


class ODELSTM(Cell):
    """The ODE-LSTM's idea with a GRU: the state moves by an ODE for the time that passed, then the gates act.

    Source: Lechner and Hasani, Learning long-term dependencies in irregularly-sampled time series, 2020, https://arxiv.org/abs/2006.04418.
    """

    x_products = 3
    h_products = {"F": 1, "R": 3}

    def step(self, x: Value, h: Value, dt: Value, F: Value, R: Value) -> Value:
        for _ in range(2):
            h = h + dt / 2 * tanh(F(h))
        r, z, n = R(h)
        r, z = sigmoid(x[0] + r), sigmoid(x[1] + z)
        n = tanh(x[2] + r * n)
        return n + z * (h - n)


class GRUD(Cell):
    """A GRU whose state decays with the time that passed, exp(-max(0, w dt + b)).

    Source: Che et al., Recurrent neural networks for multivariate time series with missing values, Scientific Reports 8, 6085 (2018),
    https://doi.org/10.1038/s41598-018-24271-9.
    """

    x_products = 3
    h_products = {"R": 2, "R_n": 1}
    parameters = {"w": Parameter((0.0, 0.2)), "b": 0.0}

    def step(self, x: Value, h: Value, dt: Value, R: Value, R_n: Value, w: Value, b: Value) -> Value:
        h = exp(-maximum(w * dt + b, 0)) * h
        r, z = R(h)
        r, z = sigmoid(x[0] + r), sigmoid(x[1] + z)
        return h + z * (tanh(x[2] + R_n(r * h)) - h)


class UGRNN(Cell):
    """The update gate RNN: a single gate keeps the state or takes the candidate.

    Source: Collins, Sohl-Dickstein and Sussillo, Capacity and trainability in recurrent neural networks, ICLR 2017,
    https://arxiv.org/abs/1611.09913.
    """

    x_products = 2
    h_products = {"R": 2}

    def step(self, x: Value, h: Value, R: Value) -> Value:
        c, g = R(h)
        c, g = tanh(x[0] + c), sigmoid(x[1] + g)
        return c + g * (h - c)

"""The examples from the project's first document: their calls and shapes."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from ember_mlx import (
    GRU,
    LSTM,
    LTC,
    RNN,
    CfC,
    CTRQNet,
    FullyConnectedMap,
    LQNet,
    NCPMap,
    StrideAwareCfC,
)


@pytest.fixture
def x():
    return mx.random.normal((32, 5, 10))


@pytest.fixture
def ncp():
    return NCPMap(inter_neurons=10, command_neurons=5, motor_neurons=5, sensory_neurons=10, seed=42)


def test_rnn(x):
    layer = RNN(input_size=10, hidden_size=20, activation="tanh")
    y, [h] = layer(x, return_state=True)
    assert layer(x).shape == y.shape == (32, 5, 20)
    assert h.shape == (1, 32, 20)


def test_lstm(x):
    layer = LSTM(input_size=10, hidden_size=20)
    y, (h, c) = layer(x, return_state=True)
    assert layer(x).shape == y.shape == (32, 5, 20)
    assert h.shape == c.shape == (1, 32, 20)
    assert layer(x, return_sequences=False).shape == (32, 20)


def test_gru(x):
    y, [h] = GRU(input_size=10, hidden_size=20)(x, return_state=True)
    assert y.shape == (32, 5, 20)
    assert h.shape == (1, 32, 20)


def test_cfc_with_time_deltas(x, ncp):
    layer = CfC(neuron_map=ncp)
    y, [h, t] = layer(x, return_state=True)
    assert layer(x).shape == y.shape == h.shape == t.shape == (32, 20)
    assert layer(x, return_sequences=True).shape == (32, 5, 20)
    time_deltas = mx.random.uniform(0.1, 1.0, (32, 5, 1))
    y, [h, t] = layer(x, time_deltas=time_deltas, return_state=True)
    assert mx.allclose(t[:, 0], time_deltas.sum(axis=(1, 2)), atol=1e-5)


def test_ltc(x):
    layer = LTC(neuron_map=FullyConnectedMap(units=20, input_dim=10, output_dim=20))
    y, h = layer(x, return_state=True)
    assert layer(x).shape == y.shape == (32, 5, 20)
    assert h.shape == (32, 20)


@pytest.mark.parametrize(("strides", "options"), [([1, 2, 4], {}), ([1, 2, 4, 8], {"backbone_units": 32, "backbone_layers": 2})])
def test_stride_aware_cfc(strides, options):
    layer = StrideAwareCfC(neuron_map=FullyConnectedMap(units=20, input_dim=10, output_dim=20), stride_lengths=strides, **options)
    x = mx.random.normal((32, 100, 10))
    y, _ = layer(x, return_state=True)
    assert layer(x).shape == y.shape == (32, 20 * len(strides))


class DeepLSTM(nn.Module):
    def __init__(self, input_size, hidden_size, num_layers):
        super().__init__()
        self.layers = [LSTM(input_size=hidden_size if i else input_size, hidden_size=hidden_size) for i in range(num_layers)]

    def __call__(self, x, initial_states=None):
        states, final = initial_states or [(None, None)] * len(self.layers), []
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer(x, initial_state=state, return_state=True)
            final.append(state)
        return x, final


def test_stack_of_lstms(x):
    stack = DeepLSTM(input_size=10, hidden_size=20, num_layers=3)
    y, states = stack(x)
    assert y.shape == (32, 5, 20)
    assert [[a.shape for a in state] for state in states] == [[(1, 32, 20)] * 2] * 3
    assert stack(x, states)[0].shape == (32, 5, 20)


@pytest.mark.parametrize(("kind", "options"), [(LQNet, {}), (CTRQNet, {"time_scale_factor": 1.0, "use_harmonic_embedding": True})])
def test_quantum_inspired(kind, options):
    ncp = NCPMap(inter_neurons=32, command_neurons=16, motor_neurons=8, sensory_neurons=10, seed=42)
    options |= {"return_sequences": True, "return_state": False, "batch_first": True}
    layer = kind(neuron_map=ncp, nu_0=1.0, beta=0.1, noise_scale=0.05, **options)
    assert layer(mx.random.normal((32, 100, 10))).shape == (32, 100, 56)

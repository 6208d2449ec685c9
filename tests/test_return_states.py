"""return_states: the state after every step, in the form of the state."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from ember_mlx import GRU, LSTM, LTC, RNN, Bidirectional, CfC, CTRQNet, LQNet, NCPMap, Recurrent, StrideAware, cells, use_backend

I, T, B = 3, 6, 4
LENGTHS = [6, 2, 1, 4]
NCP = NCPMap(4, 3, 2, I, seed=1)
LAYERS = {
    "rnn": lambda: RNN(I, 4),
    "gru": lambda: GRU(I, 4, num_layers=2, batch_first=False),
    "lstm": lambda: LSTM(I, 4, num_layers=2, proj_size=2, return_sequences=False),
    "recurrent": lambda: Recurrent(cells.LEM, I, 4, num_layers=2),
    "cfc": lambda: CfC(4, I, checkpoint_steps=2),
    "cfc-ncp": lambda: CfC(NCP, mixed_memory=True, output="motor", time_scale_factor=0.5, batch_first=False),
    "ltc": lambda: LTC(NCP, ode_unfolds=2),
    "ltc-mixed-memory": lambda: LTC(NCP, ode_unfolds=2, mixed_memory=True),
    "lqnet": lambda: LQNet(4, input_size=I, noise_scale=0.0),
    "ctrqnet": lambda: CTRQNet(4, input_size=I, noise_scale=0.0, go_backwards=True),
}


def call(layer, lengths):
    rng = np.random.default_rng(0)
    shape = (B, T) if layer.batch_first else (T, B)
    x = mx.array(rng.standard_normal((*shape, I)), mx.float32)
    options = {"time_deltas": mx.array(rng.uniform(0, 2, shape), mx.float32)} if layer.timed else {}
    return x, options | ({} if lengths is None else {"lengths": lengths})


@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", LAYERS)
def test_each_is_the_state_of_the_sequence_cut_there(name, lengths, backend):
    layer = LAYERS[name]()
    x, options = call(layer, lengths)
    with use_backend(backend):
        y, state, states = layer(x, **options, return_state=True, return_states=True)
        expected, expected_state = layer(x, **options, return_state=True)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    axis = -2 if layer.batch_first else -3
    for (path, a), (_, last), (other, every) in zip(*map(tree_flatten, ([state], [expected_state], [states])), strict=True):
        assert path == other
        np.testing.assert_allclose(a, last, atol=2e-6)
        every = np.moveaxis(np.array(every), axis, 0)  # (T, ..., B, F)
        for t in range(T) if layer.go_backwards is False else []:
            x_t, cut = (x[:, : t + 1] if layer.batch_first else x[: t + 1]), {}
            if layer.timed:
                dt = options["time_deltas"]
                cut["time_deltas"] = dt[:, : t + 1] if layer.batch_first else dt[: t + 1]
            _, there = layer(x_t, **cut, return_state=True)
            there = np.array(dict(tree_flatten([there]))[path])
            valid = np.arange(B) >= 0 if lengths is None else np.array(lengths) > t
            np.testing.assert_allclose(every[t][..., valid, :], there[..., valid, :], atol=2e-6, err_msg=f"{path} at {t}")
            assert not every[t][..., ~valid, :].any()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_in_both_directions(batch_first, lengths):
    layer = Bidirectional(LSTM(I, 4, num_layers=2, batch_first=batch_first))
    x, options = call(layer.forward_layer, lengths)
    y, (forward, backward) = layer(x, **options, return_states=True)
    one, states = layer.forward_layer(x, **options, return_states=True)
    assert all(mx.array_equal(a, b) for a, b in zip(forward, states, strict=True))
    np.testing.assert_allclose(y[..., :4], one, atol=1e-6)
    np.testing.assert_allclose(y[..., 4:], backward[0][-1], atol=1e-6)  # the upper layer's h, at the steps of x
    stacked = GRU(I, 4, bidirectional=True, batch_first=batch_first)
    y, [h] = stacked(x, **options, return_states=True)
    np.testing.assert_allclose(y, mx.concatenate([h[0], h[1]], axis=-1), atol=1e-6)


def test_without_batch_and_in_gradients():
    layer, x = LTC(NCP), mx.random.normal((T, I))
    y, v = layer(x, return_states=True)
    assert v.shape == (T, 9)
    np.testing.assert_allclose(y, v[:, :2], atol=1e-6)
    slope = mx.grad(lambda x: layer(x, return_states=True)[1][:, 5].sum())(x)
    assert (slope != 0).any(axis=1).all()
    forward, backward = Bidirectional(layer)(x, return_states=True)[1]
    assert forward.shape == backward.shape == (T, 9)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"\[StrideAware\] return_states must be False, .*, got True"):
        StrideAware(GRU(I, 4), [1, 2])(mx.zeros((B, T, I)), return_states=True)
    with pytest.raises(TypeError, match=r"\[GRU\] return_states must be True or False, got 1"):
        GRU(I, 4)(mx.zeros((B, T, I)), return_states=1)
    assert tree_map(lambda a: a.shape, GRU(I, 4)(mx.zeros((B, T, I)), return_states=True)[1]) == [(1, B, T, 4)]

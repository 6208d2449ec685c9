"""Properties of LQNet and CTRQNet: the rotation conserves |psi|, and without noise states are bounded."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx import CTRQNet, LQNet
from ember_mlx.reference import QuantumSpec, quantum_forward

from .tolerances import FORWARD

T, B, H, I = 10_000, 2, 12, 3
ROOT_2 = np.sqrt(2)


def arrays_for(dtype, dt_high, start=0.0, weights=1.0, seed=0):
    """A sequence of T steps with dt in [0, dt_high], many of them small and some 0, and weights of any size."""
    rng = np.random.default_rng(seed)
    dt = np.exp(rng.uniform(-14, np.log(dt_high), (T, B))) * (rng.random((T, B)) > 0.1)
    phase = rng.uniform(0, 2 * np.pi, (B, H))
    omega = weights * rng.standard_normal((H, H))
    arrays = {
        "x": 10.0 ** rng.uniform(-3, 4, (T, B, I)) * rng.choice([-1, 1], (T, B, I)),
        "dt": np.minimum(dt, dt_high),
        "h_c0": start * np.cos(phase),
        "h_s0": start * np.sin(phase),
        "w_x": rng.standard_normal((H, I)),
        "b": rng.standard_normal(H),
        "omega": (omega + omega.T) / 2,
        "w_h": weights * rng.standard_normal((H, H)),
        "tau": rng.uniform(0.1, 10, H),
    }
    return {name: a.astype(dtype) for name, a in arrays.items()}


@pytest.mark.parametrize("dt_high", [1.0, 1e6], ids=["usual-times", "any-times"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_rotation_alone_keeps_every_amplitude(dtype, dt_high):
    """For 10,000 steps to 1e-6 in float64; in float32 each step rounds by at most two units in the last place."""
    arrays = arrays_for(dtype, dt_high, start=1.5)
    amplitude = np.hypot(*quantum_forward(QuantumSpec(nu_0=0.0), arrays))
    allowed = {"float64": 1e-6, "float32": T * 2 * 2.0**-24}[dtype]
    assert np.abs(amplitude - 1.5).max() < allowed
    h_c, _ = quantum_forward(QuantumSpec(nu_0=0.0), arrays)
    assert np.abs(np.diff(h_c, axis=0)).max() > 1  # it does rotate


@pytest.mark.parametrize("weights", [0.3, 100.0], ids=["usual-weights", "huge-weights"])
@pytest.mark.parametrize("start", [0.0, 5.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_amplitudes_stay_within_their_bound(dtype, start, weights):
    arrays = arrays_for(dtype, 1e6, start, weights)
    arrays["x"] = arrays["x"].astype(np.float16).astype(dtype)
    amplitude = np.hypot(*quantum_forward(QuantumSpec(), arrays))
    assert np.isfinite(amplitude).all()
    assert amplitude.max() <= max(ROOT_2, start) * (1 + FORWARD["float32"])
    assert amplitude[-1].max() > 0.5


def test_the_bound_is_of_the_amplitude_not_of_each_part():
    """A unit that starts at h_c = -2, h_s = 2 has |psi| = 2.83, and an eighth of a turn brings all of it into one part."""
    one = np.ones((1, 1))
    arrays = {"x": np.zeros((1, 1, 1)), "dt": one * np.pi / 32, "h_c0": -2 * one, "h_s0": 2 * one}
    arrays |= {"w_x": one, "b": np.zeros(1), "omega": one, "w_h": one, "tau": np.ones(1)}
    h_c, _ = quantum_forward(QuantumSpec(nu_0=0.0), arrays)
    assert h_c[0, 0, 0] == pytest.approx(-2 * ROOT_2)


@pytest.mark.parametrize("make", [LQNet, CTRQNet])
def test_a_layer_in_float16_stays_within_its_bound(make):
    mx.random.seed(0)
    layer = make(16, input_size=I, return_state=True, noise_scale=0.0)
    layer.set_dtype(mx.float16)
    x = (1e4 * mx.random.normal((B, T, I))).astype(mx.float16)
    y, (h_c, h_s, t) = layer(x, time_deltas=mx.random.uniform(0, 6e4, (B, T)).astype(mx.float16))
    assert y.dtype == mx.float16
    assert bool(mx.isfinite(y).all())
    assert float(mx.abs(y).max()) <= 2 * (1 + FORWARD["float16"])  # h_c + h_s where |psi|^2 = 2
    assert float(mx.sqrt(h_c * h_c + h_s * h_s).max()) <= ROOT_2 * (1 + FORWARD["float32"])
    assert t.dtype == mx.float32


@pytest.mark.parametrize("make", [LQNet, CTRQNet])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradients_are_finite_over_a_thousand_steps(make, dtype):
    mx.random.seed(0)
    layer = make(56, input_size=10)
    x, dt = mx.random.normal((4, 1000, 10)).astype(getattr(mx, dtype)), mx.random.uniform(0, 2, (4, 1000))
    gradient = mx.grad(lambda p, a, d: (layer.update(p), (layer(a, time_deltas=d) ** 2).mean())[1], argnums=(0, 1, 2))
    gradients = tree_flatten(gradient(layer.parameters(), x, dt))
    assert all(bool(mx.isfinite(g).all()) for _, g in gradients)
    assert all(float(mx.abs(g).max()) > 0 for _, g in gradients)


def test_half_the_step_half_the_error():
    """Without noise the step is a method of first order for one differential equation: its results converge as dt falls."""
    arrays, ends = arrays_for("float64", 1.0, start=0.7, weights=0.5), []
    for steps in (64, 128, 256, 2048):
        x = np.broadcast_to(0.3 * arrays["b"][:I], (steps, B, I))
        h_c, h_s = quantum_forward(QuantumSpec(), arrays | {"x": x, "dt": np.full((steps, B), 2.0 / steps)})
        ends.append(np.concatenate([h_c[-1], h_s[-1]]))
    errors = [np.abs(end - ends[-1]).max() for end in ends[:-1]]
    assert errors[0] > 1e-3
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_the_slope_of_the_noise_at_no_time_is_finite():
    layer = LQNet(5, input_size=I)
    dt = mx.array([[0.0, 1.0, 0.0]])
    slope = mx.grad(lambda d: layer(mx.ones((1, 3, I)), time_deltas=d, key=mx.random.key(0)).sum())(dt)
    assert bool(mx.isfinite(slope).all())

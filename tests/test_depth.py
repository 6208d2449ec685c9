"""Graphs too deep for MLX raise an error; without a transformation sequences may have any length."""

import subprocess
import sys

import mlx.core as mx
import pytest

from ember_mlx import GRU, LSTM, LTC, RNN, CfC, CTRQNet, LQNet, Recurrent, StrideAware, cells
from ember_mlx.scans import dispatch
from ember_mlx.scans.dispatch import MOST_TRACED

EVALUATIONS = {  # of a cell in a step
    "rnn": (1, "RNN", lambda: RNN(1, 2)),
    "lstm": (1, "LSTM", lambda: LSTM(1, 2)),
    "gru": (1, "GRU", lambda: GRU(1, 2, 2)),
    "recurrent": (2, "Recurrent", lambda: Recurrent(cells.LEM, 1, 2)),
    "cfc": (1, "CfC", lambda: CfC(2, 1, backbone_units=2)),
    "ltc": (6, "LTC", lambda: LTC(2, 1)),
    "ltc-rk4": (8, "LTC", lambda: LTC(2, 1, solver="rk4", ode_unfolds=2)),
    "lqnet": (1, "LQNet/CTRQNet", lambda: LQNet(2, input_size=1)),
    "ctrqnet": (1, "LQNet/CTRQNet", lambda: CTRQNet(2, input_size=1)),
    "strides": (1, "GRU", lambda: StrideAware(GRU(1, 2), [3, 1])),
}
every_kind = pytest.mark.parametrize("kind", EVALUATIONS)


def setting(kind, depth):
    evaluations, name, make = EVALUATIONS[kind]
    layer, steps = make(), depth // evaluations + 1
    layer.eval()
    x = mx.random.normal((1, steps, 1))
    mx.eval(x, layer.parameters())
    return layer, x, name, steps * evaluations


@every_kind
def test_a_graph_too_deep_to_trace_is_refused(kind, tmp_path):
    layer, x, name, depth = setting(kind, MOST_TRACED)
    for trace in (
        lambda: mx.compile(layer)(x),
        lambda: mx.compile(mx.grad(lambda a: layer(a).sum()))(x),
        lambda: mx.vmap(layer)(x[None]),
        lambda: mx.export_function(str(tmp_path / "layer.mlxfn"), layer, x),
    ):
        with pytest.raises(ValueError, match=rf"^\[{name}\] a sequence must have at most 1500 .* carry the state, got {depth}\.$"):
            trace()
    mx.eval(mx.grad(lambda a: layer(a).sum())(x))


@every_kind
def test_second_derivatives_too_deep_are_refused(kind, monkeypatch):
    monkeypatch.setattr(dispatch, "MOST_TWICE", 30)  # as with 3,000, but for the time that a test takes
    layer, x, name, depth = setting(kind, 30)

    def slope(a):
        return mx.grad(lambda b: (layer(b) ** 2).sum())(a).sum()

    message = rf"^\[{name}\] a sequence must have at most 30 .* second derivatives; .*, got {depth}\.$"
    with pytest.raises(ValueError, match=message):
        mx.grad(slope)(x)
    with pytest.raises(ValueError, match=message):
        mx.jvp(slope, [x], [x])
    mx.eval(mx.grad(slope)(x[:, :3]))


def test_a_sequence_of_the_longest_that_is_traced_compiles():
    """The cell with the deepest graph, in a separate process, since MLX would crash this one."""
    program = f"""
import mlx.core as mx
from ember_mlx import LQNet
layer = LQNet(2, input_size=1).eval()
x = mx.random.normal((1, {MOST_TRACED}, 1))
print(mx.isfinite(mx.compile(mx.grad(lambda a: layer(a).sum()))(x)).all().item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", f"{done.returncode} {done.stderr[-500:]}"


def test_without_a_transformation_a_sequence_may_be_long():
    layer, x = LTC(2, 1), mx.random.normal((1, 20_000, 1))
    mx.eval(layer.parameters(), x)
    assert mx.isfinite(mx.grad(lambda a: layer(a).sum())(x)).all()

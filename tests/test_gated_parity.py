"""RNN, LSTM and GRU compared with torch.nn's (golden/torch_gated.npz, from make_golden_torch.py) and mlx.nn's, and the conversions."""

import json
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ember_mlx
from ember_mlx import GRU, LSTM, RNN, CfC
from ember_mlx.convert import from_mlx, from_torch, to_torch_state_dict

from .comparisons import assert_close
from .tolerances import FORWARD, GRADIENT

GOLDEN = np.load(Path(__file__).parent / "golden" / "torch_gated.npz")
CASES = json.loads(str(GOLDEN["about"]))["cases"]
UNITS = 5


def arrays_of(name):
    shapes = CASES[name]["shapes"]
    parts = np.split(GOLDEN[name], np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1])
    return {key: part.reshape(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}


ARRAYS = {name: arrays_of(name) for name in CASES}


class FakeTensor:
    """The part of a torch tensor's interface that from_torch uses."""

    def __init__(self, values, dtype="torch.float32"):
        self.values, self.dtype = values, dtype

    def detach(self):
        return self

    cpu = float = detach

    def numpy(self):
        return self.values


def fake_module(kind, options, parameters, **changes):
    """An object with the class name and attributes of a torch.nn module."""
    name = kind.split("-")[0].upper()
    module = type(name, (), {"__module__": "torch.nn.modules.rnn"})()
    module.__dict__ |= {"input_size": 4, "hidden_size": UNITS, "dropout": 0.0, "training": True, "proj_size": 3 if "proj" in kind else 0}
    module.__dict__ |= {"nonlinearity": kind.split("-")[-1]} | options | changes
    module.__dict__ |= {key: value if isinstance(value, FakeTensor) else FakeTensor(value) for key, value in parameters.items()}
    return module


def converted(name, **changes):
    case = CASES[name]
    parameters = {key.removeprefix("parameter/"): a for key, a in ARRAYS[name].items() if key.startswith("parameter/")}
    return from_torch(fake_module(case["kind"], case["options"], parameters, **changes))


def torch_gradients(layer, gradients):
    """Gradients of our parameters by torch's names; torch's two biases have the same gradient, but for the GRU's n gate."""
    holder = type(layer).from_config(layer.get_config())
    holder.update(gradients)
    state, H = to_torch_state_dict(holder), layer.hidden_size
    for name in [name for name in state if name.startswith("bias_hh")]:
        of_n = state[name][2 * H :] if isinstance(layer, GRU) else None
        state[name] = state[name.replace("_hh", "_ih")].copy()
        if of_n is not None:
            state[name][2 * H :] = of_n
    return state


@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_torchs(name, backend):
    golden, lengths, layer = ARRAYS[name], CASES[name]["lengths"], converted(name)
    states = sorted(key for key in golden if key.startswith("initial"))
    weights = [mx.array(golden[f"w{k}"]) for k in range(1 + len(states))]

    def loss(parameters, x, initial):
        layer.update(parameters)
        y, final = layer(x, initial, lengths=lengths, return_state=True)
        return sum((a * w).sum() for a, w in zip((y, *final), weights, strict=True)), (y, final)

    arguments = layer.parameters(), mx.array(golden["x"]), [mx.array(golden[key]) for key in states]
    with ember_mlx.use_backend(backend):
        (_, (y, final)), gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
        mx.eval(y, final, gradients)
    assert_close(y, golden["y"], FORWARD["float32"])
    for k, (a, d) in enumerate(zip(final, gradients[2], strict=True)):
        assert_close(a, golden[f"final{k}"], FORWARD["float32"])
        assert_close(d, golden[f"grad/initial{k}"], GRADIENT["float32"])
    assert_close(gradients[1], golden["grad/x"], GRADIENT["float32"])
    by_name = torch_gradients(layer, gradients[0])
    assert sorted(by_name) == sorted(key.removeprefix("parameter/") for key in golden if key.startswith("parameter/"))
    for key, a in by_name.items():
        assert_close(a, golden[f"grad/{key}"], GRADIENT["float32"], key)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    """The state dict of a converted layer converts to the same layer; its biases add up to the module's."""
    layer, golden = converted(name), ARRAYS[name]
    state = to_torch_state_dict(layer)
    assert sorted(state) == sorted(key.removeprefix("parameter/") for key in golden if key.startswith("parameter/"))
    case = CASES[name]
    again = from_torch(fake_module(case["kind"], case["options"], state))
    x = mx.array(golden["x"])
    assert mx.array_equal(again(x), layer(x))
    for key, a in state.items():
        if "weight" in key:
            assert np.array_equal(a, golden[f"parameter/{key}"])
            assert a.dtype == np.float32


def test_options_of_a_module_are_carried_over():
    name = "gru-layers2-bidirectional-bias"
    layer = converted(name, dropout=0.25, training=False)
    assert (layer.dropout, layer.training, layer.bidirectional, layer.num_layers) == (0.25, False, True, 2)
    one = converted("gru-layers1-bias", dropout=0.25)
    assert one.dropout == 0
    parameters = {k.removeprefix("parameter/"): a for k, a in ARRAYS["rnn-relu-layers1-bias"].items() if k.startswith("parameter/")}
    half = {key: FakeTensor(a, "torch.bfloat16") for key, a in parameters.items()}
    layer = from_torch(fake_module("rnn-relu", CASES["rnn-relu-layers1-bias"]["options"], half))
    assert layer.dtype == mx.bfloat16
    assert layer.activation == "relu"
    assert to_torch_state_dict(layer)["weight_ih_l0"].dtype == np.float32


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: nn.RNN(4, 6, **o),
        lambda **o: nn.RNN(4, 6, nonlinearity=nn.relu, **o),
        lambda **o: nn.LSTM(4, 6, **o),
        lambda **o: nn.GRU(4, 6, **o),
    ],
    ids=["rnn-tanh", "rnn-relu", "lstm", "gru"],
)
def test_from_mlx(make, bias):
    mx.random.seed(0)
    module, x = make(bias=bias).eval(), mx.random.normal((3, 7, 4))
    layer = from_mlx(module)
    expected = module(x)
    y, final = layer(x, return_state=True)
    parts = expected if isinstance(expected, tuple) else (expected,)
    assert_close(y, parts[0], FORWARD["float32"])
    for a, b in zip(final, parts, strict=True):
        assert_close(a[0], b[:, -1], FORWARD["float32"])
    assert not layer.training
    before = mx.array(layer.layers[0]["forward"].Wh)
    module.update({"Wh" if "Wh" in module else "Whh": mx.zeros_like(before)})
    assert mx.array_equal(layer.layers[0]["forward"].Wh, before)


MESSAGES = {
    "torch-number": (TypeError, lambda: from_torch(3), "[from_torch] module must be a torch.nn.RNN, LSTM or GRU, got int."),
    "torch-other": (
        TypeError,
        lambda: from_torch(SimpleNamespace()),
        "[from_torch] module must be a torch.nn.RNN, LSTM or GRU, got types.SimpleNamespace.",
    ),
    "torch-integers": (
        TypeError,
        lambda: from_torch(
            fake_module("gru", CASES["gru-layers1"]["options"], {"weight_ih_l0": FakeTensor(np.zeros((15, 4)), "torch.int8")})
        ),
        "[from_torch] module must have parameters in float16, bfloat16, float32 or float64, got torch.int8.",
    ),
    "mlx-linear": (
        TypeError,
        lambda: from_mlx(nn.Linear(3, 3)),
        "[from_mlx] module must be an mlx.nn.RNN, LSTM or GRU, got mlx.nn.layers.linear.Linear.",
    ),
    "mlx-nonlinearity": (
        ValueError,
        lambda: from_mlx(nn.RNN(3, 3, nonlinearity=mx.sin)),
        "[from_mlx] module.nonlinearity must be tanh or relu, got",
    ),
    "state-dict-cfc": (
        TypeError,
        lambda: to_torch_state_dict(CfC(3, 3)),
        "[to_torch_state_dict] layer must be an RNN, LSTM or GRU of ember_mlx, got ember_mlx.layers.cfc.CfC.",
    ),
}


@pytest.mark.parametrize(("kind", "call", "message"), MESSAGES.values(), ids=MESSAGES)
def test_message(kind, call, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_every_class_has_its_layer():
    assert {type(converted(name)) for name in CASES} == {RNN, LSTM, GRU}

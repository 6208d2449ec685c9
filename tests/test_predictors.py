"""Saved layers as NumPy-only predictors and steppers, which agree with the layer to 1e-6."""

import os
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from ember_mlx import GRU, LSTM, Bidirectional, CfC, LQNet, SequenceModel, StrideAware, reference, save, use_backend
from ember_mlx.stepping import CompiledStepper

from .test_saving import MODULES, ROOT, I

T, B = 7, 3
MORE = {
    "cfc sparse": lambda: CfC(reference.RandomMap(6, 2, I, 0.5, seed=2), mask_time_heads=False, proj_size=4, mode="no_gate"),
    "cfc layered motor": lambda: CfC(reference.NCPMap(5, 3, 2, I, seed=3), output="motor", proj_size=3, go_backwards=True),
    "stacked both ways": lambda: GRU(I, 4, num_layers=3, bidirectional=True, return_sequences=False),
    "lstm stacked": lambda: LSTM(I, 4, num_layers=2, proj_size=3, return_state=True, batch_first=False),
    "both ways of both ways": lambda: Bidirectional(LSTM(I, 4, bidirectional=True)),
    "strides of cfc": lambda: StrideAware(CfC(4, I, mixed_memory=True), [1, 2, 3], return_sequences=True),
    "strides of lqnet": lambda: StrideAware(LQNet(4, input_size=I), [2], go_backwards=True),
    "functions": lambda: nn.Sequential(nn.Linear(I, 5), nn.SiLU(), nn.Softplus(), nn.Tanh(), nn.GELU(), nn.GELU("fast"), nn.Sigmoid()),
    "lstm of mlx": lambda: SequenceModel(nn.LSTM(I, 4), nn.GRU(4, 3, bias=False), nn.LayerNorm(3)),
}
ALL = MODULES | MORE
HALF = ("bfloat16", "float16")


def is_sequential(module):
    return isinstance(module, nn.Sequential)


def is_timed(module):
    inner = getattr(module, "forward_layer", module)
    return bool(getattr(inner, "timed", False)) or any(map(is_timed, getattr(module, "layers", []) if not is_sequential(module) else []))


def predictor_of(module, tmp_path):
    save(module, tmp_path / "layer.safetensors")
    return reference.load(tmp_path / "layer.safetensors")


def made(name):
    mx.random.seed(3)
    module = ALL[name]().eval()
    if name not in HALF:  # no weight at its initial value
        module.update(tree_map(lambda a: a + 0.1 * mx.random.normal(a.shape) if a.size else a, module.trainable_parameters()))
    return module


def sequences(module, rng):
    """A call's arguments, NumPy arrays."""
    x, dt = rng.normal(size=(B, T, I)).astype(np.float32), rng.uniform(0, 2, (B, T)).astype(np.float32)
    if not getattr(module, "batch_first", True):
        x, dt = x.swapaxes(0, 1), dt.T
    return x, {"time_deltas": dt} if is_timed(module) else {}


def as_mlx(a):
    return mx.array(a)


def close(got, expected, atol=1e-6):
    pairs = list(zip(tree_flatten([got]), tree_flatten([expected]), strict=True))
    assert pairs
    for (_, a), (_, b) in pairs:
        b = np.array(b.astype(mx.float32))
        assert isinstance(a, np.ndarray)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=atol * max(1, np.abs(b).max(initial=0)), rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_a_predictor_gives_what_the_layer_gives(tmp_path, name):
    module, rng = made(name), np.random.default_rng(0)
    predict = predictor_of(module, tmp_path)
    x, times = sequences(module, rng)
    atol = 1e-6 if name not in HALF else 1e-2  # a layer's y has the dtype of the weights, or that of sums of them
    close(predict(x, **times), module(as_mlx(x), **tree_map(as_mlx, times)), atol)
    close(predict(x[0].astype(np.float64)), module(as_mlx(x[0])), atol)  # without batch
    if is_sequential(module):
        return
    options = {"return_state": True, "lengths": [4, 7, 1]} if getattr(module, "batch_first", True) else {"return_state": True}
    for every in (True, False):
        got = predict(x, **times, **options, return_sequences=every)
        expected = module(as_mlx(x), **tree_map(as_mlx, times), **options, return_sequences=every)
        close(got, expected, atol)
    more, _ = sequences(module, rng)
    close(predict(more, got[1], return_state=True), module(as_mlx(more), expected[1], return_state=True), atol)


STEPPED = [name for name in ALL if not (is_sequential(m := ALL[name]()) or "both ways" in name or name in ("lstm", "cell", "model"))]
STEPPED = [name for name in STEPPED if not getattr(ALL[name](), "go_backwards", False)]


@pytest.mark.parametrize("name", STEPPED)
def test_steps_one_by_one_are_the_layers_call(name):
    steps_are_the_call(name)


def steps_are_the_call(name):
    module, rng = made(name), np.random.default_rng(0)
    x, times = sequences(module, rng)
    atol = 1e-6 if name not in HALF else 1e-2
    y, state = module(as_mlx(x), **tree_map(as_mlx, times), return_sequences=True, return_state=True)
    stepper = module.stepper(batch=B)
    if not getattr(module, "batch_first", True):
        x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
    for _ in range(2):
        for t in range(T):
            got = stepper.step(x[:, t], *(dt[:, t] for dt in times.values()))
            close(got, y[:, t], atol)
            if t == 2:
                stepper.state = stepper.state
        close(tree_map(np.array, stepper.state), state, atol)
        stepper.reset()


WITHOUT_MLX = """
import sys
sys.modules["mlx"] = None
import numpy as np
from ember_mlx import reference
folder = sys.argv[1]
predict = reference.load(folder + "/layer.safetensors")
x = np.load(folder + "/x.npy")
np.save(folder + "/y.npy", predict(x))
stepper = predict.stepper(len(x))
np.save(folder + "/last.npy", [stepper.step(x[:, t]) for t in range(x.shape[1])][-1])
assert "mlx.core" not in sys.modules
"""


def test_a_predictor_needs_no_mlx(tmp_path):
    module = SequenceModel(CfC(reference.NCPMap(5, 3, 2, I, seed=3)), nn.LayerNorm(10), outputs=2).eval()
    x, _ = sequences(module, np.random.default_rng(0))
    save(module, tmp_path / "layer.safetensors")
    np.save(tmp_path / "x.npy", x)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WITHOUT_MLX, str(tmp_path)], check=True, timeout=60, env=environment)
    for name in ("y", "last"):
        close(np.load(tmp_path / f"{name}.npy"), module(as_mlx(x)))


def test_float64_is_no_kind_of_a_file(tmp_path):
    layer = CfC(4, I)
    layer.set_dtype(mx.float64)
    with pytest.raises(TypeError, match=r"\[save\] model\.stages.* must be float32 or less; .*, got float64"):
        save(layer, tmp_path / "layer.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_stepper_takes_and_gives_either_kind_of_array():
    layer = LSTM(I, 4)
    layer.set_dtype(mx.bfloat16)
    stepper, x = layer.stepper(), mx.ones((I,), mx.bfloat16)
    assert isinstance(stepper.step(np.ones(I)), np.ndarray)
    y = stepper.step(x)
    assert isinstance(y, mx.array)
    assert y.shape == (4,)
    assert stepper.step(np.ones((1, I), np.int32)).shape == (1, 4)
    h, c = stepper.state
    assert isinstance(c, mx.array)
    kept = stepper.step(x)
    stepper.state = (h, c)
    assert mx.array_equal(stepper.step(x), kept)
    assert layer(x[None, None], stepper.state).shape == (1, 1, 4)
    stepper.reset()
    assert stepper.state[0].abs().max().item() == 0


def test_a_stepper_computes_in_the_precision_that_is_asked_for():
    layer, x = GRU(I, 4), np.full(I, 0.3)
    y = layer.stepper(dtype=mx.float64).step(x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, layer.stepper().step(x), atol=1e-6)
    assert (y != layer.stepper().step(x)).any()


def test_a_stepper_keeps_the_weights_that_it_was_made_with():
    layer, x = GRU(I, 4), np.ones(I)
    stepper = layer.stepper()
    y = stepper.step(x)
    layer.update(tree_map(lambda a: a + 1, layer.parameters()))
    stepper.reset()
    np.testing.assert_array_equal(stepper.step(x), y)


class Mine(GRU):
    """A user-defined class that doubles y."""

    def read_out(self, y, steps):
        return 2 * y


class TestCompiled:
    @pytest.fixture(autouse=True)
    def on_ops(self):
        with use_backend("ops"):
            yield

    @pytest.mark.parametrize("name", [name for name in STEPPED if name not in HALF])
    def test_a_compiled_step_is_the_layers_call(self, name):
        steps_are_the_call(name)

    def test_it_keeps_the_weights_too(self):
        test_a_stepper_keeps_the_weights_that_it_was_made_with()

    def test_it_takes_and_gives_either_kind_of_array(self):
        test_a_stepper_takes_and_gives_either_kind_of_array()


def test_a_class_of_ones_own_is_compiled():
    layer, x = Mine(I, 4), mx.ones((1, I))
    stepper = layer.stepper()
    assert isinstance(stepper, CompiledStepper)
    np.testing.assert_allclose(stepper.step(x), layer(x[:, None])[:, 0], atol=1e-6)
    assert isinstance(SequenceModel(layer).stepper(), CompiledStepper)


STEPPER_FAULTS = {
    "batch": (lambda: GRU(I, 4).stepper(0), ValueError, "[stepper] batch must be at least 1, got 0."),
    "batch-type": (lambda: GRU(I, 4).stepper(1.5), TypeError, "[stepper] batch must be an integer, got 1.5."),
    "dtype": (lambda: GRU(I, 4).stepper(dtype=mx.int32), ValueError, "dtype must be float32 or float64, the dtypes of states, got int32."),
    "dtype-type": (lambda: GRU(I, 4).stepper(dtype="float32"), TypeError, "dtype must be mx.float32, mx.float64 or None, got str."),
    "backwards": (lambda: CfC(4, I, go_backwards=True).stepper(), ValueError, "a step cannot depend on later ones, got CfC."),
    "both-ways": (lambda: SequenceModel(Bidirectional(GRU(I, 4))).stepper(), ValueError, "layer must run forwards only"),
    "stacked": (lambda: LSTM(I, 4, bidirectional=True).stepper(), ValueError, "layer must run forwards only"),
    "x": (lambda: GRU(I, 4).stepper().step(np.ones(4)), ValueError, "x must have shape (B, I) = (1, 3) or (3,), got (4,)."),
    "x-batch": (lambda: GRU(I, 4).stepper(2).step(np.ones(3)), ValueError, "x must have shape (B, I) = (2, 3), got (3,)."),
    "x-type": (lambda: GRU(I, 4).stepper().step(["a"] * 3), TypeError, "x must be an array of numbers"),
    "dt": (lambda: CfC(4, I).stepper().step(np.ones(I), -1), ValueError, "dt must be finite and not negative, got -1."),
    "dt-nan": (lambda: CfC(4, I).stepper().step(np.ones(I), np.nan), ValueError, "dt must be finite and not negative, got nan."),
    "dt-shape": (
        lambda: CfC(4, I).stepper().step(np.ones(I), [1, 2]),
        ValueError,
        "dt must be a number or have shape (B,) = (1,), got (2,).",
    ),
    "dt-untimed": (lambda: GRU(I, 4).stepper().step(np.ones(I), 2.0), ValueError, "dt must be 1, since this layer does not use"),
    "state": (
        lambda: setattr(GRU(I, 4).stepper(), "state", [mx.zeros((1, 2, 4))]),
        ValueError,
        "state[0] must have shape (1, 1, 4), got (1, 2, 4).",
    ),
    "state-parts": (
        lambda: setattr(LSTM(I, 4).stepper(), "state", [mx.zeros((1, 1, 4))]),
        ValueError,
        "state must be a list of 2 parts or None, got 1 parts.",
    ),
}


@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize(("call", "kind", "message"), STEPPER_FAULTS.values(), ids=STEPPER_FAULTS)
def test_what_a_stepper_refuses(backend, call, kind, message):
    with use_backend(backend), pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


PREDICTOR_FAULTS = {
    "x-type": (dict(x="a"), TypeError, "x must be an array of numbers"),
    "x-axes": (dict(x=np.ones(3)), ValueError, "x must have shape (B, T, I), or (T, I) without batch"),
    "x-features": (dict(x=np.ones((2, 5, 4))), ValueError, "x must have I = 3 features on its last axis, got shape (2, 5, 4)."),
    "x-empty": (dict(x=np.ones((2, 0, 3))), ValueError, "at least one sequence and step"),
    "times-shape": (dict(x=np.ones((2, 5, 3)), time_deltas=np.ones(5)), ValueError, "time_deltas must have shape (2, 5)"),
    "times-negative": (dict(x=np.ones((2, 5, 3)), time_deltas=-1), ValueError, "time_deltas must be finite and not negative, got -1.0."),
    "lengths-values": (dict(x=np.ones((2, 5, 3)), lengths=[0, 6]), ValueError, "lengths must lie in 1..T = 1..5, got [0 6]."),
    "lengths-type": (dict(x=np.ones((2, 5, 3)), lengths=[1.0, 2.0]), TypeError, "lengths must hold integers, got float64."),
    "lengths-shape": (dict(x=np.ones((2, 5, 3)), lengths=[1]), ValueError, "lengths must have shape (B,) = (2,), got (1,)."),
    "state": (
        dict(x=np.ones((2, 5, 3)), initial_state=[None]),
        ValueError,
        "initial_state must be a list of 2 parts or None, got 1 parts.",
    ),
    "flag": (dict(x=np.ones((2, 5, 3)), return_state=1), TypeError, "return_state must be True or False, got 1."),
}


@pytest.mark.parametrize(("call", "kind", "message"), PREDICTOR_FAULTS.values(), ids=PREDICTOR_FAULTS)
def test_what_a_predictor_refuses(tmp_path, call, kind, message):
    with pytest.raises(kind) as caught:
        predictor_of(CfC(4, I), tmp_path)(**call)
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="time_deltas must be None"):
        predictor_of(GRU(I, 4), tmp_path)(np.ones((2, 5, 3)), time_deltas=1.0)


def test_files_that_a_predictor_cannot_be_made_of(tmp_path):
    path = tmp_path / "layer.safetensors"
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        reference.load(path)
    save(GRU(I, 4), path)
    data = path.read_bytes()
    for cut in (0, 5, 40, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"path must be a saved layer, got .*it is truncated"):
            reference.load(path)
    path.write_bytes(data.replace(b"GRU", b"GRV"))
    with pytest.raises(ValueError, match=r"path must hold layers that have a NumPy form, CfC, .*, got GRV"):
        reference.load(path)
    mx.save_safetensors(str(path), {"a": mx.zeros(3)})
    with pytest.raises(ValueError, match="it is not a saved layer of ember_mlx"):
        reference.load(path)

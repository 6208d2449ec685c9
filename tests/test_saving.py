"""save and load: the loaded layer is the same, and nothing else is read from a file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import (
    GRU,
    LSTM,
    LTC,
    RNN,
    AutoNCPMap,
    Bidirectional,
    CfC,
    CTRQNet,
    EnhancedNCPMap,
    LQNet,
    NCPMap,
    NeuronMap,
    RandomMap,
    Recurrent,
    SequenceModel,
    StrideAware,
    StrideAwareCfC,
    StrideAwareLTC,
    cells,
    load,
    save,
)

I = 3
ROOT = Path(__file__).parents[1]


def edited_map():
    """A map with manually added synapses."""
    neurons = RandomMap(6, 2, I, 0.4, seed=1)
    neurons.add_synapse(0, 5, -1)
    neurons.add_sensory_synapse(1, 4, 1)
    return neurons


def half(layer, dtype=mx.bfloat16):
    layer.set_dtype(dtype)
    return layer


def frozen(layer):
    layer.layers[0].freeze()
    return layer


MODULES = {
    "rnn": lambda: RNN(I, 4, activation="relu", return_sequences=False),
    "lstm": lambda: LSTM(I, 4, num_layers=2, bidirectional=True, proj_size=2),
    "gru": lambda: GRU(I, 4, num_layers=2, dropout=0.3, go_backwards=True, bias=False),
    "cfc": lambda: CfC(4, I, mode="no_gate", activation="gelu", backbone_units=5, backbone_layers=2, time_scale_factor=0.3),
    "cfc pure": lambda: CfC(AutoNCPMap(8, 2, seed=3), I, mode="pure", output="motor", return_sequences=True),
    "cfc mixed": lambda: CfC(NCPMap(5, 3, 2, I, seed=3), mixed_memory=True, return_state=True),
    "ltc": lambda: LTC(NCPMap(5, 3, 2, I, seed=3), ode_unfolds=2, solver="rk4", epsilon=1e-6),
    "ltc explicit": lambda: LTC(edited_map(), implicit_param_constraints=False, input_mapping="linear", output_mapping=None),
    "ltc mixed": lambda: LTC(5, I, mixed_memory=True),
    "enhanced": lambda: CfC(EnhancedNCPMap(5, 3, 2, I, seed=2)),
    "explicit map": lambda: CfC(NeuronMap(4, 4, I, adjacency_matrix=np.eye(4), sensory_adjacency_matrix=np.ones((I, 4)))),
    "lqnet": lambda: LQNet(edited_map(), noise_scale=0.0, nu_0=0.4),
    "ctrqnet": lambda: CTRQNet(4, input_size=I, noise_scale=0.0, use_harmonic_embedding=True, time_scale_factor=0.5),
    "cell": lambda: Recurrent(cells.LEM, I, 4, 2, bidirectional=True, bias=False),
    "cell with settings": lambda: StrideAware(Recurrent(cells.CTRNN(unfolds=2), I, 4, return_sequences=False), [2, 1]),
    "strides": lambda: StrideAware(GRU(I, 4), [1, 3]),
    "stride cfc": lambda: StrideAwareCfC(4, [1, 2], I, return_sequences=True),
    "stride ltc": lambda: StrideAwareLTC(AutoNCPMap(7, 2, seed=1), [1, 2], I),
    "both ways": lambda: Bidirectional(CfC(NCPMap(5, 3, 2, I, seed=3), output="motor")),
    "model": lambda: SequenceModel(
        CfC(4, I, return_sequences=True), nn.Dropout(0.25), Bidirectional(GRU(4, 3)), nn.LayerNorm(6), outputs=2
    ),
    "in a model": lambda: SequenceModel(
        SequenceModel(GRU(I, 4), outputs=3), nn.ReLU(), nn.LSTM(3, 4, bias=False), nn.RMSNorm(4), outputs=1
    ),
    "sequential": lambda: nn.Sequential(
        nn.Linear(I, 4, bias=False), nn.GELU("precise"), GRU(4, 3), nn.GRU(3, 2), nn.LayerNorm(2, affine=False)
    ),
    "bfloat16": lambda: half(CfC(AutoNCPMap(8, 2, seed=3), I)),
    "float16": lambda: half(LSTM(I, 4), mx.float16),
    "frozen": lambda: frozen(SequenceModel(GRU(I, 4), outputs=2)),
    "evaluation": lambda: SequenceModel(CfC(4, I, backbone_dropout=0.5), outputs=2).eval(),
}


def outputs(module, x):
    module.eval()
    y = module(x)
    return [np.array(a.astype(mx.float32)) for _, a in tree_flatten([y])]


@pytest.mark.parametrize("name", MODULES)
def test_what_was_saved_comes_back(tmp_path, name):
    mx.random.seed(3)
    module, path = MODULES[name](), tmp_path / "layer.safetensors"
    save(module, path)
    same = load(path)
    assert type(same) is type(module)
    before, after = (dict(tree_flatten(m.parameters())) for m in (module, same))
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and mx.array_equal(before[key], after[key]) for key in before)
    trained, trained_again = (dict(tree_flatten(m.trainable_parameters())).keys() for m in (module, same))
    assert trained == trained_again
    assert module.training == same.training
    assert str(module) == str(same)
    x = mx.random.normal((2, 7, I)).astype(mx.float32 if name not in ("bfloat16", "float16") else getattr(mx, name))
    for a, b in zip(outputs(module, x), outputs(same, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == ["layer.safetensors"]


def test_in_another_process(tmp_path):
    mx.random.seed(3)
    model, x = MODULES["model"](), mx.random.normal((2, 7, I))
    save(model, tmp_path / "model.safetensors")
    np.save(tmp_path / "x.npy", np.array(x))
    script = (
        "import sys, numpy as np, mlx.core as mx, ember_mlx\n"
        "model = ember_mlx.load(sys.argv[1] + '/model.safetensors').eval()\n"
        "np.save(sys.argv[1] + '/y.npy', np.array(model(mx.array(np.load(sys.argv[1] + '/x.npy')))))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60, env=environment)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.array(model.eval()(x)), atol=1e-6)


class Mine(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size, self.gru = size, GRU(I, size)

    def __call__(self, x):
        return self.gru(x)

    def get_config(self):
        return {"size": self.size}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class MyCfC(CfC):
    pass


@pytest.mark.parametrize("make", [lambda: Mine(4), lambda: SequenceModel(MyCfC(4, I), outputs=2)], ids=["module", "subclass"])
def test_a_class_of_ones_own_is_given(tmp_path, make):
    module, path = make(), tmp_path / "mine.safetensors"
    save(module, path)
    name = "Mine" if isinstance(module, Mine) else "MyCfC"
    with pytest.raises(ValueError, match=rf"\[load\] classes must hold {name}, which the file contains; known are Bidirectional, "):
        load(path)
    same = load(path, classes=[Mine, MyCfC])
    x = mx.random.normal((2, 5, I))
    assert mx.array_equal(module(x), same(x))


def test_an_older_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "layer.safetensors"
    save(GRU(I, 4), path)
    before = path.read_bytes()

    def failing(*given):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(mx, "save_safetensors", failing)
    with pytest.raises(OSError, match=r"\[save\] \S+layer.safetensors could not be written: the disk is full"):
        save(GRU(I, 5), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


class NoConfig(nn.Module):
    pass


BAD_SAVES = {
    "no module": (lambda path: save([1], path), TypeError, r"\[save\] model must be an mlx.nn.Module, got list"),
    "unknown": (lambda path: save(NoConfig(), path), TypeError, r"\[save\] model must be a layer of ember_mlx, one of SequenceModel, "),
    "inside": (
        lambda path: save(SequenceModel(GRU(I, 4), nn.Embedding(3, 4)), path),
        TypeError,
        r"\[save\] model.layers\[1\] must be a layer of ember_mlx, .* got mlx.nn.layers.embedding.Embedding",
    ),
    "suffix": (lambda path: save(GRU(I, 4), path.with_suffix(".npz")), ValueError, r"\[save\] path must end in .safetensors, got "),
    "no path": (lambda path: save(GRU(I, 4), 3), TypeError, r"\[save\] path must be a str or a Path, got int"),
    "no folder": (lambda path: save(GRU(I, 4), path.parent / "no" / path.name), OSError, r"\[save\] \S+ could not be written: "),
}


@pytest.mark.parametrize("case", BAD_SAVES)
def test_what_cannot_be_saved_is_named(tmp_path, case):
    action, kind, message = BAD_SAVES[case]
    with pytest.raises(kind, match=message):
        action(tmp_path / "layer.safetensors")
    assert not list(tmp_path.iterdir())


def changed(path, **changes):
    arrays, metadata = mx.load(str(path), return_metadata=True)
    arrays = {name: mx.array(np.array(a)) for name, a in arrays.items()}
    told = json.loads(metadata["ember_mlx"]) | changes
    mx.save_safetensors(
        str(path), changes.pop("arrays", arrays), {"ember_mlx": json.dumps({k: v for k, v in told.items() if k != "arrays"})}
    )


SPOIL = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"it is truncated: \d+ bytes of \d+"),
    "empty": (lambda path: path.write_bytes(b""), "it is truncated, or not a safetensors file"),
    "no safetensors": (lambda path: path.write_bytes(b"hello" * 99), "it is truncated, or not a safetensors file"),
    "foreign": (lambda path: mx.save_safetensors(str(path), {"a": mx.zeros(3)}), "it is not a saved layer of ember_mlx"),
    "other format": (lambda path: changed(path, format=7), "its format is 7, this version reads 1"),
    "a checkpoint": (lambda path: changed(path, what="checkpoint"), "it is not a saved layer of ember_mlx, but a checkpoint"),
}


@pytest.mark.parametrize("case", SPOIL)
def test_a_bad_file_is_named(tmp_path, case):
    path = tmp_path / "layer.safetensors"
    save(GRU(I, 4), path)
    spoil, message = SPOIL[case]
    spoil(path)
    with pytest.raises(ValueError, match=rf"\[load\] path must be a saved layer, got \S+layer.safetensors: {message}"):
        load(path)


def test_weights_of_another_layer_are_named(tmp_path):
    path, other = tmp_path / "layer.safetensors", tmp_path / "other.safetensors"
    save(GRU(I, 4), path)
    save(GRU(I, 5), other)
    told = json.loads(mx.load(str(other), return_metadata=True)[1]["ember_mlx"])
    changed(path, model=told["model"])
    with pytest.raises(
        ValueError, match=r"\[load\] path must hold layers.0.forward.Wx of the layer that it names, \(15, 3\) of .*, got \S+ \(12, 3\) of "
    ):
        load(path)


def test_a_class_that_the_file_names_is_never_imported(tmp_path):
    path = tmp_path / "layer.safetensors"
    save(GRU(I, 4), path)
    changed(path, model={"class": "os.system", "config": {"command": "touch here"}})
    with pytest.raises(ValueError, match=r"\[load\] classes must hold os.system"):
        load(path)
    changed(path, model={"class": "mlx.nn.Linear", "config": {"input_dims": 3, "output_dims": 2, "unknown": 1}})
    with pytest.raises(ValueError, match=r"\[load\] mlx.nn.Linear must hold no other names than"):
        load(path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\[load\] path must be a saved layer, got \S+, which does not exist"):
        load(tmp_path / "none.safetensors")
    save(GRU(I, 4), tmp_path / "layer.safetensors")
    with pytest.raises(TypeError, match=r"\[load\] classes must hold subclasses of mlx.nn.Module or of Cell, got"):
        load(tmp_path / "layer.safetensors", classes=["GRU"])


def test_every_layer_is_among_those_saved_here():
    layers = {name for name in ember_mlx.__all__ if isinstance(cls := getattr(ember_mlx, name), type) and issubclass(cls, nn.Module)}
    assert layers <= {type(m).__name__ for make in MODULES.values() for m in [make()]}

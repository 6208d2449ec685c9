"""from_ncps, with the golden file of make_golden_ncps.py, and with the package ncps if it is installed."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ember_mlx import CfC, use_backend
from ember_mlx.convert import from_ncps

HERE = Path(__file__).parent
GOLDEN = {key: a for key, a in np.load(HERE / "golden" / "ncps_cfc.npz").items()}
CONFIGS = json.loads(str(GOLDEN["configs"]))
LAYERED = [name for name, config in CONFIGS.items() if "layers" in config]
TOLERANCE = 1e-5
REFUSAL = "[from_ncps] module must be an ncps.torch.CfC or ncps.torch.LTC, got "


class Tensor:
    """The part of a torch tensor's interface that from_ncps uses."""

    def __init__(self, values: np.ndarray, dtype: str | None = None):
        self.values, self.dtype, self.shape = values, f"torch.{dtype or values.dtype}", values.shape

    def detach(self) -> "Tensor":
        return self

    cpu = detach

    def float(self) -> "Tensor":
        return Tensor(self.values.astype(np.float32))

    def numpy(self) -> np.ndarray:
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")  # as torch does
        return self.values


def stand_in_class(name: str, module: str) -> type:
    return type(name, (SimpleNamespace,), {"__module__": module})


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden model."""
    return {key.removeprefix(f"{name}/"): a for key, a in GOLDEN.items() if key.startswith(f"{name}/")}


def stand_in(name: str, dtype: str | None = None) -> Any:
    """An object with the class name and the attributes of the golden model's ncps.torch.CfC."""
    config, tree = CONFIGS[name], SimpleNamespace()
    for path, values in golden(name).items():
        if path.startswith("weights/"):
            *owners, leaf = path.removeprefix("weights/").split(".")
            node = tree
            for owner in owners:
                node.__dict__.setdefault(owner, SimpleNamespace())
                node = getattr(node, owner)
            setattr(node, leaf, Tensor(values, dtype))
    options = {key: config[key] for key in ("use_mixed", "proj_size", "return_sequences", "batch_first", "training")}
    module = stand_in_class("CfC", "ncps.torch.cfc")(**options, **tree.__dict__)
    cells = [module.rnn_cell]
    if "layers" in config:
        cells = module.rnn_cell._layers = [getattr(module.rnn_cell, f"layer_{k}") for k in range(len(config["layers"]))]
        module.wired_mode, module.wiring = True, stand_in_wiring(name)
    for cell, sizes in zip(cells, config["cells"], strict=True):
        cell.__dict__.update(sizes, backbone=stand_in_backbone(cell, config["backbone"]))
    return module


def stand_in_wiring(name: str) -> Any:
    config, arrays = CONFIGS[name], golden(name)
    return SimpleNamespace(
        units=len(config["types"]),
        adjacency_matrix=arrays["adjacency"].astype(np.int32),
        sensory_adjacency_matrix=arrays["sensory_adjacency"].astype(np.int32),
        get_neurons_of_layer=lambda k: list(config["layers"][k]),
        get_type_of_neuron=lambda i: config["types"][i],
    )


def stand_in_backbone(cell: Any, parts: list[list[Any]]) -> list[Any] | None:
    """The modules of the Sequential, each with its class name."""
    weights = getattr(cell, "backbone", SimpleNamespace()).__dict__
    own = [getattr(weights.get(str(k)), "__dict__", {} if p is None else {"p": p}) for k, (_, p) in enumerate(parts)]
    return [stand_in_class(kind, "torch.nn")(**values) for (kind, _), values in zip(parts, own, strict=True)] or None


def in_our_order(config: dict[str, Any], state: np.ndarray) -> np.ndarray:
    """(B, H) of ncps with its layers from the first to the last -> with the last first."""
    stops = np.cumsum([cell["hidden_size"] for cell in config["cells"]])
    return np.concatenate(np.split(state, stops[:-1], axis=1)[::-1], axis=1)


def check_outputs(layer: CfC, config: dict[str, Any], arrays: dict[str, np.ndarray], tolerance: float, dtype: Any = mx.float32) -> None:
    """Run the layer on the arrays' inputs and compare with their outputs and final states."""
    initial = [mx.array(in_our_order(config, arrays[name]), dtype) for name in ("h0", "c0") if name in arrays]
    x, dt = mx.array(arrays["x"], dtype), mx.array(arrays["dt"], dtype)
    y, [*final, t] = layer(x, [*initial, None], dt, return_state=True)
    expected = [arrays["y"], *(in_our_order(config, arrays[name]) for name in "hc" if name in arrays)]
    assert len(final) == len(expected) - 1
    for ours, theirs in zip([y, *final], expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(np.array(ours), theirs, rtol=0, atol=tolerance)
    elapsed = arrays["dt"].sum(axis=1 if layer.batch_first else 0)
    np.testing.assert_allclose(np.array(t), np.broadcast_to(elapsed[:, None], t.shape), rtol=1e-5)


@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_states_are_those_of_ncps(name: str, backend: str) -> None:
    with use_backend(backend):
        check_outputs(from_ncps(stand_in(name)), CONFIGS[name], golden(name), TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_options_are_copied(name: str) -> None:
    layer, config = from_ncps(stand_in(name)), CONFIGS[name]
    assert layer.mode == config["cells"][0]["mode"]
    assert (layer.return_sequences, layer.batch_first) == (config["return_sequences"], config["batch_first"])
    assert (layer.mixed_memory, layer.proj_size) == (config["use_mixed"], config["proj_size"])
    assert layer.mask_time_heads == (name not in LAYERED)
    assert not layer.training


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_layer_computes_the_same(name: str, tmp_path: Path) -> None:
    layer = from_ncps(stand_in(name))
    layer.save_weights(str(tmp_path / "layer.safetensors"))
    again = CfC.from_config(json.loads(json.dumps(layer.get_config()))).eval()
    again.load_weights(str(tmp_path / "layer.safetensors"))
    check_outputs(again, CONFIGS[name], golden(name), TOLERANCE)


def test_backbone_is_copied() -> None:
    layer = from_ncps(stand_in("dense-no_gate-silu-2-layers-dropout"))
    assert (layer.activation, layer.backbone_layers, layer.backbone_units, layer.backbone_dropout) == ("silu", 2, 10, 0.25)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_training_mode_is_copied(training: bool) -> None:
    module = stand_in("dense-default-lecun_tanh")
    module.training = training
    assert from_ncps(module).training == training


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_is_kept(dtype: str) -> None:
    name = "autoncp-default-mixed-proj-time-first"
    with mx.stream(mx.cpu):  # float64 exists there only
        layer = from_ncps(stand_in(name, dtype))
        assert layer.dtype == getattr(mx, dtype)
        expected = mx.array(golden(name)["weights/fc.weight"]).astype(layer.dtype)
        assert mx.array_equal(layer.proj["weight"], expected)


@pytest.mark.parametrize("name", LAYERED)
def test_map_holds_the_synapses_that_ncps_uses(name: str) -> None:
    neuron_map, layers, arrays = from_ncps(stand_in(name)).neuron_map, CONFIGS[name]["layers"], golden(name)
    order = [i for ids in layers[::-1] for i in ids]  # the wiring's id of each of our neurons
    theirs, sensory = arrays["adjacency"][np.ix_(order, order)], arrays["sensory_adjacency"][:, order]
    layer_of = np.array([next(k for k, ids in enumerate(layers) if i in ids) for i in order])
    step = layer_of[None, :] - layer_of[:, None]  # [source, target]
    inside = np.where(theirs == 0, 1, theirs)
    np.testing.assert_array_equal(neuron_map.adjacency_matrix, np.select([step == 0, step == 1], [inside, theirs], 0))
    np.testing.assert_array_equal(neuron_map.sensory_adjacency_matrix, np.where(layer_of == 0, sensory, 0))
    assert [len(ids) for ids in neuron_map.layers] == [len(ids) for ids in layers]
    assert neuron_map.output_dim == len(layers[-1])


@pytest.mark.parametrize("name", ["autoncp-default", "ncp-pure-proj"])
def test_neuron_ids_and_types_of_an_ncp_stay(name: str) -> None:
    neuron_map, config = from_ncps(stand_in(name)).neuron_map, CONFIGS[name]
    assert [ids.tolist() for ids in neuron_map.layers] == config["layers"]
    assert neuron_map.layer_names == ["inter", "command", "motor"]


def test_mixed_layers_are_numbered() -> None:
    assert from_ncps(stand_in("fully-connected-fewer-outputs-mixed")).neuron_map.layer_names == ["layer 1"]


def test_mask_of_the_module_counts_where_its_wiring_was_changed_later() -> None:
    name = "autoncp-default"
    module = stand_in(name)
    module.wiring.adjacency_matrix[:] = 1  # as a second CfC on the same wiring would, which builds it again
    module.wiring.sensory_adjacency_matrix[:] = 1
    layer = from_ncps(module)
    assert not layer.neuron_map.sensory_adjacency_matrix[:, layer.neuron_map.layers[0]].all()
    check_outputs(layer, CONFIGS[name], golden(name), TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            ("LSTM", "torch.nn.modules.rnn"),
            REFUSAL + "torch.nn.modules.rnn.LSTM.",
        ),
        (
            ("CfCCell", "ncps.torch.cfc_cell"),
            REFUSAL + "ncps.torch.cfc_cell.CfCCell.",
        ),
        (("CfC", "ncps.keras.cfc"), REFUSAL + "ncps.keras.cfc.CfC."),
        (("dict", "builtins"), REFUSAL + "dict."),
    ],
    ids=["torch-LSTM", "ncps-cell", "ncps-keras", "builtin"],
)
def test_other_objects_are_refused(kind: tuple[str, str], message: str) -> None:
    with pytest.raises(TypeError) as error:
        from_ncps(stand_in_class(*kind)())
    assert str(error.value) == message


def test_subclass_is_taken() -> None:
    module = stand_in("ncp-pure-proj")
    module.__class__ = type("Policy", (type(module),), {"__module__": "policies"})
    check_outputs(from_ncps(module), CONFIGS["ncp-pure-proj"], golden("ncp-pure-proj"), TOLERANCE)


def test_other_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match=r"module must have parameters in float16, .* or float64, got torch\.complex64\."):
        from_ncps(stand_in("autoncp-default", "complex64"))


def test_other_activation_is_refused() -> None:
    module = stand_in("dense-default-lecun_tanh")
    module.rnn_cell.backbone[1] = stand_in_class("ELU", "torch.nn")()
    with pytest.raises(ValueError, match=r"backbone must have an activation of LeCun, Tanh, ReLU, SiLU, GELU, got ELU\."):
        from_ncps(module)


def test_projection_of_another_size_is_refused() -> None:
    module = stand_in("ncp-pure-proj")
    module.fc.weight = Tensor(np.zeros((5, 3), np.float32))  # there are 2 motor neurons
    with pytest.raises(ValueError, match=r"module\.fc weight must have shape \(5, 2\), got \(5, 3\)\."):
        from_ncps(module)


@pytest.mark.parametrize(("column", "value"), [(0, 0.5), (-1, 0.0)], ids=["fraction", "missing-recurrence"])
def test_other_mask_is_refused(column: int, value: float) -> None:
    module = stand_in("autoncp-default")
    cell = module.rnn_cell.layer_1
    mask = cell.sparsity_mask.values.copy()
    mask[:, column] = value
    cell.sparsity_mask = Tensor(mask)
    with pytest.raises(ValueError, match=r"layer_1\.sparsity_mask must hold only 0 and 1, and only 1 for its layer's own neurons"):
        from_ncps(module)


def test_wiring_with_neurons_in_no_layer_is_refused() -> None:
    module = stand_in("autoncp-default")
    module.wiring.units += 1
    with pytest.raises(ValueError, match=r"module\.wiring must have its 13 units in one layer each, got 12 in all layers\."):
        from_ncps(module)


def test_golden_file_states_its_versions() -> None:
    assert set(json.loads(str(GOLDEN["versions"]))) == {"ncps", "torch"}


@pytest.fixture(scope="module")
def real() -> ModuleType:
    """make_golden_ncps.py as a module, where torch and ncps are installed."""
    for package in ("torch", "ncps"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra: bench)")
    spec = importlib.util.spec_from_file_location("make_golden_ncps", HERE / "make_golden_ncps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CONFIGS)
def test_real_ncps(real: ModuleType, name: str) -> None:
    module, before = real.build(name), {key: a.clone() for key, a in real.build(name).state_dict().items()}
    arrays = real.inputs(module, seed=99)
    arrays |= real.run(module, arrays)
    layer = from_ncps(module)
    assert all(bool((before[key] == a).all()) for key, a in module.state_dict().items())
    for a in module.parameters():
        a.data.zero_()  # the layer must keep nothing of the module's memory
    check_outputs(layer, real.describe(module), arrays, TOLERANCE)


@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize("name", ["dense-default-gelu-mixed-proj", "autoncp-default-mixed-proj-time-first", "ncp-pure-proj"])
def test_real_ncps_float64(real: ModuleType, name: str, backend: str) -> None:
    module = real.build(name).double()
    arrays = {key: a.astype(np.float64) for key, a in real.inputs(module, seed=98).items()}
    arrays |= real.run(module, arrays)
    with mx.stream(mx.cpu), use_backend(backend):
        layer = from_ncps(module)
        assert layer.dtype == mx.float64
        # Not to 1e-12: MLX's own exp and sigmoid of float64 are exact to about 1e-7 only.
        check_outputs(layer, real.describe(module), arrays, 1e-6, mx.float64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["dense-default-lecun_tanh", "autoncp-default-mixed-proj-time-first", "ncp-pure-proj"])
def test_real_ncps_half_precision_weights(real: ModuleType, name: str, dtype: str) -> None:
    module = real.build(name)
    module = module.half() if dtype == "float16" else module.bfloat16()
    layer = from_ncps(module)
    assert layer.dtype == getattr(mx, dtype)
    module = module.float()  # the same weights; our layer computes in float32 whatever their dtype
    arrays = real.inputs(module, seed=97)
    arrays |= real.run(module, arrays)
    check_outputs(layer, real.describe(module), arrays, TOLERANCE)


def test_real_ncps_without_time_deltas_and_batch(real: ModuleType) -> None:
    import torch

    module = real.build("autoncp-default")
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        y, _ = module(torch.from_numpy(x))
    np.testing.assert_allclose(np.array(from_ncps(module)(mx.array(x))), y.numpy(), rtol=0, atol=TOLERANCE)


def test_real_ncps_wiring_shared_by_two_modules(real: ModuleType) -> None:
    from ncps.torch import CfC as TheirCfC
    from ncps.wirings import AutoNCP

    wiring = AutoNCP(12, 3, sparsity_level=0.7)
    first = TheirCfC(4, wiring).eval()
    before = wiring.sensory_adjacency_matrix.copy()
    TheirCfC(4, wiring)  # builds the wiring again, which adds synapses to it
    assert (before != wiring.sensory_adjacency_matrix).any()
    arrays = real.inputs(first, seed=96)
    arrays |= real.run(first, arrays)
    check_outputs(from_ncps(first), real.describe(first), arrays, TOLERANCE)


def test_real_ncps_that_cannot_run_is_refused(real: ModuleType) -> None:
    from ncps.torch import CfC as TheirCfC
    from ncps.wirings import FullyConnected

    module = TheirCfC(4, FullyConnected(6, output_dim=2), proj_size=3)  # projects 2 outputs, but the layer has 6 neurons
    with pytest.raises(ValueError, match=r"module\.fc weight must have shape \(3, 6\), got \(3, 2\)\."):
        from_ncps(module)

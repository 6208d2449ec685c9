"""from_ncps of an LTC, with the golden file of make_golden_ncps_ltc.py, and with the package ncps if it is installed."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ember_mlx import LTC, use_backend
from ember_mlx.convert import from_ncps

from .test_convert_ncps import TOLERANCE, Tensor, stand_in_class

HERE = Path(__file__).parent
GOLDEN = {key: a for key, a in np.load(HERE / "golden" / "ncps_ltc.npz").items()}
CONFIGS = json.loads(str(GOLDEN["configs"]))


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden model."""
    return {key.removeprefix(f"{name}/"): a for key, a in GOLDEN.items() if key.startswith(f"{name}/")}


def stand_in(name: str, dtype: str | None = None) -> Any:
    """An object with the class name and the attributes of the golden model's ncps.torch.LTC."""
    config, arrays, tree = CONFIGS[name], golden(name), SimpleNamespace()
    for path, values in arrays.items():
        if path.startswith("weights/"):
            *owners, leaf = path.removeprefix("weights/").split(".")
            node = tree
            for owner in owners:
                node.__dict__.setdefault(owner, SimpleNamespace())
                node = getattr(node, owner)
            setattr(node, leaf, Tensor(values, dtype))
    tree.rnn_cell.__dict__.update(config["cell"])
    tree.rnn_cell._wiring = SimpleNamespace(
        units=config["units"],
        output_dim=config["output_dim"],
        num_layers=len(config["layers"]),
        get_neurons_of_layer=lambda k: list(config["layers"][k]),
        adjacency_matrix=arrays["adjacency"].astype(np.int32),
        sensory_adjacency_matrix=arrays["sensory_adjacency"].astype(np.int32),
    )
    options = {key: config[key] for key in ("use_mixed", "return_sequences", "batch_first", "training")}
    return stand_in_class("LTC", "ncps.torch.ltc")(**options, **tree.__dict__)


def check_outputs(layer: LTC, arrays: dict[str, np.ndarray], tolerance: float, dtype: Any = mx.float32) -> None:
    """Run the layer on the arrays' inputs and compare with their outputs and final states."""
    initial = [mx.array(arrays[name], dtype) for name in ("h0", "c0") if name in arrays]
    x, dt = mx.array(arrays["x"], dtype), mx.array(arrays["dt"], dtype)
    y, state = layer(x, initial if layer.mixed_memory else initial[0], dt, return_state=True)
    expected = [arrays["y"], *(arrays[name] for name in "hc" if name in arrays)]
    for ours, theirs in zip([y, *(state if layer.mixed_memory else [state])], expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(np.array(ours), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_states_are_those_of_ncps(name: str, backend: str) -> None:
    with use_backend(backend):
        check_outputs(from_ncps(stand_in(name)), golden(name), TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_options_are_copied(name: str) -> None:
    layer, config, cell = from_ncps(stand_in(name)), CONFIGS[name], CONFIGS[name]["cell"]
    assert (layer.return_sequences, layer.batch_first) == (config["return_sequences"], config["batch_first"])
    assert (layer.input_mapping, layer.output_mapping) == (cell["_input_mapping"], cell["_output_mapping"])
    assert (layer.ode_unfolds, layer.epsilon) == (cell["_ode_unfolds"], cell["_epsilon"])
    assert layer.implicit_param_constraints == cell["_implicit_param_constraints"]
    assert layer.mixed_memory == config["use_mixed"]
    assert layer.neuron_map.output_dim == config["output_dim"]
    assert not layer.training


@pytest.mark.parametrize("name", CONFIGS)
def test_map_holds_the_synapses_and_layers_of_the_wiring(name: str) -> None:
    neuron_map, layers = from_ncps(stand_in(name)).neuron_map, CONFIGS[name]["layers"]
    np.testing.assert_array_equal(neuron_map.adjacency_matrix, golden(name)["adjacency"])
    np.testing.assert_array_equal(neuron_map.sensory_adjacency_matrix, golden(name)["sensory_adjacency"])
    assert [ids.tolist() for ids in neuron_map.layers or []] == (layers if len(layers) > 1 else [])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_layer_computes_the_same(name: str, tmp_path: Path) -> None:
    layer = from_ncps(stand_in(name))
    layer.save_weights(str(tmp_path / "layer.safetensors"))
    again = LTC.from_config(json.loads(json.dumps(layer.get_config()))).eval()
    again.load_weights(str(tmp_path / "layer.safetensors"))
    check_outputs(again, golden(name), TOLERANCE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_is_kept(dtype: str) -> None:
    with mx.stream(mx.cpu):  # float64 exists there only
        layer = from_ncps(stand_in("units", dtype))
        assert layer.dtype == getattr(mx, dtype)
        assert mx.array_equal(layer.gleak, mx.array(golden("units")["weights/rnn_cell.gleak"]).astype(layer.dtype))


def test_mask_of_the_module_counts_where_its_wiring_was_changed_later() -> None:
    module = stand_in("autoncp")
    module.rnn_cell._wiring.adjacency_matrix[:] = 1
    layer = from_ncps(module)
    assert layer.w.size < 144
    check_outputs(layer, golden("autoncp"), TOLERANCE)


def test_other_mask_is_refused() -> None:
    module = stand_in("units")
    module.rnn_cell.sparsity_mask = Tensor(np.full((6, 6), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"module\.rnn_cell\.sparsity_mask must hold only 0 and 1, got another\."):
        from_ncps(module)


def test_golden_file_states_its_versions() -> None:
    assert set(json.loads(str(GOLDEN["versions"]))) == {"ncps", "torch"}


@pytest.fixture(scope="module")
def real() -> ModuleType:
    """make_golden_ncps_ltc.py as a module, where torch and ncps are installed."""
    for package in ("torch", "ncps"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra: bench)")
    spec = importlib.util.spec_from_file_location("make_golden_ncps_ltc", HERE / "make_golden_ncps_ltc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CONFIGS)
def test_real_ncps(real: ModuleType, name: str) -> None:
    module = real.build(name)
    arrays = real.inputs(module, seed=99)
    arrays |= real.run(module, arrays)
    layer = from_ncps(module)
    for a in module.parameters():
        a.data.zero_()  # the layer must keep nothing of the module's memory
    check_outputs(layer, arrays, TOLERANCE)


def test_real_ncps_float64(real: ModuleType) -> None:
    module = real.build("autoncp-mixed-time-first").double()
    arrays = {key: a.astype(np.float64) for key, a in real.inputs(module, seed=98).items()}
    arrays |= real.run(module, arrays)
    with mx.stream(mx.cpu), use_backend("numpy"):
        # Not to 1e-12: MLX's own softplus of float64 is exact to about 1e-7 only.
        check_outputs(from_ncps(module), arrays, 1e-6, mx.float64)


def test_where_ncps_gives_nan_the_layer_does_not(real: ModuleType) -> None:
    import torch

    module = real.build("units")
    with torch.no_grad():
        y, _ = module(torch.ones(1, 1, 4), torch.ones(1, 6), torch.zeros(1, 1))
    assert bool(torch.isnan(y).all())
    _, v = from_ncps(module)(mx.ones((1, 1, 4)), mx.ones((1, 6)), 0.0, return_state=True)
    assert mx.array_equal(v, mx.ones((1, 6)))

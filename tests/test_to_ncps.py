"""to_ncps_state_dict, the inverse of from_ncps: with the golden files, and with the package ncps if it is installed."""

import importlib.util
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ember_mlx import GRU, LTC, CfC, FullyConnectedMap, NCPMap, RandomMap
from ember_mlx.convert import from_ncps, to_ncps_state_dict

from . import test_convert_ncps as cfc_golden
from . import test_convert_ncps_ltc as ltc_golden

CASES = [(module, name) for module in (cfc_golden, ltc_golden) for name in module.CONFIGS]
I, T = 4, 7


def ncp_map() -> NCPMap:
    return NCPMap(5, 3, 2, I, seed=1)


# a layer, and what makes the module of ncps beside the layer's sizes
LAYERS: dict[str, Any] = {
    "dense": lambda: CfC(6, I, backbone_units=9, backbone_layers=3, backbone_dropout=0.3, time_scale_factor=0.4, mixed_memory=True),
    "dense without backbone": lambda: CfC(6, I, mode="no_gate", backbone_layers=0, proj_size=3),
    "ncp": lambda: CfC(ncp_map(), mixed_memory=True, time_scale_factor=2.5, output="motor", proj_size=3),
    "ncp, time heads not masked": lambda: CfC(ncp_map(), mask_time_heads=False, output="motor"),
    "random": lambda: CfC(RandomMap(8, sparsity_level=0.5, input_dim=I, seed=2), mode="pure"),
    "ltc": lambda: LTC(ncp_map(), mixed_memory=True, output_mapping="linear"),
    "ltc, explicit constraints": lambda: LTC(FullyConnectedMap(5, input_dim=I, output_dim=2), implicit_param_constraints=False),
}


@pytest.mark.parametrize(("module", "name"), CASES, ids=[name for _, name in CASES])
def test_there_and_back(module: ModuleType, name: str) -> None:
    theirs = {key.removeprefix("weights/"): a for key, a in module.golden(name).items() if key.startswith("weights/")}
    ours = to_ncps_state_dict(from_ncps(module.stand_in(name)))
    assert set(ours) == set(theirs)
    for key, expected in theirs.items():
        *owner, leaf = key.split(".")
        if leaf == "weight" and owner[-1] in ("ff1", "ff2") and f"{'.'.join(owner[:-1])}.sparsity_mask" in theirs:
            expected = expected * theirs[f"{'.'.join(owner[:-1])}.sparsity_mask"]
        elif expected.ndim == 2 and owner == ["rnn_cell"] and not leaf.endswith("mask"):  # of an LTC; what is masked is not carried over
            mask = theirs.get(f"rnn_cell.{'sensory_' if leaf.startswith('sensory') else ''}sparsity_mask", np.ones(()))
            expected = expected * mask
        np.testing.assert_array_equal(ours[key], expected, err_msg=key)


@pytest.fixture(scope="module")
def packages() -> tuple[ModuleType, ModuleType]:
    for package in ("torch", "ncps"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra: bench)")
    import ncps.torch
    import torch

    return torch, ncps


def wiring_of(ncps: ModuleType, layer: CfC | LTC) -> Any:
    """A wiring with the synapses of the layer's map."""
    neuron_map = layer.neuron_map
    layers = [np.arange(neuron_map.units)] if neuron_map.layers is None else neuron_map.layers

    class Given(ncps.wirings.Wiring):
        @property
        def num_layers(self) -> int:
            return len(layers)

        def get_neurons_of_layer(self, k: int) -> list[int]:
            return list(layers[k])

    wiring = Given(neuron_map.units)
    wiring.set_output_dim(neuron_map.output_dim if neuron_map.layers is None else len(layers[-1]))
    wiring.set_input_dim(I)
    wiring.adjacency_matrix = neuron_map.adjacency_matrix.astype(np.int32)
    wiring.sensory_adjacency_matrix = neuron_map.sensory_adjacency_matrix.astype(np.int32)
    return wiring


def module_like(ncps: ModuleType, layer: CfC | LTC) -> Any:
    if isinstance(layer, LTC):
        return ncps.torch.LTC(
            I,
            wiring_of(ncps, layer),
            mixed_memory=layer.mixed_memory,
            input_mapping=layer.input_mapping,
            output_mapping=layer.output_mapping,
            implicit_param_constraints=layer.implicit_param_constraints,
        )
    options = {"mode": layer.mode, "mixed_memory": layer.mixed_memory, "proj_size": layer.proj_size}
    if layer.neuron_map.layers is None and layer.neuron_map.is_fully_connected:
        backbone = {f"backbone_{name}": getattr(layer, f"backbone_{name}") or 0 for name in ("units", "layers", "dropout")}
        return ncps.torch.CfC(I, layer.units, **backbone, **options)
    return ncps.torch.CfC(I, wiring_of(ncps, layer), **options)


@pytest.mark.parametrize("name", LAYERS)
def test_real_ncps_computes_the_same(packages: tuple[ModuleType, ModuleType], name: str) -> None:
    torch, ncps = packages
    mx.random.seed(3)
    layer = LAYERS[name]().eval()
    module = module_like(ncps, layer).eval()
    module.load_state_dict({key: torch.tensor(a) for key, a in to_ncps_state_dict(layer).items()})
    x, dt = mx.random.normal((1, T, I)), mx.random.uniform(0.1, 2, (1, T))
    y = layer(x, time_deltas=dt, return_sequences=True)
    with torch.no_grad():
        expected, _ = module(torch.tensor(np.array(x)), timespans=torch.tensor(np.array(dt)))
    np.testing.assert_allclose(np.array(y), expected.numpy(), rtol=0, atol=cfc_golden.TOLERANCE)


def test_lower_precision() -> None:
    layer = CfC(4, I)
    layer.set_dtype(mx.bfloat16)
    assert {a.dtype for a in to_ncps_state_dict(layer).values()} == {np.dtype(np.float32)}
    layer.set_dtype(mx.float16)
    assert {a.dtype for a in to_ncps_state_dict(layer).values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: GRU(3, 4), "layer must be a CfC or an LTC of ember_mlx, got ember_mlx.layers.gated.GRU."),
        (lambda: CfC(4, 3, mode="pure", time_scale_factor=2.0), "layer.time_scale_factor must be 1 in the mode 'pure', got 2.0."),
        (
            lambda: CfC(ncp_map(), proj_size=3),
            "layer.output must be 'motor' for a projection on a map that is not fully connected, got 'units'.",
        ),
        (lambda: LTC(4, 3, solver="rk4"), "layer.solver must be 'semi_implicit', got 'rk4'."),
    ],
    ids=["gru", "pure with a time scale", "projection of all units", "rk4"],
)
def test_message(layer: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        to_ncps_state_dict(layer())
    assert str(error.value) == f"[to_ncps_state_dict] {message}"

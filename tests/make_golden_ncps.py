"""Write golden/ncps_cfc.npz: outputs of small seeded models of the package ncps, for test_convert_ncps.py.

Run by hand, with the versions of the extra `bench`: python tests/make_golden_ncps.py
"""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ncps.torch import CfC
from ncps.wirings import NCP, AutoNCP, FullyConnected, Random, Wiring

PATH = Path(__file__).parent / "golden" / "ncps_cfc.npz"
BATCH, STEPS = 3, 8


class Scattered(Wiring):
    """Three layers whose ids are neither consecutive nor ordered, with synapses in every direction, also past a layer."""

    LAYERS = ((4, 0, 7), (2, 6), (5, 1, 3))

    def __init__(self):
        super().__init__(8)
        self.set_output_dim(3)
        rng = np.random.default_rng(0)
        self.adjacency_matrix = rng.integers(-1, 2, (8, 8)).astype(np.int32)

    @property
    def num_layers(self):
        return len(self.LAYERS)

    def get_neurons_of_layer(self, layer_id):
        return list(self.LAYERS[layer_id])

    def build(self, input_dim):
        super().build(input_dim)
        self.sensory_adjacency_matrix = np.random.default_rng(1).integers(-1, 2, (input_dim, 8)).astype(np.int32)


def ncp() -> NCP:
    return NCP(5, 3, 2, sensory_fanout=3, inter_fanout=2, recurrent_command_synapses=3, motor_fanin=2, seed=1)


CASES: dict[str, Callable[[], CfC]] = {
    "dense-default-lecun_tanh": lambda: CfC(4, 6, backbone_units=16),
    "dense-no_gate-silu-2-layers-dropout": lambda: CfC(
        4, 6, mode="no_gate", activation="silu", backbone_units=10, backbone_layers=2, backbone_dropout=0.25
    ),
    "dense-pure-relu-3-layers": lambda: CfC(4, 7, mode="pure", activation="relu", backbone_units=9, backbone_layers=3),
    "dense-default-no-backbone": lambda: CfC(5, 8, backbone_layers=0),
    "dense-default-gelu-mixed-proj": lambda: CfC(4, 6, activation="gelu", backbone_units=12, mixed_memory=True, proj_size=3),
    "dense-default-tanh-time-first-last-step": lambda: CfC(
        4, 5, activation="tanh", backbone_units=8, batch_first=False, return_sequences=False
    ),
    "dense-pure-no-backbone-mixed": lambda: CfC(3, 5, mode="pure", backbone_layers=0, mixed_memory=True),
    "autoncp-default": lambda: CfC(4, AutoNCP(12, 3, seed=2)),
    "autoncp-default-mixed-proj-time-first": lambda: CfC(
        4, AutoNCP(11, 2, sparsity_level=0.3), mixed_memory=True, proj_size=4, batch_first=False
    ),
    "ncp-no_gate-mixed-last-step": lambda: CfC(4, ncp(), mode="no_gate", mixed_memory=True, return_sequences=False),
    "ncp-pure-proj": lambda: CfC(4, ncp(), mode="pure", proj_size=5),
    "random-default": lambda: CfC(6, Random(7, sparsity_level=0.6)),
    "fully-connected-fewer-outputs-mixed": lambda: CfC(4, FullyConnected(6, output_dim=2), mixed_memory=True),
    "scattered-layers-no_gate-mixed": lambda: CfC(4, Scattered(), mode="no_gate", mixed_memory=True),
}


def build(name: str) -> CfC:
    """The model of a case, with seeded weights, in evaluation mode."""
    torch.manual_seed(list(CASES).index(name))
    return CASES[name]().eval()


def inputs(model: CfC, seed: int) -> dict[str, np.ndarray]:
    """x (B, T, I) and dt (B, T), or time first where the model is; h0, with mixed memory c0, (B, H), in the order of ncps."""
    rng = np.random.default_rng(seed)
    cell = model.rnn_cell._layers[0] if hasattr(model, "wiring") else model.rnn_cell
    lead = (BATCH, STEPS) if model.batch_first else (STEPS, BATCH)
    arrays = {"x": rng.standard_normal((*lead, cell.input_size)), "dt": rng.uniform(0, 3, lead)}
    arrays |= {name: rng.standard_normal((BATCH, model.state_size)) for name in state_names(model)}
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def state_names(model: CfC) -> list[str]:
    return ["h0", "c0"] if model.use_mixed else ["h0"]


def run(model: CfC, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """y in the model's own layout and its final h, with mixed memory c.

    One sequence at a time: ncps squeezes each step's time deltas, and only a single one broadcasts rightly whatever the sizes.
    """
    axis = 0 if model.batch_first else 1
    dtype = next(model.parameters()).dtype
    outputs = []
    for b in range(BATCH):
        x, dt = (torch.from_numpy(np.take(arrays[name], [b], axis=axis)).to(dtype) for name in ("x", "dt"))
        state = tuple(torch.from_numpy(arrays[name][[b]]).to(dtype) for name in state_names(model))
        with torch.no_grad():
            y, final = model(x, state if model.use_mixed else state[0], dt)
        outputs.append([y, *(final if model.use_mixed else [final])])
    y, *states = zip(*outputs, strict=True)
    result = {"y": torch.cat(y, dim=axis if model.return_sequences else 0)}
    result |= {name: torch.cat(parts) for name, parts in zip("hc", states, strict=False)}
    return {name: tensor.numpy() for name, tensor in result.items()}


def describe(model: CfC) -> dict[str, Any]:
    """The attributes of a model that from_ncps reads in addition to its weights."""
    config = {name: getattr(model, name) for name in ("use_mixed", "proj_size", "return_sequences", "batch_first", "training")}
    wired = hasattr(model, "wiring")
    cells = model.rnn_cell._layers if wired else [model.rnn_cell]
    config["cells"] = [{name: getattr(cell, name) for name in ("input_size", "hidden_size", "mode")} for cell in cells]
    config["backbone"] = [[type(part).__name__, getattr(part, "p", None)] for part in cells[0].backbone or []]
    if wired:
        ids = [[int(i) for i in model.wiring.get_neurons_of_layer(k)] for k in range(model.wiring.num_layers)]
        config |= {"layers": ids, "types": [model.wiring.get_type_of_neuron(i) for i in range(model.wiring.units)]}
    return config


def main() -> None:
    arrays, configs = {}, {}
    for seed, name in enumerate(CASES):
        model = build(name)
        configs[name] = describe(model)
        kept = inputs(model, seed)
        kept |= run(model, kept)
        kept |= {f"weights/{key}": tensor.numpy() for key, tensor in model.state_dict().items()}
        if hasattr(model, "wiring"):
            kept["adjacency"] = model.wiring.adjacency_matrix.astype(np.int8)
            kept["sensory_adjacency"] = model.wiring.sensory_adjacency_matrix.astype(np.int8)
        arrays |= {f"{name}/{key}": a for key, a in kept.items()}
    versions = {package: importlib.metadata.version(package) for package in ("ncps", "torch")}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, configs=json.dumps(configs), versions=json.dumps(versions), **arrays)
    print(f"{PATH.name}: {len(CASES)} models, {PATH.stat().st_size / 1000:.0f} kB, {versions}")


if __name__ == "__main__":
    main()

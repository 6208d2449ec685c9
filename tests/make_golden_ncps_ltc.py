"""Write golden/ncps_ltc.npz: outputs of small seeded LTC models of the package ncps, for test_convert_ncps_ltc.py.

Run by hand, with the versions of the extra `bench`: python tests/make_golden_ncps_ltc.py
"""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ncps.torch import LTC
from ncps.wirings import NCP, AutoNCP, FullyConnected, Random

PATH = Path(__file__).parent / "golden" / "ncps_ltc.npz"
BATCH, STEPS = 3, 8


def ncp() -> NCP:
    return NCP(5, 3, 2, sensory_fanout=3, inter_fanout=2, recurrent_command_synapses=3, motor_fanin=2, seed=1)


CASES: dict[str, Callable[[], LTC]] = {
    "units": lambda: LTC(4, 6),
    "units-explicit-constraints-no-mappings": lambda: LTC(
        4, 5, implicit_param_constraints=False, input_mapping=None, output_mapping=None, ode_unfolds=3
    ),
    "autoncp": lambda: LTC(4, AutoNCP(12, 3, seed=2)),
    "autoncp-mixed-time-first": lambda: LTC(4, AutoNCP(11, 2, sparsity_level=0.3), mixed_memory=True, batch_first=False),
    "ncp-linear-last-step": lambda: LTC(4, ncp(), input_mapping="linear", output_mapping="linear", return_sequences=False),
    "random-one-unfold": lambda: LTC(6, Random(7, sparsity_level=0.6), ode_unfolds=1, epsilon=1e-3),
    "fully-connected-fewer-outputs-mixed": lambda: LTC(4, FullyConnected(6, output_dim=2), mixed_memory=True),
    "no-self-connections-explicit-constraints": lambda: LTC(3, FullyConnected(5, self_connections=False), implicit_param_constraints=False),
}
OPTIONS = ("_input_mapping", "_output_mapping", "_ode_unfolds", "_epsilon", "_implicit_param_constraints")


def build(name: str) -> LTC:
    """The model of a case, with seeded weights, all of them away from their initial values, in evaluation mode."""
    torch.manual_seed(list(CASES).index(name))
    model = CASES[name]().eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
            parameter.data += 0.05 * torch.rand_like(parameter)
    return model


def inputs(model: LTC, seed: int) -> dict[str, np.ndarray]:
    """x (B, T, I) and dt (B, T), or time first where the model is; h0, with mixed memory c0, (B, H)."""
    rng = np.random.default_rng(seed)
    lead = (BATCH, STEPS) if model.batch_first else (STEPS, BATCH)
    # no elapsed time of 0, for which ncps gives NaN
    arrays = {"x": rng.standard_normal((*lead, model.input_size)), "dt": rng.uniform(0.05, 3, lead)}
    arrays |= {name: rng.standard_normal((BATCH, model.state_size)) for name in state_names(model)}
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def state_names(model: LTC) -> list[str]:
    return ["h0", "c0"] if model.use_mixed else ["h0"]


def run(model: LTC, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
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


def describe(model: LTC) -> dict[str, Any]:
    """The attributes of a model that from_ncps reads in addition to its weights."""
    wiring = model.rnn_cell._wiring
    config = {name: getattr(model, name) for name in ("use_mixed", "return_sequences", "batch_first", "training")}
    config["cell"] = {name: getattr(model.rnn_cell, name) for name in OPTIONS}
    ids = [[int(i) for i in wiring.get_neurons_of_layer(k)] for k in range(wiring.num_layers)]
    return config | {"units": wiring.units, "output_dim": wiring.output_dim, "layers": ids}


def main() -> None:
    arrays, configs = {}, {}
    for seed, name in enumerate(CASES):
        model = build(name)
        configs[name] = describe(model)
        kept = inputs(model, seed)
        kept |= run(model, kept)
        kept |= {f"weights/{key}": tensor.numpy() for key, tensor in model.state_dict().items()}
        kept["adjacency"] = model.rnn_cell._wiring.adjacency_matrix.astype(np.int8)
        kept["sensory_adjacency"] = model.rnn_cell._wiring.sensory_adjacency_matrix.astype(np.int8)
        arrays |= {f"{name}/{key}": a for key, a in kept.items()}
    versions = {package: importlib.metadata.version(package) for package in ("ncps", "torch")}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, configs=json.dumps(configs), versions=json.dumps(versions), **arrays)
    print(f"{PATH.name}: {len(CASES)} models, {PATH.stat().st_size / 1000:.0f} kB, {versions}")


if __name__ == "__main__":
    main()

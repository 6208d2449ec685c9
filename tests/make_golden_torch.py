"""Write golden/torch_gated.npz: outputs of small seeded torch.nn.RNN, LSTM and GRU, for test_gated_parity.py.

Run by hand, with the versions of the extra `bench`: python tests/make_golden_torch.py
"""

import importlib.metadata
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PATH = Path(__file__).parent / "golden" / "torch_gated.npz"
BATCH, STEPS, INPUTS, UNITS = 3, 6, 4, 5
LENGTHS = [4, 6, 1]
KINDS = {
    "rnn-tanh": lambda **o: torch.nn.RNN(INPUTS, UNITS, **o),
    "rnn-relu": lambda **o: torch.nn.RNN(INPUTS, UNITS, nonlinearity="relu", **o),
    "lstm": lambda **o: torch.nn.LSTM(INPUTS, UNITS, **o),
    "lstm-proj": lambda **o: torch.nn.LSTM(INPUTS, UNITS, proj_size=3, **o),
    "gru": lambda **o: torch.nn.GRU(INPUTS, UNITS, **o),
}


def cases():
    for kind, layers, bidirectional, bias, lengths in itertools.product(KINDS, (1, 2), (False, True), (False, True), (False, True)):
        options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": not (lengths and bias)}
        yield f"{kind}-layers{layers}{'-bidirectional' * bidirectional}{'-bias' * bias}{'-lengths' * lengths}", kind, options, lengths


def run(module, x, state, lengths):
    """y and the last states, as tensors."""
    if lengths:
        packed = pack_padded_sequence(x, LENGTHS, batch_first=module.batch_first, enforce_sorted=False)
        y, final = module(packed, state)
        y, _ = pad_packed_sequence(y, batch_first=module.batch_first, total_length=STEPS)
    else:
        y, final = module(x, state)
    return y, final if isinstance(final, tuple) else (final,)


def compute(seed, kind, options, lengths):
    """The arrays of a case: parameters, inputs, outputs, and the gradients of a weighted sum of the outputs."""
    torch.manual_seed(seed)
    module, rng = KINDS[kind](**options), np.random.default_rng(seed)
    shape = (BATCH, STEPS, INPUTS) if options["batch_first"] else (STEPS, BATCH, INPUTS)
    x = torch.tensor(rng.standard_normal(shape), dtype=torch.float32, requires_grad=True)
    stack = options["num_layers"] * (1 + options["bidirectional"])
    sizes = [module.proj_size or UNITS, *([UNITS] if kind.startswith("lstm") else [])]
    initial = [torch.tensor(0.5 * rng.standard_normal((stack, BATCH, n)), dtype=torch.float32, requires_grad=True) for n in sizes]
    y, final = run(module, x, tuple(initial) if len(initial) > 1 else initial[0], lengths)
    weights = [torch.tensor(rng.standard_normal(a.shape), dtype=torch.float32) for a in (y, *final)]
    sum((a * w).sum() for a, w in zip((y, *final), weights, strict=True)).backward()
    arrays = {"x": x, "y": y, "grad/x": x.grad}
    arrays |= {f"w{k}": w for k, w in enumerate(weights)}
    for k, (a, b) in enumerate(zip(initial, final, strict=True)):
        arrays |= {f"initial{k}": a, f"final{k}": b, f"grad/initial{k}": a.grad}
    for name, a in module.named_parameters():
        arrays |= {f"parameter/{name}": a, f"grad/{name}": a.grad}
    return {name: a.detach().numpy() for name, a in arrays.items()}


def main():
    torch.use_deterministic_algorithms(True)
    arrays, described = {}, {}
    for seed, (name, kind, options, lengths) in enumerate(cases()):
        values = compute(seed, kind, options, lengths)
        described[name] = {"kind": kind, "options": options, "lengths": LENGTHS if lengths else None}
        described[name]["shapes"] = {key: a.shape for key, a in values.items()}
        arrays[name] = np.concatenate([a.reshape(-1) for a in values.values()])  # one array a case: thousands would be mostly headers
    about = {"torch": importlib.metadata.version("torch"), "cases": described}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, about=json.dumps(about), **arrays)
    print(f"{PATH}: {len(described)} cases, {PATH.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()

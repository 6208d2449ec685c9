"""Small random CfC scans of every kind, for tests, benchmarks and the first-use check of kernels."""

from itertools import pairwise
from typing import Any

import numpy as np

from .spec import CfCSpec

Tree = dict[str, Any]
I = 3  # inputs

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_gate": {"mode": "no_gate"},
    "pure": {"mode": "pure"},
    "heads_only": {"depth": 0},
    "pure_heads_only": {"mode": "pure", "depth": 0},
    "three_layers": {"depth": 3, "activation": "silu"},
    "gelu": {"activation": "gelu"},
    "relu": {"activation": "relu"},
    "tanh": {"activation": "tanh"},
    "dropout": {"depth": 2, "dropout": True},
    "mixed_memory": {"mixed_memory": True},
    "layered": {"depth": 0, "layers": 3},
    "layered_pure": {"mode": "pure", "depth": 0, "layers": 2},
    "layered_mixed_memory": {"mixed_memory": True, "depth": 0, "layers": 3},
    "layered_pure_mixed_memory": {"mixed_memory": True, "mode": "pure", "depth": 0, "layers": 3},
}


def cfc_problem(
    variant: str, T: int, B: int, H: int, *, lengths: bool = False, seed: int = 0, dtype: Any = np.float64
) -> tuple[CfCSpec, Tree]:
    """A spec and its arrays, with weights small enough that the recurrence does not amplify rounding errors.

    Args:
        variant: a key of VARIANTS.
        T: number of steps.
        B: number of sequences.
        H: number of units, raised to at least one per layer of the variant.
        lengths: whether the sequences have different lengths, one of them T.
        seed: seed of the random numbers.
        dtype: dtype of the arrays.
    """
    kind = VARIANTS[variant]
    mode, depth, layers = kind.get("mode", "default"), kind.get("depth", 1), kind.get("layers", 1)
    H = max(H, layers)
    # processing order runs from the last units to the first, as in a layered map
    bounds = np.linspace(H, 0, layers + 1).astype(int)
    stages = tuple((int(stop), int(start)) for start, stop in pairwise(bounds))
    spec = CfCSpec(stages, mode, kind.get("activation", "lecun_tanh"), kind.get("mixed_memory", False))
    return spec, random_arrays(spec, T, B, H + 3, depth, lengths=lengths, dropout=kind.get("dropout", False), seed=seed, dtype=dtype)


def random_arrays(
    spec: CfCSpec, T: int, B: int, Z: int, depth: int, *, lengths: bool, dropout: bool, seed: int = 0, dtype: Any = np.float64
) -> Tree:
    """Arrays for a spec with `depth` backbone layers of Z units; see `cfc_problem`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    H = spec.units
    arrays: Tree = {"x": rng.standard_normal((T, B, I)), "dt": rng.uniform(0.1, 2, (T, B)), "h0": 0.5 * rng.standard_normal((B, H))}
    arrays["stages"], inputs = [], I
    for start, stop in spec.stages:
        arrays["stages"].append(_stage(rng, spec, inputs, stop - start, Z, depth))
        inputs = stop - start
    if spec.mixed_memory:
        arrays["c0"] = 0.5 * rng.standard_normal((B, H))
        arrays["lstm"] = {"w_x": _weight(rng, 4 * H, I), "w_h": _weight(rng, 4 * H, H), "b": 0.1 * rng.standard_normal(4 * H)}
    if dropout:
        arrays["dropout"] = [rng.integers(0, 2, (T, B, Z)) * 2.0 for _ in range(depth)]
    arrays = _cast(arrays, dtype)
    if lengths:
        arrays["lengths"] = np.concatenate([rng.integers(1, T + 1, B - 1), [T]]).astype(np.int32)
    return arrays


def _stage(rng: np.random.Generator, spec: CfCSpec, inputs: int, H: int, Z: int, depth: int) -> Tree:
    sizes = [*[Z] * depth, spec.heads * H]
    tree: Tree = {"w_x": _weight(rng, sizes[0], inputs), "w_h": _weight(rng, sizes[0], H), "b": 0.1 * rng.standard_normal(sizes[0])}
    if depth:
        pairs = pairwise(sizes)
        tree["dense"] = [{"w": _weight(rng, n, m), "b": 0.1 * rng.standard_normal(n)} for m, n in pairs]
    if spec.mode == "pure":
        tree |= {"w_tau": rng.standard_normal(H), "A": 1 + 0.1 * rng.standard_normal(H)}
    return tree


def _weight(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    return 0.6 * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)


def _cast(tree: Any, dtype: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _cast(value, dtype) for name, value in tree.items()}
    return [_cast(value, dtype) for value in tree] if isinstance(tree, list) else tree.astype(dtype)

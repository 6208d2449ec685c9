"""Small random gated scans of every kind, for tests, benchmarks and the first-use check of kernels."""

from typing import Any

import numpy as np

from .spec import GatedSpec

Tree = dict[str, Any]
I = 3  # inputs

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "rnn": {"tanh": {"cell": "tanh"}, "relu": {"cell": "relu"}, "tanh_bidirectional": {"cell": "tanh", "directions": 2}},
    "lstm": {
        "lstm": {"cell": "lstm"},
        "lstm_bidirectional": {"cell": "lstm", "directions": 2},
        "lstm_projected": {"cell": "lstm", "projected": True},
        "lstm_projected_bidirectional": {"cell": "lstm", "projected": True, "directions": 2},
    },
    "gru": {"gru": {"cell": "gru"}, "gru_bidirectional": {"cell": "gru", "directions": 2}},
}
"""Layer -> its variants."""


def gated_problem(
    variant: str, T: int, B: int, H: int, *, lengths: bool = False, seed: int = 0, dtype: Any = np.float64
) -> tuple[GatedSpec, Tree]:
    """A spec and its arrays, with weights small enough that the recurrence does not amplify rounding errors.

    Args:
        variant: a key of one of VARIANTS' entries.
        T: number of steps.
        B: number of sequences.
        H: number of units.
        lengths: whether the sequences have different lengths, one of them T.
        seed: seed of the random numbers.
        dtype: dtype of the arrays.
    """
    kind = next(kinds[variant] for kinds in VARIANTS.values() if variant in kinds)
    spec = GatedSpec(kind["cell"])
    P = H // 2 + 1 if kind.get("projected") else None
    return spec, random_arrays(spec, kind.get("directions", 1), T, B, H, P, lengths=lengths, seed=seed, dtype=dtype)


def random_arrays(
    spec: GatedSpec, D: int, T: int, B: int, H: int, P: int | None, *, lengths: bool, seed: int = 0, dtype: Any = np.float64
) -> Tree:
    """Arrays for a spec in D directions, with the state projected to P features if given; see `gated_problem`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    features, rows = P or H, spec.gates * H
    arrays: Tree = {"x": rng.standard_normal((D, T, B, I)), "h0": 0.5 * rng.standard_normal((D, B, features))}
    arrays |= {"w_x": _weight(rng, D, rows, I), "w_h": _weight(rng, D, rows, features), "b": 0.1 * rng.standard_normal((D, rows))}
    if spec.has_cell_state:
        arrays["c0"] = 0.5 * rng.standard_normal((D, B, H))
    if spec.cell == "gru":
        arrays["b_hn"] = 0.1 * rng.standard_normal((D, H))
    if P is not None:
        arrays["w_hr"] = _weight(rng, D, P, H)
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    if lengths:
        arrays["lengths"] = np.concatenate([rng.integers(1, T + 1, B - 1), [T]]).astype(np.int32)
    return arrays


def _weight(rng: np.random.Generator, directions: int, outputs: int, inputs: int) -> np.ndarray:
    return 0.6 * rng.standard_normal((directions, outputs, inputs)) / np.sqrt(inputs)

"""Small random scans of cells, for tests, benchmarks and the check of a kernel before its first use."""

from typing import Any

import numpy as np

from ... import cells
from ...step.cell import Cell
from ...step.definition import Definition
from .gated import GRU_CELL, LSTM_CELL, PROJECTED_LSTM, RELU_RNN, TANH_RNN

Tree = dict[str, Any]
I = 3  # inputs

OF_PAPERS: dict[str, Cell] = {name: getattr(cells, name)() for name in cells.__all__}
VARIANTS: dict[str, dict[str, tuple[Cell, int]]] = {
    "RNN": {"tanh": (TANH_RNN, 1), "relu": (RELU_RNN, 1), "tanh_bidirectional": (TANH_RNN, 2)},
    "LSTM": {
        "lstm": (LSTM_CELL, 1),
        "lstm_bidirectional": (LSTM_CELL, 2),
        "lstm_projected": (PROJECTED_LSTM, 1),
        "lstm_projected_bidirectional": (PROJECTED_LSTM, 2),
    },
    "GRU": {"gru": (GRU_CELL, 1), "gru_bidirectional": (GRU_CELL, 2)},
    "Recurrent": {
        **{name.lower(): (cell, 1) for name, cell in OF_PAPERS.items()},
        **{f"{name.lower()}_bidirectional": (OF_PAPERS[name], 2) for name in ("SRU", "LEM", "GRUD")},
    },
}
"""Recurrence -> its variants: the cell, and in how many directions it runs."""


def cell_problem(
    variant: str, T: int, B: int, H: int, *, lengths: bool = False, seed: int = 0, dtype: Any = np.float64
) -> tuple[Definition, Tree]:
    """A definition and its arrays, with weights at which the recurrence does not amplify rounding errors.

    Args:
        variant: a key of one of VARIANTS' entries.
        T: steps.
        B: sequences.
        H: units.
        lengths: whether the sequences have different lengths, T among them.
        seed: of the random numbers.
        dtype: of the arrays.
    """
    cell, directions = next(kinds[variant] for kinds in VARIANTS.values() if variant in kinds)
    return cell.definition, random_arrays(cell.definition, directions, T, B, H, lengths=lengths, seed=seed, dtype=dtype)


def random_arrays(
    definition: Definition, D: int, T: int, B: int, H: int, *, lengths: bool, seed: int = 0, dtype: Any = np.float64, P: int | None = None
) -> Tree:
    """Arrays for a definition, in D directions; see `cell_problem`. P: values of a size that is not H; None: half of H and 1."""
    P = H // 2 + 1 if P is None else P
    numbers = {name: H if size == "H" else P for name, size in definition.sizes.items()}
    inputs = {call.name: H if call.argument.size == "H" else P for call in definition.calls}
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = len(definition.x) * H
    arrays: Tree = {"x": rng.standard_normal((D, T, B, I)), "w_x": _weight(rng, D, rows, I), "b": 0.1 * rng.standard_normal((D, rows))}
    arrays["initial"] = {name: 0.5 * rng.standard_normal((D, B, numbers[name])) for name in definition.states}
    arrays["weights"] = {name: _weight(rng, D, count * numbers[name], inputs[name]) for name, count in definition.h_products.items()}
    sizes = {name: 1 if name in definition.shared else H for name in definition.parameters}
    arrays["parameters"] = {name: rng.uniform(0.1, 0.4, (D, size)) for name, size in sizes.items()}
    if definition.is_timed:
        arrays["dt"] = rng.uniform(0.1, 1.0, (D, T, B))
    arrays = _cast(arrays, dtype)
    if lengths:
        arrays["lengths"] = np.concatenate([rng.integers(1, T + 1, B - 1), [T]]).astype(np.int32)
    return arrays


def _cast(tree: Tree, dtype: Any) -> Tree:
    return {name: _cast(a, dtype) if isinstance(a, dict) else a.astype(dtype) for name, a in tree.items()}


def _weight(rng: np.random.Generator, directions: int, outputs: int, inputs: int) -> np.ndarray:
    return 0.6 * rng.standard_normal((directions, outputs, inputs)) / np.sqrt(inputs)

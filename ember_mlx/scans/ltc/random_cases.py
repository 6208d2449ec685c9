"""Small random LTC scans of every kind, for tests, benchmarks and the first-use check of kernels."""

from typing import Any

import numpy as np

from .spec import LTCSpec
from .synapses import Synapses

Tree = dict[str, Any]
I = 3  # inputs

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "sparse": {"density": 0.4},
    "explicit": {"solver": "explicit"},
    "explicit_sparse": {"solver": "explicit", "density": 0.4},
    "rk4": {"solver": "rk4", "unfolds": 2},
    "rk4_sparse": {"solver": "rk4", "unfolds": 2, "density": 0.4},
    "mixed_memory": {"mixed_memory": True},
    "mixed_memory_sparse": {"mixed_memory": True, "density": 0.4},
}


def ltc_problem(
    variant: str, T: int, B: int, H: int, *, lengths: bool = False, seed: int = 0, dtype: Any = np.float64
) -> tuple[LTCSpec, Tree]:
    """A spec and its arrays, with weights in the ranges of a new layer.

    Args:
        variant: a key of VARIANTS.
        T: number of steps; about one elapsed time in eight is 0.
        B: number of sequences.
        H: number of units.
        lengths: whether the sequences have different lengths, one of them T.
        seed: seed of the random numbers.
        dtype: dtype of the arrays.
    """
    kind = VARIANTS[variant]
    rng, density = np.random.Generator(np.random.PCG64(seed)), kind.get("density", 1.0)
    synapses, sensory = (Synapses(rng.random((K, H)) < density) for K in (H, I))
    options = {name: kind[name] for name in ("solver", "mixed_memory") if name in kind}
    spec = LTCSpec(synapses, sensory, kind.get("unfolds", 3), **options)
    return spec, random_arrays(spec, T, B, lengths=lengths, seed=seed, dtype=dtype)


def random_arrays(spec: LTCSpec, T: int, B: int, *, lengths: bool, seed: int = 0, dtype: Any = np.float64) -> Tree:
    """Arrays for a spec; see `ltc_problem`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    H, inputs = spec.units, spec.sensory.inputs
    dt = rng.uniform(0.1, 2, (T, B)) * (rng.random((T, B)) > 0.125)
    # units with many synapses are stiff; only the semi-implicit solver can take long steps then
    dt = dt if spec.solver == "semi_implicit" else dt / (1 + 0.5 * (H + inputs))
    arrays: Tree = {"u": rng.standard_normal((T, B, inputs)), "dt": dt, "v0": 0.5 * rng.standard_normal((B, H))}
    arrays["synapses"], arrays["sensory"] = _synapses(rng, spec.synapses), _synapses(rng, spec.sensory)
    arrays |= {"gleak": rng.uniform(0.001, 1, H), "vleak": rng.uniform(-0.2, 0.2, H), "cm": rng.uniform(0.4, 0.6, H)}
    if spec.mixed_memory:
        arrays |= {"x": rng.standard_normal((T, B, inputs)), "c0": 0.5 * rng.standard_normal((B, H))}
        arrays["lstm"] = {"w_x": _weight(rng, 4 * H, inputs), "w_h": _weight(rng, 4 * H, H), "b": 0.1 * rng.standard_normal(4 * H)}
    arrays = _cast(arrays, dtype)
    if lengths:
        arrays["lengths"] = np.concatenate([rng.integers(1, T + 1, B - 1), [T]]).astype(np.int32)
    return arrays


def _synapses(rng: np.random.Generator, synapses: Synapses) -> Tree:
    S = synapses.count
    erev = np.where(rng.random(S) < 2 / 3, 1.0, -1.0) * rng.uniform(0.8, 1.2, S)
    return {"w": rng.uniform(0.001, 1, S), "sigma": rng.uniform(3, 8, S), "mu": rng.uniform(0.3, 0.8, S), "erev": erev}


def _weight(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    return 0.6 * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)


def _cast(tree: Tree, dtype: Any) -> Tree:
    return {name: _cast(value, dtype) if isinstance(value, dict) else value.astype(dtype) for name, value in tree.items()}
